"""Restore a clip: decode -> restore -> encode, every frame once, everything else kept."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from fastrestore.arrays import U8
from fastrestore.atomic import check_place, label, part_of
from fastrestore.encoders import AUTO, choose_encoding
from fastrestore.errors import OutputError
from fastrestore.pipeline import End, Pipeline, Progress, Task, VideoReport, unwritable
from fastrestore.segments import Resume, restore_in_segments
from fastrestore.video_io import VideoReader
from fastrestore.video_probe import MAX_PIXELS, probe
from fastrestore.video_write import VideoWriter

if TYPE_CHECKING:
    from av.packet import Packet
    from av.stream import Stream

__all__ = ["Resume", "VideoReport", "restore_video"]


def restore_video(
    source: Path,
    target: Path,
    restore_frame: Callable[[U8], U8],
    *,
    mask: U8 | Callable[[], U8] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    encoder: str = AUTO,
    crf: int | None = None,
    preset: str | None = None,
    rate: Fraction | None = None,
    max_pixels: int = MAX_PIXELS,
    stop: threading.Event | None = None,
    resume: Resume | None = None,
) -> VideoReport:
    """Restore every frame of a clip and keep all else: stamps, sound, subtitles, chapters, tags.

    The file grows as `<stem>.part-<token>.<suffix>` beside the target and is renamed at the end.
    After Ctrl+C, or when `stop` is set, that part file is completed so that it plays, and stays.
    With `resume` it grows in segments instead, and a run that was ended by anything goes on where
    it was; see `segments`.

    Args:
        source: The clip.
        target: .mp4, .mov, .mkv or .webm.
        restore_frame: Takes an upright uint8 RGB frame (H, W, 3), returns one of the same size.
            Called strictly in order, in the calling thread.
        mask: uint8 (H, W) of the upright picture, nonzero = hole: only samples under it change.
            A function is asked for it after each call of `restore_frame`. None: the whole
            picture may change.
        overwrite: Replace an existing target; with `resume` also begin anew.
        progress: Called after each frame with the frames done, the estimated total (None =
            unknown) and the frames per second so far.
        encoder: One of `encoders.NAMES`; `auto` is the usual one for the suffix.
        crf: Quality, 0 = best; None: the encoder's own default.
        preset: Speed against size, in the encoder's words; None: its default.
        rate: Frames per second of a raw stream, which has no time stamps; None: what it says
            itself, else 25.
        max_pixels: Largest picture that is accepted.
        stop: Set it from another thread to end early, as Ctrl+C does.
        resume: How to go on after a break.

    Raises:
        InputError: The clip, the mask or an option cannot be used.
        EncoderError: The encoder does not work here.
        OutputError: The target exists or cannot be written.
        KeyboardInterrupt: After Ctrl+C or `stop`.
    """
    source, target = Path(source), Path(target)
    if target.exists() and source.exists() and target.samefile(source):
        raise OutputError(
            f"{label(target)}: would overwrite the input {label(source)}; choose another name"
        )
    check_place(target)
    task = Task(
        source,
        target,
        restore_frame,
        mask,
        overwrite,
        progress,
        choose_encoding(target, probe(source, max_pixels, rate), encoder, crf, preset),
        max_pixels,
        rate,
        stop or threading.Event(),
    )
    return _at_once(task) if resume is None else restore_in_segments(task, resume)


def _at_once(task: Task) -> VideoReport:
    """Write one file from its beginning to its end."""
    started, target = time.monotonic(), task.target
    if target.exists() and not task.overwrite:
        raise OutputError(f"{label(target)}: exists already; use --overwrite to replace it")
    part = part_of(target)
    with VideoReader(task.source, task.max_pixels, task.rate) as reader:
        pipeline: Pipeline[Packet[Stream]] = Pipeline(task, reader)
        file = _File(task, part, reader)
        try:
            frames = pipeline.run(reader, lambda packet: packet, file)
        except KeyboardInterrupt as e:
            left = [f"what is done so far plays: {part}"] if part.exists() else []
            raise KeyboardInterrupt(*left) from e
    try:
        os.replace(part, target)
    except OSError as e:
        part.unlink(missing_ok=True)
        raise unwritable(target, e) from e
    notes = [*reader.info.notes, *task.encoding.layout.notes, *file.notes, *reader.notes]
    return VideoReport(frames, time.monotonic() - started, reader.damaged_packets, notes)


class _File:
    """One output file as a sink. After Ctrl+C it is completed as well, so that it plays.

    Attributes:
        notes: What it could not keep, in words.
    """

    def __init__(self, task: Task, part: Path, reader: VideoReader) -> None:
        """Create the file; raises OutputError."""
        import av

        self._part = part
        try:
            part.unlink(missing_ok=True)  # never write through a link left there
            self._writer = VideoWriter(part, reader, task.encoding)
        except (av.error.FFmpegError, OSError, ValueError) as e:  # or no such encoder
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise unwritable(task.target, e) from e
        self.write_frame, self.write_other = self._writer.write_frame, self._writer.write_packet
        self.notes = self._writer.notes

    def close(self, end: End) -> None:
        """Complete the file, or remove it."""
        if end == "failed":
            self._writer.abandon()
            self._part.unlink(missing_ok=True)
        else:
            self._writer.finish()
