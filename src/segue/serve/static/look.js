// Looking at one picture: what one model says of it, or two side by side, and how sure they are.
import { ask, at, counted, make, percent, say } from "./core.js";
import { RAMP, chip, colored, paintOf } from "./colors.js";
import { numbers } from "./maps.js";

const NONE = 65535; // the place of pixels that no segment has; those of two models' classes are fewer
let about = null; // what GET /about gave
let shown = null; // {image, answers, classes}: classes of both models by name
let only = new Set(); // places in shown.classes that are shown; all if empty

export function show(found) {
  about = found;
  at("slider-label").hidden = !about.against;
}

const decoded = (base64) => numbers(Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0)));

// What a model says of the picture; `classes` grows by the names that it has and no model before.
async function answerOf(model, file, classes) {
  const answer = await (await ask(`/predict?model=${model}`, { method: "POST", body: file })).json();
  const places = answer.classes.map((entry) => {
    const place = classes.findIndex(({ name }) => name === entry.name);
    return place < 0 ? classes.push(entry) - 1 : place;
  });
  const map = await decoded(answer.labels_png);
  const colors = [];
  answer.classes.forEach((entry, id) => { colors[places[id]] = entry.color; });
  const shares = [];
  answer.classes.forEach((entry, id) => { shares[places[id]] = entry.share; });
  map.values = Uint16Array.from(map.values, (id) => places[id] ?? NONE); // two models may have more than 255 names
  const segments = answer.segments ? await decoded(answer.panoptic_png) : null; // ids by their lowest byte
  const objects = [];
  for (const id of answer.things ?? []) objects[places[id]] = answer.segments.filter((segment) => segment.category_id === id).length;
  return { map, colors, shares, segments, objects, count: answer.segments?.length, uncertain: await decoded(answer.uncertainty_png), uncertainty: answer.uncertainty };
}

export async function look(file) {
  say("");
  at("summary").textContent = "working …";
  at("result").hidden = false;
  try {
    const classes = [], answers = [];
    for (const model of about && about.against ? ["model", "against"] : ["model"]) answers.push(await answerOf(model, file, classes));
    const image = await createImageBitmap(file).catch(() => null); // a TIFF: the browser shows the classes alone
    shown = { image, answers, classes };
    only = new Set();
    paint();
    at("summary").textContent = summary();
  } catch (error) {
    at("result").hidden = shown === null;
    at("summary").textContent = "";
    say(error.message);
  }
}

function summary() {
  const [first, second] = shown.answers;
  const { width, height, values } = first.map;
  const bare = values.reduce((count, place) => count + (place === NONE), 0);
  const segments = first.segments ? ` · ${counted(first.count, "segment")}, none on ${percent(bare / values.length)}` : "";
  if (!second) return `${width} × ${height} pixels${segments} · mean uncertainty ${percent(first.uncertainty)}`;
  const different = values.reduce((count, place, i) => count + (place !== second.map.values[i]), 0);
  return `${width} × ${height} pixels · mean uncertainty ${percent(first.uncertainty)} and ${percent(second.uncertainty)} · the models differ on ${percent(different / values.length)}`;
}

// Layers anew: after a picture, a change of colours, or another choice of classes.
function paint() {
  if (!shown) return;
  for (const answer of shown.answers) {
    const map = at("show-uncertainty").checked ? answer.uncertain : answer.map;
    const paints = map === answer.map ? shown.classes.map((entry, place) => paintOf(place, answer.colors[place] || entry.color)) : RAMP;
    const pixels = colored(map, paints, map === answer.map ? only : undefined);
    if (answer.segments && map === answer.map) outline(pixels, answer.segments);
    answer.layer = new OffscreenCanvas(map.width, map.height);
    answer.layer.getContext("2d").putImageData(pixels, 0, 0);
  }
  at("scale").hidden = !at("show-uncertainty").checked;
  legend();
  draw();
}

// A white line along the inner border of each segment that is shown.
function outline(pixels, { width, height, values }) {
  const wide = Math.max(1, Math.round(Math.max(width, height) / 640)); // to be seen in a large picture too
  for (let i = 0; i < values.length; i += 1) {
    const x = i % width, y = (i - x) / width;
    const isBorder = (x + wide < width && values[i + wide] !== values[i]) || (y + wide < height && values[i + wide * width] !== values[i]);
    if (isBorder && pixels.data[4 * i + 3]) pixels.data.fill(255, 4 * i, 4 * i + 3);
  }
}

