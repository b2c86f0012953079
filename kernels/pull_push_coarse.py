"""Levels of the fill pyramid in Triton, and the one program per picture that does its coarse end.

A level is `[N, h, w, stride]`: red, green, blue (0-1) premultiplied and their weight in a stride of
4, or these, the motion energy premultiplied and its weight in a stride of 8 (the last two are
zero). A cell is one access of 8 or 16 bytes, or of 32 by two threads. Levels 1 and 2 are float16;
from level 3 on float32 costs little and spares wide holes up to four roundings, half of their
error. Arithmetic is float32.

Pull: a cell is the binomial 4x4 average of the finer level around it, zero outside, divided by its
weight, at least 1/4; 16 loads. Push: a cell takes from the coarser level, enlarged bilinearly, the
share that it does not know itself; five loads. A weight becomes 1 from a quarter of known pixels
on, so most cells need nothing: these cost one load and no store.

The coarse levels are too small to be worth a launch each. `coarse` walks them in one program: its
threads share the cells of a level, and a barrier separates the levels, for different threads
write and read them.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def _load(
    level_ptr: tl.tensor,
    cell: tl.tensor,
    ok: tl.tensor,
    stride: tl.constexpr,
    channels: tl.constexpr,
) -> Any:
    """Read the first channels of cells, `[block, channels]`; zeros where not ok."""
    at = (cell * stride)[:, None] + tl.arange(0, channels)[None, :]
    return tl.load(level_ptr + at, mask=ok[:, None], other=0.0).to(tl.float32)


@triton.jit
def _store(level_ptr: tl.tensor, cell: tl.tensor, ok: tl.tensor, x: tl.tensor) -> None:
    """Write all channels of cells, `[block, stride]`."""
    at = (cell * x.shape[1])[:, None] + tl.arange(0, x.shape[1])[None, :]
    tl.store(level_ptr + at, x.to(level_ptr.dtype.element_ty), mask=ok[:, None])


@triton.jit
def _channel(x: tl.tensor, channel: tl.constexpr) -> Any:
    """Return one column of `[block, channels]`; a thread has them all."""
    is_it = tl.arange(0, x.shape[1])[None, :] == channel
    return tl.sum(tl.where(is_it, x, 0.0), 1)


@triton.jit
def _weights(x: tl.tensor) -> Any:
    """Return, for each channel, the one that is its weight: 3, with energy 3 and 5."""
    weights = tl.broadcast_to(_channel(x, 3)[:, None], x.shape)
    if x.shape[1] == 8:
        is_fill = tl.arange(0, 8)[None, :] < 4
        weights = tl.where(is_fill, weights, _channel(x, 5)[:, None])
    return weights


@triton.jit
def _corner(cell: tl.tensor, width: tl.tensor) -> Any:
    """Return row and column of the first of the 16 finer cells that a cell is pulled from."""
    columns = (width + 1) // 2
    return cell // columns * 2 - 1, cell % columns * 2 - 1


@triton.jit
def _tap(
    top: tl.tensor,
    left: tl.tensor,
    ok: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    i: tl.constexpr,
) -> Any:
    """Return the finer cell of tap i, whether there is one, and its coefficient."""
    y = top + i // 4
    x = left + i % 4
    inside = ok & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    share = (1 + 2 * (i // 4 % 3 > 0)) * (1 + 2 * (i % 4 % 3 > 0)) / 64
    return y * width + x, inside, share


@triton.jit
def _pull_cells(
    fine_ptr: tl.tensor,
    coarse_ptr: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    cell: tl.tensor,
    ok: tl.tensor,
    stride: tl.constexpr,
) -> None:
    """Write cells of the coarser level from the finer one, `height` x `width`."""
    top, left = _corner(cell, width)
    x = tl.zeros((cell.shape[0], stride), tl.float32)
    for i in tl.static_range(16):
        at, inside, share = _tap(top, left, ok, height, width, i)
        x += share * _load(fine_ptr, at, inside, stride, stride)
    _store(coarse_ptr, cell, ok, x / tl.maximum(_weights(x), 0.25))


@triton.jit
def _push_cells(
    coarse_ptr: tl.tensor,
    fine_ptr: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    cell: tl.tensor,
    ok: tl.tensor,
    coarse_stride: tl.constexpr,
    stride: tl.constexpr,
) -> None:
    """Complete cells of the finer level, `height` x `width`, in place."""
    rows = (height + 1) // 2
    columns = (width + 1) // 2
    y = cell // width
    x = cell % width
    # Enlarged twice: three quarters of the cell above, one of the next, in both directions
    near_y = y // 2
    near_x = x // 2
    far_y = tl.minimum(tl.maximum(near_y + y % 2 * 2 - 1, 0), rows - 1)
    far_x = tl.minimum(tl.maximum(near_x + x % 2 * 2 - 1, 0), columns - 1)
    own = _load(fine_ptr, cell, ok, stride, stride)
    # A weight of 1 may have been rounded when it was divided by itself
    missing = _channel(own, 3) < 0.999999
    if stride == 8:
        missing = missing | (_channel(own, 5) < 0.999999)
    needs = ok & missing
    taken = 0.5625 * _load(coarse_ptr, near_y * columns + near_x, needs, coarse_stride, stride)
    taken += 0.1875 * _load(coarse_ptr, near_y * columns + far_x, needs, coarse_stride, stride)
    taken += 0.1875 * _load(coarse_ptr, far_y * columns + near_x, needs, coarse_stride, stride)
    taken += 0.0625 * _load(coarse_ptr, far_y * columns + far_x, needs, coarse_stride, stride)
    _store(fine_ptr, cell, needs, own + taken * (1.0 - _weights(own)))


@triton.jit(do_not_specialize=["height", "width"])
def pull_level(
    fine_ptr: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    coarse_ptr: tl.tensor,
    stride: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Write a level from the finer one, `height` x `width`; a thread a cell."""
    cells = ((height + 1) // 2) * ((width + 1) // 2)
    cell = tl.program_id(0) * block + tl.arange(0, block)
    fine_ptr += tl.program_id(1) * height * width * stride
    coarse_ptr += tl.program_id(1) * cells * stride
    _pull_cells(fine_ptr, coarse_ptr, height, width, cell, cell < cells, stride)


@triton.jit(do_not_specialize=["height", "width"])
def push_level(
    coarse_ptr: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    fine_ptr: tl.tensor,
    stride: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Complete a level, `height` x `width`, from the coarser one; a thread a cell."""
    cell = tl.program_id(0) * block + tl.arange(0, block)
    ok = cell < height * width
    coarse_ptr += tl.program_id(1) * ((height + 1) // 2) * ((width + 1) // 2) * stride
    fine_ptr += tl.program_id(1) * height * width * stride
    _push_cells(coarse_ptr, fine_ptr, height, width, cell, ok, stride, stride)


@triton.jit(do_not_specialize=["height", "width"])
def push_split(
    coarse_ptr: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    fine_ptr: tl.tensor,
    motion_ptr: tl.tensor,
    block: tl.constexpr,
) -> None:
    """Complete a level without energy from one with it, and write that one's energy apart."""
    columns = (width + 1) // 2
    coarse_cells = ((height + 1) // 2) * columns
    cell = tl.program_id(0) * block + tl.arange(0, block)
    ok = cell < height * width
    coarse_ptr += tl.program_id(1) * coarse_cells * 8
    fine_ptr += tl.program_id(1) * height * width * 4
    _push_cells(coarse_ptr, fine_ptr, height, width, cell, ok, 8, 4)
    y = cell // width
    x = cell % width
    # One of the four finer cells of each: the one above to the left, which is always there
    first = ok & (y % 2 == 0) & (x % 2 == 0)
    at = y // 2 * columns + x // 2
    motion = tl.load(coarse_ptr + at * 8 + 4, mask=first, other=0.0)
    tl.store(motion_ptr + tl.program_id(1) * coarse_cells + at, motion, mask=first)


@triton.jit
def _energy(band: tl.tensor, noise_gain: tl.constexpr, most: tl.constexpr) -> Any:
    """Return the motion energy of a band's cells, premultiplied, and its weight."""
    compared = _channel(band, 4)
    inverse = 1.0 / tl.maximum(compared, 0.05)
    is_difference = tl.arange(0, 8)[None, :] < 3
    square = tl.sum(tl.where(is_difference, band * band, 0.0), 1) * inverse * inverse / 3
    energy = tl.minimum(square - noise_gain * _channel(band, 3) * inverse, most)
    weight = tl.minimum(2.0 * compared, 1.0)
    return energy * weight, weight


@triton.jit(do_not_specialize=["height", "width"])
def pull_band1(
    fill_ptr: tl.tensor,
    band_ptr: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    coarse_fill_ptr: tl.tensor,
    coarse_band_ptr: tl.tensor,
    noise_gain: tl.constexpr,
    most: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Write level 2 from level 1, `height` x `width`: the fill, and the band in a stride of 8.

    Channels 0-4 of the band are pulled as they are, 5 and 6 are the energy of level 1 and its
    weight. 32 loads a cell; reads 24 bytes a cell of level 1, writes as many a cell of level 2.
    """
    cells = ((height + 1) // 2) * ((width + 1) // 2)
    cell = tl.program_id(0) * block + tl.arange(0, block)
    ok = cell < cells
    fill_ptr += tl.program_id(1) * height * width * 4
    band_ptr += tl.program_id(1) * height * width * 8
    coarse_fill_ptr += tl.program_id(1) * cells * 4
    coarse_band_ptr += tl.program_id(1) * cells * 8
    _pull_cells(fill_ptr, coarse_fill_ptr, height, width, cell, ok, 4)
    channel = tl.arange(0, 8)[None, :]
    top, left = _corner(cell, width)
    x = tl.zeros((block, 8), tl.float32)
    for i in tl.static_range(16):
        at, inside, share = _tap(top, left, ok, height, width, i)
        band = _load(band_ptr, at, inside, 8, 8)
        energy, weight = _energy(band, noise_gain, most)
        band = tl.where(channel == 5, energy[:, None], band)
        x += share * tl.where(channel == 6, weight[:, None], band)
    weight = tl.maximum(_channel(x, 6), 0.25)
    _store(coarse_band_ptr, cell, ok, x / tl.where(channel < 5, 1.0, weight[:, None]))


@triton.jit(do_not_specialize=["height", "width"])
def pull_band2(
    fill_ptr: tl.tensor,
    band_ptr: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    coarse_ptr: tl.tensor,
    noise_gain: tl.constexpr,
    most: tl.constexpr,
    gain1: tl.constexpr,
    gain2: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Write level 3 from level 2, `height` x `width`: the fill, the stronger band's energy.

    32 loads a cell; reads 24 bytes a cell of level 2, writes 32 a cell of level 3.
    """
    cells = ((height + 1) // 2) * ((width + 1) // 2)
    cell = tl.program_id(0) * block + tl.arange(0, block)
    ok = cell < cells
    fill_ptr += tl.program_id(1) * height * width * 4
    band_ptr += tl.program_id(1) * height * width * 8
    channel = tl.arange(0, 8)[None, :]
    top, left = _corner(cell, width)
    x = tl.zeros((block, 8), tl.float32)
    e1 = tl.zeros((block,), tl.float32)
    w1 = tl.zeros((block,), tl.float32)
    e2 = tl.zeros((block,), tl.float32)
    w2 = tl.zeros((block,), tl.float32)
    for i in tl.static_range(16):
        at, inside, share = _tap(top, left, ok, height, width, i)
        of_fill = (at * 4)[:, None] + channel
        fill = tl.load(fill_ptr + of_fill, mask=inside[:, None] & (channel < 4), other=0.0)
        x += share * fill.to(tl.float32)
        band = _load(band_ptr, at, inside, 8, 8)
        energy, weight = _energy(band, noise_gain, most)
        e1 += share * _channel(band, 5)
        w1 += share * _channel(band, 6)
        e2 += share * energy
        w2 += share * weight
    d1 = tl.maximum(w1, 0.25)
    d2 = tl.maximum(w2, 0.25)
    strongest = tl.maximum(gain1 * e1 / d1, gain2 * e2 / d2)
    seen = tl.maximum(w1 / d1, w2 / d2)
    x = x / tl.maximum(_channel(x, 3), 0.25)[:, None]
    x = tl.where(channel == 4, strongest[:, None], x)
    x = tl.where(channel == 5, seen[:, None], x)
    _store(coarse_ptr + tl.program_id(1) * cells * 8, cell, ok, x)


@triton.jit
def _fill_by_mean(
    level_ptr: tl.tensor, cells: tl.tensor, stride: tl.constexpr, block: tl.constexpr
) -> None:
    """Give the mean of what is known to the cells that no level reached."""
    x = tl.zeros((block, stride), tl.float32)
    start = 0
    while start < cells:
        cell = start + tl.arange(0, block)
        x += _load(level_ptr, cell, cell < cells, stride, stride)
        start += block
    mean = tl.sum(x, 0)[None, :] / cells
    mean = mean / tl.maximum(_weights(mean), 1e-3)
    start = 0
    while start < cells:
        cell = start + tl.arange(0, block)
        own = _load(level_ptr, cell, cell < cells, stride, stride)
        _store(level_ptr, cell, cell < cells, own + mean * (1.0 - _weights(own)))
        start += block


@triton.jit(do_not_specialize=["height", "width", "levels"])
def coarse(
    height: tl.tensor,
    width: tl.tensor,
    levels: tl.tensor,
    pyramid_ptr: tl.tensor,
    stride: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Pull `levels` times, fill by the mean, push as often; one program a picture.

    The loops are `while`, for `range` of run-time values fails in the interpreter of older
    versions.

    Args:
        height: Of the first level.
        width: Of the first level.
        levels: How many coarser ones follow.
        pyramid_ptr: float32, all these levels one after the other, `[N, h, w, stride]` each, sizes
            halved and rounded up. The first is read and completed in place.
        stride: 4 or 8.
        block: Cells at once.
    """
    z = tl.program_id(0)
    n = tl.num_programs(0)
    at = 0  # where the level begins, in cells
    level = 0
    while level < levels:
        h = (height + (1 << level) - 1) >> level
        w = (width + (1 << level) - 1) >> level
        cells = ((h + 1) // 2) * ((w + 1) // 2)
        fine_ptr = pyramid_ptr + (at + z * h * w) * stride
        at += n * h * w
        coarse_ptr = pyramid_ptr + (at + z * cells) * stride
        start = 0
        while start < cells:
            cell = start + tl.arange(0, block)
            _pull_cells(fine_ptr, coarse_ptr, h, w, cell, cell < cells, stride)
            start += block
        tl.debug_barrier()
        level += 1
    last = ((height + (1 << level) - 1) >> level) * ((width + (1 << level) - 1) >> level)
    _fill_by_mean(pyramid_ptr + (at + z * last) * stride, last, stride, block)
    while level > 0:
        tl.debug_barrier()
        level -= 1
        h = (height + (1 << level) - 1) >> level
        w = (width + (1 << level) - 1) >> level
        cells = ((h + 1) // 2) * ((w + 1) // 2)
        coarse_ptr = pyramid_ptr + (at + z * cells) * stride
        at -= n * h * w
        fine_ptr = pyramid_ptr + (at + z * h * w) * stride
        start = 0
        while start < h * w:
            cell = start + tl.arange(0, block)
            _push_cells(coarse_ptr, fine_ptr, h, w, cell, cell < h * w, stride, stride)
            start += block
