"""The viewer protocol, sample grids, the terminal's progress, and the report page."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from visdom_support import FakeRun, train_record

from gan.viewers import RunInfo, Viewer, Viewers, sample_file, shown_options, shown_records
from gan.viewers.console import Console
from gan.viewers.report_page import Figure, Table, make_report_page, thinned
from gan.viewers.samples import columns_for, save_samples


class Log(Viewer):
    """Remembers its calls, and raises in the one named `broken`."""

    def __init__(self, broken: str = "") -> None:
        self.calls: list[str] = []
        self._broken = broken

    def _note(self, name: str) -> None:
        self.calls.append(name)
        if name == self._broken:
            raise OSError("the disk\nis full")

    def start(self, run, records):
        self._note("start")

    def record(self, record):
        self._note("record")

    def commands(self):
        self._note("commands")
        return {"save"}

    def close(self):
        self._note("close")


RUN = RunInfo("run", Path("run"), {})


@pytest.mark.parametrize("broken", ["start", "record", "commands", "close"])
def test_a_failing_viewer_is_dropped_with_one_line_and_the_others_go_on(broken, capsys):
    bad, good = Log(broken), Log()
    with Viewers([bad, good]) as viewers:
        viewers.start(RUN)
        for _ in range(3):
            viewers.record(train_record(1))
            assert viewers.commands() == {"save"}
    assert bad.calls.count(broken) == 1 + (broken == "close"), "once, and close once more to let go"
    assert good.calls == ["start"] + ["record", "commands"] * 3 + ["close"]
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["warning: Log stopped: the disk is full (training continues without it)"]


def test_records_so_far_reach_every_viewer_though_they_are_read_once():
    seen = []

    class Counter(Viewer):
        def start(self, run, records):
            seen.append(len(list(records)))

    Viewers([Counter(), Counter()]).start(RUN, iter([train_record(1), train_record(2)]))
    assert seen == [2, 2]


def test_a_sheet_holds_every_picture_at_its_place(tmp_path):
    levels = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
    images = levels.view(5, 1, 1, 1).expand(5, 3, 6, 4)
    files = save_samples(tmp_path / "deep" / "step", {"fake": images})
    sheet = np.asarray(Image.open(files["fake"]))
    assert sheet.shape == (2 * 6, 3 * 4, 3), "5 pictures of 6x4 in 3 columns"
    expected = [0, 64, 128, 191, 255]  # (x + 1) / 2 * 255, to the nearest
    for index, level in enumerate(expected):
        row, column = divmod(index, 3)
        cell = sheet[row * 6 : row * 6 + 6, column * 4 : column * 4 + 4]
        assert abs(int(cell.min()) - level) <= 1 and cell.min() == cell.max()


def test_the_grid_has_a_row_per_input_and_a_column_per_kind(tmp_path):
    images = {
        kind: torch.full((3, 3, 64, 64), level) for kind, level in (("input", -1), ("fake", 0), ("odd", 1))
    }
    images["input"] = images["input"][:, :1]  # grey input, colour output
    files = save_samples(tmp_path, images)
    assert list(files) == ["input", "fake", "odd", "grid"]
    grid = np.asarray(Image.open(files["grid"]).convert("RGB")).astype(int)
    assert grid.shape[1] == 3 * 64 + 4 * 4
    head = grid.shape[0] - 3 * (64 + 4)
    for row in range(3):
        for column, level in enumerate((0, 128, 255)):
            cell = grid[head + row * 68 : head + row * 68 + 64, 4 + column * 68 : 68 + column * 68]
            assert np.abs(cell - level).max() <= 1
    captions = grid[:head]
    assert all(captions[:, 4 + i * 68 : 68 + i * 68].min() < 100 for i in range(3)), (
        "a caption in every column"
    )


@pytest.mark.parametrize("count", range(1, 40))
def test_sheets_are_nearly_square_with_few_empty_places(count):
    columns = columns_for(count)
    rows = -(-count // columns)
    assert rows * columns >= count and (rows - 1) * columns < count
    assert count <= 4 or 0.5 <= columns / rows <= 3.01


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_in_a_log_file_is_plain_lines():
    stream = io.StringIO()
    console = Console(epochs=2, steps_per_epoch=10, stream=stream)
    console.start(RUN, [])
    for step in range(1, 21):
        console.progress(step, (step - 1) // 10 + 1)
        if step % 5 == 0:
            console.record(train_record(step, (step - 1) // 10 + 1, loss=0.25))
    console.record({"kind": "metrics", "step": 20, "epoch": 2, "metrics": {"val_l1": 0.5}})
    metrics = {"kind": "metrics", "step": 20, "epoch": 2, "metrics": {"fid": 81.5}, "n_fake": 8, "n_real": 8}
    console.record(metrics)
    console.close()
    text = stream.getvalue()
    assert "\r" not in text and "\x1b" not in text
    lines = text.splitlines()
    assert len(lines) == 6
    assert lines[0].startswith("epoch 1/2  step 5  G_GAN 0.25  3 images/s  ") and lines[0].endswith(" left")
    assert lines[-2] == "epoch 2/2  val_l1 0.5"
    assert lines[-1] == "epoch 2/2  fid 81.5  (n_fake 8, n_real 8)"


def test_progress_on_a_terminal_is_one_bar_an_epoch():
    stream = Terminal()
    console = Console(epochs=2, steps_per_epoch=3, stream=stream)
    console.start(RUN, [])
    for step in range(1, 7):
        console.progress(step, (step - 1) // 3 + 1)
        console.record(train_record(step, (step - 1) // 3 + 1, loss=0.125))
    console.close()
    final = [part for part in re.split(r"[\r\n]", stream.getvalue()) if part.strip()]
    assert any("epoch 1/2" in part and "3/3" in part for part in final)
    assert "epoch 2/2" in final[-1] and "3/3" in final[-1] and "G_GAN 0.125" in final[-1]


def test_time_left_is_steps_left_times_pace(monkeypatch):
    clock = iter([10.0, 14.0])
    monkeypatch.setattr("gan.viewers.console.time.monotonic", lambda: next(clock))
    stream = io.StringIO()
    console = Console(epochs=1, steps_per_epoch=100, stream=stream)
    console.start(RUN, [])
    console.progress(1, 1)  # 10: the clock starts behind the first step
    console.progress(2, 1)
    console.record(train_record(2))  # 14: 4 s a step, 98 left
    assert stream.getvalue().rstrip().endswith("6 min left")


def test_time_left_counts_the_steps_of_todays_data(monkeypatch):
    """Two epochs of 50 steps are done, and an epoch has 10 now: after 2 of 30 steps, 28 are left."""
    clock = iter([10.0, 14.0, 130.0])
    monkeypatch.setattr("gan.viewers.console.time.monotonic", lambda: next(clock))
    stream = io.StringIO()
    console = Console(epochs=5, steps_per_epoch=10, stream=stream, more_steps=80)
    console.progress(101, 3)
    console.progress(102, 3)
    console.record(train_record(102, 3))
    assert stream.getvalue().rstrip().endswith("1 min left")  # 28 times 4 s
    console.progress(130, 5)
    console.record(train_record(130, 5))
    assert not stream.getvalue().rstrip().endswith("left"), "no word of 0 s"


def test_history_survives_torn_and_foreign_lines(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        json.dumps(train_record(1))
        + '\n[1]\n{"kind": "train"}\nnot json\n'
        + '{"kind": "train", "losses": {"G": '
    )
    assert shown_records(tmp_path) == [train_record(1)]
    assert shown_records(tmp_path / "none") == [] and shown_options(tmp_path) == {}
    (tmp_path / "options.yaml").write_text("lr: 0.1\nname: x\n")
    assert shown_options(tmp_path) == {"lr": 0.1, "name": "x"}
    (tmp_path / "options.yaml").write_text("- [")
    assert shown_options(tmp_path) == {}


@pytest.mark.parametrize("folder", ["..", "/", "samples/../.."])
def test_no_file_outside_of_the_run_is_shown(folder, tmp_path):
    """metrics.jsonl may be anybody's."""
    run = FakeRun(tmp_path)
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8), "red").save(secret)
    record = run.samples(1)
    name = str(secret).lstrip("/") if folder == "/" else "secret.png"
    run.keep({**record, "step": 2, "folder": folder, "pictures": {"input": name}})
    run.keep({**record, "step": 3, "folder": 7})
    with pytest.raises(OSError, match="not a file of the run"):
        sample_file(run.folder, run.records[1], "input")
    text = make_report_page(tmp_path / "report.html", "t", [run.folder]).read_text()
    assert base64.b64encode(secret.read_bytes()).decode() not in text
    assert '"step": 1' in text and '"step": 3' not in text


