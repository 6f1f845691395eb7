"""Every option of training: name, type, default, meaning. Typed, frozen, checked once, stored in the checkpoint.

Flags are flat (`--batch_size 4`); the nested groups only order the help page. A default of None means "as the model's
paper has it" and is filled in by `resolve`, so a stored set of options is always complete. No torch is imported here:
`train.py --help` answers at once.
"""

import dataclasses
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
    """Go on with the run of this name; its options are read from it and need not be repeated."""
    override: bool = False
    """With --continue_train: accept changed options or data that change what is trained."""
    dry_run: bool = False
    """Print the plan (networks, parameters, data, steps, files) and stop; nothing is written."""
    seed: int = 0
    """Seed of weights, data order, augmentation, dropout and image pool."""
    deterministic: bool = False
    """Only deterministic algorithms on a GPU (slower). CPU runs are reproducible without it."""
    config: str = ""
    """YAML file of options (`flag: value`), as written to a run's options.yaml; flags given here win over it."""
    debug: bool = False
    """Show the traceback of an error as well."""


@dataclass(frozen=True)
class DataGroup:
    """The pictures and how they are cut."""

    dataroot: str = ""
    """Folder of pictures: trainA+trainB, train/ of side-by-side A|B, or A/train+B/train. Required."""
    dataset_mode: Literal["auto", "aligned", "paired", "unaligned"] = "auto"
    """Layout of the folder; auto looks."""
    direction: Literal["AtoB", "BtoA"] = "AtoB"
    """Which of the disk's domains is the input. A cycle_gan run learns both; this is its default in test.py."""
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
    no_flip: bool = False
    """Do not mirror at random."""
    serial_batches: bool = False
    """Take the pictures in the order of their names instead of shuffling."""
    num_threads: int = 2
    """Worker processes that decode pictures; 0 decodes in the training process."""
    max_dataset_size: int | None = None
    """Use only the first so many pictures of each domain."""
    skip_bad: bool = False
    """Leave out unreadable pictures instead of stopping; they are listed in the log."""
    val_count: int = 8
    """Fixed validation pictures (samples and validation loss), a seeded slice of the training split."""
    val_holdout: bool = False
    """Keep the validation pictures out of training."""


@dataclass(frozen=True)
class ModelGroup:
    """The networks."""

    model: Model = "cycle_gan"
    """Unpaired (cycle_gan) or paired (pix2pix) translation."""
    norm: NormName | None = None
    """Normalization of the generator. nc_ms: normalized convolution with moment shortcut. Default: instance for
    cycle_gan, batch for pix2pix."""
    base_norm: BaseNormName | None = None
    """Norm of the places that --norm leaves alone, and of the discriminators. Default: --norm itself where it is
    instance, batch or none; none with nc; else instance for cycle_gan, batch for pix2pix."""
    netG: GeneratorName | None = None
    """Generator. Default: resnet_9blocks for cycle_gan, unet_256 for pix2pix."""
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
    """Use dropout where the model's paper does not (cycle_gan)."""
    no_dropout: bool = False
    """Use no dropout where the model's paper does (pix2pix)."""
    init_type: InitName = "normal"
    """Initial weights."""
    init_gain: float = 0.02
    """Scale of the initial weights."""
    nc_backend: Literal["auto", "reference", "direct", "cuda"] = "auto"
    """Implementation of the normalized convolution; auto takes the fastest that works."""


@dataclass(frozen=True)
class LossGroup:
    """What is minimised."""

    gan_mode: Literal["vanilla", "lsgan", "wgangp", "hinge"] | None = None
    """Adversarial loss. Default: lsgan for cycle_gan, vanilla for pix2pix."""
    lambda_A: float = 10.0
    """Weight of the cycle A -> B -> A."""
    lambda_B: float = 10.0
    """Weight of the cycle B -> A -> B."""
    lambda_identity: float = 0.5
    """Weight of the identity loss relative to the cycle's; 0 leaves it out."""
    lambda_L1: float = 100.0
    """Weight of the L1 distance to the target (pix2pix)."""
    lambda_gp: float = 10.0
    """Weight of the gradient penalty of wgangp; the rest of the discriminator's loss counts half."""
    pool_size: int | None = None
    """Images kept for the discriminator. Default: 50 for cycle_gan, 0 for pix2pix."""


@dataclass(frozen=True)
class ScheduleGroup:
    """How long, and how fast."""

    n_epochs: int = 100
    """Epochs at the initial learning rate."""
    n_epochs_decay: int = 100
    """Epochs over which the linear policy then lets it fall to zero."""
    lr: float = 2e-4
    """Initial learning rate of Adam."""
    beta1: float = 0.5
    """First momentum of Adam."""
    lr_policy: Literal["linear", "step", "cosine", "constant"] = "linear"
    """Learning rate over the epochs."""
    lr_decay_iters: int = 50
    """Epochs between the tenfold drops of the step policy."""


