"""A folder with a page that translates a dropped picture in the browser, by ONNX Runtime compiled for it.

`python -m http.server` in the folder serves it; browsers load no WebAssembly from a file. Nothing comes from elsewhere,
and the page's policy lets nothing go elsewhere.
"""

import contextlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from datasets.errors import UserError
from datasets.files import write_atomically
from gan.translate import Translator
from gan.viewers.page import WEB, translate_page

MODEL = "model.onnx"
PACKAGE = "onnxruntime-web@1.30.0"
RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
"""Files of the package that the page loads."""

SECONDS = 600  # that the download may take
FIX = "name the folder of the unpacked package with --ort"


@contextlib.contextmanager
def find_runtime(given: str) -> Iterator[dict[str, Path]]:
    """The files of RUNTIME by name: in the folder that is given or its dist/, else fetched by npm for a while.

    Raises UserError where they cannot be had.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(given), Path(given, "dist")] if given else [_fetched(Path(scratch))]
        for folder in folders:
            files = {name: folder / name for name in RUNTIME}
            if all(file.is_file() for file in files.values()):
                break
        else:
            reason = f"holds no {' and '.join(RUNTIME)}"
            raise UserError(f"--ort {given}", reason, f"name the unpacked npm package {PACKAGE}")
        yield files


def _fetched(folder: Path) -> Path:
    """A folder with the files of RUNTIME, from the archive that npm puts into `folder` and has verified."""
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("--format web", "needs npm to fetch onnxruntime-web, and there is none", FIX)
    try:
        done = subprocess.run(
            [npm, "pack", PACKAGE, "--loglevel", "error"],
            cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        with tarfile.open(next(folder.glob("*.tgz"))) as archive:
            for name in RUNTIME:
                content = archive.extractfile(f"package/dist/{name}")
                assert content is not None  # a regular file
                with content, (folder / name).open("wb") as file:
                    shutil.copyfileobj(content, file)
    except subprocess.TimeoutExpired:
        raise UserError("--format web", f"npm did not answer within {SECONDS} s", FIX) from None
    except (StopIteration, KeyError, tarfile.TarError):
        lines = (done.stderr or done.stdout).strip().splitlines() or ["it gave no archive with them"]
        raise UserError("--format web", f"npm cannot fetch {PACKAGE}: {lines[0]}", FIX) from None
    return folder


def write_page(translator: Translator, folder: Path, ort: str) -> None:
    """Fill a folder with all but the model; ort: see `find_runtime`.

    Raises UserError for a model of other than 1 or 3 channels, and where the runtime cannot be had; OSError.
    """
    of_input, of_output = translator.input_nc, translator.output_nc
    if not {of_input, of_output} <= {1, 3}:
        reason = f"a browser shows 1 or 3 channels, and this model has {of_input} and {of_output}"
        raise UserError("--format web", reason, "use --format onnx")
    value_range = translator.value_range
    if value_range and not 0 <= value_range[0] < value_range[1] <= 255:
        low, high = value_range
        reason = f"the run's --value_range {low:g},{high:g} is of other files than a browser reads: 8 bits a channel"
        raise UserError("--format web", reason, "use python -m gan.serve, which reads them as test.py does")
    (folder / "ort").mkdir()
    with find_runtime(ort) as runtime:
        for name, file in runtime.items():
            shutil.copyfile(file, folder / "ort" / name)
    shutil.copyfile(WEB / "worker.js", folder / "worker.js")
    name = f"{translator.options.run.name} {translator.direction}"
    about = {
        "file": MODEL, "input_nc": of_input, "output_nc": of_output, "value_range": value_range,
        "trained_scale": translator.trained_scale,
    }  # fmt: skip
    words = {**translator.stored_options, "dataroot": "", "direction": translator.direction}
    promise = "It stays in this browser."
    page = translate_page(name, words, translator.position, "by_worker.js", about, promise)
    write_atomically(folder / "index.html", page.encode())
