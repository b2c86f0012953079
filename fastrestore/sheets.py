"""Sheets to look at: damaged, every method, truth, for our best, median and worst pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastrestore.arrays import U8
from fastrestore.errors import InputError
from fastrestore.measure import Line

SHEETS = ("best", "median", "worst")
RATIOS = (0.2, 0.4)
EACH = 2  # pictures a case on a sheet
CELL_PX = 256  # larger pictures are reduced; smaller ones keep their size
_GAP_PX, _HEAD_PX, _FOOT_PX = 6, 24, 20
_INK, _PAPER, _FAINT = (20, 20, 20), (255, 255, 255), (90, 90, 90)


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """One picture of a sheet: uint8 RGB `(H, W, 3)`, and a line below it."""

    image: U8
    below: str = ""


def choose(lines: Sequence[Line], which: str, count: int = EACH) -> list[Line]:
    """Pick our best, median or worst pictures of one case by hole PSNR.

    Args:
        lines: Ours alone, one a picture.
        which: One of `SHEETS`.
        count: How many, at most.

    Returns:
        Best first; worst first; or those around the median, best first.

    Raises:
        InputError: `which` is unknown.
    """
    if which not in SHEETS:
        raise InputError(f"sheet {which}: not known; choose one of {', '.join(SHEETS)}")
    ranked = sorted(
        (line for line in lines if line.hole_psnr is not None),
        key=lambda line: (-(line.hole_psnr or 0.0), line.picture),
    )
    if which == "worst":
        return ranked[::-1][:count]
    start = 0 if which == "best" else max(0, (len(ranked) - count + 1) // 2)
    return ranked[start : start + count]


def draw(columns: Sequence[str], rows: Sequence[tuple[str, Mapping[str, Cell]]]) -> bytes:
    """Draw a sheet.

    Args:
        columns: Headings, left to right.
        rows: What the row is about, and its cells by heading; a heading may lack a cell.

    Returns:
        A PNG file.

    Raises:
        InputError: No rows.
    """
    from PIL import Image, ImageDraw

    if not rows or not columns:
        raise InputError("sheet: nothing to draw")
    shrunk = [(text, {c: _fit(cell.image) for c, cell in cells.items()}) for text, cells in rows]
    width = max(image.shape[1] for _, cells in shrunk for image in cells.values())
    heights = [max(image.shape[0] for image in cells.values()) for _, cells in shrunk]
    step = width + _GAP_PX
    total = _HEAD_PX + sum(h + 2 * _FOOT_PX + _GAP_PX for h in heights)
    sheet = Image.new("RGB", (len(columns) * step + _GAP_PX, total), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, title in enumerate(columns):
        _write(pen, (_GAP_PX + i * step, 4), title, width, 14, _INK)
    top = _HEAD_PX
    for (text, cells), (_, images), height in zip(rows, shrunk, heights, strict=True):
        _write(pen, (_GAP_PX, top), text, len(columns) * step, 13, _FAINT)
        top += _FOOT_PX
        for i, title in enumerate(columns):
            if title in images:
                left = _GAP_PX + i * step
                sheet.paste(Image.fromarray(images[title]), (left, top))
                _write(pen, (left, top + height + 2), cells[title].below, width, 13, _INK)
        top += height + _FOOT_PX + _GAP_PX
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return file.getvalue()


def _fit(image: U8) -> U8:
    import cv2

    h, w = image.shape[:2]
    scale = CELL_PX / max(h, w)
    if scale >= 1:
        return image
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _write(
    pen: Any, at: tuple[int, int], text: str, width: int, size: int, colour: tuple[int, int, int]
) -> None:
    """Write a line, smaller if it is too long for its column, and cut if it still is."""
    from PIL import ImageFont

    while size > 9 and pen.textlength(text, font=ImageFont.load_default(size)) > width:
        size -= 1
    font = ImageFont.load_default(size)
    while text and pen.textlength(text, font=font) > width:
        text = text[:-1]
    pen.text(at, text, fill=colour, font=font)
