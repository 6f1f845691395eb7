"""One generator as one file: written, read back, read by others; damaged, hostile, and of a newer version."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from training_support import untrained_run

from datasets.errors import UserError
from gan.checkpoint import checkpoint_hash
from gan.generator_file import write_generator
from gan.translate import Translator

SIZES = {"A": (60.0, 40.0), "B": (20.0, 30.0)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    flags = ["--norm", "batch", "--input_nc", 1, "--lambda_identity", 0, "--visdom_username", "somebody"]
    return untrained_run(tmp_path_factory.mktemp("runs"), *flags, sizes=SIZES)


@pytest.fixture(scope="module")
def file(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "there.safetensors"
    write_generator(Translator.load(run, device="cpu"), path)
    return path


def content(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as opened:
        return opened.metadata(), {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118


@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_a_file_translates_as_its_run_does(run: Path, tmp_path: Path, direction: str) -> None:
    ours = Translator.load(run, device="cpu", direction=direction)
    write_generator(ours, tmp_path / "x.safetensors")
    theirs = Translator.load(tmp_path / "x.safetensors", device="cpu")
    x = torch.rand(2, ours.input_nc, 13, 18)
    assert torch.equal(ours(x), theirs(x))
    for name in ("direction", "step", "epoch", "median_size", "trained_scale"):
        assert getattr(theirs, name) == getattr(ours, name), name
    assert theirs.median_size == SIZES[direction[0]]
    assert theirs.options.model == ours.options.model
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]  # nothing temporary


def test_what_others_read(run: Path, file: Path) -> None:
    metadata, tensors = content(file)
    network = Translator.load(run, device="cpu").network.state_dict()  # running statistics too
    assert tensors.keys() == network.keys() and all(
        torch.equal(tensors[key], network[key]) for key in tensors
    )
    assert {name: metadata[name] for name in ("format", "version", "direction", "step", "epoch")} == {
        "format": "image-translation-generator", "version": "1", "direction": "AtoB", "step": "6", "epoch": "3",
    }  # fmt: skip
    assert (metadata["size_multiple"], metadata["min_size"]) == ("4", "8")
    assert json.loads(metadata["median_size"]) == [60, 40]
    options = json.loads(metadata["options"])
    assert (options["netG"], options["ngf"], options["norm"]) == ("resnet_6blocks", 2, "batch")
    text = file.read_bytes().decode("latin-1")
    assert "somebody" not in text and str(run.parent) not in text


def test_a_folder_with_the_file(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    shutil.copy(file, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    assert Translator.load(folder, device="cpu").direction == "AtoB"


def test_only_what_the_file_holds(file: Path) -> None:
    with pytest.raises(UserError, match=r"--direction: there.safetensors translates AtoB only \(use AtoB\)"):
        Translator.load(file, direction="BtoA")
    with pytest.raises(
        UserError, match=r"there.safetensors: is a file, not a run, and has no checkpoint best"
    ):
        Translator.load(file, epoch="best")
    assert checkpoint_hash(file) == content(file)[0]["sha256"]


def test_a_file_that_cannot_be_written(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none/x\.safetensors"):
        write_generator(Translator.load(run, device="cpu"), tmp_path / "none" / "x.safetensors")


@pytest.mark.parametrize("length", [0x4B50, 0x3A80])  # in the file: PK, as in a zip; 0x80, as in a pickle
def test_a_length_that_looks_like_another_format(file: Path, tmp_path: Path, length: int) -> None:
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = data[8:end] + b" " * (length - (end - 8))
    assert len(header) == length
    (tmp_path / "x").write_bytes(length.to_bytes(8, "little") + header + data[end:])
    assert Translator.load(tmp_path / "x", device="cpu").direction == "AtoB"


def test_every_flipped_bit_is_seen(file: Path, tmp_path: Path) -> None:
    data, draws = file.read_bytes(), torch.Generator().manual_seed(1)
    target = tmp_path / "x.safetensors"
    places = torch.randint(8 * len(data), (60,), generator=draws).tolist()
    for place in [*range(0, 64, 7), *places]:
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        target.write_bytes(flipped)
        with pytest.raises(UserError):
            Translator.load(target, device="cpu")
    for length in (0, 1, 100, len(data) // 2, len(data) - 1):
        target.write_bytes(data[:length])
        with pytest.raises(UserError):
            Translator.load(target, device="cpu")


def rewritten(file: Path, target: Path, **changes: Any) -> Path:
    """The file with other metadata and tensors, its SHA-256 right again."""
    from gan.checkpoint_format import raw_bytes, signed_header

    metadata, tensors = content(file)
    tensors |= {key: value for key, value in changes.items() if isinstance(value, torch.Tensor)}
    metadata |= {key: value for key, value in changes.items() if isinstance(value, str)}
    metadata = {key: value for key, value in metadata.items() if key != "sha256" and value != "gone"}
    header, ordered = signed_header(metadata, tensors)
    target.write_bytes(header + b"".join(raw_bytes(tensor) for tensor in ordered))
    return target


def options_with(file: Path, **changes: Any) -> str:
    return json.dumps(json.loads(content(file)[0]["options"]) | changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": "2", "program": "3.1"}, "made by 3.1, this is"),
        ({"format": "another"}, "another"),
        ({"direction": "CtoD"}, "its metadata makes no sense"),
        ({"direction": "BtoA"}, "its metadata makes no sense"),
        ({"options": "gone"}, "its metadata makes no sense"),
        ({"options": "[]"}, "its metadata makes no sense"),
        ({"options": "[" * 100_000}, "its metadata makes no sense"),
        ({"step": "-1"}, "malformed state"),
        ({"step": "9" * 5000}, "its metadata makes no sense"),
        ({"epoch": "many"}, "its metadata makes no sense"),
        ({"median_size": "[1e-9, NaN]"}, "malformed state"),
        ({"median_size": '{"a": 1}'}, "malformed state"),
        ({"extra": torch.zeros(3)}, "does not fit this network: extra is 3 there, missing here"),
        ({"out.weight": torch.zeros(3)}, "does not fit this network: out.weight is 3 there, 3x2x7x7 here"),
        ({"out.bias": torch.tensor([0, float("nan"), 0])}, "out.bias: 1 of 3 values are NaN or infinite"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)  # fmt: skip
def test_what_makes_no_sense(file: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as refusal:
        Translator.load(rewritten(file, tmp_path / "x.safetensors", **changes), device="cpu")
    assert len(str(refusal.value)) <= 300


@pytest.mark.parametrize(
    "change",
    [{"netG": "resnet_5blocks"}, {"ngf": 2**16}, {"ngf": 10**12}, {"ngf": -1}, {"ngf": "2"}, {"norm": "sync"},
     {"norm": None}, {"model": []}, {"model": "pix2pix"}, {"input_nc": 10**9}, {"input_nc": 0}],
    ids=str,
)  # fmt: skip
def test_options_that_make_no_sense(file: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    """The network that a file asks for is not built before its shapes were compared with the weights."""
    path = rewritten(file, tmp_path / "x.safetensors", options=options_with(file, **change))
    if change == {"model": "pix2pix"}:  # a name for the same weights
        assert Translator.load(path, device="cpu").network is not None
        return
    with pytest.raises(UserError):
        Translator.load(path, device="cpu")


def test_safetensors_of_another_program(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="a safetensors file of another program"):
        Translator.load(tmp_path / "x.safetensors")
