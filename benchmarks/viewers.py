"""What watching costs: training time with Visdom on against off, and how long a picture takes to the browser.

    python benchmarks/viewers.py [--pairs 15] [--steps 400] [--size 64] [--ngf 16] [--browser]

One training, in which blocks of `steps` steps with a connected Visdom and without any viewer take turns; records and
samples come at the default intervals (every 100 and every 400 steps), and both kinds of block write the same files.
Figures are the median of the ratios of neighbouring blocks, and the ratio of the quickest block of each kind, which
other work on the machine disturbs less. Where the machine is busy neither is sharp, so the cost is also measured
directly: the time the training thread spends in the viewer's calls, and the CPU time of the sender's thread, which
would slow the training by as much if no core were free. The server is a process of its own on the same machine.

With --browser a headless Chromium shows the page meanwhile, and the time from the end of a step to its picture on the
screen is measured (needs playwright, Chromium, and the scripts of Visdom's page).
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from datasets.synthetic import write_dataset
from gan.command_line import parse_train
from gan.options import stored_dict
from gan.run import MetricsLog
from gan.setup import build_data, build_trainer
from gan.viewers import RunInfo, Viewers
from gan.viewers.samples import save_samples
from gan.viewers.visdom import Visdom
from gan.viewers.visdom_server import Address, LocalServer, Unreachable, exchange

PRINT_FREQ, DISPLAY_FREQ = 100, 400
ENV = "benchmark"
PICTURE = """() => {
    const image = document.querySelector('img[src^="data:image/jpeg"]');
    return image && image.src;
}"""


class Subject:
    """A small pix2pix that trains on and on."""

    def __init__(self, folder: Path, size: int, ngf: int) -> None:
        data = folder / "data"
        write_dataset(data, count=32, size=size, layout="aligned", seed=0)
        flags = f"--dataroot {data} --checkpoints_dir {folder} --name {ENV} --model pix2pix --norm nc_ms"
        flags += f" --netG resnet_6blocks --ngf {ngf} --ndf {ngf} --load_size {size} --crop_size {size} --num_threads 0"
        self.options, _ = parse_train([*flags.split(), "--device", "cpu"])
        self.trainer, self.data = build_trainer(self.options), build_data(self.options)
        self.run = RunInfo(ENV, folder / ENV, stored_dict(self.options), "benchmark")
        self.run.folder.mkdir()
        self._log = MetricsLog(self.run.folder / "metrics.jsonl")
        self._batches = self._endless()
        self.step = 0
        self.in_viewers = 0.0  # seconds spent in their calls

    def _endless(self) -> Iterator[Any]:
        epoch = 0
        while True:
            epoch += 1
            yield from self.data.batches(epoch, 0)

    def train(self, viewers: Viewers, steps: int) -> float:
        """Seconds that so many steps took."""
        begin = time.perf_counter()
        for _ in range(steps):
            result = self.trainer.step(next(self._batches))
            self.step += 1
            if self.step % PRINT_FREQ == 0:
                losses = {name: float(loss) for name, loss in result.losses.items()}
                record = {"kind": "train", "step": self.step, "epoch": 1, "losses": losses, "lr": 2e-4}
                record["time"] = {"images_per_s": 1.0, "data_wait": 0.0}
                self._log.append(record)
                self._timed(lambda record=record: viewers.record(record))  # type: ignore[misc]
            if self.step % DISPLAY_FREQ == 0:
                self.sample(viewers)
            self._timed(viewers.commands)
        return time.perf_counter() - begin

    def sample(self, viewers: Viewers) -> None:
        folder = f"samples/step-{self.step:08d}"
        pictures = save_samples(self.run.folder / folder, self.trainer.sample(self.data.validation))
        names = {kind: path.name for kind, path in pictures.items()}
        record = {"kind": "samples", "step": self.step, "epoch": 1, "folder": folder, "pictures": names}
        self._log.append(record)
        self._timed(lambda: viewers.record(record))

    def _timed(self, call: Callable[[], object]) -> None:
        begin = time.perf_counter()
        call()
        self.in_viewers += time.perf_counter() - begin


@contextlib.contextmanager
def running_server(folder: Path) -> Iterator[LocalServer]:
    server = LocalServer(folder / "visdom", Address(port=18097), keep=False)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def wait_for(happens: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        if time.monotonic() > deadline:
            raise TimeoutError(f"did not happen within {seconds} s")
        time.sleep(0.005)


def slowdown(subject: Subject, watched: Viewers, pairs: int, steps: int) -> None:
    subject.train(watched, steps // 4)  # warm-up
    alone = Viewers([])
    ratios, quickest = [], {watched: float("inf"), alone: float("inf")}
    spent = sent = total = 0.0
    for index in range(pairs):
        times = {}
        for viewers in (watched, alone) if index % 2 else (alone, watched):
            calls, cpu = subject.in_viewers, sender_cpu()
            times[viewers] = subject.train(viewers, steps)
            quickest[viewers] = min(quickest[viewers], times[viewers])
            sent += sender_cpu() - cpu  # what it sends after the end of its block counts too
            if viewers is watched:
                spent, total = spent + subject.in_viewers - calls, total + times[watched]
        ratios.append(times[watched] / times[alone])
        print(f"pair {index + 1}: on/off {ratios[-1]:.4f}")
    percent = lambda ratio: f"{100 * (ratio - 1):+.2f} %"
    middle, best = statistics.median(ratios), quickest[watched] / quickest[alone]
    print(f"{pairs} pairs of {steps} steps, {1000 * quickest[alone] / steps:.1f} ms a step")
    print(f"slowdown, median of pairs: {percent(middle)} ({percent(min(ratios))} to {percent(max(ratios))})")
    print(f"slowdown, quickest block of each kind: {percent(best)}")
    print(
        f"in the viewer's calls: {1e6 * spent / (pairs * steps):.1f} microseconds a step, {percent(1 + spent / total)}"
    )
    print(f"CPU of the sender: {1000 * sent / pairs:.0f} ms every {steps} steps, {percent(1 + sent / total)}")


def sender_cpu() -> float:
    """CPU seconds of the thread that talks to the server."""
    [sender] = [thread for thread in threading.enumerate() if thread.name == "visdom"]
    assert sender.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(sender.ident))


def time_to_picture(subject: Subject, watched: Viewers, page: Any, repeats: int) -> None:
    delays = []
    for _ in range(repeats):
        time.sleep(2.5)  # the default interval is longer than any pause between two updates
        before = page.evaluate(PICTURE)
        subject.train(watched, 1)
        begin = time.perf_counter()
        subject.sample(watched)
        wait_for(lambda before=before: page.evaluate(PICTURE) != before, 30)  # type: ignore[misc]
        delays.append(time.perf_counter() - begin)
    middle, longest = statistics.median(delays), max(delays)
    print(
        f"from the end of a step to its picture in the browser: median {middle:.2f} s, longest {longest:.2f} s"
    )


@contextlib.contextmanager
def open_page(address: str) -> Iterator[Any]:
    # some packages install a `tests` of theirs
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from browser_support import FLAGS, browser_program
    from playwright.sync_api import sync_playwright
    from visdom_support import install_page_files

    if missing := install_page_files():
        raise SystemExit(f"no Visdom page: {missing}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_program(), args=FLAGS)
        page = browser.new_page()
        page.goto(address)
        yield page
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--steps", type=int, default=DISPLAY_FREQ)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--ngf", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--browser", action="store_true")
    parser.add_argument(
        "--stalled", action="store_true", help="with a server that is stopped (SIGSTOP) and never answers"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        subject = Subject(Path(name), arguments.size, arguments.ngf)
        server = stack.enter_context(running_server(Path(name)))
        address = server.address
        watched = stack.enter_context(Viewers([Visdom("auto", address.server, address.port, env=ENV)]))
        watched.start(subject.run)
        subject.train(watched, 1)
        subject.sample(watched)
        wait_for(lambda: shown(address), 30)
        page = stack.enter_context(open_page(address.page(ENV))) if arguments.browser else None
        if page is not None:
            wait_for(lambda: page.evaluate(PICTURE) is not None, 30)
            time_to_picture(subject, watched, page, 10)
        if arguments.stalled:
            assert server._process is not None
            os.kill(server._process.pid, signal.SIGSTOP)
        slowdown(subject, watched, arguments.pairs, arguments.steps)


def shown(address: Address) -> bool:
    """Whether the samples pane holds a picture."""
    with contextlib.suppress(Unreachable):
        message = json.dumps({"win": None, "eid": ENV})
        return b"image_history" in exchange(address, "POST", "/win_data", message).body
    return False


if __name__ == "__main__":
    main()
