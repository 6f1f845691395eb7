/**
 * The page that translates a dropped picture, around what does the work:
 *   choices                    [[name, value]] of the menu of scales; empty for no menu
 *   read(file)                 -> {bitmap, ...}: the picture as it is shown before
 *   translate(picture, value)  -> {after, words, png}: what is shown after, what is told, and the file to save (or none)
 * Both fail with an Error whose message is the one line to show.
 */
function translatePage(by) {
  const at = (id) => document.getElementById(id);
  const [drop, file, problem, result, before, after, scale, told, save] =
    ["drop", "file", "error", "result", "before", "after", "scale", "told", "save"].map(at);
  const stage = document.querySelector(".stage"), split = document.querySelector(".split");
  let newest = null, shown = null, turn = 0;  // newest: a picture, or the promise of one

  function status(name, text = name) {
    at("status").dataset.status = name;
    at("status").textContent = text;
  }

  function fail(reason) {
    problem.textContent = reason;
    problem.hidden = false;
    status("failed");
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

  function open(chosen) {
    if (!chosen) return;
    const name = `${chosen.name.replace(/\.[^.]*$/, "")}.png`;
    newest = by.read(chosen).then((picture) => ({ ...picture, name }));
    translate();
  }

  /** Translate the newest picture, also one that is still being read when the scale is changed. */
  async function translate() {
    const mine = ++turn;  // only the newest question is answered
    problem.hidden = true;
    status("working", "translating");
    try {
      const source = await newest;
      if (mine !== turn) return;
      shown = source;
      const { bitmap: { width, height }, name } = source;
      URL.revokeObjectURL(save.href);
      save.removeAttribute("href");
      stage.style.setProperty("--wide", width);
      stage.style.setProperty("--ratio", width / height);
      stage.classList.add("stale");
      stage.classList.toggle("pixels", width < 160);
      drop.classList.add("small");
      result.hidden = false;
      told.textContent = "";
      draw(before, source.bitmap, width, height);
      if (!after.width || stage.dataset.of !== name) draw(after, source.bitmap, width, height);
      stage.dataset.of = name;
      const made = await by.translate(source, scale.value);
      if (mine !== turn) return;
      draw(after, made.after, width, height);
      stage.classList.remove("stale");
      told.textContent = made.words;
      const png = made.png ?? await new Promise((resolve) => after.toBlob(resolve));
      if (mine !== turn) return;
      save.href = URL.createObjectURL(png);
      save.download = name;
      status("done");
    } catch (error) {
      if (mine !== turn) return;
      newest = shown;  // if that was no picture, the one before it stays
      fail(error.message);
    }
  }

  for (const [name, value] of by.choices) scale.append(new Option(name, value));
  at("scales").hidden = !by.choices.length;
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
  return { draw, fail, ready: () => turn || status("ready") };
}

const model = JSON.parse(document.getElementById("model").textContent);
const toBitmap = (blob) => createImageBitmap(blob, { colorSpaceConversion: "none", imageOrientation: "from-image" });
