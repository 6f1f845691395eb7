"""The recorded step against the eager one, bit for bit. A recorder of operations stands in for the CUDA graph.

Like a graph, the recorder carries out the same operations on the same memory again, whatever Python would do now.
"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training_support import TINY, train, write_unaligned

from cuda_ops import direct
from datasets.errors import UserError
from gan import loop, setup
from gan.command_line import parse_train
from gan.losses import ImagePool
from gan.setup import build_trainer, why_no_graph
from gan.state import Position, capture, restore
from gan.static_step import WARM_UP, BankedPool, Losses, StaticStep, hold_learning_rates
from gan.step import Trainer, set_learning_rate

WAITS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "item", "masked_select", "unique"}
"""Operations for which the host would wait for a GPU."""


class Recorder(TorchDispatchMode):
    """Records every operation with its tensors; `replay` carries all of them out again, in the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[tuple[int, Tensor]]]] = []
        self.replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.namespace == "profiler":
            return result
        returns = [value.alias_info for value in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in returns)
        if not is_view:  # a view stays one
            outputs = result if isinstance(result, tuple | list) else (result,)
            aliases = returns if len(returns) == len(outputs) else [None] * len(outputs)
            new = [
                (i, output)
                for i, (output, alias) in enumerate(zip(outputs, aliases, strict=True))
                if isinstance(output, Tensor) and alias is None
            ]
            self.operations.append((func, args, kwargs, new))
        return result

    def record(self, body: Callable[[], Losses]) -> tuple[Losses, Callable[[], None]]:
        with self:
            losses = body()
        return losses, self.replay

    def replay(self) -> None:
        self.replays += 1
        with torch.no_grad():
            for func, args, kwargs, new in self.operations:
                result = func(*args, **kwargs)
                outputs = result if isinstance(result, tuple | list) else (result,)
                for i, memory in new:
                    memory.copy_(outputs[i])


