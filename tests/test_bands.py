"""Pictures of any number of bands, and depths of 16 bits: files in, training, pages, metrics, files out."""

import itertools
import subprocess
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tifffile
import torch
from PIL import Image
from training_support import (
    ROOT,
    call,
    command,
    environment,
    picture,
    records,
    train,
    translate,
    untrained_run,
)

from datasets.bands import Bands
from datasets.check import scan
from datasets.errors import UserError
from datasets.images import load_image, resized, save_pixels, to_pixels, to_tensor
from datasets.layouts import find_sources
from gan.translate import Translator

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

WHITE = {"uint8": 255, "uint16": 65535, "int16": 32767, "float32": 1.0}


def bands(count: int, size: tuple[int, int] = (24, 18), seed: int = 0) -> np.ndarray:
    """(H, W, C) uint8, every band another smooth picture."""
    grey = [np.asarray(picture(*size, 1000 * seed + band, "L")) for band in range(count)]
    return np.stack(grey, 2)


def write_tiff(path: Path, values: np.ndarray, planar: str = "contig") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = values if planar == "contig" else values.transpose(2, 0, 1)
    tifffile.imwrite(path, data, photometric="minisblack", planarconfig=planar, metadata=None)
    return path


def seen_by_gdal(path: Path) -> np.ndarray:
    """(H, W, C) as rasterio reads them."""
    with rasterio.open(path) as file:
        return file.read().transpose(1, 2, 0)


# --- files


@pytest.mark.parametrize("count", [2, 4, 5, 16])
def test_the_bands_of_a_tiff_are_those_that_gdal_sees(tmp_path: Path, count: int) -> None:
    for (dtype, white), planar in itertools.product(WHITE.items(), ("contig", "separate")):
        values = (bands(count) / 255 * white).astype(dtype)
        path = write_tiff(tmp_path / "x.tif", values, planar)
        expected = np.rint(seen_by_gdal(path).astype(np.float64) / white * 255)
        found = load_image(path, count)
        assert isinstance(found, Bands) and found.size == (24, 18)
        assert np.array_equal(np.asarray(found), expected), (dtype, planar)
        unit = torch.from_numpy(expected.transpose(2, 0, 1) / 127.5 - 1).float()
        torch.testing.assert_close(to_tensor(found), unit, atol=1e-6, rtol=0)


def test_no_band_of_a_tiff_is_taken_for_alpha(tmp_path: Path) -> None:
    """Programs mark the fourth band as alpha whatever it holds."""
    values = bands(4)
    sizes = {"width": 24, "height": 18, "count": 4, "dtype": "uint8", "ALPHA": "YES"}
    with rasterio.open(tmp_path / "x.tif", "w", driver="GTiff", **sizes) as file:
        file.write(values.transpose(2, 0, 1))
    assert np.array_equal(np.asarray(load_image(tmp_path / "x.tif", 4)), values)
    with pytest.raises(UserError, match="last band is marked as transparency but holds other data"):
        load_image(tmp_path / "x.tif", 3)


def test_a_value_range_applies_to_every_band(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "x.tif", bands(5).astype(np.int16) * 20 - 1000)
    expected = np.rint((bands(5).astype(float) * 20 - 1000).clip(0, 2000) / 2000 * 255)
    assert np.array_equal(np.asarray(load_image(path, 5, (0, 2000))), expected)
    with pytest.raises(UserError, match=r"x\.tif: holds negative values, which need --value_range"):
        load_image(path, 5)


def test_alpha_of_a_png_is_a_band(tmp_path: Path) -> None:
    for count in (2, 4):
        Image.fromarray(bands(count)).save(tmp_path / "x.png")
        assert np.array_equal(np.asarray(load_image(tmp_path / "x.png", count)), bands(count))


def test_the_scan_names_files_with_another_number_of_bands(tmp_path: Path) -> None:
    for side, k, count in (("A", 0, 5), ("A", 1, 4), ("B", 0, 3), ("B", 1, 6)):
        write_tiff(tmp_path / f"train{side}" / f"{k}.tif", bands(count, seed=k))
    picture(24, 18).save(tmp_path / "trainA" / "grey.png")
    sources = find_sources(tmp_path, "train")
    with pytest.raises(UserError) as refused:
        scan(sources, crop_size=8, channels=(5, 3), independent=True)
    assert refused.value.details == (
        "trainA/1.tif: holds 4 bands, not 5", "trainA/grey.png: holds 3 bands, not 5",
        "trainB/1.tif: is a 6-band TIFF, not read",
    )  # fmt: skip


