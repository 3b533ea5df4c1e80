"use strict";
// Reads the columns of the page, and answers which proposals find which true actions.

/** A typed array from the base64 text of its bytes. */
function column(Type, text) {
  if (Uint8Array.fromBase64) return new Type(Uint8Array.fromBase64(text).buffer);
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return new Type(bytes.buffer);
}

/** Text of a file on one line: what would break it, or reverse or hide what follows, becomes an escape. */
function printable(text) {
  return text.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, (character) => {
    const names = { "\n": "\\n", "\r": "\\r", "\t": "\\t" };
    return names[character] || `\\u{${character.codePointAt(0).toString(16)}}`;
  });
}

const digits = (value, count) => value.toFixed(count);

/** Seconds as m:ss.ss or h:mm:ss.ss, with `decimals` digits after the point. */
function clock(seconds, decimals = 2) {
  const unit = 10 ** decimals;
  const ticks = Math.round(Math.max(seconds, 0) * unit);
  const whole = Math.floor(ticks / unit);
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor(whole / 60) % 60;
  const rest = String(whole % 60).padStart(2, "0") + (decimals ? "." + String(ticks % unit).padStart(decimals, "0") : "");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

const number = (value) => value.toLocaleString("en-US");
const plural = (value, noun) => `${number(value)} ${noun}${value === 1 ? "" : "s"}`;

/** A score with enough digits to tell small ones apart. */
function scoreText(value) {
  const size = Math.abs(value);
  return size >= 0.0995 || size === 0 ? digits(value, 3) : size >= 0.001 ? digits(value, 4) : value.toExponential(1);
}

/** The order of operations is that of bcnet_fast.evaluation, so that both agree to the last bit. */
function tiou(start, end, trueStart, trueEnd) {
  const inter = Math.max(Math.min(end, trueEnd) - Math.max(start, trueStart), 0);
  return inter / ((trueEnd - trueStart) + (end - start) - inter);
}

const NEVER = 0xffffffff;

class Data {
  constructor(content) {
    this.title = printable(content.title);
    this.labels = content.labels.map(printable);
    this.exactLabels = content.labels;
    this.colours = content.colours;
    this.hasTruth = content.truth;
    this.hasFiles = content.files;
    this.start = column(Float64Array, content.start);
    this.end = column(Float64Array, content.end);
    this.score = column(Float64Array, content.score);
    this.label = content.label === null ? null : column(Int32Array, content.label);
    this.trueStart = column(Float64Array, content.trueStart);
    this.trueEnd = column(Float64Array, content.trueEnd);
    this.trueLabel = column(Int32Array, content.trueLabel);
    // Of each true action, the rank of the first proposal that finds it.
    this.firstRank = new Uint32Array(this.trueStart.length);
    let first = 0;
    let firstTrue = 0;
    this.videos = content.videos.map((video, index) => {
      const found = { ...video, index, first, firstTrue, exact: video.id, name: printable(video.id), hasVideo: !!video.source };
      first += video.count;
      firstTrue += video.instances;
      found.lower = found.name.toLowerCase();
      found.length = this.#length(found);
      return found;
    });
    let low = Infinity;
    let high = -Infinity;
    for (const score of this.score) {
      if (score < low) low = score;
      if (score > high) high = score;
    }
    this.lowest = Number.isFinite(low) ? low : 0;
    this.highest = Number.isFinite(high) ? high : 1;
  }

  /** Seconds to show of a video: its duration, but at least what is in it. */
  #length(video) {
    let length = video.duration || 0;
    for (let i = video.first; i < video.first + video.count; i++) length = Math.max(length, this.end[i]);
    for (let i = video.firstTrue; i < video.firstTrue + video.instances; i++) length = Math.max(length, this.trueEnd[i]);
    return length || 1;
  }

  /** Curves of a video: times in seconds, probabilities in 255ths; null without. */
  curves(video) {
    if (video.boundaries && !video.curves) {
      const { times, start, end } = video.boundaries;
      video.curves = { times: column(Float32Array, times), start: column(Uint8Array, start), end: column(Uint8Array, end) };
    }
    return video.curves || null;
  }

  /** Number of proposals of a video with a rank below `best` and a score of at least `threshold`. */
  shown(video, best, threshold) {
    let low = 0;
    let high = Math.min(video.count, best);
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.score[video.first + middle] >= threshold) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Whether proposal `i` may find instance `g`. */
  #compatible(i, g, sameClass) {
    return !sameClass || this.label === null || this.label[i] === this.trueLabel[g];
  }

  /** Set `firstRank` of the instances of all videos. */
  match(threshold, sameClass) {
    const { start, end, trueStart, trueEnd, firstRank } = this;
    for (const video of this.videos) {
      const last = video.first + video.count;
      for (let g = video.firstTrue; g < video.firstTrue + video.instances; g++) {
        firstRank[g] = NEVER;
        const a = trueStart[g];
        const b = trueEnd[g];
        for (let i = video.first; i < last; i++) {
          if (end[i] > a && start[i] < b && tiou(start[i], end[i], a, b) >= threshold && this.#compatible(i, g, sameClass)) {
            firstRank[g] = i - video.first;
            break;
          }
        }
      }
    }
  }

  /** Number of instances of a video that its first `shown` proposals find. */
  found(video, shown) {
    let found = 0;
    for (let g = video.firstTrue; g < video.firstTrue + video.instances; g++) if (this.firstRank[g] < shown) found++;
    return found;
  }

  /** For each of the first `shown` proposals the largest tIoU with an instance, and which that is (-1: none). */
  overlaps(video, shown, sameClass) {
    const best = new Float64Array(shown);
    const instance = new Int32Array(shown).fill(-1);
    const last = video.firstTrue + video.instances;
    for (let rank = 0; rank < shown; rank++) {
      const i = video.first + rank;
      for (let g = video.firstTrue; g < last; g++) {
        if (!this.#compatible(i, g, sameClass)) continue;
        const value = tiou(this.start[i], this.end[i], this.trueStart[g], this.trueEnd[g]);
        if (value > best[rank]) {
          best[rank] = value;
          instance[rank] = g;
        }
      }
    }
    return { best, instance };
  }

  /** Colour of a class. */
  colour(label) {
    return this.colours[label % this.colours.length];
  }

  /** Whether a search text occurs in the name or a class of a video. */
  matches(video, text) {
    if (video.lower.includes(text)) return true;
    if (!video.classes) {
      video.classes = new Set();
      if (this.label) for (let i = video.first; i < video.first + video.count; i++) video.classes.add(this.label[i]);
      for (let g = video.firstTrue; g < video.firstTrue + video.instances; g++) video.classes.add(this.trueLabel[g]);
    }
    for (const label of video.classes) if (this.labels[label].toLowerCase().includes(text)) return true;
    return false;
  }
}

