"""One generator as one safetensors file: weights under our names; in the metadata what a Translator needs.

Any program that reads safetensors can read the weights. Beside a generator of a run stands nothing else: no optimiser,
no discriminator, no path or login of the machine that trained it. The metadata holds texts:

    format, version           "image-translation-generator", "1"
    program, sha256           the version that wrote the file; over the metadata and all tensors
    options                   JSON: the options of the training, as a checkpoint stores them
    direction, step, epoch    "AtoB" or "BtoA"; how long it was trained, in steps and in epochs
    median_size               JSON: [width, height] of the input domain's training pictures, or null
    trained_scale             JSON: the factors across and down by which training resized them
    size_multiple, min_size   the sides of an input are multiples of the first, and not less than the second
    value_range               JSON: black and white of inputs and outputs, (N, C, H, W)
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.errors import UserError, file_error
from datasets.files import replacing
from gan import __version__
from gan.checkpoint_format import damaged, not_plain, raw_bytes, read_metadata, read_tensors, signed_header
from gan.state import bare_state

if TYPE_CHECKING:
    from gan.translate import Translator

FORMAT, VERSION = "image-translation-generator", 1
FILE_NAME = "model.safetensors"
"""Of such a file in a folder: what the programs of model collections look for."""

OF_THE_MACHINE = ("dataroot", "checkpoints_dir", "init_from", "visdom")
"""How the names of options begin that are nobody's business but the trainer's."""


def describe(translator: "Translator") -> dict[str, str]:
    """The metadata of a Translator, as above, but for the hash: of this file, and of other forms of the generator."""
    network = translator.network
    stored = {
        name: value
        for name, value in translator.stored_options.items()
        if not name.startswith(OF_THE_MACHINE)
    }
    return {
        "format": FORMAT, "version": str(VERSION), "program": __version__,
        "options": json.dumps(stored | {"direction": translator.direction}),
        "direction": translator.direction, "step": str(translator.step), "epoch": str(translator.epoch),
        "median_size": json.dumps(translator.median_size), "trained_scale": json.dumps(translator.trained_scale),
        "size_multiple": str(getattr(network, "size_multiple", 1)), "min_size": str(getattr(network, "min_size", 1)),
        "value_range": "[-1, 1]",
    }  # fmt: skip


def write_generator(translator: "Translator", path: Path) -> None:
    """Write the generator of a Translator as one file, whole or not at all. Raises UserError where that fails."""
    metadata = describe(translator)
    weights = {name: tensor.detach().cpu() for name, tensor in translator.network.state_dict().items()}
    header, tensors = signed_header(metadata, weights)
    try:
        with replacing(path) as write:
            write(header)
            for tensor in tensors:
                write(raw_bytes(tensor))
    except OSError as error:
        raise file_error(error, path, "written") from error


def is_generator(path: Path) -> bool:
    """Whether a safetensors file says that it is such a file. Raises UserError for a damaged one; OSError."""
    return read_metadata(path)[0].get("format") == FORMAT


def read_generator(path: Path) -> dict[str, Any]:
    """What a file holds, as the parts of a checkpoint's state that translating needs, with one network.

    Its SHA-256 is compared. Raises UserError for what is incomplete, changed, of a newer version or makes no sense;
    OSError.
    """
    metadata, whole = read_metadata(path)
    if metadata.get("format") != FORMAT:
        raise not_plain(path, "a safetensors file of another program")
    try:
        if int(metadata["version"]) > VERSION:
            reason = f"made by {metadata['program']}, this is {__version__}"
            raise UserError(path, reason, "update this program")
        step, epoch = int(metadata["step"]), int(metadata["epoch"])
        options, size = json.loads(metadata["options"]), json.loads(metadata["median_size"])
        name = {"AtoB": "G_A", "BtoA": "G_B"}[metadata["direction"]]
        if options["direction"] != metadata["direction"]:
            raise ValueError("two directions")
        if options["model"] == "pix2pix":
            name = "G"
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise damaged(path, f"damaged: its metadata makes no sense ({type(error).__name__})") from None
    networks = {name: read_tensors(path, metadata, whole)}
    return bare_state(
        options, networks, step=step, epoch=epoch, median_sizes={metadata["direction"][0]: size}
    )
