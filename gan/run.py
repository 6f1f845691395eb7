"""A run's folder, `CHECKPOINTS_DIR/NAME/`: its paths, its lock, its options, its log of metrics."""

import contextlib
import json
import math
import os
import secrets
import shlex
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from datasets.errors import UserError, printable, set_log_file, warn
from datasets.files import (
    NO_FOLLOW,
    as_mib,
    file_lock,
    free_space,
    new_folder,
    read_small,
    require_file,
    write_all,
    write_atomically,
)

LONGEST_NAME = 200  # bytes; most file systems allow 255


@dataclass
class RunFolder:
    """Where everything of one run is, made or not. program: what trains it, as one types it after `python`."""

    path: Path
    program: str = "train.py"

    def __post_init__(self) -> None:
        self.name = self.path.name
        self.options = self.path / "options.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.log = self.path / "run.log"
        self.lock_file = self.path / "run.lock"
        self.holder_file = self.path / "run.holder"
        self.job_file = self.path / "run.job"
        self.page = self.path / "index.html"
        self._signature = ""
        self._lock: os.stat_result | None = None

    def sample_folder(self, step: int) -> Path:
        """Where the sample pictures of a step are."""
        return self.path / "samples" / f"step-{step:08d}"

    @property
    def exists(self) -> bool:
        """Whether a training has been started here."""
        return self.options.exists() or any(self.path.glob("ckpt-*.*"))

    def require_space(self, size: int) -> None:
        """UserError unless `size` bytes are free where the run is."""
        free = free_space(self.path)
        if free < size:
            reason = f"no space: need {as_mib(size)}, free {as_mib(free)}"
            raise UserError(self.path, reason, "free some space or choose another --checkpoints_dir")

    def write_options(self, options: Mapping[str, Any]) -> None:
        """Write options.yaml, whole or not at all (OSError). Plain types only (yaml.YAMLError otherwise)."""
        text = yaml.safe_dump(dict(options), sort_keys=False, allow_unicode=True)
        write_atomically(self.options, text.encode())
        if self._signature:
            self._sign()

    def belongs_to(self, job: str) -> bool:
        """Whether this torchrun command (`gan.processes.job`) began or resumed the run; "" is none."""
        with contextlib.suppress(UserError):
            return bool(job) and self.options.is_file() and read_small(self.job_file) == job.encode()
        return False

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; UserError, naming the holder, if another one has it.

        The system frees the lock when the process ends, however it ends.
        """
        with contextlib.ExitStack() as stack:
            try:
                is_free = stack.enter_context(file_lock(self.lock_file))
            except OSError as error:
                reason = "is a link" if self.lock_file.is_symlink() else f"cannot be opened: {error.strerror}"
                raise UserError(self.lock_file, reason, "remove it, or check the folder") from error
            if not is_free:
                holder = printable(self._holder().partition("\n")[0])
                reason = f"another training is using this run: {holder or 'an unknown process'}"
                raise UserError(self.path, reason, "wait for it, stop it, or use another --name")
            owner = os.getpid()
            self._lock = self.lock_file.stat()  # while it is open, no other file gets its number
            self._signature = f"pid {owner} on {socket.gethostname()}\n{secrets.token_hex(16)}\n"
            self._sign()
            try:
                yield
            finally:
                if os.getpid() == owner and self._holder() == self._signature:
                    with contextlib.suppress(OSError):
                        self.holder_file.unlink()

    def _sign(self) -> None:
        """Say in a file of its own who holds the run: Windows lets nobody read a locked file."""
        try:
            write_atomically(self.holder_file, self._signature.encode(), durable=False)
        except OSError:  # a full disk: the lock holds all the same
            self._signature = self._holder()

    def _holder(self) -> str:
        with contextlib.suppress(OSError, UserError):
            require_file(self.holder_file)
            with self.holder_file.open("rb") as file:
                return file.read(1000).decode("utf-8", "replace")
        return ""

    def _has_our_lock(self) -> bool:
        with contextlib.suppress(OSError):
            return self._lock is not None and os.path.samestat(self.lock_file.stat(), self._lock)
        return False

    def require_ours(self) -> None:
        """UserError if the folder was exchanged for one with checkpoints of another training: they would be lost."""
        holder = self._holder()
        if not holder and self._has_our_lock():  # somebody has removed that file alone
            self._sign()
        elif holder != self._signature and any(self.path.glob("ckpt-*.*")):
            reason = "is another folder now, with checkpoints of its own"
            raise UserError(self.path, reason, "put the run's folder back")


@contextlib.contextmanager
def open_run(run: RunFolder, *, is_new: bool) -> Iterator[None]:
    """Make a run's folder, lock it, and send tracebacks to its log. A start that fails leaves nothing behind.

    Raises UserError for a new run that exists already, a folder that cannot be written to, and a run that another
    training holds.
    """
    if is_new:
        refuse_existing(run)
    ours = [file for file in (run.log, run.lock_file, run.holder_file) if not os.path.lexists(file)]
    with new_folder(run.path), run.lock():
        try:
            if is_new:
                refuse_existing(run)  # another training may have come and gone before the lock was ours
            set_log_file(None if run.log.is_symlink() else run.log)  # links are not followed
            yield
        except BaseException:
            if not run.exists:  # no training came of it
                set_log_file(None)
                for leftover in ours:
                    leftover.unlink(missing_ok=True)
            raise


def check_name(name: str) -> str:
    """A run's name as it is, if it is one plain folder name; UserError otherwise."""
    fix = "use a plain name such as maps_nc_ms"
    if not name.strip():
        raise UserError("--name", "is empty", fix)
    if name in (".", "..") or "/" in name or "\\" in name:
        raise UserError("--name", f"{name!r} is a path, not a name", fix)
    if not name.isprintable() or name != name.strip():
        raise UserError("--name", f"{name!r} has control characters or spaces around it", fix)
    if len(name.encode()) > LONGEST_NAME:
        raise UserError("--name", f"is longer than {LONGEST_NAME} bytes", fix)
    return name


