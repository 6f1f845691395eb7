"""The names a user may type for networks and norms. Needs no torch, so that `--help` answers at once."""

from typing import Literal, get_args

NormName = Literal["instance", "batch", "none", "pono", "pono_ms", "pono_dms", "nc", "nc_ms", "nc_dms"]
BaseNormName = Literal["instance", "batch", "none"]
GeneratorName = Literal["resnet_9blocks", "resnet_6blocks", "unet_256", "unet_128"]
DiscriminatorName = Literal["basic", "n_layers", "pixel"]
UpsampleName = Literal["transposed", "resize"]
InitName = Literal["normal", "xavier", "kaiming", "orthogonal"]

NORM_NAMES: tuple[NormName, ...] = get_args(NormName)
