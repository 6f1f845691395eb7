"""--cache_gb changes no bit of a training, and a cache that is damaged, half-written or out of date is never used."""

import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from conftest import noise
from training_support import (
    ROOT,
    TINY,
    assert_same_training,
    differences,
    environment,
    last_state,
    records,
    train,
    write_aligned,
    write_unaligned,
)

from datasets import cache, loader
from datasets.cache import CacheMaker, PictureCache
from datasets.check import scan
from datasets.layouts import find_sources
from datasets.loader import PairBatch, PairDataset, epoch_batches
from datasets.transforms import Augmentation

SMALL = Augmentation("resize_and_crop", load_size=20, crop_size=16)
GB = 10**9


@pytest.fixture(autouse=True)
def nothing_mapped() -> None:
    cache._mapped.cache_clear()


def prepare(
    root: Path,
    augmentation: Augmentation = SMALL,
    *,
    channels: tuple[int, int] = (3, 3),
    independent: bool = False,
    swapped: bool = False,
    **options: Any,
) -> tuple[PairDataset, CacheMaker]:
    """Pictures that are found and scanned as a training does it."""
    sources = find_sources(root, "train")
    sources = sources.swapped() if swapped else sources
    load, crop, preprocess = augmentation.load_size, augmentation.crop_size, augmentation.preprocess
    sources, report = scan(
        sources,
        load_size=load,
        crop_size=crop,
        preprocess=preprocess,
        channels=channels,
        independent=independent,
    )
    dataset = PairDataset(
        sources,
        augmentation,
        seed=3,
        channels_a=channels[0],
        channels_b=channels[1],
        independent=independent,
        **options,
    )
    return dataset, CacheMaker(sources, augmentation, channels, report.records)


def keep(root: Path, folder: Path, limit: int = GB, spare: int = 0, **options: Any) -> PairDataset:
    folder.mkdir(exist_ok=True)
    dataset, maker = prepare(root, **options)
    dataset.cache = maker.cache(folder, limit, spare)
    return dataset


def batches(dataset: PairDataset, num_threads: int = 0) -> list[PairBatch]:
    options: dict[str, Any] = {"seed": 5, "batch_size": 1, "shuffle": True, "num_threads": num_threads}
    return [batch for number in (1, 2) for batch in epoch_batches(dataset, epoch=number, **options)]


def assert_equal(one: list[PairBatch], other: list[PairBatch]) -> None:
    assert [batch["paths_B"] for batch in one] == [batch["paths_B"] for batch in other]
    for mine, its in zip(one, other, strict=True):
        assert torch.equal(mine["A"], its["A"]) and torch.equal(mine["B"], its["B"])


def caches(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    for i in range(4):
        noise(tmp_path / "pairs" / "train" / f"{i}.jpg", (48, 18), seed=i)
    return tmp_path / "pairs"


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
    with pytest.raises(loader.UserError, match=r"3\.jpg: no such file"):
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


# --- damage


def flip(content: bytes) -> bytes:
    return content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]


@pytest.mark.parametrize(
    "damage",
    [flip, lambda content: content[:-1], lambda content: content + b"x", lambda _: b""],
    ids=["a bit", "cut", "longer", "empty"],
)
def test_a_damaged_one_is_made_again(
    damage: Any, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = batches(keep(pairs, tmp_path / "runs"))
    [file] = caches(tmp_path / "runs")
    good = file.read_bytes()
    file.write_bytes(damage(good))
    cache._mapped.cache_clear()
    dataset = keep(pairs, tmp_path / "runs")
    assert capsys.readouterr().err == f"{file} is damaged: it is made again\n"
    assert file.read_bytes() == good
    assert_equal(batches(dataset), expected)


def test_what_a_link_leads_to_is_not_overwritten(pairs: Path, tmp_path: Path) -> None:
    keep(pairs, tmp_path / "runs")
    [file] = caches(tmp_path / "runs")
    elsewhere = file.rename(tmp_path / "elsewhere")
    good = elsewhere.read_bytes()
    elsewhere.write_bytes(b"mine")
    file.symlink_to(elsewhere)
    keep(pairs, tmp_path / "runs")
    assert not file.is_symlink() and file.read_bytes() == good
    assert elsewhere.read_bytes() == b"mine"


@pytest.mark.parametrize("num_threads", [0, 2])
def test_one_that_is_deleted_while_training_is_done_without(
    num_threads: int, pairs: Path, tmp_path: Path
) -> None:
    dataset = keep(pairs, tmp_path / "runs")
    [file] = caches(tmp_path / "runs")
    file.unlink()
    assert_equal(batches(dataset, num_threads), batches(prepare(pairs)[0]))


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, "tests")
import test_cache
from datasets.cache import CacheMaker

