// One picture, opened: large, with all that is known of it, why it was found, and where its words are.

import * as api from "./api.js";
import { setUpWords } from "./attention.js";
import { byId, icon, make, rounded } from "./dom.js";
import { isReranked } from "./grid.js";
import { alternative, picture } from "./picture.js";

const MINUTE = 60_000;

let shown = null;
let scored = false;

/** Wires the dialog's keys and its closing. */
export function setUpItem(page) {
  const dialog = byId("item");
  dialog.addEventListener("close", () => page.state.show && page.close());
  // Outside of the dialog's own box there is only its backdrop.
  dialog.addEventListener("click", ({ target }) => target === dialog && dialog.close());
  dialog.addEventListener("keydown", (event) => {
    if (event.target.matches("input") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "ArrowLeft") step(page, -1);
    if (event.key === "ArrowRight") step(page, 1);
    if (event.key === "m") page.alike(pictureOf(shown));
  });
}

/** Opens, changes or closes the dialog, as the state says. */
export function showItem(page) {
  const dialog = byId("item");
  const id = page.state.show;
  if (!id) {
    const last = shown;
    shown = null;
    if (dialog.open) dialog.close();
    if (last) [...document.querySelectorAll("#results a[data-id]")].find((link) => link.dataset.id === last)?.focus();
    return;
  }
  if (id !== shown) {
    shown = id;
    fill(page, dialog, id);
  }
  if (!dialog.open) dialog.showModal();
  byId("item-name")?.focus();
}

/** Shows the opened picture's scores, if it was opened before there was an answer. */
export function scoreItem(page) {
  if (shown && !scored && hitOf(page, shown)) fill(page, byId("item"), shown);
}

const hitOf = (page, id) => page.answer?.hits.find((hit) => hit.id === id);

// A caption's id is its picture's with a number behind "#".
const pictureOf = (id) => id.split("#")[0];

async function fill(page, dialog, id) {
  const hit = hitOf(page, id);
  scored = Boolean(hit);
  // What the answer says is shown at once, the rest when it comes.
  dialog.replaceChildren(content(page, id, hit ?? { id, captions: [], metadata: {} }, hit));
  let known;
  try {
    known = await api.item(id);
  } catch (error) {
    if (shown === id) dialog.querySelector(".more-facts").replaceChildren(make("p", { class: "message", role: "alert" }, error.message));
    return;
  }
  if (shown !== id) return;
  if (!hit) {
    dialog.replaceChildren(content(page, id, known, null));
    byId("item-name").focus();
  }
  setSize(dialog.querySelector(".stage .frame"), known);
  dialog.querySelector(".captions").replaceChildren(...captionList(known, byId("item-name").textContent));
  dialog.querySelector(".more-facts").replaceChildren(...facts(known));
}

function content(page, id, known, hit) {
  const name = alternative({ ...known, picture_id: pictureOf(id) });
  const overlay = make("canvas", { class: "overlay", "aria-hidden": "true", hidden: true });
  const frame = make("div", { class: "frame" }, picture(api.pictureAddress(pictureOf(id)), name), overlay);
  setSize(frame, known);
  return make(
    "article",
    { class: "opened" },
    make("div", { class: "stage" }, frame),
    make(
      "div",
      { class: "known" },
      make("button", { type: "button", class: "quiet close", "aria-label": "Close", title: "Close (Esc)", onclick: () => byId("item").close() }, icon("close")),
      make("h2", { id: "item-name", tabindex: "-1" }, name),
      make("div", { class: "captions" }, ...captionList(known, name)),
      actions(page, id),
      page.about.words && setUpWords(page, pictureOf(id), overlay),
      hit && scores(hit),
      hit?.contributions && bars("Which encoder found it", byEncoder(hit.contributions)),
      hit?.part_contributions?.length > 1 && bars("By which part of the question", byPart(page, hit.part_contributions)),
      make("div", { class: "more-facts" }, ...facts(known)),
    ),
  );
}

function setSize(frame, { width, height }) {
  frame.style.setProperty("--ratio", (width || 4) / (height || 3));
  frame.style.setProperty("--width", width || 1000);
}

