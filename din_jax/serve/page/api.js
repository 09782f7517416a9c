// Asks the server. The token is kept here, in memory alone.

let token = "";

export function useToken(text) {
  token = text;
}

/** An answer that is no success: its status, the field that is wrong, and the message. */
export class Problem extends Error {
  constructor(status, field, message) {
    super(message);
    this.status = status;
    this.field = field;
  }
}

/** The JSON of a route's answer: GET, or POST of a body. */
export async function ask(route, { body, signal } = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const options = { headers, signal, cache: "no-store", credentials: "omit" };
  if (body !== undefined) {
    Object.assign(options, { method: "POST", body });
    headers["Content-Type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(route, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, null, "The server does not answer.");
  }
  const answer = await response.json().catch(() => null);
  if (response.ok && answer) return answer;
  const { field = null, message = response.statusText } = answer?.error ?? {};
  throw new Problem(response.status, field, message);
}
