"""A run's outputs on its test split, made once: RUN/evaluation/epoch-E-step-S/DIRECTION/STEM.png.

Beside them `outputs.json` says what they were made from (checkpoint, protocol, inputs). As long as that is equal they
are used again; an interrupted call left whole files only, and the next one makes the missing ones.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from evaluate.pictures import Picture, set_hash
from gan.checkpoint_file import read_sidecar
from gan.run_folder import require_writable, write_atomically
from gan.translate import Translator
from gan.translate_files import output_names, translate_pictures

MANIFEST = "outputs.json"


def make_outputs(run: Path, translator: Translator, inputs: Sequence[Picture], mode: str) -> list[Path]:
    """The translation of every input, at the input's evaluated size. Returns their files, in the inputs' order.

    One picture at a time: batch statistics are then as published (mode "train"), and a call that goes on where
    another was interrupted writes the same bytes.

    Raises UserError naming an input that cannot be read or an output that cannot be written.
    """
    position = f"epoch-{translator.epoch}-step-{translator.step}" + ("" if mode == "eval" else f"-{mode}")
    folder = run / "evaluation" / position / translator.direction
    require_writable(folder)
    files = [folder / name for name in output_names([picture.path for picture in inputs])]
    key = _key(translator, inputs, mode)
    if _read_key(folder) != key:
        for stale in folder.glob("*.png"):
            stale.unlink()
        write_atomically(folder / MANIFEST, json.dumps({"key": key, "files": len(files)}).encode())
    todo = [
        (picture.load_image, file) for picture, file in zip(inputs, files, strict=True) if not file.exists()
    ]
    if todo:
        translate_pictures(translator, todo)
    return files


def _key(translator: Translator, inputs: Sequence[Picture], mode: str) -> str:
    sidecar = read_sidecar(translator.checkpoint)
    checkpoint = sidecar.sha256 if sidecar else hashlib.sha256(translator.checkpoint.read_bytes()).hexdigest()
    names = [picture.path.name for picture in inputs]
    parts = [checkpoint, translator.direction, mode, set_hash(inputs), names]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _read_key(folder: Path) -> str | None:
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    return content.get("key") if isinstance(content, dict) else None
