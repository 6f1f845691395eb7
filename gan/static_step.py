"""The training step as one CUDA graph: recorded once, then replayed without Python, with the bits of the eager step.

A graph repeats the same operations on the same memory. So everything that changes from step to step lies in tensors
that stay where they are: the batch, the learning rates, and the places of the pools that are read and written. The host
draws those places as it does without a graph.

Losses stay on the device, since looking at each would make the host wait for the GPU. The device keeps the first step
whose losses are not finite, and `StaticStep.first_bad` looks at it.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from datasets.errors import warn
from gan.losses import ImagePool
from gan.step import Batch, Trainer

Losses = dict[str, Tensor]
Record = Callable[[Callable[[], Losses]], tuple[Losses, Callable[[], None]]]
"""Carries a step out while it records it: the losses, and a function that does the same again."""

WARM_UP = 3  # steps: cuDNN chooses its algorithms, Adam makes its moments, kernels are built


class StaticStep:
    """Carries out training steps, as a graph where a batch has the shapes that were recorded, otherwise eagerly.

    batch_size: of the largest batch. record: how to record. With `must`, a failure to record is raised; without, it is
    told once. Takes over the pools and the learning rates of the trainer.
    """

    def __init__(
        self, trainer: Trainer, batch_size: int, *, must: bool = False, record: "Record | None" = None
    ) -> None:
        self._trainer, self._record, self._must = trainer, record or record_cuda_graph, must
        self._pools = {
            name: BankedPool(pool, batch_size) for name, pool in trainer.pools.items() if pool.size
        }
        trainer.pools.update(self._pools)
        hold_learning_rates(trainer)
        self._seen: dict[tuple[torch.Size, ...], int] = {}
        self._recorded: tuple[torch.Size, ...] | None = None
        self._buffers: dict[str, Tensor] = {}
        self._losses: Losses = {}
        self._replay: Callable[[], None] | None = None
        self._step: Tensor | None = None
        self._names: list[str] = []

    def __call__(self, batch: Batch, step: int) -> Losses:
        """Step number `step` (from 1). The losses are valid until the next call."""
        images = {name: batch[name] for name in ("A", "B")}
        for pool in self._pools.values():
            pool.draw(len(images["A"]))
        if self._step is None:
            device = self._trainer.placement.device
            self._step = torch.zeros((), dtype=torch.int64, device=device)
            self._bad_step = torch.full_like(self._step, -1)
        self._step.fill_(step)
        shapes = tuple(image.shape for image in images.values())
        if shapes == self._recorded:
            for name, image in images.items():
                self._buffers[name].copy_(image, non_blocking=True)
            assert self._replay
            self._replay()
            return self._losses
        self._seen[shapes] = self._seen.get(shapes, 0) + 1
        if self._recorded is None and self._seen[shapes] > WARM_UP:
            return self._start_recording(images, shapes)
        return self._eagerly(images)

    def first_bad(self) -> tuple[int, str, float] | None:
        """Number of the first step with a loss that was not finite, name and value of the loss. Waits for the GPU."""
        if self._step is None or (step := int(self._bad_step)) < 0:
            return None
        values = dict(zip(self._names, self._bad_losses.tolist(), strict=True))
        name = next(name for name, value in values.items() if not abs(value) < float("inf"))
        return step, name, values[name]

    def _eagerly(self, images: Mapping[str, Tensor]) -> Losses:
        losses = self._trainer.step(images).losses
        self._latch(losses)
        return losses

    def _latch(self, losses: Losses) -> None:
        """Keep the number and the losses of the first step that has one that is not finite."""
        values = torch.stack([loss.float() for loss in losses.values()])
        if not self._names:
            self._names, self._bad_losses = list(losses), torch.zeros_like(values)
        assert self._step is not None
        is_first = ~torch.isfinite(values).all() & (self._bad_step < 0)
        self._bad_losses.copy_(torch.where(is_first, values, self._bad_losses))
        self._bad_step.copy_(torch.where(is_first, self._step, self._bad_step))

    def _start_recording(self, images: Mapping[str, Tensor], shapes: tuple[torch.Size, ...]) -> Losses:
        put = self._trainer.placement.put
        self._buffers = {name: put(image).clone() for name, image in images.items()}
        try:
            self._losses, self._replay = self._record(lambda: self._eagerly(self._buffers))
        except RuntimeError as error:
            if self._must:
                raise
            warn("the training step was not recorded as a CUDA graph", f"{error}; it goes on without")
            self._recorded = ()  # no batch has these shapes
            return self._eagerly(images)
        self._recorded = shapes
        return self._losses


def record_cuda_graph(body: Callable[[], Losses]) -> tuple[Losses, Callable[[], None]]:
    """Record `body` as a CUDA graph, which carries nothing out, and replay it. Raises RuntimeError."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        losses = body()
    graph.replay()
    return losses, graph.replay


def hold_learning_rates(trainer: Trainer) -> None:
    """Put the learning rates into tensors, which `set_learning_rate` then fills.

    float32 on a GPU, where Adam's kernel reads no other; float64 elsewhere, which changes no bit.
    """
    device = trainer.placement.device
    dtype = torch.float32 if device.type == "cuda" else torch.float64
    for optimizer in trainer.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), dtype=dtype, device=device)
            group["capturable"] = device.type == "cuda"


class BankedPool(ImagePool):
    """An `ImagePool` whose images lie in one tensor. The host draws the places ahead of the step that uses them.

    It gives the same images, and draws the same numbers, as the pool that it goes on from.
    """

    def __init__(self, pool: ImagePool, batch_size: int) -> None:
        super().__init__(pool.size, pool.seed)
        self.images, self._random = pool.images, pool._random
        self._bank: Tensor | None = None  # one image more than the size: what is not kept goes there
        self._drawn: list[tuple[int, int]] = []
        self._places = torch.zeros((2, batch_size), dtype=torch.int64)  # where to read, where to write

    def draw(self, count: int) -> None:
        """Draw what `query` does with the next `count` images."""
        filled, self._drawn = len(self.images), []
        for _ in range(count):
            read, write = self._draw(filled)
            filled += write == filled
            self._drawn.append((self.size if read is None else read, self.size if write is None else write))
        if self._bank is not None:
            self._use_drawn(self._bank)

    def query(self, images: Tensor) -> Tensor:
        """As in `ImagePool`, after a `draw`. The operations are the same every time."""
        if self._bank is None:
            self._bank = images.new_zeros((self.size + 1, *images.shape[1:]))
            for place, image in enumerate(self.images):
                self._bank[place].copy_(image)
            self.images = list(self._bank[: len(self.images)].unbind())
            self._places = self._places.to(images.device)
            self._use_drawn(self._bank)
        chosen = []
        for i, image in enumerate(images.detach()):
            read, write = self._places[:, i : i + 1]
            stored = self._bank.index_select(0, read)[0]
            chosen.append(torch.where(read == self.size, image, stored))
            self._bank.index_copy_(0, write, image[None])
        return torch.stack(chosen)

    def _use_drawn(self, bank: Tensor) -> None:
        for _, write in self._drawn:
            if write == len(self.images) < self.size:
                self.images.append(bank[write])
        drawn = torch.tensor(self._drawn, dtype=torch.int64).T
        self._places[:, : len(self._drawn)].copy_(drawn, non_blocking=True)
