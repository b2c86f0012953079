"""The Detector: a picture in, a map of its damage out."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from fastrestore.arrays import U8, check_image
from fastrestore.backend import read_model, weights_folder
from fastrestore.backends.ort import open_session, run_session
from fastrestore.errors import InputError, ModelError
from fastrestore.tiles import LIMIT_PX, plan, within

SHIPPED = "detector"

# Of 24 Kodak pictures: 0.25 % false alarms in place of 0.35 at 0.5, and blocks, scratches and dead
# pixels found at least as well.
THRESHOLD = 0.7
CERTAIN = 0.9  # what never gets this sure is a false alarm more often than damage


class Detector:
    """Finds damage with one loaded model, on the CPU.

    Calls from several threads are allowed: a session has no state of its own.

    Attributes:
        spec: What the model says about itself.
        sha256: Of its file.
    """

    def __init__(
        self, model: str | Path = SHIPPED, threads: int | None = None, *, limit_px: int = LIMIT_PX
    ) -> None:
        """Load a model.

        Args:
            model: The shipped model's name or the path of an ONNX file.
            threads: CPU threads; None = as many as the process may use.
            limit_px: Largest picture run in one piece; larger ones go in tiles.

        Raises:
            ModelError: The model is absent, foreign, damaged or no detector.
        """
        if str(model) == SHIPPED and not (weights_folder() / f"{SHIPPED}.onnx").is_file():
            raise ModelError(
                "no damage detector is installed; reinstall fastrestore, or give a mask file or "
                "--detector FILE"
            )
        data, self.spec = read_model(model, "detector")
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._session: Any = open_session(data, self.spec.name, threads)
        self._limit_px = limit_px
        ends = self._session.get_inputs(), self._session.get_outputs()
        if [[e.name for e in side] for side in ends] != [["frame"], ["damage"]]:
            raise ModelError(
                f"{self.spec.name}: its inputs and outputs are not those of a detector; "
                "export it with `fastrestore export`"
            )

    def __enter__(self) -> Detector:
        """Return the Detector; `close` is called at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Free the model."""
        self._session = None

    def probability(self, image: U8) -> U8:
        """Return how likely each pixel is damaged.

        Args:
            image: uint8 RGB, `(H, W, 3)`, of any size.

        Returns:
            uint8 `(H, W)`, probability in 255ths.

        Raises:
            InputError: Wrong shape or dtype.
        """
        check_image(image)
        h, w = image.shape[:2]
        found = np.empty((h, w), np.uint8)
        for r in plan(h, w, None, self.spec, self._limit_px):
            found[r.kept] = self._run(image[r.seen])[within(r.kept, r.seen)]
        return found

    def mask(self, image: U8, threshold: float = THRESHOLD) -> U8:
        """Return what is damaged, as a hole mask.

        Args:
            image: uint8 RGB, `(H, W, 3)`, of any size.
            threshold: As for `damage_mask`.

        Returns:
            uint8 `(H, W)`, 1 = damage.

        Raises:
            InputError: Wrong shape or dtype, threshold out of range.
        """
        return damage_mask(self.probability(image), threshold)

    def _run(self, image: U8) -> U8:
        """Repeat the edges up to what the model takes, run, and cut them off again.

        No border at the top and left, unlike a restorer's: training crops have none.
        """
        h, w = image.shape[:2]
        m = self.spec.multiple
        frame = np.pad(image, ((0, -h % m), (0, -w % m), (0, 0)), mode="edge")[None]
        feeds = {"frame": np.ascontiguousarray(frame)}
        (damage,) = run_session(self._session, self.spec.name, ["damage"], feeds)
        return damage[0, :h, :w, 0]


def damage_mask(likely: U8, threshold: float) -> U8:
    """Decide what is damage: connected places that are likely throughout and certain somewhere.

    Args:
        likely: uint8 `(H, W)`, probability in 255ths.
        threshold: Least probability of every pixel, 0 to 1; one of them reaches `CERTAIN`, too
            (8 Kodak pictures: 0.34 % false alarms in place of 0.42).

    Returns:
        uint8 `(H, W)`, 1 = damage.

    Raises:
        InputError: Threshold out of range.
    """
    import cv2

    check_threshold(threshold)
    count, places = cv2.connectedComponents((likely >= 255 * threshold).astype(np.uint8))
    found = np.zeros(count, np.uint8)
    found[np.unique(places[likely >= 255 * max(threshold, CERTAIN)])] = 1
    if threshold > 0:
        found[0] = 0  # what is not likely
    mask: U8 = found[places]
    return mask


def check_threshold(threshold: float) -> None:
    """Refuse a threshold that is no probability.

    Raises:
        InputError: Not from 0 to 1.
    """
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold {threshold}: must be from 0 to 1")
