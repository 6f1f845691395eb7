"""Table 3 for a terminal: a line for each direction, so that it fits a screen; table3.md has the paper's layout."""

from collections.abc import Sequence

from evaluate.table3_results import DIGITS, TITLES, Cell, TableRow

HEADS = ("", "", "", "FID", "n_fake/n_real", "published", "LPIPS", "published")
TEXTS = 3  # columns on the left; numbers stand on the right


def terminal_text(rows: Sequence[TableRow]) -> str:
    """All rows by data and model, then by direction; what repeats the line above is left out."""
    lines: list[Sequence[str]] = []
    for setting in dict.fromkeys(row.setting for row in rows):
        for side, words in (("ab", setting.data.a_to_b), ("ba", setting.data.b_to_a)):
            for row in (row for row in rows if row.setting == setting):
                name, way = setting.title, f"{side[0].upper()}→{side[1].upper()}: {words}"
                numbers = _numbers(row.cells[f"fid_{side}"], row.cells[f"lpips_{side}"])
                lines.append((name, way, TITLES.get(row.norm, row.norm), *numbers))
    shown: list[Sequence[str]] = [HEADS]
    for above, line in zip([HEADS, *lines], lines, strict=False):
        same_name = line[0] == above[0]
        same_way = same_name and line[1] == above[1]
        shown.append(("" if same_name else line[0], "" if same_way else line[1], *line[2:]))
    widths = [max(len(line[i]) for line in shown) for i in range(len(HEADS))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if i < TEXTS else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in shown
    )


def _numbers(fid: Cell, lpips: Cell) -> list[str]:
    found = []
    for cell, digits in ((fid, DIGITS["fid_ab"]), (lpips, DIGITS["lpips_ab"])):
        found += [cell.text(digits), f"{cell.published:.{digits}f}"]
    return [found[0], fid.counts_text, *found[1:]]
