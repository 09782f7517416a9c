// The page: shows a model's inputs, asks for scores when they change, and draws the answers.

import { ask, Problem, useToken } from "./api.js";
import { bar, debounced, element, rounded } from "./dom.js";
import { describe, forget, nameOf } from "./ids.js";
import { editable, EditableTable, valuesOf } from "./table.js";
import { isNoNumber, parse, pretty } from "./values.js";

const WAIT_MS = 250; // after a change, until the server is asked
const BESIDE = 4; // fields of a candidate with which it has room beside the behaviours
const TIME = { name: "time", type: "number", time: true };
const BID = { name: Symbol("bid"), label: "bid", where: "bids", type: "number" }; // no field of the model

const at = (id) => document.getElementById(id);
let inputs; // GET /v1/inputs
let single; // {"user" | "context" | "time": its cells}
let histories; // {sequence: EditableTable}
let ads; // EditableTable
let results; // {probabilities, values, ranks, weights} of the last answer
let before; // index of the candidate that was selected before
let shown; // index of the candidate whose weights are shown
let running = new AbortController();

// Start ------------------------------------------------------------------------------------------

at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useToken(at("token").value);
  start();
});
at("alpha").addEventListener("input", changed);
at("route").addEventListener("change", showRequest);
at("copy-json").addEventListener("click", () => copy(at("json").value, "The JSON"));
at("copy-curl").addEventListener("click", () => copy(curl(), "The command"));
start();

async function start() {
  say("Loading the model's inputs…");
  try {
    inputs = await ask("v1/inputs");
  } catch (error) {
    say("");
    const asksForToken = error.status === 401;
    at("token-form").hidden = !asksForToken;
    if (asksForToken) at("token").focus();
    complain(asksForToken && !at("token").value ? null : error);
    return;
  }
  at("token-form").hidden = true;
  complain(null);
  build();
  await score();
}

function build() {
  const { example } = inputs;
  showModel(inputs.model);
  forget();
  results = before = shown = undefined;
  single = {};
  const groups = { user: inputs.user, context: inputs.context };
  const boxes = [];
  const add = (name, field, where, value) => {
    const cell = editable(field, where, where, value);
    cell.input.addEventListener("input", changed);
    boxes.push(element("label", {}, where, ...cell.parts), problemOf(where));
    (single[name] ??= []).push(cell);
  };
  for (const [group, fields] of Object.entries(groups)) {
    for (const field of fields) add(group, field, `${group}.${field.name}`, example[group]?.[field.name]);
  }
  if (inputs.time) add("time", TIME, "time", example.time);
  at("user-fields").replaceChildren(...boxes);
  at("user").hidden = !boxes.length;

  histories = {};
  at("sequences").replaceChildren();
  for (const [name, { fields, times }] of Object.entries(inputs.behaviors)) {
    const weighs = inputs.activation_weights.includes(name);
    histories[name] = new EditableTable({
      where: `behaviors.${name}`,
      one: "behaviour",
      fields: times ? [...fields, TIME] : fields,
      blank: () => ({ time: now() }),
      outputs: weighs ? [{ name: "weight", label: "weight" }] : [],
      onChange: changed,
    });
    for (const row of rowsOf(example.behaviors?.[name])) histories[name].append(row);
    at("sequences").append(element("h3", {}, name), histories[name].element);
  }
  at("behaviors").hidden = !Object.keys(histories).length;

  ads = new EditableTable({
    where: "candidates",
    one: "candidate",
    fields: [...inputs.candidates, BID],
    blank: () => ({ [BID.name]: 1 }),
    outputs: [
      { name: "probability", label: "probability" },
      { name: "value", label: "value" },
      { name: "rank", label: "rank" },
    ],
    choice: true,
    onSelect: select,
    onChange: changed,
    actions: [
      { label: "Copy the selected", call: copyAd },
      ...Object.keys(histories).map((name) => ({
        label: `Add the selected to ${name}`,
        call: (row) => addToHistory(name, row),
      })),
    ],
  });
  for (const row of rowsOf(example.candidates)) ads.append({ ...row, [BID.name]: 1 });
  at("ads").replaceChildren(ads.element, problemOf("bids"));
  const routes = ["rank", "score", ...(inputs.activation_weights.length ? ["explain"] : [])];
  at("route").replaceChildren(...routes.map((name) => element("option", { value: name }, `POST /v1/${name}`)));
  at("main").classList.toggle("wide", inputs.candidates.length > BESIDE);
  at("main").hidden = false;
}

