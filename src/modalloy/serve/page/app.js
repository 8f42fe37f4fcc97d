// The page: the address holds the state, a change of the state changes the address, and both are shown alike.

import * as api from "./api.js";
import { byId, counted, icon, make } from "./dom.js";
import { setUpKeys, showGrid, showSkeletons, summary } from "./grid.js";
import { scoreItem, setUpItem, showItem } from "./item.js";
import { clearMessage, showError, worked } from "./message.js";
import { partName, setUpQuestion, setUpTools, showQuestion } from "./question.js";
import { showSides } from "./sides.js";
import { BLANK, MOST, PAGE, fromAddress, isAsked, part, textOf, toAddress, toQuery, withText } from "./state.js";

// Shorter waits show nothing, since what comes and goes at once only disturbs.
const PATIENCE = 150;

// Pictures that the user gave, by number: the history remembers the numbers, the tab the pictures.
const given = [];

const page = { state: BLANK, about: null, answer: null, ask, alike, open, close };
let asked = null;
let running = null;
let focusAt = null;
let early = false;

/** Changes the question; what stands in the search box is part of it. */
function ask(change, { replace = false, again = false } = {}) {
  if (!page.about) {
    early = true;
    return;
  }
  const parts = withText(change.parts ?? page.state.parts, byId("text").value);
  if (again) asked = null;
  go({ ...page.state, k: PAGE, show: null, ...change, parts }, { replace });
}

function alike(id) {
  focusAt = 0;
  go({ ...page.state, parts: [part("like", id)], target: "image", k: PAGE, show: null });
}

function open(id, { replace = false } = {}) {
  go({ ...page.state, show: id }, { replace, opened: !replace || history.state?.opened });
}

function close() {
  // Back, if there is the page without the picture to go back to.
  if (history.state?.opened) history.back();
  else go({ ...page.state, show: null }, { replace: true });
}

function go(state, { replace = false, opened = false } = {}) {
  const uploads = uploadsOf(state);
  const address = toAddress(state);
  const same = address === toAddress(page.state) && JSON.stringify(uploads) === JSON.stringify(history.state?.uploads ?? []);
  page.state = state;
  history[replace || same ? "replaceState" : "pushState"]({ uploads, opened }, "", address);
  show();
}

/** The number and the weight of each picture that the user gave. */
function uploadsOf(state) {
  return state.parts.filter(({ kind }) => kind === "upload").map(({ value, weight }) => {
    if (!given.includes(value)) given.push(value);
    return [given.indexOf(value), weight];
  });
}

function readAddress() {
  const uploads = (history.state?.uploads ?? []).filter(([number]) => given[number]);
  const parts = uploads.map(([number, weight]) => part("upload", given[number], weight));
  page.state = fromAddress(location.search, parts);
}

function show() {
  const { state } = page;
  document.title = textOf(state) ? `${textOf(state)} · modalloy` : "modalloy";
  document.body.classList.toggle("landing", !isAsked(state));
  showQuestion(page);
  const question = JSON.stringify([toAddress({ ...state, show: null }), uploadsOf(state)]);
  if (question !== asked) {
    asked = question;
    search();
  }
  showItem(page);
}

async function search({ again = false } = {}) {
  running?.abort();
  const { signal } = (running = new AbortController());
  // A message stays until what it announced, another try, has an outcome.
  if (!again) clearMessage();
  const results = byId("results");
  if (!isAsked(page.state)) {
    page.answer = null;
    byId("status").textContent = "";
    results.replaceChildren(landing());
    return;
  }
  const waiting = setTimeout(() => showWaiting(results), PATIENCE);
  try {
    const { query, files } = toQuery(page.state, page.about);
    const answer = await api.search(query, files, signal);
    if (signal.aborted) return;
    page.answer = { ...answer, parts: page.state.parts.map(partName) };
    worked();
    showAnswer(results, signal);
  } catch (error) {
    if (signal.aborted) return;
    if (!(error instanceof api.ServiceError)) throw error;
    page.answer = null;
    byId("status").textContent = "";
    results.replaceChildren();
    showError(error, () => search({ again: true }));
  } finally {
    clearTimeout(waiting);
    if (!signal.aborted) results.removeAttribute("aria-busy");
  }
}

function showWaiting(results) {
  results.setAttribute("aria-busy", "true");
  if (!page.answer) showSkeletons(results);
}

function showAnswer(results, signal) {
  const { answer, state } = page;
  byId("status").textContent = summary(answer, state.target);
  if (!answer.hits.length) results.replaceChildren(nothing());
  else if (state.side) showSides(page, results, answer, signal);
  else {
    showGrid(page, results, answer.hits);
    if (answer.hits.length === state.k && state.k < Math.min(answer.searched, MOST)) results.append(moreButton());
  }
  scoreItem(page);
  if (focusAt !== null) results.querySelectorAll("a[data-id]")[focusAt]?.focus();
  focusAt = null;
}

function moreButton() {
  return make("button", { type: "button", class: "more", onclick: () => {
    focusAt = page.answer.hits.length;
    ask({ k: Math.min(MOST, page.state.k + PAGE) }, { replace: true });
  } }, "More");
}

function nothing() {
  const { where } = page.state;
  return make(
    "div",
    { class: "empty" },
    make("p", {}, where.length ? "Nothing in the index satisfies these filters." : "The index has nothing to find."),
    where.length > 0 && make("button", { type: "button", onclick: () => ask({ where: [] }) }, "Remove the filters"),
  );
}

function landing() {
  const hint = (face, title, text) => make("li", {}, icon(face), make("strong", {}, title), make("span", {}, text));
  const keyName = (name, does) => make("span", {}, make("kbd", {}, name), ` ${does}`);
  if (!page.about.pictures) {
    return make("div", { class: "empty" }, make("p", {}, "The index is empty. “modalloy index add FOLDER” puts pictures into it."));
  }
  return make(
    "div",
    { class: "welcome" },
    make("ul", { role: "list" },
      hint("search", "Say it", "What is to be seen, in your words: “two dogs in the snow”."),
      hint("picture", "Show it", "Drop a picture anywhere, paste one, or choose one."),
      hint("without", "Combine it", "Picture and words, each with a weight; what it shouldn’t show; filters.")),
    make("p", { class: "keys muted" }, keyName("/", "search"), keyName("← ↑ ↓ →", "move"), keyName("Enter", "open"), keyName("m", "more like this"), keyName("Esc", "close")),
  );
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=radio], [type=range]), select, textarea");
  if (event.key === "/" && !typing && !byId("item").open && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    byId("text").focus();
    byId("text").select();
  }
  if (event.key === "ArrowDown" && event.target === byId("text")) {
    event.preventDefault();
    byId("results").querySelector("a[data-id]")?.focus();
  }
});

async function start() {
  clearMessage();
  try {
    page.about = await api.about();
  } catch (error) {
    return showError(error, start);
  }
  worked();
  const { pictures, captions, encoder } = page.about;
  byId("about").textContent = `${counted(pictures, "picture")}${captions ? `, ${counted(captions, "caption")}` : ""}`;
  byId("about").title = encoder;
  byId("text").placeholder = pictures ? `Search ${counted(pictures, "picture")}` : "Search";
  setUpTools(page);
  window.addEventListener("popstate", () => { readAddress(); show(); });
  readAddress();
  // What was typed before the index had answered stays, and is asked if Enter was pressed.
  const typed = byId("text").value;
  show();
  if (typed) byId("text").value = typed;
  if (early) ask({});
}

setUpQuestion(page);
setUpItem(page);
setUpKeys(page, byId("results"));
start();
