"""What `restore` does with one video: the masks of its frames, their restoration, and the notes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastrestore.arrays import U8
from fastrestore.atomic import label
from fastrestore.depends import depends_on
from fastrestore.detect import Detector
from fastrestore.errors import InputError
from fastrestore.frame_masks import ConstantMask, FrameMask, open_masks
from fastrestore.journal import Past
from fastrestore.mask_source import keep_mask
from fastrestore.mask_video import SUFFIX, MaskVideo
from fastrestore.pipeline import Progress
from fastrestore.restore import Restorer
from fastrestore.segments import Resume
from fastrestore.video import restore_video
from fastrestore.video_probe import probe

if TYPE_CHECKING:
    from fastrestore.batch import Job, Options


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
    if options.resume and job.mask_target is not None:
        name = label(job.source)
        raise InputError(f"{name}: --mask-out does not go with --resume; leave one away")
    info = probe(job.source, options.max_pixels, options.rate)
    with ExitStack() as opened:
        masks = open_masks(job.source, (info.height, info.width), options, detector)
        if masks is not None:
            opened.callback(masks.close)
        shown = _mask_video(job, masks, info.fps)
        if shown is not None:
            opened.callback(shown.abandon)
        steps = Steps(restorer, masks, options, None if shown is None else shown.write)
        report = restore_video(
            job.source,
            job.target,
            steps,
            mask=steps.changed,
            overwrite=options.overwrite,
            progress=progress,
            encoder=options.encoder,
            crf=options.crf,
            preset=options.preset,
            rate=options.rate,
            max_pixels=options.max_pixels,
            resume=_resume(job, steps, restorer, options, detector),
        )
        if shown is not None:
            shown.finish()
    return (info.width, info.height), report.frames, steps.notes() + report.notes


def _resume(
    job: Job, steps: Steps, restorer: Restorer, options: Options, detector: Detector | None
) -> Resume | None:
    """Return how a broken run goes on; None where it does not."""
    if not options.resume:
        return None
    work = depends_on(options, restorer, detector)
    return Resume(steps, work, options.segment_s, options.again)


def _mask_video(job: Job, masks: FrameMask | None, fps: float | None) -> MaskVideo | None:
    """Write the mask that all frames share, or return what takes that of each."""
    target = job.mask_target
    if target is None:
        return None
    if masks is not None and target.suffix.lower() == SUFFIX:
        return MaskVideo(target, fps)
    if masks is not None and not isinstance(masks, ConstantMask):
        raise InputError(
            f"{label(job.source)}: every frame has its own mask; end --mask-out in {SUFFIX}"
        )
    keep_mask(target, None if masks is None else masks.mask)
    return None


class Steps:
    """Restores a clip's frames in order, each with its mask.

    Attributes:
        number: Of the next frame, from 0.
    """

    def __init__(
        self,
        restorer: Restorer,
        masks: FrameMask | None,
        options: Options,
        show: Callable[[U8], None] | None = None,
    ) -> None:
        """Begin a clip; the restorer forgets the one before.

        Args:
            restorer: What restores.
            masks: The caller closes them.
            options: How.
            show: Gets every mask, before it is grown.
        """
        self._restorer, self._masks, self._options, self._show = restorer, masks, options, show
        self._least, self._most = np.inf, 0.0  # noise found
        self.number = 0
        restorer.reset()

    def __call__(self, frame: U8) -> U8:
        """Restore the next frame: upright uint8 RGB `(H, W, 3)`."""
        hole = None if self._masks is None else self._masks(frame, self.number)
        if self._show is not None and hole is not None:
            self._show(hole)
        options = self._options
        restored = self._restorer.frame(frame, hole, sigma=options.sigma, grow_px=options.grow_px)
        self._least = min(self._least, self._restorer.sigma)
        self._most = max(self._most, self._restorer.sigma)
        self.number += 1
        return restored

    @property
    def changed(self) -> U8 | Callable[[], U8] | None:
        """What may change in every frame, or tells it of the last one; None = everything."""
        masks = self._masks
        if self._options.sigma or masks is None:
            return None
        return masks.grown if isinstance(masks, ConstantMask) else lambda: masks.grown

    def remember(self) -> Past:
        """Return all that the frames to come, and the notes, depend on: arrays to be saved."""
        past: Past = {"number": np.array(self.number), "noise": np.array([self._least, self._most])}
        if self._restorer.past is not None:
            past["state"] = self._restorer.past
        if self._masks is not None:
            past |= {f"mask.{name}": a for name, a in self._masks.remember().items()}
        return past

    def recall(self, past: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on where `remember` was called: what follows is what would have followed there."""
        self.number = int(past["number"])
        self._least, self._most = (float(n) for n in past["noise"])
        self._restorer.past = past.get("state")
        if self._masks is not None:
            head = "mask."
            own = {n.removeprefix(head): a for n, a in past.items() if n.startswith(head)}
            self._masks.recall(own)

    def notes(self) -> list[str]:
        """Return what the user should know, after the last frame."""
        notes = [] if self._masks is None else self._masks.notes()
        options = self._options
        if options.sigma == "auto" or (options.sigma is None and options.mask is None):
            notes.append(f"noise: sigma {self._least:.1f} to {self._most:.1f}")
        return notes
