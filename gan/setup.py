"""Options become objects: the one place where names turn into networks, optimisers, pools and data."""

import copy
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from datasets.cache import CacheMaker
from datasets.check import ScanReport, scan
from datasets.errors import UserError, log_text, printable, say
from datasets.layouts import Sources, find_sources
from datasets.loader import PairDataset, epoch_batches, fixed_samples, validation_indices
from datasets.transforms import Augmentation
from gan.cyclegan import CycleGAN
from gan.losses import ImagePool
from gan.options import TrainOptions, discriminator_norm
from gan.pix2pix import Pix2Pix
from gan.processes import ALONE, Processes
from gan.step import Batch, Placement, Trainer, find_device, seed_everything, use_deterministic
from models import NormalizedConv2d
from models.build import build_discriminator, build_generator, initialize

if TYPE_CHECKING:
    from gan.static_step import StaticStep


def build_trainer(options: TrainOptions, processes: Processes = ALONE) -> Trainer:
    """Networks with their initial weights (from the seed), optimisers and pools, on the chosen device.

    processes: that share every step.

    Seeds every random generator: afterwards they stand where training begins. Raises UserError for what the device or
    the crop size does not allow.
    """
    model, loss, wanted, seed = options.model, options.loss, options.device, options.run.seed
    use_deterministic(options.run.deterministic)
    placement = Placement(find_device(wanted.device), wanted.precision == "bf16", wanted.channels_last)
    processes = processes.use(placement.device)
    if processes.world > 1:
        _refuse_untested(options)
    if model.nc_backend == "cuda":
        require_cuda_kernels(placement)
    with torch.device("meta"):  # takes neither memory nor time
        planned = _all_networks(options)
    _check_sizes(options, planned)
    if wanted.batch_passes:
        _refuse_coupled_batches(planned)
    if wanted.graph == "on" and (reason := why_no_graph(options, placement.device)):
        raise UserError("--graph", reason, "use --graph auto")
    _require_memory(planned, placement.device)
    networks = _all_networks(options)
    draws = torch.Generator().manual_seed(seed)
    for name, network in networks.items():
        initialize(network, model.init_type, model.init_gain, draws)
        networks[name] = network = processes.place(placement.put_network(network))
        if wanted.compile:
            network.compile()  # in place: the names in the checkpoint stay the same
    freeze(networks, model.freeze)
    seed_everything(seed)  # the numbers drawn for the weights do not shift those of the dropout
    averages = {
        name: copy.deepcopy(network).requires_grad_(False)
        for name, network in networks.items()
        if options.schedule.ema and name.startswith("G")
    }

    def adam(*names: str) -> torch.optim.Adam:
        parameters = [p for name in names for p in networks[name].parameters() if p.requires_grad]
        if not parameters:
            raise UserError("--freeze", f"leaves nothing of {' and '.join(names)} to train", "freeze less")
        betas = (options.schedule.beta1, 0.999)
        return torch.optim.Adam(parameters, lr=options.schedule.lr, betas=betas, fused=True)

    if model.model == "pix2pix":
        return Pix2Pix(
            networks=networks,
            optimizers={"G": adam("G"), "D": adam("D")},
            pools={"AB": ImagePool(loss.pool_size, seed)},
            gan_mode=loss.gan_mode,
            lambda_L1=loss.lambda_L1,
            lambda_gp=loss.lambda_gp,
            placement=placement,
            processes=processes,
            batch_passes=wanted.batch_passes,
            averages=averages,
            ema=options.schedule.ema,
        )
    return CycleGAN(
        networks=networks,
        optimizers={"G": adam("G_A", "G_B"), "D": adam("D_A", "D_B")},
        pools={"A": ImagePool(loss.pool_size, seed), "B": ImagePool(loss.pool_size, seed + 1)},
        gan_mode=loss.gan_mode,
        lambda_A=loss.lambda_A,
        lambda_B=loss.lambda_B,
        lambda_identity=loss.lambda_identity,
        lambda_gp=loss.lambda_gp,
        placement=placement,
        processes=processes,
        batch_passes=wanted.batch_passes,
        averages=averages,
        ema=options.schedule.ema,
    )


