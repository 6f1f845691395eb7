// The page of `python -m gan.serve`: the server reads the picture and translates it.

const page = translatePage({
  choices: [],

  async read(file) {
    if (file.size > model.limit) {
      throw new Error(`${file.name}: is larger than ${model.limit / 1e6} MB, the most that is taken`);
    }
    let answer, both;
    try {
      answer = await fetch(`translate?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file });
      if (answer.ok) both = await answer.blob();
    } catch {
      throw new Error(`${file.name}: the server of this page does not answer`);
    }
    if (!answer.ok) throw new Error(await answer.text());
    const cut = Number(answer.headers.get("Input-Length"));
    const png = both.slice(cut, both.size, "image/png");
    try {
      const [bitmap, after] = await Promise.all([both.slice(0, cut, "image/png"), png].map(toBitmap));
      return { bitmap, after, png };
    } catch {
      throw new Error(`${file.name}: is too large for this browser`);
    }
  },

  translate: async ({ after, png }) => ({ after, png, words: model.told }),
});
page.ready();
