"""The stream of batches: a function of seed, step and number, whoever draws it and when."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastrestore.train.config import TrainConfig
from fastrestore.train.data import Pictures
from fastrestore.train.feed import Feed, Item
from fastrestore.train.restoration import Restoration
from fastrestore.train.task import Draw

MakeConfig = Callable[..., TrainConfig]
MakeFeed = Callable[..., Feed]


@pytest.fixture
def pictures(folder: Path) -> Pictures:
    return Pictures.load((str(folder),), 2, 64)


@pytest.fixture
def make_feed(make_config: MakeConfig, pictures: Pictures) -> MakeFeed:
    """Make a feed of the restorer's batches."""

    def make(rank: int = 0, ranks: int = 1, **changes: Any) -> Feed:
        config = make_config(**changes)
        return Feed(Restoration(config), pictures, config, rank, ranks)

    return make


def draw(feed: Feed, steps: range, first_large: int = 1000) -> list[Item]:
    try:
        return [i for s in steps for i in feed.step(s, lambda step: step >= first_large)]
    finally:
        feed.close()


def equal(a: Item, b: Item) -> bool:
    return a[:-1] == b[:-1] and all(np.array_equal(x, y) for x, y in zip(a[-1], b[-1], strict=True))


def test_batch_follows_from_seed_step_and_number(make_feed: MakeFeed) -> None:
    straight = draw(make_feed(accumulate=2), range(4))
    assert [(i.step, i.number) for i in straight] == [(s, n) for s in range(4) for n in range(2)]
    resumed = draw(make_feed(accumulate=2), range(2, 4))
    assert all(map(equal, straight[4:], resumed))


def test_other_seed_step_or_number_is_another_batch(make_feed: MakeFeed) -> None:
    items = draw(make_feed(accumulate=2), range(3)) + draw(make_feed(seed=1), range(1))
    assert len({i.seed for i in items}) == len(items)
    assert len({i.batch.clean.tobytes() for i in items}) == len(items)
    assert len({i.batch.mask.tobytes() for i in items}) == len(items)


def test_large_crops_come_in_quarter_batches(make_feed: MakeFeed) -> None:
    small, large = draw(make_feed(batch=8), range(2), first_large=1)
    assert (small.crop, small.size, small.batch.clean.shape) == (32, 8, (8, 32, 32, 3))
    assert (large.crop, large.size, large.batch.clean.shape) == (64, 2, (2, 64, 64, 3))
    (one,) = draw(make_feed(batch=2), range(1), first_large=0)
    assert one.size == 1


@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_share_what_one_draws(make_feed: MakeFeed, ranks: int) -> None:
    alone = draw(make_feed(accumulate=2 * ranks), range(2))
    shared = [
        item
        for rank in range(ranks)
        for item in draw(make_feed(rank, ranks, accumulate=2), range(2))
    ]
    shared.sort(key=lambda item: (item.step, item.number))
    assert len(alone) == 4 * ranks
    assert all(map(equal, alone, shared))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_threads_draw_the_same_stream(make_feed: MakeFeed, accumulate: int) -> None:
    """Across the step from which on crops are large."""
    alone = draw(make_feed(accumulate=accumulate), range(12), first_large=7)
    ahead = draw(make_feed(accumulate=accumulate, workers=3), range(12), first_large=7)
    assert all(map(equal, alone, ahead))
    assert [i.crop for i in alone[::accumulate]] == [32] * 7 + [64] * 5


class Slow:
    """A task whose draws note in which thread they begin and wait until all have begun."""

    def __init__(self, parties: int) -> None:
        self.barrier = threading.Barrier(parties)
        self.threads: set[int] = set()

    def sampler(self, pictures: Pictures, crop: int) -> Draw:
        def draw(rng: np.random.Generator, n: int) -> float:
            self.threads.add(threading.get_ident())
            self.barrier.wait(10)  # breaks, and fails the test, unless they run at once
            return float(rng.random())

        return draw


def test_threads_work_at_the_same_time_and_ahead(
    make_config: MakeConfig, pictures: Pictures
) -> None:
    task: Any = Slow(3)
    feed = Feed(task, pictures, make_config(workers=3), 0, 1)
    before = threading.active_count()
    feed.step(0, lambda _: False)
    assert len(task.threads) == 3
    assert threading.get_ident() not in task.threads
    assert threading.active_count() == before + 3
    task.barrier.abort()
    feed.close()
    assert threading.active_count() == before


def test_draws_that_fail_are_raised_in_the_loop(
    make_config: MakeConfig, pictures: Pictures
) -> None:
    task: Any = Slow(1)
    task.barrier.abort()
    feed = Feed(task, pictures, make_config(workers=2), 0, 1)
    with pytest.raises(threading.BrokenBarrierError):
        feed.step(0, lambda _: False)
    feed.close()


def test_close_forgets_what_is_not_drawn_yet(make_feed: MakeFeed) -> None:
    before = threading.active_count()
    feed = make_feed(workers=2)
    assert threading.active_count() == before  # none before the first step
    feed.step(0, lambda _: False)
    feed.close()
    assert threading.active_count() == before
    make_feed().close()  # without threads there is nothing to do
