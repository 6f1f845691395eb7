"""Saving and loading a training: what comes back, what is kept, which one is loaded, what may be saved."""

import argparse
import collections
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.torch
import torch
from training_support import write_first_format

import gan
from datasets.errors import UserError
from gan.checkpoint import (
    checkpoint_hash,
    list_checkpoints,
    load_checkpoint,
    load_file,
    save_checkpoint,
)


def save(folder: Path, step: int, *, value: float | None = None, keep: int = 3, best: bool = False) -> Path:
    """A small checkpoint; four steps are an epoch."""
    state = {"w": torch.full((3, 4), float(step if value is None else value))}
    return save_checkpoint(folder, state, step=step, epoch=step // 4, keep=keep, best=best)


def loaded(folder: Path, which: Any = "last") -> float:
    return float(load_checkpoint(folder, which)[0]["w"][0, 0])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- what comes back

VALUES = [
    1, -1, 2**40, 2**100, 0.1, -0.0, 5e-324, math.inf, -math.inf, True, False, None, "", "ünïcode \udcff\n\0",
    "long \udcff" * 5000, [], (), {}, (1, (2.0, [3]), [(4,)]), {7: {-3: "x"}, "7": [{}]}, {"dict": {"tensor": "w"}},
]  # fmt: skip


def test_plain_values_keep_their_value_and_type(tmp_path: Path) -> None:
    state = load_file(save_checkpoint(tmp_path, {"values": VALUES, "nan": math.nan}, step=1, epoch=0, keep=1))
    assert repr(state["values"]) == repr(VALUES)  # unlike ==, tells 1 from True and 0.0 from -0.0
    assert math.isnan(state["nan"])


WHOLE = torch.arange(1_000_000.0).reshape(1000, 1000)
TENSORS = {
    "matrix": torch.randn(3, 4),
    "none": torch.zeros(0, 3),
    "number": torch.tensor(2.5, dtype=torch.bfloat16),
    "odd": torch.tensor([1, 2, 255], dtype=torch.uint8),
    "flags": torch.tensor([True, False]),
    "half": torch.randn(5).half(),
    "double": torch.randn(5, dtype=torch.float64),
    "parameter": torch.nn.Parameter(torch.randn(2)),
    "nan": torch.tensor([math.nan, -math.inf, -0.0]),
    "row": WHOLE[3],
    "column": WHOLE[:, 3],
    "expanded": WHOLE[0, :1].expand(1000),
    "ünï.code": torch.ones(1),
    **{f"int{n}": torch.ones(3, dtype=getattr(torch, f"int{n}")) for n in (8, 16, 32, 64)},
}


def test_tensors_come_back_to_the_bit(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, {"a": [TENSORS], "a.0": TENSORS}, step=1, epoch=0, keep=1)
    assert path.stat().st_size < 40_000  # no view drags its whole tensor along, nothing is stored twice
    state = load_file(path)
    independent = safetensors.torch.load_file(path)
    for name, tensor in TENSORS.items():
        found = state["a"][0][name]
        assert found is state["a.0"][name] or not tensor.numel()
        assert type(found) is torch.Tensor and not found.requires_grad
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert found.detach().contiguous().flatten().view(torch.uint8).tolist() == (
            tensor.detach().contiguous().flatten().view(torch.uint8).tolist()
        )
        if name.isascii():
            assert independent[f"a.0.{name}"].dtype == tensor.dtype
            assert independent[f"a.0.{name}"].shape == tensor.shape
    assert torch.equal(independent["a.0.column"], TENSORS["column"])


def test_strides_of_weights_and_moments_come_back(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 8, 1), torch.nn.BatchNorm2d(8))
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    network(torch.randn(2, 3, 4, 4)).square().sum().backward()
    optimizer.step()
    saved = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
    state = load_file(save_checkpoint(tmp_path, saved, step=1, epoch=0, keep=1))
    assert state["network"]["0.weight"].stride() == (27, 1, 9, 3)
    for key, value in network.state_dict().items():
        assert torch.equal(state["network"][key], value) and state["network"][key].stride() == value.stride()
    fresh = torch.optim.Adam(network.parameters(), lr=0.5)
    fresh.load_state_dict(state["optimizer"])
    for parameter in network.parameters():
        for name, value in optimizer.state[parameter].items():
            assert torch.equal(fresh.state[parameter][name], value)
            assert fresh.state[parameter][name].stride() == value.stride()


