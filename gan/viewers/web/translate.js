// The page that translates a dropped picture. The worker runs the model; here pictures become bytes and back, as in
// datasets/images.py: colour profiles are ignored, transparency is laid on white, grey is the luma.

const page = (() => {
  const model = JSON.parse(document.getElementById("model").textContent);
  const at = (id) => document.getElementById(id);
  const [drop, file, problem, result, before, after, scale, told, save] =
    ["drop", "file", "error", "result", "before", "after", "scale", "told", "save"].map(at);
  const stage = document.querySelector(".stage"), split = document.querySelector(".split");
  const waiting = new Map();  // by the number of the message
  let worker = null, loaded = null, source = null, saved = "", asked = 0, turn = 0;

  function status(name, text = name) {
    at("status").dataset.status = name;
    at("status").textContent = text;
  }

  function fail(reason) {
    problem.textContent = reason;
    problem.hidden = false;
    status("failed");
  }

  /** A worker with the model in it; a failed one is replaced, because its memory may be full. */
  function start() {
    worker?.terminate();
    worker = new Worker("worker.js", { type: "module" });
    worker.onmessage = ({ data }) => settle(data.id, data);
    worker.onerror = (event) => {
      for (const id of waiting.keys()) settle(id, { failed: event.message || "a file of this page is missing" });
    };
    return loaded = ask({ load: model.file });
  }

  function ask(message, transfer = []) {
    return new Promise((resolve, reject) => {
      waiting.set(++asked, { resolve, reject });
      worker.postMessage({ id: asked, ...message }, transfer);
    });
  }

  function settle(id, answer) {
    const { resolve, reject } = waiting.get(id);
    waiting.delete(id);
    if (answer.failed) reject(new Error(answer.failed));
    else resolve(answer);
  }

  /** (C, H, W) bytes, as the network sees the picture, from RGBA. */
  function toBytes({ data }) {
    const count = data.length / 4, planes = new Uint8Array(model.input_nc * count);
    const level = Uint8Array.from({ length: 256 }, (_, value) => {
      if (!model.value_range) return value;
      const [low, high] = model.value_range, scaled = Math.min(255, Math.max(0, (value - low) / (high - low) * 255));
      const below = Math.floor(scaled), rest = scaled - below;
      return rest === 0.5 ? below + below % 2 : Math.round(scaled);  // to even, as there
    });
    for (let i = 0; i < count; i++) {
      const opaque = data[4 * i + 3] / 255, seen = (value) => Math.round(255 + (level[value] - 255) * opaque);
      const r = seen(data[4 * i]), g = seen(data[4 * i + 1]), b = seen(data[4 * i + 2]);
      if (model.input_nc === 1) {
        planes[i] = (19595 * r + 38470 * g + 7471 * b + 32768) >> 16;
      } else {
        planes[i] = r; planes[count + i] = g; planes[2 * count + i] = b;
      }
    }
    return planes;
  }

  /** RGBA from (C, H, W) bytes. */
  function toImage(planes, width, height) {
    const image = new ImageData(width, height), count = width * height;
    for (let i = 0; i < count; i++) {
      for (let channel = 0; channel < 3; channel++) {
        image.data[4 * i + channel] = planes[(model.output_nc === 1 ? 0 : channel * count) + i];
      }
      image.data[4 * i + 3] = 255;
    }
    return image;
  }

  function canvasOf(width, height) {
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    return canvas;
  }

  function draw(canvas, picture, width, height, ground = "#fff") {
    canvas.width = width;
    canvas.height = height;
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    pen.imageSmoothingQuality = "high";
    pen.fillStyle = ground;
    pen.fillRect(0, 0, width, height);
    pen.drawImage(picture, 0, 0, width, height);
    return pen;
  }

  async function open(chosen) {
    if (!chosen) return;
    problem.hidden = true;
    try {
      source = await createImageBitmap(chosen, { colorSpaceConversion: "none", imageOrientation: "from-image" });
    } catch {
      return fail(`${chosen.name}: is no picture that this browser can read`);
    }
    saved = `${chosen.name.replace(/\.[^.]*$/, "")}.png`;
    await translate();
  }

  async function translate() {
    const mine = ++turn;  // only the newest question is answered
    const { width, height } = source, [across, down] = scale.value.split(",").map(Number);
    const [wide, high] = [[width, across], [height, down]].map(([side, factor]) => Math.max(2, Math.round(side * factor)));
    problem.hidden = true;
    save.removeAttribute("href");
    stage.style.setProperty("--wide", width);
    stage.style.setProperty("--ratio", width / height);
    stage.classList.add("stale");
    stage.classList.toggle("pixels", width < 160);
    drop.classList.add("small");
    result.hidden = false;
    try {
      status("working", "translating");
      told.textContent = "";
      draw(before, source, width, height);
      if (!after.width || stage.dataset.of !== saved) draw(after, source, width, height);
      stage.dataset.of = saved;
      const pixels = toBytes(draw(canvasOf(1, 1), source, wide, high, "transparent").getImageData(0, 0, wide, high));
      await loaded;
      const answer = await ask({ pixels, shape: [1, model.input_nc, high, wide] }, [pixels.buffer]);
      if (mine !== turn) return;
      const sheet = canvasOf(wide, high);
      sheet.getContext("2d").putImageData(toImage(answer.pixels, wide, high), 0, 0);
      draw(after, sheet, width, height);
      stage.classList.remove("stale");
      told.textContent = `${wide} × ${high} pixels in ${answer.seconds.toFixed(1)} s`;
      after.toBlob((blob) => {
        URL.revokeObjectURL(save.href);
        save.href = URL.createObjectURL(blob);
        save.download = saved;
      });
      status("done");
    } catch (error) {
      if (mine !== turn) return;
      fail(`${wide} × ${high} pixels cannot be translated here, try a smaller scale (${String(error.message).slice(0, 120)})`);
      start().catch(() => {});  // the next picture tells why
    }
  }

  const native = [1, 1], trained = model.trained_scale;
  const choices = [["the picture's size", native], ["a half of it", [0.5, 0.5]], ["a quarter of it", [0.25, 0.25]]];
  if (trained.some((factor) => factor > 1.25 || factor < 0.8)) choices.unshift(["the scale of training", trained]);  // as test.py
  for (const [name, factors] of choices) scale.append(new Option(name, factors.join()));

  scale.onchange = translate;
  file.onchange = () => open(file.files[0]);
  split.oninput = () => stage.style.setProperty("--split", `${split.value}%`);
  addEventListener("paste", (event) => open(event.clipboardData.files[0]));
  for (const [kind, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
    addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", over);
      if (kind === "drop") open(event.dataTransfer.files[0]);
    });
  }
  if (location.protocol === "file:") {
    fail("A browser loads no model from a file: run `python -m http.server` in this folder and open http://localhost:8000");
  } else {
    start().then(() => source || status("ready"), (error) => fail(`The model cannot be loaded: ${error.message}`));
  }
  return { open };
})();
