// The timeline: a strip of the whole video, and below it true actions, boundary curves and proposals in a window of time.

const OVERVIEW = 30;
const AXIS = 22;
const TRUE_LANE = 18;
const CURVES = 84;
const RIGHT = 22;

class Timeline {
  #pending = false;
  #trueBars = [];

  /** events: seek(time), choose(rank), hover(what, x, y) and moved() when the window of time changes. */
  constructor(elements, data, events) {
    this.elements = elements;
    this.data = data;
    this.events = events;
    this.video = null;
    this.shown = 0;
    this.hits = new Uint8Array(0);
    this.selected = -1;
    this.from = 0;
    this.to = 1;
    this.position = 0; // of the playhead
    this.placed = null; // see placeBars
    this.colours = themeColours();
    elements.box.addEventListener("scroll", () => this.draw(), { passive: true });
    new ResizeObserver(() => this.layout()).observe(elements.stage);
    listenToPointers(this);
  }

  /** Show a video: length in seconds, the number of proposals, whether each is a hit, and rows by rank or by class. */
  show(video, length, shown, hits, byRank) {
    const another = video !== this.video;
    const longer = length !== this.length;
    Object.assign(this, { video, length, shown, hits, byRank });
    if (another || longer) [this.from, this.to] = [0, length];
    if (another) this.elements.box.scrollTop = 0;
    this.layout();
  }

  get width() {
    return Math.max(this.elements.stage.clientWidth, 120);
  }

  /** Pixels at the left for names. */
  get left() {
    return this.width < 560 ? 44 : 96;
  }

  x(time) {
    return this.left + ((time - this.from) / (this.to - this.from)) * (this.width - this.left - RIGHT);
  }

  time(x) {
    const share = (x - this.left) / (this.width - this.left - RIGHT);
    return this.from + Math.min(Math.max(share, 0), 1) * (this.to - this.from);
  }

  /** Time of a place of the strip, which always has the whole video. */
  stripTime(x) {
    return Math.min(Math.max((x - this.left) / (this.width - this.left - RIGHT), 0), 1) * this.length;
  }

  get zoomed() {
    return this.to - this.from < this.length * 0.9999;
  }

  setWindow(from, to) {
    const span = Math.min(Math.max(to - from, Math.min(0.5, this.length)), this.length);
    const middle = (from + to) / 2;
    this.from = Math.min(Math.max(middle - span / 2, 0), this.length - span);
    this.to = this.from + span;
    this.draw();
    this.events.moved();
  }

  /** Show `factor` times the seconds, with the same time at x. */
  zoom(factor, time = (this.from + this.to) / 2) {
    const span = Math.min(Math.max((this.to - this.from) * factor, Math.min(0.5, this.length)), this.length);
    const share = (time - this.from) / (this.to - this.from);
    this.setWindow(time - share * span, time + (1 - share) * span);
  }

  /** Move the window so that a time is in it. */
  follow(time) {
    const span = this.to - this.from;
    if (time < this.from || time > this.to) this.setWindow(time - span * 0.1, time + span * 0.9);
  }

  /** Move window and rows so that a proposal can be seen. */
  reveal(rank) {
    const { start, end } = this.data;
    const i = this.video.first + rank;
    const span = this.to - this.from;
    if (end[i] < this.from || start[i] > this.to) {
      const middle = (start[i] + end[i]) / 2;
      this.setWindow(middle - span / 2, middle + span / 2);
    }
    const box = this.elements.box;
    const top = this.placed.tops[rank];
    if (top < box.scrollTop) box.scrollTop = top - 8;
    else if (top + this.placed.bar > box.scrollTop + box.clientHeight) box.scrollTop = top + this.placed.bar + 8 - box.clientHeight;
  }

  /** Heights and places, after a change of what is shown or of the size. */
  layout() {
    if (!this.video) return;
    const { data, video } = this;
    const lanes = new Lanes(4);
    this.#trueBars = [];
    for (let g = video.firstTrue; g < video.firstTrue + video.instances; g++) {
      this.#trueBars.push({ g, lane: lanes.add(data.trueStart[g], data.trueEnd[g]) });
    }
    this.truthHeight = data.hasTruth ? Math.max(lanes.lanes.length, 1) * TRUE_LANE + 8 : 0;
    this.curvesHeight = data.curves(video) ? CURVES : 0;
    this.tracksHeight = AXIS + this.truthHeight + this.curvesHeight;
    const room = Math.max(window.innerHeight * (data.hasFiles ? 0.28 : 0.4), 170);
    this.placed = placeBars(data, video, this.shown, this.byRank, room);
    this.barsHeight = Math.min(Math.max(this.placed.total, 40), room);
    this.elements.box.style.height = `${this.barsHeight}px`;
    this.elements.space.style.height = `${Math.max(this.placed.total - this.barsHeight, 0)}px`;
    this.draw();
  }

