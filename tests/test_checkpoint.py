"""Saving and loading a training: what is kept, which one is loaded, what may be saved."""

import argparse
import collections
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy
import pytest
import torch

from datasets.errors import UserError
from gan.checkpoint import list_checkpoints, load_checkpoint, load_file, prepare_state, save_checkpoint


def save(folder: Path, step: int, *, value: float | None = None, keep: int = 3, best: bool = False) -> Path:
    """A small checkpoint; four steps are an epoch."""
    state = {"weights": {"w": torch.full((3, 4), float(step if value is None else value))}, "step": step}
    return save_checkpoint(folder, state, step=step, epoch=step // 4, keep=keep, best=best)


def loaded_value(folder: Path, which: str | int = "last") -> float:
    state, _ = load_checkpoint(folder, which)  # type: ignore[arg-type]
    return float(state["weights"]["w"][0, 0])


def loaded_step(folder: Path) -> int:
    return int(load_checkpoint(folder)[0]["step"])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_comes_back_equal(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(2, 2))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    network[2](network[1](network[0](torch.randn(2, 3, 4, 4)))).sum().backward()
    optimizer.step()
    state = {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "numbers": [1, -1, 2**40, 2**100, 0.1, float("inf"), True, None],
        "text": "ünïcode \udcff\n",
        "nested": {"a": (1, (2.0, [3]), {}), 7: []},
        "images": [
            torch.zeros(0, 3),
            torch.arange(4, dtype=torch.uint8),
            torch.tensor(2.5, dtype=torch.bfloat16),
        ],
    }
    path = save_checkpoint(tmp_path, state, step=412, epoch=2, keep=2)
    assert path.name == "ckpt-00000412.pt"
    loaded, source = load_checkpoint(tmp_path)
    assert source == path
    assert loaded["numbers"] == state["numbers"]
    assert [type(n) for n in loaded["numbers"]] == [type(n) for n in state["numbers"]]
    assert loaded["text"] == state["text"]
    assert loaded["nested"] == state["nested"]
    for key, value in network.state_dict().items():
        assert torch.equal(loaded["network"][key], value)
        assert loaded["network"][key].dtype == value.dtype
    for mine, theirs in zip(loaded["images"], state["images"], strict=True):
        assert torch.equal(mine, theirs)
        assert mine.dtype == theirs.dtype
    fresh = torch.optim.Adam(network.parameters(), lr=0.5)
    fresh.load_state_dict(loaded["optimizer"])
    for parameter in network.parameters():
        for name, value in optimizer.state[parameter].items():
            assert torch.equal(fresh.state[parameter][name], value)
    # an independent reader
    assert torch.equal(torch.load(path, weights_only=True)["network"]["0.weight"], network[0].weight)


def test_the_sidecar_is_what_sha256sum_reads(tmp_path: Path) -> None:
    path = save(tmp_path, 412)
    save(tmp_path, 416)
    text = (tmp_path / "ckpt-00000412.pt.sha256").read_text()
    assert f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" in text
    assert f"# bytes: {path.stat().st_size}\n" in text
    assert "# epoch: 103\n" in text
    assert "# step: 412\n" in text
    if shutil.which("sha256sum") is None:
        pytest.skip("sha256sum is not installed")
    files = [name for name in names(tmp_path) if name.endswith(".sha256")]
    done = subprocess.run(
        ["sha256sum", "-c", "--strict", *files], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ckpt-00000412.pt: OK\nckpt-00000416.pt: OK\n"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    done = subprocess.run(["sha256sum", "-c", files[0]], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    for step in (4, 8, 12, 16, 20):
        save(tmp_path, step, keep=2, best=step == 8)
    kept = [f"ckpt-{step:08d}.pt{end}" for step in (8, 16, 20) for end in ("", ".sha256")]
    assert names(tmp_path) == sorted([*kept, "best.json", "latest.json"])
    assert json.loads((tmp_path / "latest.json").read_text()) == {
        "file": "ckpt-00000020.pt",
        "step": 20,
        "epoch": 5,
    }
    assert json.loads((tmp_path / "best.json").read_text()) == {
        "file": "ckpt-00000008.pt",
        "step": 8,
        "epoch": 2,
    }
    assert loaded_value(tmp_path) == 20
    assert loaded_value(tmp_path, "best") == 8
    assert loaded_value(tmp_path, 4) == 16
    with pytest.raises(UserError, match=r"no checkpoint of epoch 3 \(there are: 2, 4, 5\)"):
        load_checkpoint(tmp_path, 3)
    assert [(info.step, info.epoch) for info in list_checkpoints(tmp_path)] == [(20, 5), (16, 4), (8, 2)]
    for info in list_checkpoints(tmp_path):
        assert info.bytes == info.path.stat().st_size
        assert info.sha256 == hashlib.sha256(info.path.read_bytes()).hexdigest()
    save(tmp_path, 24, keep=1, best=True)
    assert [info.step for info in list_checkpoints(tmp_path)] == [24]


def test_newest_is_by_step_and_not_by_name_or_time(tmp_path: Path) -> None:
    for number, step in enumerate((9, 10, 99_999_999, 100_000_000)):
        path = save(tmp_path, step, keep=9)
        os.utime(path, (1000 - number, 1000 - number))  # the clock runs backwards
    assert [info.step for info in list_checkpoints(tmp_path)] == [100_000_000, 99_999_999, 10, 9]
    (tmp_path / "latest.json").unlink()
    assert loaded_step(tmp_path) == 100_000_000
    (tmp_path / "ckpt-100000000.pt").unlink()
    assert loaded_step(tmp_path) == 99_999_999
    save(tmp_path, 11, keep=2)  # resumed from further back: the later ones belong to another course
    assert [info.step for info in list_checkpoints(tmp_path)] == [11, 10]
    assert loaded_value(tmp_path) == 11


def test_saving_again_at_the_same_step(tmp_path: Path) -> None:
    save(tmp_path, 4, value=1, keep=1)
    save(tmp_path, 4, value=2, keep=1, best=True)
    assert loaded_value(tmp_path) == loaded_value(tmp_path, "best") == 2
    assert len(list_checkpoints(tmp_path)) == 1
    assert "replaces" not in (tmp_path / "ckpt-00000004.pt.sha256").read_text()


def test_a_damaged_one_is_replaced_by_saving_again(tmp_path: Path) -> None:
    path = save(tmp_path, 4, value=1)
    path.write_bytes(b"PK")
    save(tmp_path, 4, value=2)
    assert loaded_value(tmp_path) == 2


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "incomplete: {less} of {size} bytes"),
        (lambda p: p.write_bytes(b""), "incomplete: 0 of {size} bytes"),
        (lambda p: p.write_bytes(p.read_bytes() + b"x"), "wrong size: {more} of {size} bytes"),
        (lambda p: p.write_bytes(bytes([*p.read_bytes()[:-1], 1])), "checksum mismatch"),
        (lambda p: p.unlink(), "no such file"),
        (lambda p: (p.unlink(), p.mkdir()), "is a folder"),
        (lambda p: Path(f"{p}.sha256").unlink(), ".sha256 is missing"),
        (lambda p: Path(f"{p}.sha256").write_bytes(b"\xff"), "damaged"),
    ],
)
def test_a_damaged_last_one_falls_back_with_one_warning(tmp_path: Path, capsys, damage, said: str) -> None:
    save(tmp_path, 4)
    save(tmp_path, 8)
    path = save(tmp_path, 12)
    size = path.stat().st_size
    damage(path)
    assert loaded_value(tmp_path) == 8
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("warning: ")
    assert path.name in err
    assert said.format(less=size - 1, more=size + 1, size=size) in err
    assert "ckpt-00000008.pt" in err


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b'{"file": "../x.pt"}', b'{"file": 3}', b'"x"', None]
)
def test_a_garbage_pointer_falls_back(tmp_path: Path, capsys, content: bytes | None) -> None:
    save(tmp_path, 4)
    save(tmp_path, 8)
    pointer = tmp_path / "latest.json"
    pointer.unlink() if content is None else pointer.write_bytes(content)
    assert loaded_value(tmp_path) == 8
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert ("latest.json is missing" if content is None else "latest.json is damaged") in err


