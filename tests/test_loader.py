"""Batches depend on seeds and positions alone, and worker processes can neither hang a run nor outlive it."""

import contextlib
import multiprocessing
import os
import random
import select
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import loader_functions
import numpy as np
import pytest
import torch
from conftest import noise
from PIL import Image

from datasets import workers
from datasets.errors import RunError, UserError
from datasets.layouts import Sources, find_sources
from datasets.loader import (
    PairBatch,
    PairDataset,
    epoch_batches,
    fixed_samples,
    stable_hash,
    validation_indices,
)
from datasets.transforms import Augmentation

SMALL = Augmentation("resize_and_crop", load_size=20, crop_size=16)
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def unaligned(tmp_path: Path) -> Sources:
    for i in range(5):
        noise(tmp_path / "trainA" / f"{i}.png", seed=i)
    for i in range(7):
        noise(tmp_path / "trainB" / f"{i}.png", seed=100 + i)
    return find_sources(tmp_path, "train")


@pytest.fixture
def aligned(tmp_path: Path) -> Sources:
    for i in range(6):
        noise(tmp_path / "train" / f"{i}.png", (32, 16), seed=i)
    return find_sources(tmp_path, "train")


def epoch(
    dataset: PairDataset, number: int = 1, *, start: int = 0, num_threads: int = 0, **options: Any
) -> list[PairBatch]:
    options = {"seed": 3, "batch_size": 2, "shuffle": True} | options
    return list(epoch_batches(dataset, epoch=number, start=start, num_threads=num_threads, **options))


def sample(dataset: PairDataset, number: int = 1, index: int = 0) -> PairBatch:
    """One sample of an epoch, augmented."""
    in_order = epoch_batches(
        dataset, epoch=number, seed=0, batch_size=1, shuffle=False, num_threads=0, start=index
    )
    return next(in_order)


def assert_equal(left: list[PairBatch], right: list[PairBatch]) -> None:
    assert [b["paths_A"] for b in left] == [b["paths_A"] for b in right]
    assert [b["paths_B"] for b in left] == [b["paths_B"] for b in right]
    for one, other in zip(left, right, strict=True):
        assert torch.equal(one["A"], other["A"])
        assert torch.equal(one["B"], other["B"])