/** Rows of a table that a request gives by columns or by rows. */
function rowsOf(table) {
  if (!table || Array.isArray(table)) return table ?? [];
  const names = Object.keys(table);
  return (table[names[0]] ?? []).map((_, i) => Object.fromEntries(names.map((name) => [name, table[name][i]])));
}

function copyAd(row) {
  ads.append(valuesOf(row));
  ads.rows.at(-1).cells[0]?.input.focus();
  score();
}

/** A candidate becomes the last behaviour of a history. */
function addToHistory(name, row) {
  const values = valuesOf(row);
  const { fields, times } = inputs.behaviors[name];
  const behavior = Object.fromEntries(fields.map((field) => [field.name, values[field.ad]]));
  if (times) behavior.time = now();
  histories[name].append(behavior);
  score();
}

/** The time of the request. */
function now() {
  const [cell] = single.time ?? [];
  return cell ? parse(cell.input.value, TIME) : null;
}

// The request ------------------------------------------------------------------------------------

/** The request that the tables show, for a route. */
function requestOf(route) {
  const valued = (cells = []) => Object.fromEntries(cells.map((c) => [c.field.name, parse(c.input.value, c.field)]));
  const request = { user: valued(single.user), context: valued(single.context), behaviors: {} };
  for (const [name, table] of Object.entries(histories)) {
    const rows = table.values();
    const timed = rows.some((row) => row.time !== undefined && row.time !== null);
    request.behaviors[name] = rows.map((row) => {
      if (timed || !inputs.behaviors[name].times) return row;
      const { time, ...rest } = row;
      return rest;
    });
  }
  const rows = ads.values();
  request.candidates = rows; // JSON has no symbols: the bids are left out
  const time = valued(single.time).time ?? null;
  if (time !== null) request.time = time;
  if (route === "rank") {
    request.bids = rows.map((row) => row[BID.name]);
    request.alpha = parse(at("alpha").value, { type: "number" });
  }
  return request;
}

function showRequest() {
  at("json").value = pretty(requestOf(at("route").value));
}

function curl() {
  const address = new URL(`v1/${at("route").value}`, document.baseURI);
  const body = at("json").value.replaceAll("'", "'\\''");
  const token = at("token").value ? ' -H "Authorization: Bearer $DIN_JAX_TOKEN"' : "";
  return `curl -H 'Content-Type: application/json'${token} -d '${body}' ${address}`;
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    say(`${what} is copied.`);
  } catch {
    at("json").select(); // without TLS a browser has no clipboard for pages
    say("This browser lets the page copy nothing: press Ctrl+C to copy the JSON, which is selected.");
  }
}

// The answer -------------------------------------------------------------------------------------

const scoreSoon = debounced(WAIT_MS, score);

function changed() {
  forgetAnswer();
  scoreSoon();
}

/** What is shown, or on its way, does not belong to the tables any more. */
function forgetAnswer() {
  running.abort();
  results = undefined;
  at("main").classList.add("stale");
}

async function score() {
  forgetAnswer();
  const mine = (running = new AbortController());
  showRequest();
  const post = (route) => ask(`v1/${route}`, { body: JSON.stringify(requestOf(route)), signal: mine.signal });
  const cells = [...(single.user ?? []), ...(single.context ?? []), ...[ads, ...tables()].flatMap((t) => t.cells)];
  const described = describe(cells).catch(() => {}); // titles are missed, nothing else
  try {
    const explains = inputs.activation_weights.length > 0;
    const [ranked, explained] = await Promise.all([post("rank"), explains ? post("explain") : null]);
    if (mine.signal.aborted) return;
    const [probabilities, values, ranks] = [[], [], []];
    ranked.indices.forEach((index, place) => {
      probabilities[index] = ranked.probabilities[place];
      values[index] = ranked.values[place];
      ranks[index] = place + 1;
    });
    await described;
    if (mine.signal.aborted) return;
    results = { probabilities, values, ranks, weights: explained?.weights ?? {}, unknown: ranked.unknown_ids };
    at("main").classList.remove("stale");
    complain(null);
    if (ranked.model.version !== inputs.model.version) showModel(ranked.model);
    showScores();
    showWeights();
    announce();
  } catch (error) {
    if (error.name === "AbortError" || mine.signal.aborted) return;
    clear();
    complain(error);
    if (error.status === 401) at("token-form").hidden = false;
  }
}

const tables = () => Object.values(histories);

function showModel({ name, version }) {
  document.title = `${name}: click probabilities`;
  const changed = version !== inputs.model.version ? ". Another version serves now: reload the page for its inputs" : "";
  at("model").textContent = `Model ${name}, version ${version}${changed}`;
}

