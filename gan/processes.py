"""The processes of one training under torchrun: who is there, what they exchange, and how they end together.

Without torchrun there is ALONE, which exchanges nothing and never imports torch.distributed. Gradients are averaged by
hand, in one flat all_reduce an optimiser: there is no wrapper around a network, so nothing depends on how often or in
which order a step calls it.

A process that fails leaves a mark in the store that torchrun gives to all. The first one to do so prints its message;
the others end silently.
"""

import contextlib
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from datasets.errors import RunError, UserError, as_user_error, set_quiet
from gan.signals import STOP_SIGNALS, StopRequest

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Value = TypeVar("Value")

WAIT = timedelta(minutes=30)
"""How long a process waits for the others: the first one may be saving, or scanning much data."""
GRACE = 6.0  # seconds that a process has to end by itself after another one has failed


class PeerFailed(Exception):
    """Another process of the training has failed: it has the message."""


@dataclass(frozen=True)
class Processes:
    """This process (`rank`, from 0) among `world` of them. Rank 0 alone writes, shows and validates.

    group: what exchanges gradients, None for the default group (gloo).
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    group: Any = None
    store: Any = None
    _flags: "list[Tensor]" = field(default_factory=list)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What `make` returns in the first process, which alone calls it. If it raises there, all fail."""
        if self.world == 1:
            return make()
        import torch.distributed as dist

        message: list[Any] = [None]
        if self.is_first:
            try:
                message = [("value", make())]
            except BaseException as error:
                is_help = isinstance(error, SystemExit) and not error.code
                with _collective():
                    dist.broadcast_object_list([("help" if is_help else "failed", None)], 0)
                raise
        with _collective():
            dist.broadcast_object_list(message, 0)
        kind, value = message[0]
        if kind == "help":
            raise SystemExit(0)
        if kind == "failed":
            raise PeerFailed
        result: Value = value
        return result

    def gather(self, make: Callable[[], Value]) -> list[Value]:
        """What `make` returns in every process, by rank. If it raises in one, the same error is raised in all."""
        if self.world == 1:
            return [make()]
        import torch.distributed as dist

        own: Any
        try:
            own = make()
        except Exception as error:
            own = as_user_error(error) or RunError("internal error", f"{type(error).__name__}: {error}")
        found: list[Any] = [None] * self.world
        with _collective():
            dist.all_gather_object(found, own)
        if errors := [one for one in found if isinstance(one, UserError)]:
            raise errors[0]
        return found

    def take_gpu(self, device: "torch.device") -> bool:
        """Make this process's GPU the current one; False for CPUs. Raises UserError where there are too few."""
        if self.world == 1 or device.type == "cpu":
            return False
        import torch

        if device.type != "cuda":
            raise UserError(
                "--device", f"{device.type} serves one process", "use --device cpu under torchrun"
            )
        there = torch.cuda.device_count()
        if self.local_rank >= there:
            reason = f"process {self.local_rank + 1} of this machine has no GPU: there are {there}"
            raise UserError("--nproc-per-node", reason, f"use {there} at most, or --device cpu")
        torch.cuda.set_device(self.local_rank)
        return True

    def use(self, device: "torch.device") -> "Processes":
        """These processes with their GPUs, if `device` is one, and NCCL for what these exchange."""
        if not self.take_gpu(device):
            return self
        import torch
        import torch.distributed as dist

        own = torch.device("cuda", self.local_rank)
        return replace(self, group=dist.new_group(backend="nccl", timeout=WAIT, device_id=own))

    def place(self, network: "nn.Module") -> "nn.Module":
        """On GPUs, batch norm with the statistics of all processes. On CPUs torch has none: see `reduce`."""
        if self.group is None:
            return network
        from torch.nn import SyncBatchNorm

        synchronised: nn.Module = SyncBatchNorm.convert_sync_batchnorm(network, self.group)
        return synchronised

    def spread(self, networks: "Iterable[nn.Module]") -> None:
        """Give all processes the weights and running statistics of the first."""
        if self.world == 1:
            return
        import torch
        import torch.distributed as dist

        tensors = [t for network in networks for t in network.state_dict().values() if t.is_floating_point()]
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with _collective():
            dist.broadcast(flat, 0, group=self.group)
        _put_back(flat, tensors)

    def begin_step(self, seed: int, step: int) -> None:
        """Seed dropout by step and rank, so that no process has a random state of its own to keep."""
        if self.world == 1:
            return
        import torch

        from datasets.loader import stable_hash

        torch.manual_seed(stable_hash(seed, "step", step, self.rank))

    def reduce(self, tensors: "Sequence[Tensor]", counts: Sequence[int], losses: "Iterable[Tensor]") -> None:
        """Replace tensors (gradients, running statistics) by their mean over the step's pictures, in one all_reduce.

        counts: pictures of every process in this step; one without a picture adds zeros. Behind the tensors travel how
        many processes have received each signal, and how many have a loss that is not finite: see `agree`.
        """
        import torch
        import torch.distributed as dist

        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        is_finite = torch.stack([loss.detach() for loss in losses]).isfinite().all()
        signals = flat.new_tensor([number == StopRequest.latest for number in STOP_SIGNALS])
        share = counts[self.rank] / sum(counts)
        flat = flat.mul_(share) if share else flat.zero_()
        is_bad = (~is_finite).to(flat.dtype)[None]
        bucket = torch.cat([flat, signals, is_bad])
        with _collective():
            dist.all_reduce(bucket, group=self.group)
        _put_back(bucket[: len(flat)], tensors)
        self._flags.append(torch.cat([bucket[len(flat) :], is_bad]))

    def agree(self) -> int | None:
        """The signal that any process has received by this step.

        Raises PeerFailed if a loss of another process is not finite, and none of this one's was before.
        """
        import torch

        rows = torch.stack(self._flags).tolist()
        self._flags.clear()
        if bad := next((row for row in rows if row[-2]), None):
            if not bad[-1]:
                raise PeerFailed
            return None  # this process will say so
        signals = [sum(counts) for counts in zip(*rows, strict=True)][:-2]
        return next((number for number, count in zip(STOP_SIGNALS, signals, strict=True) if count), None)

    def gather_images(self, batches: "Sequence[Tensor]", counts: Sequence[int]) -> "list[Tensor]":
        """The pictures of all processes, by rank: for each of these (n, C, H, W) one of sum(counts) pictures.

        One all_gather. counts: pictures of every process; all pictures of a batch have one size.
        """
        import torch
        import torch.distributed as dist

        most, batches = max(counts), [batch.contiguous() for batch in batches]
        padded = [torch.cat([b, b.new_zeros(most - len(b), *b.shape[1:])]) for b in batches]
        own = torch.cat([batch.reshape(-1) for batch in padded])
        everyone = [torch.empty_like(own) for _ in counts]
        with _collective():
            dist.all_gather(everyone, own, group=self.group)
        parts = [flat.split([batch.numel() for batch in padded]) for flat in everyone]
        return [
            torch.cat([part[i].view_as(batch)[:n] for part, n in zip(parts, counts, strict=True)])
            for i, batch in enumerate(padded)
        ]

    def share_images(self, images: "dict[str, Tensor]") -> "dict[str, Tensor]":
        """The pictures of the first process, (N, C, H, W) by kind; on the CPU where there are several."""
        if self.world == 1:
            return images
        return self.from_first(lambda: {kind: batch.cpu() for kind, batch in images.items()})

    def mean(self, losses: Mapping[str, float], counts: Sequence[int]) -> dict[str, float]:
        """Losses as their mean over the pictures of a step."""
        if self.world == 1:
            return dict(losses)
        import torch
        import torch.distributed as dist

        total = torch.tensor(list(losses.values()), dtype=torch.float64) * counts[self.rank] / sum(counts)
        with _collective():
            dist.all_reduce(total)
        return dict(zip(losses, total.tolist(), strict=True))

    def is_first_to(self, deed: str) -> bool:
        """Whether no process of the training has asked this before. False too where the store is gone."""
        if self.world == 1:
            return True
        try:
            return bool(self.store.add(deed, 1) == 1)
        except RuntimeError:
            return False


