// The page: its tabs, and what the server has.
import * as check from "./check.js";
import { askJson, at, say } from "./core.js";
import { choose } from "./colors.js";
import * as look from "./look.js";
import * as review from "./review.js";
import * as runs from "./runs.js";
import * as suggested from "./suggested.js";

const views = { look, review, suggested, check, runs };
const tabs = [...document.querySelectorAll("[role=tab]")];
let about = null;

function open(name) {
  for (const tab of tabs) {
    const chosen = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    at(tab.getAttribute("aria-controls")).hidden = !chosen;
  }
  say("");
  if (about) views[name].show(about);
}

tabs.forEach((tab) => tab.addEventListener("click", () => open(tab.id.slice(4))));
document.querySelector("[role=tablist]").addEventListener("keydown", (event) => {
  const shown = tabs.filter((tab) => !tab.hidden);
  const here = shown.indexOf(event.target);
  const to = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: shown.length - 1 }[event.key];
  if (here < 0 || to === undefined) return;
  event.preventDefault();
  const next = shown[(to + shown.length) % shown.length];
  open(next.id.slice(4));
  next.focus();
});

document.addEventListener("look", ({ detail }) => { // a view shows a picture to the model
  open("look");
  tabs[0].focus();
  look.look(detail);
});

for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) {
      open("look");
      look.look(event.dataTransfer.files[0]);
    }
  });
}

(async () => {
  try {
    about = await askJson("/about");
    at("model").textContent = about.model + (about.against ? ` against ${about.against}` : "");
    for (const name of Object.keys(views)) at(`tab-${name}`).hidden = !["look", ...about.views].includes(name);
    choose(about.classes);
    open("look");
    document.body.dataset.ready = "yes";
  } catch (error) {
    say(error.message);
  }
})();
