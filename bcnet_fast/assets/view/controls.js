// Buttons, sliders and keys.

function listenToControls(app) {
  const { get, player, timeline } = app;
  const on = (id, event, action) => get(id).addEventListener(event, action);
  const refilter = () => {
    app.readControls();
    app.refilter();
  };
  const rematch = () => {
    app.readControls();
    app.rematch();
  };
  on("threshold", "input", refilter);
  on("best", "change", refilter);
  on("rows", "change", refilter);
  on("tiou", "input", rematch);
  on("same-class", "change", rematch);
  on("search", "input", () => app.sortVideos());
  on("sort-videos", "change", () => app.sortVideos());
  on("play", "click", () => player.toggle());
  on("previous", "click", () => app.step(-1));
  on("next", "click", () => app.step(1));
  on("loop", "click", () => toggleLoop(app));
  on("sound", "click", () => toggleSound(app));
  on("speed", "change", () => (player.rate = Number(get("speed").value)));
  on("zoom-in", "click", () => timeline.zoom(0.5, focusTime(app)));
  on("zoom-out", "click", () => timeline.zoom(2, focusTime(app)));
  on("zoom-fit", "click", () => timeline.setWindow(0, timeline.length));
  on("theme", "click", () => toggleTheme(app));
  on("open-keys", "click", () => get("keys").showModal());
  on("open-list", "click", () => {
    const open = document.body.classList.toggle("list-open");
    get("open-list").setAttribute("aria-expanded", open);
    if (open) get("videos").focus();
  });
  on("copy", "click", () => copyTable(app));
  on("save", "click", () => save(app, [app.video], app.video.name));
  on("save-all", "click", () => save(app, app.data.videos, app.data.title));
  leaveAfterPointer();
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => app.applyTheme());
  app.windowMoved();
}

/** What was clicked gives the keys back to the page; what was reached by keyboard keeps them. */
function leaveAfterPointer() {
  document.addEventListener("click", (event) => {
    const control = event.target.closest("button, input[type=checkbox]");
    if (control && event.detail) control.blur();
  });
  for (const select of document.querySelectorAll("select")) {
    let pointed = false;
    select.addEventListener("pointerdown", () => (pointed = true));
    select.addEventListener("keydown", () => (pointed = false));
    select.addEventListener("change", () => pointed && select.blur());
  }
}

/** The time to zoom around: that of the playhead where it can be seen, else the middle. */
function focusTime({ timeline, player }) {
  const { time } = player;
  return time >= timeline.from && time <= timeline.to ? time : (timeline.from + timeline.to) / 2;
}

function toggleLoop(app) {
  app.player.loop = !app.player.loop;
  app.get("loop").setAttribute("aria-pressed", app.player.loop);
}

function toggleSound(app) {
  app.player.muted = !app.player.muted;
  app.get("sound").setAttribute("aria-pressed", app.player.muted);
  setIcon(app.get("sound"), app.player.muted ? "silent" : "sound");
}

function toggleTheme(app) {
  app.applyTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
}

/** What the table shows, as CSV in its order of ranks. */
function tableText(app, videos) {
  return csv(app.data, videos, (video) => video.shown, app.tiou, app.sameClass);
}

async function copyTable(app) {
  const text = tableText(app, [app.video]);
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Browsers that give pages in files no clipboard copy a selection.
    const area = part(document.body, "textarea", "hidden");
    area.value = text;
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  app.get("announce").textContent = "Copied";
  const button = app.get("copy");
  button.classList.add("done");
  setTimeout(() => button.classList.remove("done"), 1200);
}

function save(app, videos, name) {
  const address = URL.createObjectURL(new Blob([tableText(app, videos)], { type: "text/csv" }));
  const link = document.createElement("a");
  link.href = address;
  link.download = `${name.replace(/\.json(\.gz)?$/, "").replace(/[^\p{L}\p{N}._-]+/gu, "_").slice(0, 100) || "proposals"}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

function listenToKeys(app) {
  const { get, player, timeline } = app;
  const seek = (seconds) => player.seek(player.time + seconds);
  const actions = {
    " ": () => player.toggle(),
    ArrowLeft: (event) => seek(event.shiftKey ? -10 : -1),
    ArrowRight: (event) => seek(event.shiftKey ? 10 : 1),
    ",": () => seek(-0.1),
    ".": () => seek(0.1),
    n: () => app.step(1),
    p: () => app.step(-1),
    l: () => toggleLoop(app),
    m: () => toggleSound(app),
    t: () => toggleTheme(app),
    "[": () => app.stepVideo(-1),
    "]": () => app.stepVideo(1),
    "+": () => timeline.zoom(0.5, focusTime(app)),
    "=": () => timeline.zoom(0.5, focusTime(app)),
    "-": () => timeline.zoom(2, focusTime(app)),
    0: () => timeline.setWindow(0, timeline.length),
    "/": () => {
      document.body.classList.add("list-open");
      get("search").focus();
    },
    "?": () => get("keys").showModal(),
    Enter: () => app.selected >= 0 && app.play(app.selected),
    Escape: () => {
      document.body.classList.remove("list-open");
      app.select(-1);
      player.interval = null;
    },
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || get("keys").open) return;
    const { target } = event;
    if (target === get("search")) {
      if (event.key === "Enter" && app.order.length) app.open(app.order[0]);
      if (event.key === "ArrowDown") get("videos").focus();
      if (event.key === "Escape") target.blur();
      return;
    }
    // The keys of a control stay its own.
    if (target.matches("select") && event.key !== "Escape") return;
    if (target.matches("input[type=range]") && /^(Arrow|Page|Home|End)/.test(event.key)) return;
    if (target.matches("button, input[type=checkbox]") && [" ", "Enter"].includes(event.key)) return;
    if (moveInList(app, event)) return;
    const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action) return;
    event.preventDefault();
    action(event);
  });
}

/** Up, down and kin in the list of videos or the table; whether the key was one of theirs. */
function moveInList(app, event) {
  const inVideos = event.target === app.get("videos");
  const inTable = event.target === app.get("proposals");
  if (!inVideos && !inTable) return false;
  const list = inVideos ? app.list : app.table;
  const page = Math.max(Math.floor(list.box.clientHeight / list.height) - 1, 1);
  const next = rowAfter(event.key, list.current, list.count, page);
  if (next === null) return false;
  event.preventDefault();
  if (inVideos) app.open(app.order[next]);
  else app.select(app.ranks[next]);
  return true;
}
