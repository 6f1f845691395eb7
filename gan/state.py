"""The state of a training: what a checkpoint holds, weights into networks, random generators."""

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from datasets.errors import UserError, is_out_of_memory, warn
from gan.step import Trainer


@dataclass
class Position:
    """How far the training is: `batches` of epoch `epoch` (from 1) are done, `step` steps in all."""

    epoch: int = 1
    batches: int = 0
    step: int = 0
    best: float | None = None
    """Best value so far of the metric that chooses the best checkpoint."""


def capture(
    trainer: Trainer,
    position: Position,
    options: dict[str, Any],
    metrics_bytes: int,
    data_listing: Sequence[str],
    median_sizes: Mapping[str, tuple[float, float]],
) -> dict[str, Any]:
    """The whole state.

    metrics_bytes: the length of metrics.jsonl now; data_listing: the data's files, a line each; median_sizes: median
    width and height of the training pictures of the folder's A and B.
    """
    averages = {name: average.state_dict() for name, average in trainer.averages.items()}
    return {
        "options": options,
        "position": asdict(position),
        "metrics_bytes": metrics_bytes,
        "data": "\0".join(data_listing),  # one text: a list would be thousands of values
        "median_sizes": {domain: list(size) for domain, size in median_sizes.items()},
        "networks": {name: network.state_dict() for name, network in trainer.networks.items()},
        **({"averages": averages} if averages else {}),
        "optimizers": {name: _optimizer_state(optimizer) for name, optimizer in trainer.optimizers.items()},
        "pools": {name: pool.state_dict() for name, pool in trainer.pools.items()},
        "rng": random_state(),
        "machine": _machine(trainer),
    }


