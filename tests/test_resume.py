"""Stopping and going on gives the bits and the lines of a training that was never stopped, real kills included."""

import contextlib
import os
import random
import select
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from training_support import (
    TINY,
    Outcome,
    differences,
    last_state,
    records,
    start,
    train,
    write_aligned,
    write_first_format,
    write_unaligned,
)

import gan.start
from datasets.errors import RunError
from gan import setup
from gan.checkpoint import list_checkpoints, load_file
from gan.command_line import parse_train
from gan.state import Position, capture, restore
from gan.viewers import Viewer

MODELS = {
    "cycle_gan": ["--model", "cycle_gan", "--norm", "nc_ms", "--dropout", "--pool_size", "2"],
    "pix2pix": ["--model", "pix2pix", "--norm", "nc_dms", "--pool_size", "2"],
}
EPOCHS, STEPS = 4, 3  # epochs, steps of each

Data = dict[str, Path]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    root = tmp_path_factory.mktemp("data")
    return {"cycle_gan": write_unaligned(root / "u", STEPS), "pix2pix": write_aligned(root / "a", STEPS)}


def flags(model: str, data: Data, runs: Path, epochs: int) -> list[object]:
    where = ["--dataroot", data[model], "--name", "r", "--checkpoints_dir", runs, "--n_epochs", epochs]
    return [*where, *TINY, *MODELS[model]]


def go_on(runs: Path, epochs: int) -> Outcome:
    arguments = ["--name", "r", "--checkpoints_dir", runs, "--continue_train", "--n_epochs", epochs]
    outcome = train(*arguments)
    assert outcome.code == 0, outcome.err
    return outcome


