"""What the compiler made of the CUDA kernels: properties of the PTX that no run on a CPU can show."""

import ctypes
import re

import pytest
import torch

from cuda_ops.nvrtc import SOURCE, Arguments, BuildError, Unit, build, nvrtc_version

try:
    nvrtc_version()
    MISSING = ""
except BuildError as error:
    MISSING = str(error)
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING or "NVRTC is there")

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
UNITS = {
    "float64": Unit(F64, F64, F64, False),
    "float32": Unit(F32, F32, F32, True),
    "float16": Unit(F16, F16, F16, True),
    "bfloat16": Unit(BF16, BF16, BF16, False),
    "autocast": Unit(F32, BF16, F32, False),
}


def findings(ptx: str) -> set[str]:
    """What must not be there."""
    patterns = {
        "subnormal numbers flushed to zero": r"\.ftz\b",
        "an approximate division, root or reciprocal": r"\b(div|sqrt|rsqrt|rcp)\.(approx|full)",
        "loads that may miss what the same kernel has written": r"ld\.global\.nc",  # dx and dinput are one tensor
        "an array in local memory": r"\.local\b",
        "accesses of unknown memory": r"\b(ld|st)\.(u|s|f|b)\d+",  # generic: slower than global or shared ones
        "atomics, whose order changes the result": r"\b(atom|red)\.",
        "wider accesses than a slice is aligned for": r"(ld|st)\.global\.v\d",
    }
    return {name for name, pattern in patterns.items() if re.search(pattern, ptx)}


@pytest.mark.parametrize("name", UNITS)
def test_generated_code(name: str) -> None:
    ptx = build(SOURCE.read_bytes(), UNITS[name].definitions(), "compute_80").decode()
    assert not findings(ptx)
    size = ctypes.sizeof(Arguments)
    assert ptx.count(f".param .align 8 .b8 nc_scale_param_0[{size}]") == 1
    if BF16 in UNITS[name]:
        assert "cvt.rn.bf16.f32" in ptx
    if F16 in UNITS[name]:
        assert "cvt.rn.f16.f32" in ptx


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ("const wide std = sqrt(", "const wide std = __fsqrt_rn(0.0f) + __fdividef(1.0f, ", "approximate"),
        (
            "{ return v; }",
            '{ float r; asm("add.ftz.f32 %0, %1, %1;" : "=f"(r) : "f"(v)); return r; }',
            "subnormal",
        ),
        ("if (thread_index() == 0) a.pivot[which] = mean;", "atomicAdd(a.pivot + which, mean);", "atomics"),
        ("__builtin_assume(__isGlobal(at));", "", "unknown memory"),
        ("v[u] = inside ? widen(*from) - pivot", "v[u] = inside ? widen(__ldg(from)) - pivot", "may miss"),
    ],
)
def test_a_planted_fault_is_found(before: str, after: str, found: str) -> None:
    text = SOURCE.read_text()
    assert text.count(before) == 1
    ptx = build(text.replace(before, after).encode(), UNITS["float32"].definitions(), "compute_80").decode()
    assert any(found in name for name in findings(ptx))
