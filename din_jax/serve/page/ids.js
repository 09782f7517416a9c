// Ids of the model's tables: their titles, and suggestions while one is typed.

import { ask } from "./api.js";
import { idsOf } from "./values.js";

const AT_A_TIME = 50; // ids in an address
const WAIT_MS = 150; // after a key, until suggestions are asked for
const known = new Map(); // "TABLE ID" → {title, known}
let asked = 0;
let timer = 0;

const key = (table, id) => `${table} ${id}`;

/** Forgets the titles: another version of the model may have others. */
export function forget() {
  known.clear();
}

/** Writes the title of each id beside its cell, or that the model does not know it. */
export async function describe(cells) {
  const missing = new Map(); // table → ids
  for (const { input, field } of cells) {
    for (const id of field.table ? idsOf(input.value, field) : []) {
      if (known.has(key(field.table, id))) continue;
      missing.set(field.table, (missing.get(field.table) ?? new Set()).add(id));
    }
  }
  for (const [table, ids] of missing) {
    const list = [...ids];
    for (let i = 0; i < list.length; i += AT_A_TIME) {
      const query = new URLSearchParams(list.slice(i, i + AT_A_TIME).map((id) => ["id", id]));
      const found = await ask(`v1/ids/${encodeURIComponent(table)}?${query}`);
      for (const entry of found.ids) known.set(key(table, entry.id), entry);
    }
  }
  for (const { input, field, hint } of cells) {
    if (!field.table) continue;
    const entries = idsOf(input.value, field).map((id) => known.get(key(field.table, id)));
    const names = entries.filter(Boolean).map((e) => e.title ?? (e.known ? null : `${e.id}: unknown id`));
    hint.textContent = names.filter(Boolean).join(", ");
    hint.classList.toggle("unknown", entries.some((e) => e && !e.known));
  }
}

/** The title of the first id in a cell, or else its text. */
export function nameOf({ input, field }) {
  const [id] = idsOf(input.value, field);
  return known.get(key(field.table, id))?.title ?? input.value;
}

/** Suggests ids to a cell while it is edited: those that contain the text, or whose titles do. */
export function suggestTo(input, field) {
  const list = listOf(field.table);
  input.setAttribute("list", list.id);
  input.autocomplete = "off";
  const start = () => {
    clearTimeout(timer);
    timer = setTimeout(() => suggest(input, field, list), WAIT_MS);
  };
  input.addEventListener("focus", start);
  input.addEventListener("input", start);
}

async function suggest(input, field, list) {
  const number = ++asked;
  const before = field.multi_hot ? input.value.slice(0, input.value.lastIndexOf(",") + 1) : "";
  const query = input.value.slice(before.length).trim();
  let found;
  try {
    found = await ask(`v1/ids/${encodeURIComponent(field.table)}?${new URLSearchParams({ query, limit: 20 })}`);
  } catch {
    return; // a suggestion is missed, nothing else
  }
  if (number !== asked) return;
  const options = found.ids.map(({ id, title }) => {
    const option = document.createElement("option");
    option.value = before ? `${before} ${id}` : id;
    if (title) option.label = title;
    return option;
  });
  list.replaceChildren(...options);
}

function listOf(table) {
  const id = `ids-${table}`;
  let list = document.getElementById(id);
  if (!list) {
    list = document.createElement("datalist");
    list.id = id;
    document.body.append(list);
  }
  return list;
}
