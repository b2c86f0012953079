"""The demo: damage the built-in samples, restore them through the same path as any file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from fastrestore.arrays import U8
from fastrestore.batch import Job, Options, run
from fastrestore.degrade import add_noise, make_mask, punch
from fastrestore.errors import OutputError
from fastrestore.images import Picture, read_picture, write_picture
from fastrestore.metrics import psnr
from fastrestore.restore import Restorer
from fastrestore.video_io import read_frames, write_frames

CLIP_FRAMES, CLIP_SIZE = 32, (192, 320)  # rows, columns


@dataclass(frozen=True, slots=True)
class Shown:
    """One sample before and after: files, PSNR in dB, seconds of the restoration alone."""

    what: str
    before: Path
    after: Path
    psnr_before: float
    psnr_after: float
    seconds: float


def sample_folder() -> Path:
    """Return the folder of the pictures inside the package."""
    return Path(str(resources.files("fastrestore") / "samples"))


def demo(folder: Path, restorer: Restorer) -> Iterator[Shown]:
    """Write damaged and restored samples into a folder, replacing those of an earlier demo.

    Args:
        folder: Made if absent.
        restorer: What restores.

    Yields:
        One record per sample, as it is ready: strokes, lost blocks, noise, and a noisy clip.

    Raises:
        OutputError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"{folder}: cannot be made ({e.strerror})") from e
    rng = np.random.default_rng(7)
    yield _holes(folder, restorer, "cat", "freeform", 0.12, rng)
    yield _holes(folder, restorer, "vegetables", "thin", 0.06, rng)
    yield _noise(folder, restorer, "bridge", 20.0, rng)
    yield _clip(folder, restorer, rng)


def _holes(
    folder: Path, restorer: Restorer, name: str, kind: str, ratio: float, rng: np.random.Generator
) -> Shown:
    clean = read_picture(sample_folder() / f"{name}.webp").rgb
    mask = make_mask(kind, rng, clean.shape[0], clean.shape[1], ratio)
    white = np.repeat(mask[..., None] * np.uint8(255), 3, 2)
    write_picture(folder / f"{name}.mask.png", Picture(rgb=white, gray=True), white)
    damaged = punch(clean, mask, (255, 255, 255))
    options = Options(mask=str(folder / f"{name}.mask.png"), grow_px=0, overwrite=True)
    return _picture(
        folder, restorer, name, f"{kind} holes, {mask.mean():.0%}", clean, damaged, options
    )


def _noise(
    folder: Path, restorer: Restorer, name: str, sigma: float, rng: np.random.Generator
) -> Shown:
    clean = read_picture(sample_folder() / f"{name}.webp").rgb
    damaged = add_noise(clean, sigma, rng)
    options = Options(overwrite=True)
    return _picture(folder, restorer, name, f"noise, sigma {sigma:g}", clean, damaged, options)


def _picture(
    folder: Path,
    restorer: Restorer,
    name: str,
    what: str,
    clean: U8,
    damaged: U8,
    options: Options,
) -> Shown:
    before, after = folder / f"{name}.damaged.png", folder / f"{name}.restored.png"
    write_picture(before, Picture(rgb=damaged), damaged)
    outcome = run(Job(before, after), restorer, options, None)
    if outcome.error:
        raise outcome.error
    restored = read_picture(after).rgb
    return Shown(
        f"{name}: {what}",
        before,
        after,
        psnr(damaged, clean),
        psnr(restored, clean),
        outcome.seconds,
    )


def _clip(folder: Path, restorer: Restorer, rng: np.random.Generator) -> Shown:
    """Pan slowly over a sample, rest at its end, with noise new in every frame."""
    still = read_picture(sample_folder() / "vegetables.webp").rgb
    h, w = CLIP_SIZE
    clean = [still[100 : 100 + h, x : x + w] for x in (min(2 * t, 40) for t in range(CLIP_FRAMES))]
    noisy = [add_noise(f, 20.0, rng) for f in clean]
    before, after = folder / "clip.damaged.mkv", folder / "clip.restored.mkv"
    write_frames(before, noisy, fps=24, codec="ffv1")
    outcome = run(Job(before, after), restorer, Options(encoder="ffv1", overwrite=True), None)
    if outcome.error:
        raise outcome.error
    figures = [
        float(np.mean([psnr(a, b) for a, b in zip(read_frames(p), clean, strict=True)]))
        for p in (before, after)
    ]
    return Shown(
        f"clip: noise, sigma 20, {CLIP_FRAMES} frames {w}x{h}",
        before,
        after,
        figures[0],
        figures[1],
        outcome.seconds,
    )
