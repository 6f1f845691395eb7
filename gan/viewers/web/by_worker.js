// The page of `python -m gan.export --format web`. The worker runs the model; here pictures become bytes and back, as in
// datasets/images.py: colour profiles are ignored, transparency is laid on white, grey is the luma.

(() => {
  const waiting = new Map();  // by the number of the message
  let worker = null, loaded = null, asked = 0;

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

  async function read(file) {
    try {
      return { bitmap: await toBitmap(file) };
    } catch {
      throw new Error(`${file.name}: is no picture that this browser can read`);
    }
  }

  async function translate({ bitmap }, scale) {
    const [across, down] = scale.split(",").map(Number);
    const [wide, high] = [[bitmap.width, across], [bitmap.height, down]]
      .map(([side, factor]) => Math.max(2, Math.round(side * factor)));
    try {
      const pen = page.draw(canvasOf(1, 1), bitmap, wide, high, "transparent");
      const pixels = toBytes(pen.getImageData(0, 0, wide, high));
      await loaded;
      const answer = await ask({ pixels, shape: [1, model.input_nc, high, wide] }, [pixels.buffer]);
      const after = canvasOf(wide, high);
      after.getContext("2d").putImageData(toImage(answer.pixels, wide, high), 0, 0);
      return { after, words: `${wide} × ${high} pixels in ${answer.seconds.toFixed(1)} s` };
    } catch (error) {
      if (!waiting.size) start().catch(() => {});  // the next picture tells why
      const why = String(error.message).slice(0, 120);
      throw new Error(`${wide} × ${high} pixels cannot be translated here, try a smaller scale (${why})`);
    }
  }

  const native = [1, 1], trained = model.trained_scale;
  const choices = [["the picture's size", native], ["a half of it", [0.5, 0.5]], ["a quarter of it", [0.25, 0.25]]];
  if (trained.some((factor) => factor > 1.25 || factor < 0.8)) choices.unshift(["the scale of training", trained]);  // as test.py
  const page = translatePage({ choices, read, translate });
  if (location.protocol === "file:") {
    page.fail("A browser loads no model from a file: run `python -m http.server` in this folder and open http://localhost:8000");
  } else {
    start().then(page.ready, (error) => page.fail(`The model cannot be loaded: ${error.message}`));
  }
})();
