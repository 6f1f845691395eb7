"""`python -m evaluate` on runs and folders: tables, reports, reuse, refusals, exit codes."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluate_support import (
    aligned_data,
    asked,
    evaluate,
    make_run,
    place,
    random_inception_state,
    random_trunk,
    write_pictures,
)
from PIL import Image

from datasets.errors import RunError, UserError, run_command
from datasets.images import load_image, to_picture, to_tensor
from evaluate import pixels
from evaluate.command import run_evaluation
from evaluate.comparisons import make_outputs
from evaluate.features import InceptionPool
from evaluate.options import EvaluateOptions
from evaluate.pictures import pictures_of
from gan.pretrained import find_pretrained
from gan.translate import Translator

ROOT = Path(__file__).resolve().parents[1]
NUMBERS = ("size", "num_test", "bootstrap", "batch_size", "num_threads")
REPORTS = ["report.csv", "report.json", "report.md"]


@pytest.fixture(autouse=True)
def elsewhere(nothing_from_outside: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Flags that give random AlexNet weights."""
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(random_trunk(), path)
    return {"lpips_weights": path, "allow_unverified": True}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the runs p2p_0 and p2p_1 (two seeds), cyc (unpaired data), small (another size)."""
    folder = tmp_path_factory.mktemp("runs")
    data = aligned_data(folder / "data")
    for seed in (0, 1):
        make_run(folder, data, f"p2p_{seed}", "pix2pix", seed=seed)
    make_run(folder, data, "small", "pix2pix", load_size=24, crop_size=24)
    unaligned = folder / "unaligned"
    for i, split in enumerate(("trainA", "trainB", "testA", "testB")):
        write_pictures(unaligned / split, 4 + i, i, (32, 32))
    make_run(folder, unaligned, "cyc", "cycle_gan")
    return folder


def outputs_and_targets(runs: Path, name: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What a Pix2Pix run's evaluation has written, and the right halves of the test files."""
    made = sorted((runs / name / "evaluation").glob("epoch-1-step-4/AtoB/*.png"))
    targets = [np.asarray(Image.open(runs / "data/test" / path.name))[:, 32:] for path in made]
    return [np.asarray(Image.open(path)) for path in made], targets


