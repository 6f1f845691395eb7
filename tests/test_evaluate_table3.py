"""Table 3: what is planned, what the numbers in it are, and that all eight rows run, stop and go on."""

import csv
import io
import json
import re
import shutil
import statistics
import threading
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluate_support import aligned_data, random_trunk, write_pictures
from PIL import Image

from datasets.errors import RunError, UserError
from evaluate import table3_run
from evaluate.table3 import Table3Options
from evaluate.table3_plan import (
    HORSES,
    MAPS,
    MAPS_PIX2PIX,
    PRESETS,
    PlannedTraining,
    count_notes,
    parse_seeds,
    plan_trainings,
)
from evaluate.table3_report import csv_text, missing_lines, protocol_of, table_rows, table_text
from evaluate.table3_run import run_table3
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


FULL = PRESETS["full"]


def test_numbers_and_counts_land_in_their_cells() -> None:
    """Disk BtoA is the table's A -> B; counts that differ between seeds are all told; differences: of equal seeds."""
    (pono,), nc = _named("maps_cycle_gan_pono"), _named("maps_cycle_gan_nc", (0, 1))
    both = (("AtoB", 11.0, 0.15), ("BtoA", 19.0, 0.25))
    first = _report(("AtoB", 10.0, 0.1), ("BtoA", 20.0, 0.2))
    rows = table_rows(FULL, {pono: first, nc[0]: _report(*both), nc[1]: _report(*both, n=5)})
    assert [row.norm for row in rows] == ["PONO+MS", "NC+MS", "NC − PONO"] * 2
    assert [row.words for row in rows] == ["map→photo"] * 3 + ["photo→map"] * 3
    difference = rows[2].cells["fid"]
    assert difference.mean == -1.0 and difference.published == pytest.approx(49.57 - 52.45)
    assert difference.spread is None
    assert r"\toprule" in table_text(rows, FULL, "latex_booktabs")
    title, _, head, _, *lines = table_text(rows, FULL, "pipe").splitlines()
    assert title == "## Maps, CycleGAN"
    columns, *cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (head, *lines)]
    assert columns[1:6] == ["norm", "seeds", "n_fake/n_real", "FID", "FID (published)"]
    assert cells[0] == ["map→photo", "PONO+MS", "1", "7/8", "20.00", "52.45", "0.2000", "0.3317"]
    assert cells[1][2:4] == ["2", "7/8, 5/6"] and cells[2][2:4] == ["1", "7/8"]
    assert cells[4][2:6] == ["2", "7/7, 5/5", "11.00 ± 0.00", "59.78"]
    stored = list(csv.DictReader(io.StringIO(csv_text(rows, FULL, "p"))))
    assert [line["norm"] for line in stored] == ["pono_ms", "nc_ms", "NC − PONO"] * 2
    assert (stored[0]["fid"], stored[0]["n_fake"], stored[0]["n_real"]) == ("20.0", "7", "8")
    assert (stored[1]["n_fake"], stored[1]["seeds"], stored[4]["lpips_published"]) == ("7 5", "0 1", "0.177")
    shown = [re.sub(" +", " ", line.strip()) for line in table_text(rows, FULL, "simple").splitlines()]
    assert "map→photo PONO+MS 1 7/8 20.00 52.45 0.2000 0.3317" in shown
    assert max(map(len, table_text(rows, FULL, "simple").splitlines())) <= 120


def test_a_row_without_numbers() -> None:
    (training,) = _named("maps_cycle_gan_pono")
    empty = {"protocol": {"id": "p"}, "rows": [{"direction": "BtoA", "values": {}, "n_fake": 7, "n_real": 7}]}
    (without,) = table_rows(FULL, {training: empty})
    assert without.cells["fid"].text(2) == "-" and without.cells["fid"].published == 52.45
    (line,) = csv.DictReader(io.StringIO(csv_text([without], FULL, "p")))
    assert line["fid"] == "" and line["fid_published"] == "52.45"


