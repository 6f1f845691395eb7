"""Files of the widely used implementation: what they compute, what is inferred, and what is refused."""

import io
import itertools
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_support import (
    patch_discriminator,
    pixel_discriminator,
    resnet,
    save,
    unet,
    with_drawn_weights,
)
from torch import Tensor, nn
from training_support import untrained_run

from datasets.errors import UserError
from gan import foreign_weights
from gan.foreign_weights import foreign_state
from gan.options import from_dict
from gan.pretrained import read_pretrained
from gan.setup import _all_networks
from gan.state import load_network
from gan.translate import Translator
from gan.zip_pickle import read_zip_pickle

NORMS = ("instance", "batch", "none")
CASES = [
    *((resnet, {"blocks": blocks, "norm": norm, "dropout": dropout})
      for blocks, norm, dropout in itertools.product((6, 9), NORMS, (False, True))),
    *((unet, {"downs": downs, "norm": norm, "dropout": dropout})
      for downs, norm, dropout in itertools.product((7, 8), NORMS, (False, True))),
]  # fmt: skip


def name_of(value: Any) -> str:
    return value.__name__ if callable(value) else "-".join(map(str, value.values()))


def ours(state: dict[str, Any], name: str) -> nn.Module:
    options = from_dict({"direction": "AtoB"} | state["options"])
    network = _all_networks(options)[name]
    load_network(network, state["networks"][name], where=name)
    return network.double()


def pictures(channels: int, size: int, count: int = 1) -> Tensor:
    draws = torch.Generator().manual_seed(size)
    return 2 * torch.rand(count, channels, size, size, generator=draws, dtype=torch.float64) - 1


@pytest.mark.parametrize(("make", "arguments"), CASES, ids=name_of)
def test_generators_compute_the_same(make: Callable[..., nn.Module], arguments: dict[str, Any]) -> None:
    """In float64, in both modes; dropout draws the same numbers in the same places."""
    theirs = with_drawn_weights(make(ngf=2, **arguments)).double()
    state = foreign_state({Path("latest_net_G.pth"): theirs.float().state_dict()})
    theirs.double()
    network = ours(state, "G")
    options = from_dict(state["options"]).model
    if make is resnet:
        assert options.dropout == arguments["dropout"]  # of a U-Net, no file tells it
        assert options.netG == f"resnet_{arguments['blocks']}blocks"
        x = pictures(3, 20)
    else:
        assert options.netG == f"unet_{2 ** arguments['downs']}"
        x = pictures(3, 2 ** arguments["downs"], count=2)
    assert (options.norm, options.base_norm, options.ngf) == (arguments["norm"],) * 2 + (2,)
    for mode in (True, False):
        if mode and make is unet and not arguments["dropout"]:
            continue  # ours has dropout then, as the defaults there do
        if mode and make is unet and arguments["norm"] == "instance":
            continue  # instance norm of the single pixel at the bottom is refused by torch in training
        outputs = []
        for one in (theirs, network):
            torch.manual_seed(3)
            with torch.no_grad():
                outputs.append(one.train(mode)(x.clone()))
        assert outputs[0].std() > 0.05
        torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("count", [1, 2, 3, 5, "pixel"])
