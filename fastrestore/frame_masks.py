"""The mask of every frame of a video: one that stays, a mask clip, a folder of them, or found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy.typing as npt

from fastrestore.arrays import U8
from fastrestore.atomic import label
from fastrestore.detect import Detector
from fastrestore.errors import InputError
from fastrestore.found_masks import FoundMasks
from fastrestore.images import is_picture
from fastrestore.journal import Past
from fastrestore.mask_source import check_mask, mask_notes, needed
from fastrestore.masks import grow, read_mask
from fastrestore.moving_masks import FolderMasks, VideoMasks, count_frames
from fastrestore.video_probe import is_video

if TYPE_CHECKING:
    from fastrestore.batch import Options


class FrameMask(Protocol):
    """Tells which part of each frame is a hole. Used by one thread; close it at the end.

    Attributes:
        grown: Grown mask of the last frame, uint8 `(H, W)`: what may change in it.
    """

    grown: U8

    def __call__(self, frame: U8, number: int) -> U8:
        """Return the mask of a frame, before it is grown.

        Args:
            frame: Upright uint8 RGB, `(H, W, 3)`, before it is restored.
            number: Counts frames from 0. Gaps are allowed, steps back too.

        Returns:
            uint8 `(H, W)`, 1 = hole; never all of the frame. Not to be changed.

        Raises:
            InputError: There is none for this frame, or it cannot be read.
        """

    def remember(self) -> Past:
        """Return all that the next masks, and the notes, depend on: arrays that can be saved."""

    def recall(self, past: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on where `remember` was called: what follows is what would have followed there."""

    def notes(self) -> list[str]:
        """Return what the user should know, after the last frame."""

    def close(self) -> None:
        """Let go of files. Twice is once."""


class ConstantMask:
    """One mask for all frames; see `FrameMask`."""

    def __init__(self, mask: U8, options: Options) -> None:
        """Take it: uint8 `(H, W)`, 1 = hole, not all of the frame when it is grown."""
        self.mask, self._options = mask, options
        self.grown = grow(mask, options.grow_px)

    def __call__(self, frame: U8, number: int) -> U8:
        """See `FrameMask`."""
        return self.mask

    def remember(self) -> Past:
        """See `FrameMask`."""
        return {}

    def recall(self, past: Mapping[str, npt.NDArray[Any]]) -> None:
        """See `FrameMask`."""

    def notes(self) -> list[str]:
        """See `FrameMask`."""
        return mask_notes(self.mask, self._options)

    def close(self) -> None:
        """See `FrameMask`."""


def open_masks(
    source: str | Path, size: tuple[int, int], options: Options, detector: Detector | None
) -> FrameMask | None:
    """Open what `--mask` names for a clip or a stream.

    A folder may hold a mask, a mask clip or a folder of numbered masks named like the clip; or
    else the numbered masks themselves.

    Args:
        source: The clip's path or the stream's name.
        size: Height and width of its upright frames, px.
        options: `mask` says which.
        detector: What finds the damage; needed for `auto` only.

    Returns:
        The masks; None where none is asked for.

    Raises:
        InputError: It is absent, does not fit, or covers the whole frame throughout.
    """
    if options.mask == "alpha" or options.mask_colour:
        raise InputError(f"{label(source)}: a video needs a mask file, not alpha or a colour")
    if options.mask is None:
        return None
    if options.mask == "auto":
        return FoundMasks(needed(detector), options)
    path = _named_like(Path(source), Path(options.mask))
    if path.is_dir():
        return FolderMasks(path, str(source), size, options)
    if is_video(path):
        is_file = is_video(source) and Path(source).is_file()
        frames = count_frames(source, options.max_pixels) if is_file else None
        return VideoMasks(path, str(source), size, options, frames)
    mask = read_mask(path, size, options.invert, options.max_pixels)
    check_mask(Path(source), mask, options)
    return ConstantMask(mask, options)


def _named_like(source: Path, masks: Path) -> Path:
    """Return what lies in a folder of masks under the name of a clip; else the path itself."""
    if not masks.is_dir() or not source.is_file():  # "0" is a camera, and no clip named 0
        return masks
    found = [
        p
        for p in sorted(masks.iterdir())
        if (p.name if p.is_dir() else p.stem) == source.stem
        and (p.is_dir() or is_picture(p) or is_video(p))
        and not p.samefile(source)
    ]
    if len(found) > 1:
        raise InputError(f"{label(source)}: {len(found)} masks in {label(masks)}; keep one")
    return found[0] if found else masks
