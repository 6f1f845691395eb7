"""Networks built from plain named arguments. Start at `models.build`.

Nothing is imported here before it is asked for, so that `models.names` can be read without torch.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name != "NormalizedConv2d":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cuda_ops import NormalizedConv2d

    return NormalizedConv2d
