"""What `restore` does with many inputs: which file goes where, with which mask, and what failed."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastrestore.arrays import U8
from fastrestore.atomic import label
from fastrestore.errors import FastRestoreError, InputError, OutputError
from fastrestore.images import (
    WRITTEN,
    Picture,
    check_format,
    is_picture,
    read_picture,
    write_picture,
)
from fastrestore.masks import grow, mask_from_alpha, mask_from_colour, parse_colour, read_mask
from fastrestore.restore import Restorer, Sigma
from fastrestore.video import restore_video
from fastrestore.video_probe import is_video, probe
from fastrestore.video_write import OUTPUT_SUFFIXES

LOSSY = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".avif"})
Progress = Callable[[int, int | None, float], None]  # frames done, frames in all, frames/s


@dataclass(frozen=True, slots=True)
class Job:
    """One input and where its result goes."""

    source: Path
    target: Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one job.

    Attributes:
        job: The job.
        seconds: Wall time.
        size: Width and height, px; (0, 0) if it failed.
        frames: Frames written, 1 for a picture.
        notes: Things the user should know: streams dropped, an empty mask.
        error: Why it failed, or None.
    """

    job: Job
    seconds: float
    size: tuple[int, int] = (0, 0)
    frames: int = 0
    notes: list[str] = field(default_factory=list)
    error: FastRestoreError | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the object of one line of `--json`."""
        out: dict[str, Any] = {
            "input": str(self.job.source),
            "output": None if self.error else str(self.job.target),
            "width": self.size[0],
            "height": self.size[1],
            "frames": self.frames,
            "ms": round(1e3 * self.seconds, 1),
            "notes": self.notes,
            "error": None,
        }
        if self.error:
            out["error"] = {"code": self.error.exit_code, "message": str(self.error)}
        return out


@dataclass(frozen=True, slots=True)
class Options:
    """How every input is restored.

    Attributes:
        mask: Path of a mask file or folder, `alpha`, or None.
        mask_colour: `#rrggbb` that marks damage in the picture itself, or None.
        tolerance: Largest difference from that colour, 0-255 in any channel.
        invert: Black = repair in mask files.
        grow_px: Widening of the hole.
        sigma: Noise to remove; see `Restorer`.
        max_pixels: Largest picture or frame.
        quality: Of lossy pictures, 1-100.
        crf: Of x264 and VP9.
        codec: Video encoder, or None for the container's default.
        overwrite: Replace outputs that exist.
    """

    mask: str | None = None
    mask_colour: str | None = None
    tolerance: int = 0
    invert: bool = False
    grow_px: int = 1
    sigma: Sigma = None
    max_pixels: int = 100_000_000
    quality: int = 95
    crf: int = 17
    codec: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuse contradictions before any file is read."""
        if self.mask and self.mask_colour:
            raise InputError("give either a mask or a mask colour, not both")
        if self.mask == "auto":
            raise InputError("--mask auto: there is no damage detector yet; give a mask file")
        if self.mask not in (None, "alpha") and not Path(str(self.mask)).exists():
            raise InputError(f"{label(str(self.mask))}: no such mask file or folder")
        if self.mask_colour:
            parse_colour(self.mask_colour)


def collect(inputs: Iterable[str], output: str | None) -> list[Job]:
    """Turn the command line's inputs into jobs, in order.

    Folders give the pictures and videos directly inside, by name; patterns are expanded. Without
    an output the result lies beside its input as `NAME.restored.EXT`. Several inputs, or a
    folder, need a folder as output.

    Raises:
        InputError: Nothing found, two inputs with one output, or an output that is its input.
    """
    names = list(inputs)
    sources: list[Path] = []
    for name in names:
        sources += _expand(name, skip_results=output is None)
    many = len(sources) > 1 or any(Path(n).is_dir() for n in names)
    out = Path(output) if output else None
    as_folder = out is not None and (many or out.is_dir() or (output or "").endswith(("/", "\\")))
    if out is not None and as_folder and out.is_file():
        raise InputError(f"{label(out)}: is a file, but {len(sources)} inputs need a folder")
    jobs: list[Job] = []
    taken: dict[str, Path] = {}
    for source in sources:
        if out is None:
            target = source.with_name(f"{source.stem}.restored{_result_suffix(source)}")
        else:
            target = out / f"{source.stem}{_result_suffix(source)}" if as_folder else out
        key, name = os.path.realpath(target), label(source)
        if key == os.path.realpath(source):
            raise InputError(f"{name}: the output would replace the input; choose another -o")
        if key in taken:
            first = label(taken[key])
            raise InputError(f"{name}: would be written to {label(target)}, as {first} would")
        taken[key] = source
        jobs.append(Job(source, target))
    return jobs


