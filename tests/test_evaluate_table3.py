"""Table 3: what is planned, what the numbers in it are, and that all eight rows run, stop and go on."""

import csv
import io
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from evaluate_support import random_trunk, write_pictures
from PIL import Image

from datasets.errors import RunError, UserError
from evaluate import table3_run
from evaluate.table3 import (
    HORSES,
    MAPS,
    PRESETS,
    PlannedTraining,
    Table3Options,
    parse_seeds,
    plan_trainings,
)
from evaluate.table3_run import csv_text, protocol_of, run_table3, table_rows, terminal_text, wide_table
from gan.command_line import parse_train
from train import train

pytestmark = pytest.mark.usefixtures("nothing_from_outside")


def test_the_plan_has_eight_rows() -> None:
    """On disk A of Maps is the photo; the table's A is the map."""
    plan = plan_trainings(PRESETS["full"], [0])
    assert len({(t.setting, t.norm) for t in plan}) == 8
    assert len(plan) == 12  # Pix2Pix is trained once for each direction
    assert len({t.name for t in plan_trainings(PRESETS["full"], parse_seeds("0,2,2"))}) == 24
    flags = plan[0].flags(Path("data"), Path("checkpoints"))
    assert flags[flags.index("--dataroot") + 1] == "data/maps" and "--n_epochs" not in flags
    assert MAPS.words == {"BtoA": "map→photo", "AtoB": "photo→map"} and HORSES.words["AtoB"] == "horse→zebra"
    first, second = _named("maps_pix2pix_nc_ms")
    assert (first.direction, second.direction) == ("BtoA", "AtoB")
    with pytest.raises(UserError, match="no training has"):
        _named("nothing")
    for text in ("", "a", "-1"):
        with pytest.raises(UserError, match="--seeds"):
            parse_seeds(text)


def _report(*rows: tuple[str, float, float], lpips: str = "lpips_target", n: int = 7) -> dict[str, object]:
    return {
        "protocol": {"id": "p"},
        "rows": [
            {"direction": d, "values": {"fid": fid, lpips: value}, "n_fake": n, "n_real": n + i}
            for i, (d, fid, value) in enumerate(rows)
        ],
    }


def _named(text: str, seeds: Sequence[int] = (0,)) -> list[PlannedTraining]:
    return plan_trainings(PRESETS["full"], seeds, text)


def test_numbers_and_counts_land_in_their_cells() -> None:
    """Disk BtoA is the table's A -> B; counts that differ between seeds or models are all told."""
    (pono,), nc = _named("maps_cycle_gan_pono"), _named("maps_cycle_gan_nc", (0, 1))
    both = (("AtoB", 11.0, 0.15), ("BtoA", 19.0, 0.25))
    first = _report(("AtoB", 10.0, 0.1), ("BtoA", 20.0, 0.2))
    rows = table_rows({pono: first, nc[0]: _report(*both), nc[1]: _report(*both, n=5)})
    assert [row.norm for row in rows] == ["PONO+MS", "NC+MS", "NC − PONO"]
    difference = rows[2].cells["fid_ab"]
    assert difference.mean == -1.0 and difference.published == pytest.approx(49.57 - 52.45)
    assert r"\toprule" in wide_table(rows, "latex_booktabs")
    head, _, *lines = [
        [cell.strip() for cell in line.split("|")[2:-1]] for line in wide_table(rows, "pipe").splitlines()
    ]
    assert head[1:4] == ["FID A→B", "FID A→B n_fake/n_real", "FID A→B (published)"]
    assert lines[0][1:][:6] == ["20.00", "7/8", "52.45", "10.00", "7/7", "64.13"]
    assert [line[2] for line in lines] == ["7/8", "7/8, 5/6", "7/8, 5/6"]
    assert [line[5] for line in lines] == ["7/7", "7/7, 5/5", "7/7, 5/5"]
    stored = list(csv.DictReader(io.StringIO(csv_text(rows, "p"))))
    assert [line["norm"] for line in stored] == ["pono_ms", "nc_ms", "NC − PONO"]
    assert (stored[0]["fid_ab"], stored[0]["fid_ab_n_fake"], stored[0]["fid_ab_n_real"]) == ("20.0", "7", "8")
    assert (stored[1]["fid_ab_n_fake"], stored[1]["lpips_ba_published"]) == ("7 5", "0.177")
    _, _, *shown = [re.sub(" +", " ", line.strip()) for line in terminal_text(rows).splitlines()]
    assert shown[0] == "Maps, CycleGAN A→B: map→photo PONO+MS 20.00 7/8 52.45 0.2000 0.3317"
    assert shown[4] == "NC+MS 11.00 ± 0.00 7/7, 5/5 59.78 0.1500 ± 0.0000 0.1770" and len(shown) == 6
    assert max(map(len, terminal_text(rows).splitlines())) <= 120


