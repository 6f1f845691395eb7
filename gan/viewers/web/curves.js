// Curves on a canvas: hover values, log scale, smoothing, a legend that hides and shows. No library.

/** One curve of at most LIMIT points: when it is full, neighbours merge into their mean, lowest and highest. */
class Curve {
  static LIMIT = 2000;

  constructor(name) {
    this.name = name;
    this.shown = true;
    this.x = []; this.y = []; this.low = []; this.high = []; this.epoch = [];
    this.span = 1;   // logged values a full point stands for
    this.count = 1;  // logged values the newest point stands for so far
  }

  add(x, y, epoch) {
    const last = this.x.length - 1;
    if (last >= 0 && this.count < this.span) {
      this.y[last] = (this.y[last] * this.count + y) / (this.count + 1);
      this.low[last] = Math.min(this.low[last], y);
      this.high[last] = Math.max(this.high[last], y);
      this.x[last] = x;
      this.epoch[last] = epoch;
      this.count += 1;
    } else {
      this.x.push(x); this.y.push(y); this.low.push(y); this.high.push(y); this.epoch.push(epoch);
      this.count = 1;
    }
    if (this.x.length > Curve.LIMIT) this.halve();
  }

  halve() {
    const n = this.x.length, half = Math.ceil(n / 2);
    for (let i = 0; i < half; i++) {
      const a = 2 * i, b = Math.min(a + 1, n - 1);
      const weight = b === a ? 0 : (b === n - 1 ? this.count : this.span);
      this.y[i] = (this.y[a] * this.span + this.y[b] * weight) / (this.span + weight);
      this.low[i] = Math.min(this.low[a], this.low[b]);
      this.high[i] = Math.max(this.high[a], this.high[b]);
      this.x[i] = this.x[b];
      this.epoch[i] = this.epoch[b];
    }
    this.count = n % 2 ? this.count : this.span + this.count;
    for (const list of [this.x, this.y, this.low, this.high, this.epoch]) list.length = half;
    this.span *= 2;
  }

  /** Index of the point nearest to x. */
  nearest(x) {
    let low = 0, high = this.x.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.x[middle] < x) low = middle + 1; else high = middle;
    }
    return low > 0 && x - this.x[low - 1] < this.x[low] - x ? low - 1 : low;
  }

  /** Exponential mean of the values, started at the first one. */
  smoothed(strength) {
    let mean = this.y[0];
    return this.y.map((y) => (mean = strength * mean + (1 - strength) * y));
  }
}

function shortNumber(value) {
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return String(Number(value.toPrecision(3)).toExponential()).replace("e+", "e");
  return String(Number(value.toPrecision(size >= 1000 ? 5 : 4)));
}

function niceTicks(low, high, wanted) {
  const rough = (high - low) / Math.max(1, wanted), power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const ticks = [];
  for (let t = Math.ceil(low / step - 1e-9) * step; t <= high + step * 1e-9; t += step) {
    ticks.push(Math.abs(t) < step * 1e-9 ? 0 : t);
  }
  return ticks;
}

function logTicks(low, high) {
  const ticks = [], from = Math.floor(Math.log10(low)), to = Math.ceil(Math.log10(high));
  const multiples = to - from > 6 ? [1] : to - from > 2 ? [1, 3] : [1, 2, 5];
  const stride = Math.ceil((to - from) / 12);
  for (let e = from; e <= to; e += stride) for (const m of multiples) ticks.push(m * 10 ** e);
  return ticks.filter((t) => t >= low * 0.999 && t <= high * 1.001);
}

/** One card with a title, a legend and the curves; charts of one board share hover, scale and smoothing. */
class Chart {
  constructor(board, title) {
    this.board = board;
    this.curves = new Map();
    this.card = element("figure", "card chart");
    this.card.append(element("figcaption", "", title));
    this.legend = element("div", "legend");
    this.plot = element("div", "plot");
    this.canvas = element("canvas");
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", title);
    this.tip = element("div", "tip");
    this.tip.hidden = true;
    this.plot.append(this.canvas, this.tip);
    this.card.append(this.legend, this.plot);
    const hover = (event) => board.hover(this.stepAt(event.clientX), this);
    this.plot.addEventListener("pointermove", hover);
    this.plot.addEventListener("pointerdown", hover);
    this.plot.addEventListener("pointerleave", () => board.hover(null, null));
    new ResizeObserver(() => this.redraw()).observe(this.plot);
  }