@dataclass(frozen=True)
class DeviceGroup:
    """Where and in which precision it runs."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: a CUDA GPU if there is one, then Apple's, else the CPU."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast; patch statistics and losses stay float32."""
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
    """Steps between checkpoints inside an epoch; 0: only at the end of epochs."""
    keep: int = 2
    """How many checkpoints are kept beside the best."""
    best_by: str | None = None
    """Metric that chooses the best checkpoint, e.g. val_l1 or fid. Default: val_l1 for pix2pix, none for cycle_gan."""
    eval_every: int = 0
    """Epochs between metric evaluations on the validation pictures; 0: never."""
    eval_metrics: str = "fid,kid,lpips,psnr,ssim,l1"
    """Metrics of --eval_every, separated by commas."""
    print_freq: int = 100
    """Steps between lines of metrics.jsonl."""
    display_freq: int = 400
    """Steps between sample pictures; they are also drawn at the end of every epoch."""


@dataclass(frozen=True)
class ViewerGroup:
    """Live view. The page index.html in the run's folder is always written."""

    visdom: Literal["auto", "on", "off", "offline"] = "auto"
    """auto: use a Visdom server that answers; on: start one if none does; offline: record for a later replay."""
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
    "cycle_gan": {
        "norm": "instance",
        "base_norm": "instance",
        "netG": "resnet_9blocks",
        "gan_mode": "lsgan",
        "pool_size": 50,
    },
    "pix2pix": {
        "norm": "batch",
        "base_norm": "batch",
        "netG": "unet_256",
        "gan_mode": "vanilla",
        "pool_size": 0,
        "best_by": "val_l1",
    },
}

MAY_CHANGE_ON_RESUME = frozenset(
    {f.name for group in (RunGroup, DeviceGroup, OutputGroup, ViewerGroup) for f in dataclasses.fields(group)}
    - {"seed", "name"}
    | {"n_epochs", "n_epochs_decay", "num_threads", "nc_backend"}
)
"""Run length, logging, viewers, workers, device and precision; anything else changes what is trained."""

NEVER_STORED = frozenset({"continue_train", "override", "dry_run", "config", "debug", "visdom_password"})


def resolve(options: TrainOptions) -> TrainOptions:
    """Fill in what the model decides, and check ranges. The result has no None but where none is a value.

    Raises UserError naming the flag and what it allows.
    """
    flat = to_dict(options)
    defaults = MODEL_DEFAULTS[options.model.model]
    norm = flat["norm"] or defaults["norm"]
    implied_base = {"instance": "instance", "batch": "batch", "none": "none", "nc": "none"}.get(norm)
    if implied_base and flat["base_norm"] not in (None, implied_base):
        reason = f"--norm {norm} has no place for the base norm {flat['base_norm']}"
        raise UserError("--base_norm", reason, f"leave it out or use {implied_base}")
    flat["base_norm"] = flat["base_norm"] or implied_base or defaults["base_norm"]
    for key, value in defaults.items():
        if flat[key] is None:
            flat[key] = value
    flat["name"] = flat["name"] or default_name(flat)
    _check(flat)
    return from_dict(flat)


def discriminator_norm(options: TrainOptions) -> str:
    """Discriminators use the base norm; with `nc`, which has none, the model's default."""
    if options.model.norm == "nc":
        return str(MODEL_DEFAULTS[options.model.model]["base_norm"])
    return str(options.model.base_norm)


def channels(options: TrainOptions, direction: str) -> tuple[int, int]:
    """Channels of the input and of the output of a translation in this direction (of the disk's A and B)."""
    model = options.model
    if model.model == "cycle_gan" and direction == "BtoA":
        return model.output_nc, model.input_nc
    return model.input_nc, model.output_nc


def uses_dropout(options: TrainOptions) -> bool:
    return options.model.dropout or (options.model.model == "pix2pix" and not options.model.no_dropout)


def default_name(flat: dict[str, Any]) -> str:
    folder = flat["dataroot"].rstrip("/").rsplit("/", 1)[-1] or "run"
    return f"{folder}_{flat['model']}_{flat['norm'] or MODEL_DEFAULTS[flat['model']]['norm']}"


def to_dict(options: TrainOptions) -> dict[str, Any]:
    """Flat name -> value, in the order of the help page; plain types only."""
    return {name: value for group in dataclasses.asdict(options).values() for name, value in group.items()}


def stored_dict(options: TrainOptions) -> dict[str, Any]:
    """What is written to options.yaml and into checkpoints: no secrets, nothing that belongs to one call only."""
    return {name: value for name, value in to_dict(options).items() if name not in NEVER_STORED}


def from_dict(flat: dict[str, Any]) -> TrainOptions:
    """Inverse of `to_dict`; a name that is missing gets its default, an unknown one is ignored."""
    groups = {}
    for group in dataclasses.fields(TrainOptions):
        kind = group.default_factory
        assert kind is not dataclasses.MISSING
        names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
        groups[group.name] = kind(**{name: flat[name] for name in names if name in flat})
    return TrainOptions(**groups)