def _all_networks(options: TrainOptions) -> dict[str, nn.Module]:
    """Untrained generators and discriminators by name: D_A (judges B) and D_B for cycle_gan, D for pix2pix."""
    model, networks = options.model, generators(options)
    channels = {"D": model.input_nc + model.output_nc}  # it sees input and output
    if model.model == "cycle_gan":
        channels = {"D_A": model.output_nc, "D_B": model.input_nc}
    for name, count in channels.items():
        networks[name] = build_discriminator(
            model.netD,
            input_nc=count,
            ndf=model.ndf,
            n_layers=model.n_layers_D,
            base_norm=discriminator_norm(options),
        )
    return networks


def freeze(networks: Mapping[str, nn.Module], patterns: str) -> None:
    """Switch off the gradients of all parameters that a pattern matches, as in `G_A.stem.*`; several with commas.

    Raises UserError for a pattern that matches nothing.
    """
    parameters = {f"{name}.{key}": p for name, net in networks.items() for key, p in net.named_parameters()}
    for pattern in filter(None, (text.strip() for text in patterns.split(","))):
        found = [name for name in parameters if fnmatchcase(name, pattern)]
        if not found:
            known = f"{next(iter(parameters))} to {list(parameters)[-1]}"
            raise UserError("--freeze", f"{pattern} matches no parameter", f"their names: {known}")
        for name in found:
            parameters[name].requires_grad_(False)


def _require_memory(networks: Mapping[str, nn.Module], device: torch.device) -> None:
    """Raise UserError where the device cannot hold weights and Adam's two moments of all networks, and the gradients.

    A CPU needs no room for these: see `stepping_in_backward`.
    """
    need = (16 if device.type == "cuda" else 12) * sum(
        p.numel() for network in networks.values() for p in network.parameters()
    )
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
    elif hasattr(os, "sysconf"):
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:  # Windows
        return
    if need > there:
        reason = f"the networks need {need / 2**30:.0f} GiB of memory, and there are {there / 2**30:.0f} GiB"
        raise UserError("--ngf", reason, "lower --ngf or --ndf")


def checkpoint_size(trainer: Trainer) -> int:
    """Bytes of a checkpoint, nearly: the weights, the two moments that Adam keeps of each, and the averages."""
    networks = [*trainer.networks.values()] * 3 + [*trainer.averages.values()]
    return sum(p.numel() * p.element_size() for network in networks for p in network.parameters())


def generators(options: TrainOptions) -> dict[str, nn.Module]:
    """Untrained generators by name: G_A and G_B for cycle_gan, G for pix2pix."""
    model = options.model
    channels = {"G": (model.input_nc, model.output_nc)}
    if model.model == "cycle_gan":
        channels = {"G_A": (model.input_nc, model.output_nc), "G_B": (model.output_nc, model.input_nc)}
    return {
        name: build_generator(
            **generator_arguments(options, *of_both),
            nc_backend=model.nc_backend,
            grad_checkpoint=options.device.grad_checkpoint,
        )
        for name, of_both in channels.items()
    }


def generator_arguments(options: TrainOptions, input_nc: int, output_nc: int) -> dict[str, Any]:
    """What `build_generator` takes for a generator of these channels, but for the backend."""
    model = options.model
    names = ("ngf", "norm", "base_norm", "dropout", "upsample")
    given = {name: getattr(model, name) for name in names}
    return {"name": model.netG, "input_nc": input_nc, "output_nc": output_nc, **given}


def require_cuda_kernels(placement: Placement) -> None:
    """Build the kernels for every dtype and layout that the run may meet. Raises UserError where that fails."""
    layer = placement.put_network(NormalizedConv2d(2, 2, 3, backend="cuda"))
    try:
        for dtype in (torch.float32, torch.bfloat16) if placement.bf16 else (torch.float32,):
            x = torch.ones(1, 2, 4, 4, dtype=dtype, device=placement.device)
            with placement.autocast():
                layer(x)  # with channels-last too: torch's instance norm returns NCHW
                layer(placement.put(x))
    except RuntimeError as error:
        raise UserError("--nc_backend", str(error).splitlines()[0], "use auto") from error


