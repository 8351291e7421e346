"use strict";
const SIGNS = { accept: "✓ accepted", reject: "✗ rejected", redraw: "✎ redraw" };
let review = null; // what GET /review gave
let chosen = 0; // index into review.items
let layers = null; // {image, labels, probability} of the chosen picture
let thresholds = [];

async function startReview() {
  if (review) return;
  at("progress").textContent = "predicting the pictures …";
  try {
    review = await (await ask("/review")).json();
  } catch (error) {
    say(error.message);
    return;
  }
  thresholds = review.classes.map((name) => (name === "background" ? 0.97 : 0.8));
  thresholdTable();
  const open_ = review.items.findIndex((item) => !item.decision);
  gallery();
  choose(Math.max(open_, 0));
}

function gallery() {
  at("gallery").replaceChildren(...review.items.map((item, i) => {
    const entry = document.createElement("li");
    const button = document.createElement("button");
    const note = document.createElement("small");
    note.textContent = item.fault ? "cannot be read" : `uncertainty ${percent(item.uncertainty)}${item.decision ? ` · ${SIGNS[item.decision]}` : ""}`;
    button.append(item.name, note);
    button.setAttribute("aria-pressed", String(i === chosen));
    button.addEventListener("click", () => choose(i));
    entry.append(button);
    return entry;
  }));
  const decided = review.items.filter((item) => item.decision);
  const count = (kind) => decided.filter((item) => item.decision === kind).length;
  at("progress").textContent = `${decided.length} of ${review.items.length} decided: ${count("accept")} accepted, ${count("reject")} rejected, ${count("redraw")} to redraw`;
}

async function choose(i) {
  if (!review.items.length) return;
  chosen = Math.min(Math.max(i, 0), review.items.length - 1);
  const item = review.items[chosen];
  gallery();
  at("gallery").children[chosen].scrollIntoView({ block: "nearest", inline: "nearest" });
  at("current-name").textContent = item.name + (item.fault ? `: ${item.fault}` : "");
  for (const button of document.querySelectorAll(".decide")) button.setAttribute("aria-pressed", String(button.dataset.decision === item.decision));
  layers = null;
  try {
    const load = async (kind) => picture(URL.createObjectURL(await (await ask(`/review/picture?item=${item.item}&kind=${kind}`)).blob()));
    const [image, labels, probability] = item.fault ? [] : await Promise.all(["image", "labels", "probability"].map(load));
    if (item !== review.items[chosen]) return; // somebody moved on meanwhile
    layers = image ? { image, labels: pixels(labels), probability: pixels(probability) } : null;
    paint();
  } catch (error) {
    say(error.message);
  }
}

function pixels(image) {
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
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
  const limits = new Map(about.classes.map((entry, i) => [entry.color.join(), 255 * thresholds[i]]));
  for (let i = 0; i < mixed.data.length; i += 4) {
    const limit = limits.get(`${labels.data[i]},${labels.data[i + 1]},${labels.data[i + 2]}`) ?? 0;
    const kept = probability.data[i] >= limit;
    for (let c = 0; c < 3; c += 1) mixed.data[i + c] = kept ? 0.45 * mixed.data[i + c] + 0.55 * labels.data[i + c] : 0.35 * mixed.data[i + c];
  }
  context.putImageData(mixed, 0, 0); // what is not kept is dark
  document.body.dataset.painted = review.items[chosen].name;
}

function thresholdTable() {
  const body = at("thresholds").tBodies[0];
  body.replaceChildren();
  review.classes.forEach((name, i) => {
    const row = body.insertRow();
    const chip = document.createElement("span");
    chip.className = "chip";
    chip.style.background = `rgb(${about.classes[i].color.join(",")})`;
    row.insertCell().append(chip, name);
    const range = document.createElement("input");
    Object.assign(range, { type: "range", min: 0, max: 100, value: 100 * thresholds[i] });
    range.setAttribute("aria-label", `threshold of ${name}`);
    const value = document.createElement("output");
    row.insertCell().append(range, value);
    const kept = row.insertCell();
    kept.className = "n";
    const show = () => {
      thresholds[i] = range.value / 100;
      value.textContent = ` ${thresholds[i].toFixed(2)}`;
      kept.textContent = share(i);
      at("option").textContent = `--thresholds ${review.classes.map((c, j) => `${c}:${thresholds[j].toFixed(2)}`).join(",")}`;
    };
    range.addEventListener("input", () => { show(); paint(); });
    show();
  });
}

function share(i) {
  let kept = 0, all = 0;
  for (const item of review.items) {
    const counts = item.histogram[i] || [];
    counts.forEach((count, bin) => { all += count; if (bin >= Math.round(100 * thresholds[i])) kept += count; });
  }
  return all ? percent(kept / all) : "–";
}

async function decide(decision) {
  const item = review && review.items[chosen];
  if (!item) return;
  try {
    await ask("/review/decision", { method: "POST", body: JSON.stringify({ item: item.item, decision }) });
  } catch (error) {
    say(error.message);
    return;
  }
  item.decision = decision === "undecided" ? null : decision;
  choose(decision === "undecided" ? chosen : chosen + 1);
}

for (const button of document.querySelectorAll(".decide")) button.addEventListener("click", () => decide(button.dataset.decision));
document.addEventListener("keydown", (event) => {
  if (at("review").hidden || !review || event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "INPUT") return;
  const decision = { a: "accept", r: "reject", d: "redraw", u: "undecided" }[event.key.toLowerCase()];
  if (decision) decide(decision);
  else if (event.key === "ArrowRight") choose(chosen + 1);
  else if (event.key === "ArrowLeft") choose(chosen - 1);
  else return;
  event.preventDefault();
});
