// Elements are made from names, attributes and text, never from HTML: captions may hold markup.

const SVG = "http://www.w3.org/2000/svg";

/** Makes an element; an attribute "onNAME" listens to the event NAME, and null children are left out. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** One of the icons of index.html. */
export function icon(name) {
  const picture = document.createElementNS(SVG, "svg");
  picture.setAttribute("class", "icon");
  picture.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  picture.append(use);
  return picture;
}

/** A choice of one of several values, as a row of radio buttons. */
export function choice(legend, name, options, chosen, onchange) {
  const buttons = options.map(([value, label]) =>
    make(
      "label",
      {},
      make("input", { type: "radio", name, value: String(value), checked: value === chosen, onchange: () => onchange(value) }),
      make("span", {}, label),
    ),
  );
  return make("fieldset", { class: "choice" }, make("legend", { class: "hidden" }, legend), ...buttons);
}

export const byId = (id) => document.getElementById(id);

/** 12480 as "12,480". */
export const count = (number) => Number(number).toLocaleString("en");

/** "1 picture", "2 pictures". */
export const counted = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

/** A number with at most three digits after the point. */
export const rounded = (number) => Number(number).toLocaleString("en", { maximumFractionDigits: 3, useGrouping: false });
