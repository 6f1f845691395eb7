"""The named protocol: everything that moves a number and is not the pictures themselves.

Two numbers may stand side by side only if their protocol ids are equal.
"""

from dataclasses import dataclass

VERSION = "i2i-1"  # raised when the definition of any metric or resize changes

METRIC_DEFINITIONS = {
    "fid": "TF-2015 Inception pool features, torch bilinear resize to 299 without antialiasing, float64 statistics",
    "fid_clean": "as FID, with an antialiased bicubic resize to 299 in floating point (PIL)",
    "kid": "unbiased squared MMD, kernel (x.y/d + 1)^3, mean of 100 subsets of min(100, n) images, FID's features",
    "lpips_target": "LPIPS v0.1, AlexNet, inputs in [-1, 1], mean over (output, its target)",
    "lpips_all_pairs": "LPIPS v0.1, AlexNet, mean over all (output, real image of the target domain) pairs",
    "lpips_input": "LPIPS v0.1, AlexNet, mean over (output, its input)",
    "psnr": "8-bit pixels, data range 255, mean of the pictures' values in dB",
    "ssim": "8-bit pixels, Gaussian window 11x11 with sigma 1.5, mean over channels, window positions, pictures",
    "l1": "mean absolute difference; black against white is 1",
}


@dataclass(frozen=True)
class Protocol:
    """size: side that all pictures are stretched to, or "WxH" where they are used as they are.

    mode: how outputs were made: "eval" or "train" (dropout and batch statistics on) for runs, "files" for folders of
    pictures. first: only so many test inputs, None for all; reals are never cut. verified: all weights are the
    published ones. half: Inception's features were computed in float16. colours: what outputs and reals are compared
    in, "RGB" or "L" (grey), or domain A's and domain B's where they differ, as in "L-RGB".
    """

    size: str
    mode: str
    first: int | None = None
    verified: bool = True
    half: bool = False
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
        if self.half:
            parts.append("float16")
        if not self.verified:
            parts.append("unverified-weights")
        return "/".join(parts)

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
        if self.half:
            sentences.append("Inception in float16, statistics in float64")
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
