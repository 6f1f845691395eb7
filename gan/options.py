"""Every option of training: name, type, default, meaning. Typed, frozen, checked once, stored in the checkpoint.

Flags are flat (`--batch_size 4`). The nested groups only order the help page. The defaults written here are those of
CycleGAN; MODEL_DEFAULTS holds the defaults of other models. This file imports no torch, so `train.py --help` answers
at once.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from datasets.errors import UserError
from models.names import BaseNormName, DiscriminatorName, GeneratorName, InitName, NormName, UpsampleName

Model = Literal["cycle_gan", "pix2pix"]
RangeOption = tuple[float, float] | Literal["auto"] | None
"""The values that become black and white. None: the full range of the number format."""


@dataclass(frozen=True)
class RunGroup:
    """Name and place of the run."""

    name: str = ""
    """Name of the run. CHECKPOINTS_DIR/NAME holds everything of it. Default: DATAROOT_MODEL_NORM."""
    checkpoints_dir: str = "checkpoints"
    """Folder of all runs."""
    continue_train: bool = False
    """Resume the run of this name with the options that are stored there."""
    override: bool = False
    """With --continue_train: accept options or data that change what is trained."""
    dry_run: bool = False
    """Print the plan (networks, parameters, data, steps, files) and stop without writing anything."""
    seed: int = 0
    """Seed of the weights, data order, augmentation, dropout and image pool."""
    deterministic: bool = False
    """Use only deterministic algorithms on a GPU (slower). CPU runs are reproducible without it."""
    config: str = ""
    """YAML file of options (`flag: value`), such as a run's options.yaml. Flags on the command line override it."""
    debug: bool = False
    """Also show the traceback of an error."""


@dataclass(frozen=True)
class DataGroup:
    """The pictures, and how they become training crops."""

    dataroot: str = ""
    """Folder of pictures: trainA+trainB, train/ of side-by-side A|B, or A/train+B/train. Required."""
    dataset_mode: Literal["auto", "aligned", "paired", "unaligned"] = "auto"
    """Layout of the folder. auto detects it."""
    direction: Literal["AtoB", "BtoA"] = "AtoB"
    """AtoB: the folder's domain A is the input.
    A cycle_gan run learns both directions; this one is then the default of test.py."""
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
    """LOW,HIGH in the files' own numbers: LOW becomes black, HIGH white, values outside are clipped.
    auto: the least and largest value of the training pictures. Default: the full range of the number format."""
    value_range_A: str = ""
    """--value_range for domain A of the folder only."""
    value_range_B: str = ""
    """--value_range for domain B of the folder only."""
    serial_batches: bool = False
    """Take the pictures in the order of their names instead of shuffling them."""
    num_threads: int = 2
    """Number of worker processes that decode pictures. 0 decodes in the training process."""
    cache_gb: float = 0.0
    """Keep up to N GB of decoded and resized training pictures in CHECKPOINTS_DIR, for all runs that read them alike.
    Pictures beyond that are decoded in every epoch. 0: keep none."""
    max_dataset_size: int | None = None
    """Use at most N pictures of each domain."""
    skip_bad: bool = False
    """Skip unreadable pictures instead of stopping. run.log lists them."""
    val_count: int = 8
    """Number of fixed validation pictures, for samples and metrics. The seed chooses them from the training split."""
    val_holdout: bool = False
    """Keep the validation pictures out of training."""

    @property
    def value_ranges(self) -> tuple[RangeOption, RangeOption]:
        """What becomes black and white in the folder's domains A and B. Raises UserError naming the flag."""
        return (
            _value_range(self.value_range_A or self.value_range),
            _value_range(self.value_range_B or self.value_range),
        )


@dataclass(frozen=True)
class ModelGroup:
    """The networks."""

    model: Model = "cycle_gan"
    """Unpaired (cycle_gan) or paired (pix2pix) translation."""
    norm: NormName = "instance"
    """Normalization in the generator. nc_ms: normalized convolution, moment shortcut. Default for pix2pix: batch."""
    base_norm: BaseNormName | None = None
    """Norm of the layers that --norm does not change, and of the discriminators.
    Default: --norm itself if it is instance, batch or none; otherwise instance for cycle_gan, batch for pix2pix.
    With nc, the generator has none."""
    netG: GeneratorName = "resnet_9blocks"
    """Generator. Default for pix2pix: unet_256."""
    netD: DiscriminatorName = "basic"
    """Discriminator. basic: 70x70 PatchGAN. n_layers: PatchGAN with --n_layers_D layers. pixel: single pixels."""
    n_layers_D: int = 3
    """Number of stride-2 layers of the n_layers discriminator."""
    ngf: int = 64
    """Generator channels at full resolution."""
    ndf: int = 64
    """Discriminator channels after its first layer."""
    input_nc: int = 3
    """Channels of the input (of domain A for cycle_gan). Pictures are converted to 1 (grey) and 3 (colour).
    For any other number up to 16, the files must have as many bands; an alpha channel is one."""
    output_nc: int = 3
    """Channels of the output (of domain B for cycle_gan)."""
    dropout: bool = False
    """Dropout in the generator. Default for pix2pix: on."""
    upsample: UpsampleName = "transposed"
    """How the generator doubles the sides. resize: nearest neighbours and a convolution, against checkerboards."""
    init_from: str = ""
    """Start from the weights of a run (RUN, RUN@last, RUN@best, RUN@EPOCH), of an exported file, or of a
    latest_net_G*.pth or the folder of it. The discriminators too, where they are there; the rest is fresh."""
    freeze: str = ""
    """Parameters that are not trained: patterns of their names, separated by commas, such as "G_A.stem.*,D_*"."""
    init_type: InitName = "normal"
    """Distribution of the initial weights."""
    init_gain: float = 0.02
    """Scale of the initial weights."""
    nc_backend: Literal["auto", "reference", "direct", "cuda"] = "auto"
    """Implementation of the normalized convolution. auto chooses the fastest that works."""


