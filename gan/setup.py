"""Options become objects: the one place where names turn into networks, optimisers, pools and data."""

import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from datasets.check import ScanReport, scan
from datasets.errors import UserError, log_text, printable
from datasets.layouts import Sources, find_sources
from datasets.loader import PairDataset, epoch_batches, fixed_samples, validation_indices
from datasets.transforms import Augmentation
from gan.cyclegan import CycleGAN
from gan.losses import ImagePool
from gan.options import TrainOptions, discriminator_norm, stored_dict, value_range
from gan.pix2pix import Pix2Pix
from gan.run import RunFolder, read_records
from gan.state import seed_everything, use_deterministic
from gan.step import Batch, Placement, Trainer, find_device
from gan.viewers import RunInfo, Viewer, Viewers
from gan.viewers.console import Console
from gan.viewers.page import Page
from models.build import build_discriminator, build_generator, initialize
from models.normalized_conv import NormalizedConv2d


@dataclass(frozen=True)
class TrainingData:
    """The training split, its fixed validation batch, and what the start-up scan found."""

    sources: Sources
    dataset: PairDataset
    report: ScanReport
    validation: Batch
    steps_per_epoch: int
    batches: Callable[[int, int], Iterable[Batch]]
    """(epoch, batches already done) -> the rest of that epoch."""


def generators(options: TrainOptions) -> dict[str, nn.Module]:
    """Untrained generators by name: G_A and G_B for cycle_gan, G for pix2pix."""
    model = options.model

    def generator(input_nc: int, output_nc: int) -> nn.Module:
        return build_generator(
            model.netG,
            input_nc=input_nc,
            output_nc=output_nc,
            ngf=model.ngf,
            norm=model.norm,
            base_norm=model.base_norm,
            dropout=model.dropout,
            nc_backend=model.nc_backend,
        )

    if model.model == "pix2pix":
        return {"G": generator(model.input_nc, model.output_nc)}
    return {
        "G_A": generator(model.input_nc, model.output_nc),
        "G_B": generator(model.output_nc, model.input_nc),
    }


def discriminators(options: TrainOptions) -> dict[str, nn.Module]:
    """Untrained discriminators by name: D_A (judges B) and D_B for cycle_gan, the conditional D for pix2pix."""
    model = options.model

    def discriminator(channels: int) -> nn.Module:
        return build_discriminator(
            model.netD,
            input_nc=channels,
            ndf=model.ndf,
            n_layers=model.n_layers_D,
            base_norm=discriminator_norm(options),
        )

    if model.model == "pix2pix":
        return {"D": discriminator(model.input_nc + model.output_nc)}
    return {"D_A": discriminator(model.output_nc), "D_B": discriminator(model.input_nc)}


def build_trainer(options: TrainOptions) -> Trainer:
    """Networks with their initial weights (from the seed), optimisers and pools, on the chosen device.

    Seeds every random generator: afterwards they stand where training begins. Raises UserError for what the device or
    the crop size does not allow.
    """
    seed, loss, schedule, wanted = options.run.seed, options.loss, options.schedule, options.device
    use_deterministic(options.run.deterministic)
    placement = Placement(find_device(wanted.device), wanted.precision == "bf16", wanted.channels_last)
    _check_nc_backend(options.model.nc_backend, placement)
    networks = generators(options) | discriminators(options)
    _check_sizes(options, networks)
    draws = torch.Generator().manual_seed(seed)
    for network in networks.values():
        initialize(network, options.model.init_type, options.model.init_gain, draws)
        placement.put_network(network)
        if wanted.compile:
            network.compile()  # in place: the names in the checkpoint stay the same
    seed_everything(seed)  # the numbers drawn for the weights do not shift those of the dropout

    def adam(*names: str) -> torch.optim.Adam:
        parameters = [p for name in names for p in networks[name].parameters()]
        return torch.optim.Adam(parameters, lr=schedule.lr, betas=(schedule.beta1, 0.999))

    if options.model.model == "pix2pix":
        return Pix2Pix(
            networks=networks,
            optimizers={"G": adam("G"), "D": adam("D")},
            pools={"AB": ImagePool(loss.pool_size, seed)},
            gan_mode=loss.gan_mode,
            lambda_L1=loss.lambda_L1,
            lambda_gp=loss.lambda_gp,
            placement=placement,
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
    )


