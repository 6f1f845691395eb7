// A report of finished runs: everything stands in this one file.

for (const script of document.querySelectorAll("script.run")) {
  const run = JSON.parse(script.textContent);
  const view = new RunView(script.parentElement, run, (record, blob) => run.blobs[blob]);
  for (const record of run.records) view.add(record);
}
