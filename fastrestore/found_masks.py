"""Masks of a clip that a detector finds, held over the frames in which it hesitates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastrestore.arrays import U8
from fastrestore.detect import Detector, damage_mask
from fastrestore.journal import Past
from fastrestore.mask_source import if_unmarked
from fastrestore.moving_masks import MovingMask

if TYPE_CHECKING:
    from fastrestore.batch import Options

# Chosen by benchmarks/bench_hold.py: damage that stays flickers by 10.8 % of its pixels in place of
# 14.9. Without the look at the pixels themselves, what moves draws a trail: overlap 0.52 -> 0.27.
HOLD = 8  # frames
LONGEST_HOLD = 250
_STAY = 0.7  # of the threshold: what is marked already stays marked from there
_SAME = 8  # levels of a 3x3 mean in any channel, since the pixel was found

# A cut: so large a share of a thumbnail's cells changed by so many levels. Seven cuts of real clips
# reached 0.77 to 0.92, the rest of them at most 0.46, but for a head that swings past the lens.
_CUT_SHARE, _CUT_LEVELS, _THUMBNAIL = 0.55, 20, (32, 32)


class FoundMasks(MovingMask):
    """What the detector finds in each frame, and what it found before and still looks the same.

    A marked pixel stays marked while its probability is at least a lower threshold. Below that it
    is held for some frames, as long as it looks as it did when it was found: damage that has moved
    on leaves no trail. A scene cut, a step back and a frame that is all damage clear everything.
    """

    def __init__(self, detector: Detector, options: Options) -> None:
        super().__init__(options)
        self._detector = detector
        self._hold = HOLD if options.hold is None else options.hold
        self._number = -1
        self._lives: U8 | None = None  # (H, W): frames for which a pixel stays marked; 0 = is not
        self._look: U8 | None = None  # (H, W, 3): smoothed, each pixel as it was when found
        self._small: U8 | None = None  # thumbnail of the last frame

    def _find(self, frame: U8, number: int) -> U8:
        import cv2

        least = self._options.least
        likely = self._detector.probability(frame)
        found = damage_mask(likely, least)
        if not self._hold:
            return found
        small = np.asarray(cv2.resize(frame, _THUMBNAIL, interpolation=cv2.INTER_AREA), np.uint8)
        look = np.asarray(cv2.blur(frame, (3, 3)), np.uint8)
        lives, before = self._lives, self._look
        gap = number - self._number
        if lives is None or before is None or gap < 1 or self._is_cut(frame, small):
            lives, before = np.zeros_like(found), look
        elif lives.any():
            found |= (lives > 0) & (likely >= 255 * _STAY * least)
            lives = np.maximum(lives, min(gap, 255)) - np.uint8(min(gap, 255))
            lives[_difference(look, before) > _SAME] = 0
        self._lives = lives = np.where(found > 0, np.uint8(self._hold + 1), lives)
        self._look = np.asarray(cv2.copyTo(look, found, before.copy()), np.uint8)
        self._small, self._number = small, number
        return (lives > 0).astype(np.uint8)

    def _is_cut(self, frame: U8, small: U8) -> bool:
        if self._small is None or self._lives is None or self._lives.shape != frame.shape[:2]:
            return True
        return bool((_difference(small, self._small) > _CUT_LEVELS).mean() > _CUT_SHARE)

    def _forget(self) -> None:
        self._lives = self._look = self._small = None

    def remember(self) -> Past:
        """See `MovingMask`."""
        past = {**super().remember(), "number": np.array(self._number)}
        if self._lives is not None and self._look is not None and self._small is not None:
            look = self._look * (self._lives > 0)[..., None]  # the rest is not looked at
            past |= {"lives": self._lives, "look": look, "small": self._small}
        return past

    def recall(self, past: Mapping[str, npt.NDArray[Any]]) -> None:
        """See `MovingMask`."""
        super().recall(past)
        self._number = int(past["number"])
        self._lives, self._look, self._small = (past.get(k) for k in ("lives", "look", "small"))

    def notes(self) -> list[str]:
        """See `MovingMask`."""
        if not self._marked:
            return [f"no damage found: {if_unmarked(self._options)}"]
        found = [f"damage found in {self._marked} of {self._frames} frames"]
        if self._whole:
            found.append(f"{self._whole} of them look damaged all over and get no repair")
        return found


def _difference(one: U8, other: U8) -> U8:
    """Return the difference of the channel that differs most, uint8 `(H, W)`."""
    import cv2

    # 3 ms in place of 40 for max(2), 720p.
    red, green, blue = cv2.split(cv2.absdiff(one, other))
    return np.asarray(cv2.max(cv2.max(red, green), blue), np.uint8)
