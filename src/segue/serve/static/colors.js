// Colours of classes: the model's own, or a set that colour-blind eyes tell apart, with patterns beyond eight classes.

// Okabe and Ito, Color Universal Design, 2008; white in place of black, which a dark picture would swallow.
export const SAFE = [[0, 114, 178], [230, 159, 0], [0, 158, 115], [204, 121, 167], [86, 180, 233], [213, 94, 0], [240, 228, 66], [245, 245, 245]];

// What eyes without long, middle or short cones see, in linear RGB: Machado, Oliveira and Fernandes, 2009, severity 1.
const EYES = [
  [0.152286, 1.052583, -0.204868, 0.114503, 0.786281, 0.099216, -0.003882, -0.048116, 1.051998],
  [0.367322, 0.860646, -0.227968, 0.280085, 0.672501, 0.047413, -0.01182, 0.04294, 0.968881],
  [1.255528, -0.076749, -0.178779, -0.078411, 0.930809, 0.147602, 0.004733, 0.691367, 0.3039],
];
const APART = 12; // CIE 1976 difference below which two colours are taken for one in a picture

const times = (m, [r, g, b]) => [0, 3, 6].map((i) => m[i] * r + m[i + 1] * g + m[i + 2] * b);
const linear = (color) => color.map((c) => (c <= 10.31 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));

function lab(rgb) {
  const [x, y, z] = times([0.4339, 0.3762, 0.1899, 0.2126, 0.7152, 0.0722, 0.0178, 0.1094, 0.8728], rgb.map((c) => Math.min(Math.max(c, 0), 1)))
    .map((t) => (t > 216 / 24389 ? Math.cbrt(t) : ((24389 / 27) * t + 16) / 116)); // of white D65, so that white is 1
  return [116 * y - 16, 500 * (x - y), 200 * (y - z)];
}

// Two places of `colors` that some colour-blind eyes take for one, or null.
export function alike(colors) {
  for (const eye of EYES) {
    const seen = colors.map((color) => lab(times(eye, linear(color))));
    for (let i = 0; i < seen.length; i += 1) {
      for (let j = 0; j < i; j += 1) if (Math.hypot(...seen[i].map((c, k) => c - seen[j][k])) < APART) return [j, i];
    }
  }
  return null;
}

// Whether a pattern has ink at (x, y): lines down, up, across, along, dots.
const PATTERNS = [
  () => false,
  (x, y) => (x + y) % 6 < 2,
  (x, y) => (x + 6000 - y) % 6 < 2,
  (x, y) => y % 6 < 2,
  (x) => x % 6 < 2,
  (x, y) => x % 6 < 2 && y % 6 < 2,
];

// How the class at `place` is painted: {color, pattern, ink}. `own` is its colour by the model.
export function paintOf(place, own) {
  if (chosen() === "model") return { color: own, pattern: PATTERNS[0], ink: own };
  const color = SAFE[place % SAFE.length];
  const light = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] > 128;
  return { color, pattern: PATTERNS[Math.floor(place / SAFE.length) % PATTERNS.length], ink: light ? [0, 0, 0] : [255, 255, 255] };
}

// Pixels RGBA of a class map. `paints` by id; `only`: ids that are shown, all if empty.
export function colored({ width, height, values }, paints, only = new Set()) {
  const image = new ImageData(width, height);
  const unit = Math.max(1, Math.round(Math.max(width, height) / 320)); // patterns stay as coarse as they are seen
  for (let i = 0; i < values.length; i += 1) {
    const paint = paints[values[i]];
    if (!paint || (only.size && !only.has(values[i]))) continue;
    const x = Math.floor((i % width) / unit), y = Math.floor(i / width / unit);
    image.data.set(paint.pattern(x, y) ? paint.ink : paint.color, 4 * i);
    image.data[4 * i + 3] = 255;
  }
  return image;
}

// Cividis (Nunez, Anderton and Renslow, 2018): even steps of lightness, the same to colour-blind eyes.
const CIVIDIS = [[0, 34, 78], [65, 77, 107], [124, 123, 120], [188, 175, 111], [254, 232, 56]];
export const RAMP = Array.from({ length: 256 }, (_, value) => {
  const place = (value / 255) * (CIVIDIS.length - 1), low = Math.min(Math.floor(place), CIVIDIS.length - 2);
  const color = CIVIDIS[low].map((c, k) => Math.round(c + (place - low) * (CIVIDIS[low + 1][k] - c)));
  return { color, pattern: PATTERNS[0], ink: color };
});

// The sign of a class in a legend.
export function chip(paint) {
  const canvas = document.createElement("canvas");
  canvas.className = "chip";
  canvas.width = 24;
  canvas.height = 24;
  canvas.getContext("2d").putImageData(colored({ width: 24, height: 24, values: new Uint8Array(576) }, [paint]), 0, 0);
  return canvas;
}

// ---- the choice -----------------------------------------------------------------------------------------------------

const select = document.getElementById("colors");
export const chosen = () => select.value;

// The safe colours where the model's would not do, unless the person who looks has chosen.
export function choose(colors) {
  const why = alike(colors.map(({ color }) => color));
  select.value = localStorage.getItem("segue-colors") || (why ? "safe" : "model");
  select.title = why ? `${why.map((i) => colors[i].name).join(" and ")} look alike to some colour-blind eyes in the model's colours` : "";
  document.getElementById("alike").hidden = !why;
}
select.addEventListener("change", () => {
  localStorage.setItem("segue-colors", select.value);
  document.dispatchEvent(new Event("colors"));
});
