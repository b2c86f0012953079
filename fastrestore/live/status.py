"""How a live run tells how it is doing: one line on stderr, or JSON lines for programs."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from fastrestore.errors import FastRestoreError
from fastrestore.live.stats import Figures

TERMINAL_S, LOG_S, JSON_S = 0.5, 10.0, 1.0  # between two lines

Named = Sequence[tuple[str, Figures]]


class Status:
    """Writes to stderr alone: stdout may carry the video.

    In a terminal the line is rewritten in place, elsewhere one is added every 10 s. As JSON every
    line is an object: `{"event": "status" | "note" | "error" | "summary", ...}`. For one thread.
    """

    def __init__(
        self,
        *,
        as_json: bool = False,
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Say nothing yet.

        Args:
            as_json: Objects, one a line.
            quiet: Nothing but what is needed.
            stream: Instead of stderr.
            clock: Seconds.
        """
        self._stream: TextIO | None = sys.stderr if stream is None else stream  # None = closed
        self._json, self._quiet, self._clock = as_json, quiet, clock
        terminal = self._stream is not None and self._stream.isatty()
        self._inplace = terminal and not (as_json or quiet)
        self._every = JSON_S if as_json else TERMINAL_S if self._inplace else LOG_S
        self._next: float | None = None
        self._shown = False

    def due(self) -> bool:
        """Tell whether it is time for a line; the first comes one interval after the first call."""
        now = self._clock()
        if self._next is None:
            self._next = now + self._every
        if self._quiet or now < self._next:
            return False
        self._next = now + self._every
        return True

    def show(self, streams: Named, runs: str) -> None:
        """Write the line.

        Args:
            streams: Each one's name and recent figures.
            runs: What restores: the model and its backend.
        """
        if self._json:
            rows = [_row(name, f) for name, f in streams]
            self._object(event="status", runs=runs, streams=rows)
            return
        line = _line(streams, runs)
        if self._inplace:
            width = shutil.get_terminal_size().columns - 1
            self._write(f"\r{line[:width]}\x1b[K")
            self._shown = True
        else:
            self._write(f"{line}\n")

    def note(self, text: str) -> None:
        """Write what the user should know now, above the line."""
        if self._quiet:
            return
        if self._json:
            self._object(event="note", message=text)
            return
        self._clear()
        self._write(f"fastrestore: {text}\n")

    def error(self, error: FastRestoreError) -> None:
        """Write why one of several streams ended, even where all else is quiet."""
        if self._json:
            self._object(event="error", code=error.exit_code, message=str(error))
            return
        self._clear()
        self._write(f"fastrestore: {error}\n")

    def summary(
        self, streams: Sequence[tuple[str, Figures, FastRestoreError | None]], runs: str
    ) -> None:
        """Write what came of each stream: its name, its figures, why it ended early."""
        if self._quiet:
            return
        if self._json:
            rows = [_row(name, f) for name, f, _ in streams]
            for row, (_, _, e) in zip(rows, streams, strict=True):
                row["error"] = None if e is None else {"code": e.exit_code, "message": str(e)}
            self._object(event="summary", runs=runs, streams=rows)
            return
        self._clear()
        for name, f, error in streams:
            if error is not None and not f.frames:
                continue  # why there are none is all that matters
            self._write(f"{name}: {f.frames} frames in {f.seconds:.1f} s, {_figures(f)}\n")

    def _object(self, **fields: Any) -> None:
        self._write(json.dumps(fields) + "\n")

    def _clear(self) -> None:
        if self._shown:
            self._write("\r\x1b[K")
            self._shown = False

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # its reader has gone: that must not end the video
            self._stream = None


def _row(name: str, f: Figures) -> dict[str, Any]:
    return {"stream": name, **f.to_json()}


def _line(streams: Named, runs: str) -> str:
    if len(streams) == 1:
        return f"{_figures(streams[0][1])}, queue {streams[0][1].queue} | {runs}"
    shown = " | ".join(f"{name} {f.fps:.1f} fps" for name, f in streams)
    latest = [f.p99 for _, f in streams if f.p99 is not None]
    worst = f", p99 {max(latest):.0f} ms" if latest else ""
    lost = sum(f.dropped + f.skipped + f.lost for _, f in streams)
    waiting = sum(f.queue for _, f in streams)
    return f"{shown}{worst}, {lost} dropped, queue {waiting} | {runs}"


def _figures(f: Figures) -> str:
    parts = [f"{f.fps:.1f} fps"]
    if f.p50 is not None and f.p99 is not None:
        parts.append(f"p50 {f.p50:.0f} ms, p99 {f.p99:.0f} ms")
    parts.append(f"{f.dropped} dropped")
    if f.skipped:
        parts.append(f"{f.skipped} skipped")
    if f.lost:
        parts.append(f"{f.lost} lost before")
    return ", ".join(parts)
