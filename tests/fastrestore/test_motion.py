from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from fastrestore.arrays import U8
from fastrestore.degrade import add_noise
from fastrestore.demo import sample_folder
from fastrestore.images import read_picture
from fastrestore.metrics import hole_psnr, psnr
from fastrestore.motion import carry, doubt
from fastrestore.motion_search import spread
from fastrestore.motion_warp import aged, follow, shifted
from fastrestore.restore import Restorer

ONCE, OFTEN = 128, 239  # confidence of a pixel seen once, and of 15 frames


@pytest.fixture(scope="module")
def scene() -> U8:
    """A photograph, 512x512."""
    return read_picture(sample_folder() / "vegetables.webp").rgb


@pytest.fixture(scope="module")
def restorer() -> Iterator[Restorer]:
    with Restorer("nano", backend="ort", threads=1) as loaded:
        yield loaded


def view(scene: U8, x: float, y: float, height: int = 128, width: int = 160) -> U8:
    """Cut a window at a position in pixels."""
    move = np.array([[1, 0, x], [0, 1, y]], np.float64)
    flags = cv2.INTER_LANCZOS4 | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(scene, move, (width, height), flags=flags), np.uint8)


def seen(image: U8, confidence: int = ONCE) -> U8:
    """Make the state after a picture."""
    return np.dstack((image, np.full(image.shape[:2], confidence, np.uint8)))


# What moves.


@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (3, 0), (-7, 2), (0, -5), (12, 9)])
def test_a_shift_by_whole_pixels_is_found_and_copied(scene: U8, dx: int, dy: int) -> None:
    before, now = view(scene, 100, 100), view(scene, 100 + dx, 100 + dy)
    moved = carry(seen(before), now, None, 0.0)
    inside = np.zeros(moved.shape[:2], bool)
    h, w = inside.shape
    inside[max(0, -dy) : h - max(0, dy), max(0, -dx) : w - max(0, dx)] = True
    assert (moved[inside] == seen(now)[inside]).all(1).mean() > 0.98  # nothing was interpolated
    assert (moved[~inside][:, 3] == 0).mean() > 0.98  # what enters has no past


def test_a_shift_is_found_under_noise(scene: U8) -> None:
    rng = np.random.default_rng(0)
    before, now = view(scene, 100, 100), view(scene, 103, 99)
    moved = carry(seen(add_noise(before, 8, rng), OFTEN), add_noise(now, 25, rng), None, 25.0)
    inside = moved[..., 3] > 0
    still = np.square(before.astype(float) - now)[inside].mean()
    left = np.square(moved[..., :3].astype(float) - now)[inside].mean()
    assert left < 100, f"64 of it is noise, {still:.0f} without motion"


def test_between_pixels_it_is_sharper_than_whole_ones(scene: U8) -> None:
    before, now = view(scene, 100, 100), view(scene, 101.5, 100.4)
    moved = carry(seen(before), now, None, 0.0)
    inside = (slice(8, -8),) * 2
    nearest = max(psnr(shifted(seen(before), (x, 0))[inside][..., :3], now[inside]) for x in (1, 2))
    assert psnr(moved[inside][..., :3], now[inside]) > nearest + 6
    assert moved[inside][..., 3].max() < ONCE  # and it costs some trust


def test_repeated_moves_do_not_blur(scene: U8) -> None:
    start = seen(view(scene, 100, 100))
    moved, bilinear = start, start
    half = np.full((64, 80, 2), 0.5, np.float32)
    for _ in range(24):
        moved, bilinear = shifted(moved, (0.5, 0.5)), follow(bilinear, half)
    inside = (slice(20, -32), slice(20, -32))
    truth = view(scene, 112, 112)[inside]
    assert psnr(moved[inside][..., :3], truth) > psnr(bilinear[inside][..., :3], truth) + 6


def test_an_object_moves_and_leaves_the_ground_where_it_is(scene: U8) -> None:
    ground, thing = view(scene, 40, 40, 192, 192), view(scene, 300, 300, 64, 64)
    before, now = ground.copy(), ground.copy()
    before[64:128, 60:124], now[64:128, 64:128] = thing, thing
    state = seen(before)
    moved = carry(state, now, None, 0.0)
    np.testing.assert_array_equal(moved[:28], state[:28])
    np.testing.assert_array_equal(moved[164:], state[164:])
    inner = (slice(72, 120), slice(72, 120))
    assert psnr(moved[inner][..., :3], now[inner]) > psnr(before[inner], now[inner]) + 6


def test_no_object_is_dragged_along_by_the_ground(scene: U8) -> None:
    """A sign that stands still before a pan."""
    before, now = view(scene, 100, 100, 192, 192), view(scene, 104, 100, 192, 192)
    sign = view(scene, 320, 20, 72, 72)
    before[60:132, 60:132] = now[60:132, 60:132] = sign
    moved = carry(seen(before), now, None, 0.0)
    inner = (slice(80, 112), slice(80, 112))
    np.testing.assert_array_equal(moved[inner][..., :3], sign[20:52, 20:52])


