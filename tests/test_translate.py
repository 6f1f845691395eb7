"""A checkpoint as a function from pictures to pictures: sizes, padding, directions, batches, and what does not fit."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from training_support import picture, untrained_run

from datasets.errors import UserError
from datasets.files import ahead, behind
from gan import translate
from gan.checkpoint import load_checkpoint, save_checkpoint
from gan.command_line import parse_train
from gan.options import channels
from gan.setup import build_data, generators
from gan.translate import (
    Translator,
    output_names,
    pad_to_fit,
    same_size_batches,
    translate_pictures,
)

RUNS: dict[str, list[str]] = {
    "resnet": ["--norm", "nc_ms"],
    "unet": [
        "--model",
        "pix2pix",
        "--netG",
        "unet_128",
        "--norm",
        "nc_ms",
        "--crop_size=128",
        "--load_size=128",
    ],
}


@pytest.fixture(scope="module", params=RUNS)
def translator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Translator:
    return Translator.load(untrained_run(tmp_path_factory.mktemp("runs"), *RUNS[request.param]), device="cpu")


@pytest.fixture(scope="module")
def cycle_gan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    flags = ["--norm", "nc_ms", "--input_nc", 1, "--lambda_identity", 0, "--dropout"]
    return untrained_run(tmp_path_factory.mktemp("cycle"), *flags)


def images(height: int, width: int, count: int = 1, channels: int = 3) -> Tensor:
    draws = torch.Generator().manual_seed(height * width)
    return 2 * torch.rand(count, channels, height, width, generator=draws) - 1


@pytest.mark.parametrize("size", [(257, 131), (2, 2), (33, 70), (128, 256), (5, 300)])
def test_the_output_has_the_inputs_size(translator: Translator, size: tuple[int, int]) -> None:
    output = translator(images(*size))
    assert output.shape == (1, 3, *size)
    assert output.dtype == torch.float32 and not output.requires_grad
    assert torch.isfinite(output).all() and output.abs().max() <= 1


def test_a_size_that_fits_is_not_padded(translator: Translator) -> None:
    whole = images(128, 256)
    assert pad_to_fit(whole, translator.network) is whole
    with torch.no_grad():
        torch.testing.assert_close(translator(whole), translator.network(whole))


class Multiple(nn.Module):
    def __init__(self, size_multiple: int, min_size: int) -> None:
        super().__init__()
        self.size_multiple, self.min_size = size_multiple, min_size


@pytest.mark.parametrize(
    ("size", "multiple", "least", "padded"),
    [
        ((5, 7), 4, 1, (8, 8)),
        ((8, 8), 4, 1, (8, 8)),
        ((2, 2), 4, 10, (12, 12)),
        ((257, 131), 256, 256, (512, 256)),
        ((2, 300), 256, 256, (256, 512)),
    ],
)
def test_padding_at_right_and_bottom(
    size: tuple[int, int], multiple: int, least: int, padded: tuple[int, int]
) -> None:
    whole = images(*size)
    grown = pad_to_fit(whole, Multiple(multiple, least))
    assert grown.shape[2:] == padded
    assert torch.equal(grown[:, :, : size[0], : size[1]], whole)


def test_padding_reflects_where_the_picture_is_large_enough() -> None:
    row = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]]])
    assert pad_to_fit(row, Multiple(4, 1))[0, 0].tolist() == [
        [1, 2, 3, 2], [4, 5, 6, 5], [7, 8, 9, 8], [4, 5, 6, 5]
    ]  # fmt: skip
    assert pad_to_fit(row, Multiple(8, 1))[0, 0, 0].tolist() == [1, 2, 3, 3, 3, 3, 3, 3]


def test_a_batch_equals_its_pictures_one_by_one(translator: Translator) -> None:
    batch = images(30, 45, count=3)
    together = translator(batch)
    for index in range(3):
        torch.testing.assert_close(
            together[index : index + 1], translator(batch[index : index + 1]), atol=1e-5, rtol=0
        )


def test_eval_mode_repeats_itself_and_train_mode_has_dropout(cycle_gan: Path) -> None:
    x = images(16, 16, channels=1)
    quiet = Translator.load(cycle_gan, device="cpu")
    assert torch.equal(quiet(x), quiet(x))
    noisy = Translator.load(cycle_gan, device="cpu", test_mode="train")
    assert not torch.equal(noisy(x), noisy(x))


def test_both_directions_of_a_cycle_gan(cycle_gan: Path) -> None:
    state, _ = load_checkpoint(cycle_gan)
    there = Translator.load(cycle_gan, device="cpu")
    back = Translator.load(cycle_gan, device="cpu", direction="BtoA")
    for translator, name, (inputs, outputs) in ((there, "G_A", (1, 3)), (back, "G_B", (3, 1))):
        assert translator.input_nc == inputs
        assert translator(images(16, 16, channels=inputs)).shape[1] == outputs
        own = translator.network.state_dict()
        assert all(torch.equal(own[key], value) for key, value in state["networks"][name].items())
    assert (there.direction, there.epoch, there.step) == ("AtoB", 3, 6)


def test_the_direction_of_training_is_only_a_cyclegans_default(tmp_path: Path) -> None:
    run = untrained_run(tmp_path, "--direction", "BtoA", "--input_nc", 1, "--lambda_identity", 0)
    state, _ = load_checkpoint(run)
    for direction, name in (("AtoB", "G_A"), ("BtoA", "G_B"), (None, "G_B")):
        translator = Translator.load(run, device="cpu", direction=direction)
        own = next(iter(translator.network.state_dict().values()))
        assert torch.equal(own, next(iter(state["networks"][name].values())))
    assert Translator.load(run, device="cpu").input_nc == 3  # of B


def test_pix2pix_has_one_direction(tmp_path: Path) -> None:
    run = untrained_run(tmp_path, "--model", "pix2pix")
    with pytest.raises(UserError, match="trained AtoB only"):
        Translator.load(run, device="cpu", direction="BtoA")


Change = Callable[[dict[str, Any]], dict[str, Any]]


def with_nan(state: dict[str, Any]) -> dict[str, Any]:
    next(iter(state["networks"]["G_A"].values())).view(-1)[0] = float("nan")
    return state


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state | {"options": state["options"] | {"ngf": 4}},
         r"G_A.*does not fit this network.*weight is \S+ there, \S+ here"),
        (lambda state: state | {"networks": {"D_A": state["networks"]["D_A"]}},
         r"does not fit this network: .* is missing there"),
        (with_nan, "NaN or infinite"),
        (lambda state: {"model": state["networks"]}, "not a checkpoint of this program"),
    ],
    ids=["other options", "no generator", "nan", "another program"],
)  # fmt: skip
def test_states_that_cannot_translate(tmp_path: Path, change: Change, said: str) -> None:
    run = untrained_run(tmp_path)
    save_checkpoint(run, change(load_checkpoint(run)[0]), step=6, epoch=3, keep=9)
    with pytest.raises(UserError, match=said):
        Translator.load(run, device="cpu")


@pytest.mark.parametrize("epoch", ["latest", "-1", "1.5", "²", ""])
def test_an_epoch_is_last_best_or_a_number(cycle_gan: Path, epoch: str) -> None:
    with pytest.raises(UserError, match="allowed: last, best or the number of a kept epoch"):
        Translator.load(cycle_gan, epoch=epoch)


def test_an_epoch_that_is_not_kept_names_those_that_are(cycle_gan: Path) -> None:
    assert Translator.load(cycle_gan, epoch="3", device="cpu").epoch == 3
    with pytest.raises(UserError, match=r"no checkpoint of epoch 7 .*there are: 3"):
        Translator.load(cycle_gan, epoch=7)
    with pytest.raises(UserError, match="no best checkpoint"):
        Translator.load(cycle_gan, epoch="best")


# --- files


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        (["a.png", "b.jpg"], ["a.png", "b.png"]),
        (["a.png", "a.jpg", "b.png"], ["a.png.png", "a.jpg.png", "b.png"]),
        (["a.png", "A.jpg"], ["a.png.png", "A.jpg.png"]),
        (["a.png", "a.jpg", "a.jpg.png"], ["a.png.png", "a.jpg.png", "a.jpg.png.png"]),
        (["a.b.png", "a.png"], ["a.b.png", "a.png"]),
    ],
)
def test_output_names_never_collide(inputs: list[str], outputs: list[str]) -> None:
    assert output_names([Path(name) for name in inputs]) == outputs


def test_batches_of_equal_size_keep_the_order() -> None:
    sizes = [(4, 4)] * 3 + [(4, 5)] + [(4, 4)] * 2
    pictures = [(Image.new("RGB", size), Path(str(k))) for k, size in enumerate(sizes)]
    batches = [[int(path.name) for _, path in batch] for batch in same_size_batches(pictures, 2)]
    assert batches == [[0, 1], [2], [3], [4, 5]]


def test_working_ahead_is_in_order_and_bounded() -> None:
    asked: list[int] = []

    def items() -> Iterator[int]:
        for k in range(50):
            asked.append(k)
            yield k

    results = ahead(lambda k: k * k, items(), depth=5)
    for k, result in enumerate(results):
        assert result == k * k
        assert len(asked) <= k + 5


def test_working_ahead_passes_an_error_on_and_ends_its_threads() -> None:
    before = set(threading.enumerate())

    def work(k: int) -> int:
        if k == 3:
            raise UserError("three", "is bad")
        return k

    with pytest.raises(UserError, match="three: is bad"):
        list(ahead(work, range(100)))
    assert set(threading.enumerate()) <= before


def test_working_behind_is_bounded_and_ends_with_the_block() -> None:
    go_on, returned = threading.Event(), threading.Event()
    done: list[int] = []

    def work(k: int) -> None:
        assert go_on.wait(60)
        done.append(k)

    with behind(depth=2, threads=1) as later:
        later(partial(work, 0))
        later(partial(work, 1))
        assert done == []  # neither call has waited for its work
        third = threading.Thread(target=lambda: (later(partial(work, 2)), returned.set()))
        third.start()
        assert not returned.wait(0.05)  # it waits for the first piece
        go_on.set()
        third.join(60)
    assert done == [0, 1, 2]
    with behind(depth=0) as later:
        later(partial(done.append, 3))
        assert done[-1] == 3


def test_working_behind_passes_an_error_on_after_all_is_done() -> None:
    done: list[int] = []

    def work(k: int) -> None:
        if k == 1:
            raise UserError("one", "is bad")
        done.append(k)

    with pytest.raises(UserError, match="one: is bad"), behind() as later:
        for k in range(3):
            later(partial(work, k))
    assert done == [0, 2]
    with pytest.raises(UserError, match="of the block"), behind() as later:
        later(partial(work, 5))
        raise UserError("of the block", "is bad")
    assert done == [0, 2, 5]


def test_what_is_translated_before_an_error_is_written(cycle_gan: Path, tmp_path: Path) -> None:
    def lost() -> Any:
        raise UserError("2", "is lost")

    translator = Translator.load(cycle_gan, device="cpu", direction="BtoA")
    loads: list[Any] = [partial(picture, 20, 16, 0), partial(picture, 20, 16, 1), lost]
    with pytest.raises(UserError, match="2: is lost"):
        translate_pictures(translator, [(load, tmp_path / f"{k}.png") for k, load in enumerate(loads)])
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["0.png", "1.png"]


def test_pictures_are_encoded_beside_the_network(
    cycle_gan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    monkeypatch.setattr(
        translate, "save_pixels", lambda pixels, path: threads.append(threading.current_thread())
    )
    translator = Translator.load(cycle_gan, device="cpu", direction="BtoA")
    translate_pictures(translator, [(partial(picture, 20, 16, 0), tmp_path / "0.png")])
    assert threads and threading.main_thread() not in threads


@pytest.mark.parametrize("batch_size", [1, 3])
def test_files_keep_their_sizes(cycle_gan: Path, tmp_path: Path, batch_size: int) -> None:
    translator = Translator.load(cycle_gan, device="cpu", direction="BtoA")
    sizes = [(20, 16), (20, 16), (9, 31), (2, 2), (20, 16)]
    jobs = [(partial(picture, *s, k), tmp_path / f"{k}.png") for k, s in enumerate(sizes)]
    translate_pictures(translator, jobs, batch_size)
    assert [Image.open(path).size for _, path in jobs] == sizes
    assert {Image.open(path).mode for _, path in jobs} == {"L"}
    translate_pictures(translator, jobs, batch_size, size=12)
    assert {Image.open(path).size for _, path in jobs} == {(12, 12)}


def test_a_cyclegan_trained_b_to_a_still_calls_the_disks_a_its_a(tmp_path: Path) -> None:
    """`--direction` always means the disk's A and B: A is black and grey, B is white and in colour."""
    for side, colour in (("A", "black"), ("B", "white")):
        (tmp_path / f"train{side}").mkdir()
        for k in range(3):
            Image.new("RGB", (16, 16), colour).save(tmp_path / f"train{side}" / f"{k}.png")
    flags = "--model cycle_gan --direction BtoA --input_nc 1 --lambda_identity 0 --crop_size 16 --ngf 2 --num_threads 0"
    options, _ = parse_train(["--dataroot", str(tmp_path), *flags.split()])
    assert channels(options, "AtoB") == (1, 3) and channels(options, "BtoA") == (3, 1)
    batch = next(iter(build_data(options).batches(1, 0)))
    assert batch["A"].shape[1] == 1 and float(batch["A"].max()) == -1
    assert batch["B"].shape[1] == 3 and float(batch["B"].min()) == 1
    networks = generators(options)
    assert networks["G_A"](batch["A"]).shape[1] == 3 and networks["G_B"](batch["B"]).shape[1] == 1