ALONE = Processes()
"""The ordinary case: one process."""


def job() -> str:
    """Names the torchrun command that has started this process, or nothing: the same one after a restart.

    TORCHELASTIC_RESTART_COUNT would not tell: it counts what has failed on this machine alone.
    """
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"torchrun {run_id}, pid {os.getppid()} on {socket.gethostname()}" if run_id else ""


@contextlib.contextmanager
def join() -> Iterator[Processes]:
    """Join the processes that torchrun has started with this one, and end with them; ALONE without torchrun.

    An error inside ends all of them: the first process that has one raises it, the others leave without a word.
    """
    if not job() or os.environ.get("WORLD_SIZE") == "1":
        yield ALONE
        return
    import torch.distributed as dist

    store, rank, world = next(dist.rendezvous("env://", timeout=WAIT))
    store = dist.PrefixStore(_attempt(store, rank, world), store)
    if rank:  # the first process has the console
        set_quiet(True)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for the rest of this process
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=WAIT)
    processes = Processes(rank, world, int(os.environ["LOCAL_RANK"]), store=store)
    is_done = threading.Event()
    threading.Thread(target=_end_with_others, args=(store, is_done), daemon=True).start()
    try:
        yield processes
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:  # --help
            raise
        if isinstance(error, PeerFailed):
            _wait_for_mark(store)
        if not processes.is_first_to(_FAILED):
            _leave()
        set_quiet(False)
        if isinstance(error, PeerFailed):
            reason = "another process of this training has ended"
            raise RunError("torchrun", reason, "its summary says which one, and how") from error
        raise
    is_done.set()
    dist.destroy_process_group()


