"""The hand-over between two stages."""

from __future__ import annotations

import threading

import pytest

from fastrestore.channel import Channel, ClosedError


def test_keeps_everything_in_order_and_never_more_than_its_depth() -> None:
    channel: Channel[int] = Channel(3)
    most = 0

    def write() -> None:
        for i in range(50):
            channel.put(i)
        channel.finish()

    thread = threading.Thread(target=write)
    thread.start()
    got = []
    while (item := channel.get()) is not None:
        most = max(most, len(channel) + 1)
        got.append(item)
    thread.join()
    assert got == list(range(50))
    assert most <= 4  # three that wait and the one in hand
    assert channel.dropped == 0


def test_newest_replaces_the_oldest_and_counts_it() -> None:
    channel: Channel[int] = Channel(newest=True)
    for i in range(5):
        channel.put(i)
    assert channel.get() == 4
    assert channel.dropped == 4


def test_finish_lets_what_waits_be_read() -> None:
    channel: Channel[str] = Channel(2)
    channel.put("a")
    channel.finish()
    assert channel.get() == "a"
    assert channel.get() is None
    assert channel.get() is None


@pytest.mark.parametrize("side", ["put", "get"])
def test_close_wakes_the_side_that_waits(side: str) -> None:
    channel: Channel[int] = Channel(1)
    ended = threading.Event()
    waits = threading.Event()

    def stage() -> None:
        try:
            if side == "put":
                channel.put(1)
                waits.set()
                channel.put(2)
            else:
                waits.set()
                channel.get()
        except ClosedError:
            ended.set()

    thread = threading.Thread(target=stage, daemon=True)
    thread.start()
    waits.wait(5)
    channel.close()
    assert ended.wait(5)
    with pytest.raises(ClosedError):
        channel.get()


def test_get_gives_up_after_its_timeout() -> None:
    channel: Channel[int] = Channel(1)
    with pytest.raises(TimeoutError):
        channel.get(0.01)
    channel.put(1)
    assert channel.get(0.01) == 1
