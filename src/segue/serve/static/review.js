// The review of pseudo-labels: a gallery, the least certain first; keys; thresholds with what they keep.
import { argument, ask, askBytes, askJson, at, lazy, make, percent, say } from "./core.js";
import { chip, colored, paintOf } from "./colors.js";
import { numbers } from "./maps.js";

const SIGNS = { accept: "✓ accepted", reject: "✗ rejected", redraw: "✎ redraw" };
let about = null; // what GET /about gave
let review = null; // what GET /review gave
let chosen = 0; // index into review.items
let layers = null; // {image, labels, probability} of the chosen picture
let thresholds = [];
let entries = []; // {button, note} of the gallery
let decided = Promise.resolve(); // decisions go to the ledger one after the other

export async function show(found) {
  if (about) return;
  about = found;
  const asked = askJson("/review"); // the server predicts all pictures before it answers
  let waits = true;
  asked.catch(() => {}).finally(() => { waits = false; });
  while (waits) {
    const { measured, of } = await askJson("/review/progress").catch(() => ({}));
    if (waits && of) at("progress").textContent = `predicting the pictures: ${measured} of ${of} …`;
    await Promise.race([asked.catch(() => {}), new Promise((resolve) => setTimeout(resolve, 500))]);
  }
  try {
    review = await asked;
  } catch (error) {
    about = null; // opening the tab again tries again
    say(error.message);
    return;
  }
  thresholds = review.classes.map((name) => (name === "background" ? 0.97 : 0.8)); // as segue train has them
  gallery();
  thresholdTable();
  choose(Math.max(review.items.findIndex((item) => !item.decision), 0));
}

// ---- gallery --------------------------------------------------------------------------------------------------------

function gallery() {
  entries = review.items.map((item, i) => {
    const note = make("small");
    const picture = item.fault ? make("span", { className: "gone" }, "?") : lazy(`/review/thumbnail?item=${item.item}`);
    const button = make("button", {}, picture, make("span", {}, item.name, note));
    button.addEventListener("click", () => choose(i));
    return { button, note };
  });
  at("gallery").replaceChildren(...entries.map(({ button }) => make("li", {}, button)));
  review.items.forEach((_, i) => mark(i));
}

// What an entry of the gallery says after a decision or a choice.
function mark(i) {
  const item = review.items[i];
  const decision = item.decision ? ` · ${SIGNS[item.decision]}` : "";
  entries[i].note.textContent = (item.fault ? "cannot be read" : `uncertainty ${percent(item.uncertainty)}`) + decision;
  entries[i].button.setAttribute("aria-pressed", String(i === chosen));
  entries[i].button.dataset.decision = item.decision || "";
}

function progress() {
  const count = (kind) => review.items.filter((item) => item.decision === kind).length;
  const [accepted, rejected, redrawn] = ["accept", "reject", "redraw"].map(count);
  at("progress").textContent = `${accepted + rejected + redrawn} of ${review.items.length} decided: ${accepted} accepted, ${rejected} rejected, ${redrawn} to redraw`;
}

// Which of the buttons holds for the chosen picture.
function pressed() {
  const { decision } = review.items[chosen];
  for (const one of document.querySelectorAll(".decide")) one.setAttribute("aria-pressed", String(one.dataset.decision === decision));
}

// ---- one picture ----------------------------------------------------------------------------------------------------

const loaded = new Map(); // promises of the layers of the last few pictures

function layersOf(item) {
  if (!loaded.has(item.item)) {
    const bytes = (kind) => askBytes(`/review/picture?item=${item.item}&kind=${kind}`);
    loaded.set(item.item, (async () => {
      const image = await createImageBitmap(new Blob([await bytes("image")])); // first: the server then has all three
      const [labels, probability] = await Promise.all(["labels", "probability"].map(async (kind) => numbers(await bytes(kind))));
      return { image, labels, probability };
    })());
    if (loaded.size > 4) loaded.delete(loaded.keys().next().value);
  }
  return loaded.get(item.item);
}

async function choose(i) {
  if (!review.items.length) return;
  const before = chosen;
  chosen = Math.min(Math.max(i, 0), review.items.length - 1);
  const item = review.items[chosen];
  mark(before);
  mark(chosen);
  progress();
  const { button } = entries[chosen];
  button.scrollIntoView({ block: "nearest", inline: "nearest" });
  at("current-name").textContent = item.name + (item.fault ? `: ${item.fault}` : "");
  pressed();
  layers = null;
  const canvas = at("review-canvas");
  canvas.hidden = Boolean(item.fault);
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height); // or the picture before would seem to be this one
  delete document.body.dataset.painted;
  if (item.fault) return;
  try {
    const found = await layersOf(item);
    if (item !== review.items[chosen]) return; // somebody moved on meanwhile
    layers = found;
    paint();
    const next = review.items[chosen + 1];
    if (next && !next.fault) layersOf(next).catch(() => loaded.delete(next.item));
  } catch (error) {
    loaded.delete(item.item);
    say(error.message);
  }
}