  add(name, x, y, epoch) {
    let curve = this.curves.get(name);
    if (!curve) {
      curve = new Curve(name);
      curve.button = element("button", "key");
      curve.swatch = element("i");
      curve.label = element("span", "", name);
      curve.value = element("b");
      curve.button.append(curve.swatch, curve.label, curve.value);
      curve.button.title = "Hide or show " + name;
      curve.color = `--c${this.curves.size % 8}`;
      curve.swatch.style.background = `var(${curve.color})`;
      curve.button.addEventListener("click", () => {
        curve.shown = !curve.shown;
        curve.button.classList.toggle("off", !curve.shown);
        this.redraw();
      });
      this.curves.set(name, curve);
      this.legend.append(curve.button);
    }
    if (Number.isFinite(y)) curve.add(x, y, epoch);
    curve.last = y;
    this.redraw();
  }

  redraw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.draw(); });
  }

  visible() { return [...this.curves.values()].filter((curve) => curve.shown && curve.x.length); }

  stepAt(clientX) {
    const box = this.canvas.getBoundingClientRect(), { left, width, x0, x1 } = this.frame || {};
    return x1 === undefined ? null : x0 + ((clientX - box.left - left) / width) * (x1 - x0);
  }

  draw() {
    const style = getComputedStyle(this.plot), ratio = window.devicePixelRatio || 1;
    const full = this.plot.clientWidth, tall = this.plot.clientHeight;
    if (!full) return;
    for (const curve of this.curves.values()) curve.value.textContent = shortNumber(curve.last);
    if (this.canvas.width !== Math.round(full * ratio) || this.canvas.height !== Math.round(tall * ratio)) {
      this.canvas.width = Math.round(full * ratio);
      this.canvas.height = Math.round(tall * ratio);
    }
    const pen = this.canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, full, tall);
    pen.font = "11px " + style.fontFamily;
    const curves = this.visible(), range = this.range(curves);
    if (!range) return;
    const { x0, x1, y0, y1, log } = range;
    const ticks = log ? logTicks(y0, y1) : niceTicks(y0, y1, Math.max(2, tall / 45));
    const names = ticks.map(shortNumber);
    const left = Math.max(28, ...names.map((name) => pen.measureText(name).width)) + 8;
    const width = full - left - 10, top = 8, height = tall - top - 20;
    const scale = log ? Math.log : (v) => v;
    const px = (x) => left + ((x - x0) / (x1 - x0)) * width;
    const py = (y) => top + height * (1 - (scale(y) - scale(y0)) / (scale(y1) - scale(y0)));
    this.frame = { left, width, x0, x1 };

    pen.fillStyle = style.getPropertyValue("--dim");
    pen.strokeStyle = style.getPropertyValue("--line");
    pen.lineWidth = 1;
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    ticks.forEach((tick, i) => {
      const y = Math.round(py(tick)) + 0.5;
      pen.beginPath(); pen.moveTo(left, y); pen.lineTo(left + width, y); pen.stroke();
      pen.fillText(names[i], left - 6, y);
    });
    pen.textBaseline = "alphabetic";
    pen.textAlign = "center";
    for (const tick of niceTicks(x0, x1, width / 55)) {
      if (Number.isInteger(tick)) pen.fillText(tick.toLocaleString("en"), Math.min(px(tick), full - 16), tall - 4);
    }
    pen.save();
    pen.beginPath(); pen.rect(left, 0, width + 10, top + height + 2); pen.clip();
    for (const curve of curves) this.drawCurve(pen, curve, px, py, log, style.getPropertyValue(curve.color));
    pen.restore();
    this.drawHover(pen, curves, px, py, top, height, full, style, log);
  }

  range(curves) {
    if (!curves.length) return null;
    let x0 = Infinity, x1 = -Infinity, y0 = Infinity, y1 = -Infinity;
    const log = this.board.log && curves.some((curve) => curve.high.some((y) => y > 0));
    for (const curve of curves) {
      x0 = Math.min(x0, curve.x[0]);
      x1 = Math.max(x1, curve.x[curve.x.length - 1]);
      for (let i = 0; i < curve.y.length; i++) {
        if (!log || curve.low[i] > 0) y0 = Math.min(y0, curve.low[i]);
        if (!log || curve.high[i] > 0) { y1 = Math.max(y1, curve.high[i]); if (curve.low[i] <= 0 && log) y0 = Math.min(y0, curve.high[i]); }
      }
    }
    if (x1 === x0) { x0 -= 1; x1 += 1; }
    if (log) return { x0, x1, y0: y0 / 1.15, y1: y1 * 1.15, log };
    const margin = (y1 - y0) * 0.06 || Math.abs(y1) * 0.1 || 1;
    return { x0, x1, y0: y0 >= 0 && y0 - margin < 0 ? 0 : y0 - margin, y1: y1 + margin, log };
  }

  drawCurve(pen, curve, px, py, log, color) {
    const line = (values) => {
      pen.beginPath();
      let drawing = false;
      for (let i = 0; i < values.length; i++) {
        if (log && !(values[i] > 0)) { drawing = false; continue; }
        if (drawing) pen.lineTo(px(curve.x[i]), py(values[i])); else pen.moveTo(px(curve.x[i]), py(values[i]));
        drawing = true;
      }
      pen.stroke();
    };
    pen.strokeStyle = pen.fillStyle = color;
    pen.lineJoin = "round";
    if (curve.span > 1) {  // merged points: the band from the lowest to the highest value
      pen.globalAlpha = 0.15;
      pen.beginPath();
      const floor = (v, i) => (log && !(v > 0) ? curve.high[i] : v);
      curve.x.forEach((x, i) => pen.lineTo(px(x), py(curve.high[i])));
      for (let i = curve.x.length - 1; i >= 0; i--) pen.lineTo(px(curve.x[i]), py(floor(curve.low[i], i)));
      pen.fill();
    }
    const strength = this.board.smooth;
    pen.globalAlpha = strength ? 0.22 : 1;
    pen.lineWidth = strength ? 1 : 1.6;
    line(curve.y);
    pen.globalAlpha = 1;
    if (strength) { pen.lineWidth = 1.8; line(curve.smoothed(strength)); }
    if (curve.x.length === 1) {
      pen.beginPath(); pen.arc(px(curve.x[0]), py(curve.y[0]), 3, 0, 7); pen.fill();
    }
  }

  drawHover(pen, curves, px, py, top, height, full, style, log) {
    const at = this.board.at;
    this.tip.hidden = at === null || this.board.source !== this;
    if (at === null || !curves.length) return;
    const points = curves.map((curve) => [curve, curve.nearest(at)]);
    const step = Math.max(...points.map(([curve, i]) => curve.x[i]));
    const x = px(step);
    pen.strokeStyle = style.getPropertyValue("--dim");
    pen.lineWidth = 1;
    pen.beginPath(); pen.moveTo(x, top); pen.lineTo(x, top + height); pen.stroke();
    for (const [curve, i] of points) {
      if (log && !(curve.y[i] > 0)) continue;
      pen.fillStyle = style.getPropertyValue(curve.color);
      pen.beginPath(); pen.arc(px(curve.x[i]), py(curve.y[i]), 3, 0, 7); pen.fill();
    }
    if (this.tip.hidden) return;
    const [first, index] = points[0];
    this.tip.replaceChildren(element("p", "", `epoch ${first.epoch[index]} · step ${step.toLocaleString("en")}`));
    for (const [curve, i] of points) {
      const row = element("div"), swatch = element("i");
      swatch.style.background = `var(${curve.color})`;
      row.append(swatch, element("span", "", curve.name), element("b", "", shortNumber(curve.y[i])));
      this.tip.append(row);
    }
    const wide = this.tip.offsetWidth, gap = 12;
    this.tip.style.left = (x + gap + wide <= full ? x + gap : Math.max(0, x - gap - wide)) + "px";
  }
}

