"""Restore a clip: decode -> restore -> encode, every frame once, everything else kept."""

from __future__ import annotations

import errno
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from fastrestore.arrays import U8
from fastrestore.errors import InputError, OutputError
from fastrestore.video_io import VideoReader
from fastrestore.video_probe import MAX_PIXELS, VideoInfo
from fastrestore.video_write import Encoding, VideoWriter, choose_encoding
from fastrestore.yuv import Converter, plane_layout

if TYPE_CHECKING:
    from av import VideoFrame
    from av.packet import Packet
    from av.stream import Stream

QUEUE_DEPTH = 4  # frames or packets between two stages: bounds memory
_POLL_S = 0.1  # how long a stage waits before it looks whether the job has ended

_Item = TypeVar("_Item")


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


def restore_video(
    source: Path,
    target: Path,
    restore_frame: Callable[[U8], U8],
    *,
    mask: U8 | Callable[[], U8] | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int | None, float], None] | None = None,
    crf: int = 17,
    preset: str = "veryfast",
    codec: str | None = None,
    max_pixels: int = MAX_PIXELS,
    stop: threading.Event | None = None,
) -> VideoReport:
    """Restore every frame of a clip and keep all else: stamps, sound, subtitles, chapters, tags.

    The file grows as `<stem>.part-<token>.<suffix>` beside the target and is renamed at the end.
    After Ctrl+C, or when `stop` is set, that part file is completed so that it plays, and stays.

    Args:
        source: The clip.
        target: .mp4, .mov, .mkv or .webm.
        restore_frame: Takes an upright uint8 RGB frame (H, W, 3), returns one of the same size.
            Called strictly in order, in the calling thread.
        mask: uint8 (H, W) of the upright picture, nonzero = hole: only samples under it change.
            A function is asked for it after each call of `restore_frame`. None: the whole
            picture may change.
        overwrite: Replace an existing target.
        progress: Called after each frame with the frames done, the estimated total (None =
            unknown) and the frames per second so far.
        crf: Quality of libx264 and libvpx-vp9, 0 = best.
        preset: Speed of libx264.
        codec: `"libx264"`, `"libvpx-vp9"` or `"ffv1"`; None: the usual one for the suffix.
        max_pixels: Largest picture that is accepted.
        stop: Set it from another thread to end early, as Ctrl+C does.

    Raises:
        InputError: The clip, the mask or an option cannot be used.
        OutputError: The target exists or cannot be written.
        KeyboardInterrupt: After Ctrl+C or `stop`.
    """
    started = time.monotonic()
    part = _check_target(Path(source), Path(target), overwrite)
    encoding = choose_encoding(Path(target), codec, crf, preset)
    with VideoReader(source, max_pixels) as reader:
        hole = None
        if isinstance(mask, np.ndarray):
            hole, mask = _check_mask(mask, reader.info, source), None
        job = _Job(reader, part, Path(target), encoding, hole, mask)
        try:
            frames = job.run(restore_frame, progress, stop or threading.Event())
        except KeyboardInterrupt as e:
            left = [f"what is done so far plays: {part}"] if part.exists() else []
            raise KeyboardInterrupt(*left) from e
    try:
        os.replace(part, target)
    except OSError as e:
        part.unlink(missing_ok=True)
        raise _unwritable(target, e) from e
    notes = [*reader.info.notes, *job.notes]
    return VideoReport(frames, time.monotonic() - started, reader.damaged_packets, notes)


def _check_target(source: Path, target: Path, overwrite: bool) -> Path:
    """Return the part file's path, or say why the target cannot be written there."""
    # A name of its own: two runs to one target must not write into one file.
    part = target.with_name(f"{target.stem}.part-{secrets.token_hex(3)}{target.suffix}")
    if target.exists() and source.exists() and target.samefile(source):
        raise OutputError(f"{target}: would overwrite the input {source}; choose another name")
    if not target.parent.is_dir():
        raise OutputError(f"{target}: the folder does not exist; create it first")
    if target.is_dir():
        raise OutputError(f"{target}: is a folder; give the name of a file")
    if target.exists() and not overwrite:
        raise OutputError(f"{target}: exists already; use --overwrite to replace it")
    return part


def _check_mask(mask: U8, info: VideoInfo, source: Path) -> U8:
    """Return the mask as the frames are stored."""
    if mask.shape != (info.height, info.width):
        size = "x".join(str(n) for n in reversed(mask.shape))
        raise InputError(
            f"{source}: the mask is {size} but the video is {info.width}x{info.height} "
            "(upright); resize the mask"
        )
    return info.orientation.stored(mask)


def _unwritable(target: Path, error: Exception) -> OutputError:
    """Say in one line why writing failed."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OutputError(f"{target}: no space left; free some, or write to another disk")
    reason = getattr(error, "strerror", None) or error
    return OutputError(f"{target}: cannot be written ({reason}); try another folder or format")


class _EndedError(Exception):
    """The other side of a channel is gone: a stage's way out, never seen outside."""


class _Channel(Generic[_Item]):
    """A bounded queue between two stages that lets go when the job has ended; None = no more."""

    def __init__(self, ended: threading.Event) -> None:
        self._queue: queue.Queue[_Item | None] = queue.Queue(QUEUE_DEPTH)
        self._ended = ended

    def put(self, item: _Item | None) -> None:
        while not self._ended.is_set():
            with suppress(queue.Full):
                self._queue.put(item, timeout=_POLL_S)
                return
        raise _EndedError

    def get(self) -> _Item | None:
        while not self._ended.is_set():
            with suppress(queue.Empty):
                return self._queue.get(timeout=_POLL_S)
        raise _EndedError