def test_a_file_describes_itself(tmp_path: Path) -> None:
    path = save(tmp_path, 412)
    assert path.name == "ckpt-00000412.safetensors"
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = header["__metadata__"]
    assert (metadata["format"], metadata["version"]) == ("2", gan.__version__)
    assert (metadata["step"], metadata["epoch"]) == ("412", "103")
    assert metadata["sha256"] == checkpoint_hash(path) != checkpoint_hash(save(tmp_path, 416))
    assert header["w"]["shape"] == [3, 4]
    changes = (Path(__file__).resolve().parents[1] / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## {gan.__version__}\n" in changes


def test_the_digest_depends_on_all_that_is_in_a_file(tmp_path: Path) -> None:
    states: list[dict[str, Any]] = [
        {"w": torch.zeros(4)}, {"v": torch.zeros(4)}, {"w": torch.zeros(2, 2)}, {"w": torch.zeros(4).int()},
        {"w": torch.ones(4)}, {"w": torch.zeros(4), "n": 1}, {"w": torch.zeros(4), "n": 1.0},
    ]  # fmt: skip
    digests = {checkpoint_hash(save_checkpoint(tmp_path, s, step=1, epoch=0, keep=1)) for s in states}
    assert len(digests) == len(states)
    again = save_checkpoint(tmp_path / "again", states[0], step=1, epoch=0, keep=1)
    assert checkpoint_hash(again) in digests


# --- what is kept


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    for step in (4, 8, 12, 16, 20):
        save(tmp_path, step, keep=2, best=step == 8)
    kept = [f"ckpt-{step:08d}.safetensors" for step in (8, 16, 20)]
    assert names(tmp_path) == sorted([*kept, "best.json", "latest.json"])
    pointers = [json.loads((tmp_path / name).read_text()) for name in ("latest.json", "best.json")]
    assert pointers == [{"file": kept[2], "step": 20, "epoch": 5}, {"file": kept[0], "step": 8, "epoch": 2}]
    assert (loaded(tmp_path), loaded(tmp_path, "best"), loaded(tmp_path, 4)) == (20, 8, 16)
    with pytest.raises(UserError, match=r"no checkpoint of epoch 3 \(there are: 2, 4, 5\)"):
        load_checkpoint(tmp_path, 3)
    assert [(info.step, info.epoch) for info in list_checkpoints(tmp_path)] == [(20, 5), (16, 4), (8, 2)]
    save(tmp_path, 24, keep=1, best=True)
    assert [info.step for info in list_checkpoints(tmp_path)] == [24]


def test_an_epoch_is_where_it_ended(tmp_path: Path) -> None:
    """Not what was saved within the next one, such as by --save_step_freq or a signal."""
    for step, epoch in ((100, 0), (200, 0), (250, 1), (300, 1), (400, 1), (500, 2), (600, 2)):
        save_checkpoint(tmp_path, {"step": step}, step=step, epoch=epoch, keep=9)
    assert [load_checkpoint(tmp_path, epoch)[0]["step"] for epoch in (1, 2)] == [250, 500]
    assert load_checkpoint(tmp_path, "last")[0]["step"] == 600


def test_newest_is_by_step_and_not_by_name_or_time(tmp_path: Path) -> None:
    for number, step in enumerate((9, 10, 99_999_999, 100_000_000)):
        path = save(tmp_path, step, keep=9)
        os.utime(path, (1000 - number, 1000 - number))  # the clock runs backwards
    assert [info.step for info in list_checkpoints(tmp_path)] == [100_000_000, 99_999_999, 10, 9]
    (tmp_path / "latest.json").unlink()
    assert load_checkpoint(tmp_path)[1].name == "ckpt-100000000.safetensors"
    (tmp_path / "ckpt-100000000.safetensors").unlink()
    assert load_checkpoint(tmp_path)[1].name == "ckpt-99999999.safetensors"
    save(tmp_path, 11, keep=2)  # resumed from further back: the later ones belong to another course
    assert [info.step for info in list_checkpoints(tmp_path)] == [11, 10]


def test_saving_again_at_the_same_step(tmp_path: Path) -> None:
    save(tmp_path, 4, value=1, keep=1).write_bytes(b"damaged")
    save(tmp_path, 4, value=2, keep=1, best=True)
    assert loaded(tmp_path) == loaded(tmp_path, "best") == 2
    assert len(list_checkpoints(tmp_path)) == 1


def test_what_a_killed_save_left_goes_with_the_next_save(tmp_path: Path) -> None:
    for step in (4, 8, 12, 16):
        save(tmp_path, step, keep=9, best=step == 12)
    (tmp_path / "latest.json").write_text('{"file": "ckpt-00000008.safetensors"}')  # 12 and 16: killed before
    for name in ("ckpt-00000002.pt.sha256", "ckpt-notes.pt.sha256"):
        (tmp_path / name).write_text("")
    save(tmp_path, 10, keep=9)
    kept = [f"ckpt-{step:08d}.safetensors" for step in (4, 8, 10, 12)]  # 12 is the best one
    assert names(tmp_path) == sorted([*kept, "best.json", "latest.json", "ckpt-notes.pt.sha256"])


# --- which one is loaded


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "incomplete: {less} of {size} bytes"),
        (lambda p: p.write_bytes(b""), "is empty (zero bytes)"),
        (lambda p: p.write_bytes(p.read_bytes() + b"x"), "wrong size: {more} of {size} bytes"),
        (lambda p: p.write_bytes(bytes([*p.read_bytes()[:-1], 1])), "checksum mismatch"),
        (lambda p: p.unlink(), "no such file"),
        (lambda p: (p.unlink(), p.mkdir()), "is a folder"),
    ],
    ids=["cut", "empty", "longer", "changed", "gone", "folder"],
)
def test_a_damaged_last_one_falls_back_with_one_warning(tmp_path: Path, capsys, damage, said: str) -> None:
    save(tmp_path, 8)
    path = save(tmp_path, 12, best=True)
    size = path.stat().st_size
    said = said.format(less=size - 1, more=size + 1, size=size)
    damage(path)
    assert loaded(tmp_path) == 8
    err = capsys.readouterr().err
    assert err.startswith("warning: ") and err.count("\n") == 1
    assert path.name in err and said in err and "ckpt-00000008.safetensors" in err
    with pytest.raises(UserError) as caught:  # an explicit choice never falls back
        load_checkpoint(tmp_path, "best")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"file": "../x.pt"}', b'{"file": 3}', b'"x"', b"[" * 4000, None],
    ids=range(9),
)
def test_a_garbage_pointer_falls_back(tmp_path: Path, capsys, content: bytes | None) -> None:
    save(tmp_path, 4)
    path = save(tmp_path, 8, best=True)
    for name in ("latest.json", "best.json"):
        pointer = tmp_path / name
        pointer.unlink() if content is None else pointer.write_bytes(content)
    assert loaded(tmp_path) == 8
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert ("latest.json no such file" if content is None else "latest.json is damaged") in err
    if content is not None:
        with pytest.raises(UserError, match=r"best\.json: is damaged"):
            load_checkpoint(tmp_path, "best")
        save(tmp_path, 12, keep=1)
        assert path.exists()  # which one was the best is not known any more, so none is deleted