  recolour() {
    this.colours = themeColours();
    this.draw();
  }

  draw() {
    if (this.#pending) return;
    this.#pending = true;
    requestAnimationFrame(() => {
      this.#pending = false;
      if (!this.video) return;
      this.#drawOverview();
      this.#drawTracks();
      this.#drawBars();
      this.placeMarks();
    });
  }

  /** Put playhead and chosen interval where they belong; cheap enough for every frame. */
  placeMarks() {
    const { playhead, band, now } = this.elements;
    const x = this.x(this.position);
    const along = (this.position / this.length) * (this.width - this.left - RIGHT);
    now.style.transform = `translateX(${this.left + along}px)`;
    playhead.hidden = x < this.left - 1 || x > this.width - RIGHT + 1;
    playhead.style.transform = `translateX(${x}px)`;
    const chosen = this.selected >= 0 && this.selected < this.shown;
    band.hidden = !chosen;
    if (!chosen) return;
    const i = this.video.first + this.selected;
    const a = Math.max(this.x(this.data.start[i]), this.left);
    const b = Math.min(this.x(this.data.end[i]), this.width - RIGHT);
    band.hidden = b < this.left || a > this.width - RIGHT;
    band.style.transform = `translateX(${a}px)`;
    band.style.width = `${Math.max(b - a, 2)}px`;
  }

  #drawOverview() {
    const { data, video, colours, left, width } = this;
    const context = prepared(this.elements.overview, width, OVERVIEW);
    const scale = (width - left - RIGHT) / this.length;
    const at = (time) => left + time * scale;
    context.fillStyle = colours.faint;
    context.beginPath();
    context.roundRect(left, 5, width - left - RIGHT, 20, 4);
    context.fill();
    for (const { g } of this.#trueBars) {
      context.fillStyle = data.colour(data.trueLabel[g]);
      context.globalAlpha = 0.75;
      context.fillRect(at(data.trueStart[g]), 7, Math.max((data.trueEnd[g] - data.trueStart[g]) * scale, 1.5), 5);
    }
    // How many of the shown proposals cover a place.
    const columns = Math.max(Math.floor((width - left - RIGHT) / 2), 1);
    const column = (place) => Math.min(Math.max(place, 0), columns);
    const change = new Float32Array(columns + 1);
    for (let i = video.first; i < video.first + this.shown; i++) {
      change[column(Math.floor((data.start[i] / this.length) * columns))] += 1;
      change[column(Math.ceil((data.end[i] / this.length) * columns))] -= 1;
    }
    let covered = 0;
    let most = 1;
    const cover = change.slice(0, columns).map((value) => {
      covered += value;
      most = Math.max(most, covered);
      return covered;
    });
    context.globalAlpha = 0.8;
    context.fillStyle = colours.accent;
    for (let c = 0; c < columns; c++) {
      const height = (cover[c] / most) * 11;
      if (height) context.fillRect(left + 2 * c, 24 - height, 2, height);
    }
    context.globalAlpha = 1;
    context.fillStyle = colours.muted;
    context.textAlign = "right";
    context.fillText(fitted(context, "video", left - 12), left - 10, OVERVIEW / 2);
    if (this.zoomed) {
      const [a, b] = [at(this.from), at(this.to)];
      context.fillStyle = colours.panel;
      context.globalAlpha = 0.65;
      context.fillRect(left, 5, a - left, 20);
      context.fillRect(b, 5, width - RIGHT - b, 20);
      context.globalAlpha = 1;
      context.strokeStyle = colours.accent;
      context.lineWidth = 1.5;
      context.beginPath();
      context.roundRect(a, 4, Math.max(b - a, 3), 22, 4);
      context.stroke();
    }
  }