function paint() {
  if (!layers) return;
  const { image, labels, probability } = layers;
  const canvas = at("review-canvas");
  canvas.width = labels.width;
  canvas.height = labels.height;
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  const mixed = context.getImageData(0, 0, canvas.width, canvas.height);
  const over = colored(labels, about.classes.map((entry, place) => paintOf(place, entry.color)));
  for (let i = 0; i < labels.values.length; i += 1) {
    const id = labels.values[i];
    const kept = probability.values[i] >= 255 * thresholds[id];
    for (let c = 0; c < 3; c += 1) {
      const j = 4 * i + c;
      mixed.data[j] = kept ? 0.45 * mixed.data[j] + 0.55 * over.data[j] : 0.35 * mixed.data[j]; // dark: not kept
    }
  }
  context.putImageData(mixed, 0, 0);
  document.body.dataset.painted = review.items[chosen].name;
}

// ---- thresholds -----------------------------------------------------------------------------------------------------

let shares = []; // of each class, writes its share again

function thresholdTable() {
  const body = at("thresholds").tBodies[0];
  body.replaceChildren();
  shares = review.classes.map((name, i) => {
    const range = make("input", { type: "range", min: 0, max: 100, value: 100 * thresholds[i], "aria-label": `threshold of ${name}` });
    const value = make("output");
    const kept = make("td", { className: "n" });
    range.addEventListener("input", () => {
      thresholds[i] = range.value / 100;
      write();
      option();
      paint();
    });
    const write = () => {
      value.textContent = ` ${thresholds[i].toFixed(2)}`;
      kept.textContent = share(i);
    };
    write();
    body.append(make("tr", {}, make("td", {}, chip(paintOf(i, about.classes[i].color)), name), make("td", {}, range, value), kept));
    return write;
  });
  option();
}

document.addEventListener("colors", () => {
  if (!review) return;
  thresholdTable();
  paint();
});

const option = () => {
  const given = review.classes.map((name, i) => `${name}:${thresholds[i].toFixed(2)}`).join(",");
  // What the page counts is what the network says: training would divide it by the shares of the classes.
  at("option").textContent = `--adjust false --thresholds ${argument(given)}`;
};

// Of the pixels taken for a class, the share at or above its threshold; in pictures that training would take.
function share(i) {
  let kept = 0, all = 0;
  for (const item of review.items) {
    if (item.decision === "reject" || item.decision === "redraw") continue;
    const counts = item.histogram[i] || [];
    counts.forEach((count, bin) => { all += count; if (bin >= Math.round(100 * thresholds[i])) kept += count; });
  }
  return all ? percent(kept / all) : "–";
}

// ---- decisions ------------------------------------------------------------------------------------------------------

const past = []; // {place, before} of each decision, for undo

// Keys may come faster than the disk: each is about the picture that is shown when it is pressed.
function decide(decision, place = chosen) {
  const item = review.items[place];
  if (!item) return;
  decided = decided.then(async () => {
    try {
      await ask("/review/decision", { method: "POST", body: JSON.stringify({ item: item.item, decision }) });
    } catch (error) {
      say(`${item.name} is not decided: ${error.message}`);
      return;
    }
    item.decision = decision === "undecided" ? null : decision;
    mark(place);
    pressed();
    progress();
    shares.forEach((write) => write());
  });
}

function judge(decision) {
  const item = review.items[chosen];
  if (!item || (!layers && !item.fault)) return; // nobody has seen it yet
  past.push({ place: chosen, before: item.decision || "undecided" });
  decide(decision);
  choose(chosen + 1);
}

function undo() {
  const { place, before } = past.pop() || { place: chosen, before: "undecided" };
  decide(before, place);
  choose(place);
}

const act = (decision) => (decision === "undecided" ? undo() : judge(decision));
for (const button of document.querySelectorAll(".decide")) button.addEventListener("click", () => review && act(button.dataset.decision));
document.addEventListener("keydown", (event) => {
  if (at("review").hidden || !review || event.ctrlKey || event.metaKey || event.altKey) return;
  const decision = { a: "accept", r: "reject", d: "redraw", u: "undecided" }[event.key.toLowerCase()];
  const ownsArrows = event.target.tagName === "INPUT" || event.target.role === "tab";
  const decides = decision || (event.key === "Enter" && event.target.matches(".decide"));
  if (event.repeat && decides) {
    event.preventDefault(); // a key that is held decides once
    return;
  }
  if (decision) act(decision);
  else if (event.key === "ArrowRight" && !ownsArrows) choose(chosen + 1);
  else if (event.key === "ArrowLeft" && !ownsArrows) choose(chosen - 1);
  else return;
  event.preventDefault();
});
