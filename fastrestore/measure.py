"""One damaged picture, every contender, every figure: a line each."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastrestore.arrays import U8
from fastrestore.contenders import Contender, fitting
from fastrestore.errors import FastRestoreError, InputError, need
from fastrestore.evaluate import CAP_DB
from fastrestore.metrics import SSIM_RADIUS_PX, edge_f1, hole_psnr, psnr, ssim
from fastrestore.protocol import Case, Damaged

LEAST_PX = max(31, 2 * SSIM_RADIUS_PX + 1)  # a side: what LPIPS and SSIM need
METRICS = ("psnr", "hole_psnr", "ssim", "lpips", "edge_f1")
Distance = Callable[[U8, U8], float]


@dataclass(frozen=True, slots=True)
class Line:
    """What one contender reached on one damaged picture.

    PSNR in dB, at most `CAP_DB`. None: the figure does not exist (no hole, no LPIPS, no time).

    Attributes:
        picture: Its name.
        case: The case's slug.
        method: As in `Contender`.
        variant: Likewise.
        share: Hole pixels over all pixels, as drawn.
        psnr: Of the whole picture.
        hole_psnr: Over the hole alone.
        ssim: Of the whole picture.
        lpips: LPIPS 0.1 with AlexNet, of the whole picture; less is better.
        edge_f1: Of the hole's edges; of the whole picture's where there is no hole.
        seconds: Wall time of one call.
    """

    picture: str
    case: str
    method: str
    variant: str
    share: float
    psnr: float
    hole_psnr: float | None
    ssim: float
    lpips: float | None
    edge_f1: float
    seconds: float | None

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What the line is about."""
        return self.picture, self.case, self.method, self.variant


def measure(
    name: str,
    case: Case,
    damaged: Damaged,
    contenders: Sequence[Contender],
    distance: Distance | None,
    done: Callable[[tuple[str, str, str, str]], bool] = lambda _: False,
) -> Iterator[Line]:
    """Restore one damaged picture with every contender that fits, and measure.

    Args:
        name: Of the picture.
        case: How it was damaged.
        damaged: Every contender gets its arrays; who writes into them is found out.
        contenders: Who runs.
        distance: LPIPS of two pictures; None leaves the figure out.
        done: Tells by a line's key what is known already.

    Yields:
        A line per contender, as they are ready.

    Raises:
        InputError: A contender's picture has another size or type, or it changed its input.
    """
    known: dict[bytes, dict[str, Any]] = {}  # raw output often equals the composite, bit for bit
    share = 0.0 if damaged.mask is None else float(damaged.mask.mean())
    for c in fitting(contenders, case):
        if done((name, case.slug, c.method, c.variant)):
            continue
        before = _bytes(damaged)
        began = time.perf_counter()
        out = c.run(name, case, damaged)
        seconds = time.perf_counter() - began
        if _bytes(damaged) != before:
            raise InputError(f"{c.method}: wrote into its input ({name}); give it a copy")
        if out.dtype != np.uint8 or out.shape != damaged.clean.shape:
            h, w = damaged.clean.shape[:2]
            size = "x".join(str(n) for n in out.shape[1::-1])
            raise InputError(f"{c.method}: {name} comes back as {size} {out.dtype}, not {w}x{h}")
        content = hashlib.sha256(np.ascontiguousarray(out).tobytes()).digest()
        if content not in known:
            known[content] = _figures(out, damaged, distance)
        yield Line(
            name,
            case.slug,
            c.method,
            c.variant,
            round(share, 6),
            seconds=round(seconds, 5) if c.timed else None,
            **known[content],
        )


def _figures(out: U8, damaged: Damaged, distance: Distance | None) -> dict[str, Any]:
    clean, mask = damaged.clean, damaged.mask
    hole = None
    if mask is not None and mask.any():
        hole = round(min(CAP_DB, hole_psnr(out, clean, mask)), 5)
    return {
        "psnr": round(min(CAP_DB, psnr(out, clean)), 5),
        "hole_psnr": hole,
        "ssim": round(ssim(out, clean), 6),
        "lpips": None if distance is None else round(distance(out, clean), 6),
        "edge_f1": round(edge_f1(out, clean, None if hole is None else mask), 6),
    }


def _bytes(damaged: Damaged) -> bytes:
    parts = [damaged.image, damaged.mask, damaged.unclipped, damaged.clean]
    joined = hashlib.sha256()
    for part in parts:
        if part is not None:
            joined.update(np.ascontiguousarray(part).tobytes())
    return joined.digest()


def open_lpips(threads: int | None = None) -> tuple[Distance | None, str]:
    """Load LPIPS (AlexNet, version 0.1).

    Returns:
        The distance and the sha256 of its weights; or None and why there is none, in a line.
    """
    try:
        torch = need("torch", "train")
        perceptual = need("fastrestore.train.perceptual", "train")
        path: Path = perceptual.find_weights(perceptual.LPIPS_FILE)
        network = perceptual.Lpips.load(path)
    except FastRestoreError as e:
        return None, f"LPIPS: left out ({e})"
    if threads:
        torch.set_num_threads(threads)

    def tensor(image: U8) -> Any:
        nchw = np.ascontiguousarray(image.transpose(2, 0, 1)[None])
        return torch.from_numpy(nchw).float() / 255

    def distance(a: U8, b: U8) -> float:
        return float(network(tensor(a), tensor(b))[0])

    return distance, hashlib.sha256(path.read_bytes()).hexdigest()