# What does not.


def test_a_still_picture_keeps_its_state(scene: U8) -> None:
    image = view(scene, 100, 100)
    state = seen(image, OFTEN)
    assert carry(state, image, None, 0.0) is state
    assert carry(state, image, None, 25.0) is state


def test_noise_moves_next_to_nothing(scene: U8) -> None:
    rng = np.random.default_rng(1)
    image = view(scene, 100, 100)
    state = seen(add_noise(image, 8, rng), OFTEN)
    moved = carry(state, add_noise(image, 25, rng), None, 25.0)
    assert (moved == state).all(2).mean() > 0.95


@pytest.mark.parametrize("level", [0, 90, 255])
def test_flat_pictures_do_not_move(level: int) -> None:
    rng = np.random.default_rng(2)
    flat = np.full((96, 120, 3), level, np.uint8)
    state = seen(flat)
    assert carry(state, flat, None, 0.0) is state
    moved = carry(state, add_noise(flat, 25, rng), None, 25.0)
    np.testing.assert_array_equal(moved[moved[..., 3] > 0][:, :3], state[moved[..., 3] > 0][:, :3])


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (31, 40), (32, 32), (33, 47), (32, 400)])
@pytest.mark.parametrize("confidence", [0, 1, ONCE])
@pytest.mark.parametrize("hole", ["none", "some", "all"])
def test_any_size_and_mask(scene: U8, size: tuple[int, int], confidence: int, hole: str) -> None:
    before, now = view(scene, 60, 60, *size), view(scene, 62, 60, *size)
    mask = np.full(size, hole == "all", np.uint8)
    mask[: size[0] // 2, : size[1] // 3] = hole != "none"
    state = seen(before, confidence)
    kept, frame = state.copy(), now.copy()
    for sigma in (0.0, 25.0):
        moved = carry(state, now, mask, sigma)
        assert moved.shape == state.shape
        assert moved.dtype == np.uint8
        assert confidence or not moved[..., 3].any()
    np.testing.assert_array_equal(state, kept)  # what is handed in stays
    np.testing.assert_array_equal(now, frame)
    doubt(seen(now), state, mask)


# Trust.


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.9, 1.0])
def test_a_share_of_the_frames(kept: float) -> None:
    table = aged(kept)
    assert table[0] == 0
    assert (table[1:] >= 1).all()
    assert (np.diff(table.astype(int)) >= 0).all()
    frames = 239 / (255 - 239) * kept
    assert table[239] == max(round(255 * frames / (frames + 1)), 1)
    assert kept < 1 or (table == np.arange(256)).all()


def test_overstated_noise_costs_trust_where_something_moves(scene: U8) -> None:
    rng = np.random.default_rng(3)
    before, now = view(scene, 100, 100), view(scene, 103, 100)
    noisy = add_noise(now, 4, rng)
    inside = (slice(8, -8),) * 2
    said = [carry(seen(before, OFTEN), noisy, None, s)[inside][..., 3] for s in (4.0, 25.0)]
    assert np.median(said[0]) == OFTEN
    assert np.median(said[1]) < ONCE


def test_what_flows_costs_trust_and_what_stands_still_beside_it_does_not(scene: U8) -> None:
    rng = np.random.default_rng(6)
    ground, thing = view(scene, 40, 40, 192, 192), view(scene, 300, 300, 64, 64)
    before, now = ground.copy(), ground.copy()
    before[64:128, 60:124], now[64:128, 64:128] = thing, thing
    state = seen(add_noise(before, 6, rng), OFTEN)
    said = [carry(state, add_noise(now, sigma, rng), None, 25.0) for sigma in (25, 4)]
    np.testing.assert_array_equal(said[0][:24], state[:24])
    assert np.median(said[0][80:112, 80:112, 3]) == aged(0.6)[OFTEN]
    assert ONCE < np.median(said[1][:24, :, 3]) < OFTEN  # noise overstated: doubted as well


def test_what_changed_is_doubted_and_what_stood_still_is_not(scene: U8) -> None:
    before = seen(view(scene, 100, 100))
    now = before.copy()
    now[40:88, 40:88, :3] = view(scene, 300, 300, 48, 48)
    mask = np.zeros(now.shape[:2], np.uint8)
    mask[:, 120:] = 1
    now[:, 120:, 3] = 77
    doubt(now, before, mask)
    assert (now[:16, :112, 3] == ONCE).all()
    assert now[48:80, 48:80, 3].max() < 16
    assert now[..., 3].min() >= 1
    assert (now[:, 120:, 3] == 77).all()  # holes have no news


def test_what_was_never_seen_is_not_doubted(scene: U8) -> None:
    before, now = seen(view(scene, 100, 100), 0), seen(view(scene, 200, 200))
    doubt(now, before, None)
    assert (now[..., 3] == ONCE).all()