def test_nothing_there(tmp_path: Path, capsys) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="no checkpoint here"):
            load_checkpoint(folder)
        with pytest.raises(UserError, match="has no best checkpoint"):
            load_checkpoint(folder, "best")
        with pytest.raises(UserError, match=r"no checkpoint of epoch 1 \(there are: none\)"):
            load_checkpoint(folder, 1)
        assert list_checkpoints(folder) == []
    path = save(tmp_path, 4)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"no valid checkpoint: .*is empty"):
        load_checkpoint(tmp_path)
    assert [(info.step, info.epoch) for info in list_checkpoints(tmp_path)] == [(4, None)]
    assert capsys.readouterr().err == ""


def test_runs_of_the_first_format(tmp_path: Path, capsys) -> None:
    """Files of the versions before 2.0 and their sidecars are listed, verified, loaded, and deleted as the new ones."""
    for step in (4, 8):
        old = write_first_format(tmp_path, {"w": torch.full((3, 4), float(step))}, step=step, epoch=step // 4)
    assert [(info.step, info.epoch) for info in list_checkpoints(tmp_path)] == [(8, 2), (4, 1)]
    assert (loaded(tmp_path), loaded(tmp_path, 1), capsys.readouterr().err) == (8, 4, "")
    assert checkpoint_hash(old) in old.with_name(old.name + ".sha256").read_text()
    data = old.read_bytes()
    old.write_bytes(data[:-1] + b"\1")
    assert loaded(tmp_path) == 4
    assert f"{old.name} checksum mismatch" in capsys.readouterr().err
    sidecar = old.with_name(old.name + ".sha256")
    sidecar.write_text(f"{'0' * 64}  {old.name}\n# replaces: {checkpoint_hash(old)} 3\n")
    with pytest.raises(UserError, match="checksum mismatch"):
        load_file(old)
    old.write_bytes(data)
    sidecar.unlink()  # then the checksums in the zip file itself count
    assert loaded(tmp_path) == 8
    save(tmp_path, 12, keep=2)
    assert [info.path.suffix for info in list_checkpoints(tmp_path)] == [".safetensors", ".pt"]
    save(tmp_path, 16, keep=2)
    assert not list(tmp_path.glob("*.pt*"))


# --- what may be saved


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (argparse.Namespace(a=1), "argparse.Namespace"),
        (Path("x"), "pathlib"),
        (numpy.float64(1.0), "numpy.float64"),
        (numpy.zeros(2), "numpy.ndarray"),
        (collections.defaultdict(int), "collections.defaultdict"),
        ({1, 2}, "builtins.set"),
        (b"bytes", "builtins.bytes"),
        (torch.Size([1]), "torch.Size"),
        (torch.float32, "torch.dtype"),
        (torch.zeros(2).to_sparse(), "sparse"),
        (torch.zeros(2, device="meta"), "meta"),
        (torch.zeros(2, dtype=torch.complex64), "complex"),
        ({(1, 2): 3}, r"key \(1, 2\)"),
        ({True: 3}, "key True"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_only_plain_types_are_saved(tmp_path: Path, value: object, said: str) -> None:
    with pytest.raises(TypeError, match=rf"^a\.1\.b: .*{said}.* cannot be saved"):
        save_checkpoint(tmp_path, {"a": [0, {"b": value}]}, step=1, epoch=0, keep=1)
    assert names(tmp_path) == []


@pytest.mark.parametrize("value", [10**5000, [0] * 2_000_000], ids=["digits", "list"])
def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path, value: object) -> None:
    with pytest.raises((ValueError, UserError), match=r"at most 2,097,152|limit"):
        save_checkpoint(tmp_path, {"number": value}, step=1, epoch=0, keep=1)
    assert names(tmp_path) == []
