"""What the Visdom tests share: the scripts of Visdom's page from npm packages, a real server, a small fake run."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import unused_port

from gan.viewers import Record, RunInfo
from gan.viewers.samples import save_samples
from gan.viewers.visdom_server import Address, Unreachable, exchange, log_in

ROOT = Path(__file__).resolve().parents[1]

# npm package, file in it, its place under visdom/static; the last ones differ in Visdom 0.3
PAGE_FILES = """
jquery@3.1.1 dist/jquery.min.js js/jquery.min.js
bootstrap@3.3.7 dist/js/bootstrap.min.js js/bootstrap.min.js
bootstrap@3.3.7 dist/css/bootstrap.min.css css/bootstrap.min.css
bootstrap@3.3.7 dist/fonts/glyphicons-halflings-regular.woff2 fonts/glyphicons-halflings-regular.woff2
react@16.2.0 umd/react.production.min.js js/react-react.min.js
react-dom@16.2.0 umd/react-dom.production.min.js js/react-dom.min.js
react-modal@3.1.10 dist/react-modal.min.js js/react-modal.min.js
plotly.js-dist-min@2.11.1 plotly.min.js js/plotly-plotly.min.js
sjcl@1.0.7 sjcl.js js/sjcl.js
layout-bin-packer@1.4.0 dist/layout-bin-packer.js js/layout_bin_packer.js
layout-bin-packer@1.4.0 dist/layout-bin-packer.js fonts/layout_bin_packer.js
d3@3.5.17 d3.min.js js/d3.v3.min.js
d3-selection-multi@1.0.1 build/d3-selection-multi.js js/d3-selection-multi.v1.js
save-svg-as-png@1.4.17 lib/saveSvgAsPng.js js/saveSvgAsPng.js
classnames@2.2.5 index.js fonts/classnames
"""
PAGE_FILES_0_2 = """
react-resizable@1.4.6 css/styles.css css/react-resizable-styles.css
react-grid-layout@0.16.3 css/styles.css css/react-grid-layout-styles.css
mathjax@2.7.5 MathJax.js js/mathjax/2.7.5/MathJax.js
"""
PAGE_FILES_0_3 = """
react-resizable@3.1.3 css/styles.css css/react-resizable-styles.css
react-grid-layout@2.2.3 css/styles.css css/react-grid-layout-styles.css
mathjax@3.2.2 es5/tex-mml-svg.js js/mathjax/3.2.2/es5/tex-mml-svg.js
"""


# a bare server, but without what its client part would import (seconds of torch)
START = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
sys.modules.update(torch=None, openTSNE=None)
import visdom.server.app; visdom.server.app.DEFAULT_MAX_IMAGE_HISTORY = 1000
from visdom.server.run_server import main; main()
"""


def visdom_static() -> Path | None:
    """The static folder of the installed Visdom, None without it."""
    spec = find_spec("visdom")
    return Path(spec.origin).parent / "static" if spec and spec.origin else None


def install_page_files() -> str:
    """Put the scripts of Visdom's page where its server looks for them; the reason if that cannot be done."""
    static = visdom_static()
    if static is None:
        return "visdom is not installed"
    version = (static.parent / "VERSION").read_text().strip()
    table = PAGE_FILES + (PAGE_FILES_0_2 if version.startswith("0.2") else PAGE_FILES_0_3)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "visdom-page-files"
    cache.mkdir(parents=True, exist_ok=True)
    for package, name, place in map(str.split, table.strip().replace("\n\n", "\n").split("\n")):
        if (static / place).is_file():
            continue
        archive = cache / (package.replace("@", "-") + ".tgz")
        if not archive.is_file():
            if shutil.which("npm") is None:
                return f"the scripts of Visdom's page are missing ({package}) and there is no npm to get them"
            done = subprocess.run(["npm", "pack", package], cwd=cache, capture_output=True, text=True)
            if done.returncode or not archive.is_file():
                return f"npm cannot get {package}: {done.stderr.strip()[-200:]}"
        with tarfile.open(archive) as packed:
            source = packed.extractfile(f"package/{name}")
            assert source is not None
            (static / place).parent.mkdir(parents=True, exist_ok=True)
            (static / place).write_bytes(source.read())
    return ""


