// Puts the page together: what is chosen, and what follows from it.

class App {
  constructor(data) {
    this.data = data;
    this.get = (id) => document.getElementById(id);
    this.video = null;
    this.selected = -1; // rank of the chosen proposal
    this.tableSort = { key: "rank", down: false };
    this.order = []; // videos in the list
    this.ranks = []; // ranks in the table
    const get = this.get;
    this.player = new Player(get("video"), () => this.timeChanged(), () => this.sayNoVideo("failed"));
    this.timeline = new Timeline(
      {
        stage: get("stage"), overview: get("overview"), tracks: get("tracks"), box: get("bars-box"), bars: get("bars"),
        space: get("bars-space"), playhead: get("playhead"), band: get("band"), now: get("now"),
      },
      data,
      {
        seek: (time) => this.player.seek(time),
        choose: (found) => this.choose(found),
        hover: (found, x, y) => this.hover(found, x, y),
        moved: () => this.windowMoved(),
      },
    );
    this.list = new VirtualList(get("videos"), {
      height: 54, role: "option", prefix: "video-row-", fill: (row, index) => this.fillVideo(row, index),
      chosen: (index) => this.open(this.order[index]),
    });
    this.table = new VirtualList(get("rows-list"), {
      height: 30, role: "row", prefix: "proposal-row-", fill: (row, index) => this.fillProposal(row, index),
      chosen: (index) => this.play(this.ranks[index]),
    });
    this.prepareControls();
    this.rematch();
    this.applyTheme();
    if (this.order.length) this.open(this.order[0]);
  }

  prepareControls() {
    const { get, data } = this;
    document.title = data.title;
    get("title").textContent = data.title;
    document.body.classList.toggle("no-truth", !data.hasTruth);
    document.body.classList.toggle("no-classes", !(data.hasTruth && data.label));
    document.body.classList.toggle("no-labels", !data.label);
    document.body.classList.toggle("no-files", !data.hasFiles);
    const sorts = [["file", "file order"], ["name", "name"], ["count", "most shown"], ["score", "best confidence"], ["length", "longest"]];
    if (data.hasTruth) sorts.splice(2, 0, ["missed", "most missed"]);
    setOptions(get("sort-videos"), sorts, "file");
    const bests = [10, 20, 50, 100, 200, 500, 1000].map((n) => [String(n), String(n)]);
    setOptions(get("best"), [...bests, ["all", "all"]], "50");
    setOptions(get("speed"), [0.25, 0.5, 1, 1.5, 2, 4].map((rate) => [String(rate), `${rate}×`]), "1");
    setOptions(get("rows"), [["rank", "by rank"], ["class", data.label ? "by class" : "packed"]], "rank");
    const slider = get("threshold");
    const step = (data.highest - data.lowest) / 500 || 1;
    Object.assign(slider, { min: data.lowest, max: data.highest, step });
    slider.value = data.lowest;
    this.readControls();
    for (const column of COLUMNS.filter((one) => !one.needs || data[one.needs])) {
      const head = part(get("columns"), "div", `cell ${column.key}`);
      head.setAttribute("role", "columnheader");
      head.dataset.key = column.key;
      const button = part(head, "button", "sort", column.heading);
      button.type = "button";
      button.title = `Sort by ${column.title.toLowerCase()}`;
      button.addEventListener("click", () => this.sortTable(column.key));
    }
    // The player gets the height that the timeline leaves.
    const section = document.querySelector("section.timeline");
    new ResizeObserver(() => document.body.style.setProperty("--timeline", `${section.offsetHeight}px`)).observe(section);
    listenToControls(this);
    listenToKeys(this);
  }

  readControls() {
    const { get, data } = this;
    const slider = get("threshold");
    // The lowest place of the slider hides nothing, whatever its rounding.
    const lowest = slider.valueAsNumber - data.lowest < Number(slider.step) / 2;
    this.threshold = lowest ? -Infinity : slider.valueAsNumber;
    get("threshold-value").textContent = lowest ? "any" : scoreText(slider.valueAsNumber);
    this.best = get("best").value === "all" ? Infinity : Number(get("best").value);
    this.tiou = Number(get("tiou").value);
    get("tiou-value").textContent = digits(this.tiou, 2);
    this.sameClass = get("same-class").checked;
    this.byRank = get("rows").value === "rank";
  }