_FAILED = "failed"  # the mark in the store


def _attempt(store: Any, rank: int, world: int) -> str:
    """A name that the processes of this start have in common, and those before a restart had not.

    After a restart, torchrun's store still holds what the dead have written, addresses too. So every process asks
    under a name of its own, and the first one, which must be alive for this, answers.
    """
    if rank:
        own = secrets.token_hex(8)
        store.set(f"asks {rank}", own)
        attempt: str = store.get(f"answer to {own}").decode()
        store.set(f"{attempt} has {rank}", "")
        return attempt
    attempt = secrets.token_hex(8)
    for other in range(1, world):
        while not store.check([f"{attempt} has {other}"]):
            if store.check([f"asks {other}"]):
                store.set(f"answer to {store.get(f'asks {other}').decode()}", attempt)
            time.sleep(0.02)
    return attempt


@contextlib.contextmanager
def _collective() -> Iterator[None]:
    """A connection breaks where another process has ended: torch's text about it helps nobody."""
    try:
        yield
    except RuntimeError as error:
        raise PeerFailed from error


def _wait_for_mark(store: Any) -> None:
    """Give the process that has failed the time to say so itself. One that was killed does not."""
    with contextlib.suppress(RuntimeError):
        end = time.monotonic() + GRACE
        while time.monotonic() < end and StopRequest.latest is None and not store.check([_FAILED]):
            time.sleep(0.05)


def _leave() -> None:
    """End without a word; a little later than the one that has failed, which torchrun is to name as the cause."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    if StopRequest.latest is None:  # torchrun has not ended us yet
        time.sleep(GRACE)
    os._exit(1)


def _end_with_others(store: Any, is_done: threading.Event) -> None:
    """Runs in a thread: a process that hangs in a collective of NCCL hears neither of errors nor of signals."""
    while not is_done.wait(1):
        try:
            has_failed = store.check([_FAILED])
        except RuntimeError:  # the store is gone, and torchrun with it
            has_failed = True
        if has_failed and not is_done.wait(GRACE):
            os._exit(1)


def _put_back(flat: "Tensor", tensors: "Sequence[Tensor]") -> None:
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        # as data: a backward pass that is still to come does not read the running statistics that it names
        tensor.data.copy_(part.view_as(tensor))
