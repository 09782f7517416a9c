// From a request's raw values to the text of a cell, and back.
//
// A field is {name, type: "id" | "number", multi_hot, weighted, whole}; see GET /v1/inputs.

const WHOLE = /^-?\d{1,15}$/; // exact as a number of JavaScript

/** The text of a cell. Several values are separated by commas, or JSON where an id has a comma. */
export function format(value, field) {
  if (value === null || value === undefined) return "";
  if (!field.multi_hot) return String(value);
  const texts = value.filter((one) => one !== null).map((one) => (field.weighted ? one.join(":") : String(one)));
  const plain = texts.every((text) => text && text === text.trim() && !text.includes(",") && text[0] !== "[");
  return plain ? texts.join(", ") : JSON.stringify(value);
}

/** The raw value of a cell's text. What is no number stays text, and the server says so. */
export function parse(text, field) {
  if (!field.multi_hot) return parseOne(text, field);
  if (text.trim().startsWith("[")) {
    try {
      return JSON.parse(text);
    } catch {
      return text;
    }
  }
  const parts = text.split(",").map((part) => part.trim());
  return parts.filter(Boolean).map((part) => (field.weighted ? parsePair(part, field) : parseOne(part, field)));
}

/** Whether a cell has text where a number is expected. */
export function isNoNumber(text, field) {
  const value = parse(text, field);
  return field.type === "number" && [value].flat(2).some((one) => typeof one === "string");
}

function parsePair(text, field) {
  const at = text.lastIndexOf(":");
  if (at < 0) return [parseOne(text, field)];
  return [parseOne(text.slice(0, at).trim(), field), parseOne(text.slice(at + 1), { type: "number" })];
}

function parseOne(text, field) {
  if (text.trim() === "") return null;
  if (field.type === "number") {
    const number = Number(text);
    return Number.isFinite(number) ? number : text;
  }
  return field.whole && WHOLE.test(text.trim()) ? Number(text) : text;
}

/** The ids of a cell, as texts. */
export function idsOf(text, field) {
  const value = parse(text, field);
  const several = field.multi_hot && Array.isArray(value) ? value : [value];
  const ids = several.map((one) => (field.weighted && Array.isArray(one) ? one[0] : one));
  return ids.filter((id) => id !== null && id !== undefined).map(String);
}

/** JSON with a row of a table a line. */
export function pretty(request) {
  const row = (value) => JSON.stringify(value);
  const rows = (list, indent) =>
    list.length ? `[\n${list.map((one) => `${indent}  ${row(one)}`).join(",\n")}\n${indent}]` : "[]";
  const value = (one, indent) => {
    if (Array.isArray(one) && typeof one[0] === "object") return rows(one, indent);
    if (one && typeof one === "object" && Object.values(one).some(Array.isArray)) return object(one, `${indent}  `);
    return row(one);
  };
  const object = (one, indent) => {
    const lines = Object.entries(one).map(([name, v]) => `${indent}${JSON.stringify(name)}: ${value(v, indent)}`);
    return `{\n${lines.join(",\n")}\n${indent.slice(2)}}`;
  };
  return object(request, "  ");
}
