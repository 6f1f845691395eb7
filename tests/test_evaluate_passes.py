"""One pass over the files: every picture once, everything computed, nothing computed twice."""

import sqlite3
import weakref
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_evaluate_networks import random_inception_state
from torch import Tensor, nn

from datasets.errors import RunError, UserError
from evaluate import batches, lpips, pixels
from evaluate.batches import make_batches
from evaluate.bootstrap import half_intervals
from evaluate.cache import FeatureCache
from evaluate.metrics import Comparison, choose, evaluate_row, parse_flags, wanted_by
from evaluate.networks import Networks
from evaluate.passes import Measurements, Wanted
from evaluate.pictures import Picture, folder_pictures, match_by_stem, pictures_of, set_hash
from evaluate.weights import Weights, load_lpips_heads


@cache
def random_trunk() -> dict[str, Tensor]:
    """AlexNet's five convolutions with random weights."""
    draws = torch.Generator().manual_seed(0)
    shapes = ((64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3))
    state = {}
    for place, (outputs, inputs, side) in zip(lpips.CONVOLUTIONS, shapes, strict=True):
        scale = (2 / (inputs * side * side)) ** 0.5
        state[f"features.{place}.weight"] = torch.randn(outputs, inputs, side, side, generator=draws) * scale
        state[f"features.{place}.bias"] = torch.randn(outputs, generator=draws) * 0.1
    return state


class FewFeatures(Networks):
    """An Inception that is one linear layer (fast), an AlexNet with random weights; counts its pictures."""

    def __init__(self) -> None:
        super().__init__(
            Weights({}, "1" * 64, Path("inception"), True),
            Weights(random_trunk(), "2" * 64, Path("alexnet"), True),
            load_lpips_heads(),
        )
        self.seen = {"fid": 0, "fid_clean": 0, "lpips": 0}
        self.matrix = torch.randn(3 * 4 * 4, 8, generator=torch.Generator().manual_seed(0))

    def inception_features(self, name: str, images: Tensor) -> Tensor:  # type: ignore[override]
        self.seen[name] += len(images)
        small = nn.functional.adaptive_avg_pool2d(images.float() / 255, 4)
        return small.flatten(1) @ self.matrix

    def lpips_maps(self, images: Tensor) -> list[Tensor]:
        self.seen["lpips"] += len(images)
        return super().lpips_maps(images)


