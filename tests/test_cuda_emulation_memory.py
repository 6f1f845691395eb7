"""What a GPU's memory allocator hands out is not zero: every uninitialised tensor starts as NaN here."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cuda_shim.launcher import COMPILER, host_launchers
from cuda_support import CASES, assert_matches, make_inputs, run_backend

from cuda_ops import cuda, nvrtc
from cuda_ops.nvrtc import SOURCE

pytestmark = pytest.mark.skipif(
    COMPILER is None, reason="no C++ compiler (g++ or clang++) to run the kernels on the CPU"
)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch fills what `torch.empty` and its kin return, as it does for deterministic algorithms."""
    monkeypatch.setattr(cuda, "_outcomes", {})
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="module")
def libraries(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = getattr(pytestconfig, "cache", None)
    return cache.mkdir("cuda_shim") if cache else tmp_path_factory.mktemp("cuda_shim")


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_nothing_is_read_before_it_is_written(
    dtype: torch.dtype, last: bool, poisoned: None, libraries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert torch.empty(3).isnan().all()
    monkeypatch.setitem(nvrtc.LAUNCHERS, "cpu", host_launchers(libraries))
    for case in CASES.values():
        inputs = make_inputs(case, dtype, last)
        assert_matches(case, inputs, run_backend(case, inputs), dtype)


def test_a_value_left_out_is_noticed(
    poisoned: None, libraries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, case = SOURCE.read_text(), CASES["relu"]
    before = "if (live && t.c == 0) {\n        wide* out"
    assert text.count(before) == 1
    broken = tmp_path / "broken.cu"
    broken.write_text(text.replace(before, "if (live && t.c == 0 && at > 0) {\n        wide* out"))
    monkeypatch.setitem(nvrtc.LAUNCHERS, "cpu", host_launchers(libraries, broken))
    inputs = make_inputs(case, torch.float32, False)
    assert run_backend(case, inputs)["mean"].isnan().any()
