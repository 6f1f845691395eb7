"""What is kept of a training of Table 3: a small JSON with options and numbers, and how and where they were made."""

import json
import platform
from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, Literal

from datasets.errors import UserError
from datasets.files import cores, read_json
from evaluate.command import Evaluation
from evaluate.report import Report, file_list_hashes
from evaluate.table3 import Table3Options
from evaluate.table3_plan import PRESETS, PlannedTraining
from gan.step import find_device

Result = Mapping[str, Any]
"""The content of such a file."""

ROW_KEYS = ("direction", "checkpoint", "checkpoint_sha256", "n_fake", "n_real", "values", "file_list_hashes")
"""What a result keeps of a report's row: nothing that names a place on this machine."""


def result_of(training: PlannedTraining, report: Report, options: Table3Options) -> dict[str, Any]:
    """What is kept of a training, as plain types: its options, numbers, and how and where they were made."""
    content = json.loads(report.json())
    return {
        "training": training.name,
        "data": training.setting.data.name,
        "model": training.setting.model,
        "norm": training.norm,
        "seed": training.seed,
        "options": " ".join(training.options),
        "epoch": options.epoch,
        "test_mode": test_mode_of(options),
        "rows": [{key: row[key] for key in ROW_KEYS} for row in content["rows"]],
        "protocol": {"id": report.protocol.id},
        **{key: content[key] for key in ("not_computed", "weights", "versions")},
        "remarks": report.remarks,
        "machine": machine(options.device),
        "date": date.today().isoformat(),
    }


def machine(device: str) -> dict[str, object]:
    """Processor, cores, and the device that is computed on."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text(errors="replace").splitlines() if listed.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor() or platform.machine()
    return {"cpu": cpu, "cores": cores(), "device": str(find_device(device))}


def is_current(stored: Result, evaluation: Evaluation) -> bool:
    """Compare protocol, weights, checkpoint, and by their hashes the inputs, outputs and real pictures.

    A row stays current where its weights cannot be had now. Outputs that are gone are made again, which changes no
    number.
    """
    protocols = [replace(evaluation.protocol, verified=verified).id for verified in (True, False)]
    if any(stored["weights"].get(n, {}).get("sha256") != w.digest for n, w in evaluation.weights.items()):
        return False
    of_stored = [
        (row["direction"], row.get("checkpoint_sha256"), row["file_list_hashes"]) for row in stored["rows"]
    ]
    return stored["protocol"]["id"] in protocols and of_stored == [
        (row.direction, row.made_by["checkpoint_sha256"], file_list_hashes(row))
        for row in evaluation.comparisons
    ]


def read_result(training: PlannedTraining, options: Table3Options) -> Result:
    """The kept result. Raises UserError for one of other options, or what is no result."""
    path, fix = options.result_file(training), "name another folder with --results_dir"
    try:
        result = read_json(path)
        found = _flags(result["options"], result["epoch"], result["test_mode"])
        _ = result["protocol"]["id"], result["remarks"], result["not_computed"], result["weights"]
        _ = [[row[key] for key in ROW_KEYS] for row in result["rows"]]
    except (UserError, LookupError, TypeError) as error:
        raise UserError(path, "is not a result of this program", fix) from error
    wanted = _flags(" ".join(training.options), options.epoch, test_mode_of(options))
    others = [*(f"--{flag}" for flag in found - wanted), *(f"not --{flag}" for flag in wanted - found)]
    if others:
        raise UserError(path, f"is the result of other options: {', '.join(sorted(others))}", fix)
    return dict(result)


def _flags(options: str, epoch: str, test_mode: str) -> set[str]:
    """All that says how a result was made, as in `ngf 16`."""
    return set(f" {options} --epoch {epoch} --test_mode {test_mode}".split(" --")[1:])


def test_mode_of(options: Table3Options) -> Literal["eval", "train"]:
    """The mode of the networks in the evaluation."""
    return options.test_mode or PRESETS[options.preset].test_mode
