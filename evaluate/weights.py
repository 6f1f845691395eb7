"""Where the weights of Inception and AlexNet come from, and how they are known to be the right ones.

Searched in this order: the file named by the flag, the folder I2I_WEIGHTS, our cache and torch.hub's, a download.
"""

import contextlib
import hashlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.download import discard, fetch
from datasets.errors import UserError, error_from_os
from datasets.files import sha256_of
from evaluate.lpips import CONVOLUTIONS

WEIGHTS_FOLDER_VARIABLE = "I2I_WEIGHTS"
OFFLINE_VARIABLE = "I2I_OFFLINE"
IDLE_SECONDS = 15.0  # without a byte from the server: a report should not wait long for one column

INCEPTION_FLAGS = ("fid", "fid_clean", "kid")  # the metrics, as --metrics names them, that need Inception

ALEXNET_FINGERPRINT = "2b566cc3a4d6f0a7343701af22f461f1ac3dcd03a3ac28cce10968a1d3c85fdc"
"""SHA-256 over the float32 bytes of the five convolutions' weights and biases (torchvision's ImageNet AlexNet)."""

HEADS_FINGERPRINT = "718a8b40b0d22f96192d34ab93c0db5c7943558ff6c2407f44812dce2f29b5f4"
"""The same over the five linear heads of LPIPS v0.1 for AlexNet. Computed from lpips/weights/v0.1/alex.pth of the
wheel lpips 0.1.4, whose list of contents gives that file the SHA-256 df73285e...0835c0."""


@dataclass(frozen=True)
class WeightsSource:
    """One published file. `hash_prefix` is the part of its SHA-256 that its published name states."""

    network: str
    flag: str
    url: str
    hash_prefix: str
    file_names: tuple[str, ...]  # names looked for in folders; the first is the published one


INCEPTION = WeightsSource(
    "Inception",
    "--inception_weights",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    "6726825d",
    ("pt_inception-2015-12-05-6726825d.pth",),
)
ALEXNET = WeightsSource(
    "AlexNet",
    "--lpips_weights",
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "7be5be79",
    ("alexnet-owt-7be5be79.pth", "alexnet_features.pth"),
)


@dataclass(frozen=True)
class Weights:
    """A state dict on the CPU. digest: what identifies it in caches and reports, 64 hex digits."""

    state: Mapping[str, Any]
    digest: str
    path: Path
    verified: bool


@dataclass(frozen=True)
class WeightsChoice:
    """Where weights may come from, as told by flags: cache folder, named files, downloads, unverified ones."""

    cache: Path
    inception: Path | None = None
    alexnet: Path | None = None
    offline: bool = False
    allow_unverified: bool = False


class WeightsMissing(UserError):
    """No file in any of the places, and no download; the message says where to put it."""


