"""Masks that change from frame to frame and were made elsewhere: a mask clip, a numbered folder.

They belong to frames by number, not by time: programs that make masks write one for each frame
and seldom keep the time stamps.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from fastrestore.arrays import U8
from fastrestore.atomic import label
from fastrestore.errors import InputError
from fastrestore.images import is_picture
from fastrestore.journal import Past
from fastrestore.mask_source import if_unmarked
from fastrestore.masks import grow, read_mask
from fastrestore.video_io import VideoReader, to_upright
from fastrestore.video_probe import MAX_PIXELS, open_video

if TYPE_CHECKING:
    from av import VideoFrame

    from fastrestore.batch import Options

_LAST_NUMBER = re.compile(r"(\d+)\D*$", re.ASCII)
_UNDECODED = 16  # at the start of a stream that was cut: packets that no frame may come of


class MovingMask(ABC):
    """A mask of its own for every frame; see `frame_masks.FrameMask`.

    Attributes:
        grown: Grown mask of the last frame: what may change in it.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._frames = self._marked = self._whole = 0
        self.grown: U8 = np.zeros((0, 0), np.uint8)

    def __call__(self, frame: U8, number: int) -> U8:
        """Return the mask of a frame; see `frame_masks.FrameMask`.

        One that leaves nothing to restore from is emptied, lest it end the clip.
        """
        mask = self._find(frame, number)
        self.grown = grow(mask, self._options.grow_px)
        self._frames += 1
        self._marked += bool(mask.any())
        if self.grown.all():
            self._whole += 1
            mask = self.grown = np.zeros_like(mask)
            self._forget()
        return mask

    @abstractmethod
    def _find(self, frame: U8, number: int) -> U8:
        """Return the mask of a frame, as it was made or found."""

    def _forget(self) -> None:  # noqa: B027 (most have nothing to forget)
        """Drop what was known from earlier frames."""

    def remember(self) -> Past:
        """Return all that the next frame's mask, and the notes, depend on."""
        return {"counts": np.array([self._frames, self._marked, self._whole])}

    def recall(self, past: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on where `remember` was called, as if nothing had been between."""
        self._frames, self._marked, self._whole = (int(n) for n in past["counts"])

    @abstractmethod
    def notes(self) -> list[str]:
        """Return what the user should know, after the last frame."""

    def _plain_notes(self) -> list[str]:
        if self._frames and not self._marked:
            return [f"the mask of every frame is empty: {if_unmarked(self._options)}"]
        if self._whole:
            return [f"{self._whole} masks cover the whole frame, which gets no repair"]
        return []

    def close(self) -> None:  # noqa: B027 (most hold nothing)
        """Close the files."""


class FolderMasks(MovingMask):
    """Mask files whose names end in a frame's number; a frame without one has no hole."""

    def __init__(self, folder: Path, source: str, size: tuple[int, int], options: Options) -> None:
        """Look which files are there; they are read when their frame comes.

        Args:
            folder: Of picture files; those without a number are left alone.
            source: The clip, for messages.
            size: Its height and width, px.
            options: How masks are read and grown.

        Raises:
            InputError: No number, one twice, or none that tells where counting starts.
        """
        super().__init__(options)
        self._folder, self._size = folder, size
        self._files = _numbered(folder, source)
        self._first = min(self._files)
        if self._first > 1:
            raise InputError(
                f"{label(folder)}: the lowest number is {self._first}, so it cannot be told "
                "whether frames count from 0 or 1; add a black mask for the first, 0 or 1"
            )
        self._without, self._end = 0, 0

    def _find(self, frame: U8, number: int) -> U8:
        self._end = max(self._end, number + 1)
        path = self._files.get(number + self._first)
        if path is None:
            self._without += 1
            return np.zeros(self._size, np.uint8)
        return read_mask(path, self._size, self._options.invert, self._options.max_pixels)

    def remember(self) -> Past:
        """See `MovingMask`."""
        return {**super().remember(), "folder": np.array([self._without, self._end])}

    def recall(self, past: Mapping[str, npt.NDArray[Any]]) -> None:
        """See `MovingMask`."""
        super().recall(past)
        self._without, self._end = (int(n) for n in past["folder"])

    def notes(self) -> list[str]:
        """See `MovingMask`."""
        name = label(self._folder)
        notes = [f"{name}: its numbers count frames from {self._first}", *self._plain_notes()]
        if self._without:
            some = f"{self._without} of {self._frames} frames have no mask in {name}"
            notes.append(f"{some} and get no repair")
        if over := sum(n - self._first >= self._end for n in self._files):
            notes.append(f"{name}: {over} masks are for frames after the last, number {self._end}")
        return notes


def _numbered(folder: Path, source: str) -> dict[int, Path]:
    """Return a folder's mask files by the last number in their names."""
    files: dict[int, Path] = {}
    heads = set()
    for path in sorted(folder.iterdir()):
        found = _LAST_NUMBER.search(path.stem)
        if found is None or not is_picture(path) or path.is_dir():
            continue
        number = int(found[1])
        heads.add(path.stem[: found.start()])
        if number in files:
            one, two = label(files[number].name), label(path.name)
            raise InputError(f"{label(folder)}: {one} and {two} are for one frame; keep one")
        files[number] = path
    clip = Path(source).stem
    own = _LAST_NUMBER.search(clip)
    # clip1.png and clip2.png are no frames of clip3.mp4: they are masks of its neighbours.
    prefix = clip[: own.start()] if own else ""
    if not files or (prefix in heads and prefix and folder.name != clip):
        raise InputError(
            f"{label(source)}: no mask named {label(clip)}.* in {label(folder)}, and none by the "
            f"numbers of its frames; add one, or a folder {label(clip)} of them"
        )
    return files


class VideoMasks(MovingMask):
    """A mask clip: its frame n is the mask of frame n, white = hole."""

    def __init__(
        self,
        path: Path,
        source: str,
        size: tuple[int, int],
        options: Options,
        frames: int | None,
    ) -> None:
        """Open it.

        Args:
            path: The mask clip.
            source: The clip, for messages.
            size: Its height and width, px.
            options: How masks are read and grown.
            frames: How many frames it has; None = unknown.

        Raises:
            InputError: It cannot be read, has another size, or is too short.
        """
        super().__init__(options)
        self._path, self._source = path, source
        self._reader: VideoReader | None = None
        self._open()
        self._count = count_frames(path, options.max_pixels)
        if frames is not None and self._count < frames - _UNDECODED:
            self._refuse_end(f"{frames} frames", self._count)
        info = self._info
        if (info.height, info.width) != size:
            self.close()
            raise InputError(
                f"{label(path)}: the mask is {info.width}x{info.height}, the clip "
                f"{size[1]}x{size[0]}; scale the mask"
            )

    def _open(self) -> None:
        """Open it, or open it anew to go back."""
        self.close()
        self._reader = VideoReader(self._path, self._options.max_pixels)
        self._info, self._at = self._reader.info, -1  # number of the frame read last
        self._upright = to_upright(self._info)
        self._left = _frames_of(self._reader)

    def _find(self, frame: U8, number: int) -> U8:
        import cv2

        if number <= self._at:
            self._open()
        mask = next(islice(self._left, number - self._at - 1, None), None)
        if mask is None:
            self._refuse_end("more", self._count)
        self._at = number
        luma = np.asarray(cv2.cvtColor(self._upright(mask), cv2.COLOR_RGB2GRAY), np.uint8)
        return np.asarray((luma >= 128) != self._options.invert, np.uint8)

    def _refuse_end(self, wanted: str, count: int) -> NoReturn:
        self.close()
        raise InputError(
            f"{label(self._path)}: has {count} frames, {label(self._source)} has {wanted}; "
            "make a mask for every frame"
        )

    def notes(self) -> list[str]:
        """See `MovingMask`."""
        notes = self._plain_notes()
        if over := self._count - self._at - 1:
            notes.append(f"{label(self._path)}: {over} frames more than the clip has")
        return notes

    def close(self) -> None:
        """Close the file."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def _frames_of(reader: VideoReader) -> Iterator[VideoFrame]:
    """Yield the frames of a mask clip, of which none may be missing.

    Raises:
        InputError: One cannot be decoded: all that follow would belong to other frames.
    """
    from av import VideoFrame

    for item in reader:
        if reader.damaged_packets or (isinstance(item, VideoFrame) and item.is_corrupt):
            raise InputError(f"{label(str(reader.source))}: is damaged; copy or make it again")
        if isinstance(item, VideoFrame):
            yield item


def count_frames(path: str | Path, max_pixels: int = MAX_PIXELS) -> int:
    """Count the frames of a clip without decoding them: exact but for what is damaged or cut off.

    Raises:
        InputError: No video can be read from it.
    """
    container, stream = open_video(path, max_pixels)
    with container:
        return sum(p.size > 0 and not p.is_discard for p in container.demux(stream))
