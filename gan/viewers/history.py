"""What a run's folder says about the past: its records and options. Neither needs to be complete."""

from pathlib import Path
from typing import Any

import yaml

from gan import run
from gan.viewers import Record

KINDS = {"train": "losses", "samples": "pictures", "metrics": "metrics", "event": "message"}
"""Kind of record -> the key it must have to be shown."""


def read_records(folder: Path) -> list[Record]:
    """The records of FOLDER/metrics.jsonl that can be shown; empty without the file."""
    lines = run.read_records(folder / "metrics.jsonl")
    return [
        record for record in lines if KINDS.get(record.get("kind", ""), "kind of another program") in record
    ]


def read_options(folder: Path) -> dict[str, Any]:
    """The options of FOLDER/options.yaml, flat; empty if there is no readable file."""
    try:
        options = yaml.safe_load((folder / "options.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return options if isinstance(options, dict) else {}
