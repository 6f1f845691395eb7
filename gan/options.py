"""Every option of training: name, type, default, meaning. Typed, frozen, checked once, stored in the checkpoint.

Flags are flat (`--batch_size 4`); the nested groups only order the help page. The defaults written here are those of
CycleGAN; MODEL_DEFAULTS holds what each model's paper changes. This file imports no torch, so `train.py --help`
answers at once.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from datasets.errors import UserError
from models.names import BaseNormName, DiscriminatorName, GeneratorName, InitName, NormName

Model = Literal["cycle_gan", "pix2pix"]


@dataclass(frozen=True)
class RunGroup:
    """Which run, and where it lives."""

    name: str = ""
    """Name of the run: everything is kept in CHECKPOINTS_DIR/NAME. Default: DATAROOT_MODEL_NORM."""
    checkpoints_dir: str = "checkpoints"
    """Folder of all runs."""
    continue_train: bool = False
    """Resume the run of this name. Its options are read from the run and need not be repeated."""
    override: bool = False
    """With --continue_train: accept options or data that change what is trained."""
    dry_run: bool = False
    """Print the plan (networks, parameters, data, steps, files), write nothing and stop."""
    seed: int = 0
    """Seed of weights, data order, augmentation, dropout and image pool."""
    deterministic: bool = False
    """Only deterministic algorithms on a GPU (slower). CPU runs are reproducible without it."""
    config: str = ""
    """YAML file of options (`flag: value`), such as a run's options.yaml. Flags on the command line win over it."""
    debug: bool = False
    """Show the traceback of an error as well."""


@dataclass(frozen=True)
class DataGroup:
    """The pictures and how they are cut."""

    dataroot: str = ""
    """Folder of pictures: trainA+trainB, train/ of side-by-side A|B, or A/train+B/train. Required."""
    dataset_mode: Literal["auto", "aligned", "paired", "unaligned"] = "auto"
    """Layout of the folder; auto detects it."""
    direction: Literal["AtoB", "BtoA"] = "AtoB"
    """AtoB: the folder's domain A is the input. A cycle_gan run learns both directions; test.py then takes this one by
    default."""
    batch_size: int = 1
    """Images per step."""
    load_size: int = 286
    """Side in pixels that pictures are resized to before the crop."""
    crop_size: int = 256
    """Side in pixels of the training crop."""
    preprocess: Literal["resize_and_crop", "crop", "scale_width", "scale_width_and_crop", "none"] = (
        "resize_and_crop"
    )
    """How a picture becomes a training crop."""
    flip: bool = True
    """Mirror pictures at random."""
    value_range: str = ""
    """LOW,HIGH in the files' own numbers: what becomes black and white; what is outside is clipped. auto: the least and
    largest value of the training pictures. Default: all that the number format can hold."""
    value_range_A: str = ""
    """--value_range for domain A of the folder alone."""
    value_range_B: str = ""
    """--value_range for domain B of the folder alone."""
    serial_batches: bool = False
    """Take the pictures in the order of their names, without shuffling."""
    num_threads: int = 2
    """Worker processes that decode pictures; 0 decodes in the training process."""
    max_dataset_size: int | None = None
    """Use at most N pictures of each domain."""
    skip_bad: bool = False
    """Leave out unreadable pictures instead of stopping, and list them in the log."""
    val_count: int = 8
    """Fixed validation pictures (samples and validation loss), a seeded slice of the training split."""
    val_holdout: bool = False
    """Keep the validation pictures out of training."""


