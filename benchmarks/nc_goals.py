"""The goals of the CUDA backend as numbers, and the tables that answer them. Plain arithmetic: no GPU, no torch."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]
MISSING = "not measured"


def minimum_bytes(
    batch: int, channels: int, size: tuple[int, int], outputs: int, out: tuple[int, int], kernel: int, padding: int,
    item: int, reflect: bool = False,
) -> int:  # fmt: skip
    """Bytes that the kernels beside the convolutions must move in one forward and backward pass.

    With X, Y, W the values of x, y and the weight and P those of the padded x, half types (`item` = 2) move
    4 X + 5 Y + 4 W: x once for the statistics; z and y; dy, y and dz; x, the convolution's input gradient and dx; the
    weight and its gradient, each read and written. float32 moves P more, for the padded, centred copy. With a reflected
    border every type makes a copy, and the convolution's input gradient is as large as P.
    The one-channel maps count with two values per pixel and eight per patch, written and read.
    """
    return sum(kernel_bytes(batch, channels, size, outputs, out, kernel, padding, item, reflect).values())


def kernel_bytes(
    batch: int, channels: int, size: tuple[int, int], outputs: int, out: tuple[int, int], kernel: int, padding: int,
    item: int, reflect: bool = False,
) -> dict[str, int]:  # fmt: skip
    """The same by kernel. Per patch `scale` writes mu and s, `project` reads both and writes a and b, `collect` reads
    those once (its other reads hit the cache)."""
    height, width = size
    padded, area = (height + 2 * padding) * (width + 2 * padding), out[0] * out[1]
    x, y, w = batch * channels * height * width, batch * outputs * area, outputs * channels * kernel * kernel
    pixel, patch = 4 * batch * padded, 4 * batch * area
    border = batch * channels * padded
    copy = border if item > 2 or reflect else 0
    return {
        "prepare": item * 2 * w,
        "pixels": item * (x + copy) + 2 * pixel,
        "scale": item * 2 * y + 2 * pixel + 2 * patch,
        "project": item * 3 * y + 4 * patch,
        "collect": item * (2 * x + (border if reflect else x)) + 2 * patch,
        "finish": item * 2 * w,
    }


class Goal(NamedTuple):
    what: str
    limit: str
    rows: Callable[[Row], bool]
    value: Callable[[Row], float | None]
    met: Callable[[float], bool]


def _many(row: Row) -> bool:
    return row["batch"] in (4, 16)


def _one(row: Row) -> bool:
    return row["batch"] == 1


def _ratio(above: str, below: str, kind: str = "ms") -> Callable[[Row], float | None]:
    def value(row: Row) -> float | None:
        values = row[kind]
        return values[above] / values[below] if values.get(above) and values.get(below) else None

    return value


IN, CONV, CONVOLUTIONS = "conv+IN+ReLU", "conv+bias+ReLU", "convolutions alone"
GOALS = (
    Goal("reference / nc, time, batch 4 and 16", ">= 10", _many, _ratio("reference", "nc"), lambda v: v >= 10),
    Goal("nc / reference, extra peak memory", "<= 0.2", _many, _ratio("nc", "reference", "peak"), lambda v: v <= 0.2),
    Goal(f"nc / {IN}, time, batch 4 and 16", "<= 1.0", _many, _ratio("nc", IN), lambda v: v <= 1.0),
    Goal(f"nc / {IN}, time, batch 1 in a graph", "<= 1.0", _one, _ratio("nc", IN), lambda v: v <= 1.0),
    Goal(f"nc / {IN}, peak memory", "<= 1.0", _many, _ratio("nc", IN, "peak"), lambda v: v <= 1.0),
    Goal(f"nc / {CONV}, time, batch 4 and 16", "<= 1.25", _many, _ratio("nc", CONV), lambda v: v <= 1.25),
    Goal(f"nc / {CONV}, time, batch 1 in a graph", "<= 1.25", _one, _ratio("nc", CONV), lambda v: v <= 1.25),
    Goal(
        "bandwidth beside the convolutions / copy, batch 16", ">= 0.7", lambda r: r["batch"] == 16,
        lambda r: r.get("bandwidth"), lambda v: v >= 0.7,
    ),
    Goal("compiled direct / nc, time", ">= 1.0", _many, _ratio("compiled direct", "nc"), lambda v: v >= 1.0),
)  # fmt: skip


def summary(rows: Sequence[Row], host: Mapping[str, float]) -> list[dict[str, Any]]:
    """One entry a goal: the median over the rows it is about, per dtype and over all."""
    lines = []
    for goal in GOALS:
        values = [(row["dtype"], v) for row in rows if goal.rows(row) and (v := goal.value(row)) is not None]
        medians = {
            dtype: round(statistics.median([v for d, v in values if d == dtype]), 3)
            for dtype in sorted({d for d, _ in values})
        }
        overall = statistics.median([v for _, v in values]) if values else None
        verdict = MISSING if overall is None else ("met" if goal.met(overall) else "missed")
        lines.append(
            {
                "goal": goal.what,
                "limit": goal.limit,
                "median": None if overall is None else round(overall, 3),
                "by dtype": medians,
                "rows": len(values),
                "verdict": verdict,
            }
        )
    ratio = host["nc"] / host[IN] if host else None
    lines.append(
        {
            "goal": f"nc / {IN}, host time of one pass",
            "limit": "<= 1.0",
            "median": None if ratio is None else round(ratio, 3),
            "by dtype": {name: round(value, 1) for name, value in host.items()},
            "rows": int(bool(host)),
            "verdict": MISSING if ratio is None else ("met" if ratio <= 1 else "missed"),
        }
    )
    return lines


def summary_table(lines: Sequence[Row]) -> str:
    text = ["| goal | limit | median | by dtype | rows | verdict |", "|---|---|---|---|---|---|"]
    for line in lines:
        by = ", ".join(f"{name} {value}" for name, value in line["by dtype"].items())
        median = MISSING if line["median"] is None else line["median"]
        text.append(
            f"| {line['goal']} | {line['limit']} | {median} | {by} | {line['rows']} | {line['verdict']} |"
        )
    return "\n".join(text)


def kernel_table(rows: Sequence[Row]) -> str:
    """Medians over the positions at batch 16: each kernel's bandwidth over the copy's, and its share of the time."""
    kernels = ("prepare", "pixels", "scale", "project", "collect", "finish")
    text = ["| bandwidth / copy (share of the time) | " + " | ".join(kernels) + " |", "|---" * 7 + "|"]
    for dtype, layout in sorted({(r["dtype"], r["layout"]) for r in rows if r.get("kernel bandwidth")}):
        here = [r for r in rows if r.get("kernel bandwidth") and (r["dtype"], r["layout"]) == (dtype, layout)]
        cells = []
        for name in kernels:
            found = [
                (r["kernel bandwidth"][name], r["kernel us"][name] / sum(r["kernel us"].values()))
                for r in here
                if name in r["kernel bandwidth"]
            ]
            bandwidth, share = (
                (statistics.median(v) for v in zip(*found, strict=True)) if found else (0.0, 0.0)
            )
            cells.append(f"{bandwidth:.2f} ({share:.0%})" if found else MISSING)
        text.append(f"| {dtype}, {layout} | " + " | ".join(cells) + " |")
    return "\n".join(text)


HEADER = (
    f"| position | batch | dtype | layout | nc ms | nc / {IN} | nc / {CONV} | reference / nc | compiled direct / nc "
    f"| peak: nc / {IN} | peak: nc / reference | bandwidth / copy |\n" + "|---" * 12 + "|"
)


def row_text(row: Row) -> str:
    cells: list[float | None] = [
        row["ms"].get("nc"),
        _ratio("nc", IN)(row),
        _ratio("nc", CONV)(row),
        _ratio("reference", "nc")(row),
        _ratio("compiled direct", "nc")(row),
        _ratio("nc", IN, "peak")(row),
        _ratio("nc", "reference", "peak")(row),
        row.get("bandwidth"),
    ]
    texts = ["" if v is None else f"{v:.3f}" for v in cells]
    return "| " + " | ".join([row["position"], str(row["batch"]), row["dtype"], row["layout"], *texts]) + " |"
