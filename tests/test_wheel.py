"""The layer as a package of its own: built by pip, installed into an empty folder, used from elsewhere."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `pip install .` installs. The build works on a copy and leaves nothing behind."""
    source, target = tmp_path_factory.mktemp("source") / "project", tmp_path_factory.mktemp("target")
    ignored = shutil.ignore_patterns(".*", "tests", "benchmarks", "checkpoints", "build", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "-q")
    command = [sys.executable, "-m", "pip", "install", *offline, "--target", str(target), "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def run(code: str, installed: Path, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_holds_one_package_and_shadows_nobodys(installed: Path) -> None:
    packages = [path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")]
    assert packages == ["cuda_ops"]
    of_the_project = {path.name for path in (ROOT / "cuda_ops").iterdir() if path.suffix in (".py", ".cu")}
    there = {path.name for path in (installed / "cuda_ops").iterdir() if path.suffix in (".py", ".cu")}
    assert there == of_the_project and "kernels.cu" in there


def test_the_three_lines_of_the_readme_work_in_another_folder(installed: Path, tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (lines,) = (block for block in re.findall(r"```python\n(.*?)```", readme, re.S) if "cuda_ops" in block)
    check = """
import cuda_ops
import torch.nn.functional as F
patches = F.unfold(x, 3, padding=1)
patches = (patches - patches.mean(1, keepdim=True)) / (patches.var(1, keepdim=True) + 1e-5).sqrt()
expected = layer.weight.flatten(1) @ patches + layer.bias[:, None]
assert torch.allclose(y.flatten(2), expected.relu(), atol=1e-4)
print(cuda_ops.__file__)
"""
    where = run(lines + check, installed, tmp_path)
    assert Path(where.strip()).parent == installed / "cuda_ops"


def test_the_report_on_the_kernels_runs_from_the_package(installed: Path, tmp_path: Path) -> None:
    code = "import runpy, sys; sys.argv = ['cuda_ops', '--help']; runpy.run_module('cuda_ops', run_name='__main__')"
    assert "cuda_ops" in run(code, installed, tmp_path)


def test_models_gives_the_layer_too() -> None:
    import cuda_ops
    import models

    assert models.NormalizedConv2d is cuda_ops.NormalizedConv2d
