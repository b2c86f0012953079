"""Plain studio backgrounds of portraits: find them, and put a photograph in their place.

No model: the border of the picture gives a smooth colour surface, what is near it in colour and
connected to the border is background, and a pixel of the rim is a mixture of the surface and the
nearest sure foreground (hair).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np

from fastrestore.arrays import F32, U8

_SMALLEST = 48  # px; below that a border says nothing
_FIT = 72  # px, short side at which the surface is fitted: it is smooth, and the fit dear
_KEPT = 4096  # alphas in memory; at 256 x 256 and one byte a pixel 256 MiB
_SAMPLE, _PORTRAITS = 32, 0.25  # a set is of portraits where so many of so many can be keyed
_LUMA = np.array((0.299, 0.587, 0.114), np.float32)


def background(rgb: U8) -> F32 | None:
    """Key out a plain background.

    Args:
        rgb: uint8 `(H, W, 3)`.

    Returns:
        float32 `(H, W)`, how much of a pixel is background: 1 = all, 0 = person. None where the
        border is not plain, or what would be keyed is less than 10 % or more than 75 % of the
        picture, reaches its centre, or has a vague or ragged rim.
    """
    import cv2

    h, w = rgb.shape[:2]
    if min(h, w) < _SMALLEST:
        return None
    colour = rgb.astype(np.float32)
    fitted = _surface(colour)
    if fitted is None:
        return None
    plain, spread = fitted
    smooth = cv2.GaussianBlur(colour, (0, 0), 0.8)
    distance = np.sqrt(np.square(smooth - plain) @ np.ones(3, np.float32))
    reach = _connected(distance < 14 + 2 * spread, _border(h, w))
    sides = np.zeros((h, w), bool)  # what hair or an arm parts from the rest
    sides[:, [0, -1]] = True
    reach |= _connected(distance < 20 + 2 * spread, sides)
    if not _plausible(reach, distance, spread):
        return None
    return _matte(colour, plain, spread, distance, reach)


def _plausible(reach: np.ndarray, distance: F32, spread: float) -> bool:
    """Tell whether a key has the outline of a person, sharp and not ragged.

    Limits by eye on 671 portraits: head and shoulders have a rim of 4.4 to 7 sides' length.
    """
    import cv2

    h, w = reach.shape
    middle = reach[int(0.35 * h) : int(0.75 * h), int(0.38 * w) : int(0.62 * w)]
    if not 0.1 <= reach.mean() <= 0.75 or middle.mean() > 0.02:
        return False
    outline = np.ones((3, 3), np.uint8)
    rim = cv2.morphologyEx(reach.astype(np.uint8), cv2.MORPH_GRADIENT, outline) > 0
    if not rim.any() or rim.sum() > 7.5 * np.sqrt(rim.size):
        return False
    beyond = cv2.dilate(distance, np.ones((7, 7), np.uint8))[rim]
    return bool((beyond < 30 + 2 * spread).mean() < 0.1)


def _surface(colour: F32) -> tuple[F32, float] | None:
    """Fit the background's colour everywhere, and its spread in levels; None = not plain."""
    import cv2

    h, w = colour.shape[:2]
    factor = min(1.0, _FIT / min(h, w))
    size = (max(8, round(w * factor)), max(8, round(h * factor)))
    small: F32 = np.asarray(cv2.resize(colour, size, interpolation=cv2.INTER_AREA), np.float32)
    terms = _terms(*small.shape[:2])
    border = _border(*small.shape[:2])
    inside = border
    for _ in range(4):  # a plane first: hair and shoulders that cross the border drop out
        plain = _fit(terms[..., :3], small, inside)
        off = np.abs(small - plain).max(2)
        inside = border & (off < 3 * np.median(off[inside]) + 4)
    if inside.sum() < 0.6 * border.sum() or off[inside].mean() > 5:
        return None
    spread = float(off[inside].mean())
    for _ in range(3):  # then curved, over all that is connected
        reach = _connected(off < 14 + 2 * spread, border)
        core = cv2.erode(reach.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1) > 0
        if core.sum() < 0.05 * core.size:
            return None
        plain = _fit(terms, small, core)
        left = (small - plain) * core[..., None]
        blurred = cv2.boxFilter(left, -1, (11, 11), borderType=cv2.BORDER_REFLECT)
        known = cv2.boxFilter(core.astype(np.float32), -1, (11, 11), borderType=cv2.BORDER_REFLECT)
        plain = plain + blurred / (known + 0.04)[..., None]
        off = np.sqrt(np.square(small - plain).sum(2))
        spread = float(np.sqrt(np.square(off[core]).mean()))
    return np.asarray(cv2.resize(plain, (w, h)), np.float32), spread


def _terms(h: int, w: int) -> F32:
    """Return the terms of a quadratic surface, `(H, W, 6)`."""
    y, x = np.mgrid[-0.5 : 0.5 : h * 1j, -0.5 : 0.5 : w * 1j].astype(np.float32)
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], -1)


def _fit(terms: F32, colour: F32, where: np.ndarray) -> F32:
    a = terms[where]
    # Normal equations: 6 x 6, and the terms are of one scale.
    solved = np.linalg.solve(a.T @ a + 1e-4 * np.eye(a.shape[1]), a.T @ colour[where])
    return np.asarray(terms @ solved.astype(np.float32), np.float32)


