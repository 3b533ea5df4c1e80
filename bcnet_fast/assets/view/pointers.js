// Mouse, touch and wheel on the timeline.

const STILL = 4; // pixels that a click may move

function listenToPointers(timeline) {
  const { stage, box } = timeline.elements;
  const pointers = new Map();
  let gesture = null;

  const place = (event) => {
    const frame = stage.getBoundingClientRect();
    return { x: event.clientX - frame.left, y: event.clientY - frame.top };
  };
  const onScrollbar = (event) => event.target === box && event.offsetX >= box.clientWidth;

  /** Seconds of a pixel in the window of time, and in the strip. */
  const perPixel = (seconds) => seconds / (timeline.width - timeline.left - RIGHT);

  function begin(point) {
    const { from, to } = timeline;
    if (pointers.size === 2) {
      const [a, b] = [...pointers.values()];
      return { kind: "pinch", distance: Math.max(Math.abs(a.x - b.x), 20), from, to, moved: true };
    }
    const kind = point.y >= OVERVIEW ? "pan" : "select";
    const time = timeline.stripTime(point.x);
    const inWindow = timeline.zoomed && time >= from && time <= to;
    return { kind: kind === "select" && inWindow ? "shift" : kind, point, time, from, to, moved: false };
  }

  stage.addEventListener("pointerdown", (event) => {
    if (event.button || !timeline.video || onScrollbar(event)) return;
    pointers.set(event.pointerId, place(event));
    gesture = begin(place(event));
    stage.setPointerCapture(event.pointerId);
    timeline.events.hover(null);
  });

  stage.addEventListener("pointermove", (event) => {
    const point = place(event);
    if (!pointers.has(event.pointerId)) {
      if (event.pointerType === "mouse" && timeline.video) hover(point, event);
      return;
    }
    pointers.set(event.pointerId, point);
    if (!gesture) return;
    if (gesture.kind === "pinch") {
      const [a, b] = [...pointers.values()];
      if (!b) return;
      const span = ((gesture.to - gesture.from) * gesture.distance) / Math.max(Math.abs(a.x - b.x), 20);
      const middle = (gesture.from + gesture.to) / 2;
      timeline.setWindow(middle - span / 2, middle + span / 2);
      return;
    }
    const moved = point.x - gesture.point.x;
    if (Math.abs(moved) > STILL) gesture.moved = true;
    if (!gesture.moved) return;
    if (gesture.kind === "select") {
      const time = timeline.stripTime(point.x);
      timeline.setWindow(Math.min(time, gesture.time), Math.max(time, gesture.time));
    } else {
      const seconds = gesture.kind === "shift" ? perPixel(timeline.length) : -perPixel(gesture.to - gesture.from);
      timeline.setWindow(gesture.from + moved * seconds, gesture.to + moved * seconds);
    }
  });

  const release = (event) => {
    pointers.delete(event.pointerId);
    const ended = gesture;
    gesture = pointers.size ? begin([...pointers.values()][0]) : null;
    if (gesture) gesture.moved = true;
    if (event.type === "pointercancel" || !ended || ended.moved) return;
    if (ended.kind === "select" || ended.kind === "shift") timeline.events.seek(ended.time);
    else click(ended.point);
  };
  stage.addEventListener("pointerup", release);
  stage.addEventListener("pointercancel", release);
  stage.addEventListener("pointerleave", () => timeline.events.hover(null));

  function click(point) {
    const found = timeline.at(point.x, point.y);
    if (found) timeline.events.choose(found);
    else timeline.events.seek(timeline.time(point.x));
  }

  function hover(point, event) {
    const found = timeline.at(point.x, point.y);
    stage.style.cursor = found ? "pointer" : point.y < OVERVIEW ? "col-resize" : "";
    timeline.events.hover(found, event.clientX, event.clientY);
  }

  stage.addEventListener("dblclick", (event) => {
    if (place(event).y < OVERVIEW) timeline.setWindow(0, timeline.length);
  });

  stage.addEventListener(
    "wheel",
    (event) => {
      if (!timeline.video) return;
      if (event.ctrlKey || event.metaKey) {
        event.preventDefault();
        timeline.zoom(Math.exp(Math.min(Math.max(event.deltaY, -100), 100) * 0.005), timeline.time(place(event).x));
      } else if (timeline.zoomed && (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY))) {
        event.preventDefault();
        const moved = (event.deltaX || event.deltaY) * perPixel(timeline.to - timeline.from);
        timeline.setWindow(timeline.from + moved, timeline.to + moved);
      }
    },
    { passive: false },
  );
}
