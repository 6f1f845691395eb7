"""Figures 3 and 4: pictures of the same test inputs by PONO+MS and NC+MS, below each other."""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from datasets.images import load_image
from evaluate.grids import save_grid
from evaluate.runs import RunChoice, test_sides
from evaluate.table3_options import Table3Options
from evaluate.table3_plan import OTHER, SETTINGS, Setting, Training, options_of
from evaluate.table3_results import TITLES, outputs_of
from gan.translate import output_names


def write_figures(
    reports: Mapping[Training, Mapping[str, object]], options: Table3Options, data_dir: Path, output: Path
) -> None:
    """figure3.png (CycleGAN) and figure4.png (Pix2Pix): rows input, PONO+MS, NC+MS, and the target if there is one."""
    for figure in sorted({setting.figure for setting in SETTINGS}):
        blocks = []
        for setting in SETTINGS:
            if setting.figure == figure:
                blocks += [
                    (f"{setting.title}: {setting.data.words(direction)}".replace("→", " to "), rows)
                    for direction in (setting.data.disk, OTHER[setting.data.disk])
                    if (rows := figure_rows(setting, direction, reports, options, data_dir))
                ]
        if blocks:
            save_grid(blocks, output / f"figure{figure}.png")


def figure_rows(
    setting: Setting,
    direction: str,
    reports: Mapping[Training, Mapping[str, object]],
    options: Table3Options,
    data_dir: Path,
) -> dict[str, list[Image.Image]]:
    """Caption -> pictures for one direction of one setting, of the first seed, evenly spread over the test split."""
    rows: dict[str, list[Image.Image]] = {}
    targets: list[Image.Image] = []
    for training, report in reports.items():
        trained = direction in (training.direction, *([] if setting.model == "pix2pix" else ["AtoB", "BtoA"]))
        if training.setting != setting or not trained or TITLES[training.norm] in rows:
            continue
        (row,) = [row for row in report["rows"] if row["direction"] == direction]  # type: ignore[attr-defined]
        folder = outputs_of(options.checkpoints_dir / training.name, row, direction)
        run_options = options_of(training.flags(data_dir, options.checkpoints_dir))
        choice = RunChoice(dataroot=data_dir / setting.data.name)
        sources, inputs, reals = test_sides(run_options, direction, choice)
        count = min(options.pictures, len(inputs))
        chosen = [round(i * (len(inputs) - 1) / max(count - 1, 1)) for i in range(count)]
        names = output_names([picture.path for picture in inputs])
        rows.setdefault("input", [inputs[i].load_image() for i in chosen])
        rows[TITLES[training.norm]] = [load_image(folder / names[i]) for i in chosen]
        targets = [reals[i].load_image() for i in chosen] if sources.is_paired else []
    return rows | ({"target": targets} if targets else {})
