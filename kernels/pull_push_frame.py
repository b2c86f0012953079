"""The finest step of the fill pyramid in Triton: bytes of the picture to level 1.

Tile: a program owns 64 cells of 4 rows of level 1, one column of cells a thread. It walks down and
keeps the last two rows of pixels, already filtered horizontally, in registers, two channels to an
integer: 64 bytes sum to less than 16 bits, so the sums are exact and cost no conversion. A row of
pixels costs a cell four words of the frame and two of the mask, shifted to the right byte, and
four pixels of the past. A cell sees 10 rows in 4: 15 loads instead of 64 bytes, with the past 25
instead of 128.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def _store4(
    level_ptr: tl.tensor,
    cell: tl.tensor,
    ok: tl.tensor,
    c0: tl.tensor,
    c1: tl.tensor,
    c2: tl.tensor,
    c3: tl.tensor,
) -> None:
    """Write four channels of each cell."""
    x = tl.reshape(tl.join(tl.join(c0, c2), tl.join(c1, c3)), (cell.shape[0], 4))
    at = (cell * 4)[:, None] + tl.arange(0, 4)[None, :]
    tl.store(level_ptr + at, x.to(level_ptr.dtype.element_ty), mask=ok[:, None])


@triton.jit
def _store5(
    level_ptr: tl.tensor,
    cell: tl.tensor,
    ok: tl.tensor,
    c0: tl.tensor,
    c1: tl.tensor,
    c2: tl.tensor,
    c3: tl.tensor,
    c4: tl.tensor,
) -> None:
    """Write five channels of each cell and three zeros."""
    zero = tl.zeros_like(c0)
    even = tl.join(tl.join(c0, c4), tl.join(c2, zero))
    odd = tl.join(tl.join(c1, zero), tl.join(c3, zero))
    x = tl.reshape(tl.join(even, odd), (cell.shape[0], 8))
    at = (cell * 8)[:, None] + tl.arange(0, 8)[None, :]
    tl.store(level_ptr + at, x.to(level_ptr.dtype.element_ty), mask=ok[:, None])


@triton.jit
def _shifted(low: tl.tensor, high: tl.tensor, shift: tl.tensor) -> Any:
    """Return 32 bits of two words, from bit `shift` of the lower one."""
    both = (high.to(tl.uint32).to(tl.uint64) << 32) | low.to(tl.uint32).to(tl.uint64)
    return (both >> shift.to(tl.uint64)).to(tl.int32)


@triton.jit
def _pixels(
    frame_ptr: tl.tensor,
    mask_ptr: tl.tensor,
    y: tl.tensor,
    x: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
) -> Any:
    """Return four pixels of a row as words r, g, b, other bits; which are known; where they are.

    Args:
        frame_ptr: Bytes as words of 32 bits, wherever a row begins.
        mask_ptr: Likewise.
        y: Row, possibly outside the picture.
        x: Column of the first pixel, odd, -1 or more. As the width is even, the second and the
            third pixel are inside wherever the cell is.
        height: Of the picture.
        width: Of the picture.
    """
    ok = (y >= 0) & (y < height) & (x + 1 < width)
    first = (tl.program_id(2) * height + y) * width + x
    quarter = tl.num_programs(2) * height * width // 4  # words of all masks
    # The window may begin before the first word or end after the last one: what lies there
    # belongs to a pixel outside the picture
    word = (3 * first) >> 2
    shift = ((3 * first) & 3) * 8
    w0 = tl.load(frame_ptr + word, mask=ok & (word >= 0), other=0)
    w1 = tl.load(frame_ptr + word + 1, mask=ok, other=0)
    w2 = tl.load(frame_ptr + word + 2, mask=ok, other=0)
    w3 = tl.load(frame_ptr + word + 3, mask=ok & (word + 3 < 3 * quarter), other=0)
    a = _shifted(w0, w1, shift)
    b = _shifted(w1, w2, shift)
    c = _shifted(w2, w3, shift)
    word = first >> 2
    m0 = tl.load(mask_ptr + word, mask=ok & (word >= 0), other=0)
    m1 = tl.load(mask_ptr + word + 1, mask=ok & (word + 1 < quarter), other=0)
    holes = _shifted(m0, m1, (first & 3) * 8)
    k0 = ok & ((holes & 0xFF) == 0) & (x >= 0)
    k1 = ok & ((holes & 0xFF00) == 0)
    k2 = ok & ((holes & 0xFF0000) == 0)
    k3 = ok & (((holes >> 24) & 0xFF) == 0) & (x + 3 < width)
    p1 = ((a >> 24) & 0xFF) | (b << 8)
    p2 = ((b >> 16) & 0xFFFF) | (c << 16)
    return a, p1, p2, c >> 8, k0, k1, k2, k3, first


@triton.jit
def _taps(a: tl.tensor, b: tl.tensor, c: tl.tensor, d: tl.tensor) -> Any:
    """Return the binomial sum, without its eighth."""
    return a + 3 * (b + c) + d


@triton.jit
def _colour(pixel: tl.tensor, known: tl.tensor) -> Any:
    """Return red + blue << 16 and green + known << 16."""
    green = ((pixel >> 8) & 0xFF) + 0x10000
    return tl.where(known, pixel & 0xFF00FF, 0), tl.where(known, green, 0)


@triton.jit
def _change(
    state_ptr: tl.tensor,
    at: tl.tensor,
    pixel: tl.tensor,
    known: tl.tensor,
    least: tl.constexpr,
    most: tl.constexpr,
) -> Any:
    """Return how a pixel differs from the past, and the noise expected of that, in s2 / t2.

    The difference is red + blue << 16 and green + compared << 16, signed: the lower half borrows
    from the upper one. 1 + 1 / n of a confidence a = 255 n / (n + 1) is 255 / a.
    """
    past = tl.load(state_ptr + at, mask=known, other=0)
    confidence = (past >> 24) & 0xFF
    compared = confidence > 0
    red_blue = (pixel & 0xFF00FF) - (past & 0xFF00FF)
    green = ((pixel >> 8) & 0xFF) - ((past >> 8) & 0xFF) + 0x10000
    noise = 255.0 / tl.minimum(tl.maximum(confidence.to(tl.float32), least), most)
    return (
        tl.where(compared, red_blue, 0),
        tl.where(compared, green, 0),
        tl.where(compared, noise, 0.0),
    )


@triton.jit
def _still_row(
    frame_ptr: tl.tensor,
    mask_ptr: tl.tensor,
    y: tl.tensor,
    x: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
) -> Any:
    """Filter one row of pixels horizontally: sums of what `_colour` returns."""
    p0, p1, p2, p3, k0, k1, k2, k3, _ = _pixels(frame_ptr, mask_ptr, y, x, height, width)
    rb0, gk0 = _colour(p0, k0)
    rb1, gk1 = _colour(p1, k1)
    rb2, gk2 = _colour(p2, k2)
    rb3, gk3 = _colour(p3, k3)
    return _taps(rb0, rb1, rb2, rb3), _taps(gk0, gk1, gk2, gk3)


@triton.jit
def _past_row(
    frame_ptr: tl.tensor,
    mask_ptr: tl.tensor,
    state_ptr: tl.tensor,
    y: tl.tensor,
    x: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    least: tl.constexpr,
    most: tl.constexpr,
) -> Any:
    """Filter one row of pixels horizontally: sums of what `_colour` and `_change` return."""
    p0, p1, p2, p3, k0, k1, k2, k3, at = _pixels(frame_ptr, mask_ptr, y, x, height, width)
    rb0, gk0 = _colour(p0, k0)
    rb1, gk1 = _colour(p1, k1)
    rb2, gk2 = _colour(p2, k2)
    rb3, gk3 = _colour(p3, k3)
    drb0, dgc0, e0 = _change(state_ptr, at, p0, k0, least, most)
    drb1, dgc1, e1 = _change(state_ptr, at + 1, p1, k1, least, most)
    drb2, dgc2, e2 = _change(state_ptr, at + 2, p2, k2, least, most)
    drb3, dgc3, e3 = _change(state_ptr, at + 3, p3, k3, least, most)
    return (
        _taps(rb0, rb1, rb2, rb3),
        _taps(gk0, gk1, gk2, gk3),
        _taps(drb0, drb1, drb2, drb3),
        _taps(dgc0, dgc1, dgc2, dgc3),
        _taps(e0, e1, e2, e3),
    )


@triton.jit
def _store_fill(
    fill_ptr: tl.tensor, cell: tl.tensor, ok: tl.tensor, red_blue: tl.tensor, green_known: tl.tensor
) -> None:
    """Divide the sums by their weight, at least 1/4, and write them."""
    weight = (green_known >> 16).to(tl.float32) / 64
    share = 1.0 / tl.maximum(weight, 0.25)
    colour = share / (64 * 255)
    red = (red_blue & 0xFFFF).to(tl.float32)
    green = (green_known & 0xFFFF).to(tl.float32)
    blue = (red_blue >> 16).to(tl.float32)
    _store4(fill_ptr, cell, ok, red * colour, green * colour, blue * colour, weight * share)


@triton.jit
def _store_band(
    band_ptr: tl.tensor,
    cell: tl.tensor,
    ok: tl.tensor,
    red_blue: tl.tensor,
    green_compared: tl.tensor,
    noise: tl.tensor,
    t2: tl.tensor,
    ratio: tl.tensor,
) -> None:
    """Bring the sums to the units of t2 and write them."""
    red = red_blue.to(tl.int16).to(tl.int32)
    green = green_compared.to(tl.int16).to(tl.int32)
    blue = (red_blue - red) >> 16
    compared = ((green_compared - green) >> 16).to(tl.float32) / 64
    unit = 1.0 / (64 * tl.sqrt(t2))
    r = red.to(tl.float32) * unit
    g = green.to(tl.float32) * unit
    b = blue.to(tl.float32) * unit
    _store5(band_ptr, cell, ok, r, g, b, noise * ratio / 64, compared)


@triton.jit(do_not_specialize=["height", "width"])
def pull_frame_still(
    frame_ptr: tl.tensor,
    mask_ptr: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    fill_ptr: tl.tensor,
    block: tl.constexpr,
    rows: tl.constexpr,
) -> None:
    """Write level 1 of the fill. 15 loads of 4 bytes a cell; reads 4 bytes a pixel, writes 2."""
    column = tl.program_id(0) * block + tl.arange(0, block)
    top = tl.program_id(1) * rows
    x = 2 * column - 1
    y = 2 * top - 1 + 0 * x  # a vector: the interpreter takes no scalar in a mask
    rb0, gk0 = _still_row(frame_ptr, mask_ptr, y, x, height, width)
    rb1, gk1 = _still_row(frame_ptr, mask_ptr, y + 1, x, height, width)
    for i in tl.static_range(rows):
        rb2, gk2 = _still_row(frame_ptr, mask_ptr, y + 2 * i + 2, x, height, width)
        rb3, gk3 = _still_row(frame_ptr, mask_ptr, y + 2 * i + 3, x, height, width)
        ok = (x + 1 < width) & (y + 2 * i + 1 < height)
        cell = (tl.program_id(2) * (height // 2) + top + i) * (width // 2) + column
        _store_fill(fill_ptr, cell, ok, _taps(rb0, rb1, rb2, rb3), _taps(gk0, gk1, gk2, gk3))
        rb0, gk0 = rb2, gk2
        rb1, gk1 = rb3, gk3


@triton.jit(do_not_specialize=["height", "width"])
def pull_frame_past(
    frame_ptr: tl.tensor,
    mask_ptr: tl.tensor,
    state_ptr: tl.tensor,
    sigma_ptr: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    fill_ptr: tl.tensor,
    band_ptr: tl.tensor,
    tau: tl.constexpr,
    least: tl.constexpr,
    most: tl.constexpr,
    block: tl.constexpr,
    rows: tl.constexpr,
) -> None:
    """Write level 1 of the fill and of the difference to the past.

    25 loads of 4 bytes a cell; reads 8 bytes a pixel, writes 6.
    """
    column = tl.program_id(0) * block + tl.arange(0, block)
    top = tl.program_id(1) * rows
    x = 2 * column - 1
    y = 2 * top - 1 + 0 * x  # a vector: the interpreter takes no scalar in a mask
    sigma = tl.load(sigma_ptr + tl.program_id(2)).to(tl.float32)
    t2 = sigma * sigma + tau * tau
    ratio = sigma * sigma / t2
    rb0, gk0, drb0, dgc0, e0 = _past_row(
        frame_ptr, mask_ptr, state_ptr, y, x, height, width, least, most
    )
    rb1, gk1, drb1, dgc1, e1 = _past_row(
        frame_ptr, mask_ptr, state_ptr, y + 1, x, height, width, least, most
    )
    for i in tl.static_range(rows):
        rb2, gk2, drb2, dgc2, e2 = _past_row(
            frame_ptr, mask_ptr, state_ptr, y + 2 * i + 2, x, height, width, least, most
        )
        rb3, gk3, drb3, dgc3, e3 = _past_row(
            frame_ptr, mask_ptr, state_ptr, y + 2 * i + 3, x, height, width, least, most
        )
        ok = (x + 1 < width) & (y + 2 * i + 1 < height)
        cell = (tl.program_id(2) * (height // 2) + top + i) * (width // 2) + column
        _store_fill(fill_ptr, cell, ok, _taps(rb0, rb1, rb2, rb3), _taps(gk0, gk1, gk2, gk3))
        difference = _taps(drb0, drb1, drb2, drb3)
        compared = _taps(dgc0, dgc1, dgc2, dgc3)
        _store_band(band_ptr, cell, ok, difference, compared, _taps(e0, e1, e2, e3), t2, ratio)
        rb0, gk0, drb0, dgc0, e0 = rb2, gk2, drb2, dgc2, e2
        rb1, gk1, drb1, dgc1, e1 = rb3, gk3, drb3, dgc3, e3