LARGEST_OPTIONS = 2**16  # bytes; a run's options.yaml has about 2,000


class _PlainLoader(yaml.SafeLoader):
    """Refuses aliases, since a short text of them can stand for any number of values, and very long numbers."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(problem="aliases are not read", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value = super().construct_yaml_int(node)
        if value.bit_length() > 64:
            raise ValueError("a number of too many digits")
        return value


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_yaml_int)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, plain types only; UserError where it is missing, too large, malformed or more."""
    text, fix = read_small(path, LARGEST_OPTIONS), "correct or remove it"
    try:
        content = _PlainLoader(text).get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(path, f"not a plain YAML file{line}: {problem}", fix) from None
    except (ValueError, RecursionError):  # such as 5,000 digits, the 99th of a month, brackets in brackets
        raise UserError(path, "holds a value that cannot be, or that is nested too deep", fix) from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(path, "must hold `option: value` lines", fix)
    return content


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
                warn(
                    self.path, f"cannot be written ({error.strerror}); training continues, trying again later"
                )
                self._warned = True

    def _write_pending(self) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | NO_FOLLOW, 0o666)
        try:
            before = os.fstat(descriptor).st_size
            try:
                write_all(descriptor, self._pending)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, before)  # no half line stays
                raise
        finally:
            os.close(descriptor)
        self._pending = b""

    def truncate(self, offset: int) -> None:
        """Cut the file back to what it was when a checkpoint was saved, and to whole lines.

        Raises UserError for something else than a file in its place.
        """
        if self.path.exists():
            require_file(self.path)
        with contextlib.suppress(FileNotFoundError), self.path.open("r+b") as file:
            whole = file.read(min(offset, os.fstat(file.fileno()).st_size))
            file.truncate(whole.rfind(b"\n") + 1)
            file.flush()
            os.fsync(file.fileno())


LONGEST_RECORD = 2**20  # bytes


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a metrics.jsonl in order, without a line that is half written, or is no record.

    Raises UserError for something else than a file in its place.
    """
    if not path.exists():
        return
    require_file(path)
    with path.open("rb") as file:
        while line := file.readline(LONGEST_RECORD):
            with contextlib.suppress(ValueError, RecursionError):
                record = json.loads(line) if line.endswith(b"\n") else None
                if _is_record(record):
                    yield record


_NUMBER = (int, float, type(None))
_FIELDS: dict[str, Any] = {
    "kind": str,
    "step": int,
    "epoch": int,
    "message": str,
    "folder": str,
    "lr": _NUMBER,
}
_TABLES: dict[str, Any] = {"losses": _NUMBER, "metrics": _NUMBER, "time": _NUMBER, "pictures": str}


def _is_record(record: Any) -> TypeGuard[dict[str, Any]]:
    """Whether its fields have the types of docs/architecture.md, and its pictures lie below the run's folder."""
    if not isinstance(record, dict) or ("kind" in record and not record.keys() >= {"step", "epoch"}):
        return False
    tables = {name: record.get(name, {}) for name in _TABLES}
    if not all(isinstance(record[name], kind) for name, kind in _FIELDS.items() if name in record):
        return False
    if not all(isinstance(table, dict) for table in tables.values()):
        return False
    if not all(isinstance(value, _TABLES[name]) for name in tables for value in tables[name].values()):
        return False
    paths = [Path(record.get("folder", "")), *map(Path, tables["pictures"].values())]
    return not any(path.is_absolute() or ".." in path.parts for path in paths)


def _finite(value: Any) -> Any:
    """NaN and infinity as null: JSON has no word for them, and a browser refuses the whole line."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


def run_command_line(run: RunFolder, program: str = "train.py") -> list[str]:
    """`python PROGRAM --name RUN`, with the folder of runs where it is not the default."""
    place = [] if run.path.parent == Path("checkpoints") else ["--checkpoints_dir", str(run.path.parent)]
    return ["python", *program.split(), "--name", run.name, *place]


def resume_command(run: RunFolder) -> str:
    return shlex.join([*run_command_line(run, run.program), "--continue_train"])


def refuse_existing(run: RunFolder) -> None:
    """UserError if a training has been started in this folder, or if it holds files that one would overwrite."""
    if run.exists:
        ways = (
            f"to resume it:  {resume_command(run)}",
            "to start another:  the same command with a --name that is not taken",
        )
        raise UserError(
            run.path, "this run exists already, nothing was changed", "two ways to continue", ways
        )
    written = (
        run.metrics,
        run.page,
        *(run.path / name for name in ("page", "samples", "latest.json", "best.json")),
    )
    if theirs := [file.name for file in written if os.path.lexists(file)]:
        reason = f"holds {', '.join(theirs)}, which a training would overwrite"
        raise UserError(run.path, reason, "choose another --name")


def refuse_changes(run: RunFolder, changes: Sequence[str], override: bool, kind: str) -> None:
    """UserError with the list of changes of one kind (options, data), unless --override accepts them."""
    if changes and not override:
        reason = f"the run was trained with other {kind}"
        raise UserError(run.path, reason, "undo the change, or add --override to accept it", changes)