function showScores() {
  const { probabilities, values, ranks } = results;
  ads.rows.forEach((row, i) => {
    row.outputs.probability.replaceChildren(rounded(probabilities[i]), bar(probabilities[i], 0, 1));
    row.outputs.value.textContent = rounded(values[i]);
    row.outputs.rank.textContent = String(ranks[i]);
    row.element.classList.toggle("first", ranks[i] === 1);
  });
}

function select() {
  if (!results) return;
  before = shown;
  showWeights();
  announce();
}

/** Draws the weights of the selected candidate, and marks those of the one selected before. */
function showWeights() {
  shown = ads.selected;
  ads.rows.forEach((row, i) => row.element.classList.toggle("selected", i === shown));
  for (const [name, weights] of Object.entries(results.weights)) {
    const all = weights.flat();
    const [low, high] = [Math.min(0, ...all), Math.max(0, ...all)]; // one scale for all candidates
    histories[name].rows.forEach((row, j) => {
      const [now, then] = [weights[shown][j], weights[before]?.[j]];
      const mark = before === shown ? undefined : then;
      row.outputs.weight.replaceChildren(rounded(now), bar(now, low, high, mark));
    });
  }
  const legend = before !== undefined && before !== shown && before < ads.rows.length ? `; the mark is that for candidate ${before + 1}` : "";
  const weighs = Object.keys(results.weights).length;
  at("weights-of").textContent = weighs
    ? `Activation weights for ${nameOfAd(shown)}${legend}. Select another candidate to compare.`
    : "This model has no activation unit: it weights no behaviour by the candidate.";
}

function nameOfAd(index) {
  const cell = ads.rows[index].cells.find(({ field }) => field.table);
  const name = cell ? nameOf(cell) : "";
  return `candidate ${index + 1}${name ? ` (${name})` : ""}`;
}

function announce() {
  const { probabilities, ranks, weights, unknown } = results;
  const parts = [
    `${nameOfAd(shown)}: probability ${rounded(probabilities[shown])}, rank ${ranks[shown]} of ${ranks.length}.`,
  ];
  for (const [name, all] of Object.entries(weights)) {
    const ofAd = all[shown];
    if (!ofAd.length) continue;
    const most = ofAd.indexOf(Math.max(...ofAd));
    parts.push(`Greatest weight in ${name}: behaviour ${most + 1}, ${rounded(ofAd[most])}.`);
  }
  if (unknown) parts.push(`${unknown} unknown ${unknown === 1 ? "id is" : "ids are"} treated as missing.`);
  const text = parts.join(" ");
  say(text[0].toUpperCase() + text.slice(1));
}

function clear() {
  for (const table of [ads, ...tables()]) {
    for (const row of table.rows) {
      row.element.classList.remove("first");
      for (const output of Object.values(row.outputs)) output.replaceChildren("–");
    }
  }
  at("weights-of").textContent = "";
  say("");
}

// Messages ---------------------------------------------------------------------------------------

function say(text) {
  if (at("status").textContent !== text) at("status").textContent = text;
}

function problemOf(where) {
  return element("p", { class: "problem", "data-problem": where });
}

/** Shows an error of the server, beside its field where the page has that. */
function complain(error) {
  for (const place of document.querySelectorAll("[data-problem]")) place.textContent = "";
  for (const input of document.querySelectorAll("[aria-invalid]")) {
    input.removeAttribute("aria-invalid");
    input.removeAttribute("aria-describedby");
  }
  at("problem").textContent = "";
  if (!error) return;
  if (!(error instanceof Problem)) {
    at("problem").textContent = `The page failed: ${error.message}`;
    console.error(error);
    return;
  }
  const field = (error.field ?? "").replace(/\[\d+\]/g, "");
  const cells = !ads ? [] : [...Object.values(single).flat(), ...ads.cells, ...tables().flatMap((t) => t.cells)];
  const here = cells.filter(({ input }) => input.dataset.field === field);
  const wrong = here.filter(({ input, field: of }) => isNoNumber(input.value, of));
  const marked = (wrong.length ? wrong : here).map(({ input }) => input);
  for (const input of field === "alpha" ? [at("alpha")] : marked) {
    input.setAttribute("aria-invalid", "true");
    input.setAttribute("aria-describedby", "problem");
  }
  const text = error.field ? `${error.field}: ${error.message}` : error.message;
  at("problem").textContent = text;
  const beside = [...document.querySelectorAll("[data-problem]")].filter(
    ({ dataset }) => field === dataset.problem || field.startsWith(`${dataset.problem}.`),
  );
  beside.at(-1)?.replaceChildren(text);
}