def ask(address: Address, endpoint: str, cookie: str = "", **message: Any) -> Any:
    """Post a message and return the answer, read as JSON where it is. Raises Unreachable, also for a refusal."""
    answer = exchange(address, "POST", f"/{endpoint}", json.dumps(message), cookie)
    if answer.status != 200:
        raise Unreachable(f"it answers {answer.status}")
    try:
        return json.loads(answer.body)
    except ValueError:
        return answer.body.decode()


needs_visdom = pytest.mark.skipif(find_spec("visdom") is None, reason="visdom is not installed")


class RealServer:
    """A Visdom server on the loopback interface, that can be stopped, killed and started again on its port."""

    def __init__(self, folder: Path, login: tuple[str, str] | None = None) -> None:
        self.port = unused_port()
        self.address = Address("http://127.0.0.1", self.port)
        self.folder, self._login = folder, login
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        # where it keeps the secret of its cookies
        (self.folder / ".visdom").mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", START]
        command += ["-port", str(self.port), "-bind_local", "-env_path", str(self.folder)]
        environment = {**os.environ, "HOME": str(self.folder)}
        if self._login:
            command += ["-enable_login", "-force_new_cookie"]
            environment |= {"VISDOM_USE_ENV_CREDENTIALS": "1", "VISDOM_COOKIE": "a cookie secret"}
            environment |= dict(zip(("VISDOM_USERNAME", "VISDOM_PASSWORD"), self._login, strict=True))
        log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=self.folder)
        log.close()
        wait_until(self.answers)

    def answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None, (self.folder / "log").read_text()
        try:
            log_in(self.address, *(self._login or ("", "")))
        except Unreachable:
            return False
        return True

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def ask(self, endpoint: str, **message: Any) -> Any:
        """Post a message and return the answer, read as JSON where it is."""
        return ask(self.address, endpoint, log_in(self.address, *(self._login or ("", ""))), **message)

    def panes(self, env: str) -> dict[str, dict[str, Any]]:
        """Everything the server holds of an environment, pane name -> pane."""
        return self.ask("win_data", win=None, eid=env)

    def shows(self, env: str, pane: str) -> bool:
        return self.ask("win_exists", win=pane, eid=env)

    def curve(self, env: str, pane: str, name: str) -> dict[int, float]:
        """Step -> value of one curve; empty if there is none yet."""
        try:
            data = self.panes(env)[pane]["content"]["data"]
        except (KeyError, Unreachable):
            return {}
        return next((dict(zip(d["x"], d["y"], strict=True)) for d in data if d["name"] == name), {})


@contextlib.contextmanager
def real_server(folder: Path, login: tuple[str, str] | None = None) -> Iterator[RealServer]:
    server = RealServer(folder, login)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def wait_until(happens: Callable[[], bool], seconds: float = 480.0) -> None:
    """Look until it happens; an AssertionError after so many seconds, which only what never happens takes."""
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline, f"did not happen within {seconds} s"
        time.sleep(0.02)


def train_record(step: int, epoch: int = 1, loss: float | None = None) -> Record:
    value = 1.0 / step if loss is None else loss
    time_part = {"images_per_s": 3.0, "data_wait": 0.1, "elapsed": float(step)}
    return {
        "kind": "train",
        "step": step,
        "epoch": epoch,
        "losses": {"G_GAN": value},
        "lr": 2e-4,
        "time": time_part,
    }


class FakeRun:
    """A run's folder, and the records a training would write into it."""

    def __init__(self, folder: Path, name: str = "fake") -> None:
        self.folder = folder / name
        self.folder.mkdir(parents=True)
        options = {"model": "pix2pix", "norm": "nc_ms", "crop_size": 32, "visdom_password": "pa55word"}
        self.info = RunInfo(name, self.folder, options, "test host")
        self.records: list[Record] = []

    def keep(self, record: Record) -> Record:
        """Append to metrics.jsonl."""
        self.records.append(record)
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        return record

    def samples(self, step: int, epoch: int = 1, count: int = 2) -> Record:
        """Draw samples whose translated pictures are as bright as `step` says, and keep their record."""
        folder = f"samples/step-{step:08d}"
        level = min(1.0, step / 100) * 2 - 1
        images = {"input": torch.zeros(count, 3, 32, 32), "fake": torch.full((count, 3, 32, 32), level)}
        files = save_samples(self.folder / folder, images)
        pictures = {kind: path.name for kind, path in files.items()}
        record = {"kind": "samples", "step": step, "epoch": epoch, "folder": folder, "pictures": pictures}
        return self.keep(record)
