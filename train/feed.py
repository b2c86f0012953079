"""The stream of batches: number k of step s is the same on every machine and in every process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from fastrestore.train.config import TrainConfig
from fastrestore.train.data import Pictures
from fastrestore.train.task import Draw, Task


class Item(NamedTuple):
    """One batch, and all that it follows from."""

    step: int
    number: int  # of the step's batches; ranks and accumulated batches share the count
    crop: int
    size: int  # samples
    seed: int  # of what is drawn on the device
    batch: Any


class Feed:
    """Draws batches, some steps ahead where the config gives it threads.

    A rank of several takes every `ranks`-th batch, so that two processes see what one process sees
    with twice `accumulate`.
    """

    def __init__(self, task: Task, pictures: Pictures, config: TrainConfig, rank: int, ranks: int):
        self.task, self.pictures, self.config = task, pictures, config
        self.numbers = range(rank, config.accumulate * ranks, ranks)
        self._draws: dict[int, Draw] = {}
        self._pool = ThreadPoolExecutor(config.workers) if config.workers else None
        self._ahead: deque[tuple[int, list[Future[Item]]]] = deque()

    def step(self, step: int, large: Callable[[int], bool]) -> list[Item]:
        """Return this process's batches of one step.

        Args:
            step: Counted from 0; asked for in order.
            large: Whether a step uses large crops.
        """
        if self._pool is None:
            return [self._item(step, number, large(step)) for number in self.numbers]
        if not self._ahead or self._ahead[0][0] != step:
            self._ahead.clear()
        first = self._ahead[-1][0] + 1 if self._ahead else step
        for later in range(first, step + self.config.workers + 1):
            size = large(later)
            self._draw(self.config.large_crop if size else self.config.crop)  # once, not in threads
            jobs = [self._pool.submit(self._item, later, n, size) for n in self.numbers]
            self._ahead.append((later, jobs))
        return [job.result() for job in self._ahead.popleft()[1]]

    def close(self) -> None:
        """Stop drawing."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def _draw(self, crop: int) -> Draw:
        if crop not in self._draws:
            self._draws[crop] = self.task.sampler(self.pictures, crop)
        return self._draws[crop]

    def _item(self, step: int, number: int, large: bool) -> Item:
        c = self.config
        crop, size = (c.large_crop, max(1, c.batch // 4)) if large else (c.crop, c.batch)
        rng = np.random.default_rng((c.seed, step, number))
        seed = int(rng.integers(2**62))
        return Item(step, number, crop, size, seed, self._draw(crop)(rng, size))
