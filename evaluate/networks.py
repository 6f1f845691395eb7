"""The two networks of the metrics, built from their weights when they are first needed."""

from contextlib import AbstractContextManager
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from datasets.errors import UserError
from evaluate.inception import InceptionPool, resize_bilinear, scale_clean
from evaluate.lpips import AlexNetTrunk, heads_from_state
from evaluate.weights import Weights

FeatureName = Literal["fid", "fid_clean"]


class Networks:
    """Inception for FID and KID, AlexNet with linear heads for LPIPS; each may be absent (None)."""

    def __init__(
        self,
        inception: Weights | None,
        alexnet: Weights | None,
        heads: Weights | None,
        device: torch.device | None = None,
        half: bool = False,
    ) -> None:
        """half: Inception in float16; its features have other keys in the cache."""
        on_cpu = device is None or device.type == "mps"  # sums are float64, which Apple's GPUs do not have
        self.device = torch.device("cpu") if on_cpu else device
        self._inception, self._alexnet, self._heads = inception, alexnet, heads
        self._dtype = torch.float16 if half else torch.float32

    @property
    def inception_digest(self) -> str:
        """Identifies the network that features were made by, for the cache's keys."""
        digest = self._inception.digest[:16] if self._inception else ""
        return digest if self._dtype == torch.float32 else f"{digest}-float16"

    @property
    def lpips_digest(self) -> str:
        if self._alexnet is None or self._heads is None:
            return ""
        return self._alexnet.digest[:16] + self._heads.digest[:8]

    @cached_property
    def inception(self) -> InceptionPool:
        assert self._inception is not None
        try:
            with torch.random.fork_rng(
                devices=[]
            ):  # building draws initial weights: not from the training's numbers
                return InceptionPool(self._inception.state).to(self.device, self._dtype)
        except (RuntimeError, KeyError) as error:
            raise UserError(
                self._inception.path, "tensors do not fit pytorch-fid's Inception", "see --inception_weights"
            ) from error

    @cached_property
    def trunk(self) -> AlexNetTrunk:
        assert self._alexnet is not None
        try:
            with torch.random.fork_rng(devices=[]):
                return AlexNetTrunk(self._alexnet.state).to(self.device)
        except (RuntimeError, KeyError) as error:
            raise UserError(
                self._alexnet.path, "tensors do not fit torchvision's AlexNet", "see --lpips_weights"
            ) from error

    @cached_property
    def heads(self) -> list[Tensor]:
        assert self._heads is not None
        return [head.to(self.device) for head in heads_from_state(self._heads.state)]

    def inception_features(self, name: FeatureName, images: Tensor) -> Tensor:
        """(N, 2048) float32 on the CPU.

        images: for fid (N, 3, H, W) uint8; for fid_clean (N, 3, 299, 299) float32 in [0, 255], resized by
        PIL.
        """
        images = images.to(self.device)
        inputs = resize_bilinear(images) if name == "fid" else scale_clean(images)
        with _full_precision():
            return self.inception(inputs.to(self._dtype)).cpu()

    def lpips_maps(self, images: Tensor) -> list[Tensor]:
        """Normalised feature maps of (N, 3, H, W) uint8 images."""
        with _full_precision():
            return self.trunk(images.to(self.device).float() / 127.5 - 1)


def _full_precision() -> AbstractContextManager[None]:
    """No TF32 in cuDNN's convolutions, which is on by default and rounds to 10 bits."""
    deterministic = torch.backends.cudnn.deterministic
    return torch.backends.cudnn.flags(enabled=True, deterministic=deterministic, allow_tf32=False)
