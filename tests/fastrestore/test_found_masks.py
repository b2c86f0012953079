"""Found masks in time, with a detector whose answers are written down."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastrestore.arrays import U8
from fastrestore.batch import Options
from fastrestore.errors import InputError
from fastrestore.found_masks import HOLD, FoundMasks

H, W = 40, 48
SPOT = (slice(10, 16), slice(12, 20))
Answer = list[tuple[Any, int]]  # what is found where
SURE, LIKELY, HARDLY = 255, 150, 100  # of 255: 178 is the threshold, 125 what stays marked


class Told:
    """A detector that is told what it finds: a value at each place, frame by frame."""

    def __init__(self, *frames: Answer) -> None:
        self._frames = iter(frames)

    def probability(self, image: U8) -> U8:
        likely = np.zeros(image.shape[:2], np.uint8)
        for place, value in next(self._frames):
            likely[place] = value
        return likely


def scene(seed: int = 0, dirt: Any = None) -> U8:
    """A smooth picture, with dark dirt on it."""
    rng = np.random.default_rng(seed)
    image = np.repeat(np.repeat(rng.integers(90, 250, (5, 6, 3), np.uint8), 8, 0), 8, 1)
    if dirt is not None:
        image[dirt] = 20
    return image


def at(*places: Any) -> U8:
    mask = np.zeros((H, W), np.uint8)
    for place in places:
        mask[place] = 1
    return mask


def masks_of(told: Told, frames: list[U8], **options: Any) -> list[U8]:
    masks = FoundMasks(told, Options(mask="auto", **options))  # type: ignore[arg-type]
    return [masks(frame, i) for i, frame in enumerate(frames)]


def sums(masks: list[U8]) -> list[int]:
    return [int(m.sum()) for m in masks]


def test_what_hesitates_stays_marked_without_end() -> None:
    told = [[(SPOT, SURE)]] + [[(SPOT, LIKELY)]] * 3
    found = masks_of(Told(*told), [scene(dirt=SPOT)] * 4, hold=1)
    assert all(np.array_equal(m, at(SPOT)) for m in found)


def test_what_was_never_certain_is_not_marked_by_the_lower_threshold() -> None:
    assert sums(masks_of(Told(*[[(SPOT, LIKELY)]] * 3), [scene()] * 3)) == [0, 0, 0]


@pytest.mark.parametrize("hold", [1, 3, None])
def test_what_is_not_found_is_held_for_so_many_frames(hold: int | None) -> None:
    held = HOLD if hold is None else hold
    told = [[(SPOT, SURE)]] + [[(SPOT, HARDLY)]] * (held + 2)
    found = masks_of(Told(*told), [scene(dirt=SPOT)] * len(told), hold=hold)
    assert sums(found) == [48] * (held + 1) + [0, 0]


def test_found_again_is_held_anew() -> None:
    told = [[(SPOT, SURE)], [], [(SPOT, SURE)], [], []]
    assert sums(masks_of(Told(*told), [scene(dirt=SPOT)] * 5, hold=1)) == [48, 48, 48, 48, 0]


def test_without_a_hold_every_frame_stands_by_itself() -> None:
    told = [[(SPOT, SURE)], [(SPOT, LIKELY)], []]
    assert sums(masks_of(Told(*told), [scene(dirt=SPOT)] * 3, hold=0)) == [48, 0, 0]


def test_damage_that_moves_leaves_no_trail() -> None:
    places = [(SPOT[0], slice(12 + 4 * i, 20 + 4 * i)) for i in range(4)]
    told = Told(*[[(p, SURE)] for p in places])
    found = masks_of(told, [scene(dirt=p) for p in places])
    for mask, place in zip(found, places, strict=True):
        assert not mask[at(place) == 0].any()
        assert mask[place].all()


def test_what_changes_slowly_is_compared_with_what_was_found() -> None:
    frames = [scene(dirt=SPOT) for _ in range(4)]
    for i, frame in enumerate(frames):
        frame[SPOT] += np.uint8(6 * i)
    found = masks_of(Told([(SPOT, SURE)], [], [], []), frames)
    assert sums(found)[0] == 48
    assert found[1][11:15, 13:19].all()
    assert not found[2][11:15, 13:19].any()


def test_noise_does_not_end_a_hold() -> None:
    rng = np.random.default_rng(1)
    frames = [
        np.clip(scene(dirt=SPOT) + rng.normal(0, 4, (H, W, 3)), 0, 255).astype(np.uint8)
        for _ in range(4)
    ]
    found = masks_of(Told([(SPOT, SURE)], [], [], []), frames)
    assert min(sums(found)) >= 40


def test_a_cut_clears_the_hold_and_a_flicker_of_light_does_not() -> None:
    dark = scene(dirt=SPOT)
    other = np.where(at(SPOT)[..., None] > 0, dark, dark // 3).astype(np.uint8)  # the dirt stays
    lit = np.clip(dark.astype(int) + 3, 0, 255).astype(np.uint8)
    told = [[(SPOT, SURE)], [(SPOT, LIKELY)]]
    assert sums(masks_of(Told(*told), [dark, other])) == [48, 0]
    assert sums(masks_of(Told(*told), [dark, lit])) == [48, 48]


def test_lost_frames_count_and_a_step_back_clears() -> None:
    frame = scene(dirt=SPOT)
    for numbers, left in (([0, 3], 48), ([0, 4], 0), ([0, 600], 0), ([5, 5], 0), ([5, 0], 0)):
        masks = FoundMasks(Told([(SPOT, SURE)], []), Options(mask="auto", hold=3))  # type: ignore[arg-type]
        assert sums([masks(frame, n) for n in numbers]) == [48, left]


def test_another_size_begins_anew() -> None:
    masks = FoundMasks(Told([(SPOT, SURE)], []), Options(mask="auto"))  # type: ignore[arg-type]
    masks(scene(dirt=SPOT), 0)
    assert masks(scene()[:32, :40], 1).shape == (32, 40)


def test_a_frame_that_is_all_damage_marks_nothing_then_or_later() -> None:
    everywhere = (slice(None), slice(None))
    told = Told([(SPOT, SURE)], [(everywhere, SURE)], [])
    masks = FoundMasks(told, Options(mask="auto"))  # type: ignore[arg-type]
    frame = scene(dirt=SPOT)
    assert sums([masks(frame, i) for i in range(3)]) == [48, 0, 0]
    assert not masks.grown.any()
    assert masks.notes() == [
        "damage found in 2 of 3 frames",
        "1 of them look damaged all over and get no repair",
    ]


def test_what_may_change_is_the_grown_mask() -> None:
    masks = FoundMasks(Told([(SPOT, SURE)]), Options(mask="auto", grow_px=2))  # type: ignore[arg-type]
    masks(scene(), 0)
    assert masks.grown[8, 15] == masks.grown[10, 10] == 1
    assert masks.grown.sum() > 48


def test_it_goes_on_from_what_it_remembers() -> None:
    """At every frame: the rest of the clip, and the notes, as without a break."""
    other = (slice(30, 34), slice(3, 9))
    told: list[Answer] = [
        [],
        [(SPOT, SURE)],
        [(SPOT, LIKELY), (other, SURE)],
        [(other, HARDLY)],
        [],
        [(SPOT, SURE)],
    ]
    frames = [scene(dirt=SPOT)] * 6
    options = Options(mask="auto", hold=2)
    whole = FoundMasks(Told(*told), options)  # type: ignore[arg-type]
    wanted = [whole(f, i) for i, f in enumerate(frames)]
    for stop in range(6):
        first = FoundMasks(Told(*told), options)  # type: ignore[arg-type]
        for i in range(stop):
            first(frames[i], i)
        past = {k: v.copy() for k, v in first.remember().items()}
        rest = FoundMasks(Told(*told[stop:]), options)  # type: ignore[arg-type]
        rest.recall(past)
        for i in range(stop, 6):
            assert np.array_equal(rest(frames[i], i), wanted[i])
            assert all(np.array_equal(past[k], v) for k, v in first.remember().items())
        assert rest.notes() == whole.notes()


@pytest.mark.parametrize(
    "options", [{"mask": "m", "hold": 1}, {"hold": 1}, {"mask": "auto", "hold": 251}]
)
def test_a_hold_that_cannot_be(options: Any) -> None:
    with pytest.raises(InputError, match="a hold goes with --mask auto only, from 0 to 250 frames"):
        Options(**options)
