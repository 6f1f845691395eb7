"""A generator as one graph from pictures to pictures, which programs without this code can run.

The graph takes any number of pictures of one size from 2x2. What `Translator` does around the network is part of it:
the values become -1 to 1, the sides grow to what the network takes, and the translation is cropped back.
"""

import contextlib
import copy
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.fx.experimental._config as tracing
from torch import Tensor, nn

from datasets.images import to_unit_range
from models import NormalizedConv2d

INPUT, OUTPUTS = "image", ("translation", "values")
"""Names in the graph: pictures; their translations as pictures, and in full precision."""

AXES = {0: "batch", 2: "height", 3: "width"}
"""Those of the input that may have any length."""

OPSET = 20  # of the operators in an ONNX file
OF_THE_SOURCE = ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn")
"""What a traced graph keeps of the code that it was made from, paths on this machine among it."""


class PictureGraph(nn.Module):
    """Pictures (N, C, H, W) uint8 -> translations (N, O, H, W): uint8, and float32 in [0, 1].

    Everything that depends on the size is written as tensors of indices: a graph has no branches.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).eval()
        self.multiple, self.least = size_rule(network)
        for layer in self.network.modules():
            if isinstance(layer, NormalizedConv2d):
                layer.backend = "direct"  # `auto` would choose by the size

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        height, width = image.shape[2:]
        rows, columns = self._padded(height), self._padded(width)
        mirrored_rows, mirrored_columns = 2 * (height - 1) - rows, 2 * (width - 1) - columns
        is_large = (mirrored_rows.min() >= 0) & (mirrored_columns.min() >= 0)  # as in `pad_to_fit`
        rows = torch.minimum(rows, torch.where(is_large, mirrored_rows, height - 1))  # (H + down,)
        columns = torch.minimum(columns, torch.where(is_large, mirrored_columns, width - 1))  # (W + right,)
        x = to_unit_range(image).index_select(2, rows).index_select(3, columns)
        y = self.network(x)  # (N, O, H + down, W + right)
        y = y.index_select(2, torch.arange(height)).index_select(3, torch.arange(width))  # (N, O, H, W)
        levels = (y.clamp(-1, 1) + 1) * 127.5
        return levels.round().to(torch.uint8), levels / 255

    def _padded(self, length: int) -> Tensor:
        """0, 1, 2, ... for each row or column of the padded picture."""
        # written so that it divides positive numbers only: ONNX rounds others towards zero
        times = (length + self.multiple - 1) // self.multiple
        least = (self.least + self.multiple - 1) // self.multiple
        return torch.arange(self.multiple * torch.sym_max(times, least))


def size_rule(network: nn.Module) -> tuple[int, int]:
    """The sides of what the network takes are multiples of the first, and not less than the second."""
    return int(getattr(network, "size_multiple", 1)), int(getattr(network, "min_size", 1))


def export_graph(network: nn.Module, input_nc: int) -> torch.export.ExportedProgram:
    """The graph of a network on the CPU, in ATen operators only, for every batch, height and width."""
    side, _ = size_rule(network)
    example = torch.zeros(2, input_nc, side + 3, 2 * side + 5, dtype=torch.uint8)
    sizes = {axis: torch.export.Dim(name, min=1 if name == "batch" else 2) for axis, name in AXES.items()}
    # without it, a side of 1 inside a U-Net would be a case of its own; torch's exporter to ONNX sets it too
    any_side = tracing.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with torch.no_grad(), any_side:
        program = torch.export.export(
            PictureGraph(network), (example,), dynamic_shapes={INPUT: sizes}, strict=False
        )
    for node in program.graph.nodes:
        for name in OF_THE_SOURCE:
            node.meta.pop(name, None)
    return program


def write_pt2(program: torch.export.ExportedProgram, path: Path, metadata: dict[str, str]) -> None:
    """Write the graph as `torch.export.load` reads it, the metadata as its extra files."""
    with _quiet(), path.open("wb") as file:  # a path would have to end in .pt2
        torch.export.save(program, file, extra_files=metadata)


def read_pt2(path: Path) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The graph in a file as a function of pictures."""
    with _quiet(), path.open("rb") as file:
        return torch.export.load(file).module()


def write_onnx(program: torch.export.ExportedProgram, path: Path, metadata: dict[str, str]) -> None:
    """Write the graph as one ONNX file, its axes named as in AXES."""
    with _quiet():
        found = torch.onnx.export(
            program,
            (),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes={INPUT: AXES},
        )
    assert found is not None
    found.model.metadata_props.update(metadata)
    for node in found.model.graph.all_nodes():
        node.metadata_props.clear()
    found.save(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The libraries tell of their own insides; what matters to the caller is compared afterwards."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
