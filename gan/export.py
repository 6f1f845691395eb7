"""`python -m gan.export RUN --format onnx --output FILE`: a generator for other programs. No torch up to the work."""

import sys
from dataclasses import dataclass
from typing import Literal

from datasets.errors import UserError, run_command
from gan.translation_options import GeneratorOptions

FormatName = Literal["safetensors", "onnx", "pt2", "hub", "web"]


@dataclass(frozen=True)
class ExportOptions(GeneratorOptions):
    """Write one generator in a form that other programs read, after it was compared with the run."""

    format: FormatName | None = None
    """Required. safetensors: one file of weights. onnx, pt2: one file that needs none of this code.
    hub: a folder with weights, configuration and model card. web: a folder with a page that translates pictures."""
    output: str = ""
    """File to write; folder for hub and web. Required."""
    ort: str = ""
    """For web: folder of the npm package onnxruntime-web. Default: `npm pack` fetches it."""

    def check(self) -> None:
        """Raise UserError, naming the flag, for what is missing and for a combination that is not allowed."""
        super().check()
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
