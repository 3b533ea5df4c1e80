// Lists of any length: only the rows in sight are elements.

class VirtualList {
  #elements = [];
  #pending = false;

  /**
   * box: the element that scrolls; height: of a row in pixels; role: of a row, with ids `prefix` + index.
   * fill(element, index): writes a row; chosen(index, event): it was clicked.
   */
  constructor(box, { height, role, prefix, fill, chosen }) {
    Object.assign(this, { box, height, role, prefix, fill });
    this.count = 0;
    this.current = -1;
    this.space = document.createElement("div");
    this.space.className = "space";
    this.space.setAttribute("role", "presentation");
    box.append(this.space);
    box.addEventListener("scroll", () => this.draw(), { passive: true });
    new ResizeObserver(() => this.draw()).observe(box);
    box.addEventListener("click", (event) => {
      const row = event.target.closest("[data-index]");
      if (row) chosen(Number(row.dataset.index), event);
    });
  }

  /** Show `count` rows, of which `current` is chosen (-1: none). */
  show(count, current) {
    this.count = count;
    this.current = current;
    this.space.style.height = `${count * this.height}px`;
    this.draw();
  }

  /** Choose a row and scroll it into sight. */
  choose(index) {
    this.current = index;
    if (index >= 0) {
      const top = index * this.height;
      if (top < this.box.scrollTop) this.box.scrollTop = top;
      else if (top + this.height > this.box.scrollTop + this.box.clientHeight) {
        this.box.scrollTop = top + this.height - this.box.clientHeight;
      }
    }
    this.draw();
  }

  draw() {
    if (this.#pending) return;
    this.#pending = true;
    requestAnimationFrame(() => {
      this.#pending = false;
      this.#fillRows();
    });
  }

  #fillRows() {
    const first = Math.max(Math.floor(this.box.scrollTop / this.height) - 4, 0);
    const last = Math.min(Math.ceil((this.box.scrollTop + this.box.clientHeight) / this.height) + 4, this.count);
    const wanted = Math.max(last - first, 0);
    while (this.#elements.length < wanted) {
      const element = document.createElement("div");
      element.className = "row";
      element.setAttribute("role", this.role);
      this.#elements.push(element);
      this.space.append(element);
    }
    while (this.#elements.length > wanted) this.#elements.pop().remove();
    this.#elements.forEach((element, k) => {
      const index = first + k;
      element.dataset.index = index;
      element.id = this.prefix + index;
      element.style.top = `${index * this.height}px`;
      element.setAttribute("aria-selected", index === this.current);
      if (this.role === "option") {
        element.setAttribute("aria-posinset", index + 1);
        element.setAttribute("aria-setsize", this.count);
      } else element.setAttribute("aria-rowindex", index + 2);
      this.fill(element, index);
    });
    const focused = this.box.closest("[tabindex]");
    if (this.current >= first && this.current < last) focused.setAttribute("aria-activedescendant", this.prefix + this.current);
    else focused.removeAttribute("aria-activedescendant");
  }
}

/** The row that a key leads to from `index` in a list of `count`, or null for other keys. */
function rowAfter(key, index, count, page) {
  const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
  if (!(key in moves) || !count) return null;
  return Math.min(Math.max((index < 0 && moves[key] < 0 ? 0 : index) + moves[key], 0), count - 1);
}

/** A child with a class and text; the text is never markup. */
function part(parent, tag, name, text = "") {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text) element.textContent = text;
  parent.append(element);
  return element;
}

/** An icon of the page. */
function setIcon(button, name) {
  button.querySelector("use").setAttribute("href", `#i-${name}`);
}

/** Fill a select with [value, text] pairs. */
function setOptions(select, pairs, value) {
  select.replaceChildren(...pairs.map(([key, text]) => Object.assign(document.createElement("option"), { value: key, textContent: text })));
  select.value = value;
}

/** The columns of the table of proposals: key, heading, title, and whether it needs truth or labels. */
const COLUMNS = [
  { key: "rank", heading: "#", title: "Rank" },
  { key: "start", heading: "Start", title: "Start" },
  { key: "end", heading: "End", title: "End" },
  { key: "length", heading: "Length", title: "Length in seconds" },
  { key: "score", heading: "Confidence", title: "Confidence" },
  { key: "label", heading: "Class", title: "Class", needs: "label" },
  { key: "tiou", heading: "tIoU", title: "Largest tIoU with a true action; a dot marks a hit", needs: "hasTruth" },
];

/** Order of the first `shown` ranks by a column of the table. */
function sortedRanks(data, video, shown, overlaps, { key, down }) {
  const at = (array) => (rank) => array[video.first + rank];
  const values = {
    rank: (rank) => rank,
    start: at(data.start),
    end: at(data.end),
    length: (rank) => data.end[video.first + rank] - data.start[video.first + rank],
    score: at(data.score),
    label: data.label ? at(data.label) : null,
    tiou: overlaps ? (rank) => overlaps.best[rank] : null,
  };
  const ranks = Array.from({ length: shown }, (_, rank) => rank);
  if (key === "rank") return down ? ranks.reverse() : ranks;
  const value = Float64Array.from(ranks, values[key]);
  const sign = down ? -1 : 1;
  return ranks.sort((a, b) => sign * (value[a] - value[b]) || a - b);
}
