"""Numbers computed from pictures, kept on disk by what they were computed from.

A key names the content of the picture(s), the resize, the network and its weights, so an entry never
goes stale. One SQLite file: a process that is killed leaves it whole, several processes may share it,
and damage is noticed (every entry carries a checksum) and leads to computing again.
"""

import contextlib
import sqlite3
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_TYPES: dict[bytes, type] = {b"f": np.float32, b"d": np.float64}


class FeatureCache:
    """key -> one-dimensional float32 or float64 array. path None: for this process only.

    A file that cannot be opened or written costs one warning and is then done without. What only this process needs
    is in a file without a name that SQLite makes and removes, so that memory stays flat.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._memory: dict[str, NDArray] = {}  # what could not be written to the file
        self._database: sqlite3.Connection | None = None
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._database = _open_or_replace(path)
            except (OSError, sqlite3.Error) as error:
                self._do_without(error)
        if self._database is None:
            self._database = _open("")

    def stream(self, keys: Iterable[str]) -> Iterator[tuple[str, NDArray]]:
        """The sound entries among these keys, one at a time, in the order of the keys."""
        for key in keys:
            if key in self._memory:
                yield key, self._memory[key]
            elif (value := self._read(key)) is not None:
                yield key, value

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys without a sound entry, each once, in order."""
        wanted = list(dict.fromkeys(keys))
        found = {key for key, _ in self.stream(wanted)}
        return [key for key in wanted if key not in found]

    def put(self, entries: Mapping[str, NDArray]) -> None:
        """Add entries; they are on disk, all of them, when this returns."""
        if self._database is not None:
            try:
                with self._database:
                    self._database.executemany(
                        "INSERT OR REPLACE INTO entries VALUES (?, ?, ?)",
                        [(key, *_packed(value)) for key, value in entries.items()],
                    )
                return
            except sqlite3.Error as error:
                self._do_without(error, keep_reading=True)
        self._memory.update(entries)

    def _read(self, key: str) -> NDArray | None:
        if self._database is None:
            return None
        try:
            row = self._database.execute("SELECT data, sum FROM entries WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            self._do_without(error)
            return None
        if row is None or zlib.crc32(row[0]) != row[1] or row[0][:1] not in _TYPES:
            return None
        return np.frombuffer(row[0][1:], _TYPES[row[0][:1]])

    def _do_without(self, error: Exception, keep_reading: bool = False) -> None:
        if self._path is not None:
            text = f"warning: {self._path}: {error}; features are computed again by the next report"
            print(text, file=sys.stderr)
            self._path = None
        if not keep_reading:
            self._database = None


def _packed(value: NDArray) -> tuple[bytes, int]:
    kind = b"f" if value.dtype == np.float32 else b"d"
    data = kind + np.ascontiguousarray(value, _TYPES[kind]).tobytes()
    return data, zlib.crc32(data)


def _open_or_replace(path: Path) -> sqlite3.Connection:
    """The database, a fresh one in the place of a file that is none any more."""
    try:
        return _open(path)
    except sqlite3.OperationalError:  # locked, read-only, no space: the file itself may be fine
        raise
    except sqlite3.DatabaseError:
        path.unlink()
        return _open(path)


def _open(path: Path | Literal[""]) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=60)
    try:
        database.execute("PRAGMA synchronous=NORMAL")
        database.execute("CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, data BLOB, sum INTEGER)")
        database.commit()
    except sqlite3.Error:
        with contextlib.suppress(sqlite3.Error):
            database.close()
        raise
    return database
