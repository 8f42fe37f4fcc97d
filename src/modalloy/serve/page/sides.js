// What each input encoder would find alone, beside what the alloy finds.

import * as api from "./api.js";
import { byId, make } from "./dom.js";
import { tile } from "./grid.js";
import { toQuery } from "./state.js";

const SHOWN = 8;

/** Shows a column for the alloy's answer and one for each input, which come when they come. */
export function showSides(page, place, answer, signal) {
  const hits = answer.hits.slice(0, SHOWN);
  const ranks = new Map(answer.hits.map((hit, position) => [hit.id, position + 1]));
  const columns = page.about.inputs.map((name) => {
    const body = make("ol", { role: "list", "aria-busy": "true" });
    fill(page, body, name, ranks, signal);
    return column(name, body);
  });
  const own = make("ol", { role: "list" }, ...hits.map((hit, position) => entry(page, hit, position + 1)));
  place.replaceChildren(make("div", { class: "sides" }, column("The alloy", own), ...columns));
}

function column(name, list) {
  setUpOutline(list);
  return make("section", { class: "side", "aria-label": name }, make("h2", {}, name), list);
}

function entry(page, hit, rank, ofAlloy = null) {
  const link = tile(page, hit, "beside");
  const place = ofAlloy && make("span", { class: ofAlloy.rank ? "place" : "place none" }, `alloy: ${ofAlloy.rank ?? `below ${ofAlloy.of}`}`);
  link.prepend(make("span", { class: "rank", "aria-hidden": "true" }, String(rank)));
  link.querySelector(".below").append(...(place ? [place] : []));
  return make("li", {}, link);
}

async function fill(page, list, name, ranks, signal) {
  try {
    const { query, files } = toQuery(page.state, page.about, { by: name, k: SHOWN, explain: false, rerank: null });
    const { hits } = await api.search(query, files, signal);
    list.replaceChildren(...hits.map((hit, position) => entry(page, hit, position + 1, { rank: ranks.get(hit.id), of: ranks.size })));
  } catch (error) {
    if (error.name === "AbortError") return;
    list.replaceChildren(make("li", { class: "muted" }, error.message));
  }
  list.removeAttribute("aria-busy");
}

/** Outlines a picture in all columns while it is pointed at or has the focus in one. */
function setUpOutline(list) {
  const outline = (id) => {
    for (const link of byId("results").querySelectorAll("a.beside")) link.classList.toggle("same", link.dataset.id === id);
  };
  for (const name of ["pointerover", "focusin"]) list.addEventListener(name, ({ target }) => outline(target.closest("a")?.dataset.id));
  for (const name of ["pointerleave", "focusout"]) list.addEventListener(name, () => outline(null));
}