@dataclass(frozen=True)
class LossGroup:
    """The losses."""

    gan_mode: Literal["vanilla", "lsgan", "wgangp", "hinge"] = "lsgan"
    """Adversarial loss. Default for pix2pix: vanilla."""
    lambda_A: float = 10.0
    """Weight of the cycle A -> B -> A."""
    lambda_B: float = 10.0
    """Weight of the cycle B -> A -> B."""
    lambda_identity: float = 0.5
    """Weight of the identity loss relative to the cycle loss. 0 disables it."""
    lambda_L1: float = 100.0
    """Weight of the L1 distance to the target (pix2pix)."""
    lambda_gp: float = 10.0
    """Weight of the gradient penalty of wgangp. The rest of the discriminator's loss is halved."""
    pool_size: int = 50
    """Number of past translations kept for the discriminator. Default for pix2pix: 0."""


@dataclass(frozen=True)
class ScheduleGroup:
    """Length of the training, the learning rate, and the average of the weights."""

    n_epochs: int = 100
    """Epochs at the initial learning rate."""
    n_epochs_decay: int = 100
    """Further epochs. The linear policy lowers the learning rate to zero over them."""
    lr: float = 2e-4
    """Initial learning rate of Adam."""
    beta1: float = 0.5
    """First momentum of Adam."""
    scale_lr: bool = False
    """Under torchrun: multiply --lr by the number of processes."""
    lr_policy: Literal["linear", "step", "cosine", "constant"] = "linear"
    """Learning rate over the epochs. linear: constant for --n_epochs, then down to 0.
    step: a tenth after every --lr_decay_iters epochs. cosine: down half a period over all epochs."""
    lr_decay_iters: int = 50
    """Epochs between two drops of the step policy."""
    ema: float = 0.0
    """Decay of an exponential moving average of the generators' weights, such as 0.999. 0: none.
    Samples, metrics, test.py and python -m evaluate then use the average."""

    @property
    def epochs(self) -> int:
        return self.n_epochs + self.n_epochs_decay

    def learning_rate(self, epoch: int) -> float:
        """Learning rate of an epoch (from 1). It is a pure function, so nothing is stored or restored.

        linear is the schedule of both papers: constant for n_epochs, then a line that would reach 0 one epoch after
        the last. step divides by ten every lr_decay_iters epochs. cosine falls along half a period over all epochs.
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
    """Device and precision."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: a CUDA GPU if there is one, else Apple's GPU, else the CPU."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 uses autocast. Patch statistics and losses stay float32."""
    channels_last: bool = False
    """Channels-last memory format (often faster on a GPU)."""
    grad_checkpoint: bool = False
    """Take less memory: the generators compute their activations again in the backward pass (about a third slower)."""
    compile: bool = False
    """Compile the networks with torch.compile (takes minutes at the start)."""
    graph: Literal["auto", "on", "off"] = "auto"
    """Record the training step as a CUDA graph and replay it: the same bits with less time between operations.
    auto: where it can be done."""
    batch_passes: bool = False
    """Send identity and translation, and real and fake, through a network as one batch: faster, the same but for
    rounding. Not with batch norm."""


@dataclass(frozen=True)
class OutputGroup:
    """What is written and how often."""

    save_epoch_freq: int = 1
    """Epochs between checkpoints. The last epoch is always saved."""
    save_step_freq: int = 0
    """Steps between checkpoints within an epoch. 0: only at the end of epochs."""
    keep: int = 2
    """Number of newest checkpoints to keep, besides the best one."""
    best_by: str | None = None
    """Metric that chooses the best checkpoint, for example fid. Default for pix2pix: val_l1."""
    eval_every: int = 0
    """Epochs between metric evaluations on the validation pictures. 0 disables them."""
    eval_metrics: str = "fid,kid,lpips,psnr,ssim,l1"
    """Metrics of --eval_every, separated by commas."""
    print_freq: int = 100
    """Steps between records of losses in metrics.jsonl. The end of an epoch adds one."""
    display_freq: int = 400
    """Steps between sample pictures. The end of an epoch adds some."""


@dataclass(frozen=True)
class ViewerGroup:
    """Samples, Visdom and TensorBoard. The page index.html in the run's folder is written in any case."""

    show_bands: str = ""
    """Bands that samples of more than three bands show, and metrics measure, as red, green and blue: 4,3,2. Or one, in
    grey. Default: 1,2,3."""
    visdom: Literal["auto", "on", "off", "offline"] = "auto"
    """auto: use a Visdom server that answers. on: start one if none answers. off: no Visdom.
    offline: send nothing; `python -m gan.viewers NAME` replays the run later."""
    visdom_server: str = "http://localhost"
    """Address of the Visdom server."""
    visdom_port: int = 8097
    """Port of the Visdom server."""
    visdom_base_url: str = "/"
    """Path under which the server is mounted."""
    visdom_env: str = ""
    """Visdom environment. Default: the run's name."""
    visdom_username: str = ""
    """User name for the server."""
    visdom_password: str = ""
    """Password for the server. Never stored. The environment variable VISDOM_PASSWORD is safer."""
    visdom_controls: bool = False
    """Show the buttons also on a server that this run has not started. Whoever reaches that server can press them."""
    visdom_keep: bool = False
    """Keep the server that this run started."""
    tensorboard: Literal["on", "off"] = "off"
    """Also write curves and samples to RUN/tensorboard, for TensorBoard. Needs `pip install tensorboard`."""


