"""Flags that meet: what a file or a run has switched on can be switched off; settings that clash are told at once."""

from pathlib import Path

import pytest

from datasets.errors import UserError
from gan.command_line import parse_train
from gan.options import TrainOptions

DATA = ["--dataroot", "somewhere"]


def parsed(*flags: str) -> TrainOptions:
    return parse_train([*DATA, *flags])[0]


def test_a_switch_of_a_file_is_taken_back_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("compile: true\nchannels_last: true\nno_flip: true\n")
    config = ("--config", str(file))
    assert parsed(*config).device.compile and not parsed(*config).data.flip
    options = parsed(*config, "--no_compile", "--flip")
    assert not options.device.compile and options.data.flip
    assert options.device.channels_last


def test_taking_back_what_is_not_set_changes_nothing() -> None:
    assert parsed("--no_compile", "--flip") == parsed()
    assert parsed("--no_compile", "--compile").device.compile  # the last one wins


@pytest.mark.parametrize(
    "flags,subject",
    [
        (["--best_by", "fdi", "--eval_every", "1"], "--best_by"),
        (["--best_by", "psnr", "--eval_every", "1"], "--best_by"),  # cycle_gan has no targets
        (["--best_by", "fid", "--eval_every", "1", "--eval_metrics", "kid"], "--best_by"),
        (["--best_by", "fid"], "--best_by"),
        (["--gan_mode", "wgangp", "--compile"], "--compile"),
        (["--lambda_A", "inf"], "--lambda_A"),
    ],
)
def test_settings_that_cannot_work_together_are_refused(flags: list[str], subject: str) -> None:
    with pytest.raises(UserError) as refusal:
        parsed(*flags)
    assert refusal.value.subject == subject and "--" not in refusal.value.reason[:2]


@pytest.mark.parametrize("metric", ["fid", "fid_A", "kid_B"])
def test_metrics_of_both_directions_can_choose_the_best(metric: str) -> None:
    assert parsed("--best_by", metric, "--eval_every", "2").output.best_by == metric
