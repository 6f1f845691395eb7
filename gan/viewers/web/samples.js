// The samples of a run: two kinds of picture under one slider, a strip of all moments, arrow keys.

const CAPTIONS = {
  input: "input", fake: "translated", target: "target",
  input_A: "input A", fake_B: "translated to B", rec_A: "reconstructed A",
  input_B: "input B", fake_A: "translated to A", rec_B: "reconstructed B",
};
const PAIRS = [
  ["input", "fake"], ["target", "fake"], ["input", "target"],
  ["input_A", "fake_B"], ["input_B", "fake_A"], ["input_A", "rec_A"], ["input_B", "rec_B"],
];

const caption = (kind) => CAPTIONS[kind] || kind;

class Samples {
  /** options: crop_size tells how many pictures stand side by side; address: record, file -> URL of a picture. */
  constructor(parent, options, address) {
    this.cell = Number(options.crop_size) || 0;
    this.address = address;
    this.moments = [];
    this.selected = this.drawn = -1;
    this.split = 50;
    this.choice = null;
    this.section = parent;
    this.empty = element("p", "hint", "The first samples appear here once they are drawn.");
    this.views = element("div", "views");
    this.views.setAttribute("role", "group");
    this.views.setAttribute("aria-label", "What to show");
    this.stage = element("div", "stage");
    this.stage.hidden = true;
    this.after = element("img");
    this.before = element("img", "before");
    this.handle = element("input", "split");
    Object.assign(this.handle, { type: "range", min: 0, max: 100, step: 0.1, value: 50 });
    this.handle.setAttribute("aria-label", "Slide between the two pictures");
    this.left = element("span", "tag left");
    this.right = element("span", "tag right");
    this.stage.append(this.after, this.before, this.left, this.right, this.handle);
    this.strip = element("div", "strip");
    this.strip.setAttribute("aria-label", "All samples, oldest first");
    this.bar = this.makeBar();
    const frame = element("div", "scroll");  // a phone shows large pictures and scrolls
    frame.append(this.stage);
    parent.append(this.empty, this.views, frame, this.bar, this.strip);
    this.handle.addEventListener("input", () => { this.split = Number(this.handle.value); this.slide(); });
    this.handle.addEventListener("pointerup", () => this.handle.blur());  // arrow keys mean epochs again
    this.after.addEventListener("load", () => this.slide());
    document.addEventListener("keydown", (event) => this.key(event));
  }

  makeBar() {
    const bar = element("div", "scrub");
    bar.hidden = true;
    const button = (text, label, act) => {
      const made = element("button", "round", text);
      made.setAttribute("aria-label", label);
      made.title = label;
      made.addEventListener("click", act);
      return made;
    };
    this.slider = element("input");
    Object.assign(this.slider, { type: "range", min: 0, max: 0, value: 0 });
    this.slider.setAttribute("aria-label", "Moment of the training");
    this.slider.addEventListener("input", () => this.select(Number(this.slider.value)));
    this.where = element("output");
    this.playing = button("▶", "Play through the training", () => this.play());
    bar.append(
      this.playing,
      button("‹", "Earlier (left arrow key)", () => this.select(this.selected - 1)),
      this.slider,
      button("›", "Later (right arrow key)", () => this.select(this.selected + 1)),
      this.where,
    );
    return bar;
  }

  /** Append one moment; the view follows if it stood at the newest one. */
  add(record) {
    const newest = this.moments[this.moments.length - 1];
    if (newest && newest.step === record.step) return;  // drawn twice, as at the end of an epoch
    const follow = this.selected === this.moments.length - 1;
    const index = this.moments.length;
    this.moments.push(record);
    if (index === 0) this.makeViews(Object.keys(record.pictures));
    const thumb = element("button", "thumb"), picture = element("img");
    picture.loading = "lazy";
    picture.decoding = "async";
    picture.alt = `samples of epoch ${record.epoch}, step ${record.step}`;
    const kinds = Object.keys(record.pictures);
    const shown = kinds.find((kind) => kind.startsWith("fake")) || kinds[0];
    picture.src = this.address(record, record.pictures[shown]);
    const frame = element("div");  // shows the first picture of the sheet
    frame.append(picture);
    thumb.append(frame, element("span", "", `epoch ${record.epoch}`));
    thumb.addEventListener("click", () => this.select(index));
    this.strip.append(thumb);
    this.slider.max = index;
    this.empty.hidden = true;
    this.stage.hidden = this.bar.hidden = false;
    if (follow) this.later(index); else this.tell();
  }

