"""A cache that is damaged, half-written or gone is never used, and one that cannot be made costs one line."""

import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from cache_support import assert_equal, batches, caches, keep, prepare, write_pairs
from training_support import ROOT, TINY, environment, train

from datasets import cache
from datasets.cache import CacheMaker


@pytest.fixture(autouse=True)
def nothing_mapped() -> None:
    cache._mapped.cache_clear()


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs")


# --- damage


def flip(content: bytes) -> bytes:
    return content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]


@pytest.mark.parametrize(
    "damage",
    [flip, lambda content: content[:-1], lambda content: content + b"x", lambda _: b""],
    ids=["a bit", "cut", "longer", "empty"],
)
def test_a_damaged_one_is_made_again(
    damage: Any, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = batches(keep(pairs, tmp_path / "runs"))
    [file] = caches(tmp_path / "runs")
    good = file.read_bytes()
    file.write_bytes(damage(good))
    cache._mapped.cache_clear()
    dataset = keep(pairs, tmp_path / "runs")
    assert capsys.readouterr().err == f"{file} is damaged: it is made again\n"
    assert file.read_bytes() == good
    assert_equal(batches(dataset), expected)


def test_what_a_link_leads_to_is_not_overwritten(pairs: Path, tmp_path: Path) -> None:
    keep(pairs, tmp_path / "runs")
    [file] = caches(tmp_path / "runs")
    elsewhere = file.rename(tmp_path / "elsewhere")
    good = elsewhere.read_bytes()
    elsewhere.write_bytes(b"mine")
    file.symlink_to(elsewhere)
    keep(pairs, tmp_path / "runs")
    assert not file.is_symlink() and file.read_bytes() == good
    assert elsewhere.read_bytes() == b"mine"


@pytest.mark.parametrize("num_threads", [0, 2])
def test_one_that_is_deleted_while_training_is_done_without(
    num_threads: int, pairs: Path, tmp_path: Path
) -> None:
    dataset = keep(pairs, tmp_path / "runs")
    [file] = caches(tmp_path / "runs")
    file.unlink()
    assert_equal(batches(dataset, num_threads), batches(prepare(pairs)[0]))


KILLED = """
import itertools, os, signal, sys
from pathlib import Path
sys.path.insert(0, "tests")
import cache_support
from datasets.cache import CacheMaker

decoded = CacheMaker._decoded

def third_time_killed(maker, numbers, calls=itertools.count(1)):
    if next(calls) == 3:  # no two threads get the same number
        os.kill(os.getpid(), signal.SIGKILL)
    return decoded(maker, numbers)

CacheMaker._decoded = third_time_killed
cache_support.keep(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_killed_process_leaves_nothing_that_is_used_or_stays(pairs: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(pairs), str(tmp_path / "runs")]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    [leftover] = caches(tmp_path / "runs")
    assert leftover.name.endswith(".tmp")
    dataset = keep(pairs, tmp_path / "runs")
    assert dataset.cache and caches(tmp_path / "runs") == [dataset.cache.path]


def test_two_at_once(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One begins, another makes all of it, the first goes on."""
    begun, go_on = threading.Event(), threading.Event()
    decoded, found = CacheMaker._decoded, []

    def slow(maker: CacheMaker, numbers: Any) -> Any:
        if not go_on.is_set():
            begun.set()
            assert go_on.wait(60)
        return decoded(maker, numbers)

    monkeypatch.setattr(CacheMaker, "_decoded", slow)
    first = threading.Thread(target=lambda: found.append(keep(pairs, tmp_path / "runs")))
    first.start()
    assert begun.wait(60)
    monkeypatch.setattr(CacheMaker, "_decoded", decoded)
    second = keep(pairs, tmp_path / "runs")
    expected = batches(second)
    go_on.set()
    first.join(60)
    assert second.cache and found[0].cache == second.cache
    assert caches(tmp_path / "runs") == [second.cache.path]
    cache._mapped.cache_clear()
    assert_equal(batches(found[0]), expected)


# --- no room, and refusals


def test_no_space_is_one_line_and_training_goes_on(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spare = shutil.disk_usage(tmp_path).total
    assert keep(pairs, tmp_path / "runs", spare=spare).cache is None
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: --cache_gb: {tmp_path}/runs: no space: need 0.0 MiB and ")
    assert line.endswith("; pictures are decoded as they are needed")


def test_a_write_that_fails_leaves_nothing(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limit[1]))  # the system's own way to fail in the middle
    try:
        dataset = keep(pairs, tmp_path / "runs")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert dataset.cache is None and caches(tmp_path / "runs") == []
    assert "larger than the file size limit" in capsys.readouterr().err
    assert_equal(batches(dataset), batches(prepare(pairs)[0]))


@pytest.mark.parametrize("value", ["-1", "nan", "many"])
def test_a_wrong_size_is_refused(value: str, pairs: Path, tmp_path: Path) -> None:
    outcome = train("--dataroot", pairs, *TINY, "--checkpoints_dir", tmp_path / "runs", "--cache_gb", value)
    assert outcome.code == 2 and "--cache_gb" in outcome.error
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_keeps_nothing(pairs: Path, tmp_path: Path) -> None:
    flags = ["--dataroot", pairs, *TINY, "--checkpoints_dir", tmp_path / "runs", "--cache_gb", 1, "--dry_run"]
    outcome = train(*flags)
    assert outcome.code == 0, outcome.err
    assert not (tmp_path / "runs").exists()
