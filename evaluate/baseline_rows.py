"""What needs no learning, as rows beside the runs."""

from collections.abc import Sequence

from evaluate.baselines import baselines
from evaluate.report import Row
from evaluate.runs import RunChoice, directions_of, test_sides, training_pairs
from gan.options import TrainOptions, channels


def baseline_rows(runs: Sequence[TrainOptions], choice: RunChoice, asked: Sequence[str] | None) -> list[Row]:
    """Three rows for every data set and direction among the runs that have training pairs.

    asked: the metrics to keep, None for all. Empty where no run has pairs.
    """
    rows: list[Row] = []
    seen = set()
    for trained in runs:
        for direction in directions_of(trained):
            root = choice.dataroot or trained.data.dataroot
            data = (root, direction, trained.data.crop_size, channels(trained, direction))
            pairs = None if data in seen else training_pairs(trained, direction, choice.dataroot)
            seen.add(data)
            if pairs is None:
                continue
            _, inputs, targets = test_sides(trained, direction, choice)
            tests = list(zip(inputs, targets, strict=True))[: choice.num_test]
            for name, values in baselines(pairs, tests).items():
                kept = {metric: value for metric, value in values.items() if asked is None or metric in asked}
                rows.append(Row(f"baseline: {name}", direction, "", len(tests), len(targets), kept))
    return rows
