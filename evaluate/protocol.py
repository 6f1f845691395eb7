"""The named protocol: everything that moves a number and is not the pictures themselves.

Two numbers may stand side by side only if their protocol ids are equal.
"""

from dataclasses import dataclass

VERSION = "i2i-1"  # raised when the definition of any metric or resize changes


@dataclass(frozen=True)
class Protocol:
    """size: side that all pictures are stretched to, or "WxH" where they are used as they are.

    mode: how outputs were made: "eval" or "train" (dropout and batch statistics on) for runs, "files" for folders of
    pictures. first: only so many test inputs, None for all; reals are never cut. verified: all weights are the
    published ones. colours: what outputs and reals are compared in, "RGB" or "L" (grey), or domain A's and domain B's
    where they differ, as in "L-RGB".
    """

    size: str
    mode: str
    first: int | None = None
    verified: bool = True
    colours: str = "RGB"

    @property
    def id(self) -> str:
        """Short name that is printed with every number.

        >>> Protocol("256", "eval").id
        'i2i-1/256/eval'
        >>> Protocol("256", "eval", colours="L").id
        'i2i-1/256/eval/L'
        """
        parts = [VERSION, self.size, self.mode, *([self.colours] if self.colours != "RGB" else [])]
        if self.first is not None:
            parts.append(f"first{self.first}")
        if not self.verified:
            parts.append("unverified-weights")
        return "/".join(parts)

    @property
    def smallest_side(self) -> int:
        """Of the compared pictures, in pixels."""
        return min(int(side) for side in self.size.split("x"))

    def sentences(self) -> list[str]:
        """What the id stands for, in words."""
        native = "x" in self.size
        made = {
            "eval": "outputs made in eval mode (dropout off, running statistics), written as 8-bit PNG",
            "train": "outputs made in train mode (dropout and batch statistics on), written as 8-bit PNG",
            "files": "outputs read from the folder as they are",
        }[self.mode]
        sentences = [
            f"all pictures are {self.size} pixels and used as they are"
            if native
            else f"all pictures stretched to {self.size}x{self.size} pixels (PIL bicubic, no crop, no flip)",
            made,
            _seen(self.colours),
            *self._counted(),
        ]
        if not self.verified:
            sentences.append("WEIGHTS NOT VERIFIED: these numbers compare with no others")
        return sentences

    def _counted(self) -> tuple[str, str]:
        which = "all" if self.first is None else f"the first {self.first}"
        if self.mode == "files":
            return f"fakes: {which} pictures of their folder", "reals: all pictures of theirs, never cut"
        return (
            f"outputs of {which} test inputs" + (" only" if self.first is not None else ""),
            "reals: all test pictures of the target domain, through the same resize",
        )


def _seen(colours: str) -> str:
    words = {"RGB": "in RGB", "L": "in grey (luma, shown to the networks as three equal channels)"}
    if "-" in colours:
        a, b = colours.split("-")
        return f"domain A compared {words[a]}, domain B {words[b]}"
    return f"outputs and real images compared {words[colours]}"