def changes_that_matter(saved: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Options that change the model, the losses or the data, as lines `option: was -> now`."""
    return [
        f"{name}: {saved[name]} -> {value}"
        for name, value in wanted.items()
        if name in saved and name not in MAY_CHANGE_ON_RESUME | NEVER_STORED and saved[name] != value
    ]


def _computed_metrics(flat: dict[str, Any]) -> list[str]:
    """Names that --eval_metrics writes: cycle_gan has no targets, and figures of both directions and their mean."""
    flags = [flag.strip() for flag in flat["eval_metrics"].split(",")]
    if flat["model"] == "pix2pix":
        return ["val_l1", *flags]
    return [flag + side for flag in flags if flag not in ("psnr", "ssim", "l1") for side in ("", "_A", "_B")]


def _check(flat: dict[str, Any]) -> None:
    """Ranges that types cannot say."""
    if not flat["dataroot"]:
        raise UserError("--dataroot", "is required", "name the folder that holds your pictures")
    at_least = {
        "batch_size": 1, "load_size": 2, "crop_size": 2, "ngf": 1, "ndf": 1, "n_layers_D": 1, "keep": 1,
        "save_epoch_freq": 1, "print_freq": 1, "display_freq": 1, "lr_decay_iters": 1, "val_count": 1,
        "num_threads": 0, "n_epochs": 0, "n_epochs_decay": 0, "pool_size": 0, "save_step_freq": 0, "eval_every": 0,
        "lambda_A": 0, "lambda_B": 0, "lambda_identity": 0, "lambda_L1": 0, "lambda_gp": 0, "seed": 0,
    }  # fmt: skip
    for name, low in at_least.items():
        if flat[name] is not None and not low <= flat[name] < float("inf"):  # catches nan as well
            raise UserError(f"--{name}", f"is {flat[name]}", f"allowed: {low} or more")
    if flat["max_dataset_size"] is not None and flat["max_dataset_size"] < 1:
        raise UserError("--max_dataset_size", f"is {flat['max_dataset_size']}", "allowed: 1 or more")
    for name in ("lr", "init_gain"):
        if not 0 < flat[name] < float("inf"):
            raise UserError(f"--{name}", f"is {flat[name]}", "allowed: greater than 0, finite")
    if flat["seed"] >= 2**32:  # NumPy takes no more
        raise UserError("--seed", f"is {flat['seed']}", f"allowed: 0 to {2**32 - 1}")
    if not 0 <= flat["beta1"] < 1:
        raise UserError("--beta1", f"is {flat['beta1']}", "allowed: 0 to less than 1")
    if (
        "@" in flat["visdom_server"]
    ):  # no part of an address but a login has one; options are stored and shown
        fix = "use --visdom_username and the environment variable VISDOM_PASSWORD"
        raise UserError("--visdom_server", "holds a login", fix)
    if not 0 < flat["visdom_port"] < 65536:
        raise UserError("--visdom_port", f"is {flat['visdom_port']}", "allowed: 1 to 65535")
    if flat["n_epochs"] + flat["n_epochs_decay"] < 1:
        raise UserError(
            "--n_epochs", "no epoch to train", "--n_epochs plus --n_epochs_decay must be at least 1"
        )
    if flat["preprocess"] == "resize_and_crop" and flat["load_size"] < flat["crop_size"]:
        reason = f"{flat['crop_size']} is larger than --load_size {flat['load_size']}"
        raise UserError("--crop_size", reason, f"allowed: up to {flat['load_size']}, or a larger --load_size")
    if flat["compile"] and flat["gan_mode"] == "wgangp":
        raise UserError(
            "--compile", "the gradient penalty of wgangp cannot be compiled", "leave one of them out"
        )
    needs_evaluation = flat["best_by"] is not None and flat["best_by"] != "val_l1"
    if needs_evaluation and flat["best_by"] not in _computed_metrics(flat):
        known = ", ".join(_computed_metrics(flat))
        raise UserError(
            "--best_by", f"{flat['best_by']} is not among the computed metrics", f"allowed: {known}"
        )
    if needs_evaluation and not flat["eval_every"]:
        raise UserError("--best_by", f"{flat['best_by']} is never computed", "add --eval_every N")
    if flat["best_by"] == "val_l1" and flat["model"] == "cycle_gan":
        raise UserError(
            "--best_by", "val_l1 needs pairs, which cycle_gan has not", "use fid with --eval_every N"
        )
    if flat["dropout"] and flat["no_dropout"]:
        raise UserError("--dropout", "contradicts --no_dropout", "give one of them")
    if flat["model"] == "cycle_gan" and flat["lambda_identity"] > 0 and flat["input_nc"] != flat["output_nc"]:
        raise UserError("--lambda_identity", "needs domains of equal channels", "set it to 0")
