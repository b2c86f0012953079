from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from fastrestore.arrays import U8
from fastrestore.errors import InputError
from fastrestore.measure import Line
from fastrestore.sheets import CELL_PX, Cell, choose, draw


def line(name: str, hole_psnr: float | None) -> Line:
    return Line(name, "freeform-20", "ours", "", 0.2, 30, hole_psnr, 0.9, None, 0.5, 0.1)


LINES = [
    line(n, p) for n, p in (("c", 22), ("a", 30), ("e", 10), ("b", 25), ("d", 20), ("x", None))
]


@pytest.mark.parametrize(
    ("which", "count", "names"),
    [
        ("best", 2, "ab"),
        ("worst", 2, "ed"),
        ("median", 1, "c"),
        ("median", 2, "cd"),
        ("median", 3, "bcd"),
        ("best", 9, "abcde"),
        ("median", 9, "abcde"),
    ],
)
def test_choice(which: str, count: int, names: str) -> None:
    assert [n.picture for n in choose(LINES, which, count)] == list(names)


def test_ties_are_broken_by_name() -> None:
    tied = [line(n, 20) for n in "ba"]
    assert [n.picture for n in choose(tied, "best", 1)] == ["a"]
    with pytest.raises(InputError, match="sheet odd: not known"):
        choose(tied, "odd")


def flat(colour: tuple[int, int, int], height: int = 40, width: int = 60) -> U8:
    return np.full((height, width, 3), colour, np.uint8)


def read(data: bytes) -> U8:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_a_sheet_shows_every_picture_in_its_column() -> None:
    red, green, blue = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    rows = [
        ("one", {"damaged": Cell(flat(red)), "truth": Cell(flat(green), "hole 22.1 dB")}),
        ("two", {"damaged": Cell(flat(blue))}),
    ]
    sheet = read(draw(["damaged", "truth"], rows))
    places = {c: np.argwhere((sheet == c).all(2)) for c in (red, green, blue)}
    assert {c: len(p) for c, p in places.items()} == dict.fromkeys(places, 40 * 60)
    assert places[red][0][1] == places[blue][0][1] < places[green][0][1]
    assert places[red][0][0] == places[green][0][0] < places[blue][0][0]
    below = sheet[places[green][-1][0] + 1 :][:20]
    assert below.min() < 128  # a line of text


def test_large_pictures_are_reduced() -> None:
    sheet = read(draw(["a"], [("x", {"a": Cell(flat((9, 9, 9), 300, 3 * CELL_PX))})]))
    assert sheet.shape[1] < 1.1 * CELL_PX
    assert (sheet == 9).all(2).any(0).sum() == CELL_PX


def test_long_words_stay_in_their_column() -> None:
    words = "a very long name of a method that nobody would ever give it"
    cells = {words: Cell(flat((255, 255, 255)), words), "b": Cell(flat((255, 255, 255)))}
    sheet = read(draw([words, "b"], [("", cells)]))
    gap = sheet[:, 66:72]
    assert gap.min() == 255


def test_nothing_to_draw() -> None:
    with pytest.raises(InputError, match="nothing to draw"):
        draw(["a"], [])
