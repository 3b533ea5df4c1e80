// Plays a video, or the time of one where there is none, and intervals of it.

class Player {
  #video;
  #real = false; // whether the element has a video that plays
  #time = 0; // of the last frame, or of the start without a video
  #since = 0; // when that was, without a video
  #playing = false;
  #address = null; // of an embedded video
  #rate = 1;

  /** changed: called at every change of time or state; failed: with the reason why a video does not play. */
  constructor(video, changed, failed) {
    this.#video = video;
    this.changed = changed;
    this.length = 1;
    this.interval = null;
    this.loop = false;
    video.addEventListener("error", () => {
      if (!video.getAttribute("src")) return;
      this.#leave();
      failed();
    });
    video.addEventListener("loadedmetadata", () => {
      this.#real = true;
      if (video.duration > this.length) this.length = video.duration;
      if (this.#time) video.currentTime = this.#time;
      if (this.#playing) this.#start();
      changed();
    });
    for (const name of ["seeked", "play", "pause"]) video.addEventListener(name, () => changed());
    video.addEventListener("ended", () => this.#ended());
    video.addEventListener("click", () => this.toggle());
  }

  /** Take a video, or null, and the seconds to show. */
  open(address, length, owned = false) {
    this.pause();
    this.#leave();
    this.#time = 0;
    this.interval = null;
    this.length = length;
    if (address) {
      this.#address = owned ? address : null;
      this.#video.src = address;
      this.#video.playbackRate = this.#rate;
    }
    this.changed();
  }

  #leave() {
    this.#real = false;
    if (this.#video.getAttribute("src")) {
      this.#video.removeAttribute("src");
      this.#video.load();
    }
    if (this.#address) URL.revokeObjectURL(this.#address);
    this.#address = null;
  }

  get hasVideo() {
    return this.#real;
  }

  get playing() {
    return this.#playing;
  }

  get time() {
    if (this.#real) return this.#video.currentTime;
    const passed = this.#playing ? ((performance.now() - this.#since) / 1000) * this.#rate : 0;
    return Math.min(this.#time + passed, this.length);
  }

  seek(time, keepInterval = false) {
    if (!keepInterval) this.interval = null;
    this.#time = Math.min(Math.max(time, 0), this.length);
    this.#since = performance.now();
    if (this.#real) this.#video.currentTime = this.#time;
    this.changed();
  }

  set rate(rate) {
    this.#time = this.time;
    this.#since = performance.now();
    this.#rate = rate;
    this.#video.playbackRate = rate;
  }

  set muted(muted) {
    this.#video.muted = muted;
  }

  get muted() {
    return this.#video.muted;
  }

  play() {
    if (this.time >= this.length - 1e-3) this.seek(this.interval ? this.interval.start : 0, true);
    else if (this.interval && this.time >= this.interval.end) this.seek(this.interval.start, true);
    this.#playing = true;
    this.#start();
    this.changed();
    requestAnimationFrame(() => this.#step());
  }

  #start() {
    this.#since = performance.now();
    if (this.#real) this.#video.play().catch(() => this.pause());
  }

  pause() {
    if (!this.#playing) return;
    this.#time = this.time;
    this.#playing = false;
    if (this.#real) this.#video.pause();
    this.changed();
  }

  toggle() {
    if (this.#playing) this.pause();
    else this.play();
  }

  playInterval(start, end) {
    this.interval = { start, end };
    this.seek(start, true);
    this.play();
  }

  #step() {
    if (!this.#playing) return;
    const time = this.time;
    if (this.interval && time >= this.interval.end) this.#atEnd(this.interval.start, this.interval.end);
    else if (!this.#real && time >= this.length) this.#ended();
    if (this.#playing) {
      this.changed();
      requestAnimationFrame(() => this.#step());
    }
  }

  #ended() {
    this.#atEnd(this.interval ? this.interval.start : 0, this.length);
  }

  #atEnd(start, end) {
    if (this.loop) {
      this.seek(start, true);
      if (this.#real && this.#video.paused) this.#start();
    } else {
      this.pause();
      this.seek(end, true);
    }
  }
}
