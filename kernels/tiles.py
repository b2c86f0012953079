"""Tile sizes of the residual block: an explicit table for each kind of card, nothing at run time.

`tuned/default.json` is chosen by what the compiler says (registers, shared memory, instructions)
and serves every card that has no table of its own. `python -m fastrestore.kernels.tune` measures
on a card and writes `tuned/sm_XX.json`, which is then used on cards of that compute capability.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fastrestore.atomic import label
from fastrestore.errors import InputError

WIDTHS = (16, 32, 64, 128)
TUNED = Path(__file__).parent / "tuned"
# Pixels from which the larger tile is taken: with fewer, programs are too few to fill a card.
MANY_PIXELS = 100_000
SIZES = ("small", "large")
TUNE = "python -m fastrestore.kernels.tune"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tile:
    """How one program of the residual block is cut; all powers of two but `stages`.

    Attributes:
        block_m: Pixels a program.
        block_k: Input channels a step of the 3x3; divides the width.
        block_e: Output channels that the 1x1 emits at a time; divides the width.
        warps: Warps a program.
        stages: Steps of the 3x3 in flight.
    """

    block_m: int
    block_k: int
    block_e: int
    warps: int
    stages: int

    def __post_init__(self) -> None:
        """Check what the compiler needs: its matrix instructions have no side below 16."""
        for name, least, most in (
            ("block_m", 16, 1024),
            ("block_k", 16, 128),
            ("block_e", 16, 128),
            ("warps", 1, 32),
        ):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most or value & (value - 1):
                raise InputError(
                    f"tile: {name} is {value!r}; use a power of two from {least} to {most}"
                )
        if type(self.stages) is not int or not 1 <= self.stages <= 8:
            raise InputError(f"tile: stages is {self.stages!r}; use 1 to 8")

    def to_json(self) -> dict[str, int]:
        """Return the fields as JSON has them."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Table:
    """Tiles of one kind of card.

    Attributes:
        source: Where the choice comes from.
        many_pixels: From this many pixels on the large tile is taken.
        tiles: Width -> `small` or `large` -> tile.
    """

    source: str
    many_pixels: int
    tiles: Mapping[int, Mapping[str, Tile]]


def choose(channels: int, pixels: int, capability: tuple[int, int] | None = None) -> Tile:
    """Return the tile for a width.

    Args:
        channels: Width, 16, 32, 64 or 128.
        pixels: Of the whole batch.
        capability: Compute capability of the card; None (no card) takes the default.

    Raises:
        InputError: No such width; the card's table is damaged.
    """
    if channels not in WIDTHS:
        raise InputError(f"tile: no table for {channels} channels; use 16, 32, 64 or 128")
    table = for_card(capability)
    return table.tiles[channels]["large" if pixels >= table.many_pixels else "small"]


@functools.cache
def for_card(capability: tuple[int, int] | None = None) -> Table:
    """Return the table of a card; where none was measured, say so once and return the default.

    Raises:
        InputError: The card's table is damaged.
    """
    if capability is not None:
        path = TUNED / file_name(capability)
        if path.exists():
            return read(path)
        _log.warning(
            "no tiles were measured for sm_%d%d: using defaults; run %s", *capability, TUNE
        )
    return read(TUNED / "default.json")


def file_name(capability: tuple[int, int]) -> str:
    """Return `sm_87.json` for (8, 7)."""
    return "sm_{}{}.json".format(*capability)


def read(path: Path) -> Table:
    """Read a table.

    Raises:
        InputError: It cannot be read, or is not a table.
    """
    mend = f"write it anew by {TUNE}"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if unknown := data.keys() - {"source", "many_pixels", "tiles", "device", "measured"}:
            raise ValueError(f"unknown key {min(unknown)}")
        if type(data["many_pixels"]) is not int:
            raise ValueError("many_pixels is no whole number")
        found = {c: {s: _tile(c, data["tiles"][str(c)][s]) for s in SIZES} for c in WIDTHS}
        return Table(str(data["source"]), data["many_pixels"], found)
    except OSError as e:
        raise InputError(f"{label(path)}: cannot be read ({e.strerror}); {mend}") from e
    except KeyError as e:
        raise InputError(f"{label(path)}: lacks {e}; {mend}") from e
    except (ValueError, TypeError, AttributeError) as e:
        reason = " ".join(str(e).split())
        raise InputError(f"{label(path)}: damaged ({reason}); {mend}") from e


def _tile(channels: int, data: Mapping[str, Any]) -> Tile:
    if data.keys() != {f.name for f in fields(Tile)}:
        raise ValueError(f"{channels} channels: a tile has other fields")
    tile = Tile(**data)
    if channels % tile.block_k or channels % tile.block_e:
        raise ValueError(f"{channels} channels: block_k and block_e must divide the width")
    return tile