def _border(h: int, w: int) -> np.ndarray:
    """Mark the top corners and the upper half of both sides: what a head leaves free."""
    edge = max(2, round(0.06 * min(h, w)))
    marked = np.zeros((h, w), bool)
    marked[:edge, : 3 * edge] = marked[:edge, -3 * edge :] = True
    marked[: h // 2, :edge] = marked[: h // 2, -edge:] = True
    return marked


def _connected(near: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Keep what hangs together with the start."""
    import cv2

    n, label = cv2.connectedComponents(near.astype(np.uint8), connectivity=4)
    seen = np.bincount(label[start], minlength=n) > 0
    seen[0] = False
    return np.asarray(seen[label], bool)


def _matte(colour: F32, plain: F32, spread: float, distance: F32, reach: np.ndarray) -> F32:
    """Split the rim into background and person: `c = alpha * plain + (1 - alpha) * person`."""
    import cv2

    side, tight = min(reach.shape), 4 + 3 * spread
    far = cv2.distanceTransform((~reach).astype(np.uint8), cv2.DIST_L2, 3)
    gap = ~reach & (distance < tight) & (far < 0.06 * side)  # seen through curls and earrings
    sure = ((far > 2) & (distance > 60) | (far > max(3, 0.027 * side))) & ~gap
    weight = sure.astype(np.float32)
    known = np.dstack((colour * weight[..., None], weight))
    # Of the nearest sure foreground: a narrow blur, and a wide one where that finds none.
    narrow = cv2.GaussianBlur(known, (0, 0), 0.012 * side)
    quarter = cv2.resize(known, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    wide = cv2.GaussianBlur(quarter, (0, 0), 0.012 * side)
    known = narrow + 0.01 * cv2.resize(wide, reach.shape[::-1]) + 1e-6
    across = known[..., :3] / known[..., 3:] - plain
    ones = np.ones(3, np.float32)
    length = np.square(across) @ ones + 1
    person = ((colour - plain) * across) @ ones / length
    noise = 2 * spread / np.sqrt(length)
    person = np.clip((person - noise) / np.maximum(1 - noise, 0.1), 0, 1)
    person[sure] = 1
    person[reach & (distance < tight)] = 0
    return np.asarray(1 - person, np.float32)


def composite(rgb: U8, alpha: F32, photo: U8) -> U8:
    """Replace the background; the old one's light goes out of hair and rims.

    Args:
        rgb: uint8 `(H, W, 3)`, the portrait or a part of it.
        alpha: float32 `(H, W)`, what `background` gave for it.
        photo: uint8 `(H, W, 3)`, what to put behind.
    """
    import cv2

    if not (alpha > 0).any():
        return rgb
    colour = rgb.astype(np.float32)
    behind = _behind(colour, alpha)
    share = alpha[..., None]
    person = colour - share * behind  # times its own share, as it is needed below
    hue = behind.mean((0, 1))
    hue = hue - hue @ _LUMA
    length = float(np.linalg.norm(hue))
    if length > 15:  # a coloured wall lights the hair from behind
        hue /= length
        spill = np.maximum((person - (person @ _LUMA)[..., None]) @ hue, 0)
        spill *= np.minimum(2.5 * cv2.boxFilter(alpha, -1, (17, 17)), 1)
        person = person - spill[..., None] * hue
    return np.asarray(np.clip(person + share * photo + 0.5, 0, 255), np.uint8)


def _behind(colour: F32, alpha: F32) -> F32:
    """Spread the colour of the sure background, near before far."""
    import cv2

    sure = (alpha > 0.98).astype(np.float32)
    known = np.dstack((colour * sure[..., None], sure))
    total = 1e-3 * known.mean((0, 1))
    for side, weight in ((9, 1.0), (41, 0.05)):
        total = total + weight * cv2.boxFilter(known, -1, (side, side))
    return np.asarray(total[..., :3] / (total[..., 3:] + 1e-9), np.float32)


class Alphas:
    """The backgrounds of a list of pictures, found on first use: 8 ms each at 256 x 256.

    Only sets of portraits are keyed: a tower before the sky could be, too, but would not be a
    photograph any more.
    """

    def __init__(self, pictures: Sequence[U8], origin: np.ndarray) -> None:
        """Take the pictures, and for each the number of the set that it is from."""
        self.pictures, self.origin = pictures, origin
        self._find = lru_cache(_KEPT)(self._key)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> F32 | None:
        """Return what `background` gives for picture `i`; None, too, for sets of photographs."""
        found = self._find(i) if self.keyed[i] else None
        return None if found is None else found * np.float32(1 / 255)

    def _key(self, i: int) -> U8 | None:
        found = background(self.pictures[i])
        return None if found is None else np.rint(found * 255).astype(np.uint8)

    @cached_property
    def keyed(self) -> np.ndarray:
        """Whether a picture is from a set of portraits, bool `(N,)`."""
        keyed = np.zeros(len(self), bool)
        for number in np.unique(self.origin):
            among = np.flatnonzero(self.origin == number)
            tried = among[np.linspace(0, len(among) - 1, min(_SAMPLE, len(among))).astype(int)]
            share = np.mean([self._find(int(i)) is not None for i in tried])
            keyed[among] = share >= _PORTRAITS
        return keyed
