"""The cache of features: what goes in comes out, damage is noticed, and a broken file never stops a report."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from evaluate.features import FeatureCache


def test_arrays_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "new" / "features.sqlite"
    a, b = np.arange(5, dtype=np.float32), np.array([np.pi, np.inf])
    FeatureCache(path).put({"a": a, "b": b})
    found = list(FeatureCache(path).stream(["b", "none", "a"]))
    assert [key for key, _ in found] == ["b", "a"]
    assert found[0][1].dtype == np.float64 and found[1][1].dtype == np.float32
    assert np.array_equal(found[0][1], b) and np.array_equal(found[1][1], a)
    assert FeatureCache(path).missing(["c", "a", "c"]) == ["c"]


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "f.sqlite"
    FeatureCache(path).put({"a": np.zeros(8)})
    with sqlite3.connect(path) as database:
        data = bytearray(database.execute("SELECT data FROM entries").fetchone()[0])
        data[20] ^= 1
        database.execute("UPDATE entries SET data = ?", (bytes(data),))
    assert FeatureCache(path).missing(["a"]) == ["a"]


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\x00" + b"\xff" * 500])
def test_a_file_that_is_no_database_is_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "f.sqlite"
    path.write_bytes(content)
    FeatureCache(path).put({"a": np.ones(2)})
    assert FeatureCache(path).missing(["a"]) == []


def test_without_a_place_it_works_in_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    cache = FeatureCache(blocked / "f.sqlite")
    cache.put({"a": np.ones(2)})
    assert dict(cache.stream(["a"]))["a"].tolist() == [1.0, 1.0]
    assert capsys.readouterr().err.count("warning") == 1
    silent = FeatureCache(None)
    silent.put({"a": np.ones(2)})
    assert silent.missing(["a"]) == [] and capsys.readouterr().err == ""


def test_a_failing_write_costs_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "f.sqlite"
    cache = FeatureCache(path)
    cache.put({"old": np.ones(1)})
    with sqlite3.connect(path) as other:
        other.execute("DROP TABLE entries")
    cache.put({"a": np.ones(1)})
    cache.put({"b": np.ones(1)})
    assert cache.missing(["a", "b"]) == []
    assert capsys.readouterr().err.count("warning") == 1


def test_two_caches_share_one_file(tmp_path: Path) -> None:
    first, second = FeatureCache(tmp_path / "f"), FeatureCache(tmp_path / "f")
    first.put({"a": np.ones(1)})
    second.put({"b": np.ones(1)})
    assert first.missing(["a", "b"]) == second.missing(["a", "b"]) == []
