"""A run's folder: names, lock, options file, metrics log."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any
from unittest import mock

import filelock
import pytest
import yaml
from training_support import TINY, tree, write_aligned

import datasets.files
from datasets.errors import UserError
from datasets.files import new_folder, whole_folder
from gan.run import MetricsLog, RunFolder, check_name, open_run, read_records, read_yaml

ROOT = Path(__file__).resolve().parents[1]


def make_run(checkpoints_dir: Path, name: str = "run") -> RunFolder:
    run = RunFolder(checkpoints_dir / name)
    run.path.mkdir(parents=True, exist_ok=True)
    return run


def start_run(checkpoints_dir: Path, name: str = "run") -> None:
    with open_run(RunFolder(checkpoints_dir / name), is_new=True):
        pass


@pytest.mark.parametrize(
    "name",
    ["", " ", ".", "..", "../x", "/x", "a/b", "a\\b", "a\nb", "a\0b", "\x1b[31m", " a", "a ", "\udcff", "x" * 201],
)  # fmt: skip
def test_names_that_are_no_plain_folder_name(name: str) -> None:
    with pytest.raises(UserError) as caught:
        check_name(name)
    assert caught.value.subject == "--name"
    assert str(caught.value).isprintable()


def test_names_that_only_look_odd() -> None:
    for name in ("<img onerror=alert(1)>", "-rf", "~", "a b", "$(x)", "日本"):
        assert check_name(name) == name


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="is a file, a folder is needed"):
        start_run(tmp_path)
    with pytest.raises(UserError, match="cannot be written to: a part of this path is a file"):
        start_run(tmp_path / "file")
    for place in ("/proc", "/sys"):
        if Path(place).is_dir():
            with pytest.raises(UserError, match="cannot be written to"):
                start_run(Path(place))


def test_a_read_only_file_system(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,ro", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a read-only file system needs root")
    try:
        with pytest.raises(UserError, match="cannot be written to: read-only file system"):
            start_run(disk)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_found_at_the_start(tmp_path: Path, monkeypatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UserError, match="cannot be written to: no space left"):
        start_run(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_space(tmp_path: Path, monkeypatch) -> None:
    run = RunFolder(tmp_path / "not" / "made")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: mock.Mock(free=12 * 2**20))
    run.require_space(12 * 2**20)
    with pytest.raises(UserError, match=r"no space: need 324 MiB, free 12 MiB \(free some space"):
        run.require_space(324 * 2**20)


# --- the lock ---

HOLD = """
    import os, sys
    from pathlib import Path
    from gan.run import RunFolder
    with RunFolder(Path(sys.argv[1])).lock():
        if len(sys.argv) == 2 or os.fork() == 0:  # the child: a loader worker that outlives the trainer
            print("locked", flush=True)
        sys.stdin.read()