@dataclass(frozen=True, slots=True)
class _Picture:
    """A frame on its way: as decoded, and upright RGB (H, W, 3), first damaged, then restored.

    Once it is restored, `hole` is its own mask as stored, uint8 (H, W); None: the clip's.
    """

    frame: VideoFrame
    rgb: U8
    hole: U8 | None = None


class _Job:
    """One run: a thread that decodes, the caller's that restores, a thread that encodes.

    Packets of copied streams go the same way as the frames, so that the interleaving stays.
    """

    def __init__(
        self,
        reader: VideoReader,
        part: Path,
        target: Path,
        encoding: Encoding,
        hole: U8 | None,
        last_mask: Callable[[], U8] | None,
    ) -> None:
        self._reader, self._part, self._target = reader, part, target
        self._encoding, self._last_mask = encoding, last_mask
        self._reading_ended, self._writing_ended = threading.Event(), threading.Event()
        self._decoded: _Channel[_Picture | Packet[Stream]] = _Channel(self._reading_ended)
        self._restored: _Channel[_Picture | Packet[Stream]] = _Channel(self._writing_ended)
        self._errors: list[BaseException] = []
        self.notes: list[str] = []
        info = reader.info
        self._layout = plane_layout(
            info.pixel_format, reader.size[1], reader.size[0], encoding.codec
        )
        self._converter = Converter(info.colour, self._layout, hole)

    def run(
        self,
        restore_frame: Callable[[U8], U8],
        progress: Callable[[int, int | None, float], None] | None,
        stop: threading.Event,
    ) -> int:
        """Run the three stages to the end; return the number of frames written."""
        writer = self._open_writer()
        threads = [
            threading.Thread(target=self._decode, daemon=True),
            threading.Thread(target=self._encode, args=(writer,), daemon=True),
        ]
        frames = 0
        try:
            for thread in threads:
                thread.start()
            frames = self._restore(restore_frame, progress, stop)
            self._restored.put(None)
            _join(threads)
        except KeyboardInterrupt:
            self._reading_ended.set()
            with suppress(_EndedError):
                self._restored.put(None)  # the encoder completes the part file
            _join(threads)
            if self._errors:
                self._part.unlink(missing_ok=True)
            raise
        except BaseException as e:
            if not isinstance(e, _EndedError):
                self._errors.append(e)
            self._reading_ended.set()
            self._writing_ended.set()
            _join(threads)
        finally:
            self._reading_ended.set()
            _join(threads[:1])  # the reader is closed next, even after a second Ctrl+C
        if self._errors:
            self._part.unlink(missing_ok=True)
            raise self._errors[0]
        self.notes += [*self._layout.notes, *writer.notes, *self._reader.notes]
        return frames

    def _open_writer(self) -> VideoWriter:
        import av

        try:
            self._part.unlink(missing_ok=True)  # never write through a link left there
            return VideoWriter(self._part, self._reader, self._layout, self._encoding)
        except (av.error.FFmpegError, OSError, ValueError) as e:  # or no such encoder
            with suppress(OSError):
                self._part.unlink(missing_ok=True)
            raise _unwritable(self._target, e) from e

    def _decode(self) -> None:
        """First stage, in its own thread."""
        from av import VideoFrame

        orientation = self._reader.info.orientation
        try:
            for item in self._reader:
                if isinstance(item, VideoFrame):
                    rgb = orientation.upright(self._converter.to_rgb(item))
                    self._decoded.put(_Picture(item, rgb))
                else:
                    self._decoded.put(item)
            self._decoded.put(None)
        except _EndedError:
            return
        except BaseException as e:  # raised again in the caller's thread
            self._errors.append(e)
            self._reading_ended.set()

    def _restore(
        self,
        restore_frame: Callable[[U8], U8],
        progress: Callable[[int, int | None, float], None] | None,
        stop: threading.Event,
    ) -> int:
        """Second stage, in the caller's thread; returns the number of frames."""
        frames, started = 0, time.monotonic()
        while (item := self._decoded.get()) is not None:
            if stop.is_set():
                raise KeyboardInterrupt
            if not isinstance(item, _Picture):
                self._restored.put(item)
                continue
            # A copy: the callee may use its buffer again while this frame waits to be encoded.
            restored = np.array(restore_frame(item.rgb))
            if restored.shape != item.rgb.shape or restored.dtype != np.uint8:
                raise InputError(
                    f"restore_frame returned {restored.dtype} {restored.shape}; "
                    f"return uint8 {item.rgb.shape}"
                )
            hole = None
            if self._last_mask is not None:
                hole = _check_mask(self._last_mask(), self._reader.info, self._target)
            self._restored.put(_Picture(item.frame, restored, hole))
            frames += 1
            if progress is not None:
                fps = frames / max(time.monotonic() - started, 1e-9)
                progress(frames, self._reader.info.frames, fps)
        return frames

    def _encode(self, writer: VideoWriter) -> None:
        """Third stage, in its own thread; completes the file at the end of the items."""
        import av

        orientation = self._reader.info.orientation
        try:
            while (item := self._restored.get()) is not None:
                if isinstance(item, _Picture):
                    stored = orientation.stored(item.rgb)
                    writer.write_frame(self._converter.to_frame(item.frame, stored, item.hole))
                else:
                    writer.write_packet(item)
            writer.finish()
        except _EndedError:
            writer.abandon()
        except BaseException as e:  # raised again in the caller's thread
            if isinstance(e, av.error.FFmpegError | OSError):
                e = _unwritable(self._target, e)
            self._errors.append(e)
            self._writing_ended.set()
            writer.abandon()


def _join(threads: list[threading.Thread]) -> None:
    """Wait in short steps, so that Ctrl+C is seen on every platform."""
    for thread in threads:
        while thread.is_alive():
            thread.join(_POLL_S)
