"""A save that is killed, or that the disk refuses, at any of its steps: the old state or the new one, never neither."""

import errno
import hashlib
import mmap
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import gan.checkpoint
from datasets.errors import UserError
from datasets.files import remove_leftovers, replacing, write_all, write_atomically
from gan.checkpoint import load_checkpoint, save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
OPERATIONS = ("open", "write", "fsync", "replace", "unlink", "mkdir")


def save(folder: Path, step: int, value: float, **options: Any) -> Path:
    state = {"w": torch.full((4,), value), "best": 12 if step >= 12 else 4}  # the step of the best so far
    return save_checkpoint(folder, state, step=step, epoch=0, **{"keep": 1, **options})


def saves(folder: Path) -> Iterator[float]:
    """Three saves after that of `before`: a new step, the same step again, a new best. Keeps as little as it can."""
    for step, value, best in ((8, 2.0, False), (8, 3.0, False), (12, 4.0, True)):
        save(folder, step, value, best=best)
        yield value


def before(folder: Path) -> Path:
    folder.mkdir()
    save(folder, 4, 1.0, best=True)
    return folder


def loaded(folder: Path) -> float:
    return float(load_checkpoint(folder)[0]["w"][0])


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@contextmanager
def shim(act: Callable[[int, str, Callable[..., Any], tuple], Any]) -> Iterator[None]:
    """Every file operation of this process goes through act(number, name, real operation, arguments)."""
    count = 0
    real = {name: getattr(os, name) for name in OPERATIONS}

    def wrap(name: str) -> Callable[..., Any]:
        def operation(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            return act(count, name, lambda *a: real[name](*a, **named), arguments)

        return operation

    for name in OPERATIONS:
        setattr(os, name, wrap(name))
    try:
        yield
    finally:
        for name in OPERATIONS:
            setattr(os, name, real[name])


def count_operations(folder: Path) -> list[str]:
    names: list[str] = []

    def act(number: int, name: str, real: Callable[..., Any], arguments: tuple) -> Any:
        names.append(name)
        return real(*arguments)

    with shim(act):
        list(saves(folder))
    return names


def die_at(folder: Path, k: int, torn: bool) -> int:
    """Run the saves in a forked process that is killed at its k-th operation; how many saves were done by then.

    torn: the fatal operation, if it writes, writes half of its data first.
    """
    done = mmap.mmap(-1, 8)

    def act(number: int, name: str, real: Callable[..., Any], arguments: tuple) -> Any:
        if number == k:
            if torn and name == "write":
                real(arguments[0], arguments[1][: max(1, len(arguments[1]) // 2)])
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    pid = os.fork()
    if pid == 0:
        try:
            with shim(act):
                for _ in saves(folder):
                    done[0] += 1
        finally:
            os._exit(7)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    return done[0]


def sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str], modes: tuple[bool, ...]) -> list[str]:
    """Kill at every operation of the saves; what went wrong, in words."""
    operations = count_operations(before(tmp_path / "count"))
    assert len(operations) > 30
    problems = []
    for torn in modes:
        for k, operation in enumerate(operations, 1):
            if torn and operation != "write":
                continue
            folder = before(tmp_path / f"{k}-{torn}")
            done = die_at(folder, k, torn)

            def found(problem: str, where: str = f"{k} {operation}") -> None:
                problems.append(f"{where}: {problem}")

            try:
                state, _ = load_checkpoint(folder)
                best = load_checkpoint(folder, "best")[0]["best"]
            except UserError as error:
                found(f"nothing to load: {error}")
                continue
            if (value := float(state["w"][0])) not in (1.0 + done, 2.0 + done):
                found(f"loaded {value} after {done} saves")
            if best < state["best"]:
                found(f"the best of step {state['best']} is lost")
            if warning := capsys.readouterr().err:
                found(warning)
            save(folder, 16, 9.0)
            if loaded(folder) != 9.0:
                found("the next save did not count")
            names = {p.name for p in folder.iterdir()}
            if any(name.endswith(".tmp") for name in names) or len(names) > 4:
                found(f"left over: {names}")
            shutil.rmtree(folder)
    return problems


def test_killed_at_every_operation(tmp_path: Path, capsys) -> None:
    assert sweep(tmp_path, capsys, modes=(False, True)) == []


# The sweep must see a broken protocol, or it proves nothing.


def plant(monkeypatch: pytest.MonkeyPatch, name: str, defect: Any) -> None:
    monkeypatch.setattr(gan.checkpoint, name, defect)


def save_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def in_place(path: Path) -> Iterator[Callable[[bytes], None]]:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        yield lambda data: write_all(descriptor, data)
        os.close(descriptor)

    plant(monkeypatch, "replacing", in_place)


def delete_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    def delete_first(path: Path, data: bytes) -> None:
        for older in sorted(path.parent.glob("ckpt-*"))[:-1]:
            older.unlink()
        write_atomically(path, data)

    plant(monkeypatch, "write_atomically", delete_first)


def name_the_latest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting: list[tuple[Path, bytes]] = []

    def best_last(path: Path, data: bytes) -> None:
        if path.name == "best.json":
            waiting.append((path, data))
        else:
            write_atomically(path, data)
            while waiting:
                write_atomically(*waiting.pop())

    plant(monkeypatch, "write_atomically", best_last)


def name_it_before_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def pointer_first(path: Path) -> Iterator[Callable[[bytes], None]]:
        write_atomically(path.parent / "latest.json", b'{"file": "%s"}' % path.name.encode())
        with replacing(path) as write:
            yield write

    plant(monkeypatch, "replacing", pointer_first)


def leave_leftovers(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "remove_leftovers", lambda folder: None)


@pytest.mark.parametrize(
    "defect",
    [save_in_place, delete_too_early, name_the_latest_first, name_it_before_it_is_there, leave_leftovers],
)
def test_the_sweep_sees_a_planted_defect(tmp_path: Path, capsys, monkeypatch, defect) -> None:
    defect(monkeypatch)
    assert sweep(tmp_path, capsys, modes=(False,)) != []


# --- the disk refuses ---


@pytest.mark.parametrize(
    ("number", "lasting"), [(errno.ENOSPC, True), (errno.ENOSPC, False), (errno.EIO, False)]
)
def test_an_error_at_every_operation(tmp_path: Path, number: int, lasting: bool) -> None:
    """One failed operation, or all from then on (deleting works on a full disk)."""
    operations = count_operations(before(tmp_path / "count"))
    failed = 0
    for k in range(1, len(operations) + 1):
        if operations[k - 1] == "unlink" and lasting:
            continue
        folder = before(tmp_path / str(k))
        done, caught = 0, False
        was = hashes(folder)

        def act(n: int, name: str, real: Callable[..., Any], arguments: tuple, k: int = k) -> Any:
            if n == k or (lasting and n > k and name not in ("unlink", "mkdir")):
                raise OSError(number, os.strerror(number))
            return real(*arguments)

        with shim(act):
            try:
                for _ in saves(folder):
                    done += 1
            except UserError as error:
                caught = True
                assert len(f"error: {error}") <= 300
                assert ("no space: need " in error.reason) == (number in (errno.ENOSPC, errno.EFBIG))
                assert error.exit_code == 2
        assert not list(folder.glob(".*.tmp"))
        assert loaded(folder) in (1.0 + done, 2.0 + done)
        if caught and done == 0:
            assert hashes(folder)["ckpt-00000004.safetensors"] == was["ckpt-00000004.safetensors"]
        failed += caught
        save(folder, 16, 9.0)
        assert loaded(folder) == 9.0
        shutil.rmtree(folder)
    assert failed > 30


def run_python(script: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        cwd=ROOT, capture_output=True, text=True, **options,
    )  # fmt: skip


SAVE_BIG = """
    import sys, torch
    from pathlib import Path
    from datasets.errors import run_command
    from gan.checkpoint import save_checkpoint
    run_command(lambda: save_checkpoint(
        Path(sys.argv[1]), {"w": torch.ones(int(sys.argv[2]))}, step=8, epoch=0, keep=1) and None)
"""


def test_the_file_size_limit(tmp_path: Path) -> None:
    folder = before(tmp_path / "run")
    was = hashes(folder)
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
    done = run_python(SAVE_BIG, str(folder), str(2**20), preexec_fn=limit)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {folder}/ckpt-00000008.safetensors: no space: need 4.0 MiB, ")
    assert done.stderr.count("\n") == 1
    assert hashes(folder) == was


def test_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        folder = before(disk / "run")
        was = hashes(folder)
        done = run_python(SAVE_BIG, str(folder), str(10 * 2**20))
        assert done.returncode == 2
        expected = f"error: {folder}/ckpt-00000008.safetensors: no space: need 40 MiB, free 20 MiB (free some space)\n"
        assert done.stderr == expected
        assert hashes(folder) == was
        assert loaded(folder) == 1.0
        done = run_python(SAVE_BIG, str(folder), str(2**20))  # next time there is room
        assert (done.returncode, done.stderr) == (0, "")
        assert loaded(folder) == 1.0
        assert load_checkpoint(folder)[1].name == "ckpt-00000008.safetensors"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("place", ["file/run", "/proc/run"])
def test_a_place_that_cannot_be(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"a part of this path|no such file|cannot be written"):
        save(tmp_path / place, 4, 1.0)


def test_a_deleted_folder_is_made_again(tmp_path: Path) -> None:
    folder = before(tmp_path / "run")
    shutil.rmtree(folder)
    save(folder, 8, 2.0)
    assert loaded(folder) == 2.0


# --- real processes ---

ENDLESS = """
    import sys, torch
    from pathlib import Path
    from gan.checkpoint import save_checkpoint
    for step in range(1, 10**6):
        state = {"w": torch.full((200_000,), float(step)), "step": step}
        save_checkpoint(Path(sys.argv[1]), state, step=step, epoch=0, keep=1)
        print(step, flush=True)
"""


@pytest.mark.parametrize("lines", [1, 3, 8])
def test_kill_9_of_a_saving_process(tmp_path: Path, capsys, lines: int) -> None:
    command = [sys.executable, "-c", textwrap.dedent(ENDLESS), str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(lines):
        process.stdout.readline()
    process.kill()
    told = process.communicate()[0].split()
    last = int(told[-1]) if told else lines
    state, _ = load_checkpoint(tmp_path)
    assert state["step"] in (last, last + 1)
    assert (state["w"] == state["step"]).all()
    assert capsys.readouterr().err == ""
    path = save_checkpoint(tmp_path, {}, step=state["step"] + 1, epoch=0, keep=1)
    assert {p.name for p in tmp_path.iterdir()} == {"latest.json", path.name}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_during_a_save(tmp_path: Path, number: int, code: int) -> None:
    """The save that is under way is finished, and the loop then learns of the signal."""
    script = """
        import os, signal, sys, torch
        from pathlib import Path
        from gan.checkpoint import save_checkpoint
        from gan.signals import StopRequest
        real, calls = os.write, []
        def write(fd, data):
            calls.append(fd)
            if len(calls) == 1:
                os.kill(os.getpid(), int(sys.argv[2]))
            return real(fd, data)
        with StopRequest() as stop:
            os.write = write
            save_checkpoint(Path(sys.argv[1]), {"w": torch.ones(9)}, step=1, epoch=0, keep=1)
            sys.exit(stop.exit_code)
    """
    done = run_python(script, str(tmp_path), str(int(number)))
    assert done.returncode == code
    assert done.stderr.count("\n") == 1
    assert loaded(tmp_path) == 1.0
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("call", range(1, 14, 2))
def test_leaving_at_once_during_a_save(tmp_path: Path, call: int, monkeypatch) -> None:
    """A second Ctrl-C raises KeyboardInterrupt, wherever the save is."""
    folder = before(tmp_path / "run")
    was = hashes(folder)

    def act(number: int, name: str, real: Callable[..., Any], arguments: tuple) -> Any:
        if number == call:
            raise KeyboardInterrupt
        return real(*arguments)

    with shim(act), pytest.raises(KeyboardInterrupt):
        save(folder, 8, 2.0)
    assert not list(folder.glob(".*.tmp"))
    assert loaded(folder) in (1.0, 2.0)
    assert hashes(folder).items() >= {name: was[name] for name in was if name.startswith("ckpt")}.items()


def test_the_order_of_a_save(tmp_path: Path) -> None:
    """What only a power cut would show: contents are flushed before a rename, the folder after it, deleting is last."""
    folder = before(tmp_path / "run")
    events: list[str] = []
    opened: dict[int, str] = {}

    def act(number: int, name: str, real: Callable[..., Any], arguments: tuple) -> Any:
        result = real(*arguments)
        if name == "open":
            path = Path(arguments[0])
            opened[result] = (
                "folder" if path == folder else path.name.split(".")[-3 if path.suffix == ".tmp" else -1]
            )
        elif name in ("write", "fsync") and events[-1:] != [event := f"{name} {opened[arguments[0]]}"]:
            events.append(event)
        elif name == "replace":
            events.append(f"rename to {Path(arguments[1]).name}")
        elif name == "unlink":
            events.append(f"delete {Path(arguments[0]).name}")
        return result

    with shim(act):
        save(folder, 8, 2.0, best=True)
    assert events == [
        "write safetensors", "fsync safetensors", "rename to ckpt-00000008.safetensors", "fsync folder",
        "write json", "fsync json", "rename to best.json", "fsync folder",
        "write json", "fsync json", "rename to latest.json", "fsync folder",
        "delete ckpt-00000004.safetensors",
    ]  # fmt: skip


# --- the parts ---


def test_leftovers_of_the_dead_go_and_those_being_written_stay(tmp_path: Path) -> None:
    dead = tmp_path / ".page.html.0123456789ab.tmp"
    dead.write_text("half")
    for name in (".keep.tmp", "x.0123456789ab.tmp", ".hidden"):
        (tmp_path / name).write_text("not ours")
    with replacing(tmp_path / "page.html") as write:
        write(b"new")
        remove_leftovers(tmp_path)
        assert not dead.exists()
        assert len(list(tmp_path.glob(".page.html.*.tmp"))) == 1
    assert (tmp_path / "page.html").read_bytes() == b"new"
    assert {p.name for p in tmp_path.iterdir()} == {".keep.tmp", "x.0123456789ab.tmp", ".hidden", "page.html"}
    remove_leftovers(tmp_path / "missing")


def test_write_atomically(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"one")
    with pytest.raises(RuntimeError), replacing(path) as write:
        write(b"two")
        raise RuntimeError
    assert path.read_bytes() == b"one"
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
