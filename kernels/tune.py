"""Time the tiles of the residual block on this card and write the table that it will use.

    python -m fastrestore.kernels.tune [--output FILE]

Every width, two sizes, two dilations: each candidate must first compute what the reference does,
then its median over replays of a CUDA graph counts. Some minutes, most of them compiling. Without
`--output` the table goes into the package, where it is found. Exit codes: 0 ok, 1 no candidate is
right, 2 usage, 3 bad input, 4 no CUDA device, torch or triton, 5 output or disk.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import torch
    import triton
    from torch import Tensor
except ImportError as e:
    if __name__ != "__main__":
        raise
    sys.stderr.write(f"{e.name} is not installed: pip install 'fastrestore[kernels]'\n")
    sys.exit(4)

from fastrestore._version import __version__
from fastrestore.atomic import label, write_file
from fastrestore.errors import FastRestoreError, InputError, OutputError
from fastrestore.kernels import launch, residual_block, tiles
from fastrestore.kernels.assemble import KernelError
from fastrestore.kernels.operator import Case
from fastrestore.kernels.tiles import Tile

DILATIONS = (1, 8)
# Pixels of the block (height, width), either side of `tiles.MANY_PIXELS`: a picture of 256 x 256 px
# at half its size; 1088 x 1920 px as `base` runs each width (128: 2176 x 3840 px).
SMALL = (128, 128)
LARGE = {16: (544, 960), 32: (544, 960), 64: (272, 480), 128: (272, 480)}
_RUNS, _REPLAYS = 10, 30  # launches in one graph, timed replays of it
_MOST_SUMS = 64  # float32 a thread: twice that was seen to spill

Run = Callable[[], None]
Timer = Callable[[Run], float]  # launches something, returns microseconds
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tile is used and timed: width, `small` or `large`, dilation."""

    channels: int
    size: str
    dilation: int

    @property
    def case(self) -> Case:
        """Return the case of the operator at which it is timed."""
        height, width = SMALL if self.size == "small" else LARGE[self.channels]
        step = residual_block.REDUCTION[self.channels]
        options = {"channels": self.channels, "dilation": self.dilation}
        return Case(1, height * step, width * step, options)


@dataclass(frozen=True, slots=True)
class Measured:
    """One tile at one place: its median, or why it has none."""

    place: Place
    tile: Tile
    median_us: float | None
    fault: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        p = self.place
        row = {"channels": p.channels, "size": p.size, "dilation": p.dilation}
        result = {"fault": self.fault} if self.fault else {"median_us": self.median_us}
        return {**row, **self.tile.to_json(), **result}


def candidates(channels: int) -> Iterator[Tile]:
    """Yield the tiles worth timing for a width.

    Left out is what cannot be good: warps with fewer than 16 rows, and more than 64 sums a thread.
    """
    ks = {16: (16,), 32: (32,)}.get(channels, (32, 64))
    es = (32, 64) if channels == 128 else (channels,)
    for m, warps, k, e, stages in itertools.product((64, 128, 256), (4, 8), ks, es, (2, 3, 4)):
        if m >= 16 * warps and m * channels <= _MOST_SUMS * 32 * warps:
            yield Tile(m, k, e, warps, stages)


class Bench:
    """Inputs and the expected result of one place, on a device."""

    def __init__(self, place: Place, device: torch.device) -> None:
        self.place = place
        x, w3, b3, w1, b1, dilation = residual_block.inputs(place.case, device, 0)
        self._inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = x, w3, b3, w1, b1
        expected = residual_block.reference(x.double(), w3, b3, w1, b1, dilation)
        self._expected = expected.float()

    def measure(self, tile: Tile, timer: Timer) -> Measured:
        """Check a tile, then time it."""
        record = residual_block.form(self.place.channels, self.place.dilation, tile)
        x, w3, b3, w1, b1 = self._inputs
        y = torch.full_like(x, float("nan"))  # what is not written is seen

        def run() -> None:
            residual_block.compute(record, x, w3, b3, w1, b1, y)

        try:
            run()
            error = float((y.float() - self._expected).abs().max())
            if not error <= residual_block.OPERATOR.tolerance[0]:
                return Measured(self.place, tile, None, f"wrong: error {error:.3g}")
            median = timer(run)
        except Exception as e:  # does not compile or fit the card: that is a result, too
            reason = " ".join(f"{type(e).__name__}: {e}".split())
            return Measured(self.place, tile, None, reason[:200])
        return Measured(self.place, tile, round(median, 3))


