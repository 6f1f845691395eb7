"""Normalized convolution: the layer, the operator and its backends. Nothing above torch is imported.

The names are imported when they are first asked for: `python -m cuda_ops --help` does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cuda_ops.direct import Activation, activate
    from cuda_ops.layer import NormalizedConv2d
    from cuda_ops.normalized_conv import ACTIVATIONS, BACKENDS, Backend, Moments, normalized_conv2d

__all__ = [
    "ACTIVATIONS", "BACKENDS", "Activation", "Backend", "Moments", "NormalizedConv2d", "activate", "normalized_conv2d",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "cuda_ops.layer" if name == "NormalizedConv2d" else "cuda_ops.normalized_conv"
    found = globals()[name] = getattr(importlib.import_module(module), name)
    return found
