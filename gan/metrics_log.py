"""metrics.jsonl: what happened in a run, one JSON object a line, appended as it happens."""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gan.warning import warn


class MetricsLog:
    """Appends records. What cannot be written (a full disk) is kept and tried again with the next record."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pending = b""
        self._warned = False

    @property
    def offset(self) -> int:
        """Bytes in the file: stored in a checkpoint, given to `truncate` on resume."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record as one line. A failure is one warning for the whole run, never an exception."""
        self._pending += json.dumps(_finite(record), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        try:
            self._write_pending()
        except OSError as error:
            if not self._warned:
                warn(self.path, f"cannot be written ({error.strerror}); training goes on, trying again later")
                self._warned = True

    def _write_pending(self) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            before = os.fstat(descriptor).st_size
            view = memoryview(self._pending)
            try:
                while view:
                    view = view[os.write(descriptor, view) :]
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, before)  # no half line stays
                raise
        finally:
            os.close(descriptor)
        self._pending = b""

    def truncate(self, offset: int) -> None:
        """Cut the file back to what it was when a checkpoint was saved, and to whole lines."""
        with contextlib.suppress(FileNotFoundError), self.path.open("r+b") as file:
            whole = file.read(offset)
            file.truncate(whole.rfind(b"\n") + 1)
            file.flush()
            os.fsync(file.fileno())


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a metrics.jsonl in order, without a line that is half written or not a JSON object."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            with contextlib.suppress(ValueError, RecursionError):
                record = json.loads(line) if line.endswith(b"\n") else None
                if isinstance(record, dict):
                    yield record


def _finite(value: Any) -> Any:
    """NaN and infinity as null: JSON has no word for them, and a browser refuses the whole line."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