def test_pix2pix_rows_come_from_two_trainings_and_several_seeds() -> None:
    reports = {}
    for training in _named("night2day_pix2pix_nc", (0, 1)):
        fid = {"BtoA": 100.0, "AtoB": 50.0}[training.direction] + 2 * training.seed
        reports[training] = _report((training.direction, fid, 0.5))
    there, back = table_rows(FULL, reports)
    assert there.cells["fid"].text(2) == "101.00 ± 1.41" and back.cells["fid"].mean == 51.0


def test_unpaired_rows_use_all_pairs() -> None:
    (training,) = _named("horse2zebra_cycle_gan_nc")
    report = _report(("AtoB", 1.0, 0.7), ("BtoA", 2.0, 0.8), lpips="lpips_all_pairs")
    for row in report["rows"]:  # type: ignore[attr-defined]
        row["values"] = {"lpips_input": 0.1} | row["values"]
    there, back = table_rows(FULL, {training: report})
    assert there.cells["fid"].mean == 1.0 and back.cells["lpips"].mean == 0.8


def test_the_small_preset_trains_complete_pairs_first() -> None:
    small = PRESETS["small"]
    plan = plan_trainings(small, parse_seeds(small.seeds))
    assert len(plan) == 60
    assert [training.name.removeprefix("table3_small_") for training in plan[:5]] == [
        "maps_pix2pix_pono_ms_BtoA_seed0", "maps_pix2pix_nc_ms_BtoA_seed0", "maps_pix2pix_pono_ms_AtoB_seed0",
        "maps_pix2pix_nc_ms_AtoB_seed0", "maps_pix2pix_pono_ms_BtoA_seed1",
    ]  # fmt: skip
    assert {training.norm for training in plan[:40]} == {"pono_ms", "nc_ms"}
    assert [t.norm for t in plan[40:] if t.seed == 0] == ["batch", "batch", "instance", "instance"]
    for training in plan[::19]:
        schedule = parse_train(training.flags(Path("data"), Path("checkpoints")))[0].schedule
        assert schedule.epochs == small.epochs


def test_the_difference_is_of_pairs_with_an_interval() -> None:
    """Against the standard library, by the textbook's interval of a mean."""
    small = PRESETS["small"]
    values = {"pono_ms": [0.30, 0.50, 0.40, 0.20], "nc_ms": [0.28, 0.49, 0.41, 0.15, 9.0]}
    results = {
        training: {"protocol": {"id": "p"}, "remarks": [], "rows": [
            {"direction": "AtoB", "n_fake": 7, "n_real": 7,
             "values": {"lpips_target": values[training.norm][training.seed], "pixel_accuracy": 0.5}}
        ]}
        for training in plan_trainings(small, range(5), "maps_pix2pix")
        if training.direction == "AtoB" and training.seed < len(values.get(training.norm, ()))
    }  # fmt: skip
    pono, nc, difference = table_rows(small, results)
    assert nc.cells["lpips"].spread == pytest.approx(statistics.stdev(values["nc_ms"]))
    pairs = [n - p for n, p in zip(values["nc_ms"], values["pono_ms"], strict=False)]
    cell = difference.cells["lpips"]
    assert cell.mean == pytest.approx(statistics.mean(pairs)) and list(difference.seeds) == [0, 1, 2, 3]
    student = 3.182  # of 3 degrees of freedom, 97.5 %, from a printed table
    assert cell.spread == pytest.approx(student * statistics.stdev(pairs) / np.sqrt(len(pairs)), rel=0.1)
    assert cell.published == pytest.approx(0.171 - 0.171) and pono.cells["fd_lite0"].published is None
    assert pono.cells["pixel_accuracy"].mean == 0.5
    lines = missing_lines(plan_trainings(small, range(5)), results)
    assert "missing: Maps, Pix2Pix, photo→map, PONO+MS, seed 4" in lines
    assert "missing: Maps, Pix2Pix, map→photo, PONO+MS, seed 0, 1, 2, 3, 4" in lines
    assert "missing: Horse2Zebra, CycleGAN, instance norm, seed 0, 1, 2, 3, 4" in lines
    assert not any("photo→map, NC+MS" in line for line in lines)


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
    assert len(list((tmp_path / "out" / "trainings").iterdir())) == 5
    second = Runner()
    assert run_table3(options, second) == 0
    assert len(first.calls) == 5 and len(second.calls) == 7
    text = re.sub(" +", " ", (tmp_path / "out" / "table3.md").read_text())
    assert text.count("| PONO+MS |") == text.count("| NC+MS |") == text.count("| NC − PONO |") == 8
    assert "photo→map" in text and "miniature" in text and "missing: " not in text
    for figure in (3, 4):
        assert Image.open(tmp_path / "out" / f"figure{figure}.png").size[0] > 100
    report = json.loads(next((tmp_path / "out" / "trainings").glob("*horse2zebra*nc_ms*")).read_text())
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
    row = tmp_path / "out" / "trainings" / f"{training.name}.json"
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
    checkpoint = whole["rows"][0]["checkpoint_sha256"]
    whole["rows"][0]["checkpoint_sha256"] = "another"
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

        def __init__(self, command: Sequence[str], **_: object) -> None: ...

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
        ({"jobs": 0}, "--jobs: is 0"),
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
    assert run_table3(Table3Options(preset="small", no_estimate=True, data_dir=tmp_path)) == 0
    assert (
        capsys.readouterr().out.count("; 9600 steps to go\n") == 60
    )  # 40 epochs of 240, also without the data


