"""Pictures a second of test.py, beside another program's: rounds in which all take turns, in one run.

    python -m benchmarks.translation --peer FOLDER [--data FOLDER] [--before FOLDER] [--rounds 5] [--output FILE]

FOLDER of --peer is a checkout of pytorch-CycleGAN-and-pix2pix, that of --before one of this project at another state.
--data holds `test` or `val` with side-by-side pictures of 512x256 pixels, such as the facades data set; without it,
such pictures are drawn. All use the same weights, a U-Net of 256 pixels, in eval mode and on one thread, and write
input, translation, target and a page. The peer takes one picture at a time. Commands are timed from start to end. The
time of a picture is that of a command for all, less one for a single picture. On a shared machine CPU time is steadier.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from benchmarks.loading import about, shown
from benchmarks.sides import Cost, Side
from benchmarks.steps import PEER, ROOT

WRITE_WEIGHTS = """
import torch
from models import networks

torch.manual_seed(0)
network = networks.define_G(3, 3, {ngf}, "unet_256", "batch", True)
torch.save(network.state_dict(), "x/latest_net_G.pth")
"""


Round = dict[str, tuple[Cost, Cost]]
"""By program, the costs of one picture and of all."""


@dataclass(frozen=True)
class Program:
    """A test.py with its flags."""

    name: str
    side: Side
    flags: str

    def cost(self, count: int) -> Cost:
        """Of the translation of `count` pictures, from the start of the command to its end."""
        results = tempfile.mkdtemp(dir=self.side.home)
        return self.side.run(f"test.py {self.flags} --num_test {count} --results_dir {results}")


def programs(folder: Path, peer: str, before: str, data: str, ngf: int) -> list[Program]:
    sides = [
        Side(name, Path(root).resolve(), folder) for name, root in ((PEER, peer), ("before", before)) if root
    ]
    phase = "test" if Path(data, "test").is_dir() else "val"
    (folder / "x").mkdir()
    sides[0].run("-c", WRITE_WEIGHTS.format(ngf=ngf))
    theirs = (
        f"--dataroot {data} --name x --checkpoints_dir . --model pix2pix --gpu_ids -1 --eval --phase {phase}"
    )
    ours = f"--dataroot {data} --weights x/latest_net_G.pth --device cpu --batch_size"
    found = [Program(f"{PEER}, batch 1", sides[0], f"{theirs} --ngf {ngf}")]
    for side in (*sides[1:], Side("ours", ROOT, folder)):
        found += [Program(f"{side.name}, batch {size}", side, f"{ours} {size}") for size in (1, 8)]
    return found


def rows(rounds: Sequence[Round], count: int) -> list[list[str]]:
    """Of each program: all pictures by the clock, then a picture by the clock and in CPU time; ratios to the first."""
    table, base = [], next(iter(rounds[0]))
    for name in rounds[0]:
        cells = [name]
        for form, scale, of in (
            (".1f", 1, lambda one, all_: all_.wall),
            (".0f", 1e3 / (count - 1), lambda one, all_: all_.wall - one.wall),
            (".0f", 1e3 / (count - 1), lambda one, all_: all_.cpu - one.cpu),
        ):
            mine, its = ([scale * of(*costs[program]) for costs in rounds] for program in (name, base))
            cells += [shown(mine, form), shown([b / a for a, b in zip(mine, its, strict=True)], ".2f")]
        table.append(cells)
    return table


def measured(ngf: int, given: argparse.Namespace) -> str:
    """The table for a network of `ngf` channels at full resolution."""
    with tempfile.TemporaryDirectory(prefix="translation-") as temporary:
        folder, data = Path(temporary), str(Path(given.data).resolve())
        if not given.data:
            data = f"{folder}/drawn"
            flags = f"--count {10 * given.count} --size 256 --layout aligned --output {data}"
            Side("ours", ROOT, folder).run(f"-m datasets.synthetic {flags}")
        chosen = programs(folder, given.peer, given.before, data, ngf)
        rounds: list[Round] = []
        while len(rounds) < given.rounds:
            turn = chosen if len(rounds) % 2 else chosen[::-1]
            costs = {program.name: (program.cost(1), program.cost(given.count)) for program in turn}
            rounds.append({program.name: costs[program.name] for program in chosen})
            print(f"round {len(rounds)} of {given.rounds} done", flush=True)
    headers = ["test.py", f"{given.count} pictures, s", "ratio", "a picture, ms", "ratio", "CPU ms", "ratio"]
    return tabulate(rows(rounds, given.count), headers, tablefmt="github", disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", required=True, help="a checkout of pytorch-CycleGAN-and-pix2pix")
    parser.add_argument("--before", default="", help="a checkout of this project at another state")
    parser.add_argument("--data", default="", help="a folder with `test` or `val` of side-by-side pictures")
    parser.add_argument("--count", type=int, default=48, help="pictures")
    parser.add_argument(
        "--ngf", type=int, nargs="+", default=[64], help="channels of the U-Net at full resolution"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "translation.md")
    given = parser.parse_args()
    tables = "\n\n".join(f"ngf {ngf}:\n\n{measured(ngf, given)}" for ngf in given.ngf)
    text = (
        f"# Translation\n\n{about(given.peer)}. {given.rounds} rounds, {given.count} "
        f"{'facades' if given.data else 'drawn'} pairs of 256 pixels, unet_256, one thread.\n"
        f"`python -m benchmarks.translation`. Medians and ranges; ratios of speed are within a round, to the first "
        f"line.\n\n{tables}\n"
    )
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
