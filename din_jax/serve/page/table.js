// A table whose rows people edit: a row a behaviour or a candidate, a column a field.

import { dateOf, element } from "./dom.js";
import { suggestTo } from "./ids.js";
import { format, parse } from "./values.js";

/** A cell to edit: {input, field, hint, parts: the elements}. `where` names it in errors. */
export function editable(field, where, label, value) {
  const hint = element("small", { class: "hint" });
  const input = element("input", {
    value: format(value, field),
    "aria-label": label,
    "data-field": where,
    spellcheck: false,
    autocomplete: "off",
  });
  if (field.type !== "id" && !field.multi_hot) input.inputMode = "decimal";
  if (field.table) suggestTo(input, field);
  if (field.table && !field.multi_hot) input.placeholder = "search";
  const cell = { input, field, hint, parts: [input, hint] };
  if (field.time) {
    const show = () => (hint.textContent = dateOf(input.value));
    input.addEventListener("input", show);
    show();
  }
  return cell;
}

/**
 * Args:
 *   where: the table's name in a request: "candidates", "behaviors.history".
 *   one: what a row is: "behaviour".
 *   fields: its columns, those of GET /v1/inputs.
 *   blank: the values of a new row, by a function.
 *   outputs: [{name, label}] of the columns that show results.
 *   choice: whether one row is selected; `onSelect` is called when another one is.
 *   onChange: called when a value or the number of rows changes.
 *   actions: [{label, call}] of further buttons; each call gets the selected row.
 */
export class EditableTable {
  constructor({ where, one, fields, blank, outputs, choice = false, onSelect, onChange, actions = [] }) {
    Object.assign(this, { where, one, fields, outputs, choice, onSelect, onChange });
    this.rows = [];
    this.body = element("tbody", { role: "rowgroup" });
    const head = [hidden("number"), ...[...fields, ...outputs].map(labelOf), hidden("actions")];
    const headers = head.map((text) => element("th", { scope: "col", role: "columnheader" }, text));
    this.problem = element("p", { class: "problem", "data-problem": where });
    this.add = element("button", { type: "button" }, `Add a ${one}`);
    this.add.addEventListener("click", () => {
      this.append(blank());
      this.rows.at(-1).cells[0]?.input.focus();
      this.onChange();
    });
    const others = actions.map(({ label, call }) => {
      const button = element("button", { type: "button" }, label);
      button.addEventListener("click", () => this.rows.length && call(this.rows[this.selected]));
      return button;
    });
    const table = element(
      "table",
      { role: "table", "aria-label": `${one}s (${where})` },
      element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, ...headers)),
      this.body,
    );
    this.element = element(
      "div",
      { class: "table" },
      element("div", { class: "rows" }, table),
      this.problem,
      element("div", { class: "buttons" }, this.add, ...others),
    );
  }

  /** Appends a row with these values, {field: raw value}. */
  append(values) {
    const row = { cells: [], outputs: {} };
    for (const field of this.fields) {
      row.cells.push(editable(field, field.where ?? `${this.where}.${field.name}`, "", values[field.name]));
    }
    row.head = element("th", { scope: "row", role: "rowheader" });
    row.number = element("span");
    if (this.choice) {
      row.radio = element("input", { type: "radio", name: `${this.where}-selected` });
      row.radio.addEventListener("change", () => this.onSelect());
      row.head.append(element("label", {}, row.radio, row.number));
    } else row.head.append(row.number);
    const cell = (label, name, ...children) =>
      element("td", { role: "cell", "data-label": label, class: name }, ...children);
    const inputs = row.cells.map((c) => cell(labelOf(c.field), c.field.time ? "time" : c.field.type, ...c.parts));
    for (const { name, label } of this.outputs) row.outputs[name] = cell(label, `output ${name}`, "–");
    row.remove = element("button", { type: "button", class: "small" }, "✕");
    row.remove.addEventListener("click", () => this.#remove(row));
    const actions = cell("", "actions", row.remove);
    row.element = element("tr", { role: "row" }, row.head, ...inputs, ...Object.values(row.outputs), actions);
    row.element.addEventListener("input", (event) => {
      if (event.target !== row.radio) this.onChange();
    });
    this.rows.push(row);
    this.body.append(row.element);
    this.#name();
  }

  /** The rows' raw values, [{field: value}]. */
  values() {
    return this.rows.map((row) => valuesOf(row));
  }

  /** The index of the selected row. */
  get selected() {
    return Math.max(0, this.rows.findIndex((row) => row.radio?.checked));
  }

  get cells() {
    return this.rows.flatMap((row) => row.cells);
  }

  #remove(row) {
    const at = this.rows.indexOf(row);
    this.rows.splice(at, 1);
    row.element.remove();
    this.#name();
    const next = this.rows[Math.min(at, this.rows.length - 1)];
    (next?.remove ?? this.add).focus(); // not lost with the row
    this.onChange();
  }

  /** Numbers the rows, for people who see them and for those who hear them. */
  #name() {
    this.rows.forEach((row, i) => {
      const name = `${this.one} ${i + 1}`;
      row.number.textContent = String(i + 1);
      row.radio?.setAttribute("aria-label", `select ${name}`);
      for (const { input, field } of row.cells) input.setAttribute("aria-label", `${labelOf(field)} of ${name}`);
      row.remove.setAttribute("aria-label", `Remove ${name}`);
      row.remove.title = `Remove ${name}`;
    });
    if (this.choice && this.rows.length && !this.rows.some((row) => row.radio.checked)) {
      this.rows[0].radio.checked = true;
    }
  }
}

/** A row's raw values, {field: value}. */
export function valuesOf(row) {
  return Object.fromEntries(row.cells.map(({ input, field }) => [field.name, parse(input.value, field)]));
}

function labelOf(field) {
  return field.label ?? field.name;
}

function hidden(text) {
  return element("span", { class: "hidden" }, text);
}