def test_a_pointer_to_a_missing_file_falls_back(tmp_path: Path, capsys) -> None:
    save(tmp_path, 4)
    (tmp_path / "latest.json").write_text('{"file": "ckpt-00000099.pt", "step": 99, "epoch": 1}')
    assert loaded_value(tmp_path) == 4
    assert "ckpt-00000099.pt no such file" in capsys.readouterr().err


def test_an_explicit_choice_never_falls_back(tmp_path: Path) -> None:
    save(tmp_path, 4)
    path = save(tmp_path, 8, best=True)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="incomplete: 100 of"):
        load_checkpoint(tmp_path, "best")
    with pytest.raises(UserError, match="incomplete: 100 of"):
        load_checkpoint(tmp_path, 2)
    with pytest.raises(UserError, match="incomplete: 100 of"):
        load_file(path)
    (tmp_path / "best.json").write_text("{")
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
    save(tmp_path, 4).write_bytes(b"")
    with pytest.raises(UserError, match=r"no valid checkpoint: .*incomplete: 0 of"):
        load_checkpoint(tmp_path)
    assert capsys.readouterr().err == ""


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
    ],
)
def test_only_plain_types_are_saved(tmp_path: Path, value: object, said: str) -> None:
    with pytest.raises(TypeError, match=rf"state\['a'\]\[1\]\['b'\]: .*{said}"):
        save_checkpoint(tmp_path, {"a": [0, {"b": value}]}, step=1, epoch=0, keep=1)
    assert names(tmp_path) == []


def test_keys_are_text_or_numbers() -> None:
    with pytest.raises(TypeError, match="key of type tuple"):
        prepare_state({"a": {(1, 2): 3}})


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="LONG4"):
        save_checkpoint(tmp_path, {"number": 2**3000}, step=1, epoch=0, keep=1)
    assert names(tmp_path) == []


def test_a_view_does_not_drag_its_whole_tensor_along(tmp_path: Path) -> None:
    whole = torch.arange(1_000_000.0).reshape(1000, 1000)
    views = {"row": whole[3], "column": whole[:, 3], "wide": whole[0, :1].expand(1000)}
    path = save_checkpoint(tmp_path, views, step=1, epoch=0, keep=1)
    assert path.stat().st_size < 20_000
    state = load_file(path)
    for name, view in views.items():
        assert torch.equal(state[name], view)


def test_gradients_are_not_asked_for_after_loading(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    state = load_file(save_checkpoint(tmp_path, {"p": parameter}, step=1, epoch=0, keep=1))
    assert type(state["p"]) is torch.Tensor
    assert not state["p"].requires_grad


@pytest.mark.parametrize("wrong", [{"keep": 0}, {"step": -1}, {"epoch": -1}])
def test_impossible_arguments(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        save_checkpoint(tmp_path, {}, **{"step": 1, "epoch": 0, "keep": 1, **wrong})
