// What segue suggest chose to be labelled next, and why.
import { argument, ask, askJson, at, lazy, make, percent, say } from "./core.js";

let found = null;

export async function show() {
  if (found) return;
  try {
    found = await askJson("/suggested");
  } catch (error) {
    say(error.message);
    return;
  }
  const { coverage: c, items, labelled } = found;
  const n = (value) => value.toFixed(2);
  at("coverage").textContent = `${items.length} of ${found.found} images to label next${labelled ? `, beside the ${labelled} that are labelled` : ""}. ` +
    `The farthest image is ${n(c.farthest)} from one of them, the mean ${n(c.mean)}; as many drawn at random: ${n(c.random_farthest)} and ${n(c.random_mean)}.`;
  at("to-label").replaceChildren(...items.map(card));
  at("to-label-option").textContent = `--labels ${argument(found.names)}`;
  at("to-label-archive").textContent = found.archive;
  document.body.dataset.suggested = String(items.length);
}

function card(item, place) {
  const [first, ...rest] = item.reason.split("; ");
  const button = make("button", { "aria-label": `look at ${item.name} with the model` }, "Look");
  button.addEventListener("click", async () => {
    try {
      const blob = await (await ask(`/suggested/picture?item=${item.item}&size=large`)).blob();
      document.dispatchEvent(new CustomEvent("look", { detail: blob }));
    } catch (error) {
      say(error.message);
    }
  });
  const doubt = item.uncertainty === null ? [] : [make("br"), `${percent(item.uncertainty)} of all doubt, each class counting alike`];
  return make("li", {}, lazy(`/suggested/picture?item=${item.item}`, { alt: item.name }), make("strong", {}, `${place + 1}. ${item.name}`),
    make("p", {}, first, make("br"), make("span", { className: "note" }, rest.join("; "), ...doubt)), button);
}