  /** While held, news are noted but nothing is shown: a thousand moments that arrive at once load one picture. */
  hold(held) {
    this.held = held;
    if (!held && this.selected !== this.drawn) this.later(this.selected);
  }

  /** Select at the next frame. */
  later(index) {
    this.selected = index;
    if (this.waiting || this.held) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.select(this.selected); });
  }

  makeViews(kinds) {
    const pairs = PAIRS.filter(([a, b]) => kinds.includes(a) && kinds.includes(b));
    const plain = kinds.filter((kind) => kind !== "grid");
    if (!pairs.length && plain.length > 1) pairs.push([plain[0], plain[1]]);
    const views = pairs.map(([a, b]) => ({ label: `${caption(a)} | ${caption(b)}`, pair: [a, b] }));
    if (kinds.includes("grid")) views.push({ label: "everything", pair: ["grid"] });
    if (!views.length) views.push({ label: caption(kinds[0]), pair: [kinds[0]] });
    for (const view of views) {
      view.button = element("button", "chip", view.label);
      view.button.addEventListener("click", () => this.choose(view));
      this.views.append(view.button);
    }
    this.allViews = views;
    this.choose(views[0]);
  }

  choose(view) {
    this.choice = view;
    for (const other of this.allViews) other.button.setAttribute("aria-pressed", String(other === view));
    this.stage.classList.toggle("single", view.pair.length === 1);
    if (this.selected >= 0) this.show();
  }

  select(index) {
    if (!this.moments.length) return;
    this.selected = Math.max(0, Math.min(this.moments.length - 1, index));
    this.slider.value = this.selected;
    const now = this.strip.children[this.selected];
    if (this.current) this.current.removeAttribute("aria-current");
    this.current = now;
    now.setAttribute("aria-current", "true");
    const edge = now.offsetLeft - this.strip.offsetLeft;
    this.strip.scrollLeft = edge - this.strip.clientWidth / 2 + now.offsetWidth / 2;
    this.show();
  }

  show() {
    const record = this.moments[this.selected], [a, b = a] = this.choice.pair;
    this.drawn = this.selected;
    const set = (image, kind) => {
      image.alt = `${caption(kind)}, epoch ${record.epoch}, step ${record.step}`;
      const address = kind in record.pictures ? this.address(record, record.pictures[kind]) : "";
      if (image.getAttribute("src") !== address) image.src = address;
    };
    set(this.before, a);
    set(this.after, b);
    this.left.textContent = caption(a);
    this.right.textContent = caption(b);
    this.tell();
    this.slide();
  }

  tell() {
    const record = this.moments[this.selected];
    if (!record) return;
    this.where.textContent =
      `epoch ${record.epoch} · step ${record.step.toLocaleString("en")} · ${this.selected + 1} of ${this.moments.length}`;
  }

  /** Cut every picture of the sheet at the same place: the mask repeats once a column. */
  slide() {
    const wide = this.after.naturalWidth, columns = this.cell && wide % this.cell === 0 ? wide / this.cell : 1;
    this.stage.style.setProperty("--split", this.split + "%");
    this.section.style.setProperty("--columns", Math.max(1, this.choice.pair.length > 1 ? columns : this.columns || 1));
    if (this.choice.pair.length > 1) this.columns = columns;
    if (wide) {
      this.stage.style.setProperty("--wide", wide);
      this.stage.style.setProperty("--ratio", wide / this.after.naturalHeight);
    }
    this.stage.classList.toggle("pixels", wide > 0 && this.stage.clientWidth / wide >= 2);
  }

  play() {
    if (this.timer) {
      clearInterval(this.timer);
      this.timer = null;
    } else {
      if (this.selected >= this.moments.length - 1) this.select(0);
      const step = Math.max(1, Math.round(this.moments.length / 200));
      this.timer = setInterval(() => {
        if (this.selected >= this.moments.length - 1) this.play();
        else if (this.after.complete) this.select(this.selected + step);
      }, 160);
    }
    this.playing.textContent = this.timer ? "❚❚" : "▶";
  }

  key(event) {
    if (!this.moments.length || event.altKey || event.ctrlKey || event.metaKey) return;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    if (window.activeSamples && window.activeSamples !== this) return;
    const to = {
      ArrowLeft: this.selected - 1, ArrowRight: this.selected + 1, Home: 0, End: this.moments.length - 1,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.select(to);
  }
}
