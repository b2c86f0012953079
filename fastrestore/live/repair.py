"""What happens to one frame of a live stream: its mask, the model, the steps of the policy."""

from __future__ import annotations

from collections.abc import Collection

from fastrestore.arrays import U8
from fastrestore.live.policy import Step
from fastrestore.restore import Restorer, Sigma


class Repair:
    """Restores frames of several streams with one model; between them only `past` is carried.

    Attributes:
        runs: What restored last: the model and its backend.
    """

    def __init__(
        self,
        restorer: Restorer,
        small: Restorer | None = None,
        *,
        sigma: Sigma = None,
        grow_px: int = 0,
    ) -> None:
        """Take loaded models.

        Args:
            restorer: What restores.
            small: Restores in its place after the step `preset`; None: there is no such step.
            sigma: Noise to remove; see `Restorer`.
            grow_px: Widening of holes; see `Restorer`.
        """
        self._restorer, self._small = restorer, small
        self._sigma, self._grow_px = sigma, grow_px
        self.runs = _name(restorer)

    def warm_up(self, frame: U8, mask: U8 | None) -> None:
        """Run every model once, so that the next run of this size is a typical one."""
        for restorer in (self._restorer, self._small):
            if restorer is not None:
                restorer(frame, mask, sigma=self._sigma, grow_px=self._grow_px)

    def __call__(
        self, frame: U8, mask: U8 | None, past: U8 | None, steps: Collection[Step] = ()
    ) -> tuple[U8, U8 | None]:
        """Restore a frame.

        Args:
            frame: uint8 RGB, `(H, W, 3)`.
            mask: uint8 `(H, W)`, 1 = hole; None: the stream has no mask.
            past: State before it, or None.
            steps: Those of the policy that are in force.

        Returns:
            The restored frame, and the state after it.

        Raises:
            InputError: See `Restorer.frame`.
        """
        small = self._small if "preset" in steps else None
        restorer = small or self._restorer
        sigma = 0.0 if "box" in steps and mask is not None else self._sigma
        restorer.past = past
        restored = restorer.frame(frame, mask, sigma=sigma, grow_px=self._grow_px)
        self.runs = _name(restorer)
        return restored, restorer.past


def _name(restorer: Restorer) -> str:
    return f"{restorer.spec.name} on {restorer.backend}"
