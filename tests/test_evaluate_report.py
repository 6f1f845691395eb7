"""Rows of a report: which are seeds of one configuration, what spreads there are, and tables of them."""

import math
import warnings

import pytest

from evaluate.metrics import METRICS
from evaluate.protocol import Protocol
from evaluate.report import Report, Row, with_groups
from evaluate.tables import latex_table, markdown_table, terminal_table


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
    ],
)
def test_what_counts_as_seeds(second: Row, grouped: bool) -> None:
    rows = with_groups([row("run_0", 0, 5, {"psnr": 10.0}), second])
    assert len(rows) == 2 + grouped
    if grouped:
        assert rows[2].values == {"psnr": 15.0} and rows[2].spreads["psnr"] == pytest.approx(50**0.5)


def test_the_best_of_each_run_is_at_its_own_epoch() -> None:
    rows = [row("run_0", 0, 5, {"fid": 1.0}, "best"), row("run_1", 1, 3, {"fid": 3.0}, "best")]
    assert with_groups(rows)[2].values == {"fid": 2.0}


@pytest.mark.parametrize("other", [20.0, math.inf])
def test_infinite_values_have_no_spread(other: float) -> None:
    rows = [
        row("run_0", 0, 5, {"psnr": math.inf, "l1": 0.0}),
        row("run_1", 1, 5, {"psnr": other, "l1": 0.2}),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean = with_groups(rows)[2]
    assert mean.values["psnr"] == math.inf and set(mean.spreads) == {"l1"}
    assert "nan" not in terminal_table([mean], METRICS)


def test_latex_rows_are_whole_and_escaped() -> None:
    found = [row("a_b^2~{x}\\", 0, 5, {"psnr": 10.0}), row("b", 1, 5, {"psnr": math.inf})]
    lines = latex_table(found, [m for m in METRICS if m.name == "psnr"], "p").splitlines()
    assert lines[1] == r"\begin{tabular}{lllrrr}"
    assert lines[3].startswith(r"run & direction & checkpoint & n\_fake & n\_real & PSNR")
    name = r"a\_b\textasciicircum{}2\textasciitilde{}\{x\}\textbackslash{}"
    assert lines[5] == name + r" & AtoB & last (epoch 5) & 3 & 4 & 10.00 \\"
    assert lines[6] == r"b & AtoB & last (epoch 5) & 3 & 4 & \textbf{inf} \\"


def test_columns_without_content_are_left_out() -> None:
    """Folders have no direction and no checkpoint; the counts always stand there."""
    found = [Row("a|b", "", "", 3, 4, {"fid": 10.0}), Row("c", "", "", 3, 4, {"fid": 12.0})]
    columns = [metric for metric in METRICS if metric.name in ("fid", "kid")]
    head, rule, first, _ = markdown_table(found, columns).splitlines()
    assert (head, rule) == ("| run | n_fake | n_real | FID |", "| --- | ---: | ---: | ---: |")
    assert first == r"| a\|b | 3 | 4 | 10.00 |"
    tex = latex_table(found, columns, "p").splitlines()
    assert tex[1] == r"\begin{tabular}{lrrr}" and tex[3] == r"run & n\_fake & n\_real & FID $\downarrow$ \\"
    assert tex[5] == r"a|b & 3 & 4 & \textbf{10.00} \\"
    assert terminal_table(found, columns).splitlines()[0] == "run  n_fake  n_real    FID"


def test_equal_reasons_are_told_once() -> None:
    report = Report(Protocol("32", "files"), [], dict.fromkeys(("fid", "kid"), "needs at least 2 images"))
    assert report.remarks == ["fid, kid not computed: needs at least 2 images"]