def test_the_small_preset_tells_that_it_takes_a_part(tmp_path: Path) -> None:
    for split, count in (("train", 1096), ("test", 1098)):  # as published
        folder = tmp_path / "maps" / split
        folder.mkdir(parents=True)
        for number in range(count):
            (folder / f"{number}.jpg").write_bytes(b"")
    counted = [
        count_notes(plan_trainings(PRESETS[name], [0], "maps"), tmp_path) for name in ("full", "small")
    ]
    assert counted[0] == [] and "240 training and 1098 test pictures" in counted[1][0]


@pytest.fixture
def small(smoke: Table3Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table3Options:
    """The small preset with smaller networks and pictures: Maps with Pix2Pix, four trainings and two of the floor."""
    flags = ("--netG", "resnet_6blocks", "--ngf", "2", "--ndf", "2", "--load_size", "36", "--crop_size", "32",
             "--n_epochs", "1", "--n_epochs_decay", "0", "--num_threads", "0", "--visdom", "off",
             "--val_count", "2")  # fmt: skip
    tiny = replace(PRESETS["small"], epochs=1, flags=flags, settings=(MAPS_PIX2PIX,), seeds="0")
    monkeypatch.setitem(PRESETS, "small", tiny)
    aligned_data(tmp_path / "data" / "maps")
    return replace(
        smoke, preset="small", data_dir=tmp_path / "data", results_dir=tmp_path / "kept", pictures=1
    )


def test_nothing_finished_is_lost(
    small: Table3Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A result stands for its training, also on another machine, without its checkpoint and without the data."""
    kept, table = tmp_path / "kept", tmp_path / "out" / "table3.md"
    assert run_table3(small, Runner(stop_at=3)) == 130
    stored = {path.name: path.read_bytes() for path in kept.iterdir()}
    assert len(stored) == 3 and all(str(tmp_path).encode() not in text for text in stored.values())
    result = json.loads(stored["table3_small_maps_pix2pix_nc_ms_BtoA_seed0.json"])
    assert {"fd_lite0", "kd_lite0", "lpips_target", "pixel_accuracy"} <= result["rows"][0]["values"].keys()
    assert result["protocol"]["id"] == "i2i-1/32/train/efficientnet-lite0/unverified-weights"
    assert result["machine"]["cores"] >= 1 and result["versions"]["torch"] and len(result["date"]) == 10
    assert result["options"].startswith("--model pix2pix --norm nc_ms --direction BtoA --seed 0 ")
    written = table.read_text()
    assert (
        "missing: Maps, Pix2Pix, photo→map, NC+MS, seed 0" in written and "4 training and 3 test" in written
    )
    assert written.count("NC − PONO |") == 1

    shutil.move(tmp_path / "data", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "runs")
    table.unlink()
    assert run_table3(replace(small, no_train=True), lambda flags: pytest.fail("trained")) == 0
    assert table.read_text() == written
    rest = Runner()
    assert run_table3(replace(small, data_dir=tmp_path / "elsewhere"), rest) == 0
    assert [flags[flags.index("--norm") + 1] for flags in rest.calls] == ["nc_ms", "batch", "batch"]
    assert {name: (kept / name).read_bytes() for name in stored} == stored
    assert "missing: " not in table.read_text() and "batch norm" in table.read_text()
    assert re.search(r"nc_ms_AtoB_seed0 trained in \d+ s; 2 trainings to go, about", capsys.readouterr().out)
    assert (tmp_path / "out" / "figure4.png").is_file()

    (kept / "table3_small_maps_pix2pix_nc_ms_BtoA_seed0.json").write_text("[]")
    with pytest.raises(UserError, match="is not a result of this program"):
        run_table3(small)
    content = {**result, "options": result["options"].replace("--ngf 2", "--ngf 512")}
    (kept / "table3_small_maps_pix2pix_nc_ms_BtoA_seed0.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"is the result of other options: --ngf 512, not --ngf 2 \("):
        run_table3(small)
    with pytest.raises(UserError, match="other options: --test_mode train, not --test_mode eval"):
        run_table3(replace(small, test_mode="eval"))


def test_a_missing_package_empties_a_column_and_loses_nothing(
    small: Table3Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_table3(small, Runner(stop_at=1)) == 130
    (first,) = (tmp_path / "kept").iterdir()
    before, lost = first.read_bytes(), "efficientnet_lite_pytorch"
    with monkeypatch.context() as patched:
        patched.setattr("evaluate.weights.find_spec", lambda name: None if name == lost else find_spec(name))
        assert run_table3(small, Runner(stop_at=1)) == 130
    said = capsys.readouterr().out
    assert f"fd_lite0, kd_lite0 cannot be computed: {lost}" in said and "evaluated already" in said
    assert first.read_bytes() == before
    (second,) = {*(tmp_path / "kept").iterdir()} - {first}
    found = [json.loads(path.read_text()) for path in (first, second)]
    assert found[0]["protocol"] == found[1]["protocol"]
    assert ["fd_lite0" in result["rows"][0]["values"] for result in found] == [True, False]
    assert run_table3(replace(small, no_train=True), Runner()) == 0  # the package is there again
    assert "fd_lite0" in json.loads(second.read_text())["rows"][0]["values"] and first.read_bytes() == before


def test_two_jobs_at_once(small: Table3Options, tmp_path: Path) -> None:
    """Each waits for the other; after a stop nothing is begun. Evaluations of two threads give one thread's results."""
    both, calls = threading.Barrier(2), []

    def stopped(flags: Sequence[str]) -> int:
        calls.append(flags)
        both.wait(timeout=60)
        return 130

    assert run_table3(replace(small, jobs=2), stopped) == 130
    assert len({flags[flags.index("--name") + 1] for flags in calls}) == len(calls) == 2
    assert run_table3(small, Runner(stop_at=2)) == 130
    stored = {path: path.read_bytes() for path in (tmp_path / "kept").iterdir()}
    for path in stored:
        path.unlink()
    assert run_table3(replace(small, jobs=2, no_train=True), lambda flags: pytest.fail("trained")) == 0
    assert {path: path.read_bytes() for path in (tmp_path / "kept").iterdir()} == stored and len(stored) == 2


def test_of_several_trainings_only_what_fails_speaks(capfd: pytest.CaptureFixture[str]) -> None:
    """train.py itself: at once, its usage error is the one line on the terminal."""
    assert table3_run.by_process(["--no_such_flag", "1"], jobs=2) == 2
    said = capfd.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "no_such_flag" in said.err


def test_jobs_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []

    class Process:
        def __init__(self, command: Sequence[str], env: dict[str, str], **_: object) -> None:
            seen.append(env)

        def wait(self) -> int:
            return 0

    monkeypatch.setattr(table3_run.subprocess, "Popen", Process)
    monkeypatch.setattr(table3_run, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [table3_run.by_process([], jobs) for jobs in (1, 2, 3, 16)] == [0, 0, 0, 0]
    assert [env.get("OMP_NUM_THREADS") for env in seen] == [None, "4", "2", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    table3_run.by_process([], 2)
    assert seen[-1]["OMP_NUM_THREADS"] == "3"