def test_a_row_without_numbers() -> None:
    (without,) = table_rows({_named("maps_cycle_gan_pono")[0]: {"protocol": {"id": "p"}, "rows": []}})
    assert without.cells["fid_ab"].texts("fid_ab") == ["-", "-", "52.45"]
    (empty,) = csv.DictReader(io.StringIO(csv_text([without], "p")))
    assert empty["fid_ab_n_fake"] == empty["fid_ba_n_real"] == "" and empty["fid_ba_published"] == "64.13"


def test_pix2pix_rows_come_from_two_trainings_and_several_seeds() -> None:
    reports = {}
    for training in _named("night2day_pix2pix_nc", (0, 1)):
        fid = {"BtoA": 100.0, "AtoB": 50.0}[training.direction] + 2 * training.seed
        reports[training] = _report((training.direction, fid, 0.5))
    (row,) = table_rows(reports)
    assert row.cells["fid_ab"].texts("fid_ab")[0] == "101.00 ± 1.41" and row.cells["fid_ba"].mean == 51.0


def test_unpaired_rows_use_all_pairs() -> None:
    (training,) = _named("horse2zebra_cycle_gan_nc")
    (row,) = table_rows({training: _report(("AtoB", 1.0, 0.7), ("BtoA", 2.0, 0.8), lpips="lpips_all_pairs")})
    assert row.cells["fid_ab"].mean == 1.0 and row.cells["lpips_ba"].mean == 0.8


def test_protocols_are_not_mixed(tmp_path: Path) -> None:
    (pono,), (nc,) = _named("maps_cycle_gan_pono"), _named("maps_cycle_gan_nc")
    other = _report(("AtoB", 1.0, 1.0)) | {"protocol": {"id": "q"}}
    with pytest.raises(UserError, match="different protocols"):
        protocol_of({pono: _report(("AtoB", 1.0, 1.0)), nc: other})


@pytest.fixture
def smoke(tmp_path: Path) -> Table3Options:
    """Options that carry the small preset out, with random AlexNet weights."""
    trunk = tmp_path / "alexnet.pth"
    torch.save(random_trunk(), trunk)
    return Table3Options(
        preset="smoke", run=True, output=tmp_path / "out", checkpoints_dir=tmp_path / "runs", lpips_weights=trunk,
        allow_unverified=True, offline=True, device="cpu", pictures=2,
    )  # fmt: skip


class Runner:
    """train.py in this process, stopped by Ctrl-C before the training of this number."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.calls: list[list[str]] = []
        self.stop_at = stop_at

    def __call__(self, flags: Sequence[str]) -> int:
        if len(self.calls) == self.stop_at:
            return 130
        self.calls.append(list(flags))
        options, saved = parse_train(flags)
        return train(options, saved)


def test_smoke_runs_stops_and_goes_on(
    smoke: Table3Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All eight rows on the embedded data, interrupted in the middle of the first training and after the fifth."""
    half, options = Runner(), replace(smoke, latex=True)
    assert run_table3(options, lambda flags: half([*flags, "--n_epochs_decay", "0"]) or 130) == 130
    first = Runner(stop_at=5)
    assert run_table3(options, first) == 130
    assert ["--continue_train" in flags for flags in first.calls] == [True, False, False, False, False]
    assert len(list((tmp_path / "out" / "rows").iterdir())) == 5
    second = Runner()
    assert run_table3(options, second) == 0
    assert len(first.calls) == 5 and len(second.calls) == 7
    text = re.sub(" +", " ", (tmp_path / "out" / "table3.md").read_text())
    assert text.count("| PONO+MS |") == text.count("| NC+MS |") == text.count("| NC − PONO |") == 4
    assert "photo→map" in text and "miniature" in text
    for figure in (3, 4):
        assert Image.open(tmp_path / "out" / f"figure{figure}.png").size[0] > 100
    report = json.loads(next((tmp_path / "out" / "rows").glob("*horse2zebra*nc_ms*")).read_text())
    assert {row["direction"] for row in report["rows"]} == {"AtoB", "BtoA"}
    assert "lpips_all_pairs" in report["rows"][0]["values"]
    third = Runner()
    assert run_table3(options, third) == 0 and third.calls == []
    assert capsys.readouterr().out.count("trained already") == 5 + 12


