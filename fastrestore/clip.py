"""What `restore` does with one video: its mask, constant or found frame by frame, and its notes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fastrestore.arrays import U8
from fastrestore.atomic import label
from fastrestore.detect import Detector
from fastrestore.errors import InputError
from fastrestore.mask_source import (
    FrameMasks,
    check_mask,
    keep_mask,
    mask_file,
    mask_notes,
    needed,
)
from fastrestore.masks import grow
from fastrestore.restore import Restorer
from fastrestore.video import restore_video
from fastrestore.video_probe import probe

if TYPE_CHECKING:
    from fastrestore.batch import Job, Options

Progress = Callable[[int, int | None, float], None]  # frames done, frames in all, frames/s


def restore_clip(
    job: Job,
    restorer: Restorer,
    options: Options,
    progress: Progress | None,
    detector: Detector | None,
) -> tuple[tuple[int, int], int, list[str]]:
    """Restore one video of a batch; arguments as for `batch.run`.

    Returns:
        Width and height in px, frames written, and what the user should know.

    Raises:
        InputError: The clip or its mask cannot be used.
        OutputError: The clip or its mask cannot be written.
    """
    info = probe(job.source, options.max_pixels)
    if options.mask == "alpha" or options.mask_colour:
        raise InputError(f"{label(job.source)}: a video needs a mask file, not alpha or a colour")
    mask, masks = None, None
    if options.mask == "auto":
        if job.mask_target is not None:
            name = label(job.source)
            raise InputError(f"{name}: every frame has its own mask; leave --mask-out away")
        masks = FrameMasks(needed(detector), options)
    else:
        if options.mask:
            mask = mask_file(job.source, (info.height, info.width), options)
        keep_mask(job.mask_target, mask)
        check_mask(job.source, mask, options)
    restorer.reset()
    found = []

    def step(frame: U8) -> U8:
        hole = mask if masks is None else masks(frame)
        restored = restorer.frame(frame, hole, sigma=options.sigma, grow_px=options.grow_px)
        found.append(restorer.sigma)
        return restored

    report = restore_video(
        job.source,
        job.target,
        step,
        mask=_changed(mask, masks, options),
        overwrite=options.overwrite,
        progress=progress,
        crf=options.crf,
        codec=options.codec,
        max_pixels=options.max_pixels,
    )
    notes = mask_notes(mask, options) if masks is None else masks.notes()
    if options.sigma == "auto" or (options.sigma is None and options.mask is None):
        notes.append(f"noise: sigma {min(found):.1f} to {max(found):.1f}")
    return (info.width, info.height), report.frames, notes + report.notes


def _changed(
    mask: U8 | None, masks: FrameMasks | None, options: Options
) -> U8 | Callable[[], U8] | None:
    """Return what may change in a clip, or what tells it of the last frame; None = everything."""
    if options.sigma:
        return None
    if masks is not None:
        return lambda: masks.grown
    return None if mask is None else grow(mask, options.grow_px)
