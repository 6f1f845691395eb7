"""The error contract: one line, ten entries of a list, documented exit codes, tracebacks only in the log."""

import errno
import multiprocessing
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from datasets import errors
from datasets.errors import RunError, UserError, error_from_os, is_out_of_memory, run_command

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def no_log_file() -> Any:
    yield
    errors.set_log_file(None)
    errors.set_debug(False)


def run(main: Callable[[], int | None], capsys: Any, **options: bool) -> tuple[object, str]:
    with pytest.raises(SystemExit) as left:
        run_command(main, **options)
    return left.value.code, capsys.readouterr().err


def raises(error: BaseException) -> Callable[[], int | None]:
    def main() -> int | None:
        raise error

    return main


def test_a_user_error_is_one_line_and_exit_code_2(capsys: Any) -> None:
    code, text = run(raises(UserError(Path("data/x.png"), "is empty", "remove it")), capsys)
    assert (code, text) == (2, "error: data/x.png: is empty (remove it)\n")
    code, text = run(raises(UserError("--norm", "unknown")), capsys)
    assert (code, text) == (2, "error: --norm: unknown\n")


@pytest.mark.parametrize(
    ("main", "code"),
    [
        (lambda: None, 0),
        (lambda: 143, 143),
        (raises(SystemExit(7)), 7),
        (raises(RunError("loss", "is nan")), 1),
    ],
    ids=["none", "code", "exit", "run error"],
)
def test_exit_codes(main: Callable[[], int | None], code: int, capsys: Any) -> None:
    assert run(main, capsys)[0] == code


def test_ctrl_c_is_one_line_and_130(capsys: Any) -> None:
    code, text = run(raises(KeyboardInterrupt()), capsys)
    assert code == 130
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    "nasty", ["a\nb.png", "a\tb\x1b[31m.png", "\u2028\u202e.png", "\udcff.png", "x" * 4000]
)
def test_file_names_cannot_break_the_line(nasty: str, capsys: Any) -> None:
    _, text = run(raises(UserError(nasty, f"no such file {nasty}", f"add {nasty}", [nasty])), capsys)
    first, second, rest = text.split("\n")
    assert rest == ""
    assert first.startswith("error: ")
    assert len(first) <= 300
    assert len(second) <= 300
    assert (first + second).isprintable()


def test_a_long_line_keeps_the_file_name_the_reason_and_the_fix(capsys: Any) -> None:
    path = "/very/long/" + "folder/" * 40 + "picture.png"
    _, text = run(raises(UserError(path, "is damaged " + "x" * 300, "replace or remove it")), capsys)
    assert len(text.rstrip("\n")) == 300
    assert "picture.png: is damaged" in text
    assert text.endswith("(replace or remove it)\n")


def test_of_a_list_ten_entries_are_shown_and_all_are_in_the_log(tmp_path: Path, capsys: Any) -> None:
    names = [f"bad{i:02}.png" for i in range(25)]
    main = raises(UserError("data", "25 images cannot be used", details=names))
    _, text = run(main, capsys)
    assert text.splitlines() == [
        "error: data: 25 images cannot be used",
        *(f"  {name}" for name in names[:10]),
        "  ... and 15 more",
    ]
    log = tmp_path / "run.log"
    errors.set_log_file(log)
    _, text = run(main, capsys)
    assert text.splitlines()[-1] == f"  ... and 15 more, all listed in {log}"
    assert all(name in log.read_text() for name in names)
    _, text = run(raises(UserError("data", "bad", details=names[:10])), capsys)
    assert "more" not in text


def test_tracebacks_go_to_the_log_and_with_debug_to_stderr(tmp_path: Path, capsys: Any) -> None:
    log = tmp_path / "run.log"
    errors.set_log_file(log)
    assert run(raises(UserError("x", "y")), capsys)[1] == "error: x: y\n"
    assert "Traceback" in log.read_text()
    _, text = run(raises(UserError("x", "y")), capsys, debug=True)
    assert "Traceback" in text and text.endswith("error: x: y\n")


def test_our_own_bugs_are_exit_code_1_and_say_where_the_traceback_is(tmp_path: Path, capsys: Any) -> None:
    code, text = run(raises(KeyError("norm")), capsys)
    assert code == 1
    assert "Traceback" in text
    assert "error: internal error: KeyError: 'norm'" in text.splitlines()[-1]
    log = tmp_path / "run.log"
    errors.set_log_file(log)
    code, text = run(raises(KeyError("norm")), capsys)
    assert text.count("\n") == 1
    assert str(log) in text
    assert "Traceback" in log.read_text()


