"""Go on in the middle of a clip with the very frame that would have come next."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from fastrestore.atomic import label
from fastrestore.errors import InputError
from fastrestore.video_io import Tally, VideoReader

if TYPE_CHECKING:
    from av import VideoFrame

# Seconds of a clip that are decoded ahead of a place: a keyframe there would do, but an index may
# point behind it, and in a damaged file frames are mended with what came before it.
RUN_UP_S = 10


@dataclass(frozen=True, slots=True)
class Position:
    """A place between two frames of a clip.

    Attributes:
        tally: What was seen before it.
        pts: Time stamp of the frame behind it, ticks of the reader's `time_base`.
        digest: SHA-256 of that frame as RGB.
        by_time: The clip's own time stamps can be trusted to find it.
    """

    tally: Tally
    pts: int
    digest: str
    by_time: bool


def place_before(frame: VideoFrame, seen: Tally, reader: VideoReader) -> Position:
    """Return the place before a frame that was just taken.

    Args:
        frame: As decoded.
        seen: What had been seen before it.
        reader: Where it came from.
    """
    return Position(seen, reader.tally.last, _digest(frame), by_time=reader.finds_frames)


def open_at(
    source: Path, max_pixels: int, place: Position | None, rate: Fraction | None = None
) -> tuple[VideoReader, Iterator[VideoFrame]]:
    """Open a clip at a place; return the reader and its frames from there on, not yet taken.

    Args:
        source: The clip.
        max_pixels: Largest picture that is accepted.
        place: None = the beginning.
        rate: Of a raw stream, as for `VideoReader`.

    Raises:
        InputError: As `VideoReader`, or the place is not in the clip.
    """
    if place is None:
        reader = VideoReader(source, max_pixels, rate)
        return reader, reader.pictures()
    for by_time in (True, False) if place.by_time else (False,):
        reader = VideoReader(source, max_pixels, rate)
        frames = _frames_behind(reader, place, by_time)
        if frames is not None:
            reader.tally = replace(place.tally)
            return reader, frames
        reader.close()
    raise InputError(
        f"{label(source)}: frame {place.tally.frames + 1} does not decode as it did before; "
        "begin anew with --overwrite"
    )


def _frames_behind(
    reader: VideoReader, place: Position, by_time: bool
) -> Iterator[VideoFrame] | None:
    """Return the frames from a place on; None if it is not found.

    Args:
        reader: Nothing read yet.
        place: Where to.
        by_time: Go near it first; else read from the beginning, which is always right.
    """
    import av

    frames = reader.pictures()
    if not by_time:
        for frame in frames:
            if reader.tally.frames == place.tally.frames:
                return chain([frame], frames) if _digest(frame) == place.digest else None
            reader.take(frame)
        return None
    try:
        reader.seek(place.pts - round(RUN_UP_S / reader.time_base))
    except av.error.FFmpegError:
        return None
    for frame in frames:
        if frame.pts is not None and frame.pts >= place.pts:
            is_it = frame.pts == place.pts and _digest(frame) == place.digest
            return chain([frame], frames) if is_it else None
    return None


def _digest(frame: VideoFrame) -> str:
    return hashlib.sha256(frame.to_ndarray(format="rgb24").tobytes()).hexdigest()
