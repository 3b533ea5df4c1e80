// What the timeline draws with: colours of the theme, places of bars, ticks.

const SHADES = 24;

/** Colours of the current theme, from the style sheet. */
function themeColours() {
  const style = getComputedStyle(document.documentElement);
  const names = ["panel", "text", "muted", "faint", "line", "accent", "start", "end", "shade", "hit", "miss"];
  const colours = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  const stops = style.getPropertyValue("--scale").split(",").map((text) => text.trim());
  colours.scale = Array.from({ length: SHADES }, (_, i) => blend(stops, i / (SHADES - 1)));
  return colours;
}

/** The colour at `place`, 0 to 1, of a scale of #rrggbb colours. */
function blend(stops, place) {
  const at = place * (stops.length - 1);
  const left = Math.min(Math.floor(at), stops.length - 2);
  const channel = (text, i) => parseInt(text.slice(1 + 2 * i, 3 + 2 * i), 16);
  const mixed = [0, 1, 2].map((i) => {
    const [a, b] = [channel(stops[left], i), channel(stops[left + 1], i)];
    return Math.round(a + (b - a) * (at - left));
  });
  return `rgb(${mixed.join(",")})`;
}

/** The colour for text on a surface of colour #rrggbb: white or nearly black, whichever has the higher contrast. */
function inkOn(surface) {
  const [red, green, blue] = [1, 3, 5].map((i) => {
    const value = parseInt(surface.slice(i, i + 2), 16) / 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  });
  // Above this relative luminance, black has the higher contrast (WCAG 2.2).
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#0b1017" : "#ffffff";
}

/** Lanes in which overlapping intervals do not touch; those beyond the last lane share it. */
class Lanes {
  constructor(most) {
    this.most = most;
    this.lanes = [];
  }

  /** The lane of an interval. */
  add(start, end) {
    for (let lane = 0; lane < this.lanes.length; lane++) if (this.#fits(this.lanes[lane], start, end)) return lane;
    if (this.lanes.length === this.most) return this.most - 1;
    this.lanes.push([[start, end]]);
    return this.lanes.length - 1;
  }

  #fits(taken, start, end) {
    let low = 0;
    let high = taken.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (taken[middle][0] < start) low = middle + 1;
      else high = middle;
    }
    if (low > 0 && taken[low - 1][1] > start) return false;
    if (low < taken.length && taken[low][0] < end) return false;
    taken.splice(low, 0, [start, end]);
    return true;
  }
}

/** Places of the first `shown` proposals of a video: y of each, height of a bar, rows with names. */
function placeBars(data, video, shown, byRank, room) {
  const tops = new Float32Array(shown);
  const rows = [];
  if (byRank) {
    const height = Math.max(4, Math.min(20, Math.floor(room / Math.max(shown, 1))));
    for (let rank = 0; rank < shown; rank++) tops[rank] = rank * height;
    const every = Math.ceil(13 / height);
    for (let rank = 0; rank < shown; rank++) {
      const named = every === 1 || rank === 0 || (rank + 1) % (every <= 5 ? 5 : 10) === 0;
      if (named) rows.push({ top: rank * height, height, name: String(rank + 1) });
    }
    return { tops, rows, step: height, bar: height > 6 ? height - 2 : height - 1, total: shown * height };
  }
  const classes = new Map();
  for (let rank = 0; rank < shown; rank++) {
    const label = data.label ? data.label[video.first + rank] : -1;
    if (!classes.has(label)) classes.set(label, { label, lanes: new Lanes(10), ranks: [] });
    const members = classes.get(label);
    tops[rank] = members.lanes.add(data.start[video.first + rank], data.end[video.first + rank]);
    members.ranks.push(rank);
  }
  const step = 11;
  let top = 0;
  const order = [...classes.values()].sort((a, b) => a.label - b.label);
  for (const { label, lanes, ranks } of order) {
    const height = Math.max(lanes.lanes.length * step + 7, 20);
    const inset = (height - lanes.lanes.length * step) / 2;
    for (const rank of ranks) tops[rank] = top + inset + tops[rank] * step;
    rows.push({ top, height, name: label < 0 ? "" : data.labels[label], colour: label < 0 ? null : data.colour(label), ruled: true });
    top += height;
  }
  return { tops, rows, step, bar: step - 2, total: top };
}

/** Round times from `from` to `to`, at most `most` of them, and the digits that their clock needs. */
function ticks(from, to, most) {
  const steps = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200];
  const step = steps.find((candidate) => (to - from) / candidate <= most) || (to - from) / most;
  const times = [];
  for (let k = Math.ceil(from / step - 1e-9); k * step <= to + 1e-9; k++) times.push(k * step);
  return { times, decimals: step >= 1 ? 0 : step >= 0.1 ? 1 : 2 };
}

/** Give a canvas the size of its box in device pixels, and return its context in CSS pixels. */
function prepared(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  const [wide, high] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== wide || canvas.height !== high) {
    canvas.width = wide;
    canvas.height = high;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  context.font = `11px ${getComputedStyle(document.body).fontFamily}`;
  context.textBaseline = "middle";
  return context;
}

/** Text that ends in an ellipsis where it is wider than `width`. */
function fitted(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let low = 0;
  let high = Math.min(text.length, 200);
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (context.measureText(text.slice(0, middle) + "…").width <= width) low = middle;
    else high = middle - 1;
  }
  return low ? text.slice(0, low) + "…" : "";
}

/** A bar with rounded corners where it is large enough for them. */
function bar(context, x, y, width, height) {
  if (width < 5 || height < 5) context.fillRect(x, y, width, height);
  else {
    context.beginPath();
    context.roundRect(x, y, width, height, Math.min(3, height / 3));
    context.fill();
  }
}