def _check_sizes(options: TrainOptions, networks: dict[str, nn.Module]) -> None:
    """Refuse a crop that a network cannot take, before any data is read. Raises UserError naming the flag."""
    crop, preprocess = options.data.crop_size, options.data.preprocess
    many_sizes = preprocess in ("none", "scale_width")
    if many_sizes and options.loss.gan_mode == "wgangp":
        reason = "wgangp: the gradient penalty mixes pictures, which then differ in size"
        raise UserError("--gan_mode", reason, "use --preprocess resize_and_crop")
    for name, network in networks.items():
        multiple, least = getattr(network, "size_multiple", 1), getattr(network, "min_size", 1)
        if many_sizes and (multiple > 4 or options.data.batch_size > 1):
            fix = "use resize_and_crop, or a ResNet generator with --batch_size 1"
            raise UserError("--preprocess", f"{preprocess} gives pictures of many sizes", fix)
        if crop % multiple or crop < least:
            what = options.model.netG if name.startswith("G") else f"--netD {options.model.netD}"
            least = max(least, multiple)
            fix = (
                f"allowed: multiples of {multiple} from {least}"
                if multiple > 1
                else f"allowed: {least} or more"
            )
            if options.model.netG == "unet_256" and crop == 128:
                fix = "use --netG unet_128 --load_size 143, or another crop: multiples of 256"
            raise UserError("--crop_size", f"{crop} does not fit {what}", fix)


def build_static_step(options: TrainOptions, trainer: Trainer) -> "StaticStep | None":
    """The recorded step that --graph asks for; None where the step runs eagerly."""
    graph, crop = options.device.graph, options.data.crop_size
    if graph == "off" or trainer.processes.world > 1 or why_no_graph(options, trainer.placement.device):
        return None
    if any(image.shape[1:] != (crop, crop) for pool in trainer.pools.values() for image in pool.images):
        say(
            "the training step is not recorded as a CUDA graph: the pool holds pictures of another --crop_size"
        )
        return None
    from gan.static_step import StaticStep

    return StaticStep(trainer, options.data.batch_size, must=graph == "on")


def why_no_graph(options: TrainOptions, device: torch.device) -> str:
    """Why the step of this training cannot be a CUDA graph; nothing where it can."""
    if device.type != "cuda":
        return f"needs a CUDA GPU, and the device is {device}"
    if options.device.compile:
        return "does not go with --compile"
    if options.device.grad_checkpoint:
        # it reads the state of the random generator, which a graph does not allow
        return "does not go with --grad_checkpoint"
    if options.data.preprocess in ("none", "scale_width"):
        return f"needs pictures of one size, and --preprocess {options.data.preprocess} gives many"
    return ""


def _refuse_untested(options: TrainOptions) -> None:
    """What does not work, or is not tested, with several processes."""
    for flag, is_asked in {
        "graph": options.device.graph == "on",
        "batch_passes": options.device.batch_passes,
    }.items():
        if is_asked:
            raise UserError(f"--{flag}", "is not tested under torchrun", "leave one of them out")
    if options.data.preprocess in ("none", "scale_width") and options.loss.pool_size:
        reason = f"{options.data.preprocess}: processes cannot exchange pictures of many sizes for the pools"
        raise UserError("--preprocess", reason, "use --pool_size 0, or resize_and_crop")


def _refuse_coupled_batches(networks: Mapping[str, nn.Module]) -> None:
    for name, network in networks.items():
        if any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()):
            reason = f"does not go with batch norm: in {name}, pictures of one batch change each other"
            raise UserError("--batch_passes", reason, "use --base_norm instance, or leave --batch_passes out")


@dataclass(frozen=True)
class TrainingData:
    """The training split, its fixed validation batch, and what the start-up scan found."""

    sources: Sources
    dataset: PairDataset
    report: ScanReport
    validation: Batch
    seed: int
    batch_size: int
    shuffle: bool
    num_threads: int
    pin_memory: bool
    rank: int = 0
    world: int = 1

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.dataset) // (self.batch_size * self.world))

    @property
    def pictures_per_step(self) -> int:
        return self.batch_size * self.world

    def batches_done(self, pictures: int) -> int:
        """How many batches hold the first `pictures` of an epoch; rounded down."""
        return self.steps_per_epoch if pictures >= len(self.dataset) else pictures // self.pictures_per_step

    def batches(self, epoch: int, start: int) -> Iterable[Batch]:
        """The batches of an epoch (from 1) without the first `start`, which are done already."""
        return epoch_batches(
            self.dataset,
            epoch=epoch,
            seed=self.seed,
            batch_size=self.batch_size,
            shuffle=self.shuffle,
            num_threads=self.num_threads,
            start=start,
            rank=self.rank,
            world=self.world,
            pin_memory=self.pin_memory,
        )