@pytest.fixture(autouse=True)
def one_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the layer does not choose by the data, and an optimiser takes one step for all parameters."""
    monkeypatch.setattr(direct, "_mean_is_large", lambda *maps: True)
    monkeypatch.setattr(Trainer, "steps_in_backward", False)


def tiny(model: str, norm: str, *more: str) -> Trainer:
    arguments = [
        "--dataroot", "none", "--crop_size", "16", "--ngf", "4", "--ndf", "4", "--netG", "resnet_6blocks",
        "--netD", "n_layers", "--n_layers_D", "1", "--device", "cpu", "--dropout", "--pool_size", "4",
        "--model", model, "--norm", norm, *more,
    ]  # fmt: skip
    return build_trainer(parse_train(arguments)[0])


def epochs(count: int, sizes: tuple[int, ...] = (2, 2, 2, 1)) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """(epoch, batch): the last batch of an epoch is smaller."""
    draws = torch.Generator().manual_seed(5)
    for epoch in range(count):
        for size in sizes:
            a, b = 2 * torch.rand(2, size, 3, 16, 16, generator=draws) - 1
            yield epoch, {"A": a, "B": b}


def state(trainer: Trainer) -> dict[str, Any]:
    return copy.deepcopy(capture(trainer, Position(), {}, 0, [], {}))


def assert_equal(one: Any, other: Any, where: str = "state") -> None:
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            assert_equal(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{where}.{i}")
    elif isinstance(one, Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


Recorded = tuple[Trainer, StaticStep, Recorder]


def recorded(trainer: Trainer) -> Recorded:
    recorder = Recorder()
    return trainer, StaticStep(trainer, 2, must=True, record=recorder.record), recorder


def run_eager(
    trainer: Trainer, steps: list[tuple[int, dict[str, Tensor]]], seed: int = 0
) -> list[dict[str, float]]:
    told = []
    if seed:
        torch.manual_seed(seed)
    for epoch, batch in steps:
        set_learning_rate(trainer, 2e-3 * (1 - epoch / 7))
        told.append({name: float(loss) for name, loss in trainer.step(batch).losses.items()})
    return told


def run_static(
    recorded: Recorded, steps: list[tuple[int, dict[str, Tensor]]], first: int = 1, seed: int = 0
) -> list[dict[str, float]]:
    trainer, step, _ = recorded
    told = []
    if seed:
        torch.manual_seed(seed)
    for number, (epoch, batch) in enumerate(steps, first):
        set_learning_rate(trainer, 2e-3 * (1 - epoch / 7))
        told.append({name: float(loss) for name, loss in step(batch, number).items()})
    assert step.first_bad() is None
    return told


NORMS = ["instance", "batch", "nc", "nc_ms", "nc_dms"]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("model", ["cycle_gan", "pix2pix"])
def test_a_replayed_step_has_the_bits_of_the_eager_one(model: str, norm: str) -> None:
    steps = list(epochs(3))
    eager = tiny(model, norm)
    expected = run_eager(eager, steps)
    end = state(eager)
    static = recorded(tiny(model, norm))
    assert run_static(static, steps) == expected
    assert_equal(state(static[0]), end)
    of_two = sum(len(batch["A"]) == 2 for _, batch in steps)
    assert static[2].replays == of_two - WARM_UP - 1, (
        "all after the warm-up; the one that is recorded ran already"
    )


@pytest.mark.parametrize("model", ["cycle_gan", "pix2pix"])
def test_resumed_in_the_middle(model: str) -> None:
    steps = list(epochs(4))
    eager = tiny(model, "nc_ms")
    run_eager(eager, steps)
    end = state(eager)
    first = recorded(tiny(model, "nc_ms"))
    run_static(first, steps[:7])
    saved = state(first[0])
    second = tiny(model, "nc_ms")
    restore(second, copy.deepcopy(saved), "the state")
    again = recorded(second)
    run_static(again, steps[7:], first=8)
    assert first[2].replays and again[2].replays
    assert_equal(state(again[0]), end)
    third = tiny(model, "nc_ms")  # and without a graph
    restore(third, saved, "the state")
    run_eager(third, steps[7:])
    assert_equal(state(third), end)


@pytest.mark.parametrize("gan_mode", ["wgangp", "hinge"])
def test_gan_modes(gan_mode: str) -> None:
    steps = list(epochs(2, (2, 2, 2)))
    eager = tiny("cycle_gan", "nc_ms", "--gan_mode", gan_mode, "--batch_passes")
    expected = run_eager(eager, steps)
    static = recorded(tiny("cycle_gan", "nc_ms", "--gan_mode", gan_mode, "--batch_passes"))
    assert run_static(static, steps) == expected
    assert_equal(state(static[0]), state(eager))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("model", ["cycle_gan", "pix2pix"])
def test_the_host_waits_for_nothing_in_a_step(model: str, norm: str) -> None:
    static = recorded(tiny(model, norm))
    run_static(static, list(epochs(1, (1,) * (WARM_UP + 1))))
    names = [func._schema.name.split("::")[1] for func, *_ in static[2].operations]
    assert "_fused_adam_" in names and not WAITS & set(names)


def test_what_a_graph_cannot_know_is_seen_here() -> None:
    """A learning rate that is a number stays what it was when the step was recorded."""
    steps = list(epochs(3, (2, 2, 2)))
    eager = tiny("pix2pix", "nc")
    run_eager(eager, steps)
    static = recorded(tiny("pix2pix", "nc"))
    for number, (epoch, batch) in enumerate(steps, 1):
        for optimizer in static[0].optimizers.values():
            optimizer.param_groups[0]["lr"] = 2e-3 * (1 - epoch / 7)
        static[1](batch, number)
    assert not torch.equal(next(static[0].networks["G"].parameters()), next(eager.networks["G"].parameters()))


def test_the_pool_that_is_drawn_ahead_gives_the_same_images() -> None:
    draws = torch.Generator().manual_seed(1)
    plain, banked = ImagePool(3, seed=7), BankedPool(ImagePool(3, seed=7), 4)
    for count in (2, 4, 1, 4, 3, 4, 4, 4):
        images = torch.rand(count, 2, 4, 4, generator=draws)
        banked.draw(count)
        assert torch.equal(banked.query(images), plain.query(images))
        assert_equal(banked.state_dict(), plain.state_dict())


def test_the_first_bad_step_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Through the whole program: the device notices, the loop asks at the end of the epoch and saves nothing."""
    data = write_unaligned(tmp_path / "data", 12)

    def static_step(options: Any, trainer: Trainer) -> StaticStep:
        static = recorded(trainer)[1]
        clean = static.__call__

        class Spoiled(StaticStep):
            def __call__(self, batch: Any, step: int) -> Losses:
                if step == 7:
                    batch = {**batch, "A": torch.full_like(batch["A"], float("nan"))}
                return clean(batch, step)

        static.__class__ = Spoiled
        return static

    monkeypatch.setattr(loop, "build_static_step", static_step)
    arguments = [
        "--dataroot",
        data,
        "--name",
        "r",
        "--checkpoints_dir",
        tmp_path / "c",
        "--n_epochs",
        2,
        *TINY,
    ]
    outcome = train(*arguments)
    assert outcome.code == 1
    assert "is nan at step 7; no checkpoint yet" in outcome.err
    assert not list((tmp_path / "c" / "r").glob("*.safetensors"))