function actions(page, id) {
  const place = page.answer?.hits.findIndex((hit) => hit.id === id) ?? -1;
  const last = (page.answer?.hits.length ?? 0) - 1;
  const arrow = (name, label, by, disabled) =>
    make("button", { type: "button", class: "quiet", "aria-label": label, title: label, disabled, onclick: () => step(page, by) }, icon(name));
  return make(
    "p",
    { class: "actions" },
    make("button", { type: "button", class: "primary", "aria-keyshortcuts": "m", onclick: () => page.alike(pictureOf(id)) }, icon("alike"), "More like this"),
    original(id),
    place >= 0 && arrow("back", "Previous result", -1, place === 0),
    place >= 0 && arrow("next", "Next result", 1, place === last),
  );
}

/** A link to the picture itself; where it wants a key, which a link doesn't send, it is fetched first. */
function original(id) {
  const address = api.pictureAddress(pictureOf(id));
  const link = make("a", { class: "button", href: address, target: "_blank", rel: "noopener" }, "Original");
  if (!api.key.get()) return link;
  link.addEventListener("click", async (event) => {
    event.preventDefault();
    // Opened at once, since a browser opens nothing that long after a click.
    const tab = window.open("", "_blank");
    try {
      const url = URL.createObjectURL(await api.bytes(address));
      tab.location = url;
      setTimeout(() => URL.revokeObjectURL(url), MINUTE);
    } catch (error) {
      tab.close();
      byId("item").querySelector(".more-facts").prepend(make("p", { class: "message", role: "alert" }, error.message));
    }
  });
  return link;
}

function step(page, by) {
  const ids = page.answer?.hits.map((hit) => hit.id) ?? [];
  const next = ids[ids.indexOf(shown) + by];
  if (ids.includes(shown) && next !== undefined) page.open(next, { replace: true });
}

function captionList({ captions = [] }, name) {
  const others = captions.filter((caption) => caption !== name);
  return others.length ? [make("ul", {}, ...others.map((caption) => make("li", {}, caption)))] : [];
}

function scores(hit) {
  const rows = [["Standard score", `${hit.standard_score.toFixed(2)} σ`], ["Inner product", rounded(hit.score)]];
  if (isReranked(hit)) rows.push(["Re-ranked", rounded(hit.rerank_score)]);
  return section("Score", table(rows));
}

function facts({ id, width, height, metadata = {}, ...further }) {
  const said = ["source", "split", "name", "bytes"].filter((name) => further[name]).map((name) => [name, String(further[name])]);
  const size = width && height ? [["size", `${width} × ${height}`]] : [];
  const own = Object.entries(metadata).filter(([, value]) => value !== null).map(([name, value]) => [name, String(value)]);
  return [section("Details", table([...own, ...size, ...said, ["id", id]]))];
}

const section = (title, ...children) => make("section", {}, make("h3", {}, title), ...children);

const table = (rows) => make("dl", {}, ...rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));

// What the alloy's encoders give together goes by a name that isn't an encoder's.
const byEncoder = (values) => Object.entries(values).map(([name, value]) => [name === "fused" ? "all of them, fused" : name, value]);

const byPart = (page, values) => page.answer.parts.map((name, place) => [name, values[place]]);

// As many digits in all, since they stand below each other; and no "-0.00".
const hundredths = (value) =>
  value.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2, signDisplay: "negative", useGrouping: false });

/** A bar for what each adds to the score, to the left of the zero where it takes away. */
function bars(title, entries) {
  const low = Math.min(0, ...entries.map(([, value]) => value));
  const high = Math.max(0, ...entries.map(([, value]) => value));
  const at = (value) => `${(100 * (value - low)) / (high - low || 1)}%`;
  const rows = entries.map(([name, value]) => {
    const bar = make("span", { class: value < 0 ? "bar takes" : "bar" });
    bar.style.setProperty("--from", at(Math.min(0, value)));
    bar.style.setProperty("--to", at(Math.max(0, value)));
    return make("li", {}, make("span", { class: "name" }, name), make("span", { class: "track" }, bar), make("span", { class: "number" }, hundredths(value)));
  });
  return section(title, make("ul", { class: "bars", role: "list" }, ...rows));
}
