"""What the paper's protocol measures: which damage, and the exact bytes of it.

The paper trains and tests on occlusion, noise and lost blocks at 256x256, alone and together. It
leaves the rest open; what fills the gaps is said at each constant.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from fastrestore.arrays import F32, U8
from fastrestore.atomic import label as shown
from fastrestore.degrade import add_noise, make_mask, punch, seed_for
from fastrestore.errors import InputError

PROTOCOL = 1  # raised whenever the same settings would give other bytes or figures
NoiseProtocol = Literal["uint8", "float"]
FAMILIES = ("freeform", "rects", "grid", "thin")
# The curve starts at 5 %: without a hole the PSNR of a composite is infinite.
RATIOS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
QUICK_FAMILIES, QUICK_RATIOS, QUICK_SIGMAS = ("freeform", "grid"), (0.1, 0.2, 0.4), (25.0,)
THIN_MOST = 0.2  # more scratches than that are a free-form hole
SIGMAS = (15.0, 25.0, 50.0)  # those of the published tables
# All three at once: the middle of each range. Noise comes first, then the union of both holes.
ALL_HOLES, ALL_SIGMA = (("freeform", 0.2), ("grid", 0.1)), 25.0
BIN_PERCENT = 10  # width of a bin of given mask files
FILES = "files"


@dataclass(frozen=True, slots=True, eq=False)
class Damaged:
    """One damaged picture with its truth.

    Attributes:
        clean: uint8 RGB, `(H, W, 3)`.
        image: The damaged picture as every program can read it: noise rounded and clipped, holes
            black.
        mask: uint8, `(H, W)`, 1 = hole; None where there is none.
        sigma: True noise, 0-255 scale.
        unclipped: float32 `(H, W, 3)`, where the noise is neither rounded nor clipped; else None.
    """

    clean: U8
    image: U8
    mask: U8 | None
    sigma: float
    unclipped: F32 | None = None


@dataclass(frozen=True, slots=True)
class MaskFile:
    """A given mask: name, sha256 of its pixels, uint8 `(H, W)` with 1 = hole."""

    name: str
    sha256: str
    mask: U8


@dataclass(frozen=True, slots=True)
class Case:
    """One kind and strength of damage.

    Attributes:
        family: `freeform`, `rects`, `grid`, `thin`, `files`, `noise` or `all`.
        holes: Kinds of `degrade.make_mask` with their ratios; the hole is their union.
        sigma: Noise, 0-255 scale; added before the holes.
        noise: `float` keeps the noise unrounded and unclipped (only without holes).
        files: Given masks, of which each picture takes one by its name.
        percent: Low and high end of the files' ratio.
    """

    family: str
    holes: tuple[tuple[str, float], ...] = ()
    sigma: float = 0.0
    noise: NoiseProtocol = "uint8"
    files: tuple[MaskFile, ...] = ()
    percent: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        """Refuse what could not be measured."""
        if self.noise not in get_args(NoiseProtocol):
            raise InputError(f"noise {self.noise}: not known; choose uint8 or float")
        if not (self.has_holes or self.sigma):
            raise InputError("no damage: give holes, a sigma, or both")
        if self.has_holes and self.noise == "float":
            raise InputError("noise float: only without holes; use uint8 with holes")

    @property
    def has_holes(self) -> bool:
        """Whether there is a mask."""
        return bool(self.holes or self.files)

    @property
    def ratio(self) -> float:
        """Wanted share of the hole: of the files the middle of their bin."""
        if self.files:
            return sum(self.percent) / 200
        return sum(r for _, r in self.holes)

    @property
    def label(self) -> str:
        """For tables: `freeform 20 %`, `files 10-20 %`, `sigma 25`, `sigma 25 unclipped`."""
        parts = [f"{kind} {100 * ratio:g} %" for kind, ratio in self.holes]
        if self.files:
            parts.append("files {}-{} %".format(*self.percent))
        if self.sigma:
            unclipped = " unclipped" if self.noise == "float" else ""
            parts.append(f"sigma {self.sigma:g}{unclipped}")
        return " + ".join(parts)

    @property
    def slug(self) -> str:
        """The label as a name of a folder: `freeform-20`, `files-10-20`, `sigma-25`."""
        return self.label.replace(" %", "").replace(" + ", "_").replace(" ", "-")

    def mask_file(self, name: str) -> MaskFile:
        """Return the given mask that belongs to a picture's name."""
        return self.files[zlib.crc32(name.encode(errors="surrogateescape")) % len(self.files)]

    def damage(self, name: str, clean: U8) -> Damaged:
        """Damage a picture; its name and the case decide every byte.

        Args:
            name: Seeds masks and noise.
            clean: uint8 RGB, `(H, W, 3)`.

        Raises:
            InputError: The given mask is of another size.
        """
        h, w = clean.shape[:2]
        first = self.holes[0][1] if self.holes else self.ratio
        rng = seed_for(name, first)
        mask: U8 | None = None
        for kind, ratio in self.holes:
            drawn = make_mask(kind, rng, h, w, ratio)
            mask = drawn if mask is None else mask | drawn
        if self.files:
            given = self.mask_file(name)
            mask = given.mask
            if mask.shape != (h, w):
                size = f"{mask.shape[1]}x{mask.shape[0]}"
                raise InputError(
                    f"{given.name}: the mask is {size}, {name} is {w}x{h}; resize the masks"
                )
        unclipped = None
        if self.noise == "float":
            unclipped = (clean + rng.normal(0, self.sigma, clean.shape)).astype(np.float32)
            noisy = np.clip(np.rint(unclipped), 0, 255).astype(np.uint8)
        else:
            noisy = add_noise(clean, self.sigma, rng)
        image = noisy if mask is None else punch(noisy, mask)
        return Damaged(clean, image, mask, self.sigma, unclipped)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "family": self.family,
            "label": self.label,
            "holes": [list(h) for h in self.holes],
            "ratio": self.ratio,
            "sigma": self.sigma,
            "noise": self.noise,
            "files": {f.name: f.sha256 for f in self.files},
        }


