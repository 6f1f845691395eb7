"""--cache_gb changes no bit of a training; it keeps what fits, and notices pictures that change."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from cache_support import GB, SMALL, assert_equal, batches, caches, keep, prepare, write_pairs
from conftest import noise
from training_support import (
    TINY,
    assert_same_training,
    differences,
    last_state,
    records,
    train,
    write_aligned,
    write_unaligned,
)

from datasets import cache
from datasets.cache import PictureCache
from datasets.errors import UserError
from datasets.transforms import Augmentation


@pytest.fixture(autouse=True)
def nothing_mapped() -> None:
    cache._mapped.cache_clear()


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs")


# --- equal to the bit


@pytest.mark.parametrize("model", ["pix2pix", "cycle_gan"])
def test_three_steps_with_two_workers_are_equal_to_the_bit(model: str, tmp_path: Path) -> None:
    data = (write_aligned if model == "pix2pix" else write_unaligned)(tmp_path / "data")
    flags = ["--dataroot", data, *TINY, "--model", model, "--num_threads", 2, "--n_epochs", 1, "--name", "r"]
    for runs, more in (("without", []), ("with", ["--cache_gb", 1])):
        outcome = train(*flags, "--checkpoints_dir", tmp_path / runs, *more)
        assert outcome.code == 0, outcome.err
    assert "6 of 6 pictures, 0.0 MiB: " in outcome.out
    assert [line["step"] for line in records(tmp_path / "with" / "r") if line["kind"] == "train"] == [1, 2, 3]
    assert_same_training(tmp_path / "with" / "r", tmp_path / "without" / "r")
    [file] = caches(tmp_path / "with")
    assert file.stat().st_size == 6 * 20 * 20 * 3 + 32
    assert caches(tmp_path / "without") == []


@pytest.mark.parametrize(
    "augmentation",
    [
        SMALL,
        Augmentation("crop", crop_size=16),
        Augmentation("scale_width", load_size=30, crop_size=16),
        Augmentation("scale_width_and_crop", load_size=30, crop_size=16),
        Augmentation("none", flip=False),
    ],
    ids=lambda augmentation: augmentation.preprocess,
)
def test_every_preprocess_needs_no_file_any_more(
    augmentation: Augmentation, pairs: Path, tmp_path: Path
) -> None:
    expected = batches(prepare(pairs, augmentation)[0])
    dataset = keep(pairs, tmp_path / "runs", augmentation=augmentation)
    shutil.rmtree(pairs)
    assert_equal(batches(dataset), expected)


@pytest.mark.parametrize(
    "options",
    [{"channels": (1, 3)}, {"swapped": True}, {"independent": True}, {"exclude": [1], "serial": True}],
    ids=lambda options: "-".join(options),
)
def test_halves_are_kept_as_they_are_used(options: dict[str, Any], pairs: Path, tmp_path: Path) -> None:
    expected = batches(prepare(pairs, **options)[0])
    dataset = keep(pairs, tmp_path / "runs", **options)
    shutil.rmtree(pairs)
    assert_equal(batches(dataset), expected)


def test_bands_of_16_bits_in_two_folders_of_many_sizes(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    for side, count in (("A", 5), ("B", 2)):
        (tmp_path / "data" / f"train{side}").mkdir(parents=True)
        for i in range(count):
            values = draws.integers(0, 65536, (18 + i, 24, 5), dtype=np.uint16)
            path = tmp_path / "data" / f"train{side}" / f"{i}.tif"
            tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig", metadata=None)
    expected = batches(prepare(tmp_path / "data", channels=(5, 5))[0])
    assert expected[0]["A"].shape == (1, 5, 16, 16)
    dataset = keep(tmp_path / "data", tmp_path / "runs", channels=(5, 5))
    shutil.rmtree(tmp_path / "data")
    assert_equal(batches(dataset), expected)


def test_a_pair_is_decoded_once(pairs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from datasets import layouts

    decoded: list[str] = []
    load = layouts.load_image

    def counting(path: Path, *arguments: Any) -> Any:
        decoded.append(Path(str(path)).name)
        return load(path, *arguments)

    monkeypatch.setattr(layouts, "load_image", counting)
    batches(prepare(pairs)[0])
    assert sorted(decoded) == sorted(["0.jpg", "1.jpg", "2.jpg", "3.jpg"] * 2)  # two epochs
    decoded.clear()
    batches(keep(pairs, tmp_path / "runs"))
    assert sorted(decoded) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]  # for the cache


# --- the limit


def test_what_does_not_fit_is_decoded(pairs: Path, tmp_path: Path) -> None:
    expected = batches(prepare(pairs)[0])
    two_pairs = 2 * 2 * 20 * 20 * 3 + 32
    for limit in (two_pairs, two_pairs + 2 * 20 * 20 * 3 - 1):
        dataset = keep(pairs, tmp_path / "runs", limit)
        assert isinstance(dataset.cache, PictureCache)
        assert "4 of 8 pictures" in str(dataset.cache) and "4 do not fit" in str(dataset.cache)
        [file] = caches(tmp_path / "runs")
        assert file.stat().st_size == two_pairs
    for name in ("0.jpg", "1.jpg"):
        (pairs / "train" / name).unlink()
    assert_equal(batches(dataset), expected)
    (pairs / "train" / "3.jpg").unlink()
    with pytest.raises(UserError, match=r"3\.jpg: no such file"):
        batches(dataset)


def test_room_for_none(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert keep(pairs, tmp_path / "runs", 1000).cache is None
    assert capsys.readouterr().err == "warning: --cache_gb: 1e-06 GB hold none of the pictures\n"
    assert caches(tmp_path / "runs") == []


# --- files that change


def test_it_is_made_once_and_anew_for_other_pictures(pairs: Path, tmp_path: Path) -> None:
    keep(pairs, tmp_path / "runs")
    [first] = caches(tmp_path / "runs")
    made = first.stat().st_ino
    keep(pairs, tmp_path / "runs", exclude=[2])
    keep(shutil.copytree(pairs, tmp_path / "copy"), tmp_path / "runs")  # another data set
    assert first.stat().st_ino == made and len(caches(tmp_path / "runs")) == 2
    noise(pairs / "train" / "1.jpg", (48, 18), seed=77)
    expected = batches(prepare(pairs)[0])
    dataset = keep(pairs, tmp_path / "runs")
    assert dataset.cache and dataset.cache.path in caches(tmp_path / "runs")
    assert not first.exists() and len(caches(tmp_path / "runs")) == 2
    assert_equal(batches(dataset), expected)


def test_a_file_that_changes_before_it_is_kept(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, maker = prepare(pairs)
    noise(pairs / "train" / "1.jpg", (48, 18), seed=77)
    assert maker.cache(tmp_path, GB) is None
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: --cache_gb: ") and "1.jpg: has changed since the start" in line
    assert caches(tmp_path) == []


@pytest.mark.parametrize("library", ["pillow", "code"])
def test_another_decoder_makes_it_anew(
    library: str, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = keep(pairs, tmp_path / "runs").cache
    if library == "code":
        (tmp_path / "images.py").write_text("changed")
        monkeypatch.setattr(cache.images, "__file__", str(tmp_path / "images.py"))
    else:
        monkeypatch.setattr(cache, "version", lambda name: "0.0")
    second = keep(pairs, tmp_path / "runs").cache
    assert first and second and first.path != second.path


def test_a_resumed_run_may_change_it(tmp_path: Path) -> None:
    flags = [
        "--dataroot",
        write_aligned(tmp_path / "data"),
        *TINY,
        "--model",
        "pix2pix",
        "--netG",
        "resnet_6blocks",
    ]
    for runs, more in (("with", ["--cache_gb", 1]), ("without", [])):
        place = ["--checkpoints_dir", tmp_path / runs, "--name", "r"]
        outcome = train(*flags, *place, "--n_epochs", 1)
        assert outcome.code == 0, outcome.err
        outcome = train(*place, "--continue_train", "--n_epochs", 2, *more)
        assert outcome.code == 0, outcome.err
        assert ("6 of 6 pictures" in outcome.out) == bool(more)
    states = (last_state(tmp_path / runs / "r") for runs in ("with", "without"))
    assert list(differences(*states)) == []
