// The page: its tabs, and what the server has.
import { askJson, at, say } from "./core.js";
import { choose } from "./colors.js";
import * as look from "./look.js";

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
  // A view's script is fetched when its tab is opened for the first time: most visits need one or two.
  if (about) import(`./${name}.js`).then((view) => view.show(about)).catch((error) => say(error.message));
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
    for (const tab of tabs) tab.hidden = !["look", ...about.views].includes(tab.id.slice(4));
    choose(about.classes);
    open("look");
    document.body.dataset.ready = performance.now().toFixed(); // milliseconds since the address was opened
  } catch (error) {
    say(error.message);
  }
})();
