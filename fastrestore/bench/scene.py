"""The picture that everything at levels `host` and `pipeline` gets: the same bytes for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fastrestore.arrays import U8
from fastrestore.degrade import add_noise
from fastrestore.errors import InputError

Task = Literal["fill", "denoise"]
SIGMA = 15.0  # of the noise; told to all who ask for it


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A picture and what is to be done with it.

    Attributes:
        task: `fill`: a hole in an else clean picture; `denoise`: noise all over.
        image: uint8 RGB, `(H, W, 3)`.
        mask: uint8 `(H, W)`, 1 = hole; None without one.
    """

    task: Task
    image: U8
    mask: U8 | None


def scene(task: Task, height: int, width: int, hole: float = 0.05) -> Scene:
    """Make a picture from a photograph.

    Args:
        task: What is to be done.
        height: px.
        width: px.
        hole: Share of the picture that a square hole in its middle takes.

    Raises:
        InputError: The hole does not fit into the picture, or is none.
    """
    image = photo(height, width)
    if task == "denoise":
        return Scene(task, add_noise(image, SIGMA, np.random.default_rng(0)), None)
    side = round((hole * height * width) ** 0.5)
    if not 0 < side < min(height, width):
        raise InputError(f"hole {hole}: has no room in {width}x{height}; choose another --hole")
    mask = np.zeros((height, width), np.uint8)
    y, x = (height - side) // 2, (width - side) // 2
    mask[y : y + side, x : x + side] = 1
    return Scene(task, image, mask)


def photo(height: int, width: int) -> U8:
    """Return a sample photograph, repeated to any size."""
    from fastrestore.demo import sample_folder
    from fastrestore.images import read_picture

    still = read_picture(sample_folder() / "vegetables.webp").rgb
    rows, cols = (-(-n // m) for n, m in zip((height, width), still.shape, strict=False))
    return np.ascontiguousarray(np.tile(still, (rows, cols, 1))[:height, :width])
