"""The cache of features: what goes in comes out, damage is noticed, and a broken file never stops a report."""

import os
import sqlite3
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

from evaluate.features import FeatureCache


def test_arrays_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "new" / "features.sqlite"
    a, b = np.arange(5, dtype=np.float32), np.array([np.pi, -np.e])
    FeatureCache(path).put({"a": a, "b": b})
    found = list(FeatureCache(path).stream([("b", 2), ("none", 2), ("a", 5), ("b", 2)]))
    assert [key for key, _ in found] == ["b", "a", "b"]
    assert found[0][1].dtype == np.float64 and found[1][1].dtype == np.float32
    assert np.array_equal(found[0][1], b) and np.array_equal(found[1][1], a)
    assert FeatureCache(path).missing([("c", 1), ("a", 5), ("c", 1)]) == ["c"]


def with_checksum(data: bytes) -> tuple[bytes, int]:
    return data, zlib.crc32(data)


FLIPPED = b"d" + np.zeros(8).tobytes()[:-1] + b"\x01"


@pytest.mark.parametrize(
    "entry",
    [
        (FLIPPED, zlib.crc32(b"d" + bytes(64))),
        with_checksum(b"d" + bytes(8 * 9)),  # one number more
        with_checksum(b"f" + bytes(64)),  # of the right size, but 16 numbers
        with_checksum(b"d" + np.full(8, np.nan).tobytes()),
        with_checksum(b"x" + bytes(64)),
        with_checksum(b""),
        ("d" * 65, 0),
        (5, 5),
        (None, None),
        (b"d" + bytes(64), "text"),
        (b"d" + bytes(64), bytes(10)),
    ],
)
def test_an_entry_that_is_not_sound_is_computed_again(tmp_path: Path, entry: tuple[object, object]) -> None:
    path = tmp_path / "f.sqlite"
    FeatureCache(path).put({"a": np.zeros(8), "b": np.zeros(8)})
    with sqlite3.connect(path) as database:
        database.execute("UPDATE entries SET data = ?, sum = ? WHERE key = 'a'", entry)
    cache = FeatureCache(path)
    assert cache.missing([("a", 8), ("b", 8)]) == ["a"]
    cache.put({"a": np.ones(8)})
    assert FeatureCache(path).missing([("a", 8)]) == []


def test_a_giant_entry_is_not_read(tmp_path: Path) -> None:
    """Its length is told by SQLite; the bytes stay on the disk."""
    path = tmp_path / "f.sqlite"
    FeatureCache(path).put({"a": np.zeros(8)})
    with sqlite3.connect(path) as database:
        database.execute("UPDATE entries SET data = zeroblob(200000000)")
    tracemalloc.start()
    try:
        assert FeatureCache(path).missing([("a", 8)]) == ["a"]
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"


@pytest.mark.parametrize(
    "tampering",
    [
        f"DROP TABLE entries; CREATE VIEW entries AS SELECT 'a' AS key, ({ENDLESS}) AS data, 0 AS sum",
        f"CREATE TRIGGER t BEFORE INSERT ON entries BEGIN UPDATE entries SET sum = ({ENDLESS}); END",
        "CREATE TABLE more (x)",
    ],
)
def test_a_database_of_another_shape_is_not_used(
    tmp_path: Path, tampering: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is refused in one line, before any of its code can run, and left as it is."""
    path = tmp_path / "f.sqlite"
    FeatureCache(path).put({"a": np.zeros(8)})
    with sqlite3.connect(path) as database:
        database.executescript(tampering)
    before = path.read_bytes()
    cache = FeatureCache(path)
    cache.put({"b": np.zeros(8)})
    assert cache.missing([("a", 8), ("b", 8)]) == ["a"]
    assert path.read_bytes() == before
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line
        == f"warning: {path}: is not a cache of this program; features are computed again by the next report"
    )


def test_a_pipe_is_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "f.sqlite")
    cache = FeatureCache(tmp_path / "f.sqlite")
    cache.put({"a": np.ones(2)})
    assert cache.missing([("a", 2)]) == []
    assert "is not a regular file" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\x00" + b"\xff" * 500])
def test_a_file_that_is_no_database_is_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "f.sqlite"
    path.write_bytes(content)
    FeatureCache(path).put({"a": np.ones(2)})
    assert FeatureCache(path).missing([("a", 2)]) == []


def test_without_a_place_it_works_in_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    cache = FeatureCache(blocked / "f.sqlite")
    cache.put({"a": np.ones(2)})
    assert dict(cache.stream([("a", 2)]))["a"].tolist() == [1.0, 1.0]
    assert capsys.readouterr().err.count("warning") == 1
    silent = FeatureCache(None)
    silent.put({"a": np.ones(2)})
    assert silent.missing([("a", 2)]) == [] and capsys.readouterr().err == ""


def test_a_failing_write_costs_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "f.sqlite"
    cache = FeatureCache(path)
    cache.put({"old": np.ones(1)})
    with sqlite3.connect(path) as other:
        other.execute("DROP TABLE entries")
    cache.put({"a": np.ones(1)})
    cache.put({"b": np.ones(1)})
    assert cache.missing([("a", 1), ("b", 1)]) == []
    assert capsys.readouterr().err.count("warning") == 1


def test_two_caches_share_one_file(tmp_path: Path) -> None:
    first, second = FeatureCache(tmp_path / "f"), FeatureCache(tmp_path / "f")
    first.put({"a": np.ones(1)})
    second.put({"b": np.ones(1)})
    both = [("a", 1), ("b", 1)]
    assert first.missing(both) == second.missing(both) == []
