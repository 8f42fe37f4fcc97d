// What the service offers, and its errors in its own words.

const KEY = "modalloy-key";

/** An error that the service, or the way to it, gave. */
export class ServiceError extends Error {
  constructor(message, status = 0, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** The API key, which the tab forgets when it is closed. */
export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
};

async function call(path, options = {}) {
  const headers = new Headers(options.headers);
  if (key.get()) headers.set("Authorization", `Bearer ${key.get()}`);
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError("The service can't be reached. Is it still running?");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const seconds = Number.parseInt(response.headers.get("Retry-After"), 10);
  throw new ServiceError(
    body?.error?.message ?? `The service answered with status ${response.status}.`,
    response.status,
    Number.isFinite(seconds) ? seconds : null,
  );
}

const json = (value) => ({
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(value),
});
const address = (kind, id) => `/v1/${kind}?id=${encodeURIComponent(id)}`;

export const about = async () => (await call("/v1/index")).json();
export const item = async (id) => (await call(address("item", id))).json();
export const words = async (id, text) => (await call("/v1/words", json({ id, text }))).json();

/** Asks a question; the n-th of `files` is its part {"upload": n}. */
export async function search(query, files, signal) {
  if (!files.length) return (await call("/v1/search", { ...json(query), signal })).json();
  const body = new FormData();
  body.append("query", JSON.stringify(query));
  for (const file of files) body.append("pictures", file, file.name || "picture");
  return (await call("/v1/search", { method: "POST", body, signal })).json();
}

/** The address of a picture's thumbnail, or of the picture itself. */
export const thumbnailAddress = (id) => address("thumbnail", id);
export const pictureAddress = (id) => address("picture", id);

/** What an address gives, for what an <img> can't fetch itself because it sends no key. */
export const bytes = async (path) => (await call(path)).blob();
