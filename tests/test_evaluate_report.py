"""Rows of a report: which are seeds of one configuration, what spreads there are, and tables of them."""

import csv
import io
import math
import re
import warnings

import pytest

from evaluate.metrics import METRICS
from evaluate.options import Protocol
from evaluate.report import Report, Row, with_groups
from gan.loop import HIGHER_IS_BETTER


def row(label: str, seed: int, epoch: int, values: dict[str, float], kind: str = "last") -> Row:
    """A run's row; all of one configuration."""
    details = {"configuration": {"lr": 1}, "data": "d", "checkpoint": kind, "epoch": epoch, "seed": seed}
    return Row(label, "AtoB", f"{kind} (epoch {epoch})", 3, 4, values, details=details)


@pytest.mark.parametrize(
    ("second", "grouped"),
    [
        (row("run_1", 1, 5, {"psnr": 20.0}), True),
        (row("run_1", 1, 4, {"psnr": 20.0}), False),  # not trained as long
        (row("copy", 0, 5, {"psnr": 20.0}), False),  # the same seed
        (row("run_1", 1, 4, {"psnr": 20.0}, "best"), True),  # the best of each run is at its own epoch
    ],
)
def test_what_counts_as_seeds(second: Row, grouped: bool) -> None:
    kind = str(second.details["checkpoint"])
    rows = with_groups([row("run_0", 0, 5, {"psnr": 10.0}, kind), second])
    assert len(rows) == 2 + grouped
    if grouped:
        assert rows[2].values == {"psnr": 15.0} and rows[2].sd["psnr"] == pytest.approx(50**0.5)


@pytest.mark.parametrize("other", [20.0, math.inf])
def test_infinite_values_have_no_spread(other: float) -> None:
    rows = [
        row("run_0", 0, 5, {"psnr": math.inf, "l1": 0.0}),
        row("run_1", 1, 5, {"psnr": other, "l1": 0.2}),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean = with_groups(rows)[2]
    assert mean.values["psnr"] == math.inf and set(mean.sd) == {"l1"}
    assert "nan" not in Report(Protocol("32", "eval"), [mean]).table("simple")


def test_columns_without_content_are_left_out() -> None:
    """Folders have no direction and no checkpoint; the counts always stand there."""
    found = [
        Row("a|b_", "", "", 3, 4, {"fid": 10.0}, missing=["kid"]),
        Row("c", "", "", 3, 4, {"fid": 12.0}, {"fid": 0.5}),
    ]
    report = Report(Protocol("32", "files"), found)
    head, rule, first, second = [re.sub(" +", " ", line) for line in report.table("pipe").splitlines()]
    assert head == "| run | n_fake | n_real | FID | KID |" and rule.count("-:") == 4
    assert first == r"| a\|b_ | 3 | 4 | 10.00 | - |" and second == "| c | 3 | 4 | 12.00 ± 0.50 | |"
    assert report.table("simple").splitlines()[0].split() == ["run", "n_fake", "n_real", "FID", "KID"]
    assert r"a|b\_" in report.table("latex_booktabs")
    lines = list(csv.reader(io.StringIO(report.csv())))
    assert lines[0][-4:] == ["fid", "fid_plus_minus", "kid", "kid_plus_minus"]
    assert lines[2][0] == "i2i-1/32/files" and lines[2][-4:] == ["12.0", "0.5", "", ""]


def test_a_table_with_every_column_fits_a_terminal() -> None:
    """With intervals and long names too; no cell is lost."""
    values = {metric.name: 123.456 for metric in METRICS if metric.needs in ("", "targets")}
    label = "horse2zebra_cycle_gan_nc_ms_seed0"
    found = Row(
        label, "BtoA", "last (epoch 200, step 219200)", 1098, 1098, values, dict.fromkeys(values, 1.5)
    )
    text = Report(Protocol("256", "eval"), [found]).table("simple")
    assert max(map(len, text.splitlines())) <= 120
    shown = "".join(text.split())
    assert all(part in shown for part in (label[:22], label[22:], "BtoA", "(epoch200,", "123.46", "±1.50000"))


def test_better_is_the_same_for_a_report_and_for_the_best_checkpoint() -> None:
    assert {metric.flag for metric in METRICS if not metric.lower_is_better} == HIGHER_IS_BETTER