@pytest.mark.parametrize("channels", [3, 6])
def test_discriminators_compute_the_same(norm: str, count: int | str, channels: int) -> None:
    make = pixel_discriminator if count == "pixel" else patch_discriminator
    theirs = with_drawn_weights(make(channels, norm=norm, **({} if count == "pixel" else {"count": count})))
    generator = with_drawn_weights(resnet(norm=norm, blocks=6))
    name = "D" if channels == 6 else "D_A"
    files = {f"latest_net_{name.replace('D', 'G')}.pth": generator, f"latest_net_{name}.pth": theirs}
    state = foreign_state({Path(file): network.state_dict() for file, network in files.items()})
    expected = {"pixel": "pixel", 3: "basic"}.get(count, "n_layers")
    options = from_dict(state["options"]).model
    assert (options.netD, options.ndf) == (expected, 4)
    assert count == "pixel" or options.n_layers_D == count
    x = pictures(channels, 100)
    with torch.no_grad():
        torch.testing.assert_close(ours(state, name)(x), theirs.double()(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [resnet, unet])
def test_through_a_file_in_float32(make: Callable[..., nn.Module], tmp_path: Path) -> None:
    theirs = with_drawn_weights(make(channels=(1, 3)))
    x = pictures(1, 256 if make is unet else 64).float()
    translator = Translator.load(save(theirs, tmp_path / "latest_net_G.pth"), device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(translator(x), theirs.eval()(x), rtol=0, atol=1e-5)
    assert (translator.direction, translator.median_size, translator.epoch) == ("AtoB", None, 0)


@pytest.mark.parametrize("wrong", ["the order of halves", "half a swap"])
def test_the_order_of_the_halves_matters(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plant: without the swap everything loads, and the pictures are wrong."""
    theirs = with_drawn_weights(unet(downs=7)).eval()
    found = foreign_weights._unet

    def without_swap(*arguments: Any) -> Any:
        right = found(*arguments)
        kept = frozenset() if wrong == "the order of halves" else right.swapped - {"ups.3.conv"}
        return right._replace(swapped=kept)

    monkeypatch.setattr(foreign_weights, "_unet", without_swap)
    network = ours(foreign_state({Path("G.pth"): theirs.state_dict()}), "G").eval()
    x = pictures(3, 128)
    with torch.no_grad():
        assert (network(x) - theirs.double()(x)).abs().max() > 1e-3


def old_files(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As before 2018: instance norms store statistics that they never used, batch norms count no batches."""
    old = OrderedDict((key, value) for key, value in state.items() if not key.endswith("num_batches_tracked"))
    if "model.1.bias" in state:
        for key in [key for key in old if key.endswith("bias") and key != "model.26.bias"]:
            place, _, number = key.removesuffix(".bias").rpartition(".")
            for name in ("running_mean", "running_var"):
                old[f"{place}.{int(number) + 1}.{name}"] = torch.full_like(old[key], 7)
    return old


def wrapped(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: OrderedDict((f"{prefix}.{key}", value) for key, value in state.items())


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize(
    "change",
    [old_files, wrapped("module"), wrapped("_orig_mod"), wrapped("module._orig_mod")],
    ids=["before 2018", "data parallel", "compiled", "both"],
)
def test_files_of_other_times_and_wrappers(norm: str, change: Callable[[Any], Any], tmp_path: Path) -> None:
    theirs = with_drawn_weights(resnet(norm=norm)).eval()
    state = change(theirs.state_dict())
    state._metadata = OrderedDict({"": {"version": 1}})  # as every state_dict has
    torch.save(state, tmp_path / "horse2zebra.pth")
    x = pictures(3, 32).float()
    with torch.no_grad():
        translator = Translator.load(tmp_path / "horse2zebra.pth", device="cpu")
        torch.testing.assert_close(translator(x), theirs(x), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CycleGAN of 1 and 3 channels at two epochs."""
    place = tmp_path_factory.mktemp("theirs")
    for seed, epoch in enumerate(("latest", "5")):
        for name, channels in (("A", (1, 3)), ("B", (3, 1))):
            generator = resnet(blocks=6, channels=channels, dropout=True)
            discriminator = patch_discriminator(channels[1], ndf=2)
            save(with_drawn_weights(generator, 10 * seed + channels[0]), place / f"{epoch}_net_G_{name}.pth")
            save(with_drawn_weights(discriminator, seed), place / f"{epoch}_net_D_{name}.pth")
    return place


def test_a_folder_is_one_training(folder: Path) -> None:
    state, path = read_pretrained(folder, discriminators=True)
    assert path.name == "latest_net_G_A.pth"
    assert state["networks"].keys() == {"G_A", "G_B", "D_A", "D_B"}
    options = from_dict(state["options"])
    model = options.model
    assert (model.model, model.input_nc, model.output_nc, model.dropout) == ("cycle_gan", 1, 3, True)
    for name in state["networks"]:
        assert ours(state, name)
    outputs = {}
    for direction, channels in (("AtoB", 1), ("BtoA", 3)):
        for epoch in ("last", 5):
            translator = Translator.load(folder, direction=direction, epoch=epoch, device="cpu")
            outputs[direction, epoch] = translator(pictures(channels, 16).float())
        assert outputs[direction, "last"].shape[1] == 4 - channels
        assert not torch.equal(outputs[direction, "last"], outputs[direction, 5])


def test_one_file_of_a_folder_knows_its_direction(folder: Path) -> None:
    back = Translator.load(folder / "latest_net_G_B.pth", device="cpu")
    assert (back.direction, back.input_nc, back.options.model.model) == ("BtoA", 3, "cycle_gan")
    x = pictures(3, 16).float()
    assert torch.equal(back(x), Translator.load(folder, direction="BtoA", device="cpu")(x))
    with pytest.raises(UserError, match=r"latest_net_G_B.pth translates BtoA only"):
        Translator.load(folder / "latest_net_G_B.pth", direction="AtoB")


def test_the_direction_of_a_lone_generator_is_asked(tmp_path: Path) -> None:
    path = save(with_drawn_weights(resnet(channels=(1, 3))), tmp_path / "latest_net_G.pth")
    for direction in ("AtoB", "BtoA"):
        translator = Translator.load(path, direction=direction, device="cpu")
        assert (translator.direction, translator.input_nc) == (direction, 1)


def changed(network: nn.Module, **changes: Any) -> dict[str, Any]:
    """The state_dict with entries replaced, or left out where the new value is None."""
    state = network.state_dict() | {key.replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (patch_discriminator().state_dict(), "is a discriminator, not a generator"),
        (pixel_discriminator().state_dict(), "is a discriminator, not a generator"),
        (changed(resnet(), model__7__filt=torch.zeros(8, 1, 3, 3)),
         r"is an anti-aliased generator \(model.7.filt\), and these are not supported"),
        (resnet(blocks=5).state_dict(), "is a ResNet of 5 blocks, and only 6 and 9 are supported"),
        (unet(downs=5).state_dict(), "is a U-Net of 5 down convolutions, and only 7 and 8 are supported"),
        ({"fc.weight": torch.zeros(2)}, "no network of a known layout: 1 tensors, the first is fc.weight"),
        ({"state_dict": {"a": torch.zeros(2)}}, "holds 'state_dict', a dict, not the weights of one network"),
        ({1: torch.zeros(2)}, "holds 1, a Tensor, not the weights of one network"),
        ({"epoch": 3}, "holds 'epoch', a int, not the weights of one network"),
        ({}, "is empty, not the weights of one network"),
        (changed(resnet(), model__4__weight=None), r"model.4.weight is missing"),
        (changed(resnet(norm="batch"), model__5__running_mean=None), r"model.5.running_mean is missing"),
        (changed(resnet(), model__2__weight=torch.ones(4)), r"model.2.running_mean is missing"),
        (changed(resnet(), model__30__weight=torch.ones(4)), r"model.30.weight has no place in it"),
        (changed(resnet(), model__1__weight=torch.ones(4)), r"model.1.weight is no convolution"),
        (changed(resnet(), model__26__weight=torch.ones(3, 4, 3, 3)),
         r"model.26.weight is \[3, 4, 3, 3\] instead of \[3, 4, 7, 7\]"),
        (changed(unet(), **{"model.model.1.model.3.model.5.weight": torch.ones(16, 8, 4, 4)}),
         r"is \[16, 8, 4, 4\] instead of \[32, 8, 4, 4\]"),
        (changed(resnet(), model__1__bias=torch.tensor([0, 1, float("inf"), 0])), "stem.conv.bias: 1 of 4 values"),
        ({f"model.{n}.conv_block.1.weight": torch.ones(2, 2, 3, 3) for n in range(9, 18)},
         "a ResNet whose blocks are model.9 to model.17"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_no_generator_that_we_know(state: Any, said: str, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "latest_net_G.pth")
    with pytest.raises(UserError, match=said) as refusal:
        Translator.load(tmp_path / "latest_net_G.pth", device="cpu")
    assert len(str(refusal.value)) <= 300 and "latest_net_G.pth" in str(refusal.value)


class Harm:
    """A pickle that would make a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_hostile_files(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "latest_net_G.pth"
    torch.save({"model.1.weight": Harm(marker)}, path)
    with pytest.raises(UserError, match="not a plain-tensor checkpoint, refused: names "):
        Translator.load(path, device="cpu")
    many = {f"model.{2 + 3 * n}.weight": torch.zeros(1, 1, 1, 1) for n in range(300)}
    torch.save({"model.0.weight": torch.zeros(1, 1, 4, 4), **many}, tmp_path / "latest_net_D.pth")
    save(resnet(), tmp_path / "latest_net_G.pth")
    with pytest.raises(UserError, match="a discriminator of 301 convolutions"):
        read_pretrained(tmp_path, discriminators=True)
    path.write_bytes(b"<!doctype html><title>Not found</title>")
    with pytest.raises(UserError, match="HTML"):
        Translator.load(path, device="cpu")
    assert not marker.exists()


@pytest.mark.parametrize("is_new", [True, False], ids=["zip", "before torch 1.6"])
def test_bits_and_cuts_never_end_in_another_error(is_new: bool, tmp_path: Path) -> None:
    path = tmp_path / "latest_net_G.pth"
    torch.save(resnet(blocks=6, ngf=1).state_dict(), path, _use_new_zipfile_serialization=is_new)
    data, draws = path.read_bytes(), np.random.default_rng(1)
    for _ in range(100):
        spoiled = bytearray(data)
        if draws.random() < 0.3:
            del spoiled[draws.integers(len(data)) :]
        else:
            place = draws.choice([draws.integers(len(data)), draws.integers(5000), -draws.integers(1, 5000)])
            spoiled[place] = draws.integers(256)
        path.write_bytes(spoiled)
        try:
            Translator.load(path, device="cpu")
        except UserError as error:
            assert len(str(error)) <= 300


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_the_format_before_torch_1_6(norm: str, tmp_path: Path) -> None:
    """In which the published weights are."""
    theirs = with_drawn_weights(resnet(blocks=6, norm=norm)).eval()
    path = tmp_path / "latest_net_G.pth"
    torch.save(old_files(theirs.state_dict()), path, _use_new_zipfile_serialization=False)
    x = pictures(3, 16).float()
    with torch.no_grad():
        torch.testing.assert_close(Translator.load(path, device="cpu")(x), theirs(x), rtol=0, atol=1e-5)
    data = path.read_bytes()
    for length in (0, 10, 24, 1000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(UserError):
            Translator.load(path, device="cpu")


def test_storages_of_the_old_format(tmp_path: Path) -> None:
    path, shared = tmp_path / "x.pth", torch.arange(12.0)
    content = {
        "a": shared[:6].view(2, 3),
        "b": shared.view(3, 4).t(),
        "c": torch.empty(0),
        "d": torch.ones(2).half(),
    }
    torch.save(content, path, _use_new_zipfile_serialization=False)
    read = read_zip_pickle(path)
    assert all(
        torch.equal(read[key], content[key]) and read[key].dtype == content[key].dtype for key in content
    )
    data = path.read_bytes()
    for wrong in (
        data.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"),
        data.replace(b"\x00\x00\x00protocol", b"\x00\x00\x7fprotocol"),  # a text longer than the file
        data.replace(b"K\x0cN", b"J\xff\xff\xff\x7fN"),  # 2**31 - 1 elements in a storage of 12
        data.replace(b"K\x0cN", b"J\xff\xff\xff\xffN"),
        data.replace(b"K\x0cN", b"K\x0bN"),
        data + b"more",
    ):
        path.write_bytes(wrong)
        assert wrong != data
        with pytest.raises(UserError):
            read_zip_pickle(path)


class Tensor03:
    """Is pickled as torch 0.3 did it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor, (Storage03(), 0, (2, 3), (3, 1))


class Storage03:
    """Six numbers, which the pickle names and does not hold."""


class Pickler03(pickle.Pickler):
    def persistent_id(self, value: object) -> Any:
        return ("storage", torch.FloatStorage, "7", "cpu", 6, None) if isinstance(value, Storage03) else None


def test_tensors_of_torch_0_3(tmp_path: Path) -> None:
    content = io.BytesIO()
    Pickler03(content, 2).dump({"w": Tensor03()})
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    before = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, machine)]
    storage = (6).to_bytes(8, "little") + np.arange(6, dtype="<f4").tobytes()
    (tmp_path / "x.pth").write_bytes(b"".join([*before, content.getvalue(), pickle.dumps(["7"], 2), storage]))
    assert torch.equal(read_zip_pickle(tmp_path / "x.pth")["w"], torch.arange(6.0).view(2, 3))


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    save(resnet(), tmp_path / "latest_net_G_A.pth")
    save(resnet(ngf=2), tmp_path / "latest_net_G_B.pth")
    with pytest.raises(
        UserError, match=r"latest_net_G_B.pth: its ngf is 2, and that of latest_net_G_A.pth is 4"
    ):
        Translator.load(tmp_path, device="cpu")
    with pytest.raises(
        UserError, match=r"holds no 7_net_G.pth, _G_A.pth or _G_B.pth \(there are: latest_net_G_A.pth"
    ):
        Translator.load(tmp_path, epoch=7, device="cpu")
    save(resnet(), tmp_path / "latest_net_G.pth")
    with pytest.raises(UserError, match=r"holds latest_net_G.pth beside latest_net_G_A.pth"):
        Translator.load(tmp_path, device="cpu")
    for name in ("latest_net_G_B.pth", "latest_net_G_A.pth"):
        (tmp_path / name).unlink()
    save(patch_discriminator(6, norm="batch"), tmp_path / "latest_net_D.pth")
    assert Translator.load(tmp_path, device="cpu").direction == "AtoB"  # which needs no discriminator
    with pytest.raises(
        UserError, match=r"latest_net_D.pth: its norm is batch, and that of latest_net_G.pth is instance"
    ):
        read_pretrained(tmp_path, discriminators=True)
    with pytest.raises(UserError, match="is a discriminator"):
        Translator.load(tmp_path / "latest_net_D.pth")


def test_our_runs_are_still_ours(tmp_path: Path) -> None:
    run = untrained_run(tmp_path)
    save(resnet(), run / "latest_net_G.pth")
    assert Translator.load(run, device="cpu").options.model.netG == "resnet_6blocks"