def test_a_row_whose_makings_changed_is_made_again(
    smoke: Table3Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Output pictures, checkpoint, weights, real pictures: each change is noticed, and nothing else is."""
    other = tmp_path / "other.pth"
    torch.save({name: value * 1.5 for name, value in random_trunk().items()}, other)
    options = replace(smoke, only="maps_pix2pix_nc_ms_BtoA")
    (training,) = plan_trainings(PRESETS["smoke"], [0], options.only)
    row = tmp_path / "out" / "rows" / f"{training.name}.json"
    assert run_table3(options, Runner()) == 0
    whole = json.loads(row.read_text()) | {"not_computed": {}}  # as if all weights were there

    def used_again(changed: Table3Options = options) -> bool:
        row.write_text(json.dumps(whole))
        capsys.readouterr()
        assert run_table3(changed, Runner()) == 0
        return "evaluated already" in capsys.readouterr().out

    assert used_again()
    pictures = tmp_path / "runs" / training.name / "evaluation"
    # is nobody's hindrance
    (pictures / "report.json").write_text('{"protocol": {"id": "of another report"}}')
    assert not used_again(replace(options, lpips_weights=other))
    made = {path.name: path.read_bytes() for path in pictures.glob("epoch-*/BtoA/*.png")}
    shutil.rmtree(pictures)
    assert used_again()  # made again, and the same ones
    assert {path.name: path.read_bytes() for path in pictures.glob("epoch-*/BtoA/*.png")} == made
    stored = whole["rows"][0]["file_list_hashes"].pop("fake")
    assert not used_again()  # other outputs
    whole["rows"][0]["file_list_hashes"]["fake"] = stored
    checkpoint = whole["rows"][0].pop("checkpoint_sha256")
    assert not used_again()
    whole["rows"][0]["checkpoint_sha256"] = checkpoint
    assert used_again()
    first = next(
        path for path in sorted((tmp_path / "out/data/maps").glob("*/*.*")) if path.parent.name != "train"
    )
    Image.open(first).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(first)
    assert not used_again()


def test_ctrl_c_reaches_a_training_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal signals the whole group; train.py takes a second signal for "leave at once"."""

    class Process:
        waits = 0

        def __init__(self, command: Sequence[str]) -> None: ...

        def wait(self) -> int:
            Process.waits += 1
            if Process.waits == 1:
                raise KeyboardInterrupt
            return 130

        def send_signal(self, number: int) -> None:
            raise AssertionError(f"signal {number} sent on")

    monkeypatch.setattr(table3_run.subprocess, "Popen", Process)
    assert table3_run.by_process([]) == 130 and Process.waits == 2


def test_a_training_that_fails_is_named(smoke: Table3Options) -> None:
    with pytest.raises(RunError, match="exit code 1"):
        run_table3(smoke, lambda flags: 1)
    assert run_table3(smoke, lambda flags: 2) == 2


def test_what_could_not_be_evaluated_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = Table3Options(
        preset="smoke", run=True, output=tmp_path / "out", checkpoints_dir=tmp_path / "runs", offline=True
    )
    for flags, text in (
        ({"epoch": "best"}, "--epoch: cycle_gan trainings have no best checkpoint"),
        ({"pictures": 0}, "--pictures: is 0"),
        ({"inception_weights": tmp_path / "none.pth"}, "no such file of Inception weights"),
        ({"preset": "full", "data_dir": tmp_path}, r"/maps: no such data set .*datasets\.prepare"),
    ):
        with pytest.raises(UserError, match=text):
            run_table3(replace(options, **flags), lambda flags: pytest.fail("trained"))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    assert run_table3(options, lambda flags: 130) == 130
    (first, second) = (line for line in capsys.readouterr().out.splitlines() if "cannot be computed" in line)
    assert first.startswith("fid, fid_clean, kid ") and second.startswith("lpips ")


def test_a_part_of_a_real_data_set_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, count in (("train", 3), ("val", 2)):
        write_pictures(tmp_path / "maps" / split, count, 1, (16, 8))
    assert run_table3(Table3Options(no_estimate=True, only="maps_cycle_gan_nc", data_dir=tmp_path)) == 0
    text = capsys.readouterr().out
    assert "3 training and 2 test pictures" in text and "1096 and 1098" in text and "600 steps to go" in text


def test_the_printed_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = Table3Options(no_estimate=True, seeds="0,1", data_dir=tmp_path)
    assert run_table3(options) == 0
    text = capsys.readouterr().out
    assert "8 rows, 24 trainings" in text and "map→photo (BtoA on disk)" in text
    assert text.count("python train.py") == 24 and "not there yet" in text and "--run" in text
    assert run_table3(Table3Options(preset="smoke", only="maps_pix2pix_nc_ms_BtoA", device="cpu")) == 0
    assert "of training on this machine" in capsys.readouterr().out
