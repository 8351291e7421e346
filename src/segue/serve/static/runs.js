// The runs beneath a folder, and the curves of those that are ticked.
import { askJson, at, make, percent, say } from "./core.js";
import { LINES, chart, sample } from "./chart.js";

const TERMS = { miou: "mIoU", pq: "PQ" };
const ASIDE = ["lr", "gradient_norm", "norm"]; // drawn when asked for
let found = null; // what GET /runs gave
let ticked = []; // numbers of runs, in the order they were ticked; null where a line is free again
let curves = new Map(); // of ticked runs, what GET /runs/curves gave, and whether the run was finished then
let order = { key: "started", up: false };
let timer = 0;

export async function show() {
  clearTimeout(timer);
  try {
    found = await askJson("/runs");
  } catch (error) {
    say(error.message);
    return;
  }
  if (!ticked.length && found.runs.length) ticked = found.runs.filter((run) => !run.fault).slice(0, 2).map((run) => run.run);
  at("runs-root").textContent = `${found.runs.length} runs beneath ${found.root}${found.is_cut ? `; there are more, and ${found.most} are shown` : ""}`;
  table();
  await draw();
  const grows = found.runs.some((run) => ticked.includes(run.run) && !run.is_finished);
  timer = setTimeout(() => { if (!at("runs").hidden && grows) show(); }, 10000);
}

const worth = (run) => ({ name: run.name, started: run.started, score: run.score ? run.score[1] : -1 })[order.key];

function table() {
  const rows = [...found.runs].sort((a, b) => (worth(a) < worth(b) ? -1 : Number(worth(a) > worth(b))) * (order.up ? 1 : -1));
  for (const button of document.querySelectorAll("#run-table thead button")) {
    const holds = button.dataset.key === order.key;
    button.closest("th").setAttribute("aria-sort", holds ? (order.up ? "ascending" : "descending") : "none");
  }
  at("run-table").tBodies[0].replaceChildren(...rows.map((run) => {
    const box = make("input", { type: "checkbox", checked: ticked.includes(run.run), "aria-label": `draw ${run.name}`, disabled: Boolean(run.fault) });
    box.addEventListener("change", () => tick(run.run, box));
    const line = make("span", { className: "which" });
    line.dataset.run = run.run;
    const state = run.fault || (run.is_finished ? "finished" : `at ${run.at || "the start"}`);
    return make("tr", {},
      make("td", {}, make("label", {}, box, line, make("span", {}, run.name))),
      make("td", { className: "n" }, run.score ? `${percent(run.score[1])} ${TERMS[run.score[0]]}` : "–"),
      make("td", {}, run.method),
      make("td", {}, run.started.slice(0, 16).replace("T", " ")),
      make("td", { className: run.fault ? "fault" : "" }, state));
  }));
  samples();
}

// The line of each ticked run, beside its name.
function samples() {
  for (const line of document.querySelectorAll("#run-table .which")) {
    const place = ticked.indexOf(Number(line.dataset.run));
    line.replaceChildren(...(place < 0 ? [] : [sample(place), String(place + 1)]));
  }
}

// The first free line is taken, so that the others keep theirs.
function tick(run, box) {
  if (!box.checked) {
    ticked = ticked.map((one) => (one === run ? null : one));
    curves.delete(run);
  } else {
    const free = ticked.indexOf(null);
    if (free < 0 && ticked.length >= LINES) {
      box.checked = false;
      say(`${LINES} runs are drawn; untick one first, so that each line can be told from the others`);
      return;
    }
    ticked[free < 0 ? ticked.length : free] = run;
  }
  say("");
  samples();
  draw();
}

async function draw() {
  const wanted = ticked.filter((run) => run !== null);
  await Promise.all(wanted.map(async (run) => {
    const { is_finished: isFinished, name } = found.runs.find((one) => one.run === run);
    if (curves.get(run)?.isFinished) return;
    try {
      curves.set(run, { ...(await askJson(`/runs/curves?run=${run}`)), isFinished });
    } catch (error) {
      say(`${name}: ${error.message}`);
    }
  }));
  const drawn = wanted.filter((run) => curves.has(run) && ticked.includes(run));
  const names = [...new Set(drawn.flatMap((run) => Object.keys(curves.get(run).curves)))];
  const usual = names.filter((name) => !ASIDE.includes(name) && name.split("/").length < 3);
  const select = at("curve");
  const held = select.value;
  select.replaceChildren(make("option", { value: "" }, "losses and validation"), ...names.map((name) => make("option", { value: name }, name)));
  select.value = names.includes(held) ? held : "";
  at("charts").replaceChildren(...(select.value ? [select.value] : usual).map((name) => panel(name, drawn)));
  at("run-notes").replaceChildren(...drawn.map((run) => {
    const row = found.runs.find((one) => one.run === run);
    const scores = Object.entries(row.scores).map(([name, value]) => `${name} ${percent(value)}`).join(", ");
    return make("li", { value: ticked.indexOf(run) + 1 }, make("strong", {}, row.name), scores ? ` · ${scores}` : "", make("br"), make("code", {}, row.command),
      ...(row.report ? [make("br"), "report: ", make("code", {}, row.report)] : []));
  }));
  document.body.dataset.drawn = drawn.join(",");
}

function panel(name, drawn) {
  const lines = drawn.filter((run) => curves.get(run).curves[name]).map((run) => {
    const place = ticked.indexOf(run);
    return { place, label: place + 1, stages: curves.get(run).curves[name] };
  });
  const marks = drawn.length === 1 ? Object.values(curves.get(drawn[0]).stages) : [];
  return chart(name.replaceAll("_", " "), lines, marks);
}

for (const button of document.querySelectorAll("#run-table thead button")) {
  button.addEventListener("click", () => {
    order = { key: button.dataset.key, up: order.key === button.dataset.key ? !order.up : button.dataset.key === "name" };
    table();
  });
}
at("curve").addEventListener("change", draw);
at("again").addEventListener("click", show);
