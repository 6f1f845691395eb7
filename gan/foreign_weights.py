"""Weights of the widely used implementation, pytorch-CycleGAN-and-pix2pix, under our names.

Its files, `latest_net_G_A.pth` and the like, hold the state_dict of one network and nothing else. Which network that is
follows from the keys and shapes: layers are counted, widths and channels are those of the first and the last layer, and
the norm is told by what it stores. What no file says is the direction of a lone generator, and whether a U-Net was
trained with dropout: it counts as trained with it in Pix2Pix, and without it in CycleGAN, as the defaults there are.

Three things differ beside the names. Networks without a norm have no biases there: ours get zeros. Old files hold
running statistics of instance norms, which were never used: they are dropped. And the up-convolutions of a U-Net take
[skip, decoder] there, ours [decoder, skip]: the halves of their weights are swapped.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from datasets.errors import UserError
from gan.checkpoint import load_file
from gan.state import bare_state, plain_key, refuse_malformed
from models.build import build_discriminator, build_generator

Weights = Mapping[str, Tensor]

NAMED = re.compile(r"(?:(\w+?)_)?net_(G|D)(_A|_B)?\.pth")
"""What the files are called: which epoch, which network."""

RESNETS = {6: "resnet_6blocks", 9: "resnet_9blocks"}
MOST_LAYERS = 32  # of a PatchGAN
UNETS = {7: "unet_128", 8: "unet_256"}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class _Found(NamedTuple):
    """A network that was recognised: how ours is built, and the place of each of its layers in the file."""

    options: dict[str, Any]  # netG or netD, ngf or ndf, norm, ...
    channels: tuple[int, int]  # of input and output
    layers: dict[str, str]  # our module -> theirs
    swapped: frozenset[str] = frozenset()  # our modules, the halves of whose input are the other way round

    def untrained(self) -> nn.Module:
        """Ours, without memory for its weights."""
        made, norm, (inputs, outputs) = self.options, self.options["norm"], self.channels
        with torch.device("meta"):
            if "netG" in made:
                named = {"input_nc": inputs, "output_nc": outputs, "ngf": made["ngf"], "norm": norm}
                return build_generator(made["netG"], **named, base_norm=norm)
            layers = made.get("n_layers_D", 0)
            return build_discriminator(
                made["netD"], n_layers=layers, input_nc=inputs, ndf=made["ndf"], base_norm=norm
            )


def is_foreign_folder(folder: Path) -> bool:
    """Whether a folder holds a generator under one of their names."""
    return any((found := NAMED.fullmatch(path.name)) and found[2] == "G" for path in folder.glob("*.pth"))


def read_foreign_folder(folder: Path, epoch: str, discriminators: bool) -> tuple[dict[str, Any], Path]:
    """The networks of an epoch (a number, or latest) as a state, and the file of the first.

    discriminators: read those as well. Raises UserError where there is no generator, for networks that do not belong
    together, and for what `foreign_state` refuses; OSError.
    """
    names = [f"{kind}{side}" for kind in ("G", "D")[: 1 + discriminators] for side in ("", "_A", "_B")]
    files = {name: path for name in names if (path := folder / f"{epoch}_net_{name}.pth").exists()}
    if not any(name.startswith("G") for name in files):
        there = ", ".join(sorted(path.name for path in folder.glob("*_net_G*.pth"))[:6])
        raise UserError(folder, f"holds no {epoch}_net_G.pth, _G_A.pth or _G_B.pth", f"there are: {there}")
    if "G" in files and len(files.keys() & {"G_A", "G_B"}):
        reason = f"holds {epoch}_net_G.pth beside {epoch}_net_G_A.pth or _B.pth"
        raise UserError(folder, reason, "name one of the files")
    if "G" in files:
        files = {name: files[name] for name in ("G", "D") if name in files}
    state = foreign_state({path: load_file(path) for path in files.values()})
    return state, next(iter(files.values()))


def foreign_state(files: Mapping[Path, Weights]) -> dict[str, Any]:
    """The contents of some files, generators first, as a state. `options` has no direction where no name tells it.

    Raises UserError, naming what was found, for what is no network of a known layout, and for networks that differ.
    """
    networks: dict[str, dict[str, Tensor]] = {}
    options: dict[str, Any] = {}
    channels: list[tuple[int, int]] = []
    for path, content in files.items():
        named = NAMED.fullmatch(path.name)
        name = f"{named[2]}{named[3] or ''}" if named else "G"
        with refuse_malformed(str(path)):
            weights = _plain(content, path)
            found = (_generator if name.startswith("G") else _discriminator)(weights, path)
            networks[name] = _renamed(weights, found, path)
        channels.append(found.channels)
        for option, value in found.options.items():
            if options.setdefault(option, value) != value:
                reason = f"its {option} is {value}, and that of {next(iter(files)).name} is {options[option]}"
                raise UserError(path, reason, "use files of one training")
    name, (a, b) = next(iter(networks)), channels[0]
    if name.startswith("D"):
        raise _no_generator(next(iter(files)))
    a, b = (b, a) if name == "G_B" else (a, b)
    options |= {"input_nc": a, "output_nc": b, "base_norm": options["norm"], "model": "pix2pix"}
    if name != "G":
        options |= {"model": "cycle_gan", "direction": "BtoA" if name == "G_B" else "AtoB"}
    return bare_state(options, networks)


def _plain(content: Any, where: Path) -> Weights:
    """The state_dict without what wrappers add to its keys. Raises UserError for anything else."""
    wrong = [
        name for name, value in content.items() if type(name) is not str or not isinstance(value, Tensor)
    ]
    if wrong or not content:
        what = f"holds {wrong[0]!r}, a {type(content[wrong[0]]).__name__}" if wrong else "is empty"
        fix = "give a file such as latest_net_G.pth"
        raise UserError(where, f"{what}, not the weights of one network", fix)
    if filters := [name for name in content if name.endswith(".filt")]:
        what = f"is an anti-aliased generator ({filters[0]}), and these are not supported"
        raise UserError(where, what, "train it with --no_antialias and --no_antialias_up")
    return {plain_key(name): value for name, value in content.items()}


def _no_generator(where: Path) -> UserError:
    return UserError(where, "is a discriminator, not a generator", "give the file of a generator, net_G")


def _unsupported(where: Path, what: str) -> UserError:
    return UserError(where, what, "use another file")


def _unknown(where: Path, found: str) -> UserError:
    return _unsupported(where, f"no network of a known layout: {found}")


def _generator(weights: Weights, where: Path) -> _Found:
    if "model.model.0.weight" in weights:
        return _unet(weights, where)
    blocks = sorted(
        {int(key.split(".")[1]) for key in weights if re.match(r"model\.\d{1,4}\.conv_block\.", key)}
    )
    if blocks:
        return _resnet(weights, blocks, where)
    if weights.keys() & {"model.0.weight", "net.0.weight"}:
        raise _no_generator(where)
    raise _unknown(where, f"{len(weights)} tensors, the first is {next(iter(weights))}")


def _resnet(weights: Weights, blocks: list[int], where: Path) -> _Found:
    count = len(blocks)
    if blocks != list(range(10, 10 + count)):
        raise _unknown(where, f"a ResNet whose blocks are model.{blocks[0]} to model.{blocks[-1]}")
    if count not in RESNETS:
        raise _unsupported(where, f"is a ResNet of {count} blocks, and only 6 and 9 are supported")
    dropout = _ndim(weights, "model.10.conv_block.6.weight") == 4
    places = {"stem": "model.1", "downs.0": "model.4", "downs.1": "model.7"}
    for i, place in enumerate(blocks):
        places[f"blocks.{i}.first"] = f"model.{place}.conv_block.1"
        places[f"blocks.{i}.second"] = f"model.{place}.conv_block.{5 + dropout}"
    places |= {"ups.0": f"model.{10 + count}", "ups.1": f"model.{13 + count}"}
    layers = _with_norms(places) | {"out": f"model.{17 + count}"}
    first, out = (_shape(weights, layers[name], where) for name in ("stem.conv", "out"))
    norm = _norm(weights, layers["stem.conv"])
    options = {"netG": RESNETS[count], "ngf": first[0], "norm": norm, "dropout": dropout}
    return _Found(options, (first[1], out[0]), layers)


def _unet(weights: Weights, where: Path) -> _Found:
    prefixes = ["model.model", "model.model.1.model"]  # of the levels, from outside
    while f"{prefixes[-1]}.3.model.1.weight" in weights and len(prefixes) <= max(UNETS):
        prefixes.append(f"{prefixes[-1]}.3.model")
    count = len(prefixes)
    if count not in UNETS:
        raise _unsupported(where, f"is a U-Net of {count} down convolutions, and only 7 and 8 are supported")
    *inner, deepest = range(1, count)
    places = {f"downs.{level}": f"{prefixes[level]}.1" for level in inner}
    places |= {f"ups.{level - 1}": f"{prefixes[level]}.5" for level in inner}
    places[f"ups.{deepest - 1}"] = f"{prefixes[deepest]}.3"
    layers = _with_norms(places) | {"downs.0.conv": f"{prefixes[0]}.0", "out": f"{prefixes[0]}.3"}
    layers[f"downs.{deepest}.conv"] = f"{prefixes[deepest]}.1"
    first, out = (_shape(weights, layers[name], where) for name in ("downs.0.conv", "out"))
    options = {"netG": UNETS[count], "ngf": first[0], "norm": _norm(weights, layers["downs.1.conv"])}
    swapped = frozenset({"out", *(f"ups.{level - 1}.conv" for level in inner)})
    return _Found(options, (first[1], out[1]), layers, swapped)


def _discriminator(weights: Weights, where: Path) -> _Found:
    count = sum(value.ndim == 4 for value in weights.values()) - 2  # convolutions with a norm
    options: dict[str, Any] = {"netD": "basic" if count == 3 else "n_layers", "n_layers_D": count}
    if "net.0.weight" in weights:
        options = {"netD": "pixel"}
        layers = {"first.conv": "net.0", **_with_norms({"second": "net.2"}), "out": "net.5"}
    elif "model.0.weight" in weights and 1 <= count <= MOST_LAYERS:
        places = {f"layers.{i}": f"model.{2 + 3 * i}" for i in range(count)}
        layers = {"first.conv": "model.0", **_with_norms(places), "out": f"model.{2 + 3 * count}"}
    else:
        raise _unknown(where, f"a discriminator of {count + 2} convolutions")
    first = _shape(weights, layers["first.conv"], where)
    options |= {"ndf": first[0], "norm": _norm(weights, list(layers.values())[1])}
    return _Found(options, (first[1], 1), layers)


def _with_norms(places: Mapping[str, str]) -> dict[str, str]:
    """Our block -> place of its convolution there; gives our convolutions and norms -> their places."""
    pairs = [((f"{ours}.conv", place), (f"{ours}.norm", _next(place))) for ours, place in places.items()]
    return dict(pair for both in pairs for pair in both)


def _next(place: str) -> str:
    """`model.4` -> `model.5`."""
    before, _, number = place.rpartition(".")
    return f"{before}.{int(number) + 1}"


def _norm(weights: Weights, conv: str) -> str:
    """The norm that follows a convolution. Batch norm has weights; instance norm has none, and a bias before it."""
    norm = _next(conv)
    if f"{norm}.weight" in weights:
        return "batch"
    return "instance" if weights.keys() & {f"{conv}.bias", f"{norm}.running_mean"} else "none"


def _ndim(weights: Weights, key: str) -> int:
    return weights[key].ndim if key in weights else 0


def _shape(weights: Weights, layer: str, where: Path) -> tuple[int, ...]:
    """Of the weight of a convolution."""
    if _ndim(weights, f"{layer}.weight") != 4:
        raise _unknown(where, f"{layer}.weight is no convolution")
    return tuple(weights[f"{layer}.weight"].shape)


def _renamed(weights: Weights, found: _Found, where: Path) -> dict[str, Tensor]:
    """The weights under our names. Raises UserError for what is missing, left over, or of another shape."""
    renamed, used = {}, set()
    for key, own in found.untrained().state_dict().items():
        module, _, leaf = key.rpartition(".")
        theirs = f"{found.layers[module]}.{leaf}"
        used.add(theirs)
        if theirs in weights:
            value = weights[theirs]
            if value.shape != own.shape:
                raise _unknown(where, f"{theirs} is {list(value.shape)} instead of {list(own.shape)}")
            if leaf == "weight" and module in found.swapped:
                value = torch.cat(value.chunk(2)[::-1])  # (in, out, 4, 4)
        elif leaf in ("bias", "num_batches_tracked") and f"{found.layers[module]}.weight" in weights:
            value = torch.zeros(own.shape, dtype=own.dtype)
        else:
            raise _unknown(where, f"{theirs} is missing")
        renamed[key] = value
    unused = STATISTICS if found.options["norm"] == "instance" else ()
    if left := [key for key in weights if key not in used and not key.endswith(unused)]:
        raise _unknown(where, f"{left[0]} has no place in it")
    return renamed