def paper_cases(
    *,
    quick: bool = False,
    holes: str | None = None,
    ratios: Sequence[float] = (),
    sigmas: Sequence[float] = (),
    noise: NoiseProtocol = "uint8",
    masks: Sequence[MaskFile] = (),
) -> list[Case]:
    """List the cases.

    With `holes`, `ratios` or `sigmas` only what is named is measured, and not all three at once.

    Args:
        quick: Few families, ratios and sigmas.
        holes: Only this family.
        ratios: Only these, 0 to 0.95.
        sigmas: Only these.
        noise: Of the cases without holes.
        masks: Given ones; a case for every bin of ratios that has any.

    Raises:
        InputError: Unknown family, or nothing is left to measure.
    """
    if holes is not None and holes not in FAMILIES:
        raise InputError(f"holes {holes}: not in the protocol; choose from {', '.join(FAMILIES)}")
    named = bool(holes or ratios or sigmas)
    families: Sequence[str] = (holes,) if holes else QUICK_FAMILIES if quick else FAMILIES
    if named and not (holes or ratios):
        families = ()
    wanted = ratios or (QUICK_RATIOS if quick else RATIOS)
    cases = [
        Case(family, ((family, ratio),))
        for family in families
        for ratio in wanted
        if family != "thin" or ratio <= THIN_MOST or ratio in ratios
    ]
    cases += file_cases(masks)
    levels = sigmas or (() if named else QUICK_SIGMAS if quick else SIGMAS)
    cases += [Case("noise", sigma=s, noise=noise) for s in levels]
    if not named:
        cases.append(Case("all", ALL_HOLES, ALL_SIGMA))
    if not cases:
        raise InputError("nothing to measure: give other holes, ratios or sigmas")
    return cases


def file_cases(masks: Sequence[MaskFile]) -> list[Case]:
    """Sort given masks into bins by their ratio, one case a bin; upper ends belong to the bin."""
    bins: dict[int, list[MaskFile]] = {}
    for m in sorted(masks, key=lambda m: m.name):
        share = 100 * float(m.mask.mean())
        bins.setdefault(max(0, int(np.ceil(share / BIN_PERCENT)) - 1), []).append(m)
    return [
        Case(FILES, files=tuple(bins[b]), percent=(BIN_PERCENT * b, BIN_PERCENT * (b + 1)))
        for b in sorted(bins)
    ]


def read_masks(folder: Path) -> list[MaskFile]:
    """Read every mask of a folder, white = hole.

    Raises:
        InputError: No such folder, no pictures in it, a mask that is empty or all hole.
    """
    from fastrestore.images import is_picture, read_picture
    from fastrestore.masks import read_mask

    if not folder.is_dir():
        raise InputError(f"{shown(folder)}: no such folder of masks")
    found = []
    for path in sorted(p for p in folder.iterdir() if is_picture(p)):
        h, w = read_picture(path).rgb.shape[:2]
        mask = read_mask(path, (h, w))
        if not 0 < mask.mean() < 1:
            raise InputError(f"{shown(path)}: needs both hole (white) and known (black) pixels")
        found.append(MaskFile(path.name, digest(mask), mask))
    if not found:
        raise InputError(f"{shown(folder)}: no masks in this folder")
    return found


def digest(array: U8 | F32) -> str:
    """Return the sha256 of an array's shape and samples, whatever file it came from."""
    head = f"{array.dtype} {array.shape}\n".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


def digest_all(parts: Mapping[str, str]) -> str:
    """Return one sha256 for named ones, in the order of the names."""
    text = "\n".join(f"{name} {parts[name]}" for name in sorted(parts))
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
