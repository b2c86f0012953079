"""Many pictures in little memory: decoded while they fit, else as files, decoded when drawn."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import overload

from fastrestore.arrays import U8
from fastrestore.errors import InputError
from fastrestore.images import decode_picture
from fastrestore.train.sources import Source

_FREE_GIB = 8.0  # where the system does not say what is free
_LAST = 64  # decoded pictures kept by `Encoded`: one is asked for several times in a row

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Held:
    """One picture: its file and, while memory lasts, its pixels."""

    name: str
    data: bytes
    rgb: U8 | None = None


class Encoded(Sequence[U8]):
    """Pictures that are decoded when asked for. Safe to share between threads."""

    def __init__(self, held: Sequence[Held]) -> None:
        self._held = held
        self._decoded = lru_cache(_LAST)(self._decode)

    def __len__(self) -> int:
        return len(self._held)

    @overload
    def __getitem__(self, i: int) -> U8: ...
    @overload
    def __getitem__(self, i: slice) -> Encoded: ...
    def __getitem__(self, i: int | slice) -> U8 | Encoded:
        if isinstance(i, slice):
            return Encoded(self._held[i])
        return self._decoded(range(len(self._held))[i])

    def _decode(self, i: int) -> U8:
        held = self._held[i]
        return decode_picture(BytesIO(held.data), held.name).rgb


class Memory:
    """Reads sources, and decides once and for all of them whether pixels are kept."""

    def __init__(self, limit_gib: float = 0) -> None:
        """Set the limit for decoded pictures; 0 = half of the free memory."""
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun
        self.limit = int((limit_gib or free_gib() / 2 / beside) * 2**30)
        self.used = 0
        self.is_full = False
        self._all: list[Held] = []

    def read(self, source: Source, smallest: int, skipped: list[str]) -> list[Held]:
        """Read a source; what is broken or has a side below `smallest` px goes to `skipped`."""
        if source.absent:
            skipped.append(source.absent)
        known = sum(h * w * 3 for h, w in source.sizes.values())
        if known:
            self._check(known)
        found = []
        for name in source.names:
            try:
                held = Held(source.called(name), source.read(name))
                size = source.sizes.get(name) if self.is_full else None
                if size is None:  # also to find what is broken, although the pixels may go
                    held.rgb = source.decode(name, held.data)
                    size = held.rgb.shape[:2]
            except InputError as e:
                skipped.append(str(e))
                continue
            if min(size) < smallest:
                skipped.append(f"{held.name}: smaller than the crop of {smallest} px")
            else:
                found.append(self._keep(held))
        return found

    def pictures(self, held: list[Held]) -> Sequence[U8]:
        """Return the pixels: a list of arrays, or what decodes them."""
        if self.is_full:
            return Encoded(held)
        return [h.rgb for h in held if h.rgb is not None]

    def _keep(self, held: Held) -> Held:
        self._all.append(held)
        if held.rgb is not None:
            more = held.rgb.nbytes
            self._check(more)
            self.used += more
        if self.is_full:
            held.rgb = None
        return held

    def _check(self, more: int) -> None:
        if self.is_full or self.used + more <= self.limit:
            return
        self.is_full = True
        for held in self._all:
            held.rgb = None
        log.warning(
            "the decoded pictures need more than %.3g GiB: their files are kept in memory and "
            "decoded when drawn; `fastrestore prepare --size` makes them smaller",
            self.limit / 2**30,
        )


def free_gib() -> float:
    """Return the memory that new work can have, in GiB. Source: MemAvailable of Linux."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return _FREE_GIB
    table = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(table["MemAvailable"].split()[0]) / 2**20 if "MemAvailable" in table else _FREE_GIB