  shownOf(video) {
    return this.data.shown(video, this.best, this.threshold);
  }

  /** After a change of tIoU or of the rule on classes. */
  rematch() {
    this.data.match(this.tiou, this.sameClass);
    this.refilter();
  }

  /** After a change of what is shown. */
  refilter() {
    const { data, get } = this;
    let [shown, found] = [0, 0];
    for (const video of data.videos) {
      video.shown = this.shownOf(video);
      video.found = data.found(video, video.shown);
      shown += video.shown;
      found += video.found;
    }
    const total = data.score.length;
    const facts = [plural(data.videos.length, "video"), shown === total ? plural(total, "proposal") : `${number(shown)} of ${plural(total, "proposal")}`];
    if (data.hasTruth) {
      const all = data.trueStart.length;
      facts.push(`${number(found)} of ${plural(all, "true action")} found${all ? ` (${digits((100 * found) / all, 1)}\u00a0%)` : ""}`);
    }
    get("summary").textContent = facts.join(" · ");
    this.sortVideos();
    if (this.video) this.showVideo();
  }

  sortVideos() {
    const text = this.get("search").value.trim().toLowerCase();
    const { data } = this;
    const keys = {
      file: (video) => video.index,
      missed: (video) => video.found - video.instances,
      count: (video) => -video.shown,
      score: (video) => (video.count ? -data.score[video.first] : Infinity),
      length: (video) => -video.length,
    };
    const sort = this.get("sort-videos").value;
    this.order = data.videos.filter((video) => !text || data.matches(video, text));
    if (sort === "name") this.order.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }) || a.index - b.index);
    else this.order.sort((a, b) => keys[sort](a) - keys[sort](b) || a.index - b.index);
    const all = this.order.length === data.videos.length;
    this.get("video-count").textContent = all ? plural(data.videos.length, "video") : `${number(this.order.length)} of ${plural(data.videos.length, "video")}`;
    this.list.show(this.order.length, this.order.indexOf(this.video));
  }

  fillVideo(row, index) {
    const { data } = this;
    const video = this.order[index];
    row.replaceChildren();
    const name = part(row, "div", "name", video.name);
    name.title = video.name;
    const facts = part(row, "div", "facts");
    part(facts, "span", "", clock(video.length, 0));
    part(facts, "span", "", plural(video.shown, "proposal"));
    if (!data.hasTruth || !video.annotated) return;
    part(facts, "span", video.found === video.instances ? "good" : "", `${video.found}/${video.instances} found`);
    const meter = part(row, "div", "meter");
    part(meter, "div", "").style.width = `${video.instances ? (100 * video.found) / video.instances : 100}%`;
  }

  /** Show another video. */
  open(video) {
    this.video = video;
    this.selected = -1;
    const { source } = video;
    let address = null;
    if (source && source.embedded) {
      const bytes = column(Uint8Array, this.get(`video-${video.index}`).textContent);
      address = URL.createObjectURL(new Blob([bytes], { type: source.type || "" }));
    } else if (source) address = source.link;
    this.sayNoVideo(!this.data.hasFiles ? "none" : !source ? "missing" : null);
    this.player.open(address, video.length, !!(source && source.embedded));
    document.body.classList.remove("list-open");
    this.get("open-list").setAttribute("aria-expanded", "false");
    this.showVideo();
    this.list.choose(this.order.indexOf(video));
    this.get("rows-list").scrollTop = 0;
  }

  /** Say why there is no picture: none, missing or failed; null where there is one. */
  sayNoVideo(reason) {
    const file = this.video.source ? printable(this.video.source.name) : "";
    const texts = {
      none: "This page was made without videos. The timeline plays all the same.",
      missing: "The folder of videos had no file of this one. The timeline plays all the same.",
      failed: `${file} cannot be played: it is no longer where it was beside this page, or this browser does not know its format.`,
    };
    this.get("no-video").hidden = !reason;
    this.get("video").hidden = !!reason;
    this.get("no-video-text").textContent = texts[reason] || "";
  }

  /** Show the chosen video as filtered. */
  showVideo() {
    const { data, video, get } = this;
    const { shown } = video;
    this.overlaps = data.hasTruth ? data.overlaps(video, shown, this.sameClass) : null;
    this.hits = new Uint8Array(shown);
    if (this.overlaps) this.overlaps.best.forEach((value, rank) => (this.hits[rank] = value >= this.tiou ? 1 : 0));
    if (this.selected >= shown) this.selected = -1;
    this.fillTable();
    this.timeline.selected = this.selected;
    this.timeline.show(video, this.player.length, shown, this.hits, this.byRank);
    get("shown-count").textContent = shown === video.count ? plural(shown, "proposal") : `${number(shown)} of ${plural(video.count, "proposal")}`;
    get("found-count").textContent = video.annotated ? `${video.found} of ${plural(video.instances, "true action")} found` : "not in the ground truth";
    get("scale-low").textContent = shown ? scoreText(data.score[video.first + shown - 1]) : "";
    get("scale-high").textContent = shown ? scoreText(data.score[video.first]) : "";
    this.timeChanged();
  }

  fillTable() {
    const { data, video } = this;
    this.ranks = sortedRanks(data, video, video.shown, this.overlaps, this.tableSort);
    this.get("proposals").setAttribute("aria-rowcount", this.ranks.length + 1);
    for (const head of this.get("columns").children) {
      const sorted = head.dataset.key === this.tableSort.key;
      head.setAttribute("aria-sort", sorted ? (this.tableSort.down ? "descending" : "ascending") : "none");
    }
    this.table.show(this.ranks.length, this.ranks.indexOf(this.selected));
  }

  sortTable(key) {
    const down = this.tableSort.key === key ? !this.tableSort.down : ["length", "score", "tiou"].includes(key);
    this.tableSort = { key, down };
    this.fillTable();
  }

  fillProposal(row, index) {
    const { data, video } = this;
    const rank = this.ranks[index];
    const i = video.first + rank;
    row.replaceChildren();
    const add = (key, text) => {
      const cell = part(row, "div", `cell ${key}`, text);
      cell.setAttribute("role", "gridcell");
      return cell;
    };
    add("rank", String(rank + 1));
    add("start", clock(data.start[i]));
    add("end", clock(data.end[i]));
    add("length", digits(data.end[i] - data.start[i], 2));
    add("score", scoreText(data.score[i]));
    if (data.label) {
      const cell = add("label", "");
      part(cell, "i", "swatch").style.background = data.colour(data.label[i]);
      part(cell, "span", "", data.labels[data.label[i]]).title = data.labels[data.label[i]];
    }
    if (!data.hasTruth) return;
    const cell = add("tiou", video.annotated ? digits(this.overlaps.best[rank], 2) : "");
    if (video.annotated) part(cell, "i", this.hits[rank] ? "mark hit" : "mark miss").title = this.hits[rank] ? "hit" : "miss";
  }

  /** Choose a proposal by its rank, or none (-1), and say so. */
  select(rank) {
    this.selected = rank;
    this.timeline.selected = rank;
    this.table.choose(this.ranks.indexOf(rank));
    this.timeline.draw();
    if (rank < 0) return;
    this.timeline.reveal(rank);
    this.get("announce").textContent = this.describe(rank).join(", ");
  }

  /** A proposal in words. */
  describe(rank) {
    const { data, video } = this;
    const i = video.first + rank;
    const lines = [`Proposal ${rank + 1} of ${video.count}`, `${clock(data.start[i])} to ${clock(data.end[i])} (${digits(data.end[i] - data.start[i], 2)} s)`];
    lines.push(`confidence ${scoreText(data.score[i])}`);
    if (data.label) lines.push(data.labels[data.label[i]]);
    if (this.overlaps && video.annotated) {
      lines.push(this.overlaps.instance[rank] < 0 ? "overlaps no true action" : `tIoU ${digits(this.overlaps.best[rank], 2)}, ${this.hits[rank] ? "hit" : "miss"}`);
    }
    return lines;
  }

  /** A true action in words. */
  describeTrue(g) {
    const { data, video } = this;
    const lines = [data.labels[data.trueLabel[g]], `${clock(data.trueStart[g])} to ${clock(data.trueEnd[g])} (${digits(data.trueEnd[g] - data.trueStart[g], 2)} s)`];
    const rank = data.firstRank[g];
    lines.push(rank < video.shown ? `found by proposal ${rank + 1}` : "missed by the proposals shown");
    return lines;
  }

  /** Choose a proposal and play it. */
  play(rank) {
    this.select(rank);
    const i = this.video.first + rank;
    this.player.playInterval(this.data.start[i], this.data.end[i]);
  }

  choose(found) {
    if (found.rank !== undefined) this.play(found.rank);
    else this.player.playInterval(this.data.trueStart[found.instance], this.data.trueEnd[found.instance]);
  }

  /** The next (1) or previous (-1) proposal of the table. */
  step(by) {
    if (!this.ranks.length) return;
    const place = this.ranks.indexOf(this.selected);
    const next = place < 0 ? (by > 0 ? 0 : this.ranks.length - 1) : Math.min(Math.max(place + by, 0), this.ranks.length - 1);
    const rank = this.ranks[next];
    if (this.player.playing) this.play(rank);
    else {
      this.select(rank);
      const i = this.video.first + rank;
      this.player.seek(this.data.start[i], true);
      this.player.interval = { start: this.data.start[i], end: this.data.end[i] };
    }
  }

  /** The next (1) or previous (-1) video of the list. */
  stepVideo(by) {
    const place = this.order.indexOf(this.video);
    const next = this.order[Math.min(Math.max(place + by, 0), this.order.length - 1)];
    if (next && next !== this.video) this.open(next);
  }

  hover(found, x, y) {
    const tip = this.get("tip");
    tip.classList.toggle("on", !!found);
    if (!found) return;
    tip.replaceChildren();
    const lines = found.rank !== undefined ? this.describe(found.rank) : this.describeTrue(found.instance);
    lines.forEach((line, k) => part(tip, "div", k ? "" : "first", line));
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(Math.min(x + 14, window.innerWidth - width - 8), 8)}px`;
    tip.style.top = `${y + 18 + height > window.innerHeight ? y - height - 12 : y + 18}px`;
  }

  /** After a change of time, playing or not; runs at every frame. */
  timeChanged() {
    if (!this.video) return;
    const { get, player, timeline, data, video } = this;
    const time = player.time;
    if (player.length !== timeline.length) this.timeline.show(video, player.length, video.shown, this.hits, this.byRank);
    timeline.position = time;
    if (player.playing) timeline.follow(time);
    timeline.placeMarks();
    get("clock").textContent = `${clock(time)} / ${clock(player.length)}`;
    if (get("play").getAttribute("aria-label") !== (player.playing ? "Pause" : "Play")) {
      get("play").setAttribute("aria-label", player.playing ? "Pause" : "Play");
      setIcon(get("play"), player.playing ? "pause" : "play");
    }
    const stage = get("stage");
    stage.setAttribute("aria-valuemin", "0");
    stage.setAttribute("aria-valuemax", digits(player.length, 2));
    stage.setAttribute("aria-valuenow", digits(time, 2));
    stage.setAttribute("aria-valuetext", `${clock(time)} of ${clock(player.length)}`);
    let action = "";
    for (let g = video.firstTrue; g < video.firstTrue + video.instances; g++) {
      if (data.trueStart[g] <= time && time < data.trueEnd[g]) action = data.labels[data.trueLabel[g]];
    }
    get("badge-action").textContent = action;
    get("badge-action").hidden = !action;
    let best = 0;
    while (best < video.shown && !(data.start[video.first + best] <= time && time < data.end[video.first + best])) best++;
    const badge = get("badge-proposal");
    badge.hidden = best >= video.shown;
    if (!badge.hidden) badge.textContent = `#${best + 1}  ${scoreText(data.score[video.first + best])}`;
  }

  windowMoved() {
    this.get("zoom-out").disabled = this.get("zoom-fit").disabled = !this.timeline.zoomed;
  }

  applyTheme(theme = null) {
    const dark = theme === null ? window.matchMedia("(prefers-color-scheme: dark)").matches : theme === "dark";
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    this.get("theme").setAttribute("aria-pressed", dark);
    setIcon(this.get("theme"), dark ? "sun" : "moon");
    this.timeline.recolour();
    const canvas = this.get("scale");
    const context = prepared(canvas, 84, 8);
    this.timeline.colours.scale.forEach((colour, k, all) => {
      context.fillStyle = colour;
      context.fillRect((84 * k) / all.length, 0, 84 / all.length + 1, 8);
    });
  }
}

window.app = new App(new Data(JSON.parse(document.getElementById("data").textContent)));
