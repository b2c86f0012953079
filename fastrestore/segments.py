"""Restore a clip in segments, so that a run that was ended by anything goes on where it was.

Beside the target `NAME` grows a folder `.NAME.parts`. A segment begins at a keyframe of the source
and is encoded on its own; when it is whole, the journal says so, and with it lies all that the next
frame depends on. What was not journalled is done again, the same way: cuts depend on the source
alone. At the end the segments are joined (`join`), the file gets its name, and the folder goes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from fastrestore._version import __version__
from fastrestore.atomic import label, sync
from fastrestore.errors import FastRestoreError, InputError, OutputError
from fastrestore.join import join
from fastrestore.journal import (
    LOCK,
    Journal,
    Past,
    Result,
    Value,
    WorkFolder,
    differences,
    fingerprint,
)
from fastrestore.locking import lock
from fastrestore.pipeline import End, Pipeline, Task, VideoReport, unwritable
from fastrestore.segment_file import SegmentWriter
from fastrestore.video_io import VideoReader
from fastrestore.video_seek import Position, open_at, place_before
from fastrestore.video_write import VideoWriter

if TYPE_CHECKING:
    from av import VideoFrame

SEGMENT_S = 60.0
_MAX_WAIT = 2  # segments may be this much longer than wished where no keyframe comes


class Memory(Protocol):
    """What carries the past from one frame to the next."""

    def remember(self) -> Past:
        """Return all that the frames to come depend on."""

    def recall(self, past: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on where `remember` was called."""


@dataclass(frozen=True, slots=True)
class Resume:
    """How a job is gone on with.

    Attributes:
        memory: What `restore_frame` and its masks remember; None = they remember nothing.
        work: What the result depends on beside the source and the encoder, name to value: model,
            options. A run with other ones is refused.
        segment_s: Least length of a segment, seconds of video.
        again: The command that goes on, for messages.
    """

    memory: Memory | None = None
    work: Mapping[str, Value] = field(default_factory=dict)
    segment_s: float = SEGMENT_S
    again: str = "the same call"


@dataclass(frozen=True, slots=True)
class _Cut:
    """Between two segments, or behind the last.

    Attributes:
        place: Where the next one begins; None = all has been read.
        end: Where the last frame ahead ends, in the reader's ticks.
        past: What comes behind depends on; filled in when it has passed the second stage.
    """

    place: Position | None
    end: int
    past: Past = field(default_factory=dict)


def restore_in_segments(task: Task, resume: Resume) -> VideoReport:
    """Begin a job or go on with it; see `video.restore_video`.

    Raises:
        InputError: As for a whole clip; or the job was begun with another input or other options.
        OutputError: Likewise; or another run is at it.
        KeyboardInterrupt: After Ctrl+C or the task's `stop`.
    """
    if not resume.segment_s > 0:  # or not a number
        raise InputError(f"a segment of {resume.segment_s} s is none; give seconds above 0")
    folder = WorkFolder(task.target)
    if os.path.islink(folder.path):  # never through a link
        raise OutputError(f"{label(folder.path)}: is a link; remove it")

    def refuse() -> None:
        raise OutputError(
            f"{label(task.target)}: another run is at it; wait for that, or choose another -o"
        )

    try:
        with lock(folder.path / LOCK, refuse):
            return _Run(task, resume, folder).run()
    finally:
        with suppress(OSError):  # there is work in it
            folder.path.rmdir()


