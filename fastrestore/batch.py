"""What `restore` does with many inputs: which file goes where, with which mask, and what failed."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from fastrestore.arrays import U8
from fastrestore.atomic import label
from fastrestore.clip import restore_clip
from fastrestore.detect import THRESHOLD, Detector, check_threshold
from fastrestore.encoders import AUTO, OUTPUT_SUFFIXES
from fastrestore.errors import FastRestoreError, InputError, OutputError
from fastrestore.found_masks import LONGEST_HOLD
from fastrestore.images import (
    WRITTEN,
    Picture,
    check_format,
    is_picture,
    read_picture,
    write_picture,
)
from fastrestore.journal import is_begun
from fastrestore.mask_source import check_mask, find_mask, keep_mask, mask_notes
from fastrestore.mask_video import SUFFIX as MASK_VIDEO
from fastrestore.masks import mask_from_alpha, parse_colour
from fastrestore.pipeline import Progress
from fastrestore.restore import Restorer, Sigma
from fastrestore.segments import SEGMENT_S
from fastrestore.video_probe import is_video

LOSSY = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".avif"})

GROW_PX = 1  # against halos


@dataclass(frozen=True, slots=True)
class Job:
    """One input, where its result goes, and where its mask does (None: nowhere)."""

    source: Path
    target: Path
    mask_target: Path | None = None


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
        mask: Path of a mask file or folder, `alpha`, `auto` (what the detector finds), or None.
        mask_colour: `#rrggbb` that marks damage in the picture itself, or None.
        tolerance: Largest difference from that colour, 0-255 in any channel.
        invert: Black = repair in mask files.
        threshold: Least probability of damage with `auto`, 0 to 1; None = the detector's own.
        hold: Frames for which a video's damage stays marked with `auto`; see `found_masks`.
        grow_px: Widening of the hole.
        sigma: Noise to remove; see `Restorer`.
        max_pixels: Largest picture or frame.
        quality: Of lossy pictures, 1-100.
        encoder: Of video, one of `encoders.NAMES`.
        crf: Quality of video, 0 = best; None = the encoder's default.
        preset: Speed of the encoder, in its own words; None = its default.
        rate: Frames per second of raw streams; None = what they say, else 25.
        overwrite: Replace outputs that exist.
        resume: Videos grow in segments, and a run that was ended goes on; see `segments`.
        segment_s: Least length of those, seconds of video.
        again: The command that goes on, for messages.
    """

    mask: str | None = None
    mask_colour: str | None = None
    tolerance: int = 0
    invert: bool = False
    threshold: float | None = None
    hold: int | None = None
    grow_px: int = GROW_PX
    sigma: Sigma = None
    max_pixels: int = 100_000_000
    quality: int = 95
    encoder: str = AUTO
    crf: int | None = None
    preset: str | None = None
    rate: Fraction | None = None
    overwrite: bool = False
    resume: bool = False
    segment_s: float = SEGMENT_S
    again: str = "the same call"

    def __post_init__(self) -> None:
        """Refuse contradictions before any file is read."""
        if self.mask and self.mask_colour:
            raise InputError("give either a mask or a mask colour, not both")
        if self.threshold is not None:
            if self.mask != "auto":
                raise InputError("a threshold goes with --mask auto only; leave it away")
            check_threshold(self.threshold)
        if self.hold is not None and (self.mask != "auto" or not 0 <= self.hold <= LONGEST_HOLD):
            raise InputError(f"a hold goes with --mask auto only, from 0 to {LONGEST_HOLD} frames")
        if self.mask not in (None, "alpha", "auto") and not Path(str(self.mask)).exists():
            raise InputError(f"{label(str(self.mask))}: no such mask file or folder")
        if self.mask_colour:
            parse_colour(self.mask_colour)

    @property
    def least(self) -> float:
        """Least probability that counts as damage."""
        return THRESHOLD if self.threshold is None else self.threshold


def collect(inputs: Iterable[str], output: str | None, mask_out: str | None = None) -> list[Job]:
    """Turn the command line's inputs into jobs, in order.

    Folders give the pictures and videos directly inside, by name; patterns are expanded. Without
    an output the result lies beside its input as `NAME.restored.EXT`. Several inputs, or a
    folder, need a folder as output, and one for their masks.

    Raises:
        InputError: Nothing found, two inputs with one output, an output that is its input, or a
            mask that would replace either.
    """
    names = list(inputs)
    sources: list[Path] = []
    for name in names:
        sources += _expand(name, skip_results=output is None)
    many = len(sources) > 1 or any(Path(n).is_dir() for n in names)
    out = Path(output) if output else None
    as_folder = output is not None and _is_folder(output, many, len(sources))
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
    return jobs if mask_out is None else list(with_masks(jobs, mask_out, many))


def _is_folder(given: str, many: bool, inputs: int) -> bool:
    """Tell whether a path on the command line is meant as a folder, which many inputs need."""
    path = Path(given)
    folder = many or path.is_dir() or given.endswith(("/", "\\"))
    if folder and path.is_file():
        raise InputError(f"{label(path)}: is a file, but {inputs} inputs need a folder")
    return folder