def build_data(
    options: TrainOptions, networks: Mapping[str, nn.Module] | None = None, processes: Processes = ALONE
) -> TrainingData:
    """Find, scan and cut the training split. UserError for anything that would stop the training later.

    networks: those that pictures must be large enough for. The first of several processes does it for all.
    """
    found = processes.from_first(partial(_find_data, options, networks))
    return replace(found, rank=processes.rank, world=processes.world)


def keep_pictures(options: TrainOptions, data: TrainingData, processes: Processes, spare: int) -> None:
    """Give the data the cache that --cache_gb asks for. The first of several processes makes it.

    spare: bytes that must stay free beside it.
    """
    dataset, limit = data.dataset, round(options.data.cache_gb * 1e9)
    if not limit:
        return
    channels = dataset.channels_a, dataset.channels_b
    maker = CacheMaker(data.sources, dataset.augmentation, channels, data.report.records)
    folder = Path(options.run.checkpoints_dir)
    dataset.cache = processes.from_first(lambda: maker.cache(folder, limit, spare))


def _find_data(options: TrainOptions, networks: Mapping[str, nn.Module] | None) -> TrainingData:
    data, model, seed = options.data, options.model, options.run.seed
    independent = model.model == "cycle_gan"
    augmentation = Augmentation(data.preprocess, data.load_size, data.crop_size, data.flip)
    on_gpu = find_device(options.device.device).type == "cuda"
    sources = find_sources(Path(data.dataroot), "train", data.dataset_mode, data.max_dataset_size)
    if not independent and not sources.is_paired:
        reason = f"{sources.root} holds no pairs ({sources.layout}), which pix2pix needs"
        fix = "use --model cycle_gan, or A/train + B/train with equal names"
        raise UserError("--dataroot", reason, fix)
    if not sources.b:
        reason = f"{sources.root} is one plain folder, good for translation only"
        fix = "training needs trainA + trainB, or side-by-side pictures in train/"
        raise UserError("--dataroot", reason, fix)
    sources = replace(sources, ranges=data.value_ranges)
    if data.direction == "BtoA" and not independent:  # cycle_gan learns both directions
        sources = sources.swapped()
    sources, report = scan(
        sources,
        crop_size=data.crop_size,
        preprocess=data.preprocess,
        channels=(model.input_nc, model.output_nc),
        independent=independent,
        skip_bad=data.skip_bad,
    )
    least = max((getattr(network, "min_size", 1) for network in (networks or {}).values()), default=1)
    halves = 2 if sources.layout == "aligned" else 1
    made = {size: augmentation.resized((size[0] // halves, size[1])) for size in report.sizes}
    small = [size for size in report.sizes if min(made[size]) < least]
    if data.preprocess in ("none", "scale_width") and small:  # any other value makes pictures of --crop_size
        (width, height), (w, h) = small[0], made[small[0]]
        reason = (
            f"{data.preprocess}: the networks need {least}x{least} pixels, and a picture has {width}x{height}"
        )
        fix = "use resize_and_crop, or remove small pictures"
        if data.preprocess == "scale_width":
            reason, fix = f"{reason}, which becomes {w}x{h}", "raise --load_size, or use resize_and_crop"
        raise UserError("--preprocess", reason, fix)
    for entry in report.bad:
        log_text(f"left out: {printable(entry)}")
    everything = partial(
        PairDataset,
        sources,
        augmentation,
        seed=seed,
        channels_a=model.input_nc,
        channels_b=model.output_nc,
        independent=independent,
        serial=data.serial_batches,
        skip_bad=data.skip_bad,
    )
    dataset = everything()
    chosen = validation_indices(len(dataset), data.val_count, seed)
    return TrainingData(
        sources,
        everything(exclude=chosen) if data.val_holdout else dataset,
        report,
        fixed_samples(dataset, chosen),
        seed,
        data.batch_size,
        shuffle=not data.serial_batches,
        num_threads=data.num_threads,
        pin_memory=on_gpu,
    )
