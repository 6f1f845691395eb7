"""A run's outputs on its test split, made once: RUN/evaluation/epoch-E-step-S/DIRECTION/STEM.png.

Beside them `outputs.json` says what made them (checkpoint, direction, mode) and from which inputs, by content. What is
still right is used again; an interrupted call left whole files only, and the next one makes the missing ones.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from datasets.files import require_writable, write_atomically
from evaluate.pictures import Picture
from gan.checkpoint import checkpoint_hash
from gan.state import forked_random_state
from gan.translate import Translator, output_names, translate_pictures

MANIFEST = "outputs.json"

VERSION = 2
"""Of the way outputs are made, raised when it changes: older ones are made again. 2: dropout seeded by the picture."""


def make_outputs(run: Path, translator: Translator, inputs: Sequence[Picture], mode: str) -> list[Path]:
    """The translation of every input, at the input's evaluated size. Returns their files, in the inputs' order.

    One picture at a time: batch statistics are then as published (mode "train"), and a call that goes on where
    another was interrupted writes the same bytes, dropout included.

    Raises UserError naming an input that cannot be read or an output that cannot be written.
    """
    position = f"epoch-{translator.epoch}-step-{translator.step}" + ("" if mode == "eval" else f"-{mode}")
    folder = run / "evaluation" / position / translator.direction
    require_writable(folder)
    files = [folder / name for name in output_names([picture.path for picture in inputs])]
    inputs_of = {file.name: picture.key for file, picture in zip(files, inputs, strict=True)}
    made_by = _maker(translator, mode)
    known = _read_manifest(folder, made_by)
    for file in folder.glob("*.png"):
        if file.name not in known or inputs_of.get(file.name, known[file.name]) != known[file.name]:
            file.unlink()  # of another checkpoint, or of an input that has changed
    manifest = {"made_by": made_by, "inputs": known | inputs_of}
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    missing = [(picture, file) for picture, file in zip(inputs, files, strict=True) if not file.exists()]
    if missing:
        with _seeded(translator, [picture for picture, _ in missing]):
            translate_pictures(translator, [(picture.load_image, file) for picture, file in missing])
    return files


@contextlib.contextmanager
def _seeded(translator: Translator, pictures: Sequence[Picture]) -> Iterator[None]:
    """Inside, random numbers (dropout) depend on the picture alone. pictures: in the order they are translated."""
    seeds = (int.from_bytes(hashlib.sha256(p.key.encode()).digest()[:4]) for p in pictures)

    def seed(*_: object) -> None:
        torch.manual_seed(next(seeds))

    hook = translator.network.register_forward_pre_hook(seed)
    try:
        with forked_random_state():
            yield
    finally:
        hook.remove()


def _maker(translator: Translator, mode: str) -> str:
    """Identifies the network and how it is run: 64 hex digits."""
    made_by = [VERSION, checkpoint_hash(translator.checkpoint), translator.direction, mode]
    return hashlib.sha256(json.dumps(made_by).encode()).hexdigest()


def _read_manifest(folder: Path, made_by: str) -> dict[str, str]:
    """File name -> key of the input, of the outputs in the folder that this network made."""
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
        return dict(content["inputs"]) if content["made_by"] == made_by else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
