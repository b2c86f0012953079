"""Frames into a video file that plays even when the program is killed while it writes."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fastrestore.atomic import check_place, disk_reason, label, part_of
from fastrestore.errors import InputError, OutputError
from fastrestore.live.encode import Encoding
from fastrestore.live.frame import LiveFrame
from fastrestore.live.sink_container import ContainerSink, Rate

if TYPE_CHECKING:
    from av.container import OutputContainer

FILE_MUXERS = {
    ".mkv": "matroska",
    ".mp4": "mp4",
    ".mov": "mov",
    ".webm": "webm",
    ".ts": "mpegts",
}
# What is written reaches the disk at once, in pieces that play without an end. MP4 and MOV become
# ordinary files of that kind when they are completed.
_CLUSTERS = {"cluster_time_limit": "500"}  # ms
_FRAGMENTS = {"movflags": "hybrid_fragmented"}
_CRASH_SAFE: dict[str, dict[str, str]] = {
    "matroska": _CLUSTERS,
    "webm": _CLUSTERS,
    "mp4": _FRAGMENTS,
    "mov": _FRAGMENTS,
    "mpegts": {},
}


def file_muxer(path: str) -> str:
    """Return the container format that a file's suffix names; raises InputError."""
    suffix = Path(path).suffix.lower()
    if suffix not in FILE_MUXERS:
        raise InputError(
            f"{label(path)}: video is not written as {suffix or 'a file without suffix'}; "
            f"use one of {', '.join(FILE_MUXERS)}"
        )
    return FILE_MUXERS[suffix]


class FileSink:
    """A `Sink` that grows `<stem>.part-<token>.<suffix>` and renames it when it is complete."""

    def __init__(self, path: str, encoding: Encoding, rate: Rate, *, overwrite: bool) -> None:
        """Prepare it; nothing is written before the first frame.

        Args:
            path: The file.
            encoding: From `choose_encoding`, for the suffix's muxer.
            rate: As for `ContainerSink`.
            overwrite: Replace an existing file.

        Raises:
            OutputError: It exists, or its folder does not.
        """
        self.name = label(path)
        self._target = Path(path)
        check_place(self._target)
        if self._target.exists() and not overwrite:
            raise OutputError(f"{self.name}: exists already; use --overwrite to replace it")
        self._overwrite = overwrite
        self._part = part_of(self._target)
        self._muxer = encoding.muxer
        self._abandoned = False
        self._inner = ContainerSink(self.name, encoding, rate, self._open, reason=disk_reason)
        self.notes = self._inner.notes

    def write(self, frame: LiveFrame) -> None:
        """See `Sink.write`."""
        self._inner.write(frame)

    def finish(self) -> None:
        """See `Sink.finish`."""
        self._inner.finish()
        if not self._inner.started:
            self.notes.append(f"{self.name}: no frame came, nothing is written")
            return
        if not self._overwrite and self._target.exists():
            raise OutputError(
                f"{self.name}: another has made it meanwhile; rename {self._part}, or remove one"
            )
        try:
            os.replace(self._part, self._target)
        except OSError as e:
            raise OutputError(f"{self.name}: {disk_reason(e)}; it is {self._part} for now") from e

    def abandon(self) -> None:
        """See `Sink.abandon`; what was written stays as the part file."""
        self._inner.abandon()
        with suppress(OSError):
            if not self._part.stat().st_size:
                self._part.unlink()
            elif not self._abandoned:
                self._abandoned = True
                self.notes.append(f"{self.name}: what was written until then plays: {self._part}")

    def _open(self) -> OutputContainer:
        import av

        options = {"flush_packets": "1", **_CRASH_SAFE[self._muxer]}
        # An absolute path: FFmpeg reads "name:" at the start of a relative one as a protocol.
        path = os.path.abspath(self._part)
        return av.open(path, "w", format=self._muxer, container_options=options)