def test_thinning_keeps_first_and_last():
    records = [train_record(i) for i in range(1, 10001)]
    records += [
        {"kind": "samples", "step": i, "epoch": i, "folder": "f", "pictures": {}} for i in range(1, 31)
    ]
    kept = thinned(records)
    steps = [record["step"] for record in kept if record["kind"] == "samples"]
    assert len(steps) == 10 and steps[0] == 1 and steps[-1] == 30
    steps = [record["step"] for record in kept if record["kind"] == "train"]
    assert len(steps) == 2000 and steps[0] == 1 and steps[-1] == 10000


def test_the_report_is_one_file_that_loads_nothing(tmp_path):
    run = FakeRun(tmp_path, "<b>run</b>")
    for step in range(1, 6):
        run.keep(train_record(step))
    run.samples(5)
    table = Table("Results & more", ["run", "PSNR"], [["<script>", 19.5], ["b", None]], note="dB")
    figure = Figure("a <figure>", run.folder / "samples/step-00000005/grid.png")
    title = "Title </title><script>alert(1)</script>"
    path = make_report_page(
        tmp_path / "out" / "report.html", title, [run.folder], [table], [figure], "intro <i>"
    )
    text = path.read_text()
    assert "<script>alert" not in text and "<b>run" not in text and "intro <i>" not in text
    assert "&lt;script&gt;" in text and re.search(r'<td style="text-align: right;">\s*19.5\s*</td>', text)
    assert not re.search(r"""(src|href)=["']?(?!data:)[^"' >]+""", text.split("<script>")[0])
    assert not re.search(r"https?://(?!www\.w3\.org)", text) and "@import" not in text
    assert "data:image/png;base64," in text
