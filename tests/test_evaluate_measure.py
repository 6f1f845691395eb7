"""One pass over the pictures: every one once, everything computed, nothing computed twice."""

import os
import sqlite3
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluate_support import FastMeasurements, asked, random_inception_state, write_pictures
from PIL import Image
from torch import Tensor

from datasets.errors import RunError, UserError
from evaluate import lpips, measure, metrics, pixels
from evaluate.comparisons import Comparison, compare_folders
from evaluate.features import Networks
from evaluate.measure import PairValue, PictureFeatures, Quantity, make_batches
from evaluate.metrics import parse_metrics, problems_of
from evaluate.pictures import FilePicture, folder_pictures, match_by_stem, pictures_of, set_hash
from evaluate.weights import Weights

ALL = ("fid", "fid_clean", "kid", "lpips", "psnr", "ssim", "l1")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return write_pictures(tmp_path / "fake", 7, 1), write_pictures(tmp_path / "real", 7, 2)


def _row(folders: tuple[Path, Path], paired: bool) -> Comparison:
    fakes, reals = (folder_pictures(folder, None) for folder in folders)
    targets = match_by_stem(fakes, reals, *folders) if paired else None
    inputs = None if paired else match_by_stem(fakes, reals, *folders)
    return Comparison("row", "", fakes, reals, targets, inputs)


def _maps(row: Comparison, measurements: FastMeasurements) -> list[list[Tensor]]:
    """LPIPS's feature maps of fakes and reals."""
    return [
        measurements.networks.lpips_maps(
            torch.from_numpy(np.stack([p.load() for p in side])).permute(0, 3, 1, 2)
        )
        for side in (row.fakes, row.reals)
    ]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_paired_values(folders: tuple[Path, Path], batch_size: int) -> None:
    row = _row(folders, paired=True)
    measurements = FastMeasurements(batch_size=batch_size)
    values = measurements.values(row, ALL)
    a, b = ([np.asarray(Image.open(f / f"{i:03}.png")) for i in range(7)] for f in folders)
    for name, metric in (("psnr", pixels.psnr), ("ssim", pixels.ssim), ("l1", pixels.l1)):
        expected = np.mean([metric(x, y) for x, y in zip(a, b, strict=True)])
        assert values[name] == pytest.approx(expected, rel=1e-12)
    distances = lpips.distance(*_maps(row, measurements), measurements.networks.heads)
    assert values["lpips_target"] == pytest.approx(float(distances.mean()), abs=1e-6)
    assert set(values) == {"fid", "fid_clean", "kid", "lpips_target", "psnr", "ssim", "l1"}


def test_unpaired_values(folders: tuple[Path, Path]) -> None:
    row = _row(folders, paired=False)
    measurements = FastMeasurements()
    values = measurements.values(row, ALL)
    a, b = _maps(row, measurements)
    heads = measurements.networks.heads
    every = [
        float(lpips.distance([m[i : i + 1] for m in a], [m[j : j + 1] for m in b], heads))
        for i in range(7)
        for j in range(7)
    ]
    assert values["lpips_all_pairs"] == pytest.approx(np.mean(every), abs=1e-6)
    assert values["lpips_input"] == pytest.approx(float(lpips.distance(a, b, heads).mean()), abs=1e-6)
    assert set(values) == {"fid", "fid_clean", "kid", "lpips_all_pairs", "lpips_input"}


@pytest.mark.parametrize("paired", [True, False])
def test_every_picture_is_decoded_and_seen_once(
    folders: tuple[Path, Path], tmp_path: Path, paired: bool
) -> None:
    row = _row(folders, paired)
    measurements = FastMeasurements(tmp_path / "cache")
    values = measurements.values(row, ALL)
    assert measurements.pictures_decoded == 14
    assert measurements.networks.seen == {"fid": 14, "fid_clean": 14, "lpips": 14}
    again = FastMeasurements(tmp_path / "cache")
    assert again.values(row, ALL) == values and again.pictures_decoded == 0
    fakes = folder_pictures(write_pictures(tmp_path / "other", 5, 9), None)
    again.values(Comparison("new", "", fakes, row.reals), ("fid", "kid"))  # new fakes cost only the fakes
    assert again.networks.seen["fid"] == 5


