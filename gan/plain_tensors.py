"""What a checkpoint may hold: plain containers, numbers, text and tensors."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip


def prepare_state(state: Any, where: str = "state") -> Any:
    """A copy of the containers of a state with its tensors detached, on the CPU, and no larger than what they
    show.

    Allowed: dict (keys str or int), list, tuple, str, int, float, bool, None, Tensor of the common types;
    an OrderedDict becomes a dict, a Parameter a Tensor. Anything else is a TypeError that names its place.
    """
    kind = type(state)
    if kind in (dict, OrderedDict):
        for key in state:
            if type(key) not in (str, int):
                raise TypeError(
                    f"{where}: a key of type {type(key).__name__} cannot be saved, use str or int"
                )
        return {key: prepare_state(value, f"{where}[{key!r}]") for key, value in state.items()}
    if kind in (list, tuple):
        return kind(prepare_state(value, f"{where}[{i}]") for i, value in enumerate(state))
    if kind in (Tensor, torch.nn.Parameter):
        return _prepare_tensor(state, where)
    if state is None or kind in (str, int, float, bool):
        return state
    raise TypeError(
        f"{where}: {kind.__module__}.{kind.__qualname__} cannot be saved, use plain types and tensors"
    )


def _prepare_tensor(tensor: Tensor, where: str) -> Tensor:
    if tensor.layout != torch.strided or tensor.dtype not in DTYPES or tensor.is_meta:
        raise TypeError(
            f"{where}: a {tensor.layout} tensor of {tensor.dtype} on {tensor.device} cannot be saved"
        )
    plain = tensor.detach().cpu()
    # a view would drag the whole tensor behind it into the file
    whole = plain.numel() * plain.element_size() == plain.untyped_storage().nbytes()
    return plain if whole else plain.clone(memory_format=torch.contiguous_format)


def size_of(state: Any) -> int:
    """Bytes of the tensors in a state, nearly the size of its file."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return sum(map(size_of, values))
