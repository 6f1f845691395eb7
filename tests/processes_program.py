"""What torchrun starts in tests/test_processes.py: train.py with faults, or comparisons of many small trainings.

processes_program.py train FAULT ...      FAULT: KIND,RANK,STEP, such as kill,1,3; "" for none
processes_program.py compare FILE STEPS   writes the differences between several processes and one
processes_program.py evaluate FOLDER      trains with --eval_every, translates and evaluates the run in FOLDER
"""

import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from datasets.errors import UserError, run_command
from gan.processes import ALONE, Processes, join

RANK = int(os.environ.get("RANK", 0))


# --- train.py, with one process that fails or is stopped in one of its steps


def fail(kind: str, trainer: Any) -> None:
    import torch

    if kind in ("kill", "term", "usr1"):
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "term": signal.SIGTERM, "usr1": signal.SIGUSR1}[kind])
    elif kind == "picture":
        raise UserError("p1.png", "is damaged", "remove it")
    elif kind == "memory":
        raise RuntimeError("CUDA out of memory")
    elif kind == "bug":
        raise KeyError("a bug")
    elif kind == "nan":
        with torch.no_grad():
            next(iter(trainer.networks.values())).requires_grad_(True)
            next(next(iter(trainer.networks.values())).parameters()).fill_(float("nan"))
    elif kind == "spoil":  # all but one picture of A
        root = Path(sys.argv[sys.argv.index("--dataroot") + 1])
        for path in sorted((root / "trainA").iterdir())[1:]:
            path.write_bytes(b"no picture")
    elif kind == "disk":
        import gan.loop

        def full(*_: object, **__: object) -> None:
            raise UserError("checkpoint", "no space left on the device", "free some space")

        gan.loop.save_checkpoint = full  # type: ignore[assignment]


def train_with(fault: str) -> int:
    from gan import cyclegan, pix2pix

    kind, rank, step = fault.split(",") if fault else ("", "-1", "0")
    done = 0
    if int(rank) == RANK and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        for model in (cyclegan.CycleGAN, pix2pix.Pix2Pix):

            def patched(self: Any, batch: Any, real: Any = model.step) -> Any:
                nonlocal done
                done += 1
                if done == int(step):
                    if told := os.environ.get("TELL_FAULT"):
                        Path(told).write_text(str(time.time()))
                    fail(kind, self)
                return real(self, batch)

            model.step = patched  # type: ignore[method-assign]
    return train.main()


# --- several processes against one, in float64

SMALL = (
    "--dataroot none --crop_size 16 --load_size 16 --ngf 8 --ndf 4 --netD pixel --netG resnet_6blocks --device cpu "
    "--no_dropout"
)
NORMS = ("instance", "none", "pono", "pono_ms", "pono_dms", "nc", "nc_ms", "nc_dms")
CASES = {
    **{norm: f"--model cycle_gan --norm {norm} --pool_size 0" for norm in NORMS},
    "pix2pix": "--model pix2pix --norm nc_ms --base_norm instance --pool_size 0",
    "pix2pix with a pool": "--model pix2pix --norm instance --pool_size 3",
    "pools": "--model cycle_gan --pool_size 3 --gan_mode hinge",
    "pools, other channels": "--model cycle_gan --input_nc 1 --output_nc 3 --lambda_identity 0 --pool_size 3",
}
SIZES = [2, 2, 1, 2]
"""Pictures in the global batches of the steps: with 2 processes, one goes without in the third."""


