// Small helpers to make elements.

const SVG = "http://www.w3.org/2000/svg";

/** An element with properties ("class", "data-…" and "aria-…" are attributes) and children. */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined) continue;
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** A bar from 0 to a value, of a scale from `low` to `high`, with a mark where it was before. */
export function bar(value, low, high, before) {
  const place = (x) => (high > low ? (100 * (x - low)) / (high - low) : 0);
  const [zero, end] = [place(0), place(value)];
  const svg = document.createElementNS(SVG, "svg");
  const rectangle = (kind, x, y, width, height) => {
    const made = document.createElementNS(SVG, "rect");
    made.setAttribute("class", kind);
    for (const [key, v] of Object.entries({ x, y, width, height })) made.setAttribute(key, v);
    svg.append(made);
  };
  svg.setAttribute("class", "bar");
  svg.setAttribute("viewBox", "0 0 100 10");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  rectangle("scale", 0, 0, 100, 10);
  rectangle(value < 0 ? "negative" : "positive", Math.min(zero, end), 1, Math.abs(end - zero), 8);
  if (low < 0) rectangle("zero", Math.min(zero, 99.5), 0, 0.5, 10);
  if (before !== undefined) rectangle("before", Math.min(place(before), 99), 0, 1, 10);
  return svg;
}

/** A number to read: four decimals, or as many digits as a small or a great one needs. */
export function rounded(number) {
  const size = Math.abs(number);
  return size === 0 || (size >= 0.001 && size < 1000) ? number.toFixed(4) : number.toPrecision(3);
}

/** The date of seconds since 1970, where they look like that. */
export function dateOf(text) {
  const seconds = Number(text);
  if (!(seconds > 1e8 && seconds < 1e11)) return "";
  return new Date(seconds * 1000).toISOString().replace("T", " ").slice(0, 16);
}

/** Calls a function when nothing has called for it for some milliseconds. */
export function debounced(milliseconds, call) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(call, milliseconds);
  };
}
