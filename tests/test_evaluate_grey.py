"""Networks with one output channel: their outputs, and the real pictures too, are compared in grey."""

from pathlib import Path

import numpy as np
import pytest
from evaluate_support import aligned_data, asked, evaluate, make_run, write_pictures
from PIL import Image

from datasets.errors import UserError
from evaluate import pixels
from evaluate.comparisons import EvaluatedRun
from gan.run import RunFolder

pytestmark = pytest.mark.usefixtures("nothing_from_outside")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return aligned_data(tmp_path_factory.mktemp("data"))


def test_grey_outputs_are_compared_with_grey_pictures(data: Path, tmp_path: Path) -> None:
    """Reals go through the conversion that training used, and the id says so: it is no number of the RGB kind."""
    run = make_run(tmp_path, data, "grey", "pix2pix", output_nc=1)
    colour = make_run(tmp_path, data, "colour", "pix2pix")
    report = evaluate(runs=run, metrics="l1")
    assert report["protocol"]["id"] == "i2i-1/32/eval/L"
    made = sorted((run / "evaluation").glob("epoch-*/AtoB/*.png"))
    outputs = [np.asarray(Image.open(path)) for path in made]
    targets = [np.asarray(Image.open(data / "test" / path.name).convert("L"))[:, 32:] for path in made]
    assert outputs[0].ndim == 2
    expected = np.mean([pixels.l1(a, b) for a, b in zip(outputs, targets, strict=True)])
    assert report["rows"][0]["values"]["l1"] == pytest.approx(expected, rel=1e-9)
    with pytest.raises(UserError, match=r"different protocols: .*eval\).*eval/L\)"):
        evaluate(runs=(colour, run), metrics="l1")


@pytest.mark.parametrize(
    ("input_nc", "output_nc", "colours"), [(1, 1, "L"), (1, 3, "L-RGB"), (3, 1, "RGB-L")]
)
def test_the_colours_of_both_domains_of_a_cyclegan(
    tmp_path: Path, input_nc: int, output_nc: int, colours: str
) -> None:
    trained = {"model": "cycle_gan", "crop_size": 32, "input_nc": input_nc, "output_nc": output_nc}
    RunFolder(tmp_path).write_options(trained)
    for split in ("testA", "testB"):
        write_pictures(tmp_path / split, 2, 1)
    run = EvaluatedRun(tmp_path, asked(runs=tmp_path, dataroot=tmp_path))
    protocol = run.protocol
    assert protocol.id == f"i2i-1/32/eval/{colours}"
    for direction, channels in (("AtoB", output_nc), ("BtoA", input_nc)):
        _, reals = run.sides(direction)
        pixels_of_real = reals[0].load()
        assert (np.ptp(pixels_of_real, axis=2).max() == 0) == (channels == 1)
    assert any("grey" in sentence for sentence in protocol.sentences())


def test_folders_in_grey(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake, real = write_pictures(tmp_path / "fake", 3, 1), write_pictures(tmp_path / "real", 3, 2)
    for path in fake.iterdir():
        Image.open(path).convert("L").save(path)
    flags = {"fake": fake, "real": real, "paired": True, "metrics": "l1"}
    evaluate(**flags, output=tmp_path / "out")
    assert "one folder is grey, the other is not: --grey compares both in grey" in capsys.readouterr().out
    report = evaluate(**flags, grey=True, output=tmp_path / "grey")
    assert "one folder is grey" not in capsys.readouterr().out
    assert report["protocol"]["id"] == "i2i-1/40x32/files/L"
    pairs = [[np.asarray(Image.open(f / f"00{i}.png").convert("L")) for f in (fake, real)] for i in range(3)]
    expected = np.mean([pixels.l1(*pair) for pair in pairs])
    assert report["rows"][0]["values"]["l1"] == pytest.approx(expected, rel=1e-9)
