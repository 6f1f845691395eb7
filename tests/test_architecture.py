"""Rules of the source: who imports whom, what starts without torch, what is never written, examples that run."""

import ast
import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("cuda_ops", "models", "datasets", "gan", "evaluate")

MAY_IMPORT: dict[str, set[str]] = {
    "cuda_ops": set(),
    "models": {"cuda_ops"},
    "datasets": set(),
    "gan": {"models", "datasets"},
    "evaluate": {"gan", "models", "datasets"},
}
"""As drawn in docs/architecture.md."""

READERS_OF_OPTIONS = {
    "options", "command_line", "setup", "fine_tuning", "start", "loop", "translate", "translation_options",
}  # fmt: skip
"""Modules of gan where options are read; networks, steps, losses, the loop and checkpoints take plain arguments."""


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Full names of the modules a file imports anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names} & {
        *PACKAGES,
        "tests",
        "benchmarks",
        "tools",
        "train",
        "test",
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    files = sources(package)
    assert files
    for path in files:
        allowed = MAY_IMPORT[package] | {package}
        assert rooms(imports(path)) <= allowed, f"{path.relative_to(ROOT)} imports from another room"


def test_the_drawing_knows_every_package() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert all(f"`{package}`" in text for package in PACKAGES)
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert set(PACKAGES) <= folders


def test_options_are_read_in_few_places() -> None:
    readers = {path.stem for path in sources("gan") if "gan.options" in imports(path)}
    assert readers <= READERS_OF_OPTIONS
    for package in ("cuda_ops", "models", "datasets"):
        assert all("gan.options" not in imports(path) for path in sources(package))


@pytest.mark.parametrize(
    "module",
    ["gan.options", "gan.command_line", "gan.translation_options", "models.names", "datasets.errors"],
)
def test_what_a_help_page_needs_starts_without_torch(module: str) -> None:
    """Follows the imports at the top of each file, as Python would."""
    waiting, seen = [module], set()
    while waiting:
        name = waiting.pop()
        if name in seen or not (path := file_of(name)):
            continue
        seen.add(name)
        top = set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                top |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                top |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        heavy = {"torch", "torchvision", "numpy", "PIL"} & {found.split(".")[0] for found in top}
        assert not heavy, f"{name} imports {heavy}"
        parents = {".".join(found.split(".")[:n]) for found in top for n in range(1, found.count(".") + 2)}
        waiting += parents


def file_of(name: str) -> Path | None:
    place = ROOT.joinpath(*name.split("."))
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file() and name.split(".")[0] in PACKAGES:
            return path
    return None


# Built from pieces, so that this file does not hold them.
NEVER = [
    "weights_only" + "=False", "extract" + "all(", "pickle" + ".load", "yaml" + ".load(", "shell" + "=True",
    "LOAD_TRUNCATED" + "_IMAGES", "raise NotImplemented" + "Error", "TO" + "DO", "FIX" + "ME",
]  # fmt: skip


def tracked() -> list[Path]:
    """Files of the repository; without git, all below the folders of the source."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        return sources(*PACKAGES, "tests", "tools", "benchmarks") + sorted(ROOT.glob("*.py"))
    return [path for name in listed.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]


def test_what_is_never_written() -> None:
    found = []
    for path in tracked():
        if path.suffix not in (".py", ".sh", ".cu", ".toml", ".yml", ".yaml", ".html", ".js", ".css"):
            continue
        text = path.read_text(encoding="utf-8")
        where = path.relative_to(ROOT)
        is_test = where.parts[0] == "tests"
        words = [word for word in NEVER if word in text and not (is_test and word.startswith("weights_only"))]
        found += [f"{where}: {word}" for word in words]
        if re.search(r"except[^\n]*:\s*(#[^\n]*\n\s*)?pass\b", text):
            found.append(f"{where}: an exception that is passed over in silence")
    assert found == []


def test_no_path_of_a_machine_is_written() -> None:
    words = ["/" + "root/", "/" + "work/", "/" + "tmp/w/", "/home/" + "runner"]
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in tracked()
        if path.suffix in (".py", ".md", ".toml", ".txt", ".yml", ".cff", ".sh", "")
        for word in words
        if word in path.read_text(encoding="utf-8", errors="replace")
    ]
    assert found == []


@pytest.mark.parametrize("package", PACKAGES)
def test_examples_in_docstrings_run(package: str) -> None:
    attempted = 0
    for path in sources(package):
        if ">>>" not in path.read_text(encoding="utf-8"):
            continue
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        result = doctest.testmod(importlib.import_module(name))
        assert result.failed == 0, name
        attempted += result.attempted
    assert attempted or package == "datasets", f"no example in {package}"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_says_what_it_is(package: str) -> None:
    for path in sources(package):
        text = path.read_text(encoding="utf-8")
        if text.strip():
            assert ast.get_docstring(ast.parse(text)), f"{path.relative_to(ROOT)} has no docstring"


def test_small_modules_do_not_pull_in_large_ones() -> None:
    """In a real interpreter: what --help of either command imports is free of torch."""
    script = (
        "import gan.command_line, gan.translation_options, models.names, sys; print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "False", done.stderr
