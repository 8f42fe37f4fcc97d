// Results as a justified grid: the pictures of a row are equally high. The style sheet does it by their ratios alone.

import { thumbnailAddress } from "./api.js";
import { counted, make, rounded } from "./dom.js";
import { alternative, picture } from "./picture.js";
import { toAddress } from "./state.js";

// A panorama or a strip is cut to these, so that it leaves room for others in its row.
const NARROWEST = 0.5;
const WIDEST = 2.6;
const SKELETONS = [1.5, 0.75, 1.33, 1, 1.6, 0.7, 1.4, 1, 1.25, 1.8, 0.8, 1.3];

/** Whether the second stage has looked at a hit. */
export const isReranked = (hit) => hit.rerank_score !== null && hit.rerank_score !== undefined;

// The score that the order follows; the standard score is in spreads of the gallery's scores.
const told = (hit) => isReranked(hit) ? hit.rerank_score.toFixed(3) : `${hit.standard_score.toFixed(1)} σ`;

/** The score that put a hit where it is, with all of its scores in a tooltip. */
export function score(hit) {
  const first = `${hit.standard_score.toFixed(2)} standard deviations above the average picture; inner product ${rounded(hit.score)}`;
  const title = isReranked(hit) ? `re-ranked ${rounded(hit.rerank_score)}; at first ${first}` : first;
  return make("span", { class: "score", title }, told(hit));
}

/** A link that opens a hit, with its picture and its score. */
export function tile(page, hit, kind = "tile") {
  const name = alternative(hit);
  const link = make(
    "a",
    {
      class: kind, href: toAddress({ ...page.state, show: hit.id }), "data-id": hit.id, "data-picture": hit.picture_id,
      "aria-label": `${name}, score ${told(hit)}`,
      onclick: (event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
        event.preventDefault();
        page.open(hit.id);
      },
    },
    make("span", { class: "frame" }, picture(thumbnailAddress(hit.picture_id), name)),
    make("span", { class: "below" }, make("span", { class: "caption" }, hit.captions[0] ?? hit.picture_id), score(hit)),
  );
  const ratio = (hit.width || 1) / (hit.height || 1);
  link.style.setProperty("--ratio", Math.min(WIDEST, Math.max(NARROWEST, ratio)).toFixed(3));
  return link;
}

/** Shows an answer; pictures that were there stay, so that nothing flickers. */
export function showGrid(page, place, hits) {
  const kind = page.state.target === "text" ? "line" : "tile";
  const old = place.querySelector(`ol.${kind}s:not(.skeletons)`);
  const list = old ?? make("ol", { class: `${kind}s`, role: "list" });
  const known = new Map([...list.children].map((entry) => [entry.firstChild.dataset.id, entry]));
  const entries = hits.map((hit) => {
    const fresh = tile(page, hit, kind);
    const entry = known.get(hit.id) ?? make("li", {}, fresh);
    if (entry.firstChild !== fresh) refresh(entry.firstChild, fresh);
    return entry;
  });
  const same = [...list.children].every((entry, position) => entry === entries[position]);
  if (same) list.append(...entries.slice(list.children.length));
  else list.replaceChildren(...entries);
  if (place.firstChild !== list || place.childElementCount > 1) place.replaceChildren(list);
  for (const entry of entries) entry.style.setProperty("--ratio", entry.firstChild.style.getPropertyValue("--ratio"));
  rove(list);
}

function refresh(link, fresh) {
  link.href = fresh.href;
  link.ariaLabel = fresh.ariaLabel;
  link.querySelector(".score").replaceWith(fresh.querySelector(".score"));
}

/** Grey places where pictures will be. */
export function showSkeletons(place) {
  const entries = SKELETONS.map((ratio) => {
    const entry = make("li", {}, make("span", { class: "tile" }, make("span", { class: "frame" }), make("span", { class: "below" })));
    entry.style.setProperty("--ratio", ratio);
    return entry;
  });
  place.replaceChildren(make("ol", { class: "tiles skeletons", "aria-hidden": "true" }, ...entries));
}

/** One stop of the Tab key for all pictures; the arrows move within them. */
function rove(list) {
  const links = [...list.querySelectorAll("a")];
  const current = links.find((link) => link === document.activeElement) ?? links[0];
  for (const link of links) link.tabIndex = link === current ? 0 : -1;
}

/** Makes the arrow keys, Home and End move among the pictures of `place`, and "m" ask for more like one. */
export function setUpKeys(page, place) {
  place.addEventListener("focusin", ({ target }) => {
    const list = target.closest("ol");
    if (!list || !target.matches("a")) return;
    for (const link of list.querySelectorAll("a")) link.tabIndex = link === target ? 0 : -1;
  });
  place.addEventListener("keydown", (event) => {
    const link = event.target.closest("a[data-id]");
    if (!link || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "m") {
      event.preventDefault();
      return page.alike(link.dataset.picture);
    }
    const next = neighbour(link, event.key);
    if (!next) return;
    event.preventDefault();
    next.focus();
    next.scrollIntoView({ block: "nearest" });
  });
}

function neighbour(link, key) {
  const links = [...link.closest("ol").querySelectorAll("a")];
  const at = links.indexOf(link);
  const steps = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: links.length - 1 };
  if (key in steps) return links[steps[key]];
  if (key !== "ArrowDown" && key !== "ArrowUp") return null;
  const box = (each) => each.getBoundingClientRect();
  const middle = (each) => box(each).left + box(each).width / 2;
  const beyond = links.filter((each) => (key === "ArrowDown" ? box(each).top > box(link).top + 4 : box(each).top < box(link).top - 4));
  if (!beyond.length) return null;
  const row = key === "ArrowDown" ? Math.min(...beyond.map((each) => box(each).top)) : Math.max(...beyond.map((each) => box(each).top));
  const inRow = beyond.filter((each) => Math.abs(box(each).top - row) < 4);
  const distance = (each) => Math.abs(middle(each) - middle(link));
  return inRow.reduce((best, each) => (distance(each) < distance(best) ? each : best));
}

/** "24 best of 12,480 pictures". */
export function summary(answer, target) {
  const noun = target === "text" ? "caption" : "picture";
  const took = Object.values(answer.milliseconds).reduce((sum, each) => sum + each, 0);
  const found = answer.hits.length < answer.searched ? `The best ${answer.hits.length} of ` : "";
  const time = took < 1000 ? `${took < 10 ? took.toFixed(1) : Math.round(took)} ms` : `${(took / 1000).toFixed(1)} s`;
  return `${found}${counted(answer.searched, noun)} · ${time}`;
}

