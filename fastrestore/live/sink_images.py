"""Frames as numbered pictures, and the sink that only counts."""

from __future__ import annotations

import re
from pathlib import Path

from fastrestore.atomic import label, write_file
from fastrestore.errors import InputError, OutputError
from fastrestore.images import WRITTEN, Picture, encode_picture
from fastrestore.live.frame import LiveFrame
from fastrestore.live.source_images import pattern_field


class ImageSink:
    """A `Sink` of pictures that are numbered from 0 without gaps, each written whole or not.

    Dropped frames leave no gap: programs that read such pictures stop at one.
    """

    def __init__(self, text: str, *, overwrite: bool) -> None:
        """Check the pattern.

        Args:
            text: Like `out/%05d.png`.
            overwrite: Replace pictures that exist.

        Raises:
            InputError: No number in it, or no format that is written.
            OutputError: The folder does not exist, or holds such pictures.
        """
        self.name = label(text)
        self.notes: list[str] = []
        self._folder, pattern = Path(text).parent, Path(text).name
        self._suffix = Path(pattern).suffix.lower()
        field = pattern_field(pattern)
        if field is None:
            raise InputError(f"{self.name}: give it one number, like out/%05d.png")
        if self._suffix not in WRITTEN:
            known = ", ".join(sorted(WRITTEN))
            raise InputError(f"{self.name}: pictures are not written so; use one of {known}")
        self._before, self._after = pattern[: field.start()], pattern[field.end() :]
        self._digits = int(field[1] or 1)
        self._count = 0
        self._check(overwrite)

    def write(self, frame: LiveFrame) -> None:
        """See `Sink.write`."""
        name = f"{self._before}{self._count:0{self._digits}d}{self._after}"
        picture = Picture(frame.rgb, format=WRITTEN[self._suffix])
        path = self._folder / name
        write_file(path, encode_picture(picture, frame.rgb, self._suffix, name=label(path)))
        self._count += 1

    def finish(self) -> None:
        """See `Sink.finish`: each picture is complete already."""

    def abandon(self) -> None:
        """See `Sink.abandon`: each picture is complete already."""

    def _check(self, overwrite: bool) -> None:
        if not self._folder.is_dir():
            raise OutputError(f"{self.name}: the folder does not exist; create it first")
        old = re.compile(re.escape(self._before) + r"\d+" + re.escape(self._after))
        if not overwrite and any(old.fullmatch(p.name) for p in self._folder.iterdir()):
            raise OutputError(
                f"{self.name}: such pictures exist already; use --overwrite, or another folder"
            )


class NullSink:
    """A `Sink` that forgets the frames; for measuring.

    Attributes:
        frames: How many came.
    """

    def __init__(self) -> None:
        self.name = "none"
        self.notes: list[str] = []
        self.frames = 0

    def write(self, frame: LiveFrame) -> None:
        """See `Sink.write`."""
        self.frames += 1

    def finish(self) -> None:
        """See `Sink.finish`."""

    def abandon(self) -> None:
        """See `Sink.abandon`."""
