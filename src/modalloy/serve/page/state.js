// What the page shows, as a value; the address holds all of it except pictures that the user gave.

export const PAGE = 24;
// A service answers with at most 200, unless it is configured otherwise.
export const MOST = 192;
export const DEFAULT_WEIGHT = { text: 1, like: 1, upload: 1, without: 0.5 };

/**
 * parts: what to look for, {kind: "text" | "without" | "like" | "upload", value, weight}; at most one text, which comes
 * first. where: conditions {field, comparison, value}, the values as they were typed. show: the id of the opened picture.
 */
export const BLANK = Object.freeze({
  parts: [], target: "image", k: PAGE, where: [], rerank: null, side: false, show: null,
});

const LISTED = ["text", "like", "without"];
const CONDITION = /^(\w+) (!=|<=|>=|=|<|>|contains) (.*)$/s;

export const part = (kind, value, weight = DEFAULT_WEIGHT[kind]) => ({ kind, value, weight });
export const textOf = (state) => state.parts.find(({ kind }) => kind === "text")?.value ?? "";
export const isAsked = (state) => state.parts.some(({ kind }) => kind !== "without");

/** The parts with another text; a blank one is left out. */
export function withText(parts, text) {
  const others = parts.filter(({ kind }) => kind !== "text");
  const weight = parts.find(({ kind }) => kind === "text")?.weight;
  return text.trim() ? [part("text", text.trim(), weight), ...others] : others;
}

/** The address's query. `?` alone stands for the blank page. */
export function toAddress(state) {
  const query = new URLSearchParams();
  const weights = [];
  for (const kind of LISTED) {
    for (const { value, weight } of state.parts.filter((each) => each.kind === kind)) {
      query.append(kind, value);
      weights.push(weight === DEFAULT_WEIGHT[kind] ? "" : weight);
    }
  }
  if (weights.some((weight) => weight !== "")) query.set("weights", weights.join(","));
  for (const { field, comparison, value } of state.where) query.append("where", `${field} ${comparison} ${value}`);
  if (state.target !== BLANK.target) query.set("target", state.target);
  if (state.k !== BLANK.k) query.set("k", state.k);
  if (state.rerank) query.set("rerank", state.rerank);
  if (state.side) query.set("side", "1");
  if (state.show) query.set("show", state.show);
  return `?${query}`;
}

/** The state of an address; what it says wrongly is left at its default. */
export function fromAddress(address, uploads = []) {
  const query = new URLSearchParams(address);
  const weights = (query.get("weights") ?? "").split(",");
  const parts = [];
  for (const kind of LISTED) {
    const values = kind === "text" ? query.getAll(kind).slice(0, 1) : query.getAll(kind);
    for (const value of values.filter(Boolean)) {
      const weight = Number.parseFloat(weights[parts.length]);
      parts.push(part(kind, value, weight > 0 ? weight : undefined));
    }
  }
  const k = Number.parseInt(query.get("k"), 10);
  return {
    parts: [...parts, ...uploads],
    target: query.get("target") === "text" ? "text" : BLANK.target,
    k: k > 0 ? k : BLANK.k,
    where: query.getAll("where").map((text) => CONDITION.exec(text)).filter(Boolean)
      .map(([, field, comparison, value]) => ({ field, comparison, value })),
    rerank: query.get("rerank"),
    side: query.get("side") === "1",
    show: query.get("show"),
  };
}

/** The question as the service takes it, and the files that go with it. */
export function toQuery(state, about, further = {}) {
  const files = [];
  const parts = state.parts.map(({ kind, value, weight }) => {
    if (kind === "without") return { text: value, weight: -weight };
    if (kind === "upload") return { upload: files.push(value) - 1, weight };
    return { [kind]: value, weight };
  });
  const where = state.where.map(({ field, comparison, value }) => ({
    field, comparison, value: typed(value, about.fields[field]),
  }));
  const { target, k, rerank } = state;
  return { query: { parts, target, k, where, rerank, explain: about.inputs.length > 1, ...further }, files };
}

// A number that isn't one is sent as it was typed, so that the service says what is wrong with it.
function typed(value, kind) {
  if (kind === "truth") return value === "true";
  if (kind === "number" && value.trim() && Number.isFinite(Number(value))) return Number(value);
  return value;
}
