"""`python -m gan.serve RUN`: a page that translates a dropped picture. Its options; no torch up to the work."""

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from datasets.errors import UserError, run_command


@dataclass(frozen=True)
class ServeOptions:
    """Serve a page on this machine that translates pictures as test.py does. Ctrl-C ends it."""

    run: Annotated[str, tyro.conf.Positional] = ""
    """Folder of a run, or its name under --checkpoints_dir; or a file with one generator."""
    port: int = 8090
    """Port of the page. 0: any free one."""
    host: str = "127.0.0.1"
    """Address of this machine that the page has. Default: one that only this machine reaches."""
    epoch: str = "last"
    """Checkpoint: last, best, or the number of a kept epoch."""
    which: Literal["ema", "raw"] = "ema"
    """Weights of a run trained with --ema: their average, or raw: as they were trained."""
    direction: Literal["AtoB", "BtoA"] | None = None
    """Direction of the translation. Default: that of the training. A cycle_gan run has learned both."""
    checkpoints_dir: str = "checkpoints"
    """Folder of all runs."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: a CUDA GPU if there is one, else Apple's GPU, else the CPU."""
    debug: bool = False
    """Also show the traceback of an error."""

    def check(self) -> None:
        """Raise UserError, naming the flag, for what is missing and for a value that is not allowed."""
        if not self.run:
            raise UserError("RUN", "is required", "name the run, first of all")
        if not 0 <= self.port <= 65535:
            raise UserError("--port", f"is {self.port}", "allowed: 0 to 65535")
        if self.host in ("", "*", "0.0.0.0", "::"):
            # the check of Host needs the names that the page goes by
            raise UserError("--host", "is no single address", "name the one that others use")


def main() -> int:
    from gan.command_line import parse_flags

    description = "Serve a page that translates dropped pictures."
    options = parse_flags(ServeOptions, sys.argv[1:], "python -m gan.serve", description)
    options.check()
    from gan.translation_server import serve

    serve(options)
    return 0


if __name__ == "__main__":
    run_command(main, debug="--debug" in sys.argv)