@pytest.mark.parametrize("num_threads", [1, 2])
def test_workers_do_not_change_the_batches(unaligned: Sources, num_threads: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(workers, "cores", lambda: 2)
    dataset = PairDataset(unaligned, SMALL, seed=3)
    assert_equal(epoch(dataset, num_threads=num_threads), epoch(dataset))
    assert multiprocessing.active_children() == []


def test_the_middle_of_an_epoch_is_reached_from_its_position(unaligned: Sources) -> None:
    dataset = PairDataset(unaligned, SMALL, seed=3)
    whole = epoch(dataset, 2)
    assert [len(batch["paths_A"]) for batch in whole] == [2, 2, 2, 1]
    for start in (1, 3):
        assert_equal(epoch(dataset, 2, start=start), whole[start:])
        assert_equal(epoch(dataset, 2, start=start, num_threads=2), whole[start:])
    assert epoch(dataset, 2, start=4) == epoch(dataset, 2, start=4, num_threads=2) == []


def test_batches_already_done_are_not_decoded(aligned: Sources) -> None:
    dataset = PairDataset(aligned, SMALL, seed=3)
    Path(epoch(dataset)[0]["paths_A"][0]).unlink()
    assert len(epoch(dataset, start=1)) == 2
    with pytest.raises(UserError, match="no such file"):
        epoch(dataset)


def test_epochs_and_seeds_differ_and_global_generators_neither_matter_nor_move(unaligned: Sources) -> None:
    dataset = PairDataset(unaligned, SMALL, seed=3)
    first = epoch(dataset)
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    before = torch.get_rng_state(), random.getstate()
    assert_equal(epoch(dataset, num_threads=2), first)
    assert_equal(epoch(dataset), first)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    orders = {
        tuple(path for batch in epoch(dataset, number, seed=seed) for path in batch["paths_A"])
        for number in range(4)
        for seed in range(4)
    }
    assert len(orders) > 12
    assert not torch.equal(sample(dataset)["A"], sample(dataset, 2)["A"])
    assert not torch.equal(sample(dataset)["A"], sample(PairDataset(unaligned, SMALL, seed=4))["A"])


def test_the_hash_of_positions_is_a_fixed_number() -> None:
    # first 16 hex digits of `printf 3/1/0 | sha256sum`
    printed = subprocess.run(["sha256sum"], input=b"3/1/0", capture_output=True, check=True).stdout
    assert stable_hash(3, 1, 0) == int(printed[:16], 16)


def test_unaligned_epoch_visits_every_file_of_the_larger_side_and_draws_partners(unaligned: Sources) -> None:
    swapped = PairDataset(unaligned.swapped(), SMALL, seed=0)  # A 7 files, B 5
    for number in range(3):
        names = [Path(p).name for batch in epoch(swapped, number) for p in batch["paths_A"]]
        assert sorted(names) == [f"{i}.png" for i in range(7)]
    dataset = PairDataset(unaligned, SMALL, seed=0)
    assert len(dataset) == 7
    visits = Counter(p for n in range(10) for batch in epoch(dataset, n) for p in batch["paths_A"])
    assert set(visits.values()) == {10, 20}  # 7 samples over 5 files
    pairs = {
        pair
        for n in range(60)
        for batch in epoch(dataset, n)
        for pair in zip(batch["paths_A"], batch["paths_B"], strict=True)
    }
    assert len(pairs) == 5 * 7
    partners = Counter(p for n in range(60) for batch in epoch(dataset, n) for p in batch["paths_B"])
    assert len(partners) == 7
    assert all(60 - 4 * 60**0.5 < count < 60 + 4 * 60**0.5 for count in partners.values())  # 4 sd around 60


def test_serial_batches_come_in_the_order_of_the_files(unaligned: Sources) -> None:
    dataset = PairDataset(unaligned, SMALL, seed=0, serial=True)
    batches = epoch(dataset, shuffle=False, batch_size=1)
    assert [Path(b["paths_A"][0]).stem for b in batches] == ["0", "1", "2", "3", "4", "0", "1"]
    assert [Path(b["paths_B"][0]).stem for b in batches] == ["0", "1", "2", "3", "4", "5", "6"]


def test_a_pair_shares_crop_and_flip(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    (tmp_path / "train").mkdir()
    Image.fromarray(np.concatenate([values, 255 - values], axis=1)).save(tmp_path / "train" / "a.png")
    sources = find_sources(tmp_path, "train")
    crop = Augmentation("crop", crop_size=16)
    dataset = PairDataset(sources, crop, seed=0)
    seen: set[tuple[bool, int, int]] = set()
    for number in range(40):
        drawn = sample(dataset, number)
        a = ((drawn["A"][0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
        b = ((drawn["B"][0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
        assert np.array_equal(a, 255 - b)
        for flip in (False, True):  # A is a crop of the left half, found by looking everywhere
            unflipped = a[:, ::-1] if flip else a
            hits = [
                (x, y)
                for x in range(25)
                for y in range(15)
                if np.array_equal(values[y : y + 16, x : x + 16], unflipped)
            ]
            seen.update((flip, *hit) for hit in hits)
    assert len(seen) > 25
    assert {flip for flip, *_ in seen} == {False, True}
    independent = PairDataset(sources, crop, seed=0, independent=True)
    samples = [sample(independent, number) for number in range(5)]
    assert any(not torch.allclose(s["A"], -s["B"], atol=1e-6) for s in samples)


def test_direction_exchanges_the_halves_and_channels_follow_the_side(tmp_path: Path) -> None:
    pair = Image.new("RGB", (32, 16), (255, 255, 255))
    pair.paste((0, 0, 0), (0, 0, 16, 16))
    (tmp_path / "train").mkdir()
    pair.save(tmp_path / "train" / "a.png")
    sources = find_sources(tmp_path, "train")
    batch = sample(PairDataset(sources, SMALL, seed=0, channels_a=1, channels_b=3))
    assert batch["A"].shape == (1, 1, 16, 16) and batch["A"].eq(-1).all()
    assert batch["B"].shape == (1, 3, 16, 16) and batch["B"].eq(1).all()
    batch = sample(PairDataset(sources.swapped(), SMALL, seed=0))
    assert batch["A"].eq(1).all() and batch["B"].eq(-1).all()


def test_held_out_samples_never_train(aligned: Sources, unaligned: Sources) -> None:
    held = validation_indices(6, 2, seed=5)
    assert held == validation_indices(6, 2, seed=5) == sorted(set(held))
    assert validation_indices(3, 8, seed=0) == [0, 1, 2]
    assert len({tuple(validation_indices(100, 8, seed)) for seed in range(10)}) == 10
    for sources, independent in ((aligned, False), (aligned, True), (unaligned, False)):
        dataset = PairDataset(sources, SMALL, seed=0, exclude=held, independent=independent)
        seen_a = {p for n in range(8) for batch in epoch(dataset, n) for p in batch["paths_A"]}
        seen_b = {p for n in range(8) for batch in epoch(dataset, n) for p in batch["paths_B"]}
        fixed = fixed_samples(dataset, held)
        assert not seen_a & set(fixed["paths_A"])
        assert not seen_b & set(fixed["paths_B"])
        assert len(seen_a | set(fixed["paths_A"])) == len(sources.a)
    with pytest.raises(UserError, match="--val_count"):
        PairDataset(aligned, SMALL, seed=0, exclude=range(6))


def test_fixed_samples_are_whole_pictures(aligned: Sources) -> None:
    batch = fixed_samples(PairDataset(aligned, SMALL, seed=0), [4, 1])
    assert batch["A"].shape == (2, 3, 16, 16)
    left = np.asarray(Image.open(aligned.a[4]))[:, :16].astype(np.float64)  # 16x16: nothing to resize
    assert np.allclose(batch["A"][0].permute(1, 2, 0).numpy(), left / 127.5 - 1, atol=1e-6)
    assert batch["paths_A"] == [str(aligned.a[4]), str(aligned.a[1])]


def test_pictures_of_different_size_in_a_batch_are_refused(tmp_path: Path) -> None:
    noise(tmp_path / "train" / "a.png", (32, 16))
    noise(tmp_path / "train" / "b.png", (64, 16))
    dataset = PairDataset(find_sources(tmp_path, "train"), Augmentation("none", crop_size=16), seed=0)
    for num_threads in (0, 1):
        with pytest.raises(UserError, match="--batch_size 1") as caught:
            epoch(dataset, shuffle=False, num_threads=num_threads)
        assert caught.value.subject.endswith("b.png")


def test_a_plain_folder_cannot_train(tmp_path: Path) -> None:
    noise(tmp_path / "a.png")
    with pytest.raises(UserError, match="training needs A and B"):
        PairDataset(find_sources(tmp_path, "test"), SMALL, seed=0)


@pytest.mark.parametrize("num_threads", [0, 2])
def test_a_file_lost_during_training_is_named_or_replaced(unaligned: Sources, num_threads: int) -> None:
    unaligned.b[2].write_bytes(unaligned.b[2].read_bytes()[:200])
    with pytest.raises(UserError, match="damaged") as caught:
        for number in range(20):
            epoch(PairDataset(unaligned, SMALL, seed=0), number, num_threads=num_threads)
    assert caught.value.subject == str(unaligned.b[2])
    assert caught.value.exit_code == 2
    dataset = PairDataset(unaligned, SMALL, seed=0, skip_bad=True)
    batches = [batch for number in range(6) for batch in epoch(dataset, number, num_threads=num_threads)]
    assert_equal(batches, [batch for number in range(6) for batch in epoch(dataset, number)])
    assert [len(batch["paths_A"]) for batch in batches] == [2, 2, 2, 1] * 6
    assert any(str(unaligned.b[2]) in text for batch in batches for text in batch["skipped"])
    assert not any(str(unaligned.b[2]) in batch["paths_B"] for batch in batches)


def test_when_every_file_is_gone_skipping_ends(aligned: Sources) -> None:
    for path in aligned.a:
        path.unlink()
    with pytest.raises(UserError, match="no such file"):
        epoch(PairDataset(aligned, SMALL, seed=0, skip_bad=True))


@pytest.mark.parametrize(
    ("function", "cause"),
    [
        (loader_functions.local_exception, "Unpicklable"),
        (loader_functions.killed, "killed by SIGKILL"),
        (loader_functions.segfault, "killed by SIGSEGV"),
        (loader_functions.exits, "exit code 0"),
        (loader_functions.hangs, "a worker hangs"),
    ],
)
def test_a_failing_worker_ends_the_run_with_its_cause(function: Any, cause: str) -> None:
    with pytest.raises(RunError, match=cause) as caught:
        list(workers.map_in_workers(function, [1, 2, 3], 2, timeout=1 if "hangs" in cause else 600))
    assert caught.value.exit_code == 1
    assert multiprocessing.active_children() == []


def test_the_time_for_which_a_run_is_stopped_does_not_count() -> None:
    """After Ctrl-Z for an hour one wait has ended without a result; the next one has it."""

    class Stopped:
        waits = 0

        def poll(self, seconds: float) -> bool:
            self.waits += 1
            return self.waits > 2

        def recv(self) -> str:
            return "result"

    ends: Any = Stopped()
    never: Any = Stopped()
    never.waits = -(10**9)
    assert workers._next(workers._Worker(None, ends), 120) == "result"  # type: ignore[arg-type]
    with pytest.raises(RunError, match="no data for 120 seconds, a worker hangs"):
        workers._next(workers._Worker(None, never), 120)  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform != "linux", reason="pipes that grow are Linux's")
def test_a_worker_goes_on_while_its_results_wait(tmp_path: Path) -> None:
    fifo = tmp_path / "made"
    os.mkfifo(fifo)
    made = os.open(fifo, os.O_RDWR)  # also for writing, so that it never ends
    results = workers.map_in_workers(loader_functions.told, [(str(fifo), number) for number in range(5)], 1)
    assert len(next(results)) == 200_000
    for number in range(5):  # a pipe of the usual 64 KiB would hold up the worker before the third
        assert select.select([made], [], [], 120)[0], f"result {number} is not made"
        assert os.read(made, 1) == bytes([number])
    assert [len(result) for result in results] == [200_000] * 4
    os.close(made)


def test_abandoned_batches_leave_no_process() -> None:
    results = workers.map_in_workers(loader_functions.pids, list(range(50)), 2)
    pids = {next(results)["pid"] for _ in range(4)}
    del results
    assert multiprocessing.active_children() == []
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


_PARENT = """
import os, signal, sys
from datasets import workers
from loader_functions import pids

results = workers.map_in_workers(pids, list(range(100_000)), 1)
print(next(results)["pid"], flush=True)
%s
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")
@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("keep = results; sys.exit(3)", 3),
        ("raise SystemExit(0)", 0),
    ],
)
def test_workers_end_with_their_parent(ending: str, code: int) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT % ending],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        descriptor = os.pidfd_open(worker)
        select.select([descriptor], [], [])  # readable once it has ended
        os.close(descriptor)
    assert parent.wait() == code
    parent.stdout.close()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_to_the_process_group_is_left_to_the_parent(name: str) -> None:
    """To the worker and to the server that it was forked from."""
    results = workers.map_in_workers(loader_functions.pids, list(range(40)), 1)
    pid = next(results)["pid"]
    status = Path(f"/proc/{pid}/status").read_text()
    for target in (pid, int(status.split("PPid:")[1].split()[0])):
        os.kill(target, getattr(signal, name))
    assert [result["i"] for result in results] == list(range(1, 40))
    assert len(list(workers.map_in_workers(loader_functions.pids, [1, 2], 1))) == 2


def test_a_worker_holds_nothing_of_its_parent(tmp_path: Path) -> None:
    """Neither locks nor the ends of pipes, on which somebody may wait for an end of file."""
    ends = os.pipe()
    with (tmp_path / "run.lock").open("w"):
        ours = {str(Path(f"/proc/self/fd/{end}").readlink()) for end in ends} | {str(tmp_path / "run.lock")}
        [result] = workers.map_in_workers(loader_functions.descriptors, [0], 1)
    for end in ends:
        os.close(end)
    assert result["held"] and not ours & set(result["held"])


def test_workers_import_the_parents_modules_wherever_it_stands(tmp_path: Path) -> None:
    """Another package of the name `datasets` in the current folder is not theirs."""
    (tmp_path / "here" / "datasets").mkdir(parents=True)
    (tmp_path / "here" / "datasets" / "__init__.py").touch()
    lines = "\n    ".join((_PARENT % "raise SystemExit(0)").strip().splitlines())
    (tmp_path / "run.py").write_text(f"if __name__ == '__main__':\n    {lines}\n")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "run.py")],
        cwd=tmp_path / "here",
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "") and int(done.stdout) > 0


def test_processes_may_start_while_workers_do() -> None:
    """`Popen` waits for the end of a pipe, which a worker forked at that moment would hold open as long as it lives."""
    stop = threading.Event()

    def start_processes() -> None:
        while not stop.is_set():
            subprocess.run(["true"], check=True)

    threads = [threading.Thread(target=start_processes, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        hanging = workers.map_in_workers(loader_functions.hangs, [1, 2], 2, timeout=0.2)
        with contextlib.suppress(RunError):
            next(hanging)
    kept = workers._start(loader_functions.hangs, [1])
    stop.set()
    for thread in threads:
        thread.join(60)
    stuck = [thread for thread in threads if thread.is_alive()]
    workers._stop([kept])
    assert not stuck


def test_a_server_that_dies_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with too little memory for it."""
    workers.start_server()  # or the first worker would start one, at another address
    monkeypatch.setattr(workers.forkserver._forkserver, "_forkserver_address", "\0nobody listens")
    with pytest.raises(RunError, match=r"^data loading: a worker process cannot be started: .*num_threads 0"):
        list(workers.map_in_workers(loader_functions.pids, [1], 1))
