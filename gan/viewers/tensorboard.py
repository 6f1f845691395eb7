"""TensorBoard: the records of a run as event files in RUN/tensorboard, by means of torch.utils.tensorboard.

Each event is in the file when `record` returns, so a killed training loses none. SummaryWriter is not used: it writes
in a thread, which prints a traceback where the disk is full. Here that is an OSError, which ends this viewer alone.
"""

import io
import math
import time
from collections.abc import Iterable
from typing import Any

from PIL import Image

from gan.viewers import GRID, Record, RunInfo, Viewer, sample_file

TABLES = ("losses", "metrics", "time")
"""Parts of a record that hold numbers; with the name of a number they make its tag: `losses/G_A`."""

PIXELS = 2**20
"""Of a picture at most. TensorBoard's checksum is slow, hence JPEG as well."""


class TensorBoard(Viewer):
    """Appends scalars and sample grids to an event file; a resumed training starts a new one."""

    def start(self, run: RunInfo, records: Iterable[Record]) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2  # not everybody has it
        from torch.utils.tensorboard import RecordWriter

        self._run, self._events, self._summaries = run, event_pb2, summary_pb2
        folder, known = run.folder / "tensorboard", list(records)
        folder.mkdir(exist_ok=True)
        is_first = not any(folder.glob("*tfevents*"))
        self._file = (folder / f"events.out.tfevents.{time.time_ns()}").open("xb")
        self._writer = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        # what older files hold from this step on was lost with a killed training: TensorBoard then forgets it too
        step = max((record["step"] for record in known), default=0) + 1
        self._write(step=step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))
        if is_first:  # switched on by a resumed training
            for record in known:
                self._write_scalars(record)

    def record(self, record: Record) -> None:
        self._write_scalars(record)
        if record["kind"] == "samples":
            self._write_samples(record)

    def close(self) -> None:
        self._file.close()

    def _write_scalars(self, record: Record) -> None:
        values = {
            f"{table}/{name}": value for table in TABLES for name, value in record.get(table, {}).items()
        }
        for tag, value in {**values, "lr": record.get("lr")}.items():
            if value is not None:  # a number that was not finite
                self._write_value(record, tag=tag, simple_value=value)

    def _write_samples(self, record: Record) -> None:
        with Image.open(sample_file(self._run.folder, record, GRID)) as grid:
            scale = min(1.0, math.sqrt(PIXELS / (grid.width * grid.height)))
            size = max(1, int(grid.width * scale)), max(1, int(grid.height * scale))
            picture = grid.convert("RGB").resize(size)
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=90)
        image = {
            "width": size[0],
            "height": size[1],
            "colorspace": 3,
            "encoded_image_string": data.getvalue(),
        }
        self._write_value(record, tag="samples", image=self._summaries.Summary.Image(**image))

    def _write_value(self, record: Record, **value: Any) -> None:
        summary = self._summaries.Summary(value=[self._summaries.Summary.Value(**value)])
        self._write(step=record["step"], summary=summary)

    def _write(self, **content: Any) -> None:
        event = self._events.Event(wall_time=time.time(), **content)
        self._writer.write(event.SerializeToString())
        self._file.flush()