def differences(flags: str, sizes: list[int], processes: Processes) -> Mapping[str, float]:
    """The largest difference of a weight after these steps: to one process, and between the processes."""
    import torch

    from gan.command_line import parse_options
    from gan.setup import build_trainer

    options = parse_options([*SMALL.split(), *flags.split()])
    together, alone = build_trainer(options, processes), build_trainer(options, ALONE)
    for trainer in (together, alone):
        for network in trainer.networks.values():
            network.double()
    draws, rank = torch.Generator().manual_seed(1), processes.rank
    a, b, worst = options.model.input_nc, options.model.output_nc, 0.0
    for step, size in enumerate(sizes, start=1):
        batch = {
            side: torch.rand(size, count, 16, 16, generator=draws, dtype=torch.float64) * 2 - 1
            for side, count in (("A", a), ("B", b))
        }
        own = {
            side: (images[rank : rank + 1] if rank < size else images[:1]) for side, images in batch.items()
        }
        counts = [int(other < size) for other in range(processes.world)]
        processes.begin_step(0, step)
        losses = together.step({**own, "counts": counts}).losses
        assert processes.agree() is None
        mean = processes.mean({name: float(loss) for name, loss in losses.items()}, counts)
        expected = alone.step(batch).losses
        worst = max(worst, *(abs(value - float(expected[name])) for name, value in mean.items()))
    weights = [torch.cat([p.detach().reshape(-1) for net in t.networks.values() for p in net.parameters()])
               for t in (together, alone)]  # fmt: skip
    everyone = processes.gather(lambda: weights[0])
    return {
        "to one process": float((weights[0] - weights[1]).abs().max()),
        "between processes": max(float((one - everyone[0]).abs().max()) for one in everyone),
        "losses": worst,
    }


def compare(file: Path, steps: int) -> int:
    with join() as processes:
        found = {
            name: differences(flags, SIZES * (steps // len(SIZES)), processes)
            for name, flags in CASES.items()
        }
        if processes.is_first:
            file.write_text(json.dumps(found))
        return 0


# --- what is shared out beside training, with networks that are fast


def evaluate_everything(folder: Path, processes: Processes = ALONE) -> None:
    """A training with --eval_every, test.py, and `python -m evaluate` on the run FOLDER/runs/r, into FOLDER/out."""
    from unittest import mock

    from evaluate_support import FewFeatures, asked

    import evaluate.command
    from evaluate.training import TrainingMetrics
    from evaluate.weights import WeightsChoice
    from gan.command_line import parse_options
    from gan.translate_command import run_test
    from gan.translation_options import TranslationOptions

    data, runs, out = folder / "data", folder / "runs", folder / "out"
    flags = "fid,kid,lpips,psnr,ssim,l1"
    for batch_size in (1, 2):
        run_test(
            TranslationOptions(
                name="r", checkpoints_dir=str(runs), input=(str(data / "mixed"),), device="cpu",
                output=str(out / f"translated_{batch_size}"), batch_size=batch_size,
            ),
            processes,
        )  # fmt: skip
    with (
        mock.patch.object(evaluate.command, "Networks", lambda *_: FewFeatures()),
        mock.patch.object(WeightsChoice, "find", lambda *_: (FewFeatures().weights, {})),
    ):
        report = out / "report"
        options = asked(
            runs=runs / "r", metrics="fid,kid,lpips", bootstrap=20, batch_size=3, output=report, device="cpu"
        )
        evaluate.command.run_evaluation(dataclasses.replace(options, cache_dir=out / "cache"), processes)
    together, alone = (TrainingMetrics(flags.split(","), FewFeatures(), p) for p in (processes, ALONE))

    def both(images: Any) -> dict[str, float]:
        found, expected = together(images), alone(images)
        assert all(abs(found[name] - expected[name]) <= 1e-9 * abs(expected[name]) for name in expected), (
            found
        )
        return found

    small = "--load_size 48 --crop_size 48 --ngf 2 --ndf 2 --netD pixel --netG resnet_6blocks --num_threads 0"
    where = ["--dataroot", str(data), "--checkpoints_dir", str(out), "--name", "trained", "--visdom", "off"]
    length = "--n_epochs 1 --n_epochs_decay 0 --val_count 3 --eval_every 1 --model pix2pix --device cpu"
    train.train(parse_options([*where, *small.split(), *length.split()]), None, both, processes)


def evaluate_together(folder: Path) -> int:
    with join() as processes:
        evaluate_everything(folder, processes)
        return 0


if __name__ == "__main__":
    what, argument, *sys.argv[1:] = sys.argv[1:]
    if what == "train":
        run_command(lambda: train_with(argument))
    if what == "evaluate":
        run_command(lambda: evaluate_together(Path(argument)))
    run_command(lambda: compare(Path(argument), int(sys.argv[1])))
