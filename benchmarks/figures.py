"""The size of the code against its limits.

    python -m benchmarks.figures

The core is what the fenced `core` block of docs/architecture.md lists, one `path  what it is` a line, in reading order.
Source is every .py and .cu file without tests/ and benchmarks/. Lines are all lines. Modules are our own files that a
real command has loaded when it ends. The exit code is 1 if a limit is not kept.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

LIMITS = {
    "source lines": 12600,
    "source files": 85,
    "test lines": 14500,
    "modules loaded by train.py": 45,
    "core lines": 3300,
    "core files": 25,
}

LOADED = """
import json, runpy, sys
from pathlib import Path
target, root, program = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
sys.argv = sys.argv[3:]
sys.path.insert(0, str(root))
try:
    if program.endswith(".py"):
        runpy.run_path(str(root / program), run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
finally:
    files = {Path(module.__file__) for module in list(sys.modules.values()) if getattr(module, "__file__", None)}
    ours = {str(path.relative_to(root)) for path in files if path.is_relative_to(root)}
    target.write_text(json.dumps(sorted(ours | {program if program.endswith(".py") else program + "/__main__.py"})))
"""

DATA = "--dataroot data --load_size 32 --crop_size 32 --max_dataset_size 1 --num_threads 0"
COMMANDS = {
    "train.py": f"train.py --name run --model pix2pix --netG resnet_6blocks --ngf 2 --ndf 2 {DATA} --val_count 1 "
    "--n_epochs 1 --n_epochs_decay 0 --device cpu --visdom off",
    "test.py": "test.py --name run --device cpu",
    "python -m evaluate": "evaluate run --metrics psnr,ssim,l1 --device cpu",
}


def main() -> int:
    exceeded = 0
    for name, value in figures():
        limit = LIMITS.get(name)
        verdict = "" if limit is None else f"limit {limit:>6,}  {'kept' if value <= limit else 'NOT KEPT'}"
        exceeded += limit is not None and value > limit
        print(f"{name:<38} {value:>7,}  {verdict}".rstrip(), flush=True)
    return 1 if exceeded else 0


def figures() -> Iterator[tuple[str, int]]:
    files = project_files()
    source = [
        path
        for path in files
        if path.suffix in (".py", ".cu") and path.parts[0] not in ("tests", "benchmarks")
    ]
    yield "source lines", lines(source)
    yield "source files", len(source)
    tests = [path for path in files if path.parts[0] == "tests" and path.suffix in (".py", ".c", ".cc", ".h")]
    yield "test lines", lines(tests)
    for name, loaded in loaded_files().items():
        yield f"modules loaded by {name}", len(loaded)
        yield f"their lines ({name})", lines(loaded)
    core = core_files()
    yield "core lines", lines(core)
    yield "core files", len(core)


def core_files() -> list[Path]:
    """Files of the core in reading order; SystemExit if the list is not there or names a file that is not."""
    text = (ROOT / "docs/architecture.md").read_text()
    block = re.search(r"^```core\n(.*?)^```", text, re.M | re.S)
    if block is None:
        raise SystemExit("docs/architecture.md: no fenced block `core` that lists the core")
    files = [Path(line.split()[0]) for line in block[1].splitlines() if line.strip()]
    wrong = [str(path) for path in files if not (ROOT / path).is_file() or files.count(path) > 1]
    if wrong:
        raise SystemExit(
            f"docs/architecture.md: the core lists files that are missing or twice: {', '.join(wrong)}"
        )
    return files


def project_files() -> list[Path]:
    """Tracked files and new ones that git does not ignore, relative to the root."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    return [Path(name) for name in sorted(set(listed)) if name and (ROOT / name).is_file()]


def lines(files: list[Path]) -> int:
    return sum((ROOT / path).read_text(encoding="utf-8").count("\n") for path in files)


def loaded_files() -> dict[str, list[Path]]:
    """By command: our files among its modules, after a tiny training, translation and evaluation."""
    loaded, ours = {}, project_files()  # a virtual environment may stand below the root
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        flags = ["--output", str(home / "data"), "--count", "5", "--size", "32", "--layout", "aligned"]
        run([sys.executable, "-m", "datasets.synthetic", *flags], ROOT)
        for name, command in COMMANDS.items():
            target = home / "loaded.json"
            run([sys.executable, "-c", LOADED, str(target), str(ROOT), *command.split()], home)
            loaded[name] = [path for path in ours if str(path) in json.loads(target.read_text())]
            target.unlink()
    return loaded


def run(command: list[str], home: Path) -> None:
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