@pytest.mark.parametrize(("paired", "flag"), [(True, "psnr"), (False, "kid")])
def test_entries_that_are_lost_end_the_report(
    folders: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    paired: bool,
    flag: str,
) -> None:
    """Never a number over fewer pictures than the report counts."""
    row = _row(folders, paired)
    measurements = FastMeasurements(tmp_path / "cache")
    compute = measurements.compute

    def losing(wanted: Iterable[Quantity]) -> None:
        compute(wanted)
        with sqlite3.connect(tmp_path / "cache") as database:  # the last picture's entries
            key = row.fakes[-1].key
            database.execute("UPDATE entries SET sum = sum + 1 WHERE key LIKE ?", (f"%{key}%",))

    monkeypatch.setattr(measurements, "compute", losing)
    with pytest.raises(RunError, match="cannot be read back"):
        measurements.values(row, (flag,))


def test_both_directions_and_several_runs_share_the_pass(tmp_path: Path) -> None:
    """Two runs, two directions, paired: 2 x 8 real pictures and 4 x 8 outputs, each decoded once."""
    a, b = (folder_pictures(write_pictures(tmp_path / n, 8, i), None) for i, n in enumerate("ab"))
    rows = []
    for run in range(2):
        to_b, to_a = (
            folder_pictures(write_pictures(tmp_path / f"{run}{n}", 8, 10 + 2 * run + i), None)
            for i, n in enumerate("ba")
        )
        rows += [Comparison("x", "AtoB", to_b, b, b, a), Comparison("x", "BtoA", to_a, a, a, b)]
    measurements = FastMeasurements()
    metrics.measure(rows, ALL, measurements)
    assert measurements.pictures_decoded == 48
    assert measurements.networks.seen["lpips"] == 48


