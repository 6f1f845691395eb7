"""`--show_bands`: what samples, pages and metrics show of pictures with more bands than a screen has colours."""

import re
from collections.abc import Iterable

from datasets.errors import UserError


def shown_bands(count: int, chosen: str) -> tuple[int, ...]:
    """The bands, from 1, that a picture of `count` bands shows: one in grey or three in colour.

    chosen: --show_bands, which has a meaning for more than three bands. Raises UserError naming the flag.

    >>> shown_bands(3, "4,3,2"), shown_bands(5, "4,3,2"), shown_bands(5, ""), shown_bands(2, "")
    ((1, 2, 3), (4, 3, 2), (1, 2, 3), (1,))
    """
    if count <= 3:
        return (1, 2, 3) if count == 3 else (1,)
    if not re.fullmatch(r"(\d{1,2}(,\d{1,2},\d{1,2})?)?", chosen, re.ASCII):
        raise UserError("--show_bands", f"is {chosen}", "allowed: one or three numbers, such as 4,3,2")
    bands = tuple(int(number) for number in (chosen or "1,2,3").split(","))
    if not all(1 <= band <= count for band in bands):
        raise UserError("--show_bands", f"is {chosen}, and there are {count} bands", f"allowed: 1 to {count}")
    return bands


def about_shown_bands(counts: Iterable[int], chosen: str) -> str:
    """`bands 1,2,3 of 5 (--show_bands)`, if pictures of one of these numbers of bands do not show all; else empty."""
    said = [
        f"bands {','.join(map(str, shown_bands(count, chosen)))} of {count}"
        for count in sorted({*counts})
        if count not in (1, 3)
    ]
    return f"{' and '.join(said)} (--show_bands)" if said else ""
