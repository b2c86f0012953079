"""A video file as a source: every frame, upright, in its own colours."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from fractions import Fraction

from fastrestore.live.frame import LiveFrame
from fastrestore.video_io import VideoReader, to_upright


class FileSource:
    """A `Source` of a clip's frames. Not `live`: it is read as fast as somebody takes them."""

    live = False

    def __init__(self, path: str, *, max_pixels: int) -> None:
        """Open it; raises InputError as `video_io.VideoReader` does."""
        self.name = path
        self._reader = VideoReader(path, max_pixels)
        self.rate: Fraction | None = self._reader.rate
        self.notes: list[str] = [f"{path}: {note}" for note in self._reader.info.notes]
        self._frames = self._draw()
        self._reading = threading.Lock()  # FFmpeg must not be closed while it decodes
        self._closed = False

    def read(self) -> LiveFrame | None:
        """See `Source.read`."""
        with self._reading:
            return None if self._closed else next(self._frames, None)

    def close(self) -> None:
        """See `Source.close`; waits for a frame that is being decoded."""
        self._closed = True
        with self._reading:
            self._frames.close()
            self._reader.close()

    def _draw(self) -> Generator[LiveFrame, None, None]:
        from av import VideoFrame

        reader, upright = self._reader, to_upright(self._reader.info)
        number = 0
        for item in reader:
            if isinstance(item, VideoFrame):
                pts = None if item.pts is None else item.pts * reader.time_base
                yield LiveFrame(upright(item), number, time.monotonic(), pts)
                number += 1
        self.notes += [f"{self.name}: {note}" for note in reader.notes]
