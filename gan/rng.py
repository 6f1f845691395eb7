"""Every random state of the process as plain tensors and numbers, which a checkpoint can hold."""

import contextlib
import os
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy
import torch


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators (all devices); seed: 0 .. 2**32 - 1."""
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def get_state() -> dict[str, Any]:
    """The states of Python's, NumPy's (legacy) and torch's generators, the latter for every device in use."""
    version, words, gauss = random.getstate()
    legacy: Any = numpy.random.get_state(legacy=False)
    state: dict[str, Any] = {
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "words": torch.tensor(legacy["state"]["key"].tolist(), dtype=torch.int64),
            "position": int(legacy["state"]["pos"]),
            "has_gauss": int(legacy["has_gauss"]),
            "gauss": float(legacy["gauss"]),
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_state(state: Mapping[str, Any]) -> None:
    """Put the generators where `get_state` found them; devices this machine lacks are left out."""
    python, legacy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    words = numpy.array(legacy["words"].tolist(), dtype=numpy.uint32)
    numpy.random.set_state(("MT19937", words, legacy["position"], legacy["has_gauss"], legacy["gauss"]))
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available():
        for device, saved in enumerate(state.get("cuda", [])[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(saved.cpu(), device)
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"].cpu())


@contextlib.contextmanager
def forked() -> Iterator[None]:
    """Leave every generator as it was: what is drawn inside the block changes nothing outside."""
    state = get_state()
    try:
        yield
    finally:
        set_state(state)


def deterministic(on: bool) -> None:
    """Let torch use only algorithms that give the same bits every time, or whatever is fastest.

    An operation without such an algorithm raises torch's RuntimeError, which names it. Call before CUDA is
    used: cuBLAS reads its setting at its start.
    """
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(on)
    torch.backends.cudnn.deterministic = on
    torch.backends.cudnn.benchmark = not on