  /** Rulings from top to bottom of a canvas. */
  #rule(context, top, height) {
    const { times } = ticks(this.from, this.to, Math.max((this.width - this.left - RIGHT) / 84, 2));
    context.fillStyle = this.colours.line;
    for (const time of times) context.fillRect(Math.round(this.x(time)), top, 1, height);
  }

  #clip(context, height) {
    context.save();
    context.beginPath();
    context.rect(this.left - 1, 0, this.width - this.left - RIGHT + 2, height);
    context.clip();
  }

  #drawTracks() {
    const { data, video, colours, left, width } = this;
    const context = prepared(this.elements.tracks, width, this.tracksHeight);
    const found = ticks(this.from, this.to, Math.max((width - left - RIGHT) / 84, 2));
    context.textAlign = "center";
    context.fillStyle = colours.muted;
    for (const time of found.times) context.fillText(clock(time, found.decimals), this.x(time), AXIS / 2);
    this.#rule(context, AXIS, this.tracksHeight - AXIS);
    context.textAlign = "right";
    let top = AXIS;
    if (data.hasTruth) {
      context.fillStyle = colours.muted;
      const name = left > 60 ? "true actions" : "truth";
      context.fillText(name, left - 10, top + this.truthHeight / 2);
      if (!this.#trueBars.length) {
        context.textAlign = "left";
        context.fillText(video.annotated ? "no true action in this video" : "not in the ground truth", left + 8, top + this.truthHeight / 2);
      }
      this.#clip(context, this.tracksHeight);
      for (const { g, lane } of this.#trueBars) this.#drawTrueBar(context, g, top + 4 + lane * TRUE_LANE);
      context.restore();
      top += this.truthHeight;
    }
    if (this.curvesHeight) this.#drawCurves(context, data.curves(video), top);
  }

  #drawTrueBar(context, g, y) {
    const { data, colours } = this;
    const x = this.x(data.trueStart[g]);
    const width = Math.max(this.x(data.trueEnd[g]) - x, 2.5);
    const found = data.firstRank[g] < this.shown;
    const colour = data.colour(data.trueLabel[g]);
    context.fillStyle = context.strokeStyle = colour;
    if (found) bar(context, x, y, width, TRUE_LANE - 3);
    else {
      context.lineWidth = 1.4;
      context.setLineDash([4, 3]);
      context.beginPath();
      context.roundRect(x + 0.7, y + 0.7, Math.max(width - 1.4, 1), TRUE_LANE - 4.4, 3);
      context.globalAlpha = 0.14;
      context.fill();
      context.globalAlpha = 1;
      context.stroke();
      context.setLineDash([]);
    }
    const from = Math.max(x, this.left);
    const room = Math.min(x + width, this.width - RIGHT) - from - 10;
    if (room < 18) return;
    context.textAlign = "left";
    context.fillStyle = found ? inkOn(colour) : colours.text;
    context.fillText(fitted(context, data.labels[data.trueLabel[g]], room), from + 5, y + (TRUE_LANE - 3) / 2 + 0.5);
  }

  #drawCurves(context, curves, top) {
    const { colours, left } = this;
    const middle = top + CURVES / 2;
    const half = CURVES / 2 - 7;
    context.textAlign = "right";
    for (const [name, place, colour] of [["start", middle - half / 2, colours.start], ["end", middle + half / 2, colours.end]]) {
      context.fillStyle = colour;
      context.fillText(left > 60 ? `${name} prob.` : name, left - 10, place);
    }
    this.#clip(context, this.tracksHeight);
    context.fillStyle = colours.line;
    context.fillRect(left, middle, this.width - left, 1);
    // The largest value of each pixel, so that no peak falls between two.
    const { times } = curves;
    for (const [values, sign, colour] of [[curves.start, -1, colours.start], [curves.end, 1, colours.end]]) {
      const points = [];
      let pixel = NaN;
      for (let i = 0; i < times.length; i++) {
        const next = times[Math.min(i + 1, times.length - 1)];
        const before = times[Math.max(i - 1, 0)];
        if (next < this.from || before > this.to) continue;
        const x = this.x(times[i]);
        const last = points.length - 1;
        if (Math.round(x) === pixel && points[last][1] >= values[i]) continue;
        if (Math.round(x) === pixel) points[last] = [x, values[i]];
        else points.push([x, values[i]]);
        pixel = Math.round(x);
      }
      if (!points.length) continue;
      context.beginPath();
      context.moveTo(points[0][0], middle);
      for (const [x, value] of points) context.lineTo(x, middle + sign * half * (value / 255));
      context.lineTo(points[points.length - 1][0], middle);
      context.fillStyle = context.strokeStyle = colour;
      context.globalAlpha = 0.22;
      context.fill();
      context.globalAlpha = 1;
      context.beginPath();
      points.forEach(([x, value], i) => context[i ? "lineTo" : "moveTo"](x, middle + sign * half * (value / 255)));
      context.lineWidth = 1.3;
      context.stroke();
    }
    context.restore();
  }

  #drawBars() {
    const { data, video, colours, left, width } = this;
    const scroll = this.elements.box.scrollTop;
    const context = prepared(this.elements.bars, width, this.barsHeight);
    const { tops, rows, bar: height, step, total } = this.placed;
    const visible = (top, size) => top + size >= scroll && top <= scroll + this.barsHeight;
    for (const row of rows) {
      if (!visible(row.top, row.height)) continue;
      const y = row.top - scroll;
      if (row.ruled) {
        context.fillStyle = colours.line;
        context.fillRect(0, y, width, 1);
      }
      if (row.colour) {
        context.fillStyle = row.colour;
        bar(context, 4, y + row.height / 2 - 4, 8, 8);
      }
      context.textAlign = row.colour ? "left" : "right";
      context.fillStyle = row.colour ? colours.text : colours.muted;
      const at = row.colour ? 17 : left - 10;
      const middle = Math.min(Math.max(row.top + row.height / 2, 7), total - 7) - scroll;
      context.fillText(fitted(context, row.name, left - 24), at, middle);
    }
    this.#rule(context, 0, this.barsHeight);
    if (!this.shown) {
      context.textAlign = "left";
      context.fillStyle = colours.muted;
      context.fillText(video.count ? "no proposal is that confident" : "no proposals", left + 8, 20);
    }
    this.#clip(context, this.barsHeight);
    const high = this.shown ? data.score[video.first] : 1;
    const low = this.shown ? data.score[video.first + this.shown - 1] : 0;
    const factor = high > low ? (SHADES - 1) / (high - low) : 0;
    let [begin, stop] = [0, this.shown];
    if (this.byRank) {
      begin = Math.max(Math.floor(scroll / step), 0);
      stop = Math.min(Math.ceil((scroll + this.barsHeight) / step), this.shown);
    }
    // The best last, so that it lies on top.
    for (let rank = stop - 1; rank >= begin; rank--) {
      if (!visible(tops[rank], height)) continue;
      const i = video.first + rank;
      if (data.end[i] < this.from || data.start[i] > this.to) continue;
      const x = this.x(data.start[i]);
      context.fillStyle = colours.scale[factor ? Math.round((data.score[i] - low) * factor) : SHADES - 1];
      bar(context, x, tops[rank] - scroll + 1, Math.max(this.x(data.end[i]) - x, 2), height);
    }
    if (this.selected >= begin && this.selected < stop) {
      const i = video.first + this.selected;
      const x = this.x(data.start[i]);
      context.strokeStyle = colours.text;
      context.lineWidth = 1.5;
      context.strokeRect(x - 1, tops[this.selected] - scroll, Math.max(this.x(data.end[i]) - x, 2) + 2, height + 2);
    }
    context.restore();
    if (data.hasTruth && video.annotated && this.byRank) this.#drawHits(context, begin, stop, scroll, step);
  }

  /** At the right of each row, a dot for a hit or a cross for a miss; lines where rows are low. */
  #drawHits(context, begin, stop, scroll, step) {
    const { colours, width } = this;
    const x = width - RIGHT / 2;
    for (let rank = begin; rank < stop; rank++) {
      const y = rank * step - scroll;
      context.fillStyle = context.strokeStyle = this.hits[rank] ? colours.hit : colours.miss;
      if (step < 9) context.fillRect(x - 3, y, 6, step);
      else if (this.hits[rank]) {
        context.beginPath();
        context.arc(x, y + step / 2, 3.2, 0, 7);
        context.fill();
      } else {
        context.lineWidth = 1.4;
        context.beginPath();
        context.moveTo(x - 2.6, y + step / 2 - 2.6);
        context.lineTo(x + 2.6, y + step / 2 + 2.6);
        context.moveTo(x + 2.6, y + step / 2 - 2.6);
        context.lineTo(x - 2.6, y + step / 2 + 2.6);
        context.stroke();
      }
    }
  }

  /** What is at a place of the stage, in pixels from its corner: {rank}, {instance} or null. */
  at(x, y) {
    if (x < this.left || x > this.width - RIGHT) return null;
    const { data, video } = this;
    const inside = (start, end) => x >= this.x(start) - 2 && x <= Math.max(this.x(end), this.x(start) + 2) + 2;
    let top = OVERVIEW + AXIS;
    if (y < top) return null;
    if (y < top + this.truthHeight) {
      const lane = Math.floor((y - top - 4) / TRUE_LANE);
      const hit = this.#trueBars.find((one) => one.lane === lane && inside(data.trueStart[one.g], data.trueEnd[one.g]));
      return hit ? { instance: hit.g } : null;
    }
    top = OVERVIEW + this.tracksHeight;
    if (y < top || y > top + this.barsHeight) return null;
    const inner = y - top + this.elements.box.scrollTop;
    const { tops, step } = this.placed;
    const [begin, stop] = this.byRank ? [Math.floor(inner / step), Math.floor(inner / step) + 1] : [0, this.shown];
    for (let rank = begin; rank < Math.min(stop, this.shown); rank++) {
      const i = video.first + rank;
      if (inner >= tops[rank] && inner < tops[rank] + step && inside(data.start[i], data.end[i])) return { rank };
    }
    return null;
  }
}