def test_where_there_can_be_no_graph() -> None:
    options = lambda *more: parse_train(["--dataroot", "x", *more])[0]
    assert why_no_graph(options(), torch.device("cuda")) == ""
    assert "CUDA" in why_no_graph(options(), torch.device("cpu"))
    assert "--compile" in why_no_graph(options("--compile"), torch.device("cuda"))
    assert "one size" in why_no_graph(options("--preprocess", "scale_width"), torch.device("cuda"))
    with pytest.raises(
        UserError, match=r"--graph: needs a CUDA GPU, and the device is cpu .use --graph auto."
    ):
        tiny("cycle_gan", "nc", "--graph", "on")
    assert setup.build_static_step(options("--device", "cpu"), tiny("cycle_gan", "nc")) is None


@pytest.mark.parametrize("where", ["at once", "in a backward pass"])
def test_a_failure_to_record_is_told_once_and_changes_nothing(
    where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = list(epochs(3))
    eager, other = tiny("cycle_gan", "nc_ms"), tiny("cycle_gan", "nc_ms")

    def fail(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    def record(body: Callable[[], Losses]) -> Any:
        if where == "at once":
            fail()
        hook = next(other.networks["G_A"].parameters()).register_hook(
            fail
        )  # others have their gradients by then
        with torch.random.fork_rng(devices=[]):  # a graph that is recorded draws nothing
            try:
                body()
            finally:
                hook.remove()

    expected = run_eager(eager, steps, seed=3)
    other_step = StaticStep(other, 2, record=record)
    assert run_static((other, other_step, Recorder()), steps, seed=3) == expected
    assert_equal(state(other), state(eager))
    assert capsys.readouterr().err.count("not recorded as a CUDA graph") == 1


def test_learning_rates_in_tensors_change_no_bit() -> None:
    steps = list(epochs(2))
    numbers, tensors = tiny("pix2pix", "nc"), tiny("pix2pix", "nc")
    hold_learning_rates(tensors)
    assert run_eager(numbers, steps, seed=3) == run_eager(tensors, steps, seed=3)
    assert_equal(state(numbers), state(tensors))
    assert all(
        isinstance(leaf, float)
        for leaf in tree_leaves([g["lr"] for g in state(tensors)["optimizers"]["G"]["param_groups"]])
    )