@pytest.fixture(scope="module")
def uninterrupted(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """The run of a model over some epochs in one go; each is trained once."""
    done: dict[tuple[str, int], Path] = {}

    def run(model: str, epochs: int = EPOCHS) -> Path:
        if (model, epochs) not in done:
            runs = tmp_path_factory.mktemp(f"{model}{epochs}")
            outcome = train(*flags(model, data, runs, epochs))
            assert outcome.code == 0, outcome.err
            done[model, epochs] = runs / "r"
        return done[model, epochs]

    return run


def assert_as_if_never_stopped(run: Path, reference: Path) -> None:
    """Networks, optimisers, pools, random states, position; and every line but those that tell of the resume."""
    assert list(differences(last_state(run), last_state(reference))) == []
    assert [line for line in records(run) if line["kind"] != "event"] == records(reference)
    assert [path.name for path in run.rglob("*") if "tmp" in path.name or "partial" in path.name] == []
    for name in ("latest.json", "best.json"):
        assert (run / name).exists() == (reference / name).exists()
        assert not (run / name).exists() or (run / name).read_bytes() == (reference / name).read_bytes()
    assert len(list_checkpoints(run)) == len(list_checkpoints(reference))
    pictures = {path.relative_to(reference) for path in reference.rglob("samples/**/*.png")}
    assert {path.relative_to(run) for path in run.rglob("samples/**/*.png")} == pictures
    for name in pictures:
        assert (run / name).read_bytes() == (reference / name).read_bytes()


@pytest.mark.parametrize("model", MODELS)
def test_stopped_at_the_end_of_an_epoch(
    model: str, data: Data, tmp_path: Path, uninterrupted: Callable[..., Path]
) -> None:
    assert train(*flags(model, data, tmp_path, 2)).code == 0
    [sample, *_] = (tmp_path / "r").rglob("grid.png")
    sample.with_name(".grid.png.0123456789ab.tmp").write_text("left by a kill")
    go_on(tmp_path, EPOCHS)
    assert_as_if_never_stopped(tmp_path / "r", uninterrupted(model))
    [event] = [line for line in records(tmp_path / "r") if line["kind"] == "event"]
    assert event["options"] == {"n_epochs": EPOCHS} and event["step"] == 2 * STEPS


@pytest.mark.parametrize("model", MODELS)
def test_resumed_from_the_first_format(
    model: str, data: Data, tmp_path: Path, uninterrupted: Callable[..., Path]
) -> None:
    """As the versions before 2.0 wrote it: `.pt` files with a sidecar."""
    assert train(*flags(model, data, tmp_path, 2)).code == 0
    run = tmp_path / "r"
    for info in list_checkpoints(run)[::-1]:
        state = {"format": 1, **load_file(info.path)}
        assert info.epoch is not None
        write_first_format(run, state, step=info.step, epoch=info.epoch)
        info.path.unlink()
        if (best := run / "best.json").exists():
            best.write_text(best.read_text().replace(info.path.name, f"{info.path.stem}.pt"))
    outcome = go_on(tmp_path, EPOCHS)
    assert "warning" not in outcome.err
    assert_as_if_never_stopped(run, uninterrupted(model))


def test_resumed_with_channels_last(data: Data, tmp_path: Path) -> None:
    """The strides of the weights and of Adam's moments are part of the state."""
    for runs, epochs in (("one", (2,)), ("two", (1, 2))):
        for count in epochs:
            more = ["--channels_last", *(["--continue_train"] if count > epochs[0] else [])]
            assert train(*flags("cycle_gan", data, tmp_path / runs, count), *more).code == 0
    assert_as_if_never_stopped(tmp_path / "two" / "r", tmp_path / "one" / "r")


def test_another_memory_layout_keeps_the_moments_with_their_weights(data: Data, tmp_path: Path) -> None:
    """Fused Adam reads memory in order, so moments that lie in another order would meet the wrong weights."""
    arguments = [str(flag) for flag in flags("cycle_gan", data, tmp_path, 1)]
    plain, other = (
        setup.build_trainer(parse_train([*arguments, *more])[0]) for more in ([], ["--channels_last"])
    )
    for optimizer in plain.optimizers.values():
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = torch.rand_like(parameter)
        optimizer.step()
    restore(other, capture(plain, Position(), {}, 0, [], {}), "the state")
    for name, optimizer in other.optimizers.items():
        moved = 0
        for before, after in zip(plain.optimizers[name].state.items(), optimizer.state.items(), strict=True):
            moved += before[0].stride() != after[0].stride()
            for moment in ("exp_avg", "exp_avg_sq"):
                assert after[1][moment].stride() == after[0].stride()
                assert torch.equal(after[1][moment], before[1][moment])
        assert moved, "nothing lies in another order"


class StopAt(Viewer):
    """Sends this process a signal after a step, as a user or a scheduler would."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def progress(self, step: int, epoch: int) -> None:
        if step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("step", "number"),
    [(1, signal.SIGTERM), (4, signal.SIGINT), (6, signal.SIGHUP), (12, signal.SIGTERM)],
    ids=["first step", "middle of an epoch", "last step of an epoch", "last step of all"],
)
def test_stopped_by_a_signal(
    model: str,
    step: int,
    number: signal.Signals,
    data: Data,
    tmp_path: Path,
    uninterrupted: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reference = uninterrupted(model)
    with monkeypatch.context() as patch:
        patch.setattr(gan.start, "choose_viewers", lambda *_: [StopAt(step, number)])
        outcome = train(*flags(model, data, tmp_path, EPOCHS))
    assert outcome.code == 128 + number
    assert f"stopped at step {step}; saved. To resume:" in outcome.out
    assert last_state(tmp_path / "r")["position"]["step"] == step
    go_on(tmp_path, EPOCHS)
    assert_as_if_never_stopped(tmp_path / "r", reference)
    assert [line for line in records(tmp_path / "r") if line["kind"] == "event"] == []


def test_a_signal_that_takes_a_worker_along(
    data: Data, tmp_path: Path, uninterrupted: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler signals every process of a job; one that has just been started dies of it. Nothing is lost."""
    reference, real = uninterrupted("pix2pix"), setup.epoch_batches

    def batches(*arguments: Any, **named: Any) -> Iterator[Any]:
        for number, batch in enumerate(real(*arguments, **named)):
            if (named["epoch"], number) == (2, 1):
                os.kill(os.getpid(), signal.SIGTERM)
                raise RunError("data loading", "a worker process was killed by SIGTERM")
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(setup, "epoch_batches", batches)
        outcome = train(*flags("pix2pix", data, tmp_path, EPOCHS))
    assert outcome.code == 143, outcome.err
    assert "stopped at step 4; saved" in outcome.out
    go_on(tmp_path, EPOCHS)
    assert_as_if_never_stopped(tmp_path / "r", reference)


def test_stopped_again_and_again(
    data: Data, tmp_path: Path, uninterrupted: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every single step."""
    reference = uninterrupted("cycle_gan")
    more: list[object] = []
    with monkeypatch.context() as patch:
        for step in range(1, EPOCHS * STEPS + 1):
            viewer = StopAt(step, signal.SIGTERM)
            patch.setattr(gan.start, "choose_viewers", lambda *_, viewer=viewer: [viewer])
            assert train(*flags("cycle_gan", data, tmp_path, EPOCHS), *more).code == 143
            more = ["--continue_train"]
    go_on(tmp_path, EPOCHS)
    assert_as_if_never_stopped(tmp_path / "r", reference)


def test_the_comparison_sees_what_is_left_out(
    data: Data, tmp_path: Path, uninterrupted: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the optimisers' or pools' state, or the random numbers, a resume must not pass for exact."""
    import gan.state
    from gan.losses import ImagePool

    reference = uninterrupted("cycle_gan")
    defects: list[tuple[str, object, str, object]] = [
        ("pools", ImagePool, "load_state_dict", lambda *_: None),
        ("random numbers", gan.state, "set_random_state", lambda *_: None),
    ]
    for name, owner, attribute, nothing in defects:
        runs = tmp_path / name
        assert train(*flags("cycle_gan", data, runs, 2)).code == 0
        with monkeypatch.context() as patch:
            patch.setattr(owner, attribute, nothing)
            go_on(runs, EPOCHS)
        assert any(differences(last_state(runs / "r"), last_state(reference))), name


def test_another_number_of_threads_is_told_once(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(*flags("pix2pix", data, tmp_path, 1)).code == 0
    assert "bit-identical" not in go_on(tmp_path, 2).err
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    outcome = go_on(tmp_path, 3)
    assert outcome.err.count("warning: ") == 1
    assert "not bit-identical from here on: threads 1 -> 3" in outcome.err


# --- real processes


def lines_of(stream: IO[str] | None) -> Iterator[str]:
    assert stream is not None
    return iter(stream)


def wait_for_step(process: "subprocess.Popen[str]", count: int) -> int:
    """Read the lines of a training until `count` steps were told; returns the epoch of the last."""
    for line in lines_of(process.stderr):
        if line.startswith("epoch ") and "step" in line:
            count -= 1
            if count <= 0:
                return int(line.split()[1].split("/")[0])
    raise AssertionError(f"the training ended first: {process.wait()}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_real_signal_to_the_real_command(
    number: signal.Signals, data: Data, tmp_path: Path, uninterrupted: Callable[..., Path]
) -> None:
    """To its workers too, as a terminal does; a second training is refused; the printed command is what goes on."""
    arguments = [*flags("pix2pix", data, tmp_path, 500), "--num_threads", 2]
    process = start("train", *arguments, start_new_session=True)
    try:
        wait_for_step(process, 4)
        second = train("--name", "r", "--checkpoints_dir", tmp_path, "--continue_train")
        assert second.code == 2 and f"pid {process.pid} on " in second.error
        os.killpg(process.pid, number)
        out, err = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 128 + number, err
    assert "error" not in err and "Traceback" not in err
    resume = out.splitlines()[-1].strip()
    assert resume == shlex.join(
        ["python", "train.py", "--name", "r", "--checkpoints_dir", str(tmp_path), "--continue_train"]
    )
    position = last_state(tmp_path / "r")["position"]
    epochs = position["epoch"] + (position["batches"] == STEPS)
    outcome = train(*shlex.split(resume)[2:], "--n_epochs", epochs)
    assert outcome.code == 0, outcome.err
    assert_as_if_never_stopped(tmp_path / "r", uninterrupted("pix2pix", epochs))


def kill_after(
    step: int,
    data: Data,
    runs: Path,
    uninterrupted: Callable[..., Path],
    model: str,
    threads: int = 0,
    pause: float = 0,
) -> None:
    """kill -9 once a step is told (and a pause, in seconds), resume, compare; at most one epoch is done again."""
    process = start("train", *flags(model, data, runs, 500), "--num_threads", threads)
    try:
        wait_for_step(process, step)
        time.sleep(pause)
    finally:
        process.kill()
        rest = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL
    told = step + sum(line.startswith("epoch ") and "step" in line for line in rest.splitlines())
    kept = last_state(runs / "r")["position"]["step"] if list_checkpoints(runs / "r") else 0
    assert told - kept <= 2 * STEPS
    epochs = max(EPOCHS, kept // STEPS + 1)
    go_on(runs, epochs)
    assert_as_if_never_stopped(runs / "r", uninterrupted(model, epochs))


@pytest.mark.parametrize("step", [1, 4, 9])
def test_kill_9_of_the_real_command(
    step: int, data: Data, tmp_path: Path, uninterrupted: Callable[..., Path]
) -> None:
    kill_after(step, data, tmp_path, uninterrupted, "cycle_gan", threads=2 if step == 4 else 0)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_random_kills_of_the_real_command(
    data: Data, tmp_path: Path, uninterrupted: Callable[..., Path]
) -> None:
    """KILLS (20): how many. Of both models in turn; Pix2Pix has a best checkpoint."""
    draws = random.Random(os.environ.get("KILLS_SEED", 0))
    for number in range(int(os.environ.get("KILLS", 20))):
        model, runs = list(MODELS)[number % 2], tmp_path / str(number)
        kill_after(draws.randrange(1, 14), data, runs, uninterrupted, model, pause=draws.uniform(0, 0.1))
        shutil.rmtree(runs)
        print(f"kill {number + 1} of {model}: identical", flush=True)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux: looks at processes in /proc")
def test_kill_9_frees_the_lock_and_worker_processes_end(data: Data, tmp_path: Path) -> None:
    process = start("train", *flags("pix2pix", data, tmp_path, 500), "--num_threads", 2)
    try:
        wait_for_step(process, 1)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        ends = []
        for child in children:
            with contextlib.suppress(ProcessLookupError):  # ended by itself, with its epoch
                ends.append(os.pidfd_open(int(child)))
    finally:
        process.kill()
    for end in ends:
        assert select.select([end], [], [])[0], "a worker outlived its training"
        os.close(end)
    process.communicate()
    go_on(tmp_path, 1)


def test_a_reader_that_leaves_stops_nothing(data: Data, tmp_path: Path) -> None:
    """`train.py ... | head -1`: training continues to its end."""
    arguments = flags("pix2pix", data, tmp_path, 1)
    process = start("train", *arguments, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait() == 0
    assert records(tmp_path / "r")[-1]["epoch"] == 1
