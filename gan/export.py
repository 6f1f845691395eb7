"""`python -m gan.export RUN --format onnx --output FILE`: a generator for other programs. No torch up to the work."""

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from datasets.errors import UserError, run_command

FormatName = Literal["safetensors", "onnx", "pt2", "hub", "web"]


@dataclass(frozen=True)
class ExportOptions:
    """Write one generator in a form that other programs read, after it was compared with the run."""

    run: Annotated[str, tyro.conf.Positional] = ""
    """Folder of a run, or its name under --checkpoints_dir; or a file with one generator."""
    format: FormatName | None = None
    """Required. safetensors: one file of weights. onnx, pt2: one file that needs none of this code.
    hub: a folder with weights, configuration and model card. web: a folder with a page that translates pictures."""
    output: str = ""
    """File to write; folder for hub and web. Required."""
    epoch: str = "last"
    """Checkpoint: last, best, or the number of a kept epoch."""
    which: Literal["ema", "raw"] = "ema"
    """Weights of a run trained with --ema: their average, or raw: as they were trained."""
    direction: Literal["AtoB", "BtoA"] | None = None
    """Direction of the translation. Default: that of the training. A cycle_gan run has learned both."""
    checkpoints_dir: str = "checkpoints"
    """Folder of all runs."""
    ort: str = ""
    """For web: folder of the npm package onnxruntime-web. Default: `npm pack` fetches it."""
    debug: bool = False
    """Also show the traceback of an error."""

    def check(self) -> None:
        """Raise UserError, naming the flag, for what is missing and for a combination that is not allowed."""
        if not self.run:
            raise UserError("RUN", "is required", "name the run, first of all")
        if not self.format:
            raise UserError("--format", "is required", "allowed: safetensors, onnx, pt2, hub, web")
        if not self.output:
            raise UserError("--output", "is required", "name the file or folder to write")
        if self.ort and self.format != "web":
            raise UserError("--ort", f"does not go with --format {self.format}", "leave it out")


def main() -> int:
    from gan.command_line import parse_flags

    description = "Write a run's generator for other programs."
    options = parse_flags(ExportOptions, sys.argv[1:], "python -m gan.export", description)
    options.check()
    from gan.export_formats import export

    export(options)
    return 0


if __name__ == "__main__":
    run_command(main, debug="--debug" in sys.argv)
