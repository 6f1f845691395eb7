"""How records get from the training thread to the sender's: bounded, and never waiting."""

import threading
import time
from dataclasses import dataclass

from gan.viewers import Record

INBOX_LIMIT = 1000


@dataclass(frozen=True)
class Batch:
    """What came in since the last look. `overflowed`: records were dropped, read them again."""

    records: list[Record]
    overflowed: bool
    closing: bool


class Inbox:
    """Records on their way to the sender: bounded, and putting one in takes microseconds."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._records: list[Record] = []
        self._overflowed = False
        self._closing = False
        self._changed = threading.Condition()

    def put(self, record: Record) -> None:
        with self._changed:
            if len(self._records) >= self._limit:
                self._records.clear()
                self._overflowed = True
            self._records.append(record)
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()

    def is_closing(self) -> bool:
        return self._closing

    def take(self, not_before: float, until: float) -> Batch:
        """Wait for a record (but not return before `not_before`) or until `until`, monotonic times."""
        with self._changed:
            while not self._closing:
                now = time.monotonic()
                wake = min(until, not_before) if self._records and not_before > now else until
                if now >= until or (self._records and now >= not_before):
                    break
                self._changed.wait(max(0.0, wake - now))
            batch = Batch(self._records, self._overflowed, self._closing)
            self._records, self._overflowed = [], False
            return batch