class _Run:
    """One run of a job, with its folder locked."""

    def __init__(self, task: Task, resume: Resume, folder: WorkFolder) -> None:
        self._task, self._resume, self._folder = task, resume, folder

    def run(self) -> VideoReport:
        """Do what is left."""
        started, folder = time.monotonic(), self._folder
        result = self._prepare()
        try:
            if folder.journal.sizes and self._resume.memory is not None:
                self._resume.memory.recall(folder.load_past(len(folder.journal.sizes) - 1))
            if folder.journal.end is None:
                self._restore()
            if result is None:
                result = self._join()
        except KeyboardInterrupt as e:
            raise KeyboardInterrupt(self._kept()) from e
        except FastRestoreError as e:
            raise type(e)(f"{e}; {self._kept()}") from e
        folder.clear(everything=True)
        seconds, journal = time.monotonic() - started, folder.journal
        return VideoReport(journal.frames, seconds, journal.damaged, list(result.notes))

    def _kept(self) -> str:
        return f"{self._folder.journal.frames} frames are kept; go on with: {self._resume.again}"

    def _prepare(self) -> Result | None:
        """Go on with a journal or begin one; return the result if that is there already."""
        task, folder = self._task, self._folder
        old = None if task.overwrite else folder.load()
        if old is None:
            if not task.overwrite:
                folder.clear(everything=True)  # what a run killed at its very end has left
                self._refuse_target()
            folder.save(Journal(self._work(), task.overwrite))
            folder.clear()
            return None
        folder.journal = old
        if old.result is not None and _is(task.target, old.result):
            return old.result
        if told := differences(old.work, self._work()):
            raise InputError(
                f"{label(task.target)}: was begun with {', '.join(told)}; give what it was begun "
                "with, or begin anew with --overwrite"
            )
        if not old.overwrite:
            self._refuse_target()
        folder.check()
        folder.clear()
        return None

    def _refuse_target(self) -> None:
        target = self._task.target
        if target.exists():
            raise OutputError(f"{label(target)}: exists already; use --overwrite to replace it")

    def _work(self) -> dict[str, Value]:
        """Return all that the result depends on."""
        import av

        encoding = self._task.encoding
        options = " ".join(f"{k}={v}" for k, v in encoding.options.items())
        return {
            "input": fingerprint(self._task.source),
            "encoder": f"{encoding.codec} {options}",
            "segments of": self._resume.segment_s,
            "fastrestore": __version__,
            "av": f"{av.__version__}, FFmpeg {av.ffmpeg_version_info}",
            **self._resume.work,
        }

    def _check_input(self) -> None:
        """Refuse to go on with an input that is not what it was."""
        if fingerprint(self._task.source) != self._folder.journal.work["input"]:
            name = label(self._task.source)
            raise InputError(f"{name}: was changed while it was read; put the old one back")

    def _restore(self) -> None:
        """Restore what is left of the clip, segment by segment."""
        task, journal = self._task, self._folder.journal
        reader, frames = open_at(task.source, task.max_pixels, journal.place, task.rate)
        with reader:
            pipeline: Pipeline[_Cut] = Pipeline(task, reader, journal.frames)
            sink = _Segments(task, reader, self._folder)
            pipeline.run(self._items(reader, frames), self._remember, sink)

    def _items(
        self, reader: VideoReader, frames: Iterator[VideoFrame]
    ) -> Iterator[VideoFrame | _Cut]:
        """Yield frames, and cuts between them; in the first stage's thread."""
        place = self._folder.journal.place
        start = None if place is None else place.pts
        wished = self._resume.segment_s / reader.time_base
        last: VideoFrame | None = None
        for decoded in frames:
            seen = replace(reader.tally)
            frame = reader.take(decoded)
            pts = frame.pts or 0
            start = pts if start is None else start
            age = pts - start
            if age >= wished and (decoded.key_frame or age >= _MAX_WAIT * wished):
                self._check_input()
                yield _Cut(place_before(decoded, seen, reader), pts)
                start = pts
            yield frame
            last = frame
        self._check_input()
        if isinstance(reader.stopped, OSError):  # not damage, but a disk or a network
            name, why = label(reader.source), reader.stopped.strerror
            raise InputError(f"{name}: cannot be read ({why}); look at its disk")
        reader.conclude()
        if last is not None:
            yield _Cut(None, (last.pts or 0) + reader.shown_for(last))

    def _remember(self, cut: _Cut) -> _Cut:
        """Add to a cut what comes behind it depends on; in the caller's thread."""
        memory = self._resume.memory
        past = {} if memory is None else memory.remember()
        return replace(cut, past={name: np.array(a) for name, a in past.items()})

    def _join(self) -> Result:
        """Make one file of all segments and give it its name."""
        import av

        target, folder = self._task.target, self._folder
        part = folder.joined(target.suffix)
        try:
            notes = self._write_joined(part)
            sync(part)
            found = part.stat()
            result = Result(found.st_size, found.st_mtime_ns, notes)
            folder.save(replace(folder.journal, result=result))  # should it outlive the renaming
            if not folder.journal.overwrite:
                self._refuse_target()
            os.replace(part, target)
            sync(target.parent)
        except BaseException as e:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            is_ours = isinstance(e, FastRestoreError)
            if not is_ours and isinstance(e, av.error.FFmpegError | OSError):
                raise unwritable(target, e) from e
            raise
        return result

    def _write_joined(self, part: Path) -> list[str]:
        """Write the whole file; return what the user should know of it."""
        task, folder, journal = self._task, self._folder, self._folder.journal
        count = range(len(journal.sizes))
        segments = [(folder.segment(i), folder.load_stamps(i)) for i in count]
        with VideoReader(task.source, task.max_pixels, task.rate) as reader:
            self._check_input()
            writer = VideoWriter(part, reader, task.encoding)
            try:
                join(segments, journal.end or 0, reader, writer, task.stop)
            except BaseException:
                writer.abandon()
                raise
            early = [*reader.info.notes, *task.encoding.layout.notes, *writer.notes]
            return [*early, *journal.notes, *reader.notes, *reader.cut_off()]


