// The attention view: a word is chosen, and the regions of the picture that it looks at light up.

import * as api from "./api.js";
import { make } from "./dom.js";
import { textOf } from "./state.js";

const SHADE = 0.8;
const HARDLY = "a picture can hardly show it";

/** A form that asks where words are found in a picture, and shows it on `overlay`. */
export function setUpWords(page, id, overlay) {
  const text = make("input", {
    type: "text", value: textOf(page.state), "aria-label": "Words to look for in the picture", placeholder: "words to look for",
    autocomplete: "off", maxlength: 2000,
  });
  const found = make("div", { class: "words", role: "group", "aria-label": "Words" });
  const told = make("p", { class: "muted told", role: "status" });
  const button = make("button", { type: "submit" }, "Look");
  const form = make("form", { class: "look" }, text, button);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!text.value.trim()) return text.focus();
    button.disabled = true;
    told.textContent = "";
    try {
      showWords(await api.words(id, text.value.trim()), found, told, overlay);
    } catch (error) {
      found.replaceChildren();
      light(overlay, null);
      told.textContent = error.message;
    }
    button.disabled = false;
  });
  return make("section", { class: "attention" }, make("h3", {}, "Where the words are"), form, found, told);
}

function showWords(answer, found, told, overlay) {
  const seen = answer.words.filter((word) => word.seen);
  const highest = Math.max(...seen.map(({ score }) => score), 1e-9);
  const choose = (chosen) => {
    for (const [place, button] of [...found.children].entries()) button.setAttribute("aria-pressed", place === chosen);
    const word = answer.words[chosen];
    const crop = light(overlay, word ? word.weights : null);
    told.textContent = word ? sentence(word, whereabouts(word.weights, crop), answer.encoder) : "";
  };
  found.replaceChildren(...answer.words.map(({ word, score, seen: visible }, place) => {
    const button = make("button", {
      type: "button", class: visible ? "word" : "word unseen", "aria-pressed": "false",
      title: `score ${score.toFixed(3)}${visible ? "" : `; ${HARDLY}`}`,
      onclick: () => choose(button.getAttribute("aria-pressed") === "true" ? -1 : place),
    }, word);
    button.style.setProperty("--found", Math.max(0, score / highest).toFixed(3));
    return button;
  }));
  // The best of those that a picture can show, if there is one.
  const best = (words) => words.reduce((best, each) => (best && best.score >= each.score ? best : each), undefined);
  choose(answer.words.indexOf(best(seen) ?? best(answer.words)));
}

// The weights always have a highest place, also for what isn't there, so that it mustn't say that a word is found.
function sentence({ word, score, seen }, place, encoder) {
  const looks = `“${word}” the encoder ${encoder} looks ${place} (score ${score.toFixed(2)})`;
  return seen ? `For ${looks}.` : `For ${looks}, but ${HARDLY}.`;
}

/**
 * Darkens the picture where the weights are small; null shows it as it is. The weights stand on a grid over the largest
 * centred crop of the grid's shape, which is all that the encoder saw; what is outside of it is dark.
 *
 * Gives the crop's share of the picture's width and height.
 */
export function light(overlay, weights) {
  overlay.hidden = weights === null;
  if (weights === null) return null;
  const [rows, columns] = [weights.length, weights[0].length];
  const { least, span } = range(weights);
  const shade = new ImageData(columns, rows);
  weights.flat().forEach((weight, cell) => {
    shade.data[4 * cell + 3] = Math.round(255 * SHADE * (1 - (weight - least) / span));
  });
  const small = make("canvas", { width: columns, height: rows });
  small.getContext("2d").putImageData(shade, 0, 0);

  // Finer than the grid, since the borders of its cells would look like the picture's own.
  const { clientWidth: width, clientHeight: height } = overlay;
  const cell = Math.min(width / columns, height / rows);
  const [across, down] = [cell * columns, cell * rows];
  const [left, top] = [(width - across) / 2, (height - down) / 2];
  Object.assign(overlay, { width, height });
  const context = overlay.getContext("2d");
  context.fillStyle = `rgb(0 0 0 / ${SHADE})`;
  context.fillRect(0, 0, width, height);
  context.clearRect(left, top, across, down);
  context.imageSmoothingQuality = "high";
  context.drawImage(small, left, top, across, down);
  return { across: across / width, down: down / height };
}

function range(weights) {
  const all = weights.flat();
  const least = Math.min(...all);
  return { least, span: Math.max(...all) - least || 1 };
}

// For those who can't see the light: at which ninth of the picture its centre is.
function whereabouts(weights, crop) {
  const { least } = range(weights);
  let [sum, below, right] = [0, 0, 0];
  weights.forEach((row, y) => row.forEach((weight, x) => {
    // Squared, so that the centre follows the bright regions and not the background.
    const share = (weight - least) ** 2;
    sum += share;
    below += share * ((y + 0.5) / weights.length - 0.5);
    right += share * ((x + 0.5) / row.length - 0.5);
  }));
  if (!sum) return "everywhere alike";
  const third = (offset, names) => names[Math.min(2, Math.floor(3 * (offset + 0.5)))];
  const place = [
    third((crop.down * below) / sum, ["top", "", "bottom"]), third((crop.across * right) / sum, ["left", "", "right"]),
  ].filter(Boolean).join(" ");
  return place ? `at the ${place}` : "at the middle";
}
