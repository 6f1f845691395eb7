"""`python -m evaluate FILE --dataroot ...`: weights from elsewhere, measured beside runs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluate_support import aligned_data, evaluate, make_run
from foreign_support import resnet, save, with_drawn_weights
from PIL import Image
from training_support import ROOT, environment, tree

from datasets.errors import UserError
from evaluate import pixels
from gan.generator_file import write_generator
from gan.translate import Translator


@pytest.fixture(autouse=True)
def elsewhere(nothing_from_outside: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs in `data`, the run `p2p` of 32 pixels, that run as the file `p2p.safetensors`, and foreign files."""
    folder = tmp_path_factory.mktemp("pretrained")
    data = aligned_data(folder / "data")
    run = make_run(folder, data, "p2p", "pix2pix")
    write_generator(Translator.load(run, device="cpu"), folder / "p2p.safetensors")
    (folder / "cyc").mkdir()
    for seed, name in enumerate(("G_A", "G_B")):
        save(with_drawn_weights(resnet(ngf=2, blocks=6), seed), folder / "cyc" / f"latest_net_{name}.pth")
    save(with_drawn_weights(resnet(ngf=2, blocks=6)), folder / "latest_net_G.pth")
    return folder


def measured(place: Path, source: str | list[str], **flags: Any) -> dict[str, Any]:
    names = [source] if isinstance(source, str) else source
    return evaluate(
        **{"runs": [place / name for name in names], "dataroot": place / "data", "metrics": "psnr,l1"} | flags
    )


def test_a_foreign_file(place: Path, tmp_path: Path) -> None:
    before = tree(place)
    report = measured(place, "latest_net_G.pth", size=32, output=tmp_path / "out")
    (row,) = report["rows"]
    assert (row["direction"], row["n_fake"], report["protocol"]["id"]) == ("AtoB", 3, "i2i-1/32/eval")
    translator = Translator.load(place / "latest_net_G.pth", device="cpu")
    values = []
    for path in sorted((place / "data" / "test").iterdir()):
        whole = np.asarray(Image.open(path).convert("RGB"))
        x = torch.from_numpy(whole[:, :32].astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        fake = ((translator(x)[0].permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
        values.append(pixels.psnr(fake, whole[:, 32:]))
    assert row["values"]["psnr"] == pytest.approx(np.mean(values), rel=1e-6)
    assert tree(place) == before  # nothing is written beside the weights
    again = measured(place, "latest_net_G.pth", size=32, direction="BtoA", output=tmp_path / "back")
    assert again["rows"][0]["direction"] == "BtoA" and again["rows"][0]["values"] != row["values"]


def test_the_default_size_is_256(place: Path) -> None:
    report = measured(place, "latest_net_G.pth", num_test=1)
    assert report["protocol"]["id"] == "i2i-1/256/eval/first1"
    (made,) = Path("results/evaluation").glob("latest_net_G.pth-*/epoch-0-step-0/AtoB/*.png")
    assert Image.open(made).size == (256, 256)
    assert (made.parents[2] / "first-1" / "report.json").exists()


def test_an_exported_file_beside_its_run(place: Path) -> None:
    report = measured(place, ["p2p", "p2p.safetensors"])
    run, file = report["rows"]
    assert run["values"] == file["values"] and report["protocol"]["id"] == "i2i-1/32/eval"


def test_a_folder_in_the_directions_that_it_knows(place: Path) -> None:
    both = measured(place, "cyc", size=32)
    assert [row["direction"] for row in both["rows"]] == ["AtoB", "BtoA"]
    back = measured(place, "cyc/latest_net_G_B.pth", size=32)
    assert back["rows"][0]["values"] == both["rows"][1]["values"] and len(back["rows"]) == 1


def test_a_file_that_changes_is_translated_anew(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    values = []
    for seed in (1, 2):
        save(with_drawn_weights(resnet(ngf=2, blocks=6), seed), path)
        values.append(
            measured(tmp_path, "w.pth", dataroot=place / "data", size=32)["rows"][0]["values"]["psnr"]
        )
    assert values[0] != values[1]


@pytest.mark.parametrize(
    ("source", "flags", "said"),
    [
        (
            "latest_net_G.pth",
            {"dataroot": None},
            r"--dataroot: is missing: latest_net_G.pth does not know the data",
        ),
        (
            "p2p.safetensors",
            {"dataroot": None},
            r"--dataroot: is missing: p2p.safetensors does not know the data",
        ),
        ("p2p", {"size": 64}, "--size: is for folders and files of weights, and p2p is a run"),
        ("p2p", {"direction": "BtoA"}, "--direction: is for folders and files of weights, and p2p is a run"),
        ("cyc/latest_net_G_B.pth", {"direction": "AtoB"}, "latest_net_G_B.pth translates BtoA only"),
        ("latest_net_G.pth", {"epoch": "best"}, "is a file, not a run, and has no checkpoint best"),
        ("data/test/000.png", {}, "not a plain-tensor checkpoint"),
        ("nothing.pth", {}, "nothing.pth: no such run"),
        ("latest_net_G.pth", {"paired": True}, "--paired: is for folders, not for runs"),
    ],
)
def test_what_is_refused(place: Path, source: str, flags: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        measured(place, source, **flags)
    assert list(tmp_path.iterdir()) == []


def test_a_real_command(place: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "evaluate",
        str(place / "latest_net_G.pth"),
        "--dataroot",
        str(place / "data"),
    ]
    command += ["--size", "32", "--metrics", "psnr", "--output", "out", "--device", "cpu"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "PSNR" in done.stdout and "latest_net_G.pth" in done.stdout, done.stderr
    assert json.loads((tmp_path / "out" / "report.json").read_text())["rows"][0]["n_fake"] == 3
