"""The files of a page: what is written, in which order, at what cost, and what a full disk does."""

import dataclasses
import json
import re
import resource
import shlex
from pathlib import Path

import pytest
from visdom_support import FakeRun, train_record

from gan.viewers import RunInfo
from gan.viewers.page import CHUNK, Page


def shown(folder: Path) -> list[dict]:
    """The records a browser gets out of the data files, checked for their order."""
    records = []
    for path in sorted((folder / "page").glob("data-*.js")):
        for line in path.read_text().splitlines():
            match = re.fullmatch(r"gan\.add\((\d+),(.*)\);", line)
            assert match and int(match[1]) == len(records), line[:80]
            records.append(json.loads(match[2]))
    return records


def state(folder: Path) -> dict:
    text = (folder / "page" / "state.js").read_text()
    return json.loads(re.fullmatch(r"gan\.state\((.*)\);\n", text)[1])


@pytest.fixture
def run(tmp_path) -> FakeRun:
    return FakeRun(tmp_path)


def test_every_record_arrives_once_and_in_order(run):
    page = Page()
    page.start(run.info, [])
    for step in range(1, 2 * CHUNK + 10):
        page.record(run.keep(train_record(step)))
    page.record(run.samples(600))
    assert state(run.folder)["status"] == "training"
    page.close()
    assert shown(run.folder) == run.records
    assert state(run.folder)["records"] == len(run.records) and state(run.folder)["status"] == "ended"
    assert len(list((run.folder / "page").glob("data-*.js"))) == 3


def test_resume_continues_the_page_and_forgets_what_the_log_forgot(run):
    first = Page()
    first.start(run.info, [])
    for step in range(1, 30):
        first.record(run.keep(train_record(step)))
    before = state(run.folder)["generation"]
    kept = run.records[:20]  # the log was cut back to the checkpoint
    second = Page()
    second.start(run.info, kept)
    new = train_record(21, loss=9.0)
    second.record(new)
    assert shown(run.folder) == [*kept, new]
    assert state(run.folder)["generation"] != before, "an open page has to load itself again"


def test_an_update_writes_the_same_amount_whatever_came_before(run):

    page = Page()
    page.start(run.info, [train_record(step) for step in range(1, 50 * CHUNK)])
    data = sorted((run.folder / "page").glob("data-*.js"))
    times = {path: path.stat().st_mtime_ns for path in [*data[:-1], run.folder / "index.html"]}
    sizes = [path.stat().st_size for path in data]
    page.record(train_record(50 * CHUNK))
    assert {path: path.stat().st_mtime_ns for path in times} == times, "only the last data file is touched"
    assert data[-1].stat().st_size - sizes[-1] < 300
    assert max(sizes) < 300 * CHUNK, "what an open page loads again is bounded"


def test_names_and_options_cannot_break_out_of_the_page(tmp_path):
    name = 'x"><img src=x onerror=alert(1)>'
    options = {"dataroot": "</script><script>alert(2)</script>", "visdom_password": "hunter2", "n_epochs": 3}
    page = Page()
    page.start(RunInfo(name, tmp_path, options, "<host>"), [])
    text = (tmp_path / "index.html").read_text()
    assert "<img" not in text and "<script>alert" not in text and "hunter2" not in text
    assert "x&quot;&gt;&lt;img" in text
    embedded = re.search(r'<script type="application/json" id="run">(.*?)</script>', text)[1]
    info = json.loads(embedded)
    assert info["name"] == name and info["options"] == {"dataroot": options["dataroot"], "n_epochs": 3}


@pytest.mark.parametrize("name", ["{{script}}", "{{style}}", "{{run}}"])
def test_a_name_like_a_placeholder_is_only_a_name(name, tmp_path):
    page = Page()
    page.start(RunInfo(name, tmp_path, {"dataroot": name}, ""), [])
    text = (tmp_path / "index.html").read_text()
    assert f"<h1>{name}</h1>" in text
    assert text.count("class RunView") == 1, "the scripts are in the page once"


def test_an_open_page_knows_where_the_training_is_before_the_first_record(run, monkeypatch):
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    page = Page()
    page.start(dataclasses.replace(run.info, total_steps=20), [])
    assert "step" not in state(run.folder)
    page.progress(1, 1)
    now = 110.0
    page.progress(3, 1)
    told = state(run.folder)
    assert (told["step"], told["epoch"], told["elapsed"], told["records"]) == (3, 1, 10, 0)
    assert told["left"] == 85, "17 steps at 5 s"
    now = 112.0
    page.progress(4, 1)
    assert state(run.folder)["step"] == 3, "at most every few seconds"


@pytest.mark.parametrize(("last", "status"), [(0, "stopped"), (19, "stopped"), (20, "ended")])
def test_a_training_that_was_stopped_is_not_said_to_have_ended(run, last, status):
    page = Page()
    page.start(dataclasses.replace(run.info, total_steps=20), [])
    for step in range(1, last + 1):
        page.progress(step, 1)
    page.close()
    told = state(run.folder)
    assert told["status"] == status and told["left"] is None
    flags = shlex.split(told["resume"])[2:]
    assert flags == ["--name", "fake", "--checkpoints_dir", str(run.folder.parent), "--continue_train"]


def test_the_page_loads_nothing_from_elsewhere(run):
    page = Page()
    page.start(run.info, [])
    text = (run.folder / "index.html").read_text()
    assert not re.findall(r"(?:https?:)?//(?!www\.w3\.org)[a-z0-9-]+\.[a-z]{2,}", text)
    assert "@import" not in text and "fetch(" not in text and "{{" not in text


def test_a_full_disk_is_two_lines_and_nothing_is_missing_afterwards(run, capsys):
    """A limit on the size of files stands for the disk: the system takes a part of a line and refuses the rest."""
    page = Page()
    page.start(run.info, [])
    records = [train_record(step) for step in range(1, 41)]
    for record in records[:30]:
        page.record(record)
    size = (run.folder / "page" / "data-00000.js").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, before[1]))
    try:
        for record in records[30:39]:
            page.record(record)
        assert shown(run.folder) == records[:30], "no half line: the script would not load at all"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    page.record(records[39])
    assert shown(run.folder) == records
    page.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "File too large" in lines[0] and "up to date again" in lines[1]
    assert not list(run.folder.rglob("*.tmp"))


def test_the_disk_is_full_from_the_start(run, capsys):
    (run.folder / "page").write_text("in the way")
    page = Page()
    page.start(run.info, [])
    page.record(train_record(1))
    (run.folder / "page").unlink()
    page.record(train_record(2))
    assert [record["step"] for record in shown(run.folder)] == [1, 2]
    assert (run.folder / "index.html").is_file()
    assert len(capsys.readouterr().err.splitlines()) == 2
