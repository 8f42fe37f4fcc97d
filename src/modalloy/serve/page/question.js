// The question: the search box, its further parts as chips with weights, and how to search.

import { byId, choice, icon, make } from "./dom.js";
import { describeCondition, setUpFilter } from "./filter.js";
import { draw, picture } from "./picture.js";
import { thumbnailAddress } from "./api.js";
import { part, textOf } from "./state.js";

const LONGEST_WEIGHT = 2;
const CHIP_SIDE = 96;

/** Wires the search box, the ways to give a picture, and the drawers. */
export function setUpQuestion(page) {
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    page.ask({}, { again: true });
    // A keyboard on the screen would cover the results.
    if (matchMedia("(hover: none)").matches) byId("text").blur();
  });
  byId("choose").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", (event) => {
    addFiles(page, event.target.files);
    event.target.value = "";
  });
  document.addEventListener("paste", (event) => {
    if (!event.clipboardData?.files.length) return;
    event.preventDefault();
    addFiles(page, event.clipboardData.files);
  });
  setUpDrop(page);
  byId("without").addEventListener("submit", (event) => {
    event.preventDefault();
    const unwanted = byId("unwanted");
    if (!unwanted.value.trim()) return unwanted.focus();
    page.ask({ parts: [...page.state.parts, part("without", unwanted.value.trim())] });
    unwanted.value = "";
  });
}

/** Makes the buttons below the search box, by what the index can do. */
export function setUpTools(page) {
  const { about } = page;
  const tools = [
    choice("What to find", "target", [["image", "Pictures"], ["text", "Captions"]], page.state.target, (target) =>
      page.ask({ target })),
    drawerButton("without", "Without", "without"),
    drawerButton("filter", "Filter", "filter"),
    about.inputs.length > 1 &&
      toggle("side", "Side by side", () => page.ask({ side: !page.state.side }),
        "What each input encoder would find alone, beside what the alloy finds", "columns"),
    ...about.rerankers.map((name) =>
      toggle(`rerank-${name}`, about.rerankers.length > 1 ? `Re-rank: ${name}` : "Re-rank", () =>
        page.ask({ rerank: page.state.rerank === name ? null : name }),
      "Compare the best results once more, in more detail, which takes longer", "order")),
  ];
  byId("tools").replaceChildren(...tools.filter(Boolean));
  setUpFilter(page);
}

/** Shows the state's question. */
export function showQuestion(page) {
  const { state, about } = page;
  if (byId("text").value.trim() !== textOf(state)) byId("text").value = textOf(state);
  for (const button of byId("tools").querySelectorAll("input[name=target]")) button.checked = button.value === state.target;
  byId("side")?.setAttribute("aria-pressed", state.side);
  for (const name of about.rerankers) byId(`rerank-${name}`).setAttribute("aria-pressed", state.rerank === name);
  showChips(page);
}

function showChips(page) {
  const { state } = page;
  const list = byId("parts");
  const focused = list.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
  const chips = state.parts
    .filter(({ kind }) => kind !== "text" || state.parts.length > 1)
    .map((each) => partChip(page, each));
  const filters = state.where.map((condition) =>
    chip("filter", describeCondition(condition), [icon("filter"), make("span", {}, describeCondition(condition))], () =>
      page.ask({ where: state.where.filter((other) => other !== condition) })));
  list.replaceChildren(...chips, ...filters);
  if (focused) ([...list.querySelectorAll("[aria-label]")].find((each) => each.ariaLabel === focused) ?? byId("text")).focus();
}

/** What a part of the question is called. */
export function partName({ kind, value }) {
  return { text: value, without: `without ${value}`, like: `like ${value}`, upload: value.name || "picture" }[kind];
}

function partChip(page, each) {
  const { kind, value } = each;
  const name = partName(each);
  const label = make("span", { class: "name" }, kind === "like" ? "alike" : name);
  const face = { text: () => null, without: () => icon("without"), like: () => likeFace(value), upload: () => uploadFace(value) }[kind]();
  const others = page.state.parts.filter((other) => other !== each);
  const body = [face, label, page.state.parts.length > 1 && weightSlider(page, each, name)];
  return chip(kind, name, body, kind === "text" ? null : () => page.ask({ parts: others }));
}

function chip(kind, name, body, remove) {
  const cross = remove && make("button", { type: "button", class: "cross", "aria-label": `Remove ${name}`, onclick: remove }, icon("close"));
  return make("li", { class: `chip ${kind}`, title: name }, ...body, cross);
}

function weightSlider(page, each, name) {
  const shown = make("output", {}, each.weight.toFixed(1));
  const slider = make("input", {
    type: "range", min: 0.1, max: LONGEST_WEIGHT, step: 0.1, value: each.weight, "aria-label": `Weight of ${name}`,
    title: "Weight",
    oninput: () => { shown.textContent = Number(slider.value).toFixed(1); },
    onchange: () => page.ask({
      parts: page.state.parts.map((other) => (other === each ? { ...each, weight: Number(slider.value) } : other)),
    }, { replace: true }),
  });
  return make("span", { class: "weight" }, slider, shown);
}

const likeFace = (id) => picture(thumbnailAddress(id), "");

function uploadFace(file) {
  const canvas = make("canvas", { "aria-hidden": "true" });
  // The service says it if the file isn't a picture.
  draw(canvas, file, CHIP_SIDE).catch(() => canvas.remove());
  return canvas;
}

function addFiles(page, files) {
  const added = [...files].map((file) => part("upload", file));
  if (added.length) page.ask({ parts: [...page.state.parts, ...added] });
}

function setUpDrop(page) {
  const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
  let depth = 0;
  const show = (change) => {
    depth = Math.max(0, depth + change);
    document.body.classList.toggle("dropping", depth > 0);
  };
  document.addEventListener("dragenter", (event) => holdsFiles(event) && show(1));
  document.addEventListener("dragleave", (event) => holdsFiles(event) && show(-1));
  document.addEventListener("dragover", (event) => holdsFiles(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    show(-Infinity);
    addFiles(page, event.dataTransfer.files);
  });
}

function toggle(id, label, onclick, title, face) {
  return make("button", { type: "button", id, class: "tool", "aria-pressed": "false", title, onclick }, face && icon(face), label);
}

function drawerButton(id, label, face) {
  const button = make("button", {
    type: "button", class: "tool", "aria-expanded": "false", "aria-controls": id,
    onclick: () => {
      const drawer = byId(id);
      drawer.hidden = !drawer.hidden;
      button.setAttribute("aria-expanded", !drawer.hidden);
      if (!drawer.hidden) drawer.querySelector("input, select").focus();
    },
  }, icon(face), label);
  return button;
}