/** The charts of one run, with their common switches. */
class Board {
  constructor(parent) {
    this.charts = new Map();
    this.log = false;
    this.smooth = 0;
    this.at = null;
    this.source = null;
    const tools = element("div", "tools");
    const scale = element("label", "switch"), box = element("input");
    box.type = "checkbox";
    box.addEventListener("change", () => { this.log = box.checked; this.redraw(); });
    scale.append(box, element("span", "", "log scale"));
    const soft = element("label", "switch"), range = element("input");
    Object.assign(range, { type: "range", min: 0, max: 0.98, step: 0.01, value: 0 });
    range.addEventListener("input", () => { this.smooth = Number(range.value); this.redraw(); });
    soft.append(element("span", "", "smooth"), range);
    for (const control of [box, range]) control.addEventListener("pointerup", () => setTimeout(() => control.blur()));
    tools.append(scale, soft);
    this.grid = element("div", "charts");
    parent.append(tools, this.grid);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
  }

  /** Add a value to the curve `name` of the chart `title`; charts stand in the order of `rank`, then of arrival. */
  add(rank, title, name, x, y, epoch) {
    if (!this.charts.has(title)) {
      const chart = new Chart(this, title);
      chart.card.style.order = rank;
      this.charts.set(title, chart);
      this.grid.append(chart.card);
    }
    this.charts.get(title).add(name, x, y, epoch);
  }

  hover(at, source) {
    this.at = at;
    this.source = source;
    this.redraw();
  }

  redraw() { for (const chart of this.charts.values()) chart.redraw(); }
}
