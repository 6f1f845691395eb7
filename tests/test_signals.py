"""Signals as a flag, a second Ctrl-C, and output that nobody reads, each in a real process."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from gan.signals import StopRequest

ROOT = Path(__file__).resolve().parents[1]
AGAIN = "stopping after this step; press Ctrl-C again to leave at once\n"
ONCE = "stopping after this step; press Ctrl-C to leave at once\n"

LOOP = """
    import sys
    from datasets.errors import run_command
    from gan.signals import StopRequest
    def main():
        with StopRequest() as stop:
            while stop.requested is None:
                print("step", flush=True)
                sys.stdin.readline()
            print("saved", flush=True)
            if len(sys.argv) > 1:
                sys.stdin.readline()
            return stop.exit_code
    run_command(main)
"""


def start(script: str, *arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", textwrap.dedent(script), *arguments],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_the_first_signal_is_a_flag_and_the_step_goes_on() -> None:
    for number, line in (
        (signal.SIGINT, AGAIN),
        (signal.SIGTERM, ONCE),
        (signal.SIGHUP, ONCE),
        (signal.SIGUSR1, ONCE),
    ):
        process = start(LOOP)
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "step\n"
        process.send_signal(number)
        assert process.stderr.readline() == line
        out, err = process.communicate("\n")
        assert out == "saved\n"
        assert err == ""
        assert process.returncode == 128 + number


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_after_that_leaves_at_once(first: signal.Signals) -> None:
    process = start(LOOP)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "step\n"
    process.send_signal(first)
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert "Traceback" not in process.stderr.read()
    process.communicate()


def test_a_second_request_changes_nothing() -> None:
    process = start(LOOP, "wait")
    assert process.stdout is not None and process.stdin is not None and process.stderr is not None
    assert process.stdout.readline() == "step\n"
    process.send_signal(signal.SIGTERM)
    process.stderr.readline()
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "saved\n"
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate("\n")
    assert err == ""
    assert process.returncode == 143


def test_the_old_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(KeyError), StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == signal.SIGTERM
        assert stop.exit_code == 143
        raise KeyError
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    with StopRequest() as stop:
        pass
    assert stop.requested is None
    assert stop.exit_code == 0


def test_nohup_is_respected() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.requested is None
    finally:
        signal.signal(signal.SIGHUP, previous)


# --- output that nobody reads ---

TALK = """
    import sys
    from pathlib import Path
    from datasets.errors import run_command
    from gan.signals import tolerate_closed_stdout
    tolerate_closed_stdout()
    def main():
        for step in range(20_000):
            print("step", step, "\\u2713")
            if step % 5000 == 0:
                print("progress", file=sys.stderr)
        Path(sys.argv[1]).write_text("done")
    run_command(main)
"""


def test_a_reader_that_leaves_stops_nothing(tmp_path: Path) -> None:
    process = start(TALK, str(tmp_path / "end"))
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "step 0 \u2713\n"
    process.stdout.close()
    process.stderr.close()
    assert process.wait() == 0
    assert (tmp_path / "end").read_text() == "done"
    assert process.stdin is not None
    process.stdin.close()


def test_without_a_closed_reader_everything_arrives(tmp_path: Path) -> None:
    out, err = start(TALK, str(tmp_path / "end")).communicate()
    assert out.splitlines() == [f"step {step} \u2713" for step in range(20_000)]
    assert err == "progress\n" * 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_stdout_stops_nothing(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(TALK), str(tmp_path / "end")],
            cwd=ROOT,
            stdout=full,
            stderr=full,
        )
    assert done.returncode == 0
    assert (tmp_path / "end").exists()


def test_streams_closed_from_the_start_are_not_given_to_files(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import os, sys
        from gan.signals import tolerate_closed_stdout
        tolerate_closed_stdout()
        print("nobody reads this")
        with open(sys.argv[1], "w") as file:
            assert file.fileno() > 2
            file.write("done")
    """)
    command = f'exec "{sys.executable}" -c "$1" "$2" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", command, "sh", script, str(tmp_path / "end")], cwd=ROOT)
    assert done.returncode == 0
    assert (tmp_path / "end").read_text() == "done"