"""


def hold(run: RunFolder, *more: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), str(run.path), *more],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def test_a_second_training_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    process = hold(run)
    expected = f"another training is using this run: pid {process.pid} on {socket.gethostname()}"
    with pytest.raises(UserError) as caught, run.lock():
        pass
    assert caught.value.reason == expected
    assert caught.value.exit_code == 2
    process.communicate("")
    with run.lock():
        assert f"pid {os.getpid()} " in run.holder_file.read_text()


def test_the_lock_is_free_after_kill_9_even_if_a_worker_lives_on(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    process = hold(run, "worker")
    process.send_signal(signal.SIGKILL)
    process.wait()
    with run.lock():
        pass
    assert process.stdin is not None
    process.stdin.close()  # the worker ends
    assert process.stdout is not None
    process.stdout.close()


def test_a_lock_file_of_somebody_else_is_not_changed(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (tmp_path / "mine").write_text("mine")
    run.lock_file.symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="is a link"), run.lock():
        pass
    run.lock_file.unlink()
    run.lock_file.write_text("mine")
    run.holder_file.symlink_to(tmp_path / "mine")
    with run.lock():
        assert run.lock_file.read_text() == "mine"
    assert (tmp_path / "mine").read_text() == "mine"


def test_files_that_a_new_run_would_overwrite_are_refused(tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "index.html", "page", "samples", "latest.json", "best.json"):
        run = make_run(tmp_path, name)
        (run.path / name).symlink_to("nowhere")
        with pytest.raises(UserError, match=f"holds {name}, which a training would overwrite"):
            start_run(tmp_path, name)
        assert [path.name for path in run.path.iterdir()] == [name]


def test_a_failed_start_leaves_a_log_that_was_there(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.log.write_text("mine")
    with pytest.raises(KeyError), open_run(run, is_new=True):
        raise KeyError
    assert {path.name: path.read_text() for path in run.path.iterdir()} == {"run.log": "mine"}


def test_the_lock_within_one_process(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with run.lock():
        with pytest.raises(UserError, match=f"pid {os.getpid()}"), run.lock():
            pass
        pid = os.fork()
        if pid == 0:  # leaving the block in a child must not unlock the parent
            os._exit(0)
        os.waitpid(pid, 0)
        with pytest.raises(UserError), run.lock():
            pass
    with pytest.raises(RuntimeError), run.lock():
        raise RuntimeError
    with run.lock():
        pass


def test_a_file_system_without_locks_gives_one_warning(tmp_path: Path, monkeypatch, capsys) -> None:
    """Whatever takes a lock: a run, a temporary file, a folder that is filled."""

    def lock(descriptor: int, *, blocking: bool) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock, "lock_descriptor", lock)
    datasets.files._warn_of_missing_locks.cache_clear()
    with make_run(tmp_path).lock(), whole_folder(tmp_path / "filled") as folder:
        (folder / "file").write_text("x")
    assert (tmp_path / "filled" / "file").read_text() == "x"
    assert capsys.readouterr().err == (
        "warning: file locks: do not work here (No locks available); do not start a command twice on the same folder\n"
    )


def test_a_training_where_python_has_no_fcntl(tmp_path: Path) -> None:
    """As on Windows, where this suite does not run: import and training on the CPU need neither it nor its signals."""
    script = """
        import runpy, signal, sys
        sys.modules["fcntl"] = None
        del signal.SIGHUP, signal.SIGUSR1
        sys.argv = sys.argv[1:]
        runpy.run_path(sys.argv[0], run_name="__main__")
    """
    data = write_aligned(tmp_path / "data", 2)
    flags = ["--dataroot", data, *TINY, "--model", "pix2pix", "--n_epochs", 1, "--checkpoints_dir", tmp_path]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), ROOT / "train.py", *map(str, flags)],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "fcntl is unavailable" in done.stderr and "done: 2 steps" in done.stdout


# --- options.yaml ---


def test_options_come_back_in_order(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    options = {
        "norm": "nc_ms",
        "lr": 2e-4,
        "name": "ünï: - 'x'",
        "flag": None,
        "on": True,
        "betas": [0.5],
        "a": 1,
    }
    run.write_options(options)
    assert read_yaml(run.options) == options
    assert list(read_yaml(run.options)) == list(options)
    assert "ünï" in run.options.read_text("utf-8")
    with pytest.raises(yaml.YAMLError):
        run.write_options({"path": tmp_path})
    assert read_yaml(run.options) == options


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"a: !!python/object/apply:os.system ['touch marker']",
            "not a plain YAML file, line 1: could not det",
        ),
        (b"a: 1\nb: [1, 2\nc: 3\n", "not a plain YAML file, line 3"),
        (b"a: 1\n\tb: 2\n", "not a plain YAML file, line 2"),
        (b"\xff\xfe\x00", "not a plain YAML file"),
        (b"a: \x00", "not a plain YAML file"),
        (b"- 1\n- 2\n", "must hold `option: value` lines"),
        (b"text", "must hold `option: value` lines"),
        (b"1: 2", "must hold `option: value` lines"),
        (b"[" * 60_000, "nested too deep"),
    ],
)
def test_malformed_options(tmp_path: Path, content: bytes, said: str, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "options.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_yaml(path)
    assert said in caught.value.reason
    assert str(caught.value).isprintable()
    assert not (tmp_path / "marker").exists()


def test_options_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_yaml(tmp_path / "options.yaml")
    with pytest.raises(UserError, match="is a folder"):
        read_yaml(tmp_path)
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "empty.yaml") == {}


# --- metrics.jsonl ---


def test_records_come_back_and_the_file_is_cut_at_resume(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert log.offset == 0
    records: list[dict[str, Any]] = [
        {"kind": "train", "step": i, "epoch": 1, "losses": {"G": 0.1 * i}} for i in range(5)
    ]
    offsets = []
    for record in records:
        log.append(record)
        offsets.append(log.offset)
    assert list(read_records(log.path)) == records
    assert offsets[-1] == log.path.stat().st_size
    log.truncate(offsets[2])
    assert log.offset == offsets[2]
    log.append(records[3])
    assert list(read_records(log.path)) == records[:4]
    log.truncate(10**9)
    assert list(read_records(log.path)) == records[:4]
    log.truncate(offsets[1] + 5)  # within a line
    assert list(read_records(log.path)) == records[:2]
    log.truncate(0)
    assert log.offset == 0
    MetricsLog(tmp_path / "missing.jsonl").truncate(5)


def test_a_half_line_of_a_killed_process_is_cut(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 1})
    whole = log.offset
    with log.path.open("ab") as file:
        file.write(b'{"step": 2, "loss')
    assert list(read_records(log.path)) == [{"step": 1}]
    log.truncate(log.offset)
    assert log.offset == whole


def test_reading_leaves_out_what_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a": 1}\n\n[1]\n3\n{"b"\n\xff\xfe\n' + b"[" * 100_000 + b'\n{"a": 2}\n{"a": 3}')
    assert list(read_records(path)) == [{"a": 1}, {"a": 2}]
    assert list(read_records(tmp_path / "missing")) == []


def test_every_line_is_strict_json(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    values = {
        "psnr": float("inf"),
        "losses": {"G": float("nan")},
        "list": [1.5, -float("inf")],
        "t": ("ü\n", None),
    }
    log.append(values)

    def refuse(word: str) -> None:
        raise AssertionError(word)

    line = log.path.read_bytes()
    assert line.count(b"\n") == 1
    assert json.loads(line, parse_constant=refuse) == {
        "psnr": None, "losses": {"G": None}, "list": [1.5, None], "t": ["ü\n", None],
    }  # fmt: skip


def test_a_full_disk_is_one_warning_and_nothing_is_lost(tmp_path: Path, monkeypatch, capsys) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 0})
    real = os.write

    def torn(descriptor: int, data: memoryview) -> int:
        if len(data) > 4:
            return real(descriptor, data[:4])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", torn)
        for step in range(1, 4):
            log.append({"step": step})
            assert list(read_records(log.path)) == [{"step": 0}]
            assert log.path.read_bytes() == b'{"step": 0}\n'
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "No space left on device" in err
    log.append({"step": 4})
    assert list(read_records(log.path)) == [{"step": step} for step in range(5)]
    assert capsys.readouterr().err == ""


def test_a_log_in_a_deleted_folder_is_one_warning(tmp_path: Path, capsys) -> None:
    (tmp_path / "run").mkdir()
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl")
    log.append({"step": 0})
    shutil.rmtree(tmp_path / "run")
    log.append({"step": 1})
    log.append({"step": 2})
    assert log.offset == 0
    assert capsys.readouterr().err.count("\n") == 1


def test_a_users_files_in_an_output_folder_stay(tmp_path: Path) -> None:
    """Whatever their names: `probe` was once deleted, `.NAME.partial` was emptied."""
    for name in ("probe", ".probe", "probe.tmp", ".out.partial", ".out.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("mine")
    before = tree(tmp_path)
    with new_folder(tmp_path), whole_folder(tmp_path / "out") as folder:
        (folder / "new").write_text("x")
    assert tree(tmp_path) == before | {"out": b"", "out/new": b"x"}
