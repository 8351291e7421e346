// Looking at one picture: what one model says of it, or two side by side.
import { ask, at, percent, say } from "./core.js";

const picture = (source) => new Promise((resolve, reject) => {
  const image = new Image();
  image.onload = () => resolve(image);
  image.onerror = () => reject(new Error("the browser cannot show this picture"));
  image.src = source;
});

export function show(found) {
  about = found;
  at("slider-label").hidden = !about.against;
}

let about = null; // what GET /about gave
let shown = null; // {image, answers: [{labels, uncertainty, classes}]}

export async function look(file) {
  say("");
  at("summary").textContent = "working …";
  at("result").hidden = false;
  try {
    const models = about && about.against ? ["model", "against"] : ["model"];
    const answers = [];
    for (const model of models) {
      const answer = await (await ask(`/predict?model=${model}`, { method: "POST", body: file })).json();
      answer.labels = await picture(`data:image/png;base64,${answer.labels_png}`);
      answer.uncertain = await picture(`data:image/png;base64,${answer.uncertainty_png}`);
      answers.push(answer);
    }
    const address = URL.createObjectURL(file);
    const image = await picture(address).catch(() => null); // a TIFF: the browser shows the classes alone
    shown = { image, answers };
    draw();
    legend();
    at("summary").textContent = `${answers[0].width} × ${answers[0].height} pixels · mean uncertainty ${percent(answers[0].uncertainty)}`;
  } catch (error) {
    at("result").hidden = shown === null;
    at("summary").textContent = "";
    say(error.message);
  }
}

function draw() {
  if (!shown) return;
  const [first, second] = shown.answers;
  const canvas = at("canvas");
  canvas.width = first.width;
  canvas.height = first.height;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  const layer = at("show-uncertainty").checked ? "uncertain" : "labels";
  if (shown.image) context.drawImage(shown.image, 0, 0, first.width, first.height);
  context.globalAlpha = shown.image ? at("opacity").value / 100 : 1;
  const border = second ? Math.round((first.width * at("slider").value) / 100) : first.width;
  const part = (answer, from, to) => {
    if (to > from) context.drawImage(answer[layer], from, 0, to - from, first.height, from, 0, to - from, first.height);
  };
  part(first, 0, border);
  if (second) part(second, border, first.width);
  context.globalAlpha = 1;
  if (second) {
    context.fillStyle = "#ffffff";
    context.fillRect(border - 1, 0, 3, first.height);
    context.fillStyle = "#000000";
    context.fillRect(border, 0, 1, first.height);
  }
}

function legend() {
  const [first, second] = shown.answers;
  const body = at("legend").tBodies[0];
  body.replaceChildren();
  document.querySelector("#legend .against").hidden = !second;
  const order = [...first.classes.keys()].sort((a, b) => first.classes[b].share - first.classes[a].share);
  for (const i of order) {
    const row = body.insertRow();
    const name = row.insertCell();
    const chip = document.createElement("span");
    chip.className = "chip";
    chip.style.background = `rgb(${first.classes[i].color.join(",")})`;
    name.append(chip, first.classes[i].name);
    for (const answer of shown.answers) {
      const cell = row.insertCell();
      cell.className = "n";
      cell.textContent = answer.classes[i] ? percent(answer.classes[i].share) : "–";
    }
  }
}

at("opacity").addEventListener("input", () => {
  at("opacity-value").textContent = `${at("opacity").value} %`;
  draw();
});
at("slider").addEventListener("input", draw);
at("show-uncertainty").addEventListener("change", draw);
at("file").addEventListener("change", () => at("file").files.length && look(at("file").files[0]));
at("drop").addEventListener("keydown", (event) => {
  if (event.key === "Enter" || event.key === " ") at("file").click();
});