@dataclass(frozen=True)
class ModelGroup:
    """The networks."""

    model: Model = "cycle_gan"
    """Unpaired (cycle_gan) or paired (pix2pix) translation."""
    norm: NormName = "instance"
    """Normalization of the generator. nc_ms: normalized convolution with moment shortcut. pix2pix: batch."""
    base_norm: BaseNormName | None = None
    """Norm of the layers that --norm does not change, and of the discriminators. Default: --norm itself where it is
    instance, batch or none; none with nc; otherwise instance for cycle_gan, batch for pix2pix."""
    netG: GeneratorName = "resnet_9blocks"
    """Generator. pix2pix: unet_256."""
    netD: DiscriminatorName = "basic"
    """Discriminator: 70x70 PatchGAN (basic), PatchGAN of --n_layers_D, or pixel."""
    n_layers_D: int = 3
    """Layers of the n_layers discriminator."""
    ngf: int = 64
    """Generator channels at full resolution."""
    ndf: int = 64
    """Discriminator channels after its first layer."""
    input_nc: Literal[1, 3] = 3
    """Channels of the input (of domain A for cycle_gan)."""
    output_nc: Literal[1, 3] = 3
    """Channels of the output (of domain B for cycle_gan)."""
    dropout: bool = False
    """Dropout in the generator. pix2pix: on."""
    init_type: InitName = "normal"
    """Initial weights."""
    init_gain: float = 0.02
    """Scale of the initial weights."""
    nc_backend: Literal["auto", "reference", "direct", "cuda"] = "auto"
    """Implementation of the normalized convolution; auto picks the fastest that works."""


@dataclass(frozen=True)
class LossGroup:
    """What is minimised."""

    gan_mode: Literal["vanilla", "lsgan", "wgangp", "hinge"] = "lsgan"
    """Adversarial loss. pix2pix: vanilla."""
    lambda_A: float = 10.0
    """Weight of the cycle A -> B -> A."""
    lambda_B: float = 10.0
    """Weight of the cycle B -> A -> B."""
    lambda_identity: float = 0.5
    """Weight of the identity loss, relative to the cycle loss; 0 disables it."""
    lambda_L1: float = 100.0
    """Weight of the L1 distance to the target (pix2pix)."""
    lambda_gp: float = 10.0
    """Weight of the gradient penalty of wgangp. The rest of the discriminator's loss counts half."""
    pool_size: int = 50
    """Past translations kept for the discriminator. pix2pix: 0."""