function draw() {
  if (!shown) return;
  const [first, second] = shown.answers;
  const { width, height } = first.map;
  const canvas = at("canvas");
  canvas.width = width;
  canvas.height = height;
  at("frame").style.width = `min(100%, calc(70vh * ${width / height}))`;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  if (shown.image) context.drawImage(shown.image, 0, 0, width, height);
  context.globalAlpha = shown.image ? at("opacity").value / 100 : 1;
  const border = second ? Math.round((width * at("slider").value) / 100) : width;
  const part = (answer, from, to) => {
    if (to > from) context.drawImage(answer.layer, from, 0, to - from, height, from, 0, to - from, height);
  };
  part(first, 0, border);
  if (second) part(second, border, width);
  for (const [id, name] of [["before", about.model], ["after", about.against]]) {
    at(id).hidden = !second;
    at(id).textContent = `${id}: ${name}`;
  }
  at("divider").hidden = !second;
  at("divider").style.left = `${at("slider").value}%`;
}

function legend() {
  const { answers, classes } = shown;
  document.querySelector("#legend .against").hidden = answers.length < 2;
  const share = (answer, place) => answer.shares[place] ?? -1; // a class that the model does not know
  const order = [...classes.keys()].sort((a, b) => share(answers[0], b) - share(answers[0], a));
  at("legend").tBodies[0].replaceChildren(...order.map((place) => {
    const { name, color } = classes[place];
    const button = make("button", { className: "class", "aria-pressed": String(only.has(place)) }, chip(paintOf(place, color)), name);
    button.addEventListener("click", () => {
      if (!only.delete(place)) only.add(place);
      paint();
      [...document.querySelectorAll("#legend button")].find((one) => one.textContent === name).focus();
    });
    const cells = answers.flatMap((answer) => {
      const bar = make("span", { className: "bar" });
      bar.style.width = `${100 * Math.max(share(answer, place), 0)}%`;
      return [make("td", { className: "n" }, share(answer, place) < 0 ? "–" : percent(share(answer, place))), make("td", { className: "bars" }, bar)];
    });
    const objects = answers.map((answer) => answer.objects[place]);
    const many = objects.some(Boolean) ? ` × ${objects.map((number) => number ?? "–").join(", ")}` : "";
    return make("tr", {}, make("td", {}, button, many), ...cells);
  }));
}

// ---- the pointer ----------------------------------------------------------------------------------------------------

const frame = at("frame");
frame.addEventListener("pointermove", (event) => {
  if (!shown) return;
  const box = at("canvas").getBoundingClientRect();
  const { width, height } = shown.answers[0].map;
  const x = Math.floor(((event.clientX - box.left) / box.width) * width), y = Math.floor(((event.clientY - box.top) / box.height) * height);
  if (x < 0 || y < 0 || x >= width || y >= height) return;
  const pixel = y * width + x;
  const said = shown.answers.map(({ map, segments, uncertain }) => {
    const name = shown.classes[map.values[pixel]]?.name ?? "no segment";
    return `${name}${segments?.values[pixel] ? ` (segment ${segments.values[pixel]})` : ""}, uncertainty ${percent(uncertain.values[pixel] / 255)}`;
  });
  at("here").textContent = `${x}, ${y}: ${said.join(" · after: ")}`;
  if (event.buttons && shown.answers.length > 1) slide(((event.clientX - box.left) / box.width) * 100);
});
frame.addEventListener("pointerdown", (event) => {
  if (!shown || shown.answers.length < 2) return;
  frame.setPointerCapture(event.pointerId);
  const box = at("canvas").getBoundingClientRect();
  slide(((event.clientX - box.left) / box.width) * 100);
});

function slide(place) {
  at("slider").value = Math.min(Math.max(place, 0), 100);
  draw();
}

at("opacity").addEventListener("input", () => {
  at("opacity-value").textContent = `${at("opacity").value} %`;
  draw();
});
at("slider").addEventListener("input", draw);
at("show-uncertainty").addEventListener("change", paint);
document.addEventListener("colors", paint);
at("file").addEventListener("change", () => at("file").files.length && look(at("file").files[0]));
