"""Files of a run that are no files, bombs, or nonsense: each command that reads them answers at once, in one line."""

import json
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from evaluate_support import evaluate
from training_support import picture, train, translate, untrained_run, write_aligned

from datasets import errors
from datasets.errors import UserError
from gan.run import read_records
from gan.viewers.__main__ import main as viewers

Spoil = Callable[[Path], object]


def fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def holding(content: str) -> Spoil:
    return lambda path: (path.unlink(missing_ok=True), path.write_text(content))


ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 9)
)
OPTIONS: dict[str, Spoil] = {
    "fifo": fifo,
    "folder": lambda path: (path.unlink(missing_ok=True), path.mkdir()),
    "aliases": holding(ALIASES),
    "merged aliases": holding(MERGES),
    "digits": holding("seed: " + "9" * 5000),
    "hex digits": holding("seed: 0x" + "f" * 5000),
    "base 60": holding("seed: 1" + ":59" * 15_000),
    "date": holding("seed: 2001-99-99"),
    "nested": holding("seed: " + "[" * 30_000),
    "nested maps": holding("seed: " + "{a: " * 15_000),
    "large": holding("# " + "x" * 2**20),
    "endless": lambda path: (path.unlink(missing_ok=True), path.symlink_to("/dev/zero")),
    "number for a name": holding("7: 3"),
}
POINTER: dict[str, Spoil] = {
    "fifo": fifo,
    "digits": holding('{"file": ' + "9" * 5000 + "}"),
    "nested": holding("[" * 1_000_000),
    "many": holding("[" + "[],[{}]," * 500_000 + "1]"),
    "large": holding(" " * 2**24),
    "another name": holding('{"file": "../ckpt-00000001.safetensors"}'),
    "a list": holding('{"file": ["x"]}'),
    "endless": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
}
RECORD = {"kind": "train", "step": 1, "epoch": 1, "losses": {"G": 1.0}}
LINES: list[str] = [
    "[" * 100_000, "9" * 5000, "[]", json.dumps(RECORD | {"step": "x"}), json.dumps(RECORD | {"kind": []}),
    json.dumps(RECORD | {"losses": 3}), json.dumps(RECORD | {"losses": {"G": {"a": 1}}}),
    '{"x": "' + "x" * 2**21 + '"}',
    *(
        json.dumps({"kind": "samples", "step": 1, "epoch": 1, "folder": folder, "pictures": pictures})
        for folder, pictures in (
            ("../..", {"input": "secret.png"}), ("samples", {"input": "/etc/passwd"}), ("samples", {"input": 3}),
            ("samples", ["input.png"]), (7, {"input": "x.png"}),
        )
    ),
]  # fmt: skip


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """A few seconds of work, and 200 MB beside what the process had."""

    def too_long(*_: object) -> None:
        raise AssertionError("not answered in five minutes")

    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    was = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, was)
    assert time.process_time() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    data = write_aligned(folder / "data")
    for epoch in (2, 3):
        run = untrained_run(folder / "runs", "--model", "pix2pix", "--dataroot", data, epoch=epoch)
    shutil.copy(run / "latest.json", run / "best.json")
    (run / "metrics.jsonl").write_text(json.dumps(RECORD) + "\n")
    return folder / "runs"


@pytest.fixture
def run(untouched: Path, tmp_path: Path) -> Path:
    picture(32, 32).save(tmp_path / "x.png")
    return shutil.copytree(untouched, tmp_path / "runs") / "r"


def answer(command: str, run: Path, *more: object) -> str:
    """What a command says: its error line, its warnings where it does what it should, or nothing."""
    place = ["--name", "r", "--checkpoints_dir", run.parent]
    try:
        match command:
            case "train":
                outcome = train(*place, "--continue_train", "--n_epochs", 3, "--override", *more)
            case "test":
                out = run.parent / "out"
                outcome = translate(*place, "--input", run.parent.parent / "x.png", "--output", out, *more)
            case "evaluate":
                evaluate(runs=run, metrics="l1", device="cpu")
                return ""
            case _:
                with mock.patch("sys.argv", ["viewers", str(run), "--page"]):
                    viewers()
                return ""
    except UserError as error:
        return str(error)
    assert outcome.code in (0, 2), outcome.err
    return outcome.error if outcome.code else outcome.err


@pytest.mark.parametrize("spoil", OPTIONS)
def test_options(run: Path, spoil: str) -> None:
    OPTIONS[spoil](run / "options.yaml")
    assert answer("train", run).startswith("error: ")
    assert answer("viewers", run) == ""
    assert "options.yaml" not in answer("test", run)  # the checkpoint knows the options
    answer("evaluate", run)
    OPTIONS[spoil](run.parent / "config.yaml")
    outcome = train("--config", run.parent / "config.yaml", "--name", "s", "--dataroot", run)
    assert outcome.code == 2 and "config.yaml: " in outcome.error


@pytest.mark.parametrize("spoil", POINTER)
def test_pointers(run: Path, spoil: str) -> None:
    for name in ("latest.json", "best.json"):
        POINTER[spoil](run / name)
    assert "best.json" in answer("test", run, "--epoch", "best")
    for command in ("test", "train"):
        told = answer(command, run)
        assert "latest.json" in told and "using ckpt-00000006" in told
    answer("evaluate", run)


def test_records(run: Path) -> None:
    (run / "metrics.jsonl").write_text("\n".join([*LINES, json.dumps(RECORD), ""]))
    assert list(read_records(run / "metrics.jsonl")) == [RECORD]
    assert answer("viewers", run) == "" and answer("train", run).count("\n") < 9


def test_records_that_are_no_file(run: Path) -> None:
    fifo(run / "metrics.jsonl")
    for command in ("train", "viewers"):
        assert "metrics.jsonl" in answer(command, run)
    assert "not a regular file" in answer("train", run)


def test_checkpoints_that_are_no_file(run: Path) -> None:
    fifo(run / "ckpt-00000006.safetensors")
    fifo(run / "ckpt-00000004.pt.sha256")
    fifo(run / ".latest.json.0123456789ab.tmp")
    assert "no checkpoint of epoch 3 (there are: 2)" in answer("test", run, "--epoch", 3)
    for command in ("test", "train"):
        assert "not a regular file; using ckpt-00000004" in answer(command, run)


def test_reports_and_outputs(run: Path) -> None:
    answer("evaluate", run)
    reports = list(run.rglob("report.json"))
    for spoil in ("fifo", "nested", "digits", "endless"):
        for path in [*reports, *run.rglob("outputs.json")]:
            POINTER[spoil](path)
        assert not reports or "report.json" in answer("evaluate", run)


def test_a_fifo_in_the_place_of_the_log(tmp_path: Path) -> None:
    fifo(tmp_path / "run.log")
    errors.set_log_file(tmp_path / "run.log")
    try:
        assert not errors.log_text("nobody reads")  # it would wait for ever
    finally:
        errors.set_log_file(None)


def test_a_fifo_among_pictures(tmp_path: Path) -> None:
    for folder in ("fake", "real"):
        (tmp_path / folder).mkdir()
        for name in "ab":
            picture(32, 32).save(tmp_path / folder / f"{name}.png")
    fifo(tmp_path / "fake" / "a.png")
    with pytest.raises(UserError, match="is not a regular file"):
        evaluate(fake=tmp_path / "fake", real=tmp_path / "real", paired=True, metrics="l1", device="cpu")