def write_pictures(folder: Path, count: int, seed: int, size: tuple[int, int] = (40, 32)) -> Path:
    """Smooth random pictures, of (width, height)."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    for i in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{i:03}.png")
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return write_pictures(tmp_path / "fake", 7, 1), write_pictures(tmp_path / "real", 7, 2)


def _row(folders: tuple[Path, Path], paired: bool) -> Comparison:
    fakes, reals = (folder_pictures(folder, None) for folder in folders)
    targets = match_by_stem(fakes, reals, *folders) if paired else None
    inputs = None if paired else match_by_stem(fakes, reals, *folders)
    return Comparison("row", "", fakes, reals, targets, inputs)


def _measurements(cache: Path | None = None, batch_size: int = 3) -> Measurements:
    return Measurements(FeatureCache(cache), FewFeatures(), batch_size=batch_size)


ALL = ("fid", "fid_clean", "kid", "lpips", "psnr", "ssim", "l1")


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_paired_values(folders: tuple[Path, Path], batch_size: int) -> None:
    row = _row(folders, paired=True)
    measurements = _measurements(batch_size=batch_size)
    measurements.compute(wanted_by([row], ALL))
    values = evaluate_row(row, ALL, measurements)
    a, b = ([np.asarray(Image.open(f / f"{i:03}.png")) for i in range(7)] for f in folders)
    for name, metric in (("psnr", pixels.psnr), ("ssim", pixels.ssim), ("l1", pixels.l1)):
        assert values[name] == pytest.approx(
            np.mean([metric(x, y) for x, y in zip(a, b, strict=True)]), rel=1e-12
        )
    network = measurements.networks
    maps = [network.lpips_maps(torch.from_numpy(np.stack(x)).permute(0, 3, 1, 2)) for x in (a, b)]
    assert values["lpips_target"] == pytest.approx(
        float(lpips.distance(*maps, network.heads).mean()), abs=1e-6
    )
    assert set(values) == {"fid", "fid_clean", "kid", "lpips_target", "psnr", "ssim", "l1"}


def test_unpaired_values(folders: tuple[Path, Path]) -> None:
    row = _row(folders, paired=False)
    measurements = _measurements()
    measurements.compute(wanted_by([row], ALL))
    values = evaluate_row(row, ALL, measurements)
    network = measurements.networks
    a, b = (
        network.lpips_maps(torch.from_numpy(np.stack([p.load() for p in side])).permute(0, 3, 1, 2))
        for side in (row.fakes, row.reals)
    )
    every = [
        float(lpips.distance([m[i : i + 1] for m in a], [m[j : j + 1] for m in b], network.heads))
        for i in range(7)
        for j in range(7)
    ]
    assert values["lpips_all_pairs"] == pytest.approx(np.mean(every), abs=1e-6)
    assert values["lpips_input"] == pytest.approx(float(lpips.distance(a, b, network.heads).mean()), abs=1e-6)
    assert set(values) == {"fid", "fid_clean", "kid", "lpips_all_pairs", "lpips_input"}


@pytest.mark.parametrize("paired", [True, False])
def test_every_picture_is_decoded_and_seen_once(
    folders: tuple[Path, Path], tmp_path: Path, paired: bool
) -> None:
    row = _row(folders, paired)
    measurements = _measurements(tmp_path / "cache")
    measurements.compute(wanted_by([row], ALL))
    assert measurements.pictures_decoded == 14
    assert measurements.networks.seen == {"fid": 14, "fid_clean": 14, "lpips": 14}  # type: ignore[attr-defined]
    again = _measurements(tmp_path / "cache")
    again.compute(wanted_by([row], ALL))
    assert again.pictures_decoded == 0
    assert evaluate_row(row, ALL, again) == evaluate_row(row, ALL, measurements)


def test_new_fakes_cost_only_the_fakes(folders: tuple[Path, Path], tmp_path: Path) -> None:
    first = _measurements(tmp_path / "cache")
    first.compute(wanted_by([_row(folders, paired=False)], ("fid", "kid")))
    other = write_pictures(tmp_path / "other", 5, 9)
    row = Comparison("new", "", folder_pictures(other, None), folder_pictures(folders[1], None))
    second = _measurements(tmp_path / "cache")
    second.compute(wanted_by([row], ("fid", "kid")))
    assert second.networks.seen["fid"] == 5  # type: ignore[attr-defined]


def test_entries_that_are_lost_end_the_report(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Never a number over fewer pictures than the report counts."""
    paired, unpaired = _row(folders, paired=True), _row(folders, paired=False)
    measurements = _measurements(tmp_path / "cache")
    measurements.compute(wanted_by([paired, unpaired], ALL))
    with sqlite3.connect(tmp_path / "cache") as database:  # the last picture's entries, and sums over sets
        key = paired.fakes[-1].key
        database.execute("UPDATE entries SET sum = sum + 1 WHERE key LIKE ?", (f"%{key}%",))
        database.execute("UPDATE entries SET sum = sum + 1 WHERE key LIKE 'lpips_sum%'")
    for row, flag in ((paired, "fid"), (paired, "psnr"), (unpaired, "kid"), (unpaired, "lpips")):
        with pytest.raises(RunError, match="cannot be read back"):
            evaluate_row(row, [flag], measurements)


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
    measurements = _measurements()
    measurements.compute(wanted_by(rows, ALL))
    assert measurements.pictures_decoded == 48
    assert measurements.networks.seen["lpips"] == 48  # type: ignore[attr-defined]


