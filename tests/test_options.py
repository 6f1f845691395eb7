"""Flags, defaults, ranges, option files and the help page."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from training_support import ROOT, TINY, train, translate, write_unaligned

from datasets.errors import UserError
from gan.command_line import flags_of, parse_train, resolve
from gan.options import (
    RANGES,
    TrainOptions,
    changes_that_matter,
    discriminator_norm,
    from_dict,
    stored_dict,
    to_dict,
)

# SPEC section 3, read off its table
TABLE: dict[str, dict[str, Any]] = {
    "cycle_gan": {
        "n_epochs": 100, "n_epochs_decay": 100, "lr": 2e-4, "beta1": 0.5, "lr_policy": "linear", "batch_size": 1,
        "load_size": 286, "crop_size": 256, "flip": True, "serial_batches": False, "gan_mode": "lsgan",
        "lambda_A": 10.0, "lambda_B": 10.0, "lambda_identity": 0.5, "pool_size": 50, "norm": "instance",
        "base_norm": "instance", "netG": "resnet_9blocks", "netD": "basic", "init_type": "normal", "init_gain": 0.02,
        "ngf": 64, "ndf": 64, "input_nc": 3, "output_nc": 3, "best_by": None,
    },
    "pix2pix": {
        "n_epochs": 100, "n_epochs_decay": 100, "lr": 2e-4, "beta1": 0.5, "lr_policy": "linear", "batch_size": 1,
        "load_size": 286, "crop_size": 256, "flip": True, "gan_mode": "vanilla", "lambda_L1": 100.0,
        "pool_size": 0, "norm": "batch", "base_norm": "batch", "netG": "unet_256", "netD": "basic",
        "init_type": "normal", "init_gain": 0.02, "best_by": "val_l1",
    },
}  # fmt: skip

TRAIN_FLAGS = """
    dataroot name model netG netD norm direction dataset_mode batch_size load_size crop_size preprocess no_flip
    n_epochs n_epochs_decay lr beta1 lr_policy gan_mode pool_size lambda_A lambda_B lambda_identity lambda_L1 ngf ndf
    init_type init_gain no_dropout input_nc output_nc max_dataset_size num_threads serial_batches checkpoints_dir
    continue_train save_epoch_freq print_freq display_freq base_norm seed deterministic device precision
    channels_last compile config dry_run override val_count val_holdout best_by skip_bad
