"""Public data sets of the field: where they are and how many pictures they hold.

Counts are those of the published sets and are verified after unpacking. Hashes of the archives are not published;
the one of each download is recorded beside the data, so that a later one can be compared (`--sha256`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

_SERVER = "https://efrosgans.eecs.berkeley.edu"


@dataclass(frozen=True)
class KnownSet:
    """`counts`: pictures by folder; aligned folders hold side-by-side files."""

    url: str
    counts: Mapping[str, int]
    note: str


def _aligned(name: str, note: str, **counts: int) -> KnownSet:
    return KnownSet(f"{_SERVER}/pix2pix/datasets/{name}.tar.gz", counts, note)


def _unaligned(name: str, note: str, train_a: int, train_b: int, test_a: int, test_b: int) -> KnownSet:
    counts = {"trainA": train_a, "trainB": train_b, "testA": test_a, "testB": test_b}
    return KnownSet(f"{_SERVER}/cyclegan/datasets/{name}.zip", counts, note)


KNOWN_SETS: dict[str, KnownSet] = {
    "maps": _aligned("maps", "A aerial photo, B street map", train=1096, val=1098),
    "facades": _aligned("facades", "A photo, B labels", train=400, val=100, test=106),
    "night2day": _aligned("night2day", "A night, B day", train=17823, test=2287),
    "edges2shoes": _aligned("edges2shoes", "A edges, B photo", train=49825, val=200),
    "edges2handbags": _aligned("edges2handbags", "A edges, B photo", train=138567, val=200),
    "horse2zebra": _unaligned("horse2zebra", "A horses, B zebras", 1067, 1334, 120, 140),
    "apple2orange": _unaligned("apple2orange", "A apples, B oranges", 995, 1019, 266, 248),
    "summer2winter_yosemite": _unaligned("summer2winter_yosemite", "A summer, B winter", 1231, 962, 309, 238),
    "monet2photo": _unaligned("monet2photo", "A paintings, B photos", 1072, 6287, 121, 751),
    "cezanne2photo": _unaligned("cezanne2photo", "A paintings, B photos", 525, 6287, 58, 751),
    "ukiyoe2photo": _unaligned("ukiyoe2photo", "A prints, B photos", 562, 6287, 263, 751),
    "vangogh2photo": _unaligned("vangogh2photo", "A paintings, B photos", 400, 6287, 400, 751),
}