def test_interrupted_pass_keeps_what_is_done(folders: tuple[Path, Path], tmp_path: Path) -> None:
    row = _row(folders, paired=True)
    spoiled = folders[1] / "006.png"
    good = spoiled.read_bytes()
    spoiled.write_bytes(good[: len(good) // 2])
    row = _row(folders, paired=True)
    first = _measurements(tmp_path / "cache", batch_size=2)
    with pytest.raises(UserError, match=r"006\.png"):
        first.compute(wanted_by([row], ("psnr",)))
    done = first.pictures_decoded
    spoiled.write_bytes(good)
    second = _measurements(tmp_path / "cache", batch_size=2)
    second.compute(wanted_by([_row(folders, paired=True)], ("psnr",)))
    assert done == 12 and second.pictures_decoded == 2


@pytest.mark.parametrize("count", [20, 60])
def test_decoded_pictures_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """However many there are: those of the current batch, of the batches ahead, and not more."""
    alive: weakref.WeakSet[batches.Loaded] = weakref.WeakSet()
    most = 0
    load = batches.load

    def counting(picture: Picture, clean: bool) -> batches.Loaded:
        nonlocal most
        loaded = load(picture, clean)
        alive.add(loaded)
        most = max(most, len(alive))
        return loaded

    monkeypatch.setattr(batches, "load", counting)
    folders = write_pictures(tmp_path / "a", count, 1), write_pictures(tmp_path / "b", count, 2)
    measurements = _measurements(batch_size=4)
    measurements.compute(wanted_by([_row(folders, paired=True)], ("fid", "psnr")))
    assert measurements.pictures_decoded == 2 * count
    assert most <= 4 * (batches.BATCHES_AHEAD + 2)


def test_batches_never_part_pairs() -> None:
    pictures = [Picture(Path(f"{i}.png"), str(i)) for i in range(10)]
    pairs = [
        ("psnr", (pictures[0], pictures[7])),
        ("l1", (pictures[7], pictures[9])),
        ("l1", (pictures[1], pictures[2])),
    ]
    made = make_batches(pictures, pairs, 2)
    together = [{p.content for p in batch.pictures} for batch in made]
    assert {"0", "7", "9"} in together and {"1", "2"} in together
    assert sorted(p.content for batch in made for p in batch.pictures) == [str(i) for i in range(10)]
    assert sum(len(batch.pairs) for batch in made) == 3
    assert all(len(batch.pictures) <= 3 for batch in made)


def test_mixed_sizes_are_refused(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "mixed", 2, 1)
    write_pictures(tmp_path / "other", 1, 1, (20, 20))
    (tmp_path / "other" / "000.png").rename(folder / "x.png")
    with pytest.raises(UserError, match=r"x\.png.*20x20.*mixed sizes.*--size"):
        folder_pictures(folder, None)
    pictures = folder_pictures(folder, 16)
    assert {p.load().shape for p in pictures} == {(16, 16, 3)}


def test_a_pair_of_two_sizes_is_refused(tmp_path: Path) -> None:
    a = pictures_of([write_pictures(tmp_path / "a", 1, 1) / "000.png"])
    b = pictures_of([write_pictures(tmp_path / "b", 1, 1, (40, 40)) / "000.png"])
    with pytest.raises(UserError, match=r"40x32.*40x40"):
        _measurements().compute(Wanted(pairs={"psnr": [(a[0], b[0])]}))


def test_unmatched_names(folders: tuple[Path, Path]) -> None:
    (folders[1] / "003.png").rename(folders[1] / "lonely.png")
    a, b = (folder_pictures(folder, None) for folder in folders)
    with pytest.raises(UserError, match=r"fake/003\.png, real/lonely\.png"):
        match_by_stem(a, b, *folders)


def test_features_that_are_not_finite(folders: tuple[Path, Path]) -> None:
    measurements = _measurements()
    measurements.networks.matrix[0, 0] = float("nan")  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="features are not finite"):
        measurements.compute(wanted_by([_row(folders, paired=True)], ("fid",)))


def test_content_decides_the_key(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "a", 2, 1)
    before = folder_pictures(folder, None)
    (folder / "000.png").write_bytes((folder / "001.png").read_bytes())
    after = folder_pictures(folder, None)
    assert after[0].key == before[1].key != before[0].key
    assert set_hash(before) != set_hash(after) != set_hash(after[::-1] + after[:1])
    assert folder_pictures(folder, 32)[0].key != after[0].key


def test_choice_of_metrics(folders: tuple[Path, Path]) -> None:
    paired, unpaired = _row(folders, paired=True), _row(folders, paired=False)
    missing = {"lpips": UserError("weights", "missing")}
    chosen = choose(None, [paired], 32, missing)
    assert "lpips" not in chosen.flags and chosen.reasons == {"lpips": "weights: missing"}
    assert choose(None, [unpaired], 32, {}).flags == ("fid", "fid_clean", "kid", "lpips")
    with pytest.raises(UserError, match="weights: missing"):
        choose(["lpips"], [paired], 32, missing)
    with pytest.raises(UserError, match="no targets"):
        choose(["psnr"], [unpaired], 32, {})
    assert "11x11" in choose(None, [paired], 8, {}).reasons["ssim"]
    one = Comparison("one", "", paired.fakes[:1], paired.reals)
    with pytest.raises(UserError, match="at least 2 images"):
        choose(["fid"], [one], 32, {})
    assert "at least 2" in choose(None, [one], 32, {}).reasons["kid"]
    with pytest.raises(UserError, match="unknown metric is"):
        parse_flags("fid,is")


def test_bootstrap_of_a_mean_is_its_standard_error(folders: tuple[Path, Path]) -> None:
    row = _row(folders, paired=True)
    measurements = _measurements()
    measurements.compute(wanted_by([row], ALL))
    widths = half_intervals(row, ALL, measurements, 2000)
    values = measurements.pair_values("psnr", list(zip(row.fakes, row.targets or [], strict=True)))
    assert widths["psnr"] == pytest.approx(1.96 * values.std() / 7**0.5, rel=0.06)
    assert widths["fid"] > 0 and widths["kid"] > 0


def test_bootstrap_of_all_pairs(folders: tuple[Path, Path]) -> None:
    """Against resampling the whole matrix of distances."""
    row = _row(folders, paired=False)
    measurements = _measurements()
    measurements.compute(wanted_by([row], ("lpips",)))
    width = half_intervals(row, ("lpips",), measurements, 1000)["lpips_all_pairs"]
    network = measurements.networks
    a, b = (
        network.lpips_maps(torch.from_numpy(np.stack([p.load() for p in side])).permute(0, 3, 1, 2))
        for side in (row.fakes, row.reals)
    )
    matrix = np.array(
        [lpips.distance([m[i : i + 1].expand_as(m) for m in a], b, network.heads).numpy() for i in range(7)]
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
    networks = Networks(Weights(state, "3" * 64, Path("x"), False), None, None)
    measurements = Measurements(FeatureCache(None), networks, batch_size=2)
    pictures = pictures_of(paths)
    measurements.compute(Wanted(features={"fid": pictures, "fid_clean": pictures}))
    ours = measurements.features("fid", pictures).all()
    assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)
    clean = pytest.importorskip("cleanfid.fid", reason="clean-fid is not installed")

    def network(images: Tensor) -> Tensor:
        return networks.inception((images - 128) / 128)

    with torch.inference_mode():
        theirs = clean.get_folder_features(
            str(folder),
            network,
            num_workers=0,
            batch_size=5,
            device=torch.device("cpu"),
            mode="clean",
            verbose=False,
        )
    ours = measurements.features("fid_clean", pictures).all()
    assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)