"""
TEST_FLAGS = "name checkpoints_dir epoch input output dataroot results_dir num_test direction size test_mode"


def parse(*arguments: str) -> TrainOptions:
    return parse_train(["--dataroot", "d", *arguments])[0]


@pytest.mark.parametrize("model", TABLE)
def test_defaults_are_those_of_the_papers(model: str) -> None:
    options = to_dict(parse("--model", model))
    assert {name: options[name] for name in TABLE[model]} == TABLE[model]
    assert parse("--model", model).model.dropout == (model == "pix2pix")


def test_dropout_can_be_turned_either_way() -> None:
    assert parse("--model", "cycle_gan", "--dropout").model.dropout
    assert not parse("--model", "pix2pix", "--no_dropout").model.dropout
    assert not parse("--dropout", "--no_dropout").model.dropout  # the last one wins


@pytest.mark.parametrize(
    ("norm", "base", "discriminator"),
    [
        ("instance", "instance", "instance"),
        ("batch", "batch", "batch"),
        ("none", "none", "none"),
        ("nc", "none", "instance"),
        ("nc_ms", "instance", "instance"),
        ("pono_dms", "instance", "instance"),
    ],
)
def test_what_the_norm_says_about_the_base_norm(norm: str, base: str, discriminator: str) -> None:
    options = parse("--norm", norm)
    assert (options.model.base_norm, discriminator_norm(options)) == (base, discriminator)


def test_none_is_a_base_norm_of_every_norm_with_places_for_it() -> None:
    for norm in ("nc", "nc_ms", "nc_dms", "pono", "pono_ms", "pono_dms", "none"):
        assert parse("--norm", norm, "--base_norm", "none").model.base_norm == "none"


def test_familiar_flags_are_known() -> None:
    switches = {f"no_{name}" for name, value in to_dict(TrainOptions()).items() if isinstance(value, bool)}
    assert set(TRAIN_FLAGS.split()) <= set(to_dict(TrainOptions())) | switches
    from gan.translation_options import TranslationOptions

    assert set(TEST_FLAGS.split()) <= {field.name for field in dataclasses.fields(TranslationOptions)}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--batch_siez 2", "--batch_siez: unknown flag (did you mean --batch_size? see train.py --help)"),
        ("--gan_mode gan", "--gan_mode: is gan (allowed: vanilla, lsgan, wgangp, hinge)"),
        ("--input_nc 17", "--input_nc: is 17 (allowed: 1 to 16)"),
        ("--base_norm x", "--base_norm: is x (allowed: batch, instance, none)"),
        ("--batch_size two", "--batch_size: is two (allowed: whole numbers)"),
        ("--ngf 9e18", "--ngf: is 9e18 (allowed: whole numbers)"),
        ("--max_dataset_size x", "--max_dataset_size: is x (allowed: whole numbers)"),
        ("--lr fast", "--lr: is fast (allowed: numbers)"),
        ("--lr", "--lr: needs a value (see train.py --help)"),
        (f"--seed {'9' * 5000}", "--seed: is no number that can be read (allowed: whole numbers)"),
        ("--name a b", "--name: takes one value, and b is one more (see train.py --help)"),
        ("--dataroot a.png b.png", "--dataroot: takes one value, and b.png is one more (give a folder instead of *)"),
        ("--niter 100", "--niter: is a flag of another program (use --n_epochs)"),
        ("--epoch_count=5", "--epoch_count: is a flag of another program (leave it out: --continue_train goes on "
         "where the run has stopped)"),
        ("--lr_policy plateau", "--lr_policy: plateau is not built: the rate depends on the epoch alone, and cycle_gan "
         "has no metric (use linear, step, cosine or constant)"),
    ],
)  # fmt: skip
def test_wrong_flags_and_values_are_one_line(
    arguments: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")  # of a narrow terminal
    outcome = train("--dataroot", "d", *arguments.split())
    assert (outcome.code, outcome.err) == (2, f"error: {line}\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--netG unet_256", "--netG: is a flag of train.py (leave it out: the run knows its networks)"),
        ("--how_many 5", "--how_many: is a flag of another program (use --num_test)"),
    ],
)
def test_wrong_flags_of_test_py_are_one_line(arguments: str, line: str) -> None:
    outcome = translate("--name", "r", *arguments.split())
    assert (outcome.code, outcome.err) == (2, f"error: {line}\n")


def test_every_number_has_a_range() -> None:
    open_ended = {"lr", "init_gain", "beta1", "ema"}  # checked below
    numbers = {
        field.name
        for group in dataclasses.fields(TrainOptions)
        for field in dataclasses.fields(group.default_factory)  # type: ignore[arg-type]
        if field.type in (int, float, int | None)
    }
    assert numbers - open_ended == set(RANGES)


@pytest.mark.parametrize("name", RANGES)
def test_a_number_beyond_its_range_names_flag_and_range(name: str) -> None:
    low, high = RANGES[name]
    for value in (low - 1, 2 * high + 1, *(["nan"] if isinstance(default_of(name), float) else [])):
        with pytest.raises(UserError, match=f"allowed: .*{low}") as caught:
            parse(f"--{name}={value}")
        assert (caught.value.subject, caught.value.exit_code) == (f"--{name}", 2)


@pytest.mark.parametrize(
    ("flag", "values"),
    [("lr", ["0", "nan", "inf", "-1"]), ("init_gain", ["0", "nan"]), ("beta1", ["1", "-0.1", "nan"])],
)
def test_open_ranges(flag: str, values: list[str]) -> None:
    for value in values:
        with pytest.raises(UserError, match="allowed: ") as caught:
            parse(f"--{flag}", value)
        assert caught.value.subject == f"--{flag}"


def default_of(name: str) -> object:
    return to_dict(TrainOptions())[name]


@pytest.mark.parametrize(
    ("arguments", "subject"),
    [
        (["--n_epochs", "0", "--n_epochs_decay", "0"], "--n_epochs"),
        (["--load_size", "200"], "--crop_size"),
        (["--input_nc", "1"], "--lambda_identity"),
        (["--best_by", "val_l1"], "--best_by"),
        (["--best_by", "fid"], "--best_by"),
        (["--best_by", "fdi", "--eval_every", "1"], "--best_by"),
        (["--best_by", "psnr", "--eval_every", "1"], "--best_by"),  # cycle_gan has no targets
        (["--best_by", "fid", "--eval_every", "1", "--eval_metrics", "kid"], "--best_by"),
        (["--gan_mode", "wgangp", "--compile"], "--compile"),
        (["--norm", "nc", "--base_norm", "instance"], "--base_norm"),
        (["--norm", "nc", "--base_norm", "batch"], "--base_norm"),
        (["--norm", "instance", "--base_norm", "batch"], "--base_norm"),
        (["--name", "a/b"], "--name"),
        (["--name", ".."], "--name"),
    ],
)
def test_values_that_contradict_each_other(arguments: list[str], subject: str) -> None:
    outcome = train("--dataroot", "d", *arguments)
    assert outcome.code == 2
    assert outcome.error.startswith(f"error: {subject}: ")


@pytest.mark.parametrize("metric", ["fid", "fid_A", "kid_B"])
def test_metrics_of_both_directions_can_choose_the_best(metric: str) -> None:
    assert parse("--best_by", metric, "--eval_every", "2").output.best_by == metric


def test_a_switch_of_a_file_is_taken_back_on_the_command_line(tmp_path: Path) -> None:
    given = ("--config", config(tmp_path, "compile: true\nchannels_last: true\nno_flip: true\n"))
    assert parse(*given).device.compile and not parse(*given).data.flip
    options = parse(*given, "--no_compile", "--flip")
    assert not options.device.compile and options.data.flip
    assert options.device.channels_last
    assert parse("--no_compile", "--flip") == parse()


@pytest.mark.parametrize("flags", [["--ngf", 2**16], ["--ndf", 2**16, "--netD", "basic"]])
def test_networks_beyond_the_memory_are_refused_before_they_are_built(flags: list[object]) -> None:
    where = ["--dataroot", "d", *TINY, "--load_size", 32, "--crop_size", 32, "--dry_run"]
    outcome = train(*where, *flags)
    assert outcome.code == 2 and re.match(
        r"error: --ngf: the networks need \d{4,} GiB of memory", outcome.error
    )


def test_the_largest_seed_trains(tmp_path: Path) -> None:
    data = write_unaligned(tmp_path / "data", 1)
    outcome = train(
        "--dataroot", data, *TINY, "--n_epochs", 1, "--seed", 2**32 - 1, "--checkpoints_dir", tmp_path
    )
    assert outcome.code == 0, outcome.err


def test_dataroot_is_required() -> None:
    assert train().error.startswith("error: --dataroot: is required")
    assert train("--continue_train").error.startswith("error: --name: is required")


def test_default_name_says_data_model_and_norm() -> None:
    assert parse_train(["--dataroot", "/some/maps/", "--norm", "nc_ms"])[0].run.name == "maps_cycle_gan_nc_ms"
    assert parse_train(["--dataroot", "maps", "--model", "pix2pix"])[0].run.name == "maps_pix2pix_batch"


# --- option files


def config(tmp_path: Path, text: str) -> str:
    path = tmp_path / "options.yaml"
    path.write_text(text)
    return str(path)


def test_an_option_file_is_read_and_flags_win_over_it(tmp_path: Path) -> None:
    file = config(tmp_path, "norm: nc_ms\nlr: 1e-5\nbatch_size: 3\nno_flip: true\nmax_dataset_size: null\n")
    options = parse("--config", file, "--batch_size", "5")
    assert (options.model.norm, options.schedule.lr, options.data.batch_size) == ("nc_ms", 1e-5, 5)
    assert not options.data.flip and options.data.max_dataset_size is None
    assert parse("--batch_size", "5", "--config", file).data.batch_size == 5


def test_words_that_yaml_takes_for_truth_values(tmp_path: Path) -> None:
    """YAML 1.1 reads `off` as false, which must not end as "not given"."""
    assert parse("--config", config(tmp_path, "visdom: off\n")).viewer.visdom == "off"
    assert parse("--config", config(tmp_path, "visdom: on\n")).viewer.visdom == "on"
    assert train("--dataroot", "d", "--config", config(tmp_path, "batch_size: true\n")).code == 2
    assert "true or false" in train("--dataroot", "d", "--config", config(tmp_path, "no_flip: maybe\n")).error


def test_values_that_look_like_flags(tmp_path: Path) -> None:
    options, _ = parse_train(["--config", config(tmp_path, "dataroot: -data\nname: --x\n")])
    assert (options.data.dataroot, options.run.name) == ("-data", "--x")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("batch_siez: 2\n", "unknown option 'batch_siez' (did you mean batch_size?)"),
        ("zzz: 2\n", "unknown option 'zzz' (see train.py --help for the names)"),
        ("norm: [nc\n", "not a plain YAML file, line"),
        ("norm: !!python/object/apply:os.system ['touch MARK']\n", "not a plain YAML file, line 1"),
        ("- norm\n", "must hold `option: value` lines"),
        ("norm: {a: 1}\n", "option 'norm' holds a dict"),
    ],
)
def test_an_option_file_that_cannot_be_used(tmp_path: Path, text: str, told: str) -> None:
    mark = tmp_path / "mark"
    outcome = train("--dataroot", "d", "--config", config(tmp_path, text.replace("MARK", str(mark))))
    assert outcome.code == 2
    assert told in outcome.error
    assert not mark.exists()


def test_a_missing_option_file(tmp_path: Path) -> None:
    assert str(tmp_path / "no.yaml")[-60:] in train("--config", tmp_path / "no.yaml").error


def test_a_bad_value_in_an_option_file_is_refused_like_a_flag(tmp_path: Path) -> None:
    outcome = train("--dataroot", "d", "--config", config(tmp_path, "norm: layer\n"))
    assert outcome.code == 2
    assert "--norm" in outcome.err


def test_options_survive_the_way_through_a_file(tmp_path: Path) -> None:
    options = parse(
        "--model", "pix2pix", "--norm", "nc_ms", "--lr", "1e-05", "--no_flip", "--max_dataset_size", "7",
        "--name", "2024-01-01", "--lambda_L1", "0", "--visdom", "off", "--seed", "3", "--input_nc", "1",
    )  # fmt: skip
    file = config(tmp_path, yaml.safe_dump(stored_dict(options)))
    again, _ = parse_train(["--config", file])
    assert stored_dict(again) == stored_dict(options)
    assert from_dict(to_dict(options)) == options
    assert resolve(options) == options


def test_secrets_and_orders_for_one_call_are_not_stored() -> None:
    stored = stored_dict(parse("--visdom_password", "x", "--override", "--debug"))
    assert not {"visdom_password", "override", "debug", "continue_train", "dry_run", "config"} & stored.keys()


def test_option_files_of_format_1_are_readable() -> None:
    assert flags_of({"no_flip": True, "norm": None, "name": "", "ngf": 8}, "here") == ["--ngf=8", "--no_flip"]
    old = {"model": "pix2pix", "no_flip": False, "dropout": False, "no_dropout": False}
    assert from_dict(old).model.dropout and from_dict(old).data.flip
    assert not from_dict(old | {"no_dropout": True}).model.dropout
    assert not from_dict(old | {"model": "cycle_gan"}).model.dropout
    assert from_dict(old | {"model": "cycle_gan", "dropout": True}).model.dropout


def test_what_may_change_on_resume() -> None:
    was = stored_dict(parse("--model", "pix2pix"))
    free = {
        "n_epochs": 7, "n_epochs_decay": 9, "print_freq": 3, "display_freq": 4, "num_threads": 9, "device": "cpu",
        "precision": "bf16", "visdom": "off", "keep": 9, "checkpoints_dir": "elsewhere", "nc_backend": "direct",
    }  # fmt: skip
    assert changes_that_matter(was, was | free) == []
    fixed = {
        "norm": "nc_ms", "ngf": 8, "batch_size": 2, "dataroot": "e", "seed": 1, "lr": 0.1, "lambda_L1": 1.0,
        "crop_size": 128, "flip": False, "gan_mode": "hinge", "pool_size": 3, "direction": "BtoA",
        "val_holdout": True,
    }  # fmt: skip
    for name, value in fixed.items():
        assert changes_that_matter(was, was | {name: value}) == [f"{name}: {was[name]} -> {value}"]


# --- the help page


@pytest.mark.parametrize(
    ("program", "titles", "flags"),
    [
        ("train", ["run", "data", "model", "loss", "schedule", "device", "output", "viewer"], TRAIN_FLAGS),
        ("test", [], TEST_FLAGS),
    ],
)
def test_help_answers_at_once_without_torch(program: str, titles: list[str], flags: str) -> None:
    script = f"""
import runpy, sys, time
sys.argv = ["{program}.py", "--help"]
try:
    runpy.run_path("{program}.py", run_name="__main__")
finally:
    print("torch" in sys.modules, "numpy" in sys.modules, time.process_time())
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page, tail = done.stdout.rsplit("\n", 2)[0], done.stdout.splitlines()[-1].split()
    assert tail[:2] == ["False", "False"]
    assert float(tail[2]) < 2.0, "seconds of processor time"
    assert all(f"{title} options" in page for title in titles)
    assert [flag for flag in flags.split() if f"--{flag}" not in page] == []
