// What every view needs: asking the server, words on the page, pictures.

// The token comes behind the # of the address: browsers send that part to nobody.
const token = location.hash.slice(1) || sessionStorage.getItem("segue-token") || "";
if (location.hash) {
  sessionStorage.setItem("segue-token", token);
  history.replaceState(null, "", location.pathname);
}
addEventListener("hashchange", () => location.reload()); // another token in an open tab

export const at = (id) => document.getElementById(id);
export const counted = (number, what) => `${number} ${what}${number === 1 ? "" : "s"}`;
export const percent = (share) => `${(100 * share).toFixed(1)} %`;

// A word as a shell takes it, for an option that is shown.
export const argument = (word) => (/^[A-Za-z0-9_@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`);

export function say(text) {
  at("message").textContent = text;
  at("message").hidden = !text;
}

// An element. Names from the disk come in as text or properties and never as markup.
export function make(tag, properties = {}, ...inside) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("aria-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...inside);
  return element;
}

export async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { Authorization: `Bearer ${token}` } });
  } catch {
    throw new Error("The server does not answer: is segue serve still running?");
  }
  if (!response.ok) {
    const body = await response.json().catch(() => ({ error: response.statusText }));
    throw new Error(response.status === 401 ? "Open the page by the address that segue serve printed: it holds the token." : body.error);
  }
  return response;
}

export const askJson = async (path) => (await ask(path)).json();
export const askBytes = async (path) => new Uint8Array(await (await ask(path)).arrayBuffer());

// Shows a picture of the server in an <img>: those need the token, which an address alone does not carry.
export async function fill(image, path) {
  try {
    const address = URL.createObjectURL(await (await ask(path)).blob());
    image.addEventListener("load", () => URL.revokeObjectURL(address), { once: true });
    image.src = address;
  } catch {
    image.alt = "no picture";
  }
}

// Fills pictures once they come near the screen: a gallery may hold thousands.
const near = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    near.unobserve(target);
    fill(target, target.dataset.path);
  }
}, { rootMargin: "300px" });

export function lazy(path, properties = {}) {
  const image = make("img", { alt: "", ...properties });
  image.dataset.path = path;
  near.observe(image);
  return image;
}
