"""Numbers computed from pictures, kept on disk by what they were computed from.

A key names the content of the picture(s), the resize, the network and its weights, so an entry never
goes stale. One SQLite file: a process that is killed leaves it whole, several processes may share it,
and damage is noticed (every entry carries a checksum) and leads to computing again.
"""

import contextlib
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from datasets.errors import warn

_TYPES: dict[bytes, type] = {b"f": np.float32, b"d": np.float64}


class FeatureCache:
    """key -> one-dimensional float32 or float64 array. path None: for this process only.

    A file that cannot be opened or written costs one warning; the report goes on without it. What only this process
    needs is in a file without a name that SQLite makes and removes, so that memory stays flat.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._databases = [_open("")]  # the named one, if there is one, comes first
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._databases.insert(0, _open_or_replace(path))
            except (OSError, sqlite3.Error) as error:
                self._warn(error)

    def stream(self, keys: Iterable[str]) -> Iterator[tuple[str, NDArray]]:
        """The sound entries among these keys, one at a time, in the order of the keys."""
        for key in keys:
            if (value := self._read(key)) is not None:
                yield key, value

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys without a sound entry, each once, in order."""
        wanted = list(dict.fromkeys(keys))
        found = {key for key, _ in self.stream(wanted)}
        return [key for key in wanted if key not in found]

    def put(self, entries: Mapping[str, NDArray]) -> None:
        """Add entries; they are on disk, all of them, when this returns."""
        rows = [(key, *_packed(value)) for key, value in entries.items()]
        for database in self._databases:
            try:
                with database:
                    database.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", rows)
                return
            except sqlite3.Error as error:
                self._warn(error)

    def _read(self, key: str) -> NDArray | None:
        for database in self._databases:
            try:
                row = database.execute("SELECT data, sum FROM entries WHERE key = ?", (key,)).fetchone()
            except sqlite3.Error as error:
                self._warn(error)
                continue
            if row is not None and zlib.crc32(row[0]) == row[1] and row[0][:1] in _TYPES:
                return np.frombuffer(row[0][1:], _TYPES[row[0][:1]])
        return None

    def _warn(self, error: Exception) -> None:
        if self._path is not None:
            warn(self._path, f"{error}; features are computed again by the next report")
            self._path = None


def _packed(value: NDArray) -> tuple[bytes, int]:
    kind = b"f" if value.dtype == np.float32 else b"d"
    data = kind + np.ascontiguousarray(value, _TYPES[kind]).tobytes()
    return data, zlib.crc32(data)


def _open_or_replace(path: Path) -> sqlite3.Connection:
    """The database; a corrupt file is replaced by an empty one."""
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