/** A cell of a CSV file. A spreadsheet would run what looks like a formula; an id such as -3a_b does not. */
function cell(value) {
  if (typeof value === "number") return String(value);
  const text = /^[=+@\t\r-]/.test(value) && !/^-?[\w.-]*$/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** The first `shown` proposals of videos as CSV, at full precision. `shownOf` gives the number of a video. */
function csv(data, videos, shownOf, threshold, sameClass) {
  const columns = ["video", "rank", "start", "end", "score"];
  if (data.label) columns.push("label");
  if (data.hasTruth) columns.push("tiou", "hit");
  const lines = [columns.join(",")];
  for (const video of videos) {
    const shown = shownOf(video);
    const overlaps = data.hasTruth ? data.overlaps(video, shown, sameClass) : null;
    for (let rank = 0; rank < shown; rank++) {
      const i = video.first + rank;
      const row = [video.exact, rank + 1, data.start[i], data.end[i], data.score[i]];
      if (data.label) row.push(data.exactLabels[data.label[i]]);
      if (overlaps) row.push(...(video.annotated ? [overlaps.best[rank], overlaps.best[rank] >= threshold ? 1 : 0] : ["", ""]));
      lines.push(row.map(cell).join(","));
    }
  }
  return lines.join("\r\n") + "\r\n";
}