def cache_folder() -> Path:
    """Folder of everything that is kept between calls: $I2I_CACHE, else i2i under $XDG_CACHE_HOME or ~/.cache."""
    if folder := os.environ.get("I2I_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "i2i"


def find_file(source: WeightsSource, given: Path | None, cache: Path, offline: bool = False) -> Path:
    """The file to load, downloaded into cache/weights if need be. WeightsMissing where there is none."""
    if given is not None:
        if not given.is_file():
            raise UserError(given, f"no such file of {source.network} weights", f"see {source.flag}")
        return given
    own = cache / "weights"
    torch_home = Path(os.environ.get("TORCH_HOME") or Path.home() / ".cache" / "torch")
    folders = [own, torch_home / "hub" / "checkpoints"]
    if named := os.environ.get(WEIGHTS_FOLDER_VARIABLE):
        if not Path(named).is_dir():
            raise UserError(WEIGHTS_FOLDER_VARIABLE, f"{named} is no folder", "name a folder, or unset it")
        folders.insert(0, Path(named))
    for folder in folders:
        for name in source.file_names:
            if (folder / name).is_file():
                return folder / name
    target = own / source.file_names[0]
    if offline or os.environ.get(OFFLINE_VARIABLE, "0") not in ("", "0"):
        raise _missing(source, target, "downloads are off")
    try:
        _download(source, target)
    except UserError as error:
        raise _missing(source, target, error.reason) from error
    return target


def _download(source: WeightsSource, target: Path) -> None:
    """Fetch into target, which appears only when the hash is right. UserError otherwise."""
    arriving = target.parent / "arriving" / target.name
    try:
        fetch(source.url, arriving, IDLE_SECONDS)
        found = sha256_of(arriving)
        if not found.startswith(source.hash_prefix):
            discard(arriving)
            raise UserError(source.url, f"SHA-256 begins {found[:8]}; removed")
        arriving.replace(target)
        discard(arriving)
        with contextlib.suppress(OSError):  # another process may be downloading into it
            arriving.parent.rmdir()
    except OSError as error:
        raise error_from_os(error, arriving) or UserError(
            arriving, f"cannot be written: {error.strerror}"
        ) from error


def _missing(source: WeightsSource, target: Path, reason: str) -> WeightsMissing:
    return WeightsMissing(
        target,
        f"missing; {source.url} (SHA-256 {source.hash_prefix}...): {reason}",
        f"put it there, or {source.flag}",
    )


def load_inception_weights(
    given: Path | None, cache: Path, *, offline: bool = False, allow_unverified: bool = False
) -> Weights:
    """pytorch-fid's Inception weights, known by the hash prefix in the published name."""
    path = find_file(INCEPTION, given, cache, offline)
    digest = sha256_of(path)
    verified = digest.startswith(INCEPTION.hash_prefix)
    if not verified and not allow_unverified:
        raise UserError(
            path,
            f"SHA-256 begins {digest[:8]}, not {INCEPTION.hash_prefix}: not the Inception weights of pytorch-fid",
            f"get {INCEPTION.file_names[0]}, or --allow_unverified",
        )
    return Weights(_load_state(path), digest, path, verified)


def load_alexnet_weights(
    given: Path | None, cache: Path, *, offline: bool = False, allow_unverified: bool = False
) -> Weights:
    """AlexNet's five convolutions, known by a fingerprint of exactly these: other layers in the file do not matter."""
    path = find_file(ALEXNET, given, cache, offline)
    names = [f"features.{place}.{kind}" for place in CONVOLUTIONS for kind in ("weight", "bias")]
    network = "torchvision's ImageNet AlexNet", f"get {ALEXNET.file_names[0]}"
    return _load_known(path, names, ALEXNET_FINGERPRINT, network, allow_unverified)


def load_lpips_heads(*, allow_unverified: bool = False) -> Weights:
    """The linear heads of LPIPS v0.1 for AlexNet, from the installed lpips package, known by their fingerprint."""
    from importlib.util import find_spec

    spec = find_spec("lpips")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("lpips", "the package is not installed", "pip install -r requirements.txt")
    path = Path(spec.submodule_search_locations[0]) / "weights" / "v0.1" / "alex.pth"
    names = [f"lin{layer}.model.1.weight" for layer in range(len(CONVOLUTIONS))]
    network = "the heads of LPIPS v0.1", "install lpips 0.1.4 again"
    return _load_known(path, names, HEADS_FINGERPRINT, network, allow_unverified)


def _load_known(
    path: Path, names: list[str], expected: str, network: tuple[str, str], allow_unverified: bool
) -> Weights:
    """A file whose tensors of these names have the expected fingerprint. network: what it is, and how to get it."""
    what, remedy = network
    state = _load_state(path)
    if missing := [name for name in names if name not in state]:
        raise UserError(path, f"no {missing[0]} in it: not {what}", remedy)
    digest = fingerprint(state, names)
    if digest != expected and not allow_unverified:
        reason = f"fingerprint {digest[:8]}, not {expected[:8]}: not {what}"
        raise UserError(path, reason, f"{remedy}, or --allow_unverified")
    return Weights(state, digest, path, digest == expected)


def fingerprint(state: Mapping[str, Any], names: list[str]) -> str:
    """SHA-256 over the float32 values of these tensors, in this order."""
    total = hashlib.sha256()
    for name in names:
        total.update(state[name].detach().float().contiguous().numpy().astype("<f4").tobytes())
    return total.hexdigest()


def find_weights(
    flags: Collection[str], choice: WeightsChoice
) -> tuple[dict[str, Weights], dict[str, UserError]]:
    """The weights that these metrics need (inception, alexnet, heads), and by metric why some cannot be had.

    A file that is named must be usable: its error is raised.
    """
    weights: dict[str, Weights] = {}
    missing: dict[str, UserError] = {}
    how = {"offline": choice.offline, "allow_unverified": choice.allow_unverified}
    if flags_of_inception := [flag for flag in flags if flag in INCEPTION_FLAGS]:
        try:
            weights["inception"] = load_inception_weights(choice.inception, choice.cache, **how)
        except UserError as error:
            if choice.inception:
                raise
            missing |= dict.fromkeys(flags_of_inception, error)
    if "lpips" in flags:
        try:
            weights["alexnet"] = load_alexnet_weights(choice.alexnet, choice.cache, **how)
            weights["heads"] = load_lpips_heads(allow_unverified=choice.allow_unverified)
        except UserError as error:
            if choice.alexnet:
                raise
            missing["lpips"] = error
    return weights, missing


def _load_state(path: Path) -> Mapping[str, Any]:
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise error_from_os(error, path) or UserError(path, f"cannot be read: {error.strerror}") from error
    except Exception as error:  # torch names neither the file nor a safe remedy
        raise UserError(path, "not a readable file of weights", "download it again") from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise UserError(path, "not a file of weights (name -> tensor)", "download it again")
    return state