@dataclass(frozen=True)
class ScheduleGroup:
    """How long, and how fast."""

    n_epochs: int = 100
    """Epochs at the initial learning rate."""
    n_epochs_decay: int = 100
    """Epochs after them, over which the linear policy lowers the learning rate to zero."""
    lr: float = 2e-4
    """Initial learning rate of Adam."""
    beta1: float = 0.5
    """First momentum of Adam."""
    lr_policy: Literal["linear", "step", "cosine", "constant"] = "linear"
    """How the learning rate changes over the epochs."""
    lr_decay_iters: int = 50
    """Epochs between the drops of the step policy, each to a tenth."""

    @property
    def epochs(self) -> int:
        return self.n_epochs + self.n_epochs_decay

    def learning_rate(self, epoch: int) -> float:
        """Learning rate of an epoch (from 1): a pure function, so there is nothing to store or restore.

        linear is the schedule of both papers: constant for n_epochs, then a line that would reach 0 one epoch after
        the last. step divides by ten every lr_decay_iters epochs. cosine falls along half a period.
        """
        progress = (epoch - 1) / self.epochs
        factors = {
            "linear": 1 - max(0, epoch - self.n_epochs) / (self.n_epochs_decay + 1),
            "step": 0.1 ** ((epoch - 1) // self.lr_decay_iters),
            "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
            "constant": 1.0,
        }
        return self.lr * factors[self.lr_policy]


@dataclass(frozen=True)
class DeviceGroup:
    """Where and in which precision it runs."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: a CUDA GPU if there is one, then Apple's, else the CPU."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 uses autocast; patch statistics and losses stay float32."""
    channels_last: bool = False
    """Channels-last memory format (often faster on a GPU)."""
    compile: bool = False
    """torch.compile the networks (minutes at the start, faster afterwards)."""


@dataclass(frozen=True)
class OutputGroup:
    """What is written, and how often."""

    save_epoch_freq: int = 1
    """Epochs between checkpoints; the last epoch is always saved."""
    save_step_freq: int = 0
    """Steps between checkpoints within an epoch; 0 saves at the end of epochs only."""
    keep: int = 2
    """Number of checkpoints kept beside the best one."""
    best_by: str | None = None
    """Metric that chooses the best checkpoint, for example val_l1 or fid. pix2pix: val_l1."""
    eval_every: int = 0
    """Epochs between metric evaluations on the validation pictures; 0 disables them."""
    eval_metrics: str = "fid,kid,lpips,psnr,ssim,l1"
    """Metrics of --eval_every, separated by commas."""
    print_freq: int = 100
    """Steps between lines of metrics.jsonl."""
    display_freq: int = 400
    """Steps between sample pictures. They are also drawn at the end of every epoch."""


@dataclass(frozen=True)
class ViewerGroup:
    """Live view in Visdom. The page index.html in the run's folder is always written."""

    visdom: Literal["auto", "on", "off", "offline"] = "auto"
    """auto: use a Visdom server that answers; on: start one if none answers; offline: record for a later replay."""
    visdom_server: str = "http://localhost"
    """Address of the Visdom server."""
    visdom_port: int = 8097
    """Port of the Visdom server."""
    visdom_base_url: str = "/"
    """Path under which the server is mounted."""
    visdom_env: str = ""
    """Visdom environment. Default: the run's name."""
    visdom_username: str = ""
    """Login of the server."""
    visdom_password: str = ""
    """Password; better set in the environment as VISDOM_PASSWORD. Never stored."""
    visdom_controls: bool = False
    """Show buttons that save, sample and stop also on a server that this run has not started: whoever reaches it can
    press them."""
    visdom_keep: bool = False
    """Leave a server that this run started running."""


@dataclass(frozen=True)
class TrainOptions:
    """All of them."""

    run: RunGroup = field(default_factory=RunGroup)
    data: DataGroup = field(default_factory=DataGroup)
    model: ModelGroup = field(default_factory=ModelGroup)
    loss: LossGroup = field(default_factory=LossGroup)
    schedule: ScheduleGroup = field(default_factory=ScheduleGroup)
    device: DeviceGroup = field(default_factory=DeviceGroup)
    output: OutputGroup = field(default_factory=OutputGroup)
    viewer: ViewerGroup = field(default_factory=ViewerGroup)


MODEL_DEFAULTS: dict[str, dict[str, Any]] = {
    "cycle_gan": {},
    "pix2pix": {
        "norm": "batch",
        "netG": "unet_256",
        "dropout": True,
        "gan_mode": "vanilla",
        "pool_size": 0,
        "best_by": "val_l1",
    },
}
"""What differs from the defaults above."""

BASE_NORM = {"cycle_gan": "instance", "pix2pix": "batch"}
"""Norm of the layers that a `--norm` such as nc_ms does not change."""

MAY_CHANGE_ON_RESUME = frozenset(
    {f.name for group in (RunGroup, DeviceGroup, OutputGroup, ViewerGroup) for f in dataclasses.fields(group)}
    - {"seed"}
    | {"n_epochs", "n_epochs_decay", "num_threads", "nc_backend"}
)
"""Name, run length, logging, viewers, workers, device and precision. Any other option changes what is trained."""

NEVER_STORED = frozenset({"continue_train", "override", "dry_run", "config", "debug", "visdom_password"})

RANGES: dict[str, tuple[float, float]] = {
    "batch_size": (1, 2**16), "load_size": (2, 2**16), "crop_size": (2, 2**16), "max_dataset_size": (1, 2**40),
    "val_count": (1, 2**16), "num_threads": (0, 1024), "ngf": (1, 2**16), "ndf": (1, 2**16), "n_layers_D": (1, 32),
    "lambda_A": (0, 1e30), "lambda_B": (0, 1e30), "lambda_identity": (0, 1e30), "lambda_L1": (0, 1e30),
    "lambda_gp": (0, 1e30), "pool_size": (0, 2**20), "n_epochs": (0, 2**40), "n_epochs_decay": (0, 2**40),
    "lr_decay_iters": (1, 2**40), "save_epoch_freq": (1, 2**40), "save_step_freq": (0, 2**40), "keep": (1, 2**40),
    "eval_every": (0, 2**40), "print_freq": (1, 2**40), "display_freq": (1, 2**40), "visdom_port": (1, 65535),
    "seed": (0, 2**32 - 1),  # NumPy takes no more
}  # fmt: skip
"""Least and largest value of every number whose range is closed."""


def model_defaults(model: str) -> TrainOptions:
    """The options of a model before any flag is given."""
    return from_dict({"model": model})


def resolve(options: TrainOptions) -> TrainOptions:
    """Derive the base norm and the run's name where they are not given, and check every value.

    Raises UserError naming the flag and what it allows.
    """
    model = options.model
    for domain in "AB":
        value_range(options, domain)
    implied = {"instance": "instance", "batch": "batch", "none": "none", "nc": "none"}.get(model.norm)
    if implied and model.base_norm not in (None, implied):
        reason = f"--norm {model.norm} has no place for the base norm {model.base_norm}"
        raise UserError("--base_norm", reason, f"leave it out or use {implied}")
    flat = to_dict(options)
    flat["base_norm"] = model.base_norm or implied or BASE_NORM[model.model]
    flat["name"] = flat["name"] or default_name(options)
    _check_ranges(flat)
    _check_combinations(flat)
    return from_dict(flat)


def discriminator_norm(options: TrainOptions) -> str:
    """Discriminators use the base norm; with `nc`, which has none, the model's default."""
    return BASE_NORM[options.model.model] if options.model.norm == "nc" else str(options.model.base_norm)


def value_range(options: TrainOptions, domain: str) -> tuple[float, float] | Literal["auto"] | None:
    """What becomes black and white in the folder's domain A or B; None: all that the number format can hold.

    Raises UserError naming the flag.
    """
    text = getattr(options.data, f"value_range_{domain}") or options.data.value_range
    if text in ("", "auto"):
        return "auto" if text else None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low, high = 0.0, 0.0
    if not -1e300 < low < high < 1e300:
        raise UserError("--value_range", f"is {text}", "allowed: LOW,HIGH with LOW less than HIGH, or auto")
    return low, high


def channels(options: TrainOptions, direction: str) -> tuple[int, int]:
    """Channels of the input and of the output of a translation in this direction (AtoB or BtoA)."""
    model = options.model
    if model.model == "cycle_gan" and direction == "BtoA":
        return model.output_nc, model.input_nc
    return model.input_nc, model.output_nc


def default_name(options: TrainOptions) -> str:
    """FOLDER_MODEL_NORM."""
    folder = options.data.dataroot.rstrip("/").rsplit("/", 1)[-1] or "run"
    return f"{folder}_{options.model.model}_{options.model.norm}"


def to_dict(options: TrainOptions) -> dict[str, Any]:
    """Flat name -> value, in the order of the help page; plain types only."""
    return {name: value for group in dataclasses.asdict(options).values() for name, value in group.items()}


def stored_dict(options: TrainOptions) -> dict[str, Any]:
    """What options.yaml and checkpoints hold: no secrets, nothing that belongs to one call only."""
    return {name: value for name, value in to_dict(options).items() if name not in NEVER_STORED}


def from_dict(flat: Mapping[str, Any]) -> TrainOptions:
    """Inverse of `to_dict`. A missing name gets its model's default, an unknown one is ignored."""
    flat = current_names(flat)
    flat = MODEL_DEFAULTS.get(flat.get("model", "cycle_gan"), {}) | flat
    groups = {}
    for group in dataclasses.fields(TrainOptions):
        kind: Any = group.default_factory
        groups[group.name] = kind(
            **{f.name: flat[f.name] for f in dataclasses.fields(kind) if f.name in flat}
        )
    return TrainOptions(**groups)


def current_names(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Options under today's names. Format 1 had `no_flip`, and `no_dropout` beside `dropout`."""
    renamed = dict(flat)
    if "no_flip" in renamed:
        renamed["flip"] = not renamed.pop("no_flip")
    if "no_dropout" in renamed:
        without, wanted = renamed.pop("no_dropout"), renamed.pop("dropout", False)
        if wanted or without:  # otherwise the model's default holds
            renamed["dropout"] = bool(wanted)
    return renamed


def changes_that_matter(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Options that change the model, the losses or the data, as lines `option: was -> now`."""
    return [
        f"{name}: {saved[name]} -> {value}"
        for name, value in wanted.items()
        if name in saved and name not in MAY_CHANGE_ON_RESUME | NEVER_STORED and saved[name] != value
    ]


def _computed_metrics(flat: Mapping[str, Any]) -> list[str]:
    """Names that --eval_metrics writes. A cycle_gan run has no targets; its figures exist per direction and as mean."""
    flags = [flag.strip() for flag in flat["eval_metrics"].split(",")]
    if flat["model"] == "pix2pix":
        return ["val_l1", *flags]
    return [flag + side for flag in flags if flag not in ("psnr", "ssim", "l1") for side in ("", "_A", "_B")]


def _check_ranges(flat: Mapping[str, Any]) -> None:
    """Ranges that types cannot say. NaN fails every comparison, so it is refused too."""
    if not flat["dataroot"]:
        raise UserError("--dataroot", "is required", "name the folder that holds your pictures")
    for name, (low, high) in RANGES.items():
        if flat[name] is not None and not low <= flat[name] <= high:
            allowed = f"{low} or more" if high > 65535 and flat[name] < low else f"{low} to {high}"
            raise UserError(f"--{name}", f"is {flat[name]}", f"allowed: {allowed}")
    for name in ("lr", "init_gain"):
        if not 0 < flat[name] < float("inf"):
            raise UserError(f"--{name}", f"is {flat[name]}", "allowed: greater than 0, finite")
    if not 0 <= flat["beta1"] < 1:
        raise UserError("--beta1", f"is {flat['beta1']}", "allowed: 0 to less than 1")


def _check_combinations(flat: Mapping[str, Any]) -> None:
    """Options that contradict each other."""
    if "@" in flat["visdom_server"]:  # only a login has one, and options are stored and shown
        fix = "use --visdom_username and the environment variable VISDOM_PASSWORD"
        raise UserError("--visdom_server", "holds a login", fix)
    if flat["n_epochs"] + flat["n_epochs_decay"] < 1:
        fix = "--n_epochs plus --n_epochs_decay must be at least 1"
        raise UserError("--n_epochs", "no epoch to train", fix)
    if flat["preprocess"] == "resize_and_crop" and flat["load_size"] < flat["crop_size"]:
        reason = f"{flat['crop_size']} is larger than --load_size {flat['load_size']}"
        raise UserError("--crop_size", reason, f"allowed: up to {flat['load_size']}, or a larger --load_size")
    if flat["compile"] and flat["gan_mode"] == "wgangp":
        reason = "the gradient penalty of wgangp cannot be compiled"
        raise UserError("--compile", reason, "leave one of them out")
    if flat["model"] == "cycle_gan" and flat["lambda_identity"] > 0 and flat["input_nc"] != flat["output_nc"]:
        raise UserError("--lambda_identity", "needs domains of equal channels", "set it to 0")
    best = flat["best_by"]
    if best == "val_l1" and flat["model"] == "cycle_gan":
        reason = "val_l1 needs pairs, which cycle_gan has not"
        raise UserError("--best_by", reason, "use fid with --eval_every N")
    if best in (None, "val_l1"):
        return
    if best not in (known := _computed_metrics(flat)):
        reason = f"{best} is not among the computed metrics"
        raise UserError("--best_by", reason, f"allowed: {', '.join(known)}")
    if not flat["eval_every"]:
        raise UserError("--best_by", f"{best} is never computed", "add --eval_every N")
