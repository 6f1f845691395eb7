"""What a run's folder says about the past: its records and options. Neither needs to be complete."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from gan.viewers import Record

KINDS = {"train": "losses", "samples": "pictures", "metrics": "metrics", "event": "message"}
"""Kind of record -> the key it must have to be shown."""


def read_records(folder: Path) -> list[Record]:
    """The records of FOLDER/metrics.jsonl; empty without the file, and a torn last line is left out."""
    try:
        with (folder / "metrics.jsonl").open(encoding="utf-8") as lines:
            return list(_records(lines))
    except FileNotFoundError:
        return []


def _records(lines: Iterator[str]) -> Iterator[Record]:
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and KINDS.get(record.get("kind", ""), "kind") in record:
            yield record


def read_options(folder: Path) -> dict[str, Any]:
    """The options of FOLDER/options.yaml, flat; empty if there is no readable file."""
    try:
        options = yaml.safe_load((folder / "options.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return options if isinstance(options, dict) else {}
