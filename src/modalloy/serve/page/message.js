// What went wrong, in the service's words, and what can be done about it.

import { key } from "./api.js";
import { byId, make } from "./dom.js";

const TRIES = 5;
const BUSY = [429, 503];
const WAIT = 2;

// Asked again as it is, a wrong question stays wrong.
const canHelp = (status) => status < 400 || status >= 500 || BUSY.includes(status);

let timer = null;
let tries = 0;

export function clearMessage() {
  clearInterval(timer);
  byId("message").replaceChildren();
}

/** Forgets how often the service was busy: something has worked. */
export function worked() {
  tries = 0;
  clearMessage();
}

/**
 * Shows an error, with a way to go on where there is one; `retry` is called by the button, or after the time that a busy
 * service asks for.
 */
export function showError(error, retry) {
  clearMessage();
  if (error.status === 401) return askForKey(error, retry);
  const text = make("p", {}, error.message);
  const again = canHelp(error.status) && make("button", { type: "button", onclick: () => { tries = 0; retry(); } }, "Try again");
  byId("message").append(make("div", { class: "message", role: "alert" }, text, again));
  if (BUSY.includes(error.status) && tries < TRIES) wait(error.retryAfter ?? WAIT, retry);
}

function wait(seconds, retry) {
  tries += 1;
  // Not read out each second: it stands beside the alert.
  const left = make("p", { class: "muted countdown", "aria-live": "off" });
  byId("message").append(left);
  let remaining = Math.max(1, seconds);
  const tick = () => {
    left.textContent = `Busy. Trying again in ${remaining} s.`;
    if (remaining <= 0) {
      clearInterval(timer);
      retry();
    }
    remaining -= 1;
  };
  tick();
  timer = setInterval(tick, 1000);
}

function askForKey(error, retry) {
  const field = make("input", { type: "password", id: "key", autocomplete: "off", required: true });
  const form = make("form", { class: "message" }, make("p", { role: "alert" }, error.message),
    make("label", { for: "key" }, "API key"), field, make("button", { type: "submit", class: "primary" }, "Go on"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    key.set(field.value.trim());
    retry();
  });
  byId("message").append(form);
  field.focus();
}
