// Pictures of the index, and pictures that the user gave.

import * as api from "./api.js";
import { make } from "./dom.js";

const MISSING = "missing";

/** A picture by its address: an <img>, or a canvas where the service wants a key with each request. */
export function picture(address, alt) {
  if (!api.key.get()) {
    const shown = make("img", { src: address, alt, loading: "lazy", decoding: "async" });
    shown.addEventListener("error", () => shown.classList.add(MISSING));
    return shown;
  }
  const shown = make("canvas", { role: "img", "aria-label": alt });
  whenSeen(shown, async () => {
    try {
      await draw(shown, await api.bytes(address));
    } catch {
      shown.classList.add(MISSING);
    }
  });
  return shown;
}

/** Draws a file's picture into a canvas, at most `side` pixels long, which keeps no more of it than is seen. */
export async function draw(canvas, blob, side = Infinity) {
  const bitmap = await createImageBitmap(blob);
  const scale = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas;
}

function whenSeen(element, act) {
  const observer = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    act();
  }, { rootMargin: "400px" });
  observer.observe(element);
}

/** What a picture is called where it can't be seen. */
export const alternative = (hit) => hit.captions?.[0] ?? `Picture ${hit.picture_id ?? hit.id}`;