def test_what_is_known_spreads_into_holes() -> None:
    weight = np.ones((40, 56), np.float32)
    weight[8:30, 10:44] = 0
    values = np.dstack((np.full((40, 56), 7.0), np.full((40, 56), -3.0))).astype(np.float32)
    filled = spread(values * weight[..., None], weight)
    np.testing.assert_allclose(filled, values, atol=1e-3)


# In the Restorer.


def test_a_noisy_pan_gains(restorer: Restorer, scene: U8) -> None:
    rng = np.random.default_rng(4)
    clean = [view(scene, 100 + 3 * t, 100) for t in range(8)]
    noisy = [add_noise(f, 25, rng) for f in clean]
    last = {}
    for restorer.motion in (False, True):
        restorer.reset()
        last[restorer.motion] = list(restorer.video(noisy, sigma=25))[-1]
    gain = psnr(last[True], clean[-1]) - psnr(last[False], clean[-1])
    assert gain > 1.5


def test_a_hole_on_a_pan_shows_what_was_seen(restorer: Restorer, scene: U8) -> None:
    clean = [view(scene, 100 + 3 * t, 100) for t in range(8)]
    mask = np.zeros(clean[0].shape[:2], np.uint8)
    mask[52:70, 70:88] = 1
    last = {}
    for restorer.motion in (False, True):
        restorer.reset()
        last[restorer.motion] = list(restorer.video(clean, mask))[-1]
    gain = hole_psnr(last[True], clean[-1], mask) - hole_psnr(last[False], clean[-1], mask)
    assert gain > 2
    np.testing.assert_array_equal(last[True][mask == 0], clean[-1][mask == 0])


def test_texture_that_moved_before_it_was_hidden_is_not_shown(
    restorer: Restorer, scene: U8
) -> None:
    hole = np.zeros((128, 160), np.uint8)
    hole[32:96, 48:112] = 1
    stripes = 127 + 120 * np.sin(np.arange(160) * 0.8)
    frames = []
    for t in range(6):
        frame = view(scene, 40, 40)
        frame[40:88, 56:104] = np.roll(stripes, 2 * t)[:48, None].astype(np.uint8)
        frames.append(frame)
    outs = {}
    for restorer.motion in (False, True):
        restorer.reset()
        for frame in frames[:-1]:
            restorer.frame(frame, np.zeros_like(hole))
        outs[restorer.motion] = restorer.frame(frames[-1], hole)
    stale = frames[-2]
    assert hole_psnr(outs[False], stale, hole) > 25  # it would be shown
    assert hole_psnr(outs[True], stale, hole) < 18


def test_a_cut_loses_nothing(restorer: Restorer, scene: U8) -> None:
    rng = np.random.default_rng(5)
    clean = [view(scene, 40, 40)] * 4 + [view(scene, 300, 300)] * 2
    noisy = [add_noise(f, 25, rng) for f in clean]
    restorer.motion = True
    restorer.reset()
    outs = list(restorer.video(noisy, sigma=25))
    alone = [restorer(f, sigma=25) for f in noisy]
    assert psnr(outs[4], clean[4]) > psnr(alone[4], clean[4]) - 0.1
    assert psnr(outs[5], clean[5]) > psnr(alone[5], clean[5]) + 0.5


def test_the_state_is_all_that_is_kept(restorer: Restorer, scene: U8) -> None:
    frames = [view(scene, 100 + 1.5 * t, 100) for t in range(5)]
    restorer.motion = True
    restorer.reset()
    outs = [restorer.frame(f, sigma=5) for f in frames[:4]]
    past = restorer.past
    assert past is not None
    past = past.copy()
    outs.append(restorer.frame(frames[4], sigma=5))
    restorer.reset()
    restorer.past = past
    np.testing.assert_array_equal(restorer.frame(frames[4], sigma=5), outs[-1])


def test_another_size_forgets(restorer: Restorer, scene: U8) -> None:
    restorer.motion = True
    restorer.reset()
    restorer.frame(view(scene, 40, 40), sigma=10)
    other = view(scene, 40, 40, 64, 96)
    np.testing.assert_array_equal(restorer.frame(other, sigma=10), restorer(other, sigma=10))


def test_it_is_on_where_the_network_runs_on_the_cpu() -> None:
    with (
        Restorer("nano", backend="ort", threads=1) as usual,
        Restorer("nano", backend="ort", threads=1, motion=False) as without,
    ):
        assert usual.motion
        assert not without.motion
        assert usual.identity != without.identity  # a job that goes on must not change it


@pytest.mark.parametrize(
    ("given", "motion"), [((), None), (("--motion",), True), (("--no-motion",), False)]
)
def test_the_command_passes_it_on(
    monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...], motion: bool | None
) -> None:
    from fastrestore.commands.restore import command
    from fastrestore.errors import ModelError

    def refuse(*_: object, **options: object) -> Restorer:
        assert options["motion"] is motion
        raise ModelError("seen")

    monkeypatch.setattr("fastrestore.restore.Restorer", refuse)
    source = str(sample_folder() / "vegetables.webp")
    with pytest.raises(ModelError, match="seen"):
        command.main([source, "-o", "x.png", *given], standalone_mode=False)
