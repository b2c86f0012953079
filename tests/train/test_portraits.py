"""Keying of studio backgrounds, on drawn portraits whose true alpha is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from fastrestore.train.portraits import Alphas, background, composite

SIDE = 128


def portrait(
    wall: tuple[int, int, int] = (90, 120, 210), noise: float = 1.5
) -> tuple[np.ndarray, np.ndarray]:
    """A head and shoulders before a graded wall; uint8 RGB and the true share of the wall."""
    big = np.zeros((4 * SIDE, 4 * SIDE), np.uint8)
    cv2.ellipse(big, (256, 240), (105, 140), 0, 0, 360, 255, -1)
    cv2.ellipse(big, (256, 540), (220, 170), 0, 0, 360, 255, -1)
    person = cv2.resize(big, (SIDE, SIDE), interpolation=cv2.INTER_AREA)[..., None] / 255
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    plain = np.array(wall) + (20 * y - 12 * x * x)[..., None]
    body = np.where(y[..., None] > 0.45, (40, 30, 35), (200, 150, 120))
    image = person * body + (1 - person) * plain
    image = image + np.random.default_rng(0).normal(0, noise, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), 1 - person[..., 0]


@pytest.mark.parametrize("wall", [(90, 120, 210), (120, 125, 130), (225, 225, 228), (40, 70, 190)])
def test_plain_wall_is_found_to_the_rim(wall: tuple[int, int, int]) -> None:
    image, truth = portrait(wall)
    alpha = background(image)
    assert alpha is not None
    assert alpha.dtype == np.float32
    assert alpha.shape == image.shape[:2]
    assert alpha.min() >= 0
    assert alpha.max() <= 1
    assert np.abs(alpha - truth).mean() < 0.01
    assert (alpha[truth == 0] < 0.1).mean() > 0.99
    assert (alpha[truth == 1] > 0.99).mean() > 0.99


def test_gap_in_curls_is_background_too() -> None:
    image, _ = portrait()
    image[40:46, 84:90] = image[2, 64]  # the wall, seen through the hair near its edge
    alpha = background(image)
    assert alpha is not None
    assert alpha[41:45, 85:89].min() > 0.9


def test_blue_eyes_are_not() -> None:
    image, _ = portrait()
    image[56:60, 56:60] = image[2, 64]
    alpha = background(image)
    assert alpha is not None
    assert alpha[50:66, 50:66].max() == 0


def busy() -> np.ndarray:
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (12, 12, 3), np.uint8)
    return cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)


def test_what_is_no_studio_portrait_is_refused() -> None:
    image, truth = portrait()
    photo = composite(image, truth.astype(np.float32), busy())
    flag = image.copy()
    flag[:, :40] = busy()[:, :40]
    small_key = image.copy()
    small_key[9:, 3:-3] = (200, 150, 120)
    empty = np.full_like(image, 90)
    sky = image.copy()
    sky[:80] = image[2, 64]
    for case in (photo, busy(), flag, small_key, empty, sky, image[:40, :40], image[:1]):
        assert background(np.ascontiguousarray(case)) is None


def test_ragged_rim_is_refused() -> None:
    image, _ = portrait()
    for y in range(30, 100, 6):
        image[y : y + 3, :50] = image[y : y + 3, :1]
        image[y : y + 3, 78:] = image[y : y + 3, -1:]
    assert background(image) is None


def test_spot_of_light_on_the_wall_is_refused() -> None:
    """Its edge is no outline of a person: half of the wall would stay."""
    image, truth = portrait()
    spot = (truth == 1) & (np.hypot(*(np.mgrid[:SIDE, :SIDE] - [[[70]], [[20]]])) < 24)
    image[spot] += 16
    assert background(image) is None


def test_composite_is_the_photograph_behind_the_person() -> None:
    image, truth = portrait(noise=0)
    photo = np.full_like(image, (30, 160, 40))
    out = composite(image, truth.astype(np.float32), photo).astype(int)
    assert np.abs(out[truth == 1] - photo[truth == 1]).max() <= 3
    inside = cv2.erode((truth == 0).astype(np.uint8), np.ones((25, 25))) > 0
    assert np.array_equal(out[inside], image[inside])
    # Rim: the mixture of person and photograph, nothing of the blue wall.
    rim = (truth > 0.3) & (truth < 0.7)
    skin = np.array((200, 150, 120))
    head = rim & (np.arange(SIDE)[:, None] < 80)
    expected = truth[head][:, None] * photo[head] + (1 - truth[head])[:, None] * skin
    assert np.abs(out[head] - expected).mean() < 4


def test_spill_of_a_blue_wall_leaves_the_hair() -> None:
    image, truth = portrait(noise=0)
    alpha = truth.astype(np.float32)
    ring = (cv2.dilate(alpha, np.ones((5, 5))) > 0) & (truth == 0)
    image[ring] = (40, 50, 110)  # dark hair in blue light
    out = composite(image, alpha, np.full_like(image, 128)).astype(int)
    blueness = out[..., 2] - out[..., :2].mean(2)
    assert blueness[ring].mean() < 20
    grey, _ = portrait((120, 120, 120), noise=0)
    grey[ring] = (40, 50, 110)
    kept = composite(grey, alpha, np.full_like(grey, 128)).astype(int)
    assert np.array_equal(kept[ring], grey[ring])


def test_crop_without_background_stays_as_it_is() -> None:
    image, _ = portrait()
    crop = image[40:80, 50:80]
    out = composite(crop, np.zeros(crop.shape[:2], np.float32), np.zeros_like(crop))
    assert np.array_equal(out, crop)


def test_only_sets_of_portraits_are_keyed() -> None:
    image, _ = portrait()
    pictures = [image, busy(), image, busy(), busy(), busy(), busy(), busy(), busy(), image]
    alphas = Alphas(pictures, np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1]))
    assert len(alphas) == 10
    assert alphas.keyed.tolist() == [True] * 4 + [False] * 6
    assert [alphas[i] is not None for i in range(10)] == [True, False, True] + [False] * 7
    found, direct = alphas[0], background(image)
    assert found is not None
    assert direct is not None
    assert found.dtype == np.float32
    assert np.abs(found - direct).max() <= 0.5 / 255 + 1e-6


def test_nothing_is_keyed_before_it_is_asked_for() -> None:
    class Never(list):  # type: ignore[type-arg]
        def __getitem__(self, i):  # type: ignore[no-untyped-def]
            raise AssertionError("touched")

    assert len(Alphas(Never([1, 2]), np.zeros(2))) == 2
