"""Masks of a clip as a video to be looked at, or to be given back by `--mask`."""

from __future__ import annotations

import os
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastrestore.arrays import U8
from fastrestore.atomic import label, part_of
from fastrestore.errors import OutputError
from fastrestore.yuv import FULL

if TYPE_CHECKING:
    from av import VideoStream
    from av.container import OutputContainer

SUFFIX = ".mkv"
_RATE = Fraction(25)  # where the clip's is not known; masks belong to frames by number


class MaskVideo:
    """Writes one grey frame for each mask, white = hole, without loss. Used by one thread.

    The file grows under another name and gets its own when it is whole.
    """

    def __init__(self, target: Path, fps: float | None) -> None:
        """Prepare it; the first mask opens the file.

        Args:
            target: A Matroska file.
            fps: Frames per second of the clip; None = unknown.
        """
        self._target = target
        self._part = part_of(target)
        self._rate = Fraction(fps).limit_denominator(1001) if fps else _RATE
        self._file: tuple[OutputContainer, VideoStream] | None = None

    def write(self, mask: U8) -> None:
        """Append a mask, uint8 `(H, W)`, 1 = hole, all of one size.

        Raises:
            OutputError: The file cannot be written.
        """
        import av

        try:
            if self._file is None:
                self._file = self._open(*mask.shape)
            container, stream = self._file
            frame = av.VideoFrame.from_ndarray(mask * np.uint8(255), format="gray")
            container.mux(stream.encode(frame))
        except (av.error.FFmpegError, OSError) as e:
            raise self._unwritable(e) from e

    def finish(self) -> None:
        """Complete the file and give it its name; without a mask there is none.

        Raises:
            OutputError: It cannot be written.
        """
        import av

        if self._file is None:
            return
        container, stream = self._file
        try:
            container.mux(stream.encode(None))
            container.close()
            os.replace(self._part, self._target)
        except (av.error.FFmpegError, OSError) as e:
            raise self._unwritable(e) from e
        self._file = None

    def abandon(self) -> None:
        """Remove what is not whole; after `finish` nothing is left to do."""
        import av

        if self._file is None:
            return
        # That it cannot be completed is no news.
        with suppress(av.error.FFmpegError, OSError):
            self._file[0].close()
        self._part.unlink(missing_ok=True)
        self._file = None

    def _open(self, height: int, width: int) -> tuple[OutputContainer, VideoStream]:
        import av

        container = av.open(os.path.abspath(self._part), "w")
        stream = container.add_stream("ffv1", rate=self._rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "gray"
        stream.codec_context.color_range = FULL  # white is 255
        return container, stream

    def _unwritable(self, error: Exception) -> OutputError:
        reason = getattr(error, "strerror", None) or error
        return OutputError(
            f"{label(self._target)}: cannot be written ({reason}); choose another --mask-out"
        )
