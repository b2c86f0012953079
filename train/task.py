"""What a run learns: the loop knows nothing of it but this."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import Tensor, nn

from fastrestore.arrays import U8
from fastrestore.train.data import Pictures

if TYPE_CHECKING:
    from fastrestore.train.run import Run

# Draws n samples with a random generator; the result is the task's own affair.
Draw = Callable[[np.random.Generator, int], Any]


class Task(Protocol):
    """One thing to learn, with its config."""

    def network(self) -> nn.Module:
        """Make the network in its initial state."""

    def sampler(self, pictures: Pictures, crop: int) -> Draw:
        """Make the source of batches for one side of crops, px."""

    def terms(self, run: Run, batch: Any, seed: int) -> dict[str, Tensor]:
        """Return the weighted loss terms of one batch; the loop sums them.

        Args:
            run: Its networks.
            batch: From the sampler.
            seed: Of what is drawn on the device.
        """

    def cases(self, held_out: list[U8]) -> Any:
        """Make the fixed material of validation."""

    def report(self, run: Run, cases: Any, folder: Path) -> dict[str, Any]:
        """Return figures of the averaged weights as JSON values, and write pictures to look at."""
