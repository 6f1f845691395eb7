"""The one place where errors become lines.

A problem that the user can solve is a `UserError`, raised where it is found. `run_command` turns it into exactly one
line on stderr, `error: <subject>: <reason> (<fix>)`, and the documented exit code; tracebacks go to the log file of
the run.

Exit codes: 0 done; 2 wrong usage or input; 1 failed while running, our own bugs too; 128+n ended by signal n.
"""

import contextlib
import ctypes
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

LINE_LIMIT = 300  # characters of the one line
DETAILS_SHOWN = 10  # entries of a list that are printed; all of them stand in the log file

_log_file: Path | None = None
_debug = False
_quiet = False


class UserError(Exception):
    """Wrong usage or input (exit code 2).

    subject: the file, folder or option that is wrong; reason: what is wrong with it; fix: what to do, without
    brackets; details: entries of a list, of which the first ten are printed. Can be pickled.
    """

    exit_code = 2

    def __init__(self, subject: str | Path, reason: str, fix: str = "", details: Sequence[str] = ()) -> None:
        self.subject, self.reason, self.fix, self.details = str(subject), reason, fix, tuple(details)
        super().__init__(self.subject, reason, fix, self.details)

    def __str__(self) -> str:
        return error_line(self.subject, self.reason, self.fix)


class RunError(UserError):
    """A failure while running (exit code 1): non-finite loss, memory, a lost worker."""

    exit_code = 1


def set_log_file(path: Path | None) -> None:
    """Name the file that tracebacks and full lists are appended to (a run's run.log), or None for no file."""
    global _log_file
    _log_file = path


def set_debug(on: bool) -> None:
    """Show tracebacks on stderr as well (`--debug`), for commands that learn of it only inside `main`."""
    global _debug
    _debug = on


def set_quiet(on: bool) -> None:
    """Print no more lines: of the processes of one training, one speaks."""
    global _quiet
    _quiet = on


def no_bar() -> bool | None:
    """tqdm's `disable`: no progress bar where nothing is printed; None leaves bars to terminals."""
    return True if _quiet else None


