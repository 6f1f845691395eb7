"""Checkpoints that are whole, by their SHA-256, and hold values that make no sense: one line, whatever they are."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from training_support import TINY, train, write_aligned

from datasets.errors import UserError
from gan import start, translate
from gan.checkpoint import load_checkpoint
from gan.options import from_dict
from gan.setup import build_trainer
from gan.state import restore

WRONG: list[Any] = [None, "x", -1, 10**30, [], {7: 7}, torch.zeros(2, 3)]
PARTS = ["options", "position", "metrics_bytes", "data", "networks", "optimizers", "pools", "rng", "machine"]

Trained = tuple[Path, dict[str, Any]]


def replaced(state: Any, key: Any, value: Any) -> Any:
    if isinstance(state, dict):
        return state | {key: value}
    return [value if number == key else entry for number, entry in enumerate(state)]


def mutants(state: Any, key: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """Where, and the state with the value at `key`, or some value in it down to a depth, wrong or left out."""
    for wrong in WRONG:
        yield f"{key} = {wrong}", replaced(state, key, wrong)
    if isinstance(state, dict):
        yield f"without {key}", {name: entry for name, entry in state.items() if name != key}
    value = state[key]
    if depth > 1 and isinstance(value, dict | list):
        for inside in list(value)[:3] if isinstance(value, dict) else range(min(2, len(value))):
            for where, mutant in mutants(value, inside, depth - 1):
                yield f"{key}.{where}", replaced(state, key, mutant)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The runs' folder with run `r` of one epoch, which has moments and a pool; its state."""
    folder = tmp_path_factory.mktemp("trained")
    arguments = ["--dataroot", write_aligned(folder / "data"), "--name", "r", "--checkpoints_dir", folder]
    assert train(*arguments, *TINY, "--model", "pix2pix", "--pool_size", 2, "--n_epochs", 1).code == 0
    return folder, load_checkpoint(folder / "r")[0]


@pytest.mark.parametrize("part", PARTS)
def test_training_refuses_what_makes_no_sense_or_takes_no_harm(trained: Trained, part: str) -> None:
    torch.set_num_threads(1)  # as the run was trained, else each resume says so
    trainer = build_trainer(from_dict(trained[1]["options"]))
    batch = {"A": torch.zeros(1, 3, 16, 16), "B": torch.zeros(1, 3, 16, 16), "skipped": []}
    problems, refused = [], 0
    for where, mutant in mutants(trained[1], part, 5 if part == "optimizers" else 3):
        try:
            restore(trainer, mutant, "x")
            trainer.step(batch)
        except UserError as error:
            refused += 1
            assert len(str(error)) <= 300
        except Exception as error:
            problems.append(f"{where}: {type(error).__name__}: {error}")
    assert problems == []
    assert refused >= 6


@pytest.mark.parametrize("part", PARTS)
def test_translation_refuses_what_makes_no_sense(
    trained: Trained, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = []
    for where, mutant in mutants(trained[1], part, 2):
        monkeypatch.setattr(translate, "read_pretrained", lambda *_, m=mutant: (m, Path("x")))
        try:
            translate.Translator.load(trained[0] / "r", device="cpu")(torch.zeros(1, 3, 16, 16))
        except UserError as error:
            assert len(str(error)) <= 300
        except Exception as error:
            problems.append(f"{where}: {type(error).__name__}: {error}")
    assert problems == []


def test_resuming_refuses_what_makes_no_sense(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("options", "metrics_bytes", "data", "position"):
        for where, mutant in mutants(trained[1], part, 1):
            monkeypatch.setattr(start, "load_checkpoint", lambda *_, m=mutant: (m, Path("x")))
            outcome = train("--name", "r", "--checkpoints_dir", trained[0], "--continue_train", "--override")
            assert outcome.code in (0, 2), (where, outcome.err)
            assert outcome.code == 0 or outcome.error
