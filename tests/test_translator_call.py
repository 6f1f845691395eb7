"""`Translator.load(...)(picture)`: from Python, a picture of any kind gives a picture of that kind."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from training_support import ROOT, environment, picture, translate, untrained_run

from datasets.errors import UserError
from datasets.images import load_image
from gan.translate import Translator


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on pictures of 60 x 40 pixels at 20 x 20: they are resized, and the translations resized back."""
    return untrained_run(
        tmp_path_factory.mktemp("runs"), "--init_gain", 0.3, sizes={"A": (60.0, 40.0), "B": (20.0, 20.0)}
    )


@pytest.fixture(scope="module")
def translator(run: Path) -> Translator:
    return Translator.load(run, device="cpu")


def in_modes() -> dict[str, Image.Image]:
    """Pictures in every mode that files have, one of them turned by its EXIF data."""
    colour = picture(33, 18, 1)
    alpha = Image.fromarray(np.tile(np.arange(33, dtype=np.uint8) * 7, (18, 1)))
    transparent = colour.copy()
    transparent.putalpha(alpha)
    grey = colour.convert("L")
    modes = {mode: colour.convert(mode) for mode in ("RGB", "L", "1", "P", "CMYK")}
    return modes | {"RGBA": transparent, "LA": Image.merge("LA", (grey, alpha)), "PA": transparent.quantize()}


@pytest.mark.parametrize("mode", in_modes())
@pytest.mark.parametrize("count", [1, 3])
def test_what_test_py_writes(
    mode: str, count: int, run: Path, translator: Translator, tmp_path: Path
) -> None:
    if count == 1:
        flags = ["--input_nc", 1, "--lambda_identity", 0, "--init_gain", 0.3]
        run = untrained_run(tmp_path / "grey", *flags, sizes={"A": (60.0, 40.0), "B": (20.0, 20.0)})
        translator = Translator.load(run, device="cpu")
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    # Pillow 13.0 itself turns uncompressed TIFF wrongly
    in_modes()[mode].save(path, exif=exif, **({"compression": "tiff_lzw"} if mode == "CMYK" else {}))
    flags = ["--name", "r", "--checkpoints_dir", run.parent, "--device", "cpu"]
    assert translate(*flags, "--input", path, "--output", tmp_path / "out.png").code == 0
    expected = np.asarray(Image.open(tmp_path / "out.png"))
    assert expected.shape == (33, 18, 3) and expected.std() > 20  # upright
    with Image.open(path) as opened:
        for given in (path, str(path), opened):
            output = translator(given)
            assert isinstance(output, Image.Image) and output.mode == "RGB"
            assert np.array_equal(np.asarray(output), expected)
    output = translator(np.atleast_3d(np.asarray(load_image(path, count))))
    assert isinstance(output, np.ndarray) and output.dtype == np.uint8
    assert np.array_equal(output, expected)


def test_grey_out(tmp_path: Path) -> None:
    run = untrained_run(tmp_path, "--output_nc", 1, "--lambda_identity", 0)
    translator = Translator.load(run, device="cpu")
    assert translator(picture(20, 16)).mode == "L"
    assert translator(np.asarray(picture(20, 16))).shape == (16, 20, 1)


def test_bands(tmp_path: Path) -> None:
    run = untrained_run(
        tmp_path, "--input_nc", 4, "--output_nc", 5, "--lambda_identity", 0, "--init_gain", 0.3
    )
    translator = Translator.load(run, device="cpu")
    values = np.random.default_rng(1).integers(0, 256, (16, 20, 4), np.uint8)
    output = translator(values)
    assert output.shape == (16, 20, 5)
    x = torch.from_numpy(values / np.float32(127.5) - 1).permute(2, 0, 1)[None]
    assert np.abs((translator(x)[0].permute(1, 2, 0).numpy() + 1) * 127.5 - output).max() <= 0.51
    assert np.array_equal(translator(Image.fromarray(values)), output)
    Image.fromarray(values).save(tmp_path / "x.png")
    assert np.array_equal(translator(tmp_path / "x.png"), output)
    with pytest.raises(UserError, match="picture: holds 3 bands, not 4"):
        translator(picture(16, 16))


def test_arrays_that_are_no_copies(translator: Translator) -> None:
    whole = np.asarray(picture(40, 36))
    view = whole[::2, ::-2]
    before = whole.copy()
    assert np.array_equal(translator(view), translator(view.copy())) and np.array_equal(whole, before)


def test_a_tensor_is_translated_as_it_is(translator: Translator) -> None:
    x = torch.rand(2, 3, 16, 20)
    assert translator(x).shape == x.shape
    with torch.no_grad():
        torch.testing.assert_close(translator(x), translator.network(x))


def test_the_value_range_of_the_training_holds_for_files(tmp_path: Path) -> None:
    run = untrained_run(tmp_path, "--value_range_A", "0,4095", "--input_nc", 1, "--lambda_identity", 0)
    translator = Translator.load(run, device="cpu")
    values = np.linspace(0, 4095, 16 * 16).reshape(16, 16).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    scaled = np.rint(values / 4095 * 255).astype(np.uint8)[:, :, None]
    assert np.array_equal(np.asarray(translator(tmp_path / "x.png")), translator(scaled))
    back = Translator.load(run, device="cpu", direction="BtoA")
    assert np.asarray(back(picture(16, 16))).shape == (16, 16)
    with pytest.raises(UserError, match="has the mode I;16, not 8 bits a channel"):
        translator(Image.open(tmp_path / "x.png"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.zeros((8, 8, 3), np.float32), r"ndarray float32 \(8, 8, 3\)"),
        (np.zeros((8, 8), np.uint8), r"ndarray uint8 \(8, 8\)"),
        (np.zeros((8, 8, 7), np.uint8), "picture: holds 7 bands, not 3"),
        (None, "NoneType"),
        (b"picture", "bytes"),
        ("no file.png", "no such file"),
    ],
    ids=["float", "2-D", "7 channels", "None", "bytes", "no file"],
)
def test_what_cannot_be_translated(translator: Translator, given: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        translator(given)


def test_the_three_lines_of_the_readme(run: Path, tmp_path: Path) -> None:
    """As in a notebook: another process, in another folder."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (lines,) = (block.split("```")[0] for block in readme.split("```python\n")[1:] if "Translator" in block)
    assert lines.count("\n") <= 4
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "NAME").symlink_to(run)
    picture(20, 16).save(tmp_path / "photo.jpg")
    python_path = environment() | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-"],
        input=lines,
        cwd=tmp_path,
        env=python_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "map.png").size == (20, 16)