decoded = CacheMaker._decoded

def third_time_killed(maker, numbers, seen=[]):
    seen.append(numbers)
    if len(seen) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return decoded(maker, numbers)

CacheMaker._decoded = third_time_killed
test_cache.keep(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_killed_process_leaves_nothing_that_is_used_or_stays(pairs: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(pairs), str(tmp_path / "runs")]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    [leftover] = caches(tmp_path / "runs")
    assert leftover.name.endswith(".tmp")
    dataset = keep(pairs, tmp_path / "runs")
    assert dataset.cache and caches(tmp_path / "runs") == [dataset.cache.path]


def test_two_at_once(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One begins, another makes all of it, the first goes on."""
    begun, go_on = threading.Event(), threading.Event()
    decoded, found = CacheMaker._decoded, []

    def slow(maker: CacheMaker, numbers: Any) -> Any:
        if not go_on.is_set():
            begun.set()
            assert go_on.wait(60)
        return decoded(maker, numbers)

    monkeypatch.setattr(CacheMaker, "_decoded", slow)
    first = threading.Thread(target=lambda: found.append(keep(pairs, tmp_path / "runs")))
    first.start()
    assert begun.wait(60)
    monkeypatch.setattr(CacheMaker, "_decoded", decoded)
    second = keep(pairs, tmp_path / "runs")
    expected = batches(second)
    go_on.set()
    first.join(60)
    assert second.cache and found[0].cache == second.cache
    assert caches(tmp_path / "runs") == [second.cache.path]
    cache._mapped.cache_clear()
    assert_equal(batches(found[0]), expected)


# --- no room, and refusals


def test_no_space_is_one_line_and_training_goes_on(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spare = shutil.disk_usage(tmp_path).total
    assert keep(pairs, tmp_path / "runs", spare=spare).cache is None
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: --cache_gb: {tmp_path}/runs: no space: need 0.0 MiB and ")
    assert line.endswith("; pictures are decoded as they are needed")


def test_a_write_that_fails_leaves_nothing(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limit[1]))  # the system's own way to fail in the middle
    try:
        dataset = keep(pairs, tmp_path / "runs")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert dataset.cache is None and caches(tmp_path / "runs") == []
    assert "larger than the file size limit" in capsys.readouterr().err
    assert_equal(batches(dataset), batches(prepare(pairs)[0]))


@pytest.mark.parametrize("value", ["-1", "nan", "many"])
def test_a_wrong_size_is_refused(value: str, pairs: Path, tmp_path: Path) -> None:
    outcome = train("--dataroot", pairs, *TINY, "--checkpoints_dir", tmp_path / "runs", "--cache_gb", value)
    assert outcome.code == 2 and "--cache_gb" in outcome.error
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_keeps_nothing(pairs: Path, tmp_path: Path) -> None:
    flags = ["--dataroot", pairs, *TINY, "--checkpoints_dir", tmp_path / "runs", "--cache_gb", 1, "--dry_run"]
    outcome = train(*flags)
    assert outcome.code == 0, outcome.err
    assert not (tmp_path / "runs").exists()


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