def test_a_paired_run(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = evaluate(runs=runs / "p2p_0", output=tmp_path / "out")
    table = capsys.readouterr().out
    assert "PSNR" in table and "target)" in table and "i2i-1/32/eval" in table
    assert "fid, fid_clean, kid not computed" in table and "pt_inception-2015-12-05-6726825d.pth" in table
    (row,) = report["rows"]
    assert row["direction"] == "AtoB" and row["n_fake"] == row["n_real"] == 3 and row["epoch"] == 1
    pairs = list(zip(*outputs_and_targets(runs, "p2p_0"), strict=True))
    assert len(pairs) == 3
    assert row["values"]["psnr"] == pytest.approx(np.mean([pixels.psnr(*pair) for pair in pairs]), rel=1e-9)
    picture = load_image(runs / "data/test/001.png").crop((0, 0, 32, 32))
    expected = to_picture(Translator.load(runs / "p2p_0")(to_tensor(picture)[None])[0])
    assert np.array_equal(np.asarray(expected), pairs[1][0])  # the network's answer to the left half
    assert (tmp_path / "out" / "report.csv").read_text().count("\n") == 2
    assert "PSNR (to target)" in (tmp_path / "out" / "report.md").read_text()


def test_both_directions_of_an_unpaired_run(runs: Path, tmp_path: Path, trunk: dict[str, object]) -> None:
    report = evaluate(runs="cyc", checkpoints_dir=runs, latex=True, output=tmp_path / "out", **trunk)
    rows = {row["direction"]: row for row in report["rows"]}
    assert (rows["AtoB"]["n_fake"], rows["AtoB"]["n_real"]) == (6, 7)
    assert (rows["BtoA"]["n_fake"], rows["BtoA"]["n_real"]) == (7, 6)
    assert set(rows["AtoB"]["values"]) == {"lpips_all_pairs", "lpips_input"}
    assert report["protocol"]["id"] == "i2i-1/32/eval/unverified-weights"
    assert r"\toprule" in (tmp_path / "out" / "report.tex").read_text()


def test_outputs_are_made_again_only_where_needed(runs: Path, tmp_path: Path) -> None:
    folder = runs / "p2p_1/evaluation/epoch-1-step-4/AtoB"
    shutil.rmtree(runs / "p2p_1/evaluation", ignore_errors=True)  # of another test

    def made_again(**flags: Any) -> list[str]:
        """Names of the pictures that another evaluation writes."""
        before = {path: path.stat().st_mtime_ns for path in folder.glob("*.png")}
        evaluate(**{"runs": runs / "p2p_1", "output": tmp_path, "metrics": "psnr", **flags})
        return [
            path.name for path in sorted(folder.glob("*.png")) if path.stat().st_mtime_ns != before.get(path)
        ]

    assert len(made_again()) == 3 and made_again() == []
    (folder / "001.png").unlink()  # as after an interruption
    assert made_again() == ["001.png"]
    assert made_again(num_test=1, output=tmp_path / "first") == [] == made_again()
    content = json.loads((folder / "outputs.json").read_text())
    changed = {**content["inputs"], "002.png": "an input that has changed"}
    (folder / "outputs.json").write_text(json.dumps(content | {"inputs": changed}))
    assert made_again() == ["002.png"]
    (folder / "outputs.json").write_text(json.dumps(content | {"made_by": "another checkpoint"}))
    (folder / "stale.png").write_bytes(b"")
    assert made_again() == ["000.png", "001.png", "002.png"]


def test_outputs_of_an_older_version_are_made_again(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    translator = Translator.load(runs / "p2p_0", test_mode="train")
    inputs = pictures_of([runs / "data/test/000.png"], size=32)
    monkeypatch.setattr("evaluate.comparisons.OUTPUTS_VERSION", 1)
    (old,) = make_outputs(tmp_path, translator, inputs, "train")
    expected = old.read_bytes()
    Image.new("RGB", (32, 32)).save(old)  # as an older version made it
    make_outputs(tmp_path, translator, inputs, "train")
    assert old.read_bytes() != expected  # used again by the same version
    monkeypatch.setattr("evaluate.comparisons.OUTPUTS_VERSION", 2)
    make_outputs(tmp_path, translator, inputs, "train")
    assert old.read_bytes() == expected


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, runs: Path) -> None:
    """A run that was handed on may hold a link to any folder; its pictures are no outdated outputs."""
    mine = write_pictures(tmp_path / "mine", 2, 1)
    before = {path.name: path.read_bytes() for path in mine.iterdir()}
    link = tmp_path / "run/evaluation/epoch-1-step-4/AtoB"
    link.parent.mkdir(parents=True)
    link.symlink_to(mine)
    inputs = pictures_of([runs / "data/test/000.png"], size=32)
    with pytest.raises(
        UserError, match=r"AtoB: holds pictures that this program has not made, such as 000\.png"
    ):
        make_outputs(tmp_path / "run", Translator.load(runs / "p2p_0"), inputs, "eval")
    assert {path.name: path.read_bytes() for path in mine.iterdir()} == before


def test_the_first_so_many_inputs_of_a_run(runs: Path, tmp_path: Path, trunk: dict[str, object]) -> None:
    """Inputs and targets are cut; the real pictures of the target domain are not."""
    first = evaluate(runs=runs / "p2p_0", output=tmp_path / "a", metrics="l1", num_test=2, baselines=True)
    assert {(row["n_fake"], row["n_real"]) for row in first["rows"]} == {(2, 3)}
    pairs = list(zip(*outputs_and_targets(runs, "p2p_0"), strict=True))[:2]
    expected = np.mean([pixels.l1(*pair) for pair in pairs])
    assert first["rows"][0]["values"]["l1"] == pytest.approx(expected)
    both = evaluate(runs=runs / "cyc", output=tmp_path / "b", metrics="lpips", num_test=2, **trunk)
    assert [(row["n_fake"], row["n_real"]) for row in both["rows"]] == [(2, 7), (2, 6)]


def test_outputs_with_dropout_are_reproducible(runs: Path, tmp_path: Path) -> None:
    """All at once, or one after an interruption: the same bytes, another mask for each picture."""
    loaded = Translator.load(runs / "p2p_0", test_mode="train")
    translator = replace(loaded, network=torch.nn.Dropout(0.5).train())
    first = pictures_of([runs / "data/test/000.png"], size=32)[0]
    second = replace(first, content="0" * 64, path=tmp_path / "other_name.png")  # equal pixels, another key
    second.path.write_bytes(first.path.read_bytes())
    state = torch.get_rng_state()
    made = [path.read_bytes() for path in make_outputs(tmp_path / "a", translator, [first, second], "train")]
    assert made[0] != made[1] and torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    make_outputs(tmp_path / "b", translator, [second], "train")
    again = make_outputs(tmp_path / "b", translator, [first, second], "train")
    assert [path.read_bytes() for path in again] == made


def test_reports_of_others_go_elsewhere(runs: Path, tmp_path: Path) -> None:
    """Folders of equal names, and other sets of runs; the same ones in any order are in one place."""
    a, b = (write_pictures(tmp_path / side / "fake", 2, 1) for side in "ab")
    places = {place(fake=x, real=y) for x, y in ((a, b), (b, a), (a, a))}
    assert len(places) == 3 and {found.name[:-8] for found in places} == {"fake-fake-"}
    both = place(runs=(runs / "p2p_0", runs / "p2p_1"))
    assert both == place(runs=("p2p_1", "p2p_0"), checkpoints_dir=runs)
    assert both != place(runs=(runs / "p2p_0", runs / "small")) and both.parent == Path("results/evaluation")


def test_reports_of_other_checkpoints_and_protocols_stand_beside_each_other(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The default stays in RUN/evaluation; nothing writes over it but the same call."""
    run, fake = runs / "p2p_1", write_pictures(tmp_path / "fake", 2, 1)
    base = run / "evaluation"
    rows = evaluate(runs=run, metrics="l1")["rows"]
    (run / "options.yaml").rename(run / "moved")  # the checkpoint knows them as well
    assert evaluate(runs=run, metrics="l1")["rows"] == rows
    (run / "moved").rename(run / "options.yaml")
    first = (base / "report.json").read_bytes()
    more: tuple[tuple[dict[str, object], str], ...] = (
        ({"epoch": "1"}, "epoch-1"),
        ({"epoch": "last, best,last"}, "last-best"),
        ({"test_mode": "train", "num_test": 2}, "train-first-2"),
    )
    for flags, name in more:
        report = evaluate(runs=run, metrics="l1", **flags)
        assert place(runs=run, **flags) == base / name and (base / name / "report.md").is_file()
        assert len(report["rows"]) == (2 if name == "last-best" else 1)
    assert (base / "report.json").read_bytes() == first
    assert place(fake=fake, real=fake, size=64) == place(fake=fake, real=fake) / "size-64"
    many = [place(runs=run, epoch=",".join(map(str, range(n)))).name for n in (98, 99)]
    assert many[0] != many[1] and max(map(len, many)) < 100  # a file name has 255 bytes at most
    capsys.readouterr()
    for epoch, text in (("9", "epoch 9"), ("first", "--epoch: is 'first'"), ("last,²", "--epoch")):
        assert text in _refusal(capsys, runs=run, epoch=epoch, metrics="l1")
    assert not (base / "epoch-9").exists()


def test_seeds_are_grouped(runs: Path, tmp_path: Path) -> None:
    report = evaluate(
        runs=(runs / "p2p_0", runs / "p2p_1"), output=tmp_path, metrics="psnr,l1", baselines=True
    )
    first, second, mean, *baselines = report["rows"]
    values = [row["values"]["psnr"] for row in (first, second)]
    assert mean["label"] == "p2p (mean ± sd of 2)" and mean["seeds"] == 2
    assert mean["values"]["psnr"] == pytest.approx(np.mean(values))
    assert mean["sd"]["psnr"] == pytest.approx(np.std(values, ddof=1))
    assert len(baselines) == 3  # of the one data set


def test_baselines_are_rows(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The data's B is an affine map of A's colours, so that baseline is perfect, in both directions."""
    run = make_run(tmp_path, runs / "data", "both", "cycle_gan")
    rows = evaluate(runs=run, metrics="psnr", baselines=True)["rows"]
    names = ("baseline: mean colour", "baseline: affine colour map", "baseline: colour table")
    expected = [(name, direction) for direction in ("AtoB", "BtoA") for name in names]
    assert [(row["label"], row["direction"]) for row in rows[2:]] == expected
    assert rows[3]["values"] == rows[6]["values"] == {"psnr": "inf"}
    train_b = np.stack([np.asarray(Image.open(p))[:, 32:] for p in sorted((runs / "data/train").iterdir())])
    colour = np.rint(train_b.mean(axis=(0, 1, 2)))
    tests = [np.asarray(Image.open(p))[:, 32:] for p in sorted((runs / "data/test").iterdir())]
    value = np.mean([pixels.psnr(np.broadcast_to(colour, b.shape), b) for b in tests])
    assert rows[2]["values"]["psnr"] == pytest.approx(value, rel=1e-9)
    capsys.readouterr()
    evaluate(runs=runs / "cyc", output=tmp_path / "out", baselines=True)
    assert "no baselines: they are fitted on training pairs" in capsys.readouterr().out


def test_other_protocols_are_not_put_together(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"different protocols: .*i2i-1/32/eval.*i2i-1/24/eval"):
        evaluate(runs=(runs / "p2p_0", runs / "small"), output=tmp_path)
    flags = {"runs": runs / "p2p_0", "output": tmp_path, "metrics": "psnr"}
    evaluate(**flags)
    before = (tmp_path / "report.json").read_bytes()
    for more in ({"num_test": 2}, {"test_mode": "train"}):
        with pytest.raises(UserError, match=r"holds a report of protocol i2i-1/32/eval"):
            evaluate(**flags, **more)
    with pytest.raises(UserError, match="missing; https://"):  # weights
        evaluate(runs=runs / "p2p_0", metrics="fid", output=tmp_path / "fid", test_mode="train")
    assert (tmp_path / "report.json").read_bytes() == before
    assert not list((runs / "p2p_0").glob("evaluation/*-train"))  # nothing was translated
    (tmp_path / "report.json").unlink()
    os.mkfifo(tmp_path / "report.json")  # not waited for
    for content in ("", "[]", "[" * 100_000):
        with pytest.raises(UserError, match="is not a report"):
            evaluate(**flags)
        (tmp_path / "report.json").unlink()
        (tmp_path / "report.json").write_text(content)


def test_folders(tmp_path: Path, trunk: dict[str, object]) -> None:
    fake, real = write_pictures(tmp_path / "fake", 4, 1), write_pictures(tmp_path / "real", 4, 2)
    paired = evaluate(fake=fake, real=real, paired=True, output=tmp_path / "a", **trunk)
    assert set(paired["rows"][0]["values"]) == {"lpips_target", "psnr", "ssim", "l1"}
    first = evaluate(fake=fake, real=real, paired=True, metrics="l1", num_test=2, output=tmp_path / "first")
    pairs = [[np.asarray(Image.open(f / f"00{i}.png")) for f in (fake, real)] for i in range(2)]
    assert first["rows"][0]["values"]["l1"] == pytest.approx(np.mean([pixels.l1(*pair) for pair in pairs]))
    assert first["protocol"]["id"] == "i2i-1/40x32/files/first2"
    report = evaluate(fake=fake, real=real, input=real, size=64, output=tmp_path / "b", **trunk)
    assert set(report["rows"][0]["values"]) == {"lpips_all_pairs", "lpips_input"}
    assert report["protocol"]["id"] == "i2i-1/64/files/unverified-weights"


def test_a_name_is_the_run_even_where_a_folder_has_it(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "p2p_0").mkdir()  # in the current folder
    assert find_pretrained("p2p_0", runs) == runs / "p2p_0"
    with pytest.raises(UserError, match="no such run"):
        find_pretrained("p2p_9", runs)


def test_identical_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Infinite PSNR is said as such, in the table and in strict JSON; no nan anywhere."""
    folder = write_pictures(tmp_path / "same", 3, 1)
    report = evaluate(fake=folder, real=folder, paired=True, output=tmp_path / "out", bootstrap=20)
    assert report["rows"][0]["values"] == {"psnr": "inf", "ssim": pytest.approx(1.0), "l1": 0.0}
    out = capsys.readouterr().out
    assert "nan" not in out and "± is half the 95 % interval by the bootstrap over pictures" in out


def _refusal(capsys: pytest.CaptureFixture[str], **flags: object) -> str:
    """The one line on stderr of a call that must end with exit code 2."""
    with pytest.raises(SystemExit) as end:
        run_command(lambda: run_evaluation(asked(**flags)))
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert end.value.code == 2 and line.startswith("error: ") and len(line) <= 300 and captured.out == ""
    return line


def test_refusals_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What FAULTS calls E1 to E3."""
    fake, real = write_pictures(tmp_path / "fake", 3, 1), write_pictures(tmp_path / "real", 3, 2)
    both = {"fake": fake, "real": real, "output": tmp_path / "out"}
    assert "pt_inception-2015-12-05-6726825d.pth" in _refusal(capsys, **both, metrics="fid")  # E3: by name
    evaluate(**both)  # E3: by default
    assert "lpips not computed" in capsys.readouterr().out
    (real / "001.png").rename(real / "x.png")
    assert "real/x.png" in _refusal(capsys, **both, paired=True)  # E2
    (real / "x.png").rename(real / "001.png")
    (fake / "000.png").write_bytes((fake / "000.png").read_bytes()[:200])
    assert "fake/000.png" in _refusal(capsys, **both, paired=True)
    (tmp_path / "empty").mkdir()
    assert "no image in it" in _refusal(capsys, fake=tmp_path / "empty", real=real)  # E1
    assert "no such folder" in _refusal(capsys, fake=tmp_path / "none", real=real)
    assert "no such run" in _refusal(capsys, runs=tmp_path / "no_run")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == REPORTS


def test_what_is_left_out_is_told(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Folders, files of other kinds and further pages: one line each, for folders and for the data of a run."""
    fake, real = write_pictures(tmp_path / "fake", 2, 1), write_pictures(tmp_path / "real", 2, 2)
    write_pictures(fake / "more", 1, 3)
    (fake / "a.heic").touch()
    pages = [Image.open(path) for path in sorted(real.iterdir())]
    pages[0].save(real / "x.tif", save_all=True, append_images=pages * 2)
    evaluate(fake=fake, real=real, output=tmp_path / "out")
    assert capsys.readouterr().err.splitlines() == [
        f"left out: {fake}: 1 folder (first: more), 1 file of other kinds (.heic)",
        f"1 file with several frames or pages (5 in {real / 'x.tif'}): the first is used",
    ]
    data = aligned_data(tmp_path / "data")
    (data / "test" / "notes.txt").touch()
    evaluate(runs=runs / "p2p_0", dataroot=data, metrics="l1", output=tmp_path / "run")
    assert f"left out: {data / 'test'}: 1 file of other kinds (.txt)" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["evaluate.comparisons.translate_pictures", "evaluate.command.measure"])
def test_used_up_memory_has_advice_that_fits(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """train.py's --crop_size, and the --size of test.py, are no flags of an evaluation of runs."""

    def full(*_: object) -> None:
        try:
            torch.empty(2**60)
        except RuntimeError as error:
            raise RunError("x.png", "out of memory at 9x9 pixels", "force a smaller --size") from error

    monkeypatch.setattr(where, full)
    with pytest.raises(RunError, match="memory: out of memory at 9x9 pixels") as caught:
        evaluate(runs=runs / "small", metrics="l1", output=tmp_path / "out", test_mode="train")
    flags = {f"--{field.name}" for field in fields(EvaluateOptions)} - {"--size"}
    assert set(re.findall(r"--\w+", caught.value.fix)) <= flags and caught.value.exit_code == 1


def test_the_command_itself(tmp_path: Path) -> None:
    """By subprocess: exit code, stdout, stderr."""
    fake = write_pictures(tmp_path / "fake", 3, 1)

    def call(*flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "evaluate", "--fake", str(fake), "--real", *flags]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    good = call(str(fake), "--paired", "--output", str(tmp_path / "out"))
    assert (good.returncode, good.stderr) == (0, "") and "SSIM" in good.stdout
    bad = call(str(tmp_path / "none"))
    assert bad.returncode == 2 and bad.stdout == ""
    assert bad.stderr == f"error: {tmp_path / 'none'}: no such folder (see --help)\n"


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({}, "name runs"),
        ({"fake": Path()}, "--real"),
        ({"runs": "a", "paired": True}, "is for folders"),
        ({"runs": "a", "fake": Path(), "real": Path()}, "name runs"),
        ({"runs": "a", "bootstrap": 5}, "allowed: 20"),
        *(({"runs": "a", flag: 10**12}, f"--{flag}: is 1000000000000 .allowed: ") for flag in NUMBERS),
        ({"fake": Path(), "real": Path(), "size": 1}, "--size: is 1 .allowed: 2 to 8000"),
        ({"fake": Path(), "real": Path(), "baselines": True}, "needs a run"),
        ({"fake": Path(), "real": Path(), "metrics": "fud"}, "unknown metric fud"),
    ],
)
def test_flags_that_do_not_fit(flags: dict[str, object], text: str) -> None:
    with pytest.raises(UserError, match=text):
        run_evaluation(asked(**flags))


@pytest.mark.slow
def test_fid_of_folders_equals_other_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the files to the number: pytorch-fid's and clean-fid's own functions, one random network for all."""
    inception = pytest.importorskip("pytorch_fid.inception")
    scores = pytest.importorskip("pytorch_fid.fid_score")
    clean = pytest.importorskip("cleanfid.fid", reason="clean-fid is not installed")
    state = random_inception_state()
    torch.save(state, tmp_path / "inception.pth")
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *args, **kwargs: state)
    fake, real = write_pictures(tmp_path / "fake", 12, 1), write_pictures(tmp_path / "real", 15, 2)
    weights = {"inception_weights": tmp_path / "inception.pth", "allow_unverified": True}
    report = evaluate(fake=fake, real=real, metrics="fid,fid_clean", output=tmp_path / "out", **weights)
    values = report["rows"][0]["values"]
    theirs = scores.calculate_fid_given_paths([str(fake), str(real)], 5, "cpu", 2048, 0)
    assert values["fid"] == pytest.approx(float(theirs), rel=1e-3)
    assert "biased upwards" in (tmp_path / "out" / "report.md").read_text()
    network = InceptionPool(state)
    theirs = clean.compute_fid(
        str(fake), str(real), mode="clean", num_workers=0, batch_size=5, device=torch.device("cpu"), verbose=False,
        custom_feat_extractor=lambda images: network((images - 128) / 128),
    )  # fmt: skip
    assert values["fid_clean"] == pytest.approx(float(theirs), rel=1e-3)


def test_too_few_images(tmp_path: Path) -> None:
    fake, real = write_pictures(tmp_path / "fake", 1, 1), write_pictures(tmp_path / "real", 3, 2)
    inception = tmp_path / "inception.pth"
    torch.save(random_inception_state(), inception)
    flags = {"fake": fake, "real": real, "inception_weights": inception, "allow_unverified": True}
    with pytest.raises(UserError, match="at least 2 images on both sides, there is 1"):
        evaluate(**flags, metrics="fid")
    report = evaluate(**flags, output=tmp_path / "out")
    told = "fid, fid_clean, kid not computed: needs at least 2 images on both sides, there is 1\n"
    assert told in (tmp_path / "out" / "report.md").read_text()
    assert report["rows"][0]["values"] == {}


def test_help_needs_no_torch() -> None:
    for module in ("evaluate", "evaluate.table3"):
        code = (
            f"import sys, runpy; sys.argv = ['x', '--help']\n"
            f"try: runpy.run_module({module!r}, run_name='__main__')\n"
            "except SystemExit as end: sys.exit(end.code or 'torch' in sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