def test_a_log_that_cannot_be_written_costs_no_line(tmp_path: Path, capsys: Any) -> None:
    errors.set_log_file(tmp_path / "missing" / "run.log")
    assert run(raises(UserError("x", "y")), capsys) == (2, "error: x: y\n")
    assert "Traceback" in run(raises(KeyError("norm")), capsys)[1]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("could not create a primitive"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ],
)
def test_used_up_memory_is_recognised(error: Exception, capsys: Any) -> None:
    code, text = run(raises(error), capsys)
    assert code == 1
    assert text == "error: memory: out of memory (free some memory, or raise `ulimit -v`)\n"


def test_a_limit_on_threads_is_recognised(capsys: Any) -> None:
    code, text = run(raises(RuntimeError("can't start new thread")), capsys)
    assert (code, text.count("\n")) == (1, 1) and text.startswith("error: threads: no thread can be started")


def test_memory_that_torch_really_refuses_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 58, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (errno.ENOSPC, 2, "no space left"),
        (errno.EACCES, 2, "permission denied"),
        (errno.EROFS, 2, "read-only"),
        (errno.EMFILE, 1, "ulimit -n"),
    ],
)
def test_errors_of_the_file_system_name_the_file(number: int, code: int, words: str, capsys: Any) -> None:
    got, text = run(raises(OSError(number, "...", "runs/x/ckpt.pt")), capsys)
    assert got == code
    assert text.startswith("error: runs/x/ckpt.pt: ")
    assert words in text
    assert text.count("\n") == 1


def test_a_path_that_is_told_wins_over_the_temporary_one() -> None:
    error = error_from_os(OSError(errno.ENOSPC, "...", "runs/.tmp"), Path("runs/a.png"))
    assert error is not None
    assert error.subject == "runs/a.png"
    assert error_from_os(OSError(errno.ECHILD, "...")) is None


def test_errors_cross_processes_unchanged() -> None:
    for error in (UserError("s", "r", "f", ["d"]), RunError("s", "r")):
        here, there = multiprocessing.Pipe()
        there.send(error)
        copy = here.recv()
        assert type(copy) is type(error)
        assert (str(copy), copy.details, copy.exit_code) == (str(error), error.details, error.exit_code)


def start(expression: str, **options: Any) -> "subprocess.Popen[str]":
    """A command whose main is an expression."""
    code = f"from datasets.errors import *\ndef fail(error): raise error\nrun_command(lambda: {expression})"
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True, **options
    )


def test_a_closed_pipe_is_quiet(monkeypatch: Any) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    writer = start("print('line\\n' * 100000)", stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    writer.stdout.close()
    assert writer.communicate()[1] == ""
    assert writer.returncode == 128 + signal.SIGPIPE


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_to_a_full_disk_is_one_line(monkeypatch: Any) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # the last words wait in a buffer until the end
    with Path("/dev/full").open("w") as full:
        done = start("print('line')", stdout=full)
        text = done.communicate()[1]
    assert done.returncode == 2
    assert text.startswith("error: ") and "no space left" in text and text.count("\n") == 1


def test_an_ascii_terminal_gets_escapes() -> None:
    done = start(
        "fail(UserError('b\\u00e4r.png', 'is empty'))", env={"PYTHONIOENCODING": "ascii", "LANG": "C"}
    )
    assert done.communicate()[1] == "error: b\\xe4r.png: is empty\n"
    assert done.returncode == 2


def test_threads_of_torch_spin_shortly_unless_the_user_says_otherwise() -> None:
    def spins(**settings: str) -> str:
        """As GNU OpenMP understood it when torch loaded it."""
        own = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
        environment = {name: value for name, value in os.environ.items() if name not in own}
        program = "from datasets.errors import run_command; run_command(lambda: __import__('torch') and 0)"
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment | {"OMP_DISPLAY_ENV": "verbose"} | settings,
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        found = re.search("GOMP_SPINCOUNT = '(.*)'", done.stderr)
        return found[1] if found else pytest.skip("torch uses another OpenMP here")

    assert spins() == "10000"
    assert spins(GOMP_SPINCOUNT="77") == "77"
    assert spins(OMP_WAIT_POLICY="PASSIVE") == "0"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no such settings")
def test_a_command_keeps_the_memory_that_it_frees() -> None:
    program = """if True:
        import resource
        from datasets.errors import run_command

        def main():
            for _ in range(2):
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                bytearray(b"1") * (64 << 20)
            print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

        run_command(main)
    """

    def page_faults(**settings: str) -> int:
        """Of 64 MiB the second time: 16384 pages, or none."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        command = [sys.executable, "-c", program]
        return int(subprocess.check_output(command, env=environment | settings, cwd=ROOT, text=True))

    assert page_faults() < 100
    huge_pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not huge_pages.exists() or "[always]" not in huge_pages.read_text():
        assert page_faults(MALLOC_MMAP_MAX_="65536") > 10_000  # the user's setting decides
