"""`python -m gan.serve RUN`: a page that translates a dropped picture. Its options; no torch up to the work."""

import sys
from dataclasses import dataclass
from typing import Literal

from datasets.errors import UserError, run_command
from gan.translation_options import GeneratorOptions


@dataclass(frozen=True)
class ServeOptions(GeneratorOptions):
    """Serve a page on this machine that translates pictures as test.py does. Ctrl-C ends it."""

    port: int = 8090
    """Port of the page. 0: any free one."""
    host: str = "127.0.0.1"
    """Address of this machine that the page has. Default: one that only this machine reaches."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: a CUDA GPU if there is one, else Apple's GPU, else the CPU."""

    def check(self) -> None:
        """Raise UserError, naming the flag, for what is missing and for a value that is not allowed."""
        super().check()
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
