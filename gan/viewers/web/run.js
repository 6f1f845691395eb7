// One run on a page: what it is, its numbers, samples, curves, events and options.

function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60), hours = Math.floor(minutes / 60);
  if (minutes < 60) return `${minutes} min`;
  return hours < 48 ? `${hours} h ${String(minutes % 60).padStart(2, "0")} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

function chartOf(loss) {
  if (/^D/.test(loss)) return "Discriminator losses";
  if (/^(cycle|idt|rec)|L1|L2/.test(loss)) return "Reconstruction losses";
  if (/^G/.test(loss)) return "Adversarial losses";
  return "Other losses";
}

class RunView {
  /** info: name, options, host, epochs; address: record, file -> URL of a picture. */
  constructor(parent, info, address) {
    this.info = info;
    this.tiles = new Map();
    this.numbers = element("section", "tiles");
    const samples = this.section("Samples"), curves = this.section("Curves");
    this.samples = new Samples(samples, info.options, address);
    const first = `The first values come at step ${info.options.print_freq}, or at the end of the first epoch.`;
    this.hint = element("p", "hint", first);
    this.hint.hidden = true;
    curves.append(this.hint);
    this.board = new Board(curves);
    this.events = this.section("Events");
    this.events.hidden = true;
    this.list = element("ol", "events");
    this.events.append(this.list);
    parent.append(this.numbers, samples, curves, this.events, this.about());
    parent.addEventListener("pointerenter", () => { window.activeSamples = this.samples; });
  }

  section(title) {
    const made = element("section");
    made.append(element("h2", "", title));
    return made;
  }

  about() {
    const made = element("details", "card about"), table = element("table");
    made.append(element("summary", "", "Options and host"));
    if (this.info.host) made.append(element("p", "host", this.info.host));
    for (const [name, value] of Object.entries(this.info.options)) {
      const row = element("tr");
      const text = typeof value === "string" ? value : JSON.stringify(value);
      row.append(element("th", "", name), element("td", "", text));
      table.append(row);
    }
    const box = element("div", "scroll");
    box.append(table);
    made.append(box);
    return made;
  }

  /** One line of metrics.jsonl; the cost does not depend on how many came before. */
  add(record) {
    const { step, epoch } = record;
    if (step !== undefined && record.kind !== "event") {
      this.tile("Epoch", String(epoch), this.info.epochs ? `of ${this.info.epochs}` : "");
      this.tile("Step", step.toLocaleString("en"));
    }
    if (record.kind === "train") {
      this.hint.hidden = true;
      for (const [name, value] of Object.entries(record.losses)) {
        this.board.add(0, chartOf(name), name, step, value, epoch);
      }
      if (Number.isFinite(record.lr)) this.board.add(2, "Learning rate", "lr", step, record.lr, epoch);
      const time = record.time || {};
      if (Number.isFinite(time.images_per_s)) {
        this.board.add(2, "Throughput, images/s", "images/s", step, time.images_per_s, epoch);
        this.tile("Speed", shortNumber(Number(time.images_per_s.toPrecision(3))), "images/s");
      }
      if (Number.isFinite(time.data_wait)) {
        this.board.add(2, "Waiting for data, share of time", "data wait", step, time.data_wait, epoch);
        this.tile("Waiting for data", `${(100 * time.data_wait).toFixed(time.data_wait < 0.1 ? 1 : 0)}`, "%");
      }
    } else if (record.kind === "metrics") {
      for (const [name, value] of Object.entries(record.metrics)) {
        this.board.add(1, "Metric: " + name, name, step, value, epoch);
        const counts = name.startsWith("fid") && record.n_fake !== undefined;
        this.tile(name, shortNumber(value), counts ? `n_fake ${record.n_fake}, n_real ${record.n_real}` : "");
      }
    } else if (record.kind === "samples") {
      this.samples.add(record);
    } else if (record.kind === "event") {
      const row = element("li");
      row.append(element("span", "", `epoch ${epoch} · step ${step}`), element("b", "", String(record.message)));
      this.list.prepend(row);
      while (this.list.children.length > 100) this.list.lastChild.remove();
      this.events.hidden = false;
    }
  }

  /** Where the training is: known before the first record. */
  at({ step, epoch, elapsed, left }) {
    if (step === undefined) return;
    this.tile("Epoch", String(epoch), this.info.epochs ? `of ${this.info.epochs}` : "");
    this.tile("Step", step.toLocaleString("en"));
    this.tile("Running for", duration(elapsed));
    this.tile("Time left", duration(left ?? NaN));
    this.hint.hidden = this.board.charts.size > 0;
  }

  tile(name, text, unit = "") {
    let value = this.tiles.get(name);
    if (!value) {
      const made = element("div", "card tile");
      value = element("b");
      made.append(element("span", "", name), value);
      this.tiles.set(name, value);
      this.numbers.append(made);
    }
    value.replaceChildren(text, element("small", "", unit && " " + unit));
  }
}