def test_interrupted_pass_keeps_what_is_done(folders: tuple[Path, Path], tmp_path: Path) -> None:
    spoiled = folders[1] / "006.png"
    good = spoiled.read_bytes()
    spoiled.write_bytes(good[: len(good) // 2])
    first = FastMeasurements(tmp_path / "cache", batch_size=2)
    with pytest.raises(UserError, match=r"006\.png"):
        first.values(_row(folders, paired=True), ("psnr",))
    spoiled.write_bytes(good)
    second = FastMeasurements(tmp_path / "cache", batch_size=2)
    second.values(_row(folders, paired=True), ("psnr",))
    assert first.pictures_decoded == 12 and second.pictures_decoded == 2


def test_decoded_pictures_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are: those of the current batch, of the batches ahead, and not more."""
    alive: weakref.WeakSet[measure.Decoded] = weakref.WeakSet()
    most = 0

    class Counted(measure.Decoded):
        def __init__(self, *values: object) -> None:
            nonlocal most
            super().__init__(*values)  # type: ignore[arg-type]
            alive.add(self)
            most = max(most, len(alive))

    monkeypatch.setattr(measure, "Decoded", Counted)
    folders = write_pictures(tmp_path / "a", 40, 1), write_pictures(tmp_path / "b", 40, 2)
    measurements = FastMeasurements(batch_size=4)
    measurements.values(_row(folders, paired=True), ("fid", "psnr"))
    assert measurements.pictures_decoded == 80
    assert most <= 4 * (measure.BATCHES_AHEAD + 2)


@pytest.mark.parametrize("paired", [True, False])
def test_a_batch_is_bounded_in_pixels(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, paired: bool
) -> None:
    """Of large pictures there are fewer in a batch; the two of a pair, and a single one, have no smaller batch."""
    row = _row(folders, paired)  # 7 + 7 pictures of 40x32
    whole = FastMeasurements(batch_size=100).values(row, ALL)
    most = 0

    def counted(network: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal most
            most = max(most, arguments[-1].shape[0])
            return network(*arguments)

        return call

    for pictures in (4, 2, 0):
        monkeypatch.setattr(measure, "BATCH_PIXELS", pictures * 40 * 32)
        measurements, most = FastMeasurements(batch_size=100), 0
        for name in ("features", "lpips_maps"):
            monkeypatch.setattr(measurements.networks, name, counted(getattr(measurements.networks, name)))
        assert measurements.values(row, ALL) == pytest.approx(whole, rel=1e-5)
        assert most == max(pictures, 2)  # LPIPS to the target, or to the input


def test_sums_of_large_pictures_are_not_stored(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have 80 bytes a pixel; SQLite takes no entry of a gigabyte."""
    row, stored = _row(folders, paired=False), tmp_path / "stored"
    expected = FastMeasurements(stored).values(row, ("lpips",))
    monkeypatch.setattr(measure, "STORED_NUMBERS", 100)
    assert FastMeasurements(tmp_path / "small").values(row, ("lpips",)) == expected
    assert (tmp_path / "small").stat().st_size < stored.stat().st_size / 2


def test_batches_never_part_pairs() -> None:
    pictures = [FilePicture(Path(f"{i}.png"), str(i)) for i in range(10)]
    places = [("psnr", 0, 7), ("l1", 7, 9), ("l1", 1, 2)]
    pairs = [PairValue(name, (pictures[i], pictures[j])) for name, i, j in places]
    made = make_batches([*(PictureFeatures("fid", picture) for picture in pictures), *pairs], 2)
    together = [{pictures.index(p) for p in batch.pictures} for batch in made]  # type: ignore[arg-type]
    assert {0, 7, 9} in together and {1, 2} in together
    assert sorted(i for batch in together for i in batch) == list(range(10))
    assert sum(len(batch.quantities) for batch in made) == 13
    assert all(len(batch.pictures) <= 3 for batch in made)


def test_mixed_sizes_are_refused(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "mixed", 2, 1)
    other = write_pictures(tmp_path / "other", 1, 1, (20, 20)) / "000.png"
    pair = pictures_of([folder / "000.png", other])
    with pytest.raises(UserError, match=r"40x32.*20x20"):
        FastMeasurements().compute([PairValue("psnr", (pair[0], pair[1]), pixels.psnr)])
    other.rename(folder / "x.png")
    with pytest.raises(UserError, match=r"x\.png.*20x20.*mixed sizes.*--size"):
        folder_pictures(folder, None)
    assert {p.load().shape for p in folder_pictures(folder, 16)} == {(16, 16, 3)}


def test_features_that_are_not_finite(folders: tuple[Path, Path]) -> None:
    measurements = FastMeasurements()
    measurements.networks.matrix[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"fake/00.\.png: its features are not finite"):
        measurements.values(_row(folders, paired=True), ("fid",))


ROLES = ("real_A", "fake_B", "real_B")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A results page's folder: three pictures in three roles."""
    for seed, role in enumerate(ROLES):
        for path in sorted(write_pictures(tmp_path / role, 3, seed).iterdir()):
            (tmp_path / "images").mkdir(exist_ok=True)
            path.rename(tmp_path / "images" / f"{path.stem}_{role}.png")
    return tmp_path / "images"


def of_folders(fake: Path, real: Path, **flags: object) -> Comparison:
    return compare_folders(asked(**flags), fake, real)[0][0]


@pytest.mark.parametrize("count", [3, 1])
def test_of_a_results_page_the_fakes_are_taken_and_meet_their_targets(
    results: Path, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    for path in sorted(results.iterdir())[3 * count :]:
        path.unlink()
    row = of_folders(results, results, input=results, paired=True)
    for role, pictures in zip(ROLES, (row.inputs, row.fakes, row.targets), strict=True):
        assert pictures is not None
        assert [p.path.name for p in pictures] == [f"00{i}_{role}.png" for i in range(count)]  # type: ignore[union-attr]
    assert f"only the {count} pictures *_fake_B are taken, of {3 * count}" in capsys.readouterr().err


def test_pairs_are_found_with_and_without_a_role(results: Path, tmp_path: Path) -> None:
    targets = write_pictures(tmp_path / "targets", 3, 9)
    assert of_folders(results, targets, paired=True).targets == folder_pictures(targets, None)
    (targets / "001.png").rename(targets / "lonely.png")
    with pytest.raises(UserError, match=r"images/001_fake_B\.png, targets/lonely\.png"):
        of_folders(results, targets, paired=True)


def test_a_folder_of_both_directions_is_refused(results: Path) -> None:
    for path in sorted(results.glob("*_real_A.png")):
        path.rename(path.with_name(path.name.replace("real_A", "fake_A")))
    with pytest.raises(UserError, match=r"several roles: 3 fake_A, 3 fake_B, 3 real_B"):
        of_folders(results, results)


def test_content_decides_the_key(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "a", 2, 1)
    before = folder_pictures(folder, None)
    (folder / "000.png").write_bytes((folder / "001.png").read_bytes())
    after = folder_pictures(folder, None)
    assert after[0].key == before[1].key != before[0].key
    assert set_hash(before) != set_hash(after) != set_hash(after[::-1] + after[:1])
    assert folder_pictures(folder, 32)[0].key != after[0].key


def test_what_cannot_be_computed(folders: tuple[Path, Path]) -> None:
    paired, unpaired = _row(folders, paired=True), _row(folders, paired=False)
    missing = {"alexnet": UserError("weights", "missing")}
    assert {f: str(e) for f, e in problems_of(ALL, [paired], 32, missing).items()} == {
        "lpips": "weights: missing"
    }
    found = problems_of(ALL, [unpaired], 32, {})
    assert set(found) == {"psnr", "ssim", "l1"} and "no targets" in str(found["psnr"])
    assert problems_of(ALL, [unpaired, paired], 32, {}) == {}
    assert "11x11" in str(problems_of(ALL, [paired], 8, {})["ssim"])
    assert set(problems_of(ALL, [paired], 30, {})) == {"lpips"}
    one = Comparison("one", "", paired.fakes[:1], paired.reals)
    assert "at least 2 images" in str(problems_of(["kid"], [one], 32, {})["kid"])
    with pytest.raises(UserError, match="unknown metric is"):
        parse_metrics("fid,is")


def test_bootstrap_of_a_mean_is_its_standard_error(folders: tuple[Path, Path]) -> None:
    row = _row(folders, paired=True)
    measurements = FastMeasurements()
    widths = measurements.widths(row, ("fid", "kid", "psnr"), 2000)
    pairs = zip(row.fakes, row.targets or [], strict=True)
    values = np.array([pixels.psnr(fake.load(), target.load()) for fake, target in pairs])
    assert widths["psnr"] == pytest.approx(1.96 * values.std() / 7**0.5, rel=0.06)
    assert widths["fid"] > 0 and widths["kid"] > 0


def test_bootstrap_of_all_pairs(folders: tuple[Path, Path]) -> None:
    """Against resampling the whole matrix of distances."""
    row = _row(folders, paired=False)
    measurements = FastMeasurements()
    width = measurements.widths(row, ("lpips",), 1000)["lpips_all_pairs"]
    a, b = _maps(row, measurements)
    heads = measurements.networks.heads
    matrix = np.array(
        [lpips.distance([m[i : i + 1].expand_as(m) for m in a], b, heads).numpy() for i in range(7)]
    )
    draw = np.random.default_rng(1)
    means = [matrix[np.ix_(draw.integers(0, 7, 7), draw.integers(0, 7, 7))].mean() for _ in range(1000)]
    assert width == pytest.approx(1.96 * np.std(means), rel=0.15)


def test_real_network_rows_agree_with_pytorch_fid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The features of a folder, through files, threads and batches, against pytorch-fid's own."""
    inception = pytest.importorskip("pytorch_fid.inception")
    scores = pytest.importorskip("pytorch_fid.fid_score")
    state = random_inception_state()
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *args, **kwargs: state)
    folder = write_pictures(tmp_path / "real", 5, 2)
    paths = sorted(folder.iterdir())
    theirs = scores.get_activations(paths, inception.InceptionV3([3]), batch_size=5, num_workers=0)
    networks = Networks({"inception": Weights(state, "3" * 64, Path("x"), False)})
    measurements = FastMeasurements(batch_size=2, networks=networks)
    pictures = pictures_of(paths)
    measurements.compute(PictureFeatures(kind, p) for kind in ("fid", "fid_clean") for p in pictures)
    ours = measurements.features("fid", pictures).all()
    assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)
    clean = pytest.importorskip("cleanfid.fid", reason="clean-fid is not installed")

    def network(images: Tensor) -> Tensor:
        return networks.features("fid_clean", images)

    with torch.inference_mode():
        theirs = clean.get_folder_features(
            str(folder), network, num_workers=0, batch_size=5, device=torch.device("cpu"), mode="clean", verbose=False
        )  # fmt: skip
    ours = measurements.features("fid_clean", pictures).all()
    assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)


def test_a_pipe_among_the_pictures_is_not_waited_for(results: Path) -> None:
    os.mkfifo(results / "x.png")
    with pytest.raises(UserError, match="not a regular file"):
        folder_pictures(results, 8, wanted=[""])