@dataclass(frozen=True)
class TrainOptions:
    """All options of a training."""

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
"""Defaults that differ from those above, by model."""

BASE_NORM = {"cycle_gan": "instance", "pix2pix": "batch"}
"""Norm of the layers that a `--norm` such as nc_ms does not change."""

MAY_CHANGE_ON_RESUME = frozenset(
    {f.name for group in (RunGroup, DeviceGroup, OutputGroup, ViewerGroup) for f in dataclasses.fields(group)}
    - {"seed"}
    | {"n_epochs", "n_epochs_decay", "num_threads", "cache_gb", "nc_backend"}
)
"""Name, run length, logging, viewers, workers, device and precision. Any other option changes what is trained."""

NEVER_STORED = frozenset({"continue_train", "override", "dry_run", "config", "debug", "visdom_password"})

PIXEL_METRICS = ("psnr", "ssim", "l1", "pixel_accuracy")
"""Metrics of --eval_metrics that need a target for each output, and no network."""

RANGES: dict[str, tuple[float, float]] = {
    "batch_size": (1, 2**16), "load_size": (2, 2**16), "crop_size": (2, 2**16), "max_dataset_size": (1, 2**40),
    "val_count": (1, 2**16), "num_threads": (0, 1024), "ngf": (1, 2**16), "ndf": (1, 2**16), "n_layers_D": (1, 32),
    "lambda_A": (0, 1e30), "lambda_B": (0, 1e30), "lambda_identity": (0, 1e30), "lambda_L1": (0, 1e30),
    "lambda_gp": (0, 1e30), "pool_size": (0, 2**20), "n_epochs": (0, 2**40), "n_epochs_decay": (0, 2**40),
    "lr_decay_iters": (1, 2**40), "save_epoch_freq": (1, 2**40), "save_step_freq": (0, 2**40), "keep": (1, 2**40),
    "eval_every": (0, 2**40), "print_freq": (1, 2**40), "display_freq": (1, 2**40), "visdom_port": (1, 65535),
    "cache_gb": (0, 2**20), "input_nc": (1, 16), "output_nc": (1, 16), "seed": (0, 2**32 - 1),  # NumPy takes no more
}  # fmt: skip
"""Smallest and largest value of every number with a closed range."""


def discriminator_norm(options: TrainOptions) -> str:
    """The base norm; with `nc`, which has none, the model's default."""
    return BASE_NORM[options.model.model] if options.model.norm == "nc" else str(options.model.base_norm)


def _value_range(text: str) -> RangeOption:
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


def to_dict(options: TrainOptions) -> dict[str, Any]:
    """Name -> value, flat, in the order of the help page. Plain types only."""
    return {name: value for group in dataclasses.asdict(options).values() for name, value in group.items()}


def stored_dict(options: TrainOptions) -> dict[str, Any]:
    """The options that options.yaml and checkpoints hold: no secrets, and no option of a single call."""
    return {name: value for name, value in to_dict(options).items() if name not in NEVER_STORED}


def from_dict(flat: Mapping[str, Any]) -> TrainOptions:
    """Inverse of `to_dict`. A missing name gets the model's default; an unknown name is ignored."""
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