def test_the_scan_knows_the_values_of_all_bands(tmp_path: Path) -> None:
    for side, count in (("A", 5), ("B", 2)):
        values = np.full((18, 24, count), 100, np.uint16)
        values[0, 0, -1] = 3000
        write_tiff(tmp_path / f"train{side}" / "0.tif", values)
    sources = find_sources(tmp_path, "train")
    for wanted in (sources, sources.swapped()):
        channels = (2, 5) if wanted.is_swapped else (5, 2)
        _, report = scan(wanted, crop_size=8, channels=channels, independent=True)
        assert {(use.lowest, use.highest) for use in report.values.values()} == {(100, 3000)}
        assert set(report.converted) == {"16-bit 5 bands", "16-bit 2 bands"}


def test_resizing_does_not_mix_bands() -> None:
    """Pillow would weigh colours by alpha."""
    values = bands(4)
    values[:9, :, 3] = 0
    small = np.asarray(Bands.of(values).resize((11, 7), Image.Resampling.BICUBIC))
    for band in range(4):
        alone = Image.fromarray(values[..., band]).resize((11, 7), Image.Resampling.BICUBIC)
        assert np.array_equal(small[..., band], np.asarray(alone))
    assert np.array_equal(resized(values, (11, 7)), small)
    wide = resized(values.astype(np.uint16) * 257, (11, 7))
    assert wide.dtype == np.uint16 and np.abs(wide / 257 - small).max() <= 1


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_what_is_written_is_what_others_read(tmp_path: Path, count: int, depth: int) -> None:
    white = 2**depth - 1
    values = torch.rand(count, 9, 7, generator=torch.Generator().manual_seed(0)) * 2.2 - 1.1
    pixels = to_pixels(values, depth)
    expected = np.rint((values.double().clamp(-1, 1).numpy().transpose(1, 2, 0) + 1) / 2 * white)
    assert np.abs(pixels.astype(float) - expected).max() <= (0 if depth == 8 else 1)
    for suffix in (".tif", ".png") if count <= 4 else (".tif",):
        save_pixels(pixels, tmp_path / f"x{suffix}")
        found = seen_by_gdal(tmp_path / f"x{suffix}")
        assert found.dtype == pixels.dtype and np.array_equal(found, pixels)


# --- training and translation


FLAGS = [
    "--netG", "resnet_6blocks", "--netD", "pixel", "--ngf", "2", "--ndf", "2", "--norm", "nc_ms", "--load_size", "20",
    "--crop_size", "16", "--num_threads", "0", "--visdom", "off", "--device", "cpu", "--n_epochs", "1",
    "--n_epochs_decay", "0", "--val_count", "1",
]  # fmt: skip


