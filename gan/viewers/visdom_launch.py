"""The process of a Visdom server that a run has started: `python -m gan.viewers.visdom_launch [server arguments]`.

It serves without the download step that ends a server without internet, and ends with whoever started it: standard
input is a pipe from there, and its end is the sign (a training that is killed cannot clean up any more). With
`--keep` it stays.
"""

import importlib.abc
import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path

DOWNLOAD_SECONDS = 20
"""How long Visdom's own download of its page's scripts may take at the first start."""

PAGE_SCRIPTS = (
    "js/plotly-plotly.min.js",
    "js/react-react.min.js",
    "js/jquery.min.js",
    "css/bootstrap.min.css",
)
"""Some of the files without which the page stays blank."""


class WithoutClientParts(importlib.abc.MetaPathFinder):
    """Makes imports fail that only Visdom's client has a use for: they cost the server seconds and 500 MB."""

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name in ("torch", "openTSNE"):
            raise ModuleNotFoundError(f"{name} is of no use here")


def missing_scripts() -> list[str]:
    """The page's scripts that the installed Visdom lacks."""
    package = importlib.util.find_spec("visdom")  # finds it without the seconds of importing it
    static = Path(package.origin).parent / "static" if package and package.origin else Path("none")
    return [name for name in PAGE_SCRIPTS if not (static / name).is_file()]


def main(arguments: list[str]) -> None:
    """Serve until the starter is gone. Raises ImportError without Visdom, OSError if the port is taken."""
    if "--keep" in arguments:
        arguments.remove("--keep")
    else:
        threading.Thread(target=_end_with_starter, daemon=True).start()
    if missing_scripts():
        download = "from visdom.server.build import download_scripts; download_scripts()"
        try:
            subprocess.run(
                [sys.executable, "-c", download], timeout=DOWNLOAD_SECONDS, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired:
            print(f"the download of the page's scripts took more than {DOWNLOAD_SECONDS} s", flush=True)
    sys.meta_path.insert(0, WithoutClientParts())
    import visdom.server.app
    from visdom.server.run_server import main as serve

    visdom.server.app.tornado_settings["autoreload"] = False  # else it starts anew when a source file changes
    if hasattr(visdom.server.app, "DEFAULT_MAX_IMAGE_HISTORY"):  # Visdom 0.3 keeps 4 unless told
        visdom.server.app.DEFAULT_MAX_IMAGE_HISTORY = 1000
    sys.argv = ["visdom", *arguments]
    serve()


def _end_with_starter() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
