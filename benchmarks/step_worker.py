"""One training step to be timed, in a process of its own: `python -m benchmarks.step_worker SPEC`, where SPEC is JSON.

Prints a line `ready` after its warm-up. Then every line N on its standard input makes it take N steps and print the
seconds of one step. The line `peak` prints the peak memory in bytes: of the process on a CPU, of torch on a GPU.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Step = Callable[[], Any]


def inputs(spec: dict[str, Any]) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    shape = (spec["batch"], 3, spec["size"], spec["size"])
    a, b = (2 * torch.rand(shape, generator=draws) - 1 for _ in range(2))
    return a, b


def ours(spec: dict[str, Any]) -> Step:
    """The step of this project. spec: model, size, batch, device, more (flags), graph."""
    from datasets.errors import prepare_for_torch
    from gan.command_line import parse_train
    from gan.setup import build_trainer
    from gan.static_step import StaticStep

    prepare_for_torch()  # memory as in every command
    size = str(spec["size"])
    flags = ["--dataroot", "none", "--model", spec["model"], "--device", spec["device"]]
    flags += ["--load_size", size, "--crop_size", size, "--batch_size", str(spec["batch"]), *spec["more"]]
    trainer = build_trainer(parse_train(flags)[0])
    a, b = inputs(spec)
    batch = {"A": a.pin_memory(), "B": b.pin_memory()} if spec["device"] == "cuda" else {"A": a, "B": b}
    if not spec["graph"]:
        return lambda: losses_of(trainer.step(batch).losses)
    static = StaticStep(trainer, spec["batch"], must=True)
    numbers = iter(range(1, 10**9))
    return lambda: static(batch, next(numbers))


def losses_of(losses: dict[str, Tensor]) -> list[float]:
    """As the loop does after every eager step."""
    values: list[float] = torch.stack([loss.float() for loss in losses.values()]).tolist()
    return values


def peers(spec: dict[str, Any]) -> Step:
    """The step of a checkout of pytorch-CycleGAN-and-pix2pix in the folder spec["peer"]."""
    sys.path.insert(0, spec["peer"])
    size, temporary = str(spec["size"]), tempfile.mkdtemp(prefix="peer-")
    sys.argv = ["train.py", "--dataroot", temporary, "--name", "x", "--checkpoints_dir", temporary]
    sys.argv += ["--model", spec["model"], "--load_size", size, "--crop_size", size]
    sys.argv += ["--batch_size", str(spec["batch"]), *spec["more"]]
    if spec["device"] == "cpu":
        sys.argv += ["--gpu_ids", "-1"]
    from options.train_options import TrainOptions

    from models import create_model

    options = TrainOptions().parse()
    if not hasattr(options, "device"):
        options.device = torch.device(spec["device"])
    model = create_model(options)
    model.setup(options)
    a, b = inputs(spec)

    def step() -> None:
        model.set_input({"A": a, "B": b, "A_paths": [], "B_paths": []})
        model.optimize_parameters()

    return step


def main() -> None:
    spec = json.loads(sys.argv[1])
    answer, sys.stdout = sys.stdout, sys.stderr  # the peer prints its options
    on_gpu = spec["device"] == "cuda"
    step = peers(spec) if spec.get("peer") else ours(spec)
    for _ in range(spec["warm_up"]):
        step()
    print("ready", file=answer, flush=True)
    for line in sys.stdin:
        if line.strip() == "peak":
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            print(torch.cuda.max_memory_allocated() if on_gpu else peak, file=answer, flush=True)
            continue
        if on_gpu:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(int(line)):
            step()
        if on_gpu:
            torch.cuda.synchronize()
        print((time.perf_counter() - begin) / int(line), file=answer, flush=True)


if __name__ == "__main__":
    main()
