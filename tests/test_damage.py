"""Synthetic damage: the truth marks what changed, and only that."""

from __future__ import annotations

import numpy as np
import pytest

from fastrestore.damage import KINDS, SEEN_LEVELS, draw_damage
from fastrestore.errors import InputError

SIDE = 96


@pytest.fixture
def clean() -> np.ndarray:
    """Smooth shapes under fine texture: every kind of damage can be seen on it."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    smooth = 127 + 60 * np.stack([np.sin(6 * x + 3 * y), np.cos(8 * y), np.sin(5 * x * y)], -1)
    texture = np.random.default_rng(5).normal(0, 12, smooth.shape)
    return np.clip(np.rint(smooth + texture), 0, 255).astype(np.uint8)


def draws(clean: np.ndarray, kind: str, n: int = 12) -> list[tuple[np.ndarray, np.ndarray]]:
    return [draw_damage(clean, np.random.default_rng(seed), [kind]) for seed in range(n)]


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_types_and_the_picture_is_left_alone(clean: np.ndarray, kind: str) -> None:
    before = clean.copy()
    damaged, mask = draw_damage(clean, np.random.default_rng(0), [kind])
    assert np.array_equal(clean, before)
    assert damaged.shape == clean.shape
    assert mask.shape == clean.shape[:2]
    assert damaged.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 1}


@pytest.mark.parametrize("kind", KINDS)
def test_every_draw_damages_something(clean: np.ndarray, kind: str) -> None:
    assert all(mask.any() and not mask.all() for _, mask in draws(clean, kind))


@pytest.mark.parametrize("kind", ["solid", "noise", "blur", "dead"])
def test_hard_edged_damage_changes_nothing_outside_its_mask(clean: np.ndarray, kind: str) -> None:
    for damaged, mask in draws(clean, kind):
        change = np.abs(damaged.astype(int) - clean).max(2)
        assert not (change[mask == 0] >= SEEN_LEVELS).any()


@pytest.mark.parametrize("kind", ["freeform", "scratches", "dust"])
def test_soft_edges_leave_at_most_a_quarter_outside_the_mask(clean: np.ndarray, kind: str) -> None:
    for damaged, mask in draws(clean, kind):
        change = np.abs(damaged.astype(int) - clean).max(2)
        assert change[mask == 0].max() <= 0.25 * 255 + 1


@pytest.mark.parametrize("kind", KINDS)
def test_most_of_the_mask_was_changed(clean: np.ndarray, kind: str) -> None:
    shares = [
        (np.abs(damaged.astype(int) - clean).max(2)[mask > 0] >= SEEN_LEVELS).mean()
        for damaged, mask in draws(clean, kind)
    ]
    assert np.mean(shares) > 0.9


def test_what_cannot_be_seen_is_no_damage() -> None:
    flat = np.full((64, 64, 3), 90, np.uint8)
    for seed in range(8):
        damaged, mask = draw_damage(flat, np.random.default_rng(seed), ["blur"])
        assert np.array_equal(damaged, flat)
        assert not mask.any()


def test_dead_pixels_stand_out() -> None:
    black = np.zeros((64, 64, 3), np.uint8)
    for damaged, mask in draws(black, "dead"):
        assert (damaged[mask > 0].max(1) == 255).all()
        assert mask.mean() < 0.05


@pytest.mark.parametrize(("kind", "most"), [("scratches", 0.4), ("dead", 0.05), ("dust", 0.25)])
def test_small_damage_is_small(clean: np.ndarray, kind: str, most: float) -> None:
    assert max(mask.mean() for _, mask in draws(clean, kind)) < most


def test_film_scratches_are_mostly_upright(clean: np.ndarray) -> None:
    """A column through an upright line holds more of it than any row does."""
    upright = sum(
        mask.mean(0).max() > mask.mean(1).max() for _, mask in draws(clean, "scratches", 30)
    )
    assert upright > 18


def test_colours_vary(clean: np.ndarray) -> None:
    """A detector that only knows black is useless."""
    found = {tuple(np.median(d[m > 0], 0).astype(int)) for d, m in draws(clean, "solid", 40)}
    assert len(found) > 12
    assert (0, 0, 0) in found
    assert (255, 255, 255) in found


def test_a_foreign_picture_can_cover(clean: np.ndarray) -> None:
    """Levels that the picture does not have come from the other one, whatever its size."""
    foreign = np.zeros((30, 200, 3), np.uint8)
    foreign[..., 1] = 251
    hits = 0
    for seed in range(20):
        damaged, mask = draw_damage(clean, np.random.default_rng(seed), ["freeform"], foreign)
        hits += bool((damaged[mask > 0] == (0, 251, 0)).all(1).any())
    assert 2 <= hits <= 14


def test_seeded(clean: np.ndarray) -> None:
    first, again, other = (draw_damage(clean, np.random.default_rng(s)) for s in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_all_kinds_in_one_picture(clean: np.ndarray) -> None:
    single = draw_damage(clean, np.random.default_rng(1), KINDS[:1])[1]
    every = draw_damage(clean, np.random.default_rng(1), KINDS)[1]
    assert every.sum() > single.sum()
    assert (every >= single).all()


@pytest.mark.parametrize("size", [(16, 16), (17, 300), (211, 33)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for kind in KINDS:
        damaged, mask = draw_damage(image, np.random.default_rng(2), [kind])
        assert damaged.shape == image.shape
        assert mask.shape == size


def test_refuses_in_words(clean: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="damage rust: not known; choose one of solid, "):
        draw_damage(clean, rng, ["rust"])
    with pytest.raises(InputError, match="size 40x8: damage needs at least 16 px a side"):
        draw_damage(clean[:8, :40], rng)