def _result_suffix(source: Path) -> str:
    """Return the input's own suffix, or a lossless picture's or .mkv where that is not written."""
    known, other = (OUTPUT_SUFFIXES, ".mkv") if is_video(source) else (WRITTEN, ".png")
    return source.suffix if source.suffix.lower() in known else other


def _expand(name: str, skip_results: bool) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.is_file() and (is_picture(p) or is_video(p)))
        if skip_results:  # they lie beside the inputs: a second run would restore them again
            found = [p for p in found if ".restored" not in p.stem]
        if not found:
            raise InputError(f"{label(name)}: no pictures or videos in this folder")
        return found
    if not path.exists() and glob.has_magic(name):
        found = sorted(Path(p) for p in glob.glob(name))
        if not found:
            raise InputError(f"{label(name)}: matches no file")
        return found
    return [path]


def run(job: Job, restorer: Restorer, options: Options, progress: Progress | None) -> Outcome:
    """Restore one input; a deliberate error becomes part of the outcome, others propagate."""
    began = time.perf_counter()
    try:
        if not job.source.exists():
            raise InputError(f"{label(job.source)}: no such file; check the name")
        if not (
            job.source.is_file() or job.source.is_dir()
        ):  # a pipe by name would be waited for without end
            raise InputError(f"{label(job.source)}: is no regular file; copy it to one")
        check_target(job, options)
        work = _video if is_video(job.source) else _picture
        size, frames, notes = work(job, restorer, options, progress)
        return Outcome(job, time.perf_counter() - began, size, frames, notes)
    except FastRestoreError as e:
        return Outcome(job, time.perf_counter() - began, error=e)
    except MemoryError:
        error = InputError(f"{label(job.source)}: not enough memory; make it smaller")
        return Outcome(job, time.perf_counter() - began, error=error)


def exit_code(outcomes: list[Outcome]) -> int:
    """0 if all went well, 1 if some failed, the errors' own code if all did."""
    failed = [o.error.exit_code for o in outcomes if o.error]
    if not failed:
        return 0
    return 1 if len(failed) < len(outcomes) else max(failed)


def check_target(job: Job, options: Options) -> None:
    """Refuse an output that is no picture or video, exists or cannot be; make its folder."""
    suffix = job.target.suffix.lower()
    known = OUTPUT_SUFFIXES if is_video(job.source) else WRITTEN
    if suffix not in known:
        what = "video" if is_video(job.source) else "picture"
        names = " ".join(sorted(known))
        raise InputError(f"{label(job.target)}: not a {what} name; known: {names}")
    if job.target.exists() and not options.overwrite:
        raise OutputError(f"{label(job.target)}: exists; use --overwrite or --skip-existing")
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        folder = label(job.target.parent)
        raise OutputError(f"{folder}: cannot be made ({e.strerror}); choose another -o") from e


def _picture(
    job: Job, restorer: Restorer, options: Options, _progress: Progress | None
) -> tuple[tuple[int, int], int, list[str]]:
    picture = read_picture(job.source, options.max_pixels)
    shown = without_holes(picture, options)
    check_format(shown, job.target.suffix, label(job.target))
    h, w = picture.rgb.shape[:2]
    restored, notes = restore_picture(job.source, picture, restorer, options)
    write_picture(job.target, shown, restored, quality=options.quality)
    if job.target.suffix.lower() in LOSSY and not restorer.sigma:
        notes.append("the format is lossy: untouched pixels may change a little; .png keeps them")
    return (w, h), 1, notes


def without_holes(picture: Picture, options: Options) -> Picture:
    """Return the picture as it is written: what transparency marked as a hole becomes opaque."""
    if options.mask != "alpha" or picture.alpha is None:
        return picture
    opaque = np.iinfo(picture.alpha.dtype).max
    alpha = picture.alpha.copy()
    alpha[mask_from_alpha(picture) > 0] = opaque
    return replace(picture, alpha=alpha)


