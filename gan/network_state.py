"""Weights from a checkpoint into a network, and what to say when they do not fit."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from datasets.errors import UserError

SHOWN = 3  # differences named in the one line


def load_network(
    network: nn.Module, state: Mapping[str, Tensor], *, where: str, check_finite: bool = False
) -> None:
    """Load a state_dict after comparing every key and shape; the network is unchanged if anything differs.

    Keys may carry the `module.` of a data-parallel wrapper or the `_orig_mod.` of a compiled one, on either
    side. where: what the error line speaks of, for example a path. check_finite: refuse NaN and infinity too.
    """
    own = {plain_key(key): (key, value) for key, value in network.state_dict().items()}
    given = {plain_key(key): value for key, value in state.items()}
    differences = [
        f"{key} is {_describe(given.get(key))} there, {_describe(own[key][1] if key in own else None)} here"
        for key in [*own, *(key for key in given if key not in own)]
        if _describe(given.get(key)) != _describe(own[key][1] if key in own else None)
    ]
    if differences:
        left = f" and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise UserError(
            where,
            f"does not fit this network: {'; '.join(differences[:SHOWN])}{left}",
            "use the options it was trained with",
        )
    if check_finite:
        require_finite(given, where=where)
    network.load_state_dict({own[key][0]: value for key, value in given.items()})


def require_finite(state: Mapping[str, Tensor], *, where: str) -> None:
    """UserError naming the first tensor that holds a NaN or an infinity."""
    for key, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            bad = int((~torch.isfinite(value)).sum())
            reason = f"{key}: {bad} of {value.numel()} values are NaN or infinite"
            raise UserError(where, reason, "use an earlier checkpoint")


def plain_key(key: str) -> str:
    """`module.net._orig_mod.0.weight` -> `net.0.weight`: without what wrappers add to a name."""
    parts = [part for part in key.split(".") if part != "_orig_mod"]
    while len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    return ".".join(parts)


def describe_difference(
    saved: Mapping[str, Any], wanted: Mapping[str, Any], names: Iterable[str]
) -> list[str]:
    """The options among `names` that differ, as `norm: instance -> nc_ms` (was -> now)."""
    return [
        f"{name}: {_show(saved, name)} -> {_show(wanted, name)}"
        for name in names
        if _show(saved, name) != _show(wanted, name)
    ]


def _show(options: Mapping[str, Any], name: str) -> str:
    value = options.get(name, "(not stored)")
    if isinstance(value, tuple | list):  # a tuple that went through YAML is a list
        return "[" + ", ".join(str(entry) for entry in value) + "]"
    return str(value)


def _describe(value: Any) -> str:
    if value is None:
        return "missing"
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return "x".join(str(n) for n in value.shape) or "a number"
