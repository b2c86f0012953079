"""The kernel of `pack`: one strip of the network's input and of the next state.

Tile: a program is one warp and owns 32 pairs of neighbouring columns of 8 rows, a pair a thread.
It walks down. In every row a thread computes the final base of its pair and of the pixel on either
side, because the Sobel channel needs their luma, and keeps the horizontal sums and differences of
three rows in registers; the row above the strip and the row below it are computed once more by
the neighbouring programs. (Handing luma from thread to thread would save the two pixels beside
the pair, but the oldest Triton that must work has no gather.)

A pair shares three columns of the fill. A row without any hole in its 66 pixels branches around
them, which one warp can decide without a barrier. The motion is reduced to the four columns once
a strip. A pair of a row is 16 channels, 32 neighbouring bytes of the packed picture, and 8 bytes
of the state.

The size needs no other promise than multiples of 8: every vector starts at a pair or a cell.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from fastrestore.kernels import fusion

_TAU = tl.constexpr(fusion.TAU)
_FILL_SIGMA = tl.constexpr(fusion.FILL_SIGMA)
_MAX_FRAMES = tl.constexpr(fusion.MAX_FRAMES)
_HALF_TO_EVEN = tl.constexpr(12582912.0)  # 1.5 * 2^23: float32 has no fraction there


@triton.jit
def from_levels(x: tl.tensor, dtype: tl.constexpr) -> Any:
    """Clamp float32 to 0-255, round half to even and turn into bytes or fp16."""
    # The clamp stands between a product and this sum: they cannot fuse to one rounding
    shifted = tl.minimum(tl.maximum(x, 0.0), 255.0) + _HALF_TO_EVEN
    if dtype == tl.uint8:
        return shifted.to(tl.int32, bitcast=True).to(tl.uint8)  # the lowest byte of the fraction
    else:
        return (shifted - _HALF_TO_EVEN).to(dtype)


@triton.jit
def _split4(x: tl.tensor) -> Any:
    """Return the columns of `[block, 4]`."""
    even, odd = tl.split(tl.reshape(x, (x.shape[0], 2, 2)))
    c0, c2 = tl.split(even)
    c1, c3 = tl.split(odd)
    return c0, c1, c2, c3


@triton.jit
def _join4(c0: tl.tensor, c1: tl.tensor, c2: tl.tensor, c3: tl.tensor) -> Any:
    return tl.reshape(tl.join(tl.join(c0, c2), tl.join(c1, c3)), (c0.shape[0], 4))


@triton.jit
def _interleave(even: tl.tensor, odd: tl.tensor) -> Any:
    """Return `[block, 2 * C]` of two `[block, C]`."""
    return tl.reshape(tl.join(even, odd), (even.shape[0], 2 * even.shape[1]))


@triton.jit
def _between(row_ptr: tl.tensor, cell: tl.tensor, cells: tl.tensor) -> Any:
    """Read a value of a row and the step to the next; beyond its ends they are the end."""
    a = tl.load(row_ptr + tl.maximum(cell, 0)).to(tl.float32)
    b = tl.load(row_ptr + tl.minimum(cell + 1, cells - 1)).to(tl.float32)
    return a, b - a


@triton.jit
def _motion_row(
    motion_ptr: tl.tensor, y: tl.tensor, i: tl.tensor, height: tl.tensor, pairs: tl.tensor
) -> Any:
    """Read row y of the motion at the four columns around pair i, bilinear, `[block, 4]`."""
    cells = pairs // 4
    row_ptr = motion_ptr + tl.minimum(tl.maximum(y, 0), height // 8 - 1) * cells
    # Column x lies (x + 4.5) / 8 cells right of cell -1; a pair always between the same two
    x = 2 * i + 4
    place = (x % 8).to(tl.float32) * 0.125 + 0.0625
    left, to_left = _between(row_ptr, (x - 1) // 8 - 1, cells)
    here, to_here = _between(row_ptr, x // 8 - 1, cells)
    right, to_right = _between(row_ptr, (x + 2) // 8 - 1, cells)
    place_left = tl.where(x % 8 == 0, 0.9375, place - 0.125)
    place_right = tl.where(x % 8 == 6, 0.0625, place + 0.25)
    return _join4(
        left + place_left * to_left,
        here + place * to_here,
        here + (place + 0.125) * to_here,
        right + place_right * to_right,
    )


@triton.jit
def _fill_column(
    near_ptr: tl.tensor,
    far_ptr: tl.tensor,
    plane: tl.tensor,
    wanted: tl.tensor,
    planar: tl.constexpr,
) -> Any:
    """Return one column of the fill in levels, enlarged vertically: 3/4 of the nearer cell."""
    if planar:
        near_r = tl.load(near_ptr, wanted, 0.0).to(tl.float32)
        near_g = tl.load(near_ptr + plane, wanted, 0.0).to(tl.float32)
        near_b = tl.load(near_ptr + 2 * plane, wanted, 0.0).to(tl.float32)
        far_r = tl.load(far_ptr, wanted, 0.0).to(tl.float32)
        far_g = tl.load(far_ptr + plane, wanted, 0.0).to(tl.float32)
        far_b = tl.load(far_ptr + 2 * plane, wanted, 0.0).to(tl.float32)
    else:
        of = tl.arange(0, 4)[None, :]
        near = tl.load(near_ptr[:, None] + of, wanted[:, None], 0.0)
        far = tl.load(far_ptr[:, None] + of, wanted[:, None], 0.0)
        near_r, near_g, near_b, _ = _split4(near.to(tl.float32))
        far_r, far_g, far_b, _ = _split4(far.to(tl.float32))
    r = near_r * 191.25 + far_r * 63.75
    g = near_g * 191.25 + far_g * 63.75
    b = near_b * 191.25 + far_b * 63.75
    return r, g, b


@triton.jit
def _pixel(
    frame_ptr: tl.tensor,
    state_ptr: tl.tensor,
    hole: tl.tensor,
    r: tl.tensor,
    g: tl.tensor,
    b: tl.tensor,
    moved: tl.tensor,
    weight_known: tl.tensor,
    weight_hole: tl.tensor,
    past: tl.constexpr,
) -> Any:
    """Return base r, g, b in levels, the share of the past in it, and n = remembered / rest.

    Given the fill r, g, b. With the stored confidence a, at most 255 * 15 / 16, and the motion m:
    n = a / (255 - a + a m). The share is c n / (c n + 1) with c of `fusion.pack_frame`: one
    division. Without motion, remembered and rest are exact.
    """
    r = tl.where(hole, r, tl.load(frame_ptr).to(tl.float32))
    g = tl.where(hole, g, tl.load(frame_ptr + 1).to(tl.float32))
    b = tl.where(hole, b, tl.load(frame_ptr + 2).to(tl.float32))
    share, remembered, rest = moved, moved, moved + 1.0  # of a still: 0, 0, 1
    if past:
        state = tl.load(state_ptr[:, None] + tl.arange(0, 4)[None, :])
        past_r, past_g, past_b, confidence = _split4(state.to(tl.float32))
        remembered = tl.minimum(confidence, 255.0 * _MAX_FRAMES / (_MAX_FRAMES + 1))
        rest = 255.0 - remembered + remembered * moved
        weight = tl.where(hole, weight_hole, weight_known) * remembered
        share = weight / (weight + rest)
        r += share * (past_r - r)
        g += share * (past_g - g)
        b += share * (past_b - b)
    return r, g, b, share, remembered, rest


@triton.jit
def _confidence(seen: tl.tensor, rest: tl.tensor) -> Any:
    """Return 255 * n / (n + 1) of n = seen / rest."""
    # Ties are common (one frame is 127.5): a fast quotient would round them as it errs
    return tl.div_rn(255.0 * seen, seen + rest)


@triton.jit
def _luma(r: tl.tensor, g: tl.tensor, b: tl.tensor) -> Any:
    return 0.299 * r + 0.587 * g + 0.114 * b


@triton.jit
def _row(
    frame_ptr: tl.tensor,
    mask_ptr: tl.tensor,
    state_ptr: tl.tensor,
    f_ptr: tl.tensor,
    upper: tl.tensor,
    middle: tl.tensor,
    lower: tl.tensor,
    weight_known: tl.tensor,
    weight_hole: tl.tensor,
    y: tl.tensor,
    step: tl.tensor,
    i: tl.tensor,
    height: tl.tensor,
    pairs: tl.tensor,
    past: tl.constexpr,
    planar: tl.constexpr,
) -> Any:
    """Compute pair i of row y.

    Args:
        frame_ptr: Of this picture, like all others.
        mask_ptr: Likewise.
        state_ptr: Likewise.
        f_ptr: Likewise.
        upper: Motion at four columns, of the row of cells above that of the strip.
        middle: Of the strip's own row of cells.
        lower: Of that below.
        weight_known: c of a known pixel.
        weight_hole: c of a hole.
        y: Row; beyond the border it is the border's.
        step: Its place between the rows of cells: 0 = upper, 1 = middle, 2 = lower.
        i: Number of the pair in its row.
        height: Of the picture.
        pairs: In a row.
        past: Whether there is one.
        planar: Whether `f_ptr` holds planes, not pixels.

    Returns:
        Smoothed and differenced luma of the left and of the right pixel; of each the base, the
        confidence, the soft mask, and the frames that it is worth. These not yet limited.
    """
    y = tl.minimum(tl.maximum(y, 0), height - 1)
    at = 2 * (y * pairs + i)
    frame_ptr += 3 * at
    mask_ptr += at
    state_ptr += 4 * at
    before, after = i > 0, i < pairs - 1
    left, right = tl.where(before, -1, 0), tl.where(after, 2, 1)
    hole0 = tl.load(mask_ptr + left) != 0
    hole1 = tl.load(mask_ptr) != 0
    hole2 = tl.load(mask_ptr + 1) != 0
    hole3 = tl.load(mask_ptr + right) != 0
    wanted = hole0 | hole1 | hole2 | hole3
    nothing = tl.full([i.shape[0]], 0.0, tl.float32)
    r0, r1, r2, r3 = nothing, nothing, nothing, nothing
    g0, g1, g2, g3 = nothing, nothing, nothing, nothing
    b0, b1, b2, b3 = nothing, nothing, nothing, nothing
    if tl.max(wanted.to(tl.int32), 0) > 0:
        size: tl.constexpr = 1 if planar else 4
        plane = height // 2 * pairs
        far = tl.minimum(tl.maximum(y // 2 + (y % 2) * 2 - 1, 0), height // 2 - 1)
        near_ptr = f_ptr + (y // 2 * pairs + i) * size
        far_ptr = f_ptr + (far * pairs + i) * size
        lr, lg, lb = _fill_column(near_ptr - size, far_ptr - size, plane, wanted & before, planar)
        cr, cg, cb = _fill_column(near_ptr, far_ptr, plane, wanted, planar)
        rr, rg, rb = _fill_column(near_ptr + size, far_ptr + size, plane, wanted & after, planar)
        part1, part2 = tl.where(before, 0.25, 0.0), tl.where(after, 0.25, 0.0)
        r0, g0, b0 = lr + 0.25 * (cr - lr), lg + 0.25 * (cg - lg), lb + 0.25 * (cb - lb)
        r1, g1, b1 = cr + part1 * (lr - cr), cg + part1 * (lg - cg), cb + part1 * (lb - cb)
        r2, g2, b2 = cr + part2 * (rr - cr), cg + part2 * (rg - cg), cb + part2 * (rb - cb)
        r3, g3, b3 = rr + 0.25 * (cr - rr), rg + 0.25 * (cg - rg), rb + 0.25 * (cb - rb)
    m0, m1, m2, m3 = nothing, nothing, nothing, nothing
    if past:
        above, below = tl.maximum(1.0 - step, 0.0), tl.maximum(step - 1.0, 0.0)
        moved = above * upper + (1.0 - above - below) * middle + below * lower
        m0, m1, m2, m3 = _split4(tl.maximum(moved, 0.0))
    wk, wh = weight_known, weight_hole
    r0, g0, b0, _, _, _ = _pixel(
        frame_ptr + 3 * left, state_ptr + 4 * left, hole0, r0, g0, b0, m0, wk, wh, past
    )
    r1, g1, b1, share1, seen1, rest1 = _pixel(
        frame_ptr, state_ptr, hole1, r1, g1, b1, m1, wk, wh, past
    )
    r2, g2, b2, share2, seen2, rest2 = _pixel(
        frame_ptr + 3, state_ptr + 4, hole2, r2, g2, b2, m2, wk, wh, past
    )
    r3, g3, b3, _, _, _ = _pixel(
        frame_ptr + 3 * right, state_ptr + 4 * right, hole3, r3, g3, b3, m3, wk, wh, past
    )
    y1, y2 = _luma(r1, g1, b1), _luma(r2, g2, b2)
    y0 = tl.where(before, _luma(r0, g0, b0), y1)
    y3 = tl.where(after, _luma(r3, g3, b3), y2)
    soft1 = tl.where(hole1, 1.0 - share1, 0.0)
    soft2 = tl.where(hole2, 1.0 - share2, 0.0)
    seen1 += tl.where(hole1, 0.0, rest1)  # this frame counts one
    seen2 += tl.where(hole2, 0.0, rest2)
    return (
        y0 + 2 * y1 + y2, y2 - y0, y1 + 2 * y2 + y3, y3 - y1,
        r1, g1, b1, _confidence(seen1, rest1), soft1, seen1 / rest1,
        r2, g2, b2, _confidence(seen2, rest2), soft2, seen2 / rest2,
    )  # fmt: skip


@triton.jit
def _edges(d0: tl.tensor, d1: tl.tensor, d2: tl.tensor, s0: tl.tensor, s2: tl.tensor) -> Any:
    """Return the Sobel magnitude, 0-1, of three rows."""
    gx, gy = d0 + 2 * d1 + d2, s2 - s0
    return tl.sqrt(gx * gx + gy * gy) * (1 / (8 * 255))


@triton.jit
def _noise(sigma: tl.tensor, n: tl.tensor, soft: tl.tensor) -> Any:
    """Return the noise map of a base worth n frames."""
    return sigma * (4 / 255) * tl.rsqrt(tl.maximum(n, 1.0)) * (1.0 - soft)


@triton.jit(do_not_specialize=["height", "width"])  # another size needs no new compilation
def pack_kernel(
    frame_ptr: tl.tensor,
    mask_ptr: tl.tensor,
    state_ptr: tl.tensor,
    sigma_ptr: tl.tensor,
    f_ptr: tl.tensor,
    motion_ptr: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    packed_ptr: tl.tensor,
    next_ptr: tl.tensor,
    past: tl.constexpr,
    planar: tl.constexpr,
    block: tl.constexpr,
    rows: tl.constexpr,
) -> None:
    """Compute one strip; `pack.reference` is its plain form. `rows` divides 8."""
    z = tl.program_id(2)
    pairs = width // 2
    column = tl.program_id(0) * block + tl.arange(0, block)
    ok = (column < pairs)[:, None]
    i = tl.minimum(column, pairs - 1)
    top = tl.program_id(1) * rows
    frame_ptr += z * height * width * 3
    mask_ptr += z * height * width
    state_ptr += z * height * width * 4
    f_ptr += z * (height // 2) * pairs * 4
    motion_ptr += z * (height // 8) * (width // 8)
    sigma = tl.load(sigma_ptr + z).to(tl.float32)
    t2 = sigma * sigma + _TAU * _TAU
    wk, wh = sigma * sigma / t2, _FILL_SIGMA * _FILL_SIGMA / t2
    cap = tl.minimum(tl.maximum(2 * sigma - 1, 1.0), _MAX_FRAMES)
    most = _confidence(cap, 1.0)
    upper, middle, lower = 0.0, 0.0, 0.0
    if past:
        upper = _motion_row(motion_ptr, top // 8 - 1, i, height, pairs)
        middle = _motion_row(motion_ptr, top // 8, i, height, pairs)
        lower = _motion_row(motion_ptr, top // 8 + 1, i, height, pairs)
    step = (top % 8).to(tl.float32) * 0.125 + 0.5625
    p0, e0, q0, f0, r0, g0, b0, a0, soft0, n0, r1, g1, b1, a1, soft1, n1 = _row(
        frame_ptr, mask_ptr, state_ptr, f_ptr, upper, middle, lower, wk, wh,
        top - 1, step - 0.125, i, height, pairs, past, planar,
    )  # fmt: skip
    p1, e1, q1, f1, r0, g0, b0, a0, soft0, n0, r1, g1, b1, a1, soft1, n1 = _row(
        frame_ptr, mask_ptr, state_ptr, f_ptr, upper, middle, lower, wk, wh,
        top, step, i, height, pairs, past, planar,
    )  # fmt: skip
    zero = tl.full([block], 0.0, tl.float32)
    for k in range(rows):
        y = top + k
        step += 0.125
        p2, e2, q2, f2, r2, g2, b2, a2, soft2, n2, r3, g3, b3, a3, soft3, n3 = _row(
            frame_ptr, mask_ptr, state_ptr, f_ptr, upper, middle, lower, wk, wh,
            y + 1, step, i, height, pairs, past, planar,
        )  # fmt: skip
        n0, n1 = tl.minimum(n0, cap), tl.minimum(n1, cap)
        even = _join4(r0, b0, r1, b1)
        odd = _join4(g0, tl.minimum(a0, most), g1, tl.minimum(a1, most))
        levels = from_levels(_interleave(even, odd), next_ptr.dtype.element_ty)
        at = ((z * height + y) * pairs + i) * 8
        tl.store(next_ptr + at[:, None] + tl.arange(0, 8)[None, :], levels, ok)
        edges0, edges1 = _edges(e0, e1, e2, p0, p2), _edges(f0, f1, f2, q0, q2)
        noise0, noise1 = _noise(sigma, n0, soft0), _noise(sigma, n1, soft1)
        red = _join4(r0 * (1 / 255), edges0, r1 * (1 / 255), edges1)
        green = _join4(g0 * (1 / 255), noise0, g1 * (1 / 255), noise1)
        blue = _join4(b0 * (1 / 255), zero, b1 * (1 / 255), zero)
        soft = _join4(soft0, zero, soft1, zero)
        both = _interleave(_interleave(red, blue), _interleave(green, soft))
        at = ((z * (height // 2) + y // 2) * pairs + i) * 32 + (y % 2) * 16
        both = both.to(packed_ptr.dtype.element_ty)
        tl.store(packed_ptr + at[:, None] + tl.arange(0, 16)[None, :], both, ok)
        p0, e0, q0, f0, p1, e1, q1, f1 = p1, e1, q1, f1, p2, e2, q2, f2
        r0, g0, b0, a0, soft0, n0 = r2, g2, b2, a2, soft2, n2
        r1, g1, b1, a1, soft1, n1 = r3, g3, b3, a3, soft3, n3
