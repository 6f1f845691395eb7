"""A Visdom server of our own: a child process that only this machine can reach.

Only the training's own thread starts the process. A loader worker that another thread forks at that moment would
inherit the pipe on which `Popen` waits for the start to succeed, and hold it open until the epoch ends.
"""

import contextlib
import importlib.util
import socket
import subprocess
import sys
from pathlib import Path

from gan.viewers.visdom_http import Address

ROOT = Path(__file__).resolve().parents[2]
STOP_SECONDS = 2.0
PORTS_TRIED = 20
STARTS = 3


class LocalServer:
    """One server on the loopback interface, with its log and state under `folder`."""

    def __init__(self, folder: Path, address: Address, keep: bool) -> None:
        self._folder = folder
        self._keep = keep
        self.address = address
        self.has_answered = False  # since its last start
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0

    @property
    def log(self) -> Path:
        return self._folder / "server.log"

    def start(self) -> None:
        """Start the process, on the next free port if the wanted one is taken; it answers a few seconds later.

        Does nothing while it runs. Raises OSError if it cannot be started, with the reason as its text.
        """
        if self.is_running:
            return
        if self._starts == STARTS:
            raise OSError(f"it ended {STARTS} times, see {self.log}")
        self._starts += 1
        self.has_answered = False
        if importlib.util.find_spec("visdom") is None:
            raise OSError("the visdom package is not installed")
        port = free_port(self.address.port)
        self.address = Address("http://localhost", port, self.address.base_url)
        (self._folder / "state").mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "gan.viewers.visdom_launch"]
        command += ["-logging_level", "WARNING"]  # it would log every request
        command += ["-port", str(port), "-bind_local", "-env_path", str(self._folder.resolve() / "state")]
        command += ["-base_url", self.address.path] if self.address.path else []
        command += ["--keep"] if self._keep else []
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL if self._keep else subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the training, which then stops the server
            )

    @property
    def is_running(self) -> bool:
        """Whether the process exists; it may not answer yet, or be stopped."""
        process = self._process
        return process is not None and process.poll() is None

    def stop(self) -> None:
        """End the process within seconds, unless it is to be kept."""
        process, self._process = self._process, None
        if process is None or self._keep:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()  # also where it is stopped (SIGSTOP)
            process.wait()
        if process.stdin:
            with contextlib.suppress(OSError):
                process.stdin.close()


def free_port(wanted: int) -> int:
    """`wanted`, or the next port above it that nothing listens on. Raises OSError if there is none near."""
    for port in range(wanted, min(wanted + PORTS_TRIED, 65536)):
        with socket.socket() as listener:
            listener.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # as the server itself will bind it
            with contextlib.suppress(OSError):
                listener.bind(("127.0.0.1", port))
                listener.listen(1)
                return port
    raise OSError(f"ports {wanted} to {wanted + PORTS_TRIED - 1} are all taken")