def best(measured: Sequence[Measured]) -> Tile:
    """Return the tile with the least sum over the dilations, among those right at every one.

    Raises:
        KernelError: There is none.
    """
    times: dict[Tile, list[float | None]] = {}
    for m in measured:
        times.setdefault(m.tile, []).append(m.median_us)
    sums = {t: sum(us for us in all_us if us) for t, all_us in times.items() if None not in all_us}
    if not sums:
        place = measured[0].place
        raise KernelError(
            f"tune: no tile works for {place.channels} channels, {place.size}"
            f" ({measured[0].fault}); check the driver and the Triton version"
        )
    return min(sums, key=lambda tile: sums[tile])  # of equals the first


def tune(device: torch.device, timer: Timer, say: Say) -> dict[str, Any]:
    """Measure every candidate everywhere and return the table as JSON has it.

    Args:
        device: Where the kernels run.
        timer: Microseconds of one launch; see `GraphTimer`.
        say: Takes a line of progress.

    Raises:
        KernelError: No candidate is right for some width and size.
    """
    chosen: dict[str, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    for channels in tiles.WIDTHS:
        chosen[str(channels)] = {}
        for size in tiles.SIZES:
            measured = []
            for dilation in DILATIONS:
                bench = Bench(Place(channels, size, dilation), device)
                measured += [bench.measure(tile, timer) for tile in candidates(channels)]
            tile = best(measured)
            times = ", ".join(f"{m.median_us:.1f}" for m in measured if m.tile == tile)
            say(f"{channels} channels, {size}: {tile.to_json()} {times} us")
            chosen[str(channels)][size] = tile.to_json()
            rows += [m.to_json() for m in measured]
    return {
        "source": f"measured by {tiles.TUNE}",
        "many_pixels": tiles.MANY_PIXELS,
        "tiles": chosen,
        "measured": rows,
    }


def graph_timer(run: Run) -> float:
    """Return the median of one launch in microseconds, by replays of a CUDA graph.

    The caches are warm, as in the network, where the layer before has just written x.
    """
    cuda: Any = torch.cuda  # events are untyped
    cuda.synchronize()
    graph = cuda.CUDAGraph()
    with cuda.graph(graph):
        for _ in range(_RUNS):
            run()
    graph.replay()
    start, end = (cuda.Event(enable_timing=True) for _ in range(2))
    times: list[float] = []
    for _ in range(_REPLAYS):
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1000 / _RUNS)
    return statistics.median(times)


def describe(device: torch.device) -> dict[str, Any]:
    """Return what the table was measured on; what torch does not tell is None."""
    card = torch.cuda.get_device_properties(device)
    return {
        "name": card.name,
        "capability": [card.major, card.minor],
        "multiprocessors": card.multi_processor_count,
        "memory_mb": card.total_memory >> 20,
        "clock_khz": getattr(card, "clock_rate", None),
        "memory_clock_khz": getattr(card, "memory_clock_rate", None),
        "fastrestore": __version__,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
    }


def to_text(table: dict[str, Any]) -> str:
    """Return JSON with one line a measurement."""
    rows = ",\n  ".join(json.dumps(row) for row in table["measured"])
    head = json.dumps({k: v for k, v in table.items() if k != "measured"}, indent=1)
    return f'{head[:-2]},\n "measured": [\n  {rows}\n ]\n}}\n'


def main(arguments: Sequence[str] | None = None) -> int:
    """Tune this card and return the exit code."""
    parser = argparse.ArgumentParser(prog=tiles.TUNE)
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: into the package")
    options = parser.parse_args(arguments)

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    if not torch.cuda.is_available():
        sys.stderr.write("tune: no CUDA device; run it on the card that is to be tuned\n")
        return 4
    try:
        if launch.INTERPRETED:
            raise InputError("TRITON_INTERPRET: is 1, but only real kernels have times; unset it")
        device = torch.device("cuda", torch.cuda.current_device())
        card = describe(device)
        major, minor = card["capability"]
        path = options.output or tiles.TUNED / tiles.file_name((major, minor))
        if path.is_dir():
            raise OutputError(f"{label(path)}: is a folder; name a file in it")
        if not os.access(path.parent, os.W_OK):  # said now, not after minutes of measuring
            raise OutputError(f"{label(path)}: its folder cannot be written; choose --output")
        table = tune(device, graph_timer, say)
        write_file(path, to_text({**table, "device": card}).encode())
        tiles.read(path)
    except FastRestoreError as e:
        sys.stderr.write(f"{e}\n")
        return e.exit_code
    say(str(path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
