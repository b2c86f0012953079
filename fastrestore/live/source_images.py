"""Numbered pictures as a source: a pattern like `in/%05d.png`, or a folder of them."""

from __future__ import annotations

import os
import re
import time
from fractions import Fraction
from pathlib import Path

from fastrestore.atomic import label
from fastrestore.errors import InputError
from fastrestore.images import is_picture, read_picture
from fastrestore.live.frame import LiveFrame

_RATE = Fraction(25)
_FIELD = re.compile(r"%(?:0(\d{1,2}))?d")
_DIGITS = re.compile(r"(\d+)")


def pattern_field(name: str) -> re.Match[str] | None:
    """Find the one `%d` or `%05d` of a file's name; None where there is none or more."""
    found = list(_FIELD.finditer(name))
    return found[0] if len(found) == 1 else None


class ImageSource:
    """A `Source` of pictures, all of one size. Their order is that of their numbers."""

    live = False

    def __init__(self, text: str, *, rate: Fraction | None, max_pixels: int) -> None:
        """Find the pictures.

        Args:
            text: A pattern or a folder.
            rate: Pictures per second; None = 25.
            max_pixels: Largest picture that is accepted.

        Raises:
            InputError: No folder, no pictures.
        """
        self.name = label(text)
        self.rate: Fraction | None = rate or _RATE
        self.notes: list[str] = []
        self._max_pixels = max_pixels
        self._files = _in_folder(text) if os.path.isdir(text) else _of_pattern(text)
        self._next, self._size = 0, (0, 0)
        self._closed = False

    def read(self) -> LiveFrame | None:
        """See `Source.read`."""
        if self._closed or self._next == len(self._files):
            return None
        number, path = self._files[self._next]
        self._next += 1
        picture = read_picture(path, self._max_pixels)
        height, width = picture.rgb.shape[:2]
        if self._next == 1:
            self._size = width, height
            if picture.alpha is not None or picture.deep is not None:
                self.notes.append(f"{self.name}: transparency and 16 bits are not kept")
        if (width, height) != self._size:
            old = "{}x{}".format(*self._size)
            raise InputError(
                f"{label(path)}: is {width}x{height}, the ones before {old}; scale all to one size"
            )
        pts = number / self.rate if self.rate else None
        return LiveFrame(picture.rgb, number, time.monotonic(), pts)

    def close(self) -> None:
        """See `Source.close`."""
        self._closed = True


def _of_pattern(text: str) -> list[tuple[int, Path]]:
    """The files that fit, by number; the first one is frame 0, a missing one leaves a gap."""
    folder, name = Path(text).parent, Path(text).name
    field = pattern_field(name)
    if field is None:
        raise InputError(f"{label(text)}: give it one number, like in/%05d.png")
    if not folder.is_dir():
        raise InputError(f"{label(text)}: its folder does not exist; check the name")
    before, after = name[: field.start()], name[field.end() :]
    fits = re.compile(re.escape(before) + r"(\d+)" + re.escape(after))
    width = int(field[1] or 1)
    found = {}
    for entry in folder.iterdir():
        digits = fits.fullmatch(entry.name)
        if digits and digits[1] == digits[1].lstrip("0").rjust(width, "0"):
            found[int(digits[1])] = entry
    if not found:
        raise InputError(f"{label(text)}: no file of that name; check the name")
    first = min(found)
    return [(number - first, found[number]) for number in sorted(found)]


def _in_folder(text: str) -> list[tuple[int, Path]]:
    """The pictures of a folder, 2 before 10."""
    files = [entry for entry in Path(text).iterdir() if is_picture(entry) and entry.is_file()]
    if not files:
        raise InputError(f"{label(text)}: no pictures in this folder; check the name")
    return list(enumerate(sorted(files, key=_natural)))


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key: runs of digits as numbers."""
    parts = _DIGITS.split(path.name)
    return [(int(p), "") if i % 2 else (0, p) for i, p in enumerate(parts)]