def printable(text: str) -> str:
    """Text on one line: control characters, line separators, undecodable bytes of file names as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def error_line(subject: str, reason: str, fix: str = "") -> str:
    """`<subject>: <reason> (<fix>)`, escaped; with `error: ` before it at most LINE_LIMIT characters."""
    subject, reason, fix = printable(subject), printable(reason), printable(fix)
    room = LINE_LIMIT - len("error: : ") - (len(" ()") if fix else 0)
    if len(subject) + len(reason) + len(fix) > room:
        if len(subject) > 120:  # the end of a path says more than its beginning
            subject = "..." + subject[-117:]
        fix = _clip(fix, 80)
        reason = _clip(reason, room - len(subject) - len(fix))
    return f"{subject}: {reason}" + (f" ({fix})" if fix else "")


def _clip(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def error_from_os(error: OSError, path: str | Path | None = None) -> UserError | None:
    """The UserError or RunError that an operating system error stands for, or None for an unknown kind.

    path: the file or folder to name; without it the one that the error names.
    """
    kind = _OS_ERRORS.get(error.errno or 0)
    if kind is None:
        return None
    error_class, reason, fix = kind
    place = error.filename if path is None else path
    if isinstance(place, bytes):
        place = os.fsdecode(place)
    return error_class(str(place) if place is not None else "file system", reason, fix)


def file_error(error: OSError, path: str | Path, done: str) -> UserError:
    """`error_from_os`, or for an unknown kind `<path>: cannot be <done>: <the system's text>`."""
    return error_from_os(error, path) or UserError(path, f"cannot be {done}: {error.strerror}")


_OS_ERRORS: dict[int, tuple[type[UserError], str, str]] = {
    errno.ENOSPC: (UserError, "no space left on the device", "free some space or choose another place"),
    errno.EDQUOT: (UserError, "disk quota exceeded", "free some space or choose another place"),
    errno.EFBIG: (UserError, "file larger than the file size limit", "raise `ulimit -f`"),
    errno.EACCES: (UserError, "permission denied", "check its permissions or choose another place"),
    errno.EPERM: (UserError, "operation not permitted", "check its permissions or choose another place"),
    errno.EROFS: (UserError, "read-only file system", "choose another place"),
    errno.ENOTDIR: (UserError, "a part of this path is a file, not a folder", "choose another place"),
    errno.EEXIST: (UserError, "is a file, a folder is needed", "choose another place"),
    errno.EISDIR: (UserError, "is a folder, a file is needed", "choose another name"),
    errno.ENAMETOOLONG: (UserError, "name too long", "choose a shorter one"),
    errno.ELOOP: (UserError, "symbolic links form a loop", "remove the link"),
    errno.EMFILE: (RunError, "too many open files", "raise `ulimit -n` or lower --num_threads"),
    errno.ENFILE: (RunError, "too many open files on this machine", "lower --num_threads"),
    errno.EIO: (RunError, "input/output error of the device", "check the disk"),
}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that host or GPU memory is used up (told without importing torch)."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    text = str(error)
    signs = (
        "out of memory", "not enough memory", "DefaultCPUAllocator", "ALLOC_FAILED", "std::bad_alloc",
        "could not create a primitive", "failed to map segment",  # of oneDNN; of the loader of libraries
    )  # fmt: skip
    return isinstance(error, RuntimeError | ImportError) and any(sign in text for sign in signs)


def out_of_memory_error(where: str = "") -> RunError:
    """The error for used-up memory; where: for example "at step 40"."""
    limit = "free some memory, or raise `ulimit -v`"
    fix = "try a smaller --crop_size or --batch_size" if where else limit  # only a training has these flags
    return RunError("memory", f"out of memory {where}".rstrip(), fix)


def as_user_error(error: BaseException) -> UserError | None:
    """What an exception means to the user, or None for one that is our own bug."""
    if isinstance(error, UserError):
        return error
    if is_out_of_memory(error):
        return out_of_memory_error()
    if "can't start new thread" in str(error):
        return RunError("threads", "no thread can be started", "raise `ulimit -u` or `ulimit -v`")
    return error_from_os(error) if isinstance(error, OSError) else None


def report(error: UserError) -> None:
    """Print the one line, and the first entries of a list, to stderr; the full list goes to the log file."""
    entries = [f"  {printable(entry)}" for entry in error.details]
    say(f"error: {error}")
    for entry in entries[:DETAILS_SHOWN]:
        say(_clip(entry, LINE_LIMIT))
    if len(entries) > DETAILS_SHOWN:
        logged = log_text("\n".join([str(error), *entries]))
        place = f", all listed in {_log_file}" if logged else ""
        say(f"  ... and {len(entries) - DETAILS_SHOWN} more{place}")


def say(line: str, must: bool = False) -> None:
    """Print one line on stderr without tearing a progress bar; a closed or full stderr is no error.

    must: even after `set_quiet`.
    """
    if _quiet and not must:
        return
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    line = printable(line).encode(encoding, "backslashreplace").decode(encoding)
    with contextlib.suppress(OSError, ValueError):
        if "tqdm" in sys.modules:  # only then can a bar be on the screen
            sys.modules["tqdm"].tqdm.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)


def warn(subject: str | Path, text: str) -> None:
    """Print `warning: <subject>: <text>` on stderr."""
    say(f"warning: {subject}: {text}")


def run_command(main: Callable[[], int | None], debug: bool = False) -> NoReturn:
    """Run a command's `main` and leave the process with its documented exit code.

    main: returns an exit code or None for 0, and is the first to import torch. debug: tracebacks on stderr too.
    """
    if debug:
        set_debug(True)
    prepare_for_torch()
    try:
        code = main() or 0
        sys.stdout.flush()  # a full disk or closed pipe behind stdout shows here, not at interpreter shutdown
    except KeyboardInterrupt:
        log_text(traceback.format_exc())
        say("error: interrupted")
        code = 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of our output left
        code = 128 + signal.SIGPIPE
    except Exception as error:
        code = _report_exception(error)
    try:
        sys.stdout.flush()
    except OSError:
        # told above; the interpreter would try, and complain about, the rest of the buffer once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def prepare_for_torch() -> None:
    """Set what makes torch faster on a CPU, before it is imported; the user's own settings stay.

    Its threads (GNU OpenMP) wait for each other in a loop of up to 300,000 turns by default. Beside several other
    programs that makes a training many times slower (benchmarks/busy_cores.py). And glibc gives every large block of
    memory back to Linux when it is freed, so every step asks for all its memory anew, page by page.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    names = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    if sys.platform == "linux" and not any(name in os.environ for name in names):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
        if mallopt is not None:
            trim_threshold, mmap_max = -1, -4  # as in malloc.h
            mallopt(mmap_max, 0)
            mallopt(trim_threshold, -1)


def _report_exception(error: Exception) -> int:
    trace = "".join(traceback.format_exception(error))
    logged = log_text(trace)
    known = as_user_error(error)
    if is_out_of_memory(error):
        sys.unraisablehook = lambda _: None  # the clean-up of libraries fails as well, and would print why
    if _debug or (known is None and not logged):
        for line in trace.rstrip().splitlines():
            say(line)
    if known is None:
        place = f"traceback in {_log_file}" if logged else "traceback above"
        known = RunError("internal error", f"{type(error).__name__}: {error}", f"{place}; please report it")
    report(known)
    return known.exit_code


def log_text(text: str) -> bool:
    """Append to the log file; False where there is none or it cannot be written (stderr has its line)."""
    # a pipe would wait for a reader
    if _log_file is None or (_log_file.exists() and not _log_file.is_file()):
        return False
    try:
        with _log_file.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text.rstrip() + "\n")
    except OSError:
        return False
    return True