def test_five_bands_from_training_to_the_page(tmp_path: Path) -> None:
    """The real commands: two steps of Pix2Pix, samples, both pages, a report, translations of a folder."""
    for split, domain, k in itertools.product(("train", "test"), "AB", range(2)):
        seed = 10 * k + (split == "test") + 2 * (domain == "B")
        write_tiff(tmp_path / "data" / domain / split / f"{k}.tif", bands(5, seed=seed))

    def run(*words: object) -> str:
        done = subprocess.run(
            command(*words), cwd=ROOT, env=environment() | {"I2I_OFFLINE": "1", "I2I_CACHE": str(tmp_path)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    where = ("--name", "r", "--checkpoints_dir", tmp_path / "runs")
    said = run(
        "train", *where, *FLAGS, "--dataroot", tmp_path / "data", "--model", "pix2pix", "--input_nc", 5,
        "--output_nc", 5, "--show_bands", "4,3,2", "--eval_every", 1, "--eval_metrics", "fid,l1",
    )  # fmt: skip
    assert "done: 2 steps" in said and "shown  bands 4,3,2 of 5 (--show_bands)" in said
    folder = tmp_path / "runs" / "r"
    assert any("bands 4,3,2 of 5" in record.get("message", "") for record in records(folder))
    (sample,) = (folder / "samples").iterdir()
    seen = np.asarray(Image.open(sample / "input.png"), int)
    truths = [
        np.asarray(Bands.of(bands(5, seed=10 * k)).resize((16, 16), Image.Resampling.BICUBIC), int)
        for k in range(2)
    ]
    assert any(np.array_equal(seen, truth[..., [3, 2, 1]]) for truth in truths)

    run("test", *where, "--input", tmp_path / "data" / "A" / "test", "--output", tmp_path / "out")
    translator = Translator.load(folder, device="cpu")
    for k in range(2):
        made = seen_by_gdal(tmp_path / "out" / f"{k}.tif")
        source = bands(5, seed=10 * k + 1).astype(np.float32).transpose(2, 0, 1)
        expected = translator(torch.from_numpy(source / 127.5 - 1)[None])[0].numpy().transpose(1, 2, 0)
        assert made.shape == (18, 24, 5) and np.abs(made - (expected + 1) * 127.5).max() <= 0.51

    said = run("test", *where, "--results_dir", tmp_path / "results")
    results = tmp_path / "results" / "r" / "test_last_AtoB"
    assert "the page shows bands 4,3,2 of 5" in said
    assert "bands 4,3,2 of 5" in (results / "index.html").read_text()
    assert np.array_equal(
        seen_by_gdal(results / "bands" / "0_fake_B.tif"), seen_by_gdal(tmp_path / "out" / "0.tif")
    )
    for kind, whole in (("real_A", bands(5, seed=1)), ("real_B", bands(5, seed=3)), ("fake_B", None)):
        truth = seen_by_gdal(tmp_path / "out" / "0.tif") if whole is None else whole
        assert np.array_equal(
            np.asarray(Image.open(results / "images" / f"0_{kind}.png")), truth[..., [3, 2, 1]]
        )


@pytest.mark.parametrize(("best_by", "anew"), [("l1", True), ("val_l1", False)])
def test_other_shown_bands_make_their_best_start_anew(tmp_path: Path, best_by: str, anew: bool) -> None:
    for domain, k in itertools.product("AB", range(2)):
        write_tiff(tmp_path / "data" / domain / "train" / f"{k}.tif", bands(5, seed=10 * k + (domain == "B")))
    where = ("--name", "r", "--checkpoints_dir", tmp_path / "runs")
    first = call(
        "train", *where, *FLAGS, "--dataroot", tmp_path / "data", "--model", "pix2pix", "--input_nc", 5,
        "--output_nc", 5, "--eval_every", 1, "--eval_metrics", "l1", "--best_by", best_by, "--n_epochs", 1,
    )  # fmt: skip
    assert first.code == 0, first.err
    second = call("train", *where, "--continue_train", "--n_epochs", 2, "--show_bands", "4,3,2")
    assert second.code == 0 and ("starts anew" in second.err) == anew, second.err


def test_other_numbers_of_bands_in_the_two_domains(tmp_path: Path) -> None:
    for (split, k), (domain, count) in itertools.product(
        itertools.product(("train", "test"), range(2)), (("A", 2), ("B", 4))
    ):
        path = tmp_path / "data" / f"{split}{domain}" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(bands(count, seed=k)).save(path)
    where = ("--name", "r", "--checkpoints_dir", tmp_path / "runs")
    nc = ("--input_nc", 2, "--output_nc", 4, "--lambda_identity", 0)
    outcome = train(*where, *FLAGS, *nc, "--dataroot", tmp_path / "data")
    assert outcome.code == 0 and "bands 1 of 2 and bands 1,2,3 of 4" in outcome.out, outcome.err
    for direction, count in (("AtoB", 4), ("BtoA", 2)):
        source = tmp_path / "data" / f"test{direction[0]}"
        outcome = translate(
            *where, "--direction", direction, "--input", source, "--output", tmp_path / direction
        )
        assert outcome.code == 0, outcome.err
        assert seen_by_gdal(tmp_path / direction / "0.png").shape == (18, 24, count)
    refused = translate(*where, "--input", tmp_path / "data" / "testB" / "0.png", "--output", tmp_path / "x")
    assert refused.code == 2 and "0.png: holds 4 bands, not 2" in refused.error


def test_sixteen_bits_are_those_of_the_network(tmp_path: Path) -> None:
    untrained_run(tmp_path / "runs", "--norm", "nc_ms", "--base_norm", "none", "--init_type", "kaiming")
    picture(20, 16, 1).save(tmp_path / "x.png")
    where = ("--name", "r", "--checkpoints_dir", tmp_path / "runs", "--device", "cpu", "--output_depth", 16)
    expected = Translator.load(tmp_path / "runs" / "r", device="cpu")(to_tensor(picture(20, 16, 1))[None])[0]
    for name, flags in {"out": (), "a.png": (), "b.tif": (), "c.tif": ("--tile", "16")}.items():
        outcome = translate(*where, "--input", tmp_path / "x.png", "--output", tmp_path / name, *flags)
        assert outcome.code == 0 and "16 bits a channel" in outcome.err, outcome.err
        path = tmp_path / "out" / "x.png" if name == "out" else tmp_path / name
        found = seen_by_gdal(path)
        assert found.dtype == np.uint16
        truth = (expected.double().numpy().transpose(1, 2, 0) + 1) * 32767.5
        assert np.abs(found - truth).max() <= 1.5
    outcome = translate(*where, "--input", tmp_path / "x.png", "--output", tmp_path / "small", "--scale", 0.5)
    assert outcome.code == 0 and len(np.unique(seen_by_gdal(tmp_path / "small" / "x.png"))) > 300


def test_metrics_of_five_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixel metrics measure the bands shown; those of networks are refused with a sentence."""
    from evaluate_support import evaluate

    monkeypatch.setenv("I2I_OFFLINE", "1")
    monkeypatch.setenv("I2I_CACHE", str(tmp_path / "cache"))
    for split, domain, k in itertools.product(("train", "test"), "AB", range(2)):
        write_tiff(
            tmp_path / "data" / domain / split / f"{k}.tif", bands(5, (16, 16), seed=10 * k + ord(domain))
        )
    flags = ("--model", "pix2pix", "--input_nc", 5, "--output_nc", 5, "--dataroot", tmp_path / "data")
    run = untrained_run(tmp_path / "runs", *flags)
    report = evaluate(runs=run, metrics="l1")
    assert report["protocol"]["id"] == "i2i-1/16/eval/bands1+2+3"
    translator = Translator.load(run, device="cpu")
    for shown, chosen in ((range(3), ""), ([4, 0, 1], "5,1,2")):
        report = evaluate(runs=run, metrics="l1", show_bands=chosen)
        distances = []
        for k in range(2):
            made = to_pixels(
                translator(to_tensor(Bands.of(bands(5, (16, 16), seed=10 * k + ord("A"))))[None])[0]
            )
            target = bands(5, (16, 16), seed=10 * k + ord("B"))
            distances.append(np.abs(made[..., shown].astype(float) - target[..., shown]).mean() / 255)
        assert report["rows"][0]["values"]["l1"] == pytest.approx(np.mean(distances), rel=1e-6)
    with pytest.raises(UserError, match="fid: is defined for pictures of 1 or 3 channels, and these have 5"):
        evaluate(runs=run, metrics="fid,l1")
    assert "1 or 3 channels" in evaluate(runs=run)["not_computed"]["lpips"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--input_nc", 0), "--input_nc: is 0 (allowed: 1 to 16)"),
        (("--show_bands", "4,3,2"), "--show_bands: is 4,3,2, and there are 4 bands"),
        (("--show_bands", "1,2"), "--show_bands: is 1,2 (allowed: one or three numbers"),
        (("--show_bands", "1,0,2"), "--show_bands: is 1,0,2"),
        (("--best_by", "fid", "--eval_every", 1), "--best_by: fid is defined for pictures of 1 or 3 channels"),
        (
            ("--eval_metrics", "recall_lite0", "--best_by", "recall_lite0", "--eval_every", 1),
            "--best_by: recall_lite0 is defined for pictures of 1 or 3 channels",
        ),
    ],
)  # fmt: skip
def test_options_that_do_not_fit(tmp_path: Path, flags: tuple[object, ...], said: str) -> None:
    said = said.replace("4,3,2", "5,3,2")
    flags = tuple("5,3,2" if flag == "4,3,2" else flag for flag in flags)
    nc = ("--input_nc", 4, "--output_nc", 4)
    outcome = call("train", "--dataroot", tmp_path, *nc, *flags)
    assert outcome.code == 2 and said in outcome.error


def test_a_png_cannot_hold_five_bands(tmp_path: Path) -> None:
    untrained_run(tmp_path / "runs", "--input_nc", 5, "--output_nc", 5)
    write_tiff(tmp_path / "x.tif", bands(5))
    where = ("--name", "r", "--checkpoints_dir", tmp_path / "runs", "--input", tmp_path / "x.tif")
    outcome = translate(*where, "--output", tmp_path / "y.png")
    assert outcome.code == 2 and "--output: is a PNG, which cannot hold 5 bands" in outcome.error
    outcome = translate(*where, "--output", tmp_path / "y.tiff")
    assert outcome.code == 0 and "as TIFF, for 5 bands" in outcome.err
    assert seen_by_gdal(tmp_path / "y.tiff").shape == (18, 24, 5)