def bare_state(
    options: Mapping[str, Any],
    networks: Mapping[str, Mapping[str, Tensor]],
    *,
    step: int = 0,
    epoch: int = 0,
    median_sizes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The state of weights that come without their training: what translating needs of `capture`. epoch: finished."""
    return {
        "options": dict(options),
        "position": asdict(Position(epoch + 1, 0, step)),
        "metrics_bytes": 0,
        "data": "",
        "median_sizes": dict(median_sizes or {}),
        "networks": dict(networks),
    }


def restore(trainer: Trainer, state: dict[str, Any], where: str) -> Position:
    """Put a captured state back into freshly built objects; `where` names the checkpoint in messages.

    One warning where the machine is another one in a way that changes the last bits of what is computed.
    """
    check_format(state, where)
    for name, network in trainer.networks.items():
        load_network(network, state["networks"].get(name, {}), where=f"{where}: {name}")
    averages = state.get("averages", state["networks"])  # an average that is new starts at the weights
    for name, average in trainer.averages.items():
        load_network(average, averages.get(name, {}), where=f"{where}: average of {name}")
    with refuse_malformed(where):
        for name, optimizer in trainer.optimizers.items():
            _restore_optimizer(optimizer, state["optimizers"][name])
        for name, pool in trainer.pools.items():
            if any(
                image.ndim != 3 or not image.is_floating_point() for image in state["pools"][name]["images"]
            ):
                raise ValueError(f"pools.{name} holds something else than images")
            pool.load_state_dict(state["pools"][name], _device(trainer))
        set_random_state(state["rng"])
    was, now = {"processes": 1} | state.get("machine", {}), {"processes": 1} | _machine(trainer)
    if changes := [
        f"{name} {was[name]} -> {now[name]}" for name in now if name in was and was[name] != now[name]
    ]:
        warn(where, f"not bit-identical from here on: {', '.join(changes)}")
    return Position(**state["position"])


def _machine(trainer: Trainer) -> dict[str, Any]:
    """What the bits of a training depend on beside its options."""
    return {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "device": _device(trainer).type,
    } | ({"processes": trainer.processes.world} if trainer.processes.world > 1 else {})


def _device(trainer: Trainer) -> torch.device:
    return next(next(iter(trainer.networks.values())).parameters()).device


def _optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Its state_dict, learning rates as numbers even where a recorded step has them in tensors."""
    state = optimizer.state_dict()
    return {**state, "param_groups": [{**group, "lr": float(group["lr"])} for group in state["param_groups"]]}


def _restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Adam's moments. Learning rate and the like stay those of the options. Raises ValueError if they do not fit."""
    groups = [
        {**own, "params": there["params"]}
        for own, there in zip(optimizer.param_groups, saved["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
    for parameter, moments in optimizer.state.items():
        shapes = {name: tuple(value.shape) for name, value in moments.items()}
        shape = tuple(parameter.shape)
        if shapes != {"step": (), "exp_avg": shape, "exp_avg_sq": shape} or moments["step"] < 0:
            raise ValueError("the moments of an optimizer do not fit its parameters")
        for name in ("exp_avg", "exp_avg_sq"):  # fused Adam reads memory, whatever the strides say
            moments[name] = torch.empty_like(parameter, dtype=moments[name].dtype).copy_(moments[name])


def _holds_tensors_by_name(part: Any) -> bool:
    return all(type(key) is str for tensors in part.values() for key, _ in tensors.items())


_SCALAR = (str, int, float, bool, type(None))
_LAYOUT: dict[str, Callable[[Any], bool]] = {
    "options": lambda part: all(type(name) is str and type(value) in _SCALAR for name, value in part.items()),
    "position": lambda part: (
        part.keys() == {"epoch", "batches", "step", "best"}
        and all(type(part[name]) is int and part[name] >= 0 for name in ("epoch", "batches", "step"))
        and type(part["best"]) in (float, int, type(None))
    ),
    "metrics_bytes": lambda part: type(part) is int and part >= 0,
    "data": lambda part: type(part) is str,
    "networks": _holds_tensors_by_name,
    "averages": _holds_tensors_by_name,
    "machine": lambda part: all(type(value) in _SCALAR for value in part.values()),
}
"""Part of a state -> whether it has the form that `capture` gives it."""


def check_format(state: dict[str, Any], where: str) -> None:
    """Raise UserError unless the parts that are read before the networks are built look as `capture` made them."""
    if "networks" not in state or "options" not in state:
        raise UserError(where, "is not a checkpoint of this program", "choose a run that train.py has made")
    with refuse_malformed(where):
        if wrong := [name for name, is_valid in _LAYOUT.items() if not is_valid(state.get(name, {}))]:
            raise ValueError(wrong[0])


@contextlib.contextmanager
def refuse_malformed(where: str) -> Iterator[None]:
    """A checkpoint can be whole and hold values that make no sense: what they lead to becomes one UserError."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        first = (str(error).splitlines() or [""])[0]
        reason = f"malformed state ({type(error).__name__}: {first})"
        raise UserError(where, reason, "use another checkpoint") from error


SHOWN = 3  # differences named in the one line


def load_network(
    network: nn.Module, state: Mapping[str, Tensor], *, where: str, check_finite: bool = False
) -> None:
    """Load a state_dict after `require_fit`; the network is unchanged if anything differs."""
    require_fit(network, state, where=where, check_finite=check_finite)
    names = {plain_key(key): key for key in network.state_dict()}
    network.load_state_dict({names[plain_key(key)]: value for key, value in state.items()})


def require_fit(
    network: nn.Module, state: Mapping[str, Tensor], *, where: str, check_finite: bool = False
) -> None:
    """Raise UserError unless a state_dict has the keys and shapes of a network, which may be on the meta device.

    Keys may carry the `module.` of a data-parallel wrapper or the `_orig_mod.` of a compiled one, on either
    side. where: what the error line speaks of, for example a path. check_finite: refuse NaN and infinity too.
    """
    given = {plain_key(key): value for key, value in state.items()}
    here = {plain_key(key): _describe(value) for key, value in network.state_dict().items()}
    there = {key: _describe(value) for key, value in given.items()}
    differences = [
        f"{key} is {there.get(key, 'missing')} there, {here.get(key, 'missing')} here"
        for key in here | there
        if there.get(key) != here.get(key)
    ]
    if differences:
        left = f" and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        reason = f"does not fit this network: {'; '.join(differences[:SHOWN])}{left}"
        raise UserError(where, reason, "use the options it was trained with")
    if check_finite and (reason := not_finite(given)):
        raise UserError(where, reason, "use an earlier checkpoint")


def not_finite(state: Mapping[str, Tensor]) -> str:
    """`KEY: 1 of 12 values are NaN or infinite` for the first such tensor, or nothing."""
    for key, value in state.items():
        if value.is_floating_point() and (bad := int((~torch.isfinite(value)).sum())):
            return f"{key}: {bad} of {value.numel()} values are NaN or infinite"
    return ""


def plain_key(key: str) -> str:
    """`module.net._orig_mod.0.weight` -> `net.0.weight`: without what wrappers add to a name."""
    parts = [part for part in key.split(".") if part != "_orig_mod"]
    while len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    return ".".join(parts)


def _describe(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return "x".join(str(n) for n in value.shape) or "a number"


def random_state() -> dict[str, Any]:
    """The states of Python's, NumPy's (legacy) and torch's generators, the latter for every device in use."""
    version, words, gauss = random.getstate()
    legacy: Any = numpy.random.get_state(legacy=False)
    state: dict[str, Any] = {
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "words": torch.tensor(legacy["state"]["key"].tolist(), dtype=torch.int64),
            "position": int(legacy["state"]["pos"]),
            "has_gauss": int(legacy["has_gauss"]),
            "gauss": float(legacy["gauss"]),
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put the generators where `random_state` found them; devices this machine lacks are left out."""
    python, legacy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    words = numpy.array(legacy["words"].tolist(), dtype=numpy.uint32)
    numpy.random.set_state(("MT19937", words, legacy["position"], legacy["has_gauss"], legacy["gauss"]))
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available():
        for device, saved in enumerate(state.get("cuda", [])[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(saved.cpu(), device)
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"].cpu())


@contextlib.contextmanager
def forked_random_state() -> Iterator[None]:
    """Leave every generator as it was: what is drawn inside the block changes nothing outside."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)
