// Curves as SVG. Each is told apart by its colour, its dashes and the number at its end.

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [460, 256, 54, 22, 10, 36];
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "12 4", "4 2 1 2"];
export const LINES = DASHES.length;

function element(name, attributes, ...inside) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...inside);
  return made;
}

const short = (value) => (value !== 0 && (Math.abs(value) < 0.001 || Math.abs(value) >= 1e5) ? value.toExponential(1) : String(Number(value.toPrecision(4))));

// Round numbers from low to high.
export function ticks(low, high, about = 4) {
  const rough = (high - low) / about || Math.abs(high) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

const stroke = (place) => ({ class: `line line${place % LINES}`, "stroke-dasharray": DASHES[place % LINES] });

// A piece of a curve, for the list of runs.
export function sample(place) {
  return element("svg", { viewBox: "0 0 34 10", class: "sample", "aria-hidden": "true" }, element("path", { d: "M1 5H33", ...stroke(place) }));
}

// `curves`: [{place, label, stages: [[[step, value], ...], ...]}]; `marks`: steps at which a stage begins.
export function chart(title, curves, marks = []) {
  const points = curves.flatMap(({ stages }) => stages.flat());
  const steps = points.map(([step]) => step), values = points.map(([, value]) => value);
  const [left, right] = [Math.min(0, ...limits(steps)), Math.max(...limits(steps), 1)];
  let [low, high] = limits(values);
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  const x = (step) => LEFT + ((step - left) / (right - left)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const ends = curves.map(({ label, stages }) => `${label}: ${short(stages.at(-1).at(-1)[1])}`).join("; ");
  const drawn = element("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title} over steps, at the end ${ends}` });
  for (const tick of ticks(low, high)) {
    drawn.append(element("path", { d: `M${LEFT} ${y(tick)}H${WIDTH - RIGHT}`, class: "grid" }), element("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, short(tick)));
  }
  for (const tick of ticks(left, right, 5)) drawn.append(element("text", { x: x(tick), y: HEIGHT - 19, "text-anchor": "middle" }, short(tick)));
  for (const mark of marks) if (mark > 0) drawn.append(element("path", { d: `M${x(mark)} ${TOP}V${HEIGHT - BOTTOM}`, class: "mark" }));
  for (const { place, label, stages } of curves) {
    for (const stage of stages) {
      const path = stage.map(([step, value]) => `${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("L");
      drawn.append(element("path", { d: `M${path}`, ...stroke(place) }));
      const few = stage.length < 12 ? stage : [];
      for (const [step, value] of few) drawn.append(element("circle", { cx: x(step), cy: y(value), r: 2.5, class: `dot dot${place % LINES}` }));
    }
  }
  let above = -Infinity; // numbers at the ends are moved apart
  for (const { label, stages } of [...curves].sort((a, b) => b.stages.at(-1).at(-1)[1] - a.stages.at(-1).at(-1)[1])) {
    const [step, value] = stages.at(-1).at(-1);
    above = Math.max(y(value) + 4, above + 11);
    drawn.append(element("text", { x: x(step) + 5, y: above, class: "end" }, String(label)));
  }
  drawn.append(element("text", { x: WIDTH - RIGHT, y: HEIGHT - 4, "text-anchor": "end" }, "step"));
  const box = document.createElement("figure");
  const said = document.createElement("figcaption");
  said.textContent = title;
  drawn.addEventListener("pointermove", (event) => {
    const area = drawn.getBoundingClientRect();
    const wanted = left + (((event.clientX - area.left) / area.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT) * (right - left);
    const near = curves.map(({ label, stages }) => {
      const [step, value] = stages.flat().reduce((best, point) => (Math.abs(point[0] - wanted) < Math.abs(best[0] - wanted) ? point : best));
      return `${label}: ${short(value)} at ${step}`;
    });
    said.textContent = `${title} · ${near.join(" · ")}`;
  });
  drawn.addEventListener("pointerleave", () => { said.textContent = title; });
  box.append(said, drawn);
  return box;
}

// Without spreading a long list over the arguments of Math.min.
const limits = (values) => values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
