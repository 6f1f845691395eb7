"""`python -m gan.export`: every format against the run, at many sizes; what others find in the files; refusals."""

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
import torch
from evaluate_support import evaluate
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from training_support import ROOT, TINY, Outcome, call, train, tree, untrained_run, write_aligned

from gan import export_formats, export_hub
from gan.export_graph import export_graph
from gan.generator_file import write_generator
from gan.translate import Translator

RUNS = {
    "resnet": ["--norm", "nc_ms", "--input_nc", 1, "--lambda_identity", 0, "--value_range_A", "10,200"],
    "unet": ["--model", "pix2pix", "--netG", "unet_128", "--norm", "instance", "--crop_size=128", "--load_size=128"],
}  # fmt: skip
SIZES = {"A": (60.0, 40.0), "B": (20.0, 30.0)}
Run = Callable[[Tensor], tuple[Tensor, Tensor]]


@pytest.fixture(scope="module", params=RUNS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_run(tmp_path_factory.mktemp("runs"), *RUNS[request.param], sizes=SIZES)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose graph is made sooner."""
    return untrained_run(
        tmp_path_factory.mktemp("resnet"), "--norm", "none", "--input_nc", 1, "--lambda_identity", 0
    )


@pytest.fixture(scope="module")
def ort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stands for the npm package: no browser looks at it here."""
    folder = tmp_path_factory.mktemp("npm") / "dist"
    folder.mkdir()
    for name in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"):
        (folder / name).write_text(name)
    return folder.parent


def export(run: Path, form: str, output: Path, *more: object) -> Outcome:
    return call("gan.export", run, "--format", form, "--output", output, *more)


@pytest.fixture(scope="module")
def exported(run: Path, ort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every format of a run, each named after it."""
    folder = tmp_path_factory.mktemp("exports")
    made: list[torch.export.ExportedProgram] = []

    def once(network: nn.Module, input_nc: int) -> torch.export.ExportedProgram:
        if not made:  # three formats hold the same graph, and making it takes seconds
            made.append(export_graph(network, input_nc))
        return made[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_formats, "export_graph", once)
        for form in ("safetensors", "pt2", "onnx", "hub", "web"):
            if form == "web":
                patch.setattr(
                    export_formats, "write_onnx", lambda *given: copyfile(folder / "onnx", given[1])
                )
            done = export(run, form, folder / form, *(("--ort", ort) if form == "web" else ()))
            assert done.code == 0, done.err
            assert done.err == ""
            *compared, written = done.out.splitlines()
            assert len(compared) == 2 and written.startswith("written AtoB (epoch 3)")
            assert all(float(line.split()[-1]) <= 1e-4 for line in compared)
    return folder


def onnx_session(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def graph(form: str, folder: Path) -> Run:
    if form == "pt2":
        with (folder / form).open("rb") as file:
            return torch.export.load(file).module()
    session = onnx_session(folder / "web" / "model.onnx" if form == "web" else folder / form)
    return lambda image: tuple(map(torch.from_numpy, session.run(None, {"image": image.numpy()})))


@pytest.mark.parametrize("form", ["onnx", "pt2", "web"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_graph_takes_what_the_run_takes(run: Path, exported: Path, form: str) -> None:
    """Pictures of any size and number, as small as 2x2, are padded and cropped as the Translator does."""
    translator, translate = Translator.load(run, device="cpu"), graph(form, exported)
    side = translator.network.size_multiple
    sizes = [(1, side, 2 * side), (2, side + 3, side + 1), (3, 2, 2), (1, 5, 3), (1, 2 * side - 1, 9)]
    for count, height, width in sizes:
        draws = torch.Generator().manual_seed(height)
        shape = (count, translator.input_nc, height, width)
        image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draws)
        pictures, values = translate(image)
        expected = (translator(image.float() / 127.5 - 1) + 1) / 2
        assert pictures.dtype == torch.uint8 and values.dtype == torch.float32
        assert pictures.shape == values.shape == (count, 3, height, width)
        torch.testing.assert_close(values, expected, atol=5e-5, rtol=0)
        assert (pictures - 255 * expected).abs().max() <= 0.51


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_the_files_say(run: Path, exported: Path) -> None:
    session = onnx_session(exported / "onnx")
    metadata: dict[str, str] = session.get_modelmeta().custom_metadata_map
    translator = Translator.load(run, device="cpu")
    options = json.loads(metadata["options"])
    assert options["norm"] == translator.options.model.norm and "dataroot" not in options
    assert options["value_range_A"] == translator.options.data.value_range_A
    assert (metadata["direction"], metadata["step"], metadata["epoch"]) == ("AtoB", "6", "3")
    assert tuple(json.loads(metadata["trained_scale"])) == translator.trained_scale != (1, 1)
    assert json.loads(metadata["value_range"])["values"] == [0, 1]
    assert metadata["size_multiple"] == str(translator.network.size_multiple)
    extra: dict[str, str] = dict.fromkeys(metadata, "")
    with (exported / "pt2").open("rb") as file:
        torch.export.load(file, extra_files=extra)
    assert extra == metadata
    [image], [pictures, values] = session.get_inputs(), session.get_outputs()
    channels = translator.input_nc
    assert (image.name, image.shape) == ("image", ["batch", channels, "height", "width"])
    for output in (pictures, values):
        assert output.shape == ["batch", 3, "height", "width"]
    assert (pictures.name, pictures.type, values.name) == ("translation", "tensor(uint8)", "values")


def test_no_file_tells_where_it_was_made(exported: Path, run: Path) -> None:
    for name, content in tree(exported).items():
        for place in (ROOT, run.parent, Path(sys.prefix)):
            assert str(place).encode() not in content, f"{name} holds {place}"


@pytest.mark.parametrize("run", ["unet"], indirect=True)
def test_pt2_needs_none_of_our_code(exported: Path, run: Path, tmp_path: Path) -> None:
    script = (
        "import sys, torch; graph = torch.export.load(open(sys.argv[1], 'rb')).module();"
        "print(*graph(torch.zeros(1, int(sys.argv[2]), 9, 7, dtype=torch.uint8))[0].shape);"
        "print(*{'gan', 'models', 'cuda_ops'} & set(sys.modules))"
    )
    channels = Translator.load(run, device="cpu").input_nc
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(exported / "pt2"), str(channels)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "1 3 9 7\n\n"


def test_hub_as_others_read_it(exported: Path, run: Path) -> None:
    """The lines of the card that need no run, executed as they stand there."""
    card = (exported / "hub" / "README.md").read_text()
    _, code = re.findall(r"```python\n(.*?)```", card, re.S)
    names: dict[str, Any] = {}
    before = Path.cwd()
    try:
        os.chdir(exported / "hub")
        exec(code, names)
    finally:
        os.chdir(before)
    network: nn.Module = names["network"]
    translator = Translator.load(run, device="cpu")
    side = max(translator.network.size_multiple, translator.network.min_size)
    x = torch.rand(1, translator.input_nc, side, side) * 2 - 1
    with torch.no_grad():
        assert torch.equal(network(x), translator(x))
    again = Translator.load(exported / "hub", device="cpu")
    assert torch.equal(again(x), translator(x)) and again.trained_scale == translator.trained_scale
    assert "not evaluated" in card and f"by {translator.trained_scale[0]:.3g} across" in card
    assert (
        load_file(exported / "hub" / "model.safetensors").keys() == load_file(exported / "safetensors").keys()
    )


def test_the_card_of_a_trained_run(tmp_path: Path, nothing_from_outside: None) -> None:
    """Fingerprint as in the plan, the newest samples, the figures of the report with their protocol."""
    data = write_aligned(tmp_path / "data")
    flags = [
        "--dataroot",
        data,
        "--name",
        "r",
        "--checkpoints_dir",
        tmp_path,
        *TINY,
        "--model",
        "pix2pix",
        "--n_epochs",
        1,
    ]
    trained = train(*flags)
    assert trained.code == 0, trained.err
    assert export(tmp_path / "r", "hub", tmp_path / "before").code == 0
    card = (tmp_path / "before" / "README.md").read_text()
    assert "to choose a checkpoint and not to quote" in card and "| val_l1 | 0." in card
    [fingerprint] = set(re.findall(r"\d+ files, sha256 \w+", trained.out + trained.err)) or {""}
    assert fingerprint in card
    report = evaluate(runs=tmp_path / "r", metrics="psnr,l1")
    assert export(tmp_path / "r", "hub", tmp_path / "after").code == 0
    card = (tmp_path / "after" / "README.md").read_text()
    assert f"Protocol `{report['protocol']['id']}`" in card and "not to quote" not in card
    for name, value in report["rows"][0]["values"].items():
        assert f"| {name} | {value:.4g} | 3 / 3 |" in card
    [newest] = sorted((tmp_path / "r" / "samples").glob("*/grid.png"))[-1:]
    assert (tmp_path / "after" / "samples.png").read_bytes() == newest.read_bytes()
    assert "](samples.png)" in card and str(tmp_path) not in card
    Image.open(tmp_path / "after" / "samples.png").verify()


def test_both_directions_and_the_name_of_a_run(resnet: Path, tmp_path: Path) -> None:
    done = call(
        "gan.export", "r", "--checkpoints_dir", resnet.parent, "--direction", "BtoA", "--format", "safetensors",
        "--output", tmp_path / "new" / "b.safetensors", "--epoch", "3",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert Translator.load(tmp_path / "new" / "b.safetensors", device="cpu").direction == "BtoA"
    again = export(tmp_path / "new" / "b.safetensors", "hub", tmp_path / "hub")  # a file is as good as a run
    assert again.code == 0, again.err
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "Data: not known" in card and "not known by how much" in card


def test_the_average_or_the_trained_weights(tmp_path: Path) -> None:
    run = untrained_run(tmp_path / "runs", "--ema", "0.9")
    for which, position in (("ema", "(epoch 3, ema)"), ("raw", "(epoch 3)")):
        done = export(run, "safetensors", tmp_path / which, "--which", which)
        assert done.code == 0 and position in done.out


# --- refused


def spoiled(network: nn.Module) -> nn.Module:
    network = copy.deepcopy(network)
    with torch.no_grad():
        network.get_parameter("out.bias").add_(1e-3)
    return network


@pytest.mark.parametrize("form", ["safetensors", "hub", "pt2"])
def test_an_export_that_differs_leaves_nothing(
    resnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    def write(translator: Translator, path: Path) -> None:
        write_generator(replace(translator, network=spoiled(translator.network)), path)

    monkeypatch.setattr(export_formats, "write_generator", write)
    monkeypatch.setattr(export_hub, "write_generator", write)
    monkeypatch.setattr(
        export_formats, "export_graph", lambda network, nc: export_graph(spoiled(network), nc)
    )
    before = tree(resnet)
    done = export(resnet, form, tmp_path / "new" / "out")
    assert done.code == 1 and "differs from the run by" in done.error and "at 1 x 1 x 64 x 128" in done.error
    assert list(tmp_path.iterdir()) == [] and tree(resnet) == before


@pytest.mark.parametrize(
    ("form", "package"), [("onnx", "onnxscript"), ("onnx", "onnxruntime"), ("web", "onnx")]
)
def test_a_missing_package_is_named(
    resnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    done = export(resnet, form, tmp_path / "out")
    line = f"error: --format {form}: needs {package}, not installed (pip install -r requirements-export.txt)"
    assert (done.code, done.error) == (2, line)
    assert list(tmp_path.iterdir()) == []


def test_a_page_cannot_read_values_beyond_8_bits(tmp_path: Path) -> None:
    run = untrained_run(tmp_path, "--value_range_A", "0,4095")
    done = export(run, "web", tmp_path / "page")
    assert (
        done.code == 2
        and "the run's --value_range 0,4095 is of other files than a browser reads" in done.error
    )
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize("form", ["safetensors", "hub"])
def test_nothing_is_overwritten(resnet: Path, tmp_path: Path, form: str) -> None:
    (tmp_path / "hub").mkdir()
    for path in (tmp_path / "hub" / "mine.txt", tmp_path / "safetensors"):
        path.write_text("mine")
    before = tree(tmp_path)
    done = export(resnet, form, tmp_path / form)
    assert done.code == 2 and "nothing is overwritten" in done.error
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "RUN: is required"),
        (["r"], "--format: is required (allowed: safetensors, onnx, pt2, hub, web)"),
        (["r", "--format", "tflite"], "--format: is tflite (allowed: hub, onnx, pt2, safetensors, web)"),
        (["r", "--format", "pt2"], "--output: is required"),
        (["r", "--format", "pt2", "--output", "o", "--ort", "x"], "--ort: does not go with --format pt2"),
        (["nowhere", "--format", "pt2", "--output", "o"], "nowhere: no such run"),
        (["r", "--format", "pt2", "--output", "o", "--epoch", "best"], "has no best checkpoint"),
        (
            ["r", "--format", "web", "--output", "o", "--ort", "x"],
            "--ort x: holds no ort.wasm.bundle.min.mjs",
        ),
    ],
)
def test_one_line_for_what_is_wrong(
    resnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call("gan.export", *arguments, "--checkpoints_dir", resnet.parent)
    assert done.code == 2 and said in done.error
    assert list(tmp_path.iterdir()) == []


def test_the_page_without_npm_or_network(
    resnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    monkeypatch.setenv("PATH", str(bin_folder))
    done = export(resnet, "web", tmp_path / "out")
    assert done.code == 2 and "needs npm" in done.error and "--ort" in done.error
    npm = bin_folder / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error network: nothing answers' >&2\nexit 1\n")
    npm.chmod(0o755)
    done = export(resnet, "web", tmp_path / "out")
    assert done.code == 2 and "npm error network: nothing answers" in done.error
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_help_comes_without_torch() -> None:
    script = "import gan.export, sys; print({'torch', 'onnx', 'numpy'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
