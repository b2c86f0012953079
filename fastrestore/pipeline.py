"""Three stages at once: a thread that decodes, the caller's that restores, one that encodes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

import numpy as np

from fastrestore.arrays import U8
from fastrestore.atomic import disk_reason, label
from fastrestore.channel import Channel, ClosedError
from fastrestore.encoders import Encoding
from fastrestore.errors import FastRestoreError, InputError, OutputError
from fastrestore.video_io import VideoReader
from fastrestore.video_probe import VideoInfo
from fastrestore.yuv import Converter

if TYPE_CHECKING:
    from av import VideoFrame

QUEUE_DEPTH = 4  # items between two stages: bounds memory
_POLL_S = 0.1  # how long a wait for a thread lasts in one piece, so that Ctrl+C is seen

End = Literal["complete", "stopped", "failed"]
Progress = Callable[[int, int | None, float], None]  # frames done, frames in all, frames/s
Other = TypeVar("Other")
_Taken = TypeVar("_Taken", contravariant=True)


class Sink(Protocol[_Taken]):
    """Where the last stage puts what it gets; used by its thread alone."""

    def write_frame(self, frame: VideoFrame) -> None:
        """Take the next restored frame."""

    def write_other(self, item: _Taken) -> None:
        """Take what travels among the frames, in its place."""

    def close(self, end: End) -> None:
        """Complete what is there; after a failure, also one of this call itself, give it up."""


@dataclass(frozen=True, slots=True)
class VideoReport:
    """What became of a clip.

    Attributes:
        frames: Frames restored and written.
        seconds: Time taken.
        dropped_packets: Damaged video packets that could not be decoded.
        notes: What changed or was lost, one sentence each, for the user.
    """

    frames: int
    seconds: float
    dropped_packets: int
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Task:
    """One clip to restore; see `video.restore_video` for what its parts mean."""

    source: Path
    target: Path
    restore: Callable[[U8], U8]
    mask: U8 | Callable[[], U8] | None
    overwrite: bool
    progress: Progress | None
    encoding: Encoding
    max_pixels: int
    rate: Fraction | None
    stop: threading.Event


@dataclass(frozen=True, slots=True)
class _Picture:
    """A frame on its way: as decoded, and upright RGB (H, W, 3), first damaged, then restored.

    Once it is restored, `hole` is its own mask as stored, uint8 (H, W); None: the clip's.
    """

    frame: VideoFrame
    rgb: U8
    hole: U8 | None = None


class Pipeline(Generic[Other]):
    """One run over a clip. What else comes among the frames travels with them, in its place."""

    def __init__(self, task: Task, reader: VideoReader, done: int = 0) -> None:
        """Prepare a run.

        Args:
            task: What is to be done.
            reader: The clip, open.
            done: Frames that earlier runs have done, for the progress.

        Raises:
            InputError: The mask does not fit.
        """
        self._task, self._info, self._done = task, reader.info, done
        hole, self._last_mask = None, None
        if isinstance(task.mask, np.ndarray):
            hole = stored_mask(task.mask, reader.info, task.source)
        else:
            self._last_mask = task.mask
        self._converter = Converter(reader.info.colour, task.encoding.layout, hole)
        self._decoded: Channel[_Picture | Other] = Channel(QUEUE_DEPTH)
        self._restored: Channel[_Picture | Other] = Channel(QUEUE_DEPTH)
        self._errors: list[BaseException] = []
        self._end: End = "failed"

    def run(
        self,
        items: Iterable[VideoFrame | Other],
        other: Callable[[Other], Other],
        sink: Sink[Other],
    ) -> int:
        """Run the three stages to the end; return the number of frames restored.

        Args:
            items: Iterated by the first stage.
            other: What is done in the calling thread, in order, with what is no frame.
            sink: Filled by the last stage; closed whatever happens.

        Raises:
            KeyboardInterrupt: After Ctrl+C or the task's `stop`.
        """
        threads = [
            threading.Thread(target=self._decode, args=(items,), daemon=True),
            threading.Thread(target=self._encode, args=(sink,), daemon=True),
        ]
        frames, interrupt = 0, None
        try:
            for thread in threads:
                thread.start()
            frames = self._restore(other)
            self._end = "failed" if self._errors else "complete"
        except KeyboardInterrupt as e:
            self._end, interrupt = "stopped", e
        except ClosedError:
            pass  # the last stage has failed, and says so below
        except BaseException as e:
            self._errors.append(e)
        finally:
            self._decoded.close()
            self._restored.finish()  # what waits there is still written
            _join(threads[:1])  # the caller closes the reader next, even after a second Ctrl+C
        _join(threads)
        if interrupt is not None:
            raise interrupt
        if self._errors:
            raise self._errors[0]
        return frames

    def _decode(self, items: Iterable[VideoFrame | Other]) -> None:
        """First stage, in its own thread."""
        from av import VideoFrame

        orientation = self._info.orientation
        try:
            for item in items:
                if isinstance(item, VideoFrame):
                    rgb = orientation.upright(self._converter.to_rgb(item))
                    self._decoded.put(_Picture(item, rgb))
                else:
                    self._decoded.put(item)
        except ClosedError:
            return
        except BaseException as e:  # raised again in the caller's thread
            self._errors.append(e)
        self._decoded.finish()

    def _restore(self, other: Callable[[Other], Other]) -> int:
        """Second stage, in the caller's thread; returns the number of frames."""
        task, frames, started = self._task, 0, time.monotonic()
        while (item := self._decoded.get()) is not None:
            if task.stop.is_set():
                raise KeyboardInterrupt
            if not isinstance(item, _Picture):
                self._restored.put(other(item))
                continue
            # A copy: the callee may use its buffer again while this frame waits to be encoded.
            restored = np.array(task.restore(item.rgb))
            if restored.shape != item.rgb.shape or restored.dtype != np.uint8:
                raise InputError(
                    f"restore_frame returned {restored.dtype} {restored.shape}; "
                    f"return uint8 {item.rgb.shape}"
                )
            hole = None
            if self._last_mask is not None:
                hole = stored_mask(self._last_mask(), self._info, task.source)
            self._restored.put(_Picture(item.frame, restored, hole))
            frames += 1
            if task.progress is not None:
                fps = frames / max(time.monotonic() - started, 1e-9)
                task.progress(self._done + frames, self._info.frames, fps)
        return frames

    def _encode(self, sink: Sink[Other]) -> None:
        """Third stage, in its own thread."""
        import av

        orientation = self._info.orientation
        try:
            while (item := self._restored.get()) is not None:
                if isinstance(item, _Picture):
                    stored = orientation.stored(item.rgb)
                    sink.write_frame(self._converter.to_frame(item.frame, stored, item.hole))
                else:
                    sink.write_other(item)
            sink.close(self._end)
        except BaseException as e:  # raised again in the caller's thread
            is_ours = isinstance(e, FastRestoreError)
            if not is_ours and isinstance(e, av.error.FFmpegError | OSError):
                e = unwritable(self._task.target, e)
            self._errors.append(e)
            self._restored.close()
            sink.close("failed")


def stored_mask(mask: U8, info: VideoInfo, source: Path) -> U8:
    """Turn an upright mask as the frames are stored.

    Raises:
        InputError: It is of another size.
    """
    if mask.shape != (info.height, info.width):
        size = "x".join(str(n) for n in reversed(mask.shape))
        raise InputError(
            f"{label(source)}: the mask is {size} but the video is {info.width}x{info.height} "
            "(upright); resize the mask"
        )
    return info.orientation.stored(mask)


def unwritable(target: Path, error: BaseException) -> OutputError:
    """Say in one line why writing failed."""
    return OutputError(f"{label(target)}: {disk_reason(error)}")


def _join(threads: list[threading.Thread]) -> None:
    """Wait in short steps, so that Ctrl+C is seen on every platform."""
    for thread in threads:
        while thread.is_alive():
            thread.join(_POLL_S)
