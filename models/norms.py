"""What a base norm is and what each `--norm` value means: two tables, read by the networks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from models.names import BaseNormName, NormName


@dataclass(frozen=True)
class BaseNorm:
    """A normalisation of whole feature maps, and whether the layer before it has a bias.

    A bias in front of affine parameters would be learned twice; where the norm has none, the layer keeps its
    bias.
    """

    layer: Callable[[int], nn.Module]
    bias_before: bool


BASE_NORMS: dict[BaseNormName, BaseNorm] = {
    "instance": BaseNorm(nn.InstanceNorm2d, bias_before=True),  # no affine, no running statistics
    "batch": BaseNorm(nn.BatchNorm2d, bias_before=False),  # affine, running statistics
    "none": BaseNorm(nn.Identity, bias_before=True),
}

Positional = Literal["none", "pono", "nc"]
Shortcut = Literal["none", "ms", "dms"]


@dataclass(frozen=True)
class NormPlan:
    """Where a generator standardises what.

    base      the base norm; None: the one asked for by `base_norm`
    down      what the down-sampling convs do per position: nothing, PONO after the conv, or NC in its place
    rest      the same for every other convolution but the output's; transposed convolutions are always plain
    shortcut  how the moments of the down-sampling convs return in the decoder
    """

    base: BaseNormName | None = None
    down: Positional = "none"
    rest: Positional = "none"
    shortcut: Shortcut = "none"


NORMS: dict[NormName, NormPlan] = {
    "instance": NormPlan(base="instance"),
    "batch": NormPlan(base="batch"),
    "none": NormPlan(base="none"),
    "pono": NormPlan(down="pono"),
    "pono_ms": NormPlan(down="pono", shortcut="ms"),
    "pono_dms": NormPlan(down="pono", shortcut="dms"),
    "nc": NormPlan(base="none", down="nc", rest="nc"),
    "nc_ms": NormPlan(down="nc", shortcut="ms"),
    "nc_dms": NormPlan(down="nc", shortcut="dms"),
}


def plan_norms(norm: NormName, base_norm: BaseNormName) -> tuple[NormPlan, BaseNormName]:
    """The plan of a norm and the base norm that goes with it.

    `instance`, `batch` and `none` are their own base norm, whatever `base_norm` says. Raises ValueError for
    an unknown name, and for `nc` with a base norm: NC needs none.

    >>> plan_norms("nc_ms", "batch")
    (NormPlan(base=None, down='nc', rest='none', shortcut='ms'), 'batch')
    """
    if norm not in NORMS:
        raise ValueError(f"norm: unknown name {norm!r}, known are {', '.join(NORMS)}")
    if base_norm not in BASE_NORMS:
        raise ValueError(f"base_norm: unknown name {base_norm!r}, known are {', '.join(BASE_NORMS)}")
    if norm == "nc" and base_norm != "none":
        raise ValueError(f"base_norm: norm 'nc' goes with base_norm 'none' only, got {base_norm!r}")
    plan = NORMS[norm]
    return plan, plan.base or base_norm