def _is(path: Path, result: Result) -> bool:
    """Tell whether a file is the one that was joined."""
    with suppress(OSError):
        found = path.stat()
        return (found.st_size, found.st_mtime_ns) == (result.size, result.mtime_ns)
    return False


class _Segments:
    """Writes segments one after the other, and the journal behind each."""

    def __init__(self, task: Task, reader: VideoReader, folder: WorkFolder) -> None:
        self._task, self._reader, self._folder = task, reader, folder
        self._writer: SegmentWriter | None = None
        self._frames = 0

    def write_frame(self, frame: VideoFrame) -> None:
        """Encode the next frame."""
        if self._writer is None:
            part = self._folder.growing(len(self._folder.journal.sizes))
            self._writer = self._open(part)
        self._writer.write(frame)
        self._frames += 1

    def write_other(self, cut: _Cut) -> None:
        """Complete a segment, on disk, in an order that a break at any point leaves of use."""
        folder, journal = self._folder, self._folder.journal
        number = len(journal.sizes)
        if self._writer is None:
            raise ValueError("a cut without frames ahead of it")
        stamps = self._writer.finish(cut.end)
        self._writer = None
        os.replace(folder.growing(number), folder.segment(number))
        folder.save_arrays(number, stamps, cut.past)
        size = folder.segment(number).stat().st_size
        frames, self._frames = journal.frames + self._frames, 0
        grown = replace(
            journal,
            sizes=(*journal.sizes, size),
            digests=folder.digests(number),
            frames=frames,
            place=cut.place,
        )
        if cut.place is None:
            notes, damaged = tuple(self._reader.notes), self._reader.damaged_packets
            grown = replace(grown, end=cut.end, notes=notes, damaged=damaged)
        folder.save(grown)
        folder.past(number - 1).unlink(missing_ok=True)

    def close(self, end: End) -> None:
        """Give up the segment that is not whole."""
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None

    def _open(self, part: Path) -> SegmentWriter:
        import av

        try:
            return SegmentWriter(part, self._reader, self._task.encoding)
        except (av.error.FFmpegError, OSError, ValueError) as e:  # or no such encoder
            raise unwritable(self._task.target, e) from e