def build_data(options: TrainOptions) -> TrainingData:
    """Find, scan and cut the training split. UserError for anything that would stop the training later."""
    data = options.data
    augmentation = Augmentation(data.preprocess, data.load_size, data.crop_size, data.flip)
    sources = find_sources(Path(data.dataroot), "train", data.dataset_mode, data.max_dataset_size)
    sources = replace(sources, ranges=(value_range(options, "A"), value_range(options, "B")))
    _check_layout(options, sources)
    independent = options.model.model == "cycle_gan"
    if data.direction == "BtoA" and not independent:  # cycle_gan learns both directions
        sources = sources.swapped()
    sources, report = scan(
        sources,
        crop_size=data.crop_size,
        preprocess=data.preprocess,
        independent=independent,
        skip_bad=data.skip_bad,
    )
    everything = partial(
        PairDataset,
        sources,
        augmentation,
        seed=options.run.seed,
        channels_a=options.model.input_nc,
        channels_b=options.model.output_nc,
        independent=independent,
        serial=data.serial_batches,
        skip_bad=data.skip_bad,
    )
    dataset = everything()
    chosen = validation_indices(len(dataset), data.val_count, options.run.seed)
    if data.val_holdout:
        dataset = everything(exclude=chosen)
    pinned = find_device(options.device.device).type == "cuda"

    def batches(epoch: int, start: int) -> Iterable[Batch]:
        return epoch_batches(
            dataset,
            epoch=epoch,
            seed=options.run.seed,
            batch_size=data.batch_size,
            shuffle=not data.serial_batches,
            num_threads=data.num_threads,
            start=start,
            pin_memory=pinned,
        )

    for entry in report.bad:
        log_text(f"left out: {printable(entry)}")
    steps = -(-len(dataset) // data.batch_size)
    return TrainingData(sources, dataset, report, fixed_samples(dataset, chosen), steps, batches)


def found_options(options: TrainOptions, data: TrainingData) -> dict[str, str]:
    """What `auto` has become for this run, so that a resumed training and test.py do not look again."""
    ranges = {domain: wanted for domain, wanted in zip("AB", data.sources.ranges, strict=True) if wanted}
    return {
        f"value_range_{domain}": f"{wanted[0]:.17g},{wanted[1]:.17g}"
        for domain, wanted in ranges.items()
        if value_range(options, domain) == "auto" and wanted != "auto"
    }


def build_viewers(options: TrainOptions, data: TrainingData, trainer: Trainer, run: RunFolder) -> Viewers:
    """The viewers of a training, started with what the run has recorded so far."""
    device = trainer.placement.device
    threads = f"{torch.get_num_threads()} threads"
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else threads
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    info = RunInfo(
        run.name, run.path, stored_dict(options), f"{platform.node()}, {device} ({card}), {versions}"
    )
    viewers = Viewers(choose_viewers(options, data))
    try:
        viewers.start(info, read_records(run.metrics))
    except BaseException:  # a second Ctrl-C: no server that was started stays behind
        viewers.close()
        raise
    return viewers


def choose_viewers(options: TrainOptions, data: TrainingData) -> list[Viewer]:
    """The page, the terminal and, unless it is off, Visdom."""
    viewers: list[Viewer] = [Page(), Console(options.schedule.epochs, data.steps_per_epoch)]
    wanted = options.viewer
    if wanted.visdom != "off":
        from gan.viewers.visdom import Visdom  # nobody else needs what it loads

        viewers.append(
            Visdom(
                mode=wanted.visdom,
                server=wanted.visdom_server,
                port=wanted.visdom_port,
                base_url=wanted.visdom_base_url,
                env=wanted.visdom_env or options.run.name,
                username=wanted.visdom_username,
                password=wanted.visdom_password or os.environ.get("VISDOM_PASSWORD", ""),
                keep=wanted.visdom_keep,
                controls=wanted.visdom_controls,
            )
        )
    return viewers


def _check_nc_backend(backend: str, placement: Placement) -> None:
    """Build the kernels for every dtype and layout that the run may meet. Raises UserError where that fails."""
    if backend != "cuda":
        return
    layer = placement.put_network(NormalizedConv2d(2, 2, 3, backend="cuda"))
    dtypes = (torch.float32, torch.bfloat16) if placement.bf16 else (torch.float32,)
    try:
        for x in (torch.ones(1, 2, 4, 4, dtype=dtype, device=placement.device) for dtype in dtypes):
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
            allowed = f"multiples of {multiple} from {least}" if multiple > 1 else f"{least} or more"
            raise UserError("--crop_size", f"{crop} does not fit {what}", f"allowed: {allowed}")


def _check_layout(options: TrainOptions, sources: Sources) -> None:
    if options.model.model == "pix2pix" and not sources.is_paired:
        reason = f"{sources.root} holds no pairs ({sources.layout}), which pix2pix needs"
        raise UserError("--dataroot", reason, "use --model cycle_gan, or A/train + B/train with equal names")
    if not sources.b:
        reason = f"{sources.root} is one plain folder, good for translation only"
        raise UserError(
            "--dataroot", reason, "training needs trainA + trainB, or side-by-side pictures in train/"
        )
