"""Shared test set-up: the project root on the path, few threads per worker, real data by environment variable."""

import contextlib
import itertools
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

if "PYTEST_XDIST_WORKER" in os.environ:  # several workers share the cores
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the programs that tests start

# Under nohup it is ignored, and so in every process that a test starts and then sends it to.
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def noise(path: Path, size: tuple[int, int] = (24, 18), seed: int = 0, **options: Any) -> Path:
    """Write a picture of random colours, (width, height) pixels; options are those of Pillow's save."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(path, **options)
    return path


def spy(
    monkeypatch: pytest.MonkeyPatch, place: Any, attribute: str, taken: list[str], name: str = ""
) -> None:
    """Every call of that function adds its name, or `name`, to `taken`."""
    function = getattr(place, attribute)

    def called(*arguments: Any) -> Any:
        taken.append(name or attribute)
        return function(*arguments)

    monkeypatch.setattr(place, attribute, called)


_ports = itertools.count(10_000 + os.getpid() * 101 % 20_000)


def unused_port() -> int:
    """A port for a server that starts later.

    No other worker gets it meanwhile: each has a range of its own, below that from which systems take the ports of
    connections and of servers that do not name one.
    """
    for port in _ports:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("the ports are endless")


@contextlib.contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[str]:
    """Run a web server in a thread; gives its address, without a slash at the end."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    with server:
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what this machine cannot run or was not asked for, each with its reason."""
    for item in items:
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU on this machine"))
        if item.get_closest_marker("slow") and "slow" not in config.getoption("-m"):
            item.add_marker(pytest.mark.skip(reason="slow proof: run with -m slow"))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes stay out of the ids: the output of a compressor, say, holds the time."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def libraries(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the CUDA kernels, compiled for the CPU, stay from one run of the suite to the next."""
    cache = getattr(pytestconfig, "cache", None)
    return cache.mkdir("cuda_shim") if cache else tmp_path_factory.mktemp("cuda_shim")


@pytest.fixture
def kernels_on_cpu(libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors are served by the CUDA kernels for the length of a test."""
    from cuda_shim.launcher import COMPILER, host_launchers

    from cuda_ops import cuda, nvrtc

    if COMPILER is None:
        pytest.skip("no C++ compiler (g++ or clang++) to run the kernels on the CPU")
    monkeypatch.setitem(nvrtc.LAUNCHERS, "cpu", host_launchers(libraries))
    monkeypatch.setattr(cuda, "_outcomes", {})


@pytest.fixture
def exact_convolutions() -> Iterator[None]:
    """On a GPU no TF32, and cuDNN's deterministic algorithms: what is left to differ is ours."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real image subsets (maps, facades, horse2zebra), from I2I_REAL_DATA."""
    folder = os.environ.get("I2I_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip(
            "real images not available: set I2I_REAL_DATA to a folder with maps/, facades/, horse2zebra/"
        )
    return Path(folder)


@pytest.fixture
def nothing_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For evaluations: own cache, no weights, no downloads."""
    monkeypatch.setenv("I2I_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("I2I_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("I2I_WEIGHTS", raising=False)
