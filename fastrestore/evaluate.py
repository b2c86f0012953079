"""Quality on damaged pictures whose truth is known: ours and classical methods, same inputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fastrestore.arrays import U8
from fastrestore.degrade import add_noise, make_mask, punch, seed_for
from fastrestore.errors import InputError
from fastrestore.metrics import SSIM_RADIUS_PX, bootstrap_interval, hole_psnr, psnr, ssim

SSIM_PX = 2 * SSIM_RADIUS_PX + 1
CAP_DB = 100.0  # stands for an infinite PSNR, so that means and intervals exist


@dataclass(frozen=True, slots=True)
class Damage:
    """One way of damaging a picture: holes, noise, or both.

    Attributes:
        holes: Kind of `degrade.make_mask`, or None.
        ratio: Hole pixels over all pixels.
        sigma: Noise, 0-255 scale; added before the holes.
        cell_px: Side of a cell of `grid`.
    """

    holes: str | None = None
    ratio: float = 0.0
    sigma: float = 0.0
    cell_px: int = 16

    def __post_init__(self) -> None:
        """Refuse a damage that does nothing."""
        if not (self.holes or self.sigma):
            raise InputError("no damage: give a kind of holes, a sigma, or both")

    @property
    def label(self) -> str:
        """Short name for tables: `freeform 20 %`, `sigma 25`."""
        parts = [f"{self.holes} {100 * self.ratio:g} %"] if self.holes else []
        return " + ".join(parts + ([f"sigma {self.sigma:g}"] if self.sigma else []))

    def apply(self, name: str, clean: U8) -> tuple[U8, U8 | None]:
        """Return the damaged picture (holes black) and its mask; the name seeds both."""
        rng = seed_for(name, self.ratio)
        h, w = clean.shape[:2]
        mask = make_mask(self.holes, rng, h, w, self.ratio, self.cell_px) if self.holes else None
        noisy = add_noise(clean, self.sigma, rng)
        return (noisy if mask is None else punch(noisy, mask)), mask


# A method gets the damaged picture, the mask (None = no holes) and the true sigma.
Method = Callable[[U8, U8 | None, float], U8]


@dataclass(frozen=True, slots=True)
class Score:
    """One picture, one damage, one method. PSNR in dB, time in s."""

    picture: str
    damage: str
    method: str
    psnr: float
    hole_psnr: float | None
    ssim: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Row:
    """Mean of one method over the pictures.

    `gain` is ours minus this method in dB of PSNR, paired by picture: mean, low and high end of
    the 95 % bootstrap interval; None for ours itself.
    """

    damage: str
    method: str
    n: int
    psnr: float
    hole_psnr: float | None
    ssim: float
    seconds: float
    gain: tuple[float, float, float] | None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def score(
    pictures: Iterable[tuple[str, U8]], damage: Damage, methods: Mapping[str, Method]
) -> Iterator[Score]:
    """Damage every picture, restore it with every method, and measure.

    Args:
        pictures: Name and uint8 RGB `(H, W, 3)`, at least 11 px a side.
        damage: What is done to them.
        methods: By name.

    Yields:
        One score per picture and method, as they are ready.
    """
    for name, clean in pictures:
        if min(clean.shape[:2]) < SSIM_PX:
            raise InputError(f"{name}: SSIM needs at least {SSIM_PX} px a side; leave it out")
        damaged, mask = damage.apply(name, clean)
        for method, restore in methods.items():
            began = time.perf_counter()
            out = restore(damaged, mask, damage.sigma)
            seconds = time.perf_counter() - began
            hole = None if mask is None or not mask.any() else hole_psnr(out, clean, mask)
            yield Score(
                name,
                damage.label,
                method,
                min(CAP_DB, psnr(out, clean)),
                None if hole is None else min(CAP_DB, hole),
                ssim(out, clean),
                seconds,
            )


def summarise(scores: Iterable[Score], ours: str, seed: int = 0) -> list[Row]:
    """Average by damage and method, with the paired gain of one method over each other one.

    Args:
        scores: Any mixture; every method of a damage must have seen the same pictures.
        ours: The method that the gains belong to.
        seed: Of the bootstrap.

    Raises:
        InputError: Methods of one damage saw different pictures.
    """
    tables: dict[str, dict[str, dict[str, Score]]] = {}
    for s in scores:
        by_name = tables.setdefault(s.damage, {}).setdefault(s.method, {})
        if s.picture in by_name:
            raise InputError(f"{s.picture}: two pictures have this name; rename one")
        by_name[s.picture] = s
    rows = []
    for damage, by_method in tables.items():
        mine = by_method.get(ours, {})
        for method, by_picture in by_method.items():
            gain = None
            if mine and method != ours:
                if set(mine) != set(by_picture):
                    raise InputError(f"{damage}: {method} and {ours} saw different pictures")
                differences = np.array([mine[p].psnr - s.psnr for p, s in by_picture.items()])
                gain = bootstrap_interval(differences, np.random.default_rng(seed))
            rows.append(_row(damage, method, list(by_picture.values()), gain))
    return rows


def _row(
    damage: str, method: str, scores: list[Score], gain: tuple[float, float, float] | None
) -> Row:
    holes = [s.hole_psnr for s in scores if s.hole_psnr is not None]
    return Row(
        damage,
        method,
        len(scores),
        float(np.mean([s.psnr for s in scores])),
        float(np.mean(holes)) if holes else None,
        float(np.mean([s.ssim for s in scores])),
        float(np.mean([s.seconds for s in scores])),
        gain,
    )


def markdown(rows: Iterable[Row]) -> str:
    """Format rows as a Markdown table; figures in dB and ms."""
    lines = [
        "| damage | method | n | PSNR | hole PSNR | SSIM | ours minus this, 95 % | ms |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        hole = "" if r.hole_psnr is None else f"{r.hole_psnr:.2f}"
        gain = "" if r.gain is None else "{:+.2f} ({:+.2f} to {:+.2f})".format(*r.gain)
        lines.append(
            f"| {r.damage} | {r.method} | {r.n} | {r.psnr:.2f} | {hole} | {r.ssim:.4f} | {gain} "
            f"| {1e3 * r.seconds:.0f} |"
        )
    return "\n".join(lines)


def classical_methods(damage: Damage, names: Iterable[str] | None = None) -> dict[str, Method]:
    """Return the classical methods that fit a damage.

    Args:
        damage: Holes call for inpainters, noise alone for denoisers (which are told the true
            sigma).
        names: Only these; None = all but those that must be named (`patchmatch`).

    Raises:
        InputError: An unknown name.
    """
    from fastrestore.classical import DENOISERS, INPAINTERS, OPTIONAL

    wanted = None if names is None else set(names)
    inpainters = {**INPAINTERS, **OPTIONAL}
    if wanted is not None and (odd := wanted - set(inpainters) - set(DENOISERS)):
        known = ", ".join([*inpainters, *DENOISERS])
        raise InputError(f"method {sorted(odd)[0]}: not known; choose from {known}")
    if wanted is None:
        inpainters = INPAINTERS
    fits = inpainters if damage.holes else DENOISERS
    if wanted is not None and (odd := wanted - set(fits)):
        raise InputError(f"method {sorted(odd)[0]}: does not fit {damage.label}; leave it out")
    methods: dict[str, Method] = {"input": lambda image, _mask, _sigma: image}
    if damage.holes:
        for name, fill in inpainters.items():
            methods[name] = lambda image, mask, _sigma, fill=fill: (  # type: ignore[misc]
                image if mask is None else fill(image, mask)
            )
    else:
        for name, clean in DENOISERS.items():
            methods[name] = lambda image, _mask, sigma, clean=clean: clean(  # type: ignore[misc]
                image, sigma
            )
    return {k: v for k, v in methods.items() if wanted is None or k in wanted | {"input"}}