def with_masks(jobs: list[Job], mask_out: str, many: bool) -> Iterator[Job]:
    """Yield the jobs with the places of their masks, none of which takes another file's.

    Args:
        jobs: Without them.
        mask_out: A PNG file, for a video also a Matroska file, or a folder.
        many: It must be a folder.

    Raises:
        InputError: A name of another kind, or one that is taken.
    """
    as_folder = _is_folder(mask_out, many, len(jobs))
    taken = {os.path.realpath(p): p for job in jobs for p in (job.source, job.target)}
    for job in jobs:
        moves = is_video(job.source)
        suffix = MASK_VIDEO if moves else ".png"
        target = Path(mask_out) / f"{job.source.stem}{suffix}" if as_folder else Path(mask_out)
        if target.suffix.lower() not in (suffix, ".png"):
            kind = f"{suffix}, one that stays also" if moves else "PNG; end the name in"
            raise InputError(f"{label(target)}: masks are written as {kind} .png")
        key = os.path.realpath(target)
        if key in taken:
            name, old = label(job.source), label(taken[key])
            raise InputError(f"{name}: its mask would replace {old}; choose another --mask-out")
        taken[key] = target
        yield replace(job, mask_target=target)


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


def run(
    job: Job,
    restorer: Restorer,
    options: Options,
    progress: Progress | None,
    detector: Detector | None = None,
) -> Outcome:
    """Restore one input; a deliberate error becomes part of the outcome, others propagate.

    Args:
        job: What and where to.
        restorer: What restores.
        options: How.
        progress: Told of every frame of a video.
        detector: What finds the damage; needed for the mask `auto` only.
    """
    began = time.perf_counter()
    try:
        if not job.source.exists():
            raise InputError(f"{label(job.source)}: no such file; check the name")
        if not (
            job.source.is_file() or job.source.is_dir()
        ):  # a pipe by name would be waited for without end
            raise InputError(f"{label(job.source)}: is no regular file; copy it to one")
        check_target(job, options)
        check_mask_target(job, options)
        work = restore_clip if is_video(job.source) else _picture
        size, frames, notes = work(job, restorer, options, progress, detector)
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
    goes_on = options.resume and is_begun(job.target)  # it knows whose that is
    if job.target.exists() and not (options.overwrite or goes_on):
        raise OutputError(f"{label(job.target)}: exists; use --overwrite or --skip-existing")
    _spare_mask(job.target, options, "-o")
    _make_folder(job.target.parent, "-o")


def check_mask_target(job: Job, options: Options) -> None:
    """Refuse a place for the mask that exists or cannot be; make its folder."""
    if job.mask_target is not None:
        if job.mask_target.exists() and not options.overwrite:
            raise OutputError(f"{label(job.mask_target)}: exists; use --overwrite")
        _spare_mask(job.mask_target, options, "--mask-out")
        _make_folder(job.mask_target.parent, "--mask-out")


def _spare_mask(target: Path, options: Options, option: str) -> None:
    """Refuse to replace the mask, or one in the folder of masks, that the user gave."""
    if options.mask in (None, "alpha", "auto") or not target.exists():
        return
    given = Path(str(options.mask))
    if target.samefile(given) or (given.is_dir() and target.parent.samefile(given)):
        raise InputError(f"{label(target)}: is a mask that was given; choose another {option}")


def _make_folder(folder: Path, option: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        what = f"cannot be made ({e.strerror}); choose another {option}"
        raise OutputError(f"{label(folder)}: {what}") from e


def _picture(
    job: Job,
    restorer: Restorer,
    options: Options,
    _progress: Progress | None,
    detector: Detector | None,
) -> tuple[tuple[int, int], int, list[str]]:
    picture = read_picture(job.source, options.max_pixels)
    shown = without_holes(picture, options)
    check_format(shown, job.target.suffix, label(job.target))
    h, w = picture.rgb.shape[:2]
    restored, notes = restore_picture(job, picture, restorer, options, detector)
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
    job: Job,
    picture: Picture,
    restorer: Restorer,
    options: Options,
    detector: Detector | None = None,
) -> tuple[U8, list[str]]:
    """Restore one picture that has been read, and write its mask if that is asked for.

    Args:
        job: Its names: for the mask and for messages.
        picture: The damaged picture.
        restorer: What restores.
        options: How.
        detector: See `run`.

    Returns:
        uint8 RGB, `(H, W, 3)`, and what the user should know.

    Raises:
        InputError: The mask is absent, does not fit or covers everything.
        OutputError: The mask cannot be written.
    """
    mask = find_mask(job.source, picture, options, detector)
    keep_mask(job.mask_target, mask)
    check_mask(job.source, mask, options)
    notes = mask_notes(mask, options)
    restored = restorer(picture.rgb, mask, sigma=options.sigma, grow_px=options.grow_px)
    if options.sigma == "auto" or (options.sigma is None and mask is None):
        found = f"sigma {restorer.sigma:.1f}" if restorer.sigma else "none, nothing is removed"
        notes.append(f"noise: {found}")
    return restored, notes