def restore_picture(
    source: Path, picture: Picture, restorer: Restorer, options: Options
) -> tuple[U8, list[str]]:
    """Restore one picture that has been read.

    Args:
        source: Its name, for the mask and for messages.
        picture: The damaged picture.
        restorer: What restores.
        options: How.

    Returns:
        uint8 RGB, `(H, W, 3)`, and what the user should know.

    Raises:
        InputError: The mask is absent, does not fit or covers everything.
    """
    mask = _find_mask(source, picture, options)
    _check_mask(source, mask, options)
    notes = _empty_note(mask, options)
    restored = restorer(picture.rgb, mask, sigma=options.sigma, grow_px=options.grow_px)
    if options.sigma == "auto" or (options.sigma is None and mask is None):
        found = f"sigma {restorer.sigma:.1f}" if restorer.sigma else "none, nothing is removed"
        notes.append(f"noise: {found}")
    return restored, notes


def _video(
    job: Job, restorer: Restorer, options: Options, progress: Progress | None
) -> tuple[tuple[int, int], int, list[str]]:
    info = probe(job.source, options.max_pixels)
    if options.mask == "alpha" or options.mask_colour:
        raise InputError(f"{label(job.source)}: a video needs a mask file, not alpha or a colour")
    mask = None
    if options.mask:
        mask = _mask_file(job.source, (info.height, info.width), options)
        _check_mask(job.source, mask, options)
    notes = _empty_note(mask, options)
    restorer.reset()

    found = []

    def step(frame: U8) -> U8:
        restored = restorer.frame(frame, mask, sigma=options.sigma, grow_px=options.grow_px)
        found.append(restorer.sigma)
        return restored

    changed = None if mask is None or options.sigma else grow(mask, options.grow_px)
    report = restore_video(
        job.source,
        job.target,
        step,
        mask=changed,
        overwrite=options.overwrite,
        progress=progress,
        crf=options.crf,
        codec=options.codec,
        max_pixels=options.max_pixels,
    )
    if options.sigma == "auto" or (options.sigma is None and mask is None):
        notes.append(f"noise: sigma {min(found):.1f} to {max(found):.1f}")
    return (info.width, info.height), report.frames, notes + report.notes


def _find_mask(source: Path, picture: Picture, options: Options) -> U8 | None:
    """Return the mask of one picture, uint8 `(H, W)`, 1 = hole; None where none is asked for."""
    if options.mask_colour:
        return mask_from_colour(picture.rgb, options.mask_colour, options.tolerance)
    if options.mask == "alpha":
        if picture.alpha is None:
            raise InputError(f"{label(source)}: has no alpha channel; give a mask file")
        return mask_from_alpha(picture)
    if options.mask is None:
        return None
    h, w = picture.rgb.shape[:2]
    return _mask_file(source, (h, w), options)


def _check_mask(source: Path, mask: U8 | None, options: Options) -> None:
    """Refuse a mask that leaves nothing, by the name of the file that it is for."""
    if mask is not None and grow(mask, options.grow_px).all():
        raise InputError(
            f"{label(source)}: its mask covers the whole picture, nothing is left to restore from; "
            "mark less (white = repair, or give --invert-mask)"
        )


def _mask_file(source: Path, size: tuple[int, int], options: Options) -> U8:
    path = Path(str(options.mask))
    if path.is_dir():
        found = [p for p in sorted(path.iterdir()) if p.stem == source.stem and is_picture(p)]
        if not found:
            wanted = label(f"{source.stem}.*")
            raise InputError(f"{label(source)}: no mask named {wanted} in {path}; add it there")
        if len(found) > 1:
            raise InputError(f"{label(source)}: {len(found)} masks in {path}; keep one")
        path = found[0]
    return read_mask(path, size, options.invert, options.max_pixels)


def _empty_note(mask: U8 | None, options: Options) -> list[str]:
    if mask is None or mask.any():
        return []
    change = "only noise is removed" if options.sigma else "nothing is changed"
    return [f"the mask is empty: {change}"]
