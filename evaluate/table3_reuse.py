"""Whether a stored row of Table 3 still is what evaluating again would give."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets.errors import UserError
from evaluate.command import weights_for
from evaluate.metrics import FLAGS
from evaluate.options import EvaluateOptions
from evaluate.pictures import pictures_of, set_hash
from evaluate.runs import RunChoice, protocol_of, test_sides
from evaluate.table3_results import outputs_of
from gan.checkpoint import checkpoint_hash, load_checkpoint
from gan.options import TrainOptions
from gan.translate import output_names


def is_current(
    stored: Mapping[str, Any], run: Path, trained: TrainOptions, evaluation: EvaluateOptions
) -> bool:
    """Compare protocol, weights, checkpoint, and by their hashes the inputs, outputs and real pictures.

    Weights that cannot be had now say nothing against a row that was computed with them. Raises UserError for a
    checkpoint or test pictures that cannot be read.
    """
    choice = RunChoice(evaluation.epoch, dataroot=evaluation.dataroot)
    if stored["not_computed"] or stored["protocol"]["id"] not in {
        protocol_of(trained, choice, verified).id for verified in (True, False)
    }:
        return False
    _, checkpoint = load_checkpoint(run, "best" if evaluation.epoch == "best" else "last")
    digest = checkpoint_hash(checkpoint)
    if any(row.get("checkpoint_sha256") != digest for row in stored["rows"]):
        return False
    if not all(_same_pictures(row, run, trained, choice) for row in stored["rows"]):
        return False
    weights, _ = weights_for(FLAGS, evaluation)
    return all(stored["weights"].get(name, {}).get("sha256") == w.digest for name, w in weights.items())


def _same_pictures(row: Mapping[str, Any], run: Path, trained: TrainOptions, choice: RunChoice) -> bool:
    _, inputs, reals = test_sides(trained, row["direction"], choice)
    folder = outputs_of(run, row, row["direction"])
    try:
        outputs = pictures_of(folder / name for name in output_names([p.path for p in inputs]))
    except UserError:  # an output is gone
        return False
    found = {"fake": set_hash(outputs), "real": set_hash(reals), "input": set_hash(inputs)}
    return bool(found == row["file_list_hashes"])
