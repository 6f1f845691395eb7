// The page of one run, kept current: state.js says how many records exist, data-NNNNN.js hold them.
// Scripts are loaded instead of fetched, because a page opened from a file may not fetch.

const gan = (() => {
  const info = JSON.parse(document.getElementById("run").textContent);
  const encode = (path) => path.split("/").map(encodeURIComponent).join("/");
  const view = new RunView(document.querySelector("main"), info, (record, file) => encode(`${record.folder}/${file}`));
  const pill = document.getElementById("status"), resume = element("p", "sub", "Resume with ");
  resume.append(element("code"));
  pill.after(resume);
  let known = 0, state = null, loading = false;

  function load(name, version, done) {
    const script = document.createElement("script");
    script.src = `page/${name}.js?v=${version}`;
    script.onload = script.onerror = () => { script.remove(); done(); };
    document.head.append(script);
  }

  const chunkName = (index) => "data-" + String(Math.floor(index / info.chunk)).padStart(5, "0");

  /** Load chunk after chunk until all records are known; a chunk that brings nothing waits for the next poll. */
  function catchUp() {
    const before = known;
    loading = state !== null && known < state.records;
    view.samples.hold(loading);
    if (!loading) return;
    load(chunkName(known), state.records, () => {
      if (known > before) return catchUp();
      loading = false;
      view.samples.hold(false);
    });
  }

  function poll() {
    load("state", Date.now(), () => {
      if (state && !loading) catchUp();
      showStatus();
      setTimeout(poll, document.hidden ? 10000 : state && state.status !== "training" ? 10000 : 2000);
    });
  }

  function showStatus() {
    if (!state) return;
    const age = Date.now() / 1000 - state.updated;
    const quiet = state.status === "training" && age > 600;
    pill.dataset.status = quiet ? "quiet" : state.status;
    pill.textContent = quiet ? `no news for ${duration(age)}` : state.status;
    resume.hidden = state.status !== "stopped" && !quiet;
    resume.lastChild.textContent = state.resume;
    view.at(state);
    pill.title = "last news: " + new Date(state.updated * 1000).toLocaleString();
  }

  poll();
  return {
    view,
    add(index, record) {
      if (index !== known) return;
      known += 1;
      view.add(record);
    },
    state(news) {
      if (state && news.generation !== state.generation) location.reload();
      state = news;
    },
  };
})();
