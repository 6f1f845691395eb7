"""A run's outputs on its test split, made once: RUN/evaluation/epoch-E-step-S/DIRECTION/STEM.png.

Beside them `outputs.json` says what made them (checkpoint, direction, mode) and from which inputs, by content. What is
still right is used again; an interrupted call leaves only whole files, and the next one makes the missing ones.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import overload

import torch

from datasets.files import require_writable, sha256_of, write_atomically
from evaluate.pictures import FilePicture, pictures_of
from gan.checkpoint_file import read_sidecar
from gan.options import TrainOptions, stored_dict
from gan.state import forked_random_state
from gan.translate import TestMode, Translator, load_translator, output_names, translate_pictures

MANIFEST = "outputs.json"

VERSION = 2
"""Of the way outputs are made, raised when it changes: older ones are made again. 2: dropout seeded by the picture."""

NOT_OF_A_CONFIGURATION = frozenset(
    {"name", "seed", "checkpoints_dir", "device", "num_threads", "print_freq", "display_freq", "save_epoch_freq",
     "save_step_freq", "keep", "eval_every", "eval_metrics", "compile", "nc_backend", "deterministic", "config"}
)  # fmt: skip
"""Options in which two runs may differ and still count as seeds of one configuration."""


@dataclass(frozen=True, eq=False)
class Outputs(Sequence[FilePicture]):
    """The translations of a run's test inputs, in their order.

    Nothing is loaded or translated before the first picture, or what it was made by, is asked for: until then a call
    can be refused at no cost. Raises UserError then: unknown epoch, damaged checkpoint, what cannot be read or written.
    """

    run: Path
    inputs: Sequence[FilePicture]
    direction: str
    epoch: str = "last"
    mode: TestMode = "eval"
    device: str = "auto"

    def __len__(self) -> int:
        return len(self.inputs)

    @overload
    def __getitem__(self, index: int) -> FilePicture: ...
    @overload
    def __getitem__(self, index: slice) -> list[FilePicture]: ...
    def __getitem__(self, index: int | slice) -> FilePicture | list[FilePicture]:
        return self._made[0][index]

    @property
    def made_by(self) -> Mapping[str, object]:
        """For report.json: the checkpoint, and the options that make two runs seeds of one configuration."""
        return self._made[1]

    @property
    def checkpoint(self) -> str:
        """`last (epoch 4, step 412)`, or without the name of the choice where that is the epoch."""
        position = f"epoch {self.made_by['epoch']}, step {self.made_by['step']}"
        return position if self.epoch.isdecimal() else f"{self.epoch} ({position})"

    @cached_property
    def _made(self) -> tuple[list[FilePicture], Mapping[str, object]]:
        translator = load_translator(
            self.run, epoch=self.epoch, direction=self.direction, device=self.device, test_mode=self.mode
        )
        made_by = {
            "run": str(self.run),
            "seed": translator.options.run.seed,
            "epoch": translator.epoch,
            "step": translator.step,
            "checkpoint": self.epoch,
            "checkpoint_sha256": checkpoint_hash(translator.checkpoint),
            "configuration": configuration(translator.options),
        }
        return pictures_of(make_outputs(self.run, translator, self.inputs, self.mode)), made_by


def configuration(options: TrainOptions) -> dict[str, object]:
    """The options that make two runs seeds of one configuration where they are equal."""
    return {
        name: value
        for name, value in stored_dict(options).items()
        if name not in NOT_OF_A_CONFIGURATION and not name.startswith("visdom")
    }


def checkpoint_hash(checkpoint: Path) -> str:
    """SHA-256 of a checkpoint: its sidecar's, else computed."""
    sidecar = read_sidecar(checkpoint)
    return sidecar.sha256 if sidecar else sha256_of(checkpoint)


def make_outputs(run: Path, translator: Translator, inputs: Sequence[FilePicture], mode: str) -> list[Path]:
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
    maker = [VERSION, checkpoint_hash(translator.checkpoint), translator.direction, mode]
    made_by = hashlib.sha256(json.dumps(maker).encode()).hexdigest()
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
def _seeded(translator: Translator, pictures: Sequence[FilePicture]) -> Iterator[None]:
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


def _read_manifest(folder: Path, made_by: str) -> dict[str, str]:
    """File name -> key of the input, of the outputs in the folder that this network made."""
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
        return dict(content["inputs"]) if content["made_by"] == made_by else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
