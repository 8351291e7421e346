// What segue check found in the data set.
import { askJson, at, counted, make, percent, say } from "./core.js";

let found = null;

export async function show() {
  while (!found) {
    let state;
    try {
      state = await askJson("/check");
    } catch (error) {
      say(error.message);
      return;
    }
    if (state.error) {
      at("check-state").textContent = state.error;
      return;
    }
    found = state.found;
    if (!found) {
      at("check-state").textContent = `looking at the pairs: ${state.done} of ${state.of || "…"}`;
      await new Promise((resolve) => setTimeout(resolve, 300));
      if (at("check").hidden) return; // opening the tab again goes on
    }
  }
  draw();
}

function draw() {
  at("check-state").textContent = "";
  at("check-found").hidden = false;
  at("check-name").textContent = found.address;
  const splits = Object.entries(found.splits).map(([name, count]) => `${name} ${count}`).join(", ");
  const { used, found: all, dropped } = found.account;
  const notes = found.findings.length - found.stops;
  at("check-account").textContent = `Layout ${found.layout}; ${splits}. Using ${used} of ${all} files found, ${dropped} left out; ${found.read} masks read. ` +
    (found.findings.length ? `${counted(found.stops, "kind")} of fault that stop${found.stops === 1 ? "s" : ""} training, ${counted(notes, "note")}.` : "Nothing was found wrong.");
  const shown = new Set();
  at("findings").replaceChildren(...found.findings.map((finding) => {
    const pictures = shown.has(finding.code) ? [] : found.faulty.filter(({ code }) => code === finding.code);
    shown.add(finding.code);
    return article(finding, pictures);
  }));
  at("check-classes").tBodies[0].replaceChildren(...found.classes.map(row));
  const modes = found.modes.map(([mode, count]) => `${mode} (${count})`).join(", ");
  at("check-sizes").textContent = `Sizes: ${found.sizes.map(([size, count]) => `${size} (${count})`).join(", ")}. Kinds of pixels: ${modes}. Masks in the colours of the classes; black is ignored, magenta is no class.`;
  at("sheet").replaceChildren(...found.sheet.map(pair));
  document.body.dataset.checked = String(found.findings.length);
}

function article(finding, pictures) {
  const rest = finding.count - finding.where.length;
  const places = make("details", { open: finding.count <= 3 }, make("summary", {}, counted(finding.count, "place")),
    make("ul", {}, ...finding.where.map((place) => make("li", {}, place)), ...(rest > 0 ? [make("li", {}, `and ${rest} more; segue check --json lists all`)] : [])));
  return make("article", { className: finding.stop ? "stop" : "" },
    make("h3", {}, make("span", { className: "tag" }, `${finding.stop ? "STOP" : "note"} ${finding.code}`), ` ${finding.what}`),
    make("p", {}, finding.why), make("p", { className: "fix" }, finding.fix), places,
    ...(pictures.length ? [make("div", { className: "cards" }, ...pictures.map(pair))] : []));
}

function row({ name, color, images, pixels, share }) {
  const chip = make("span", { className: "chip" });
  chip.style.background = color;
  const bar = make("span", { className: "bar" });
  bar.style.width = `${100 * share}%`;
  return make("tr", {}, make("td", {}, chip, name), make("td", { className: "n" }, String(images)), make("td", { className: "n" }, pixels.toLocaleString("en")),
    make("td", { className: "n" }, percent(share)), make("td", { className: "bars" }, bar));
}

function pair({ name, image, mask }) {
  const pictures = [[image, name], [mask, `mask of ${name}`]].filter(([address]) => address).map(([src, alt]) => make("img", { src, alt }));
  return make("figure", {}, make("div", { className: "pair" }, ...pictures), make("figcaption", {}, image ? name : `${name}: cannot be read`));
}
