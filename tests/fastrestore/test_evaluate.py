from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from fastrestore.arrays import U8
from fastrestore.classical import DENOISERS, INPAINTERS
from fastrestore.degrade import add_noise, make_mask, punch, seed_for
from fastrestore.errors import InputError
from fastrestore.evaluate import (
    CAP_DB,
    Damage,
    Row,
    Score,
    classical_methods,
    markdown,
    score,
    summarise,
)
from fastrestore.metrics import hole_psnr, psnr, ssim

H, W = 32, 40


def picture(seed: int = 0) -> U8:
    """Smooth, so that a hole can be filled."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:H, :W]
    waves = [np.sin(x / rng.uniform(4, 9) + y / rng.uniform(4, 9)) for _ in range(3)]
    return (127.5 + 100 * np.dstack(waves)).astype(np.uint8)


def nothing(image: U8, _mask: U8 | None, _sigma: float) -> U8:
    return image


def entry(name: str, method: str, figure: float, **changes: Any) -> Score:
    fields: dict[str, Any] = {
        "picture": name,
        "damage": "d",
        "method": method,
        "psnr": figure,
        "hole_psnr": figure - 7,
        "ssim": 0.5,
        "seconds": 0.25,
    }
    return Score(**{**fields, **changes})


# Damage.


@pytest.mark.parametrize(
    ("damage", "label"),
    [
        (Damage("freeform", 0.2), "freeform 20 %"),
        (Damage("grid", 0.125), "grid 12.5 %"),
        (Damage(sigma=25.0), "sigma 25"),
        (Damage("rects", 0.1, 7.5), "rects 10 % + sigma 7.5"),
    ],
)
def test_labels(damage: Damage, label: str) -> None:
    assert damage.label == label


def test_a_damage_that_does_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="no damage: give a kind of holes, a sigma, or both"):
        Damage(ratio=0.2)


def test_damage_is_that_of_the_core_and_depends_on_the_name() -> None:
    damage, clean = Damage("rects", 0.2, 10.0), picture()
    damaged, mask = damage.apply("a", clean)
    rng = seed_for("a", 0.2)
    wanted = make_mask("rects", rng, H, W, 0.2)
    assert mask is not None
    assert np.array_equal(mask, wanted)
    assert np.array_equal(damaged, punch(add_noise(clean, 10, rng), wanted))
    assert not damaged[mask > 0].any()
    again, other = damage.apply("a", clean)[0], damage.apply("b", clean)[0]
    assert np.array_equal(damaged, again)
    assert not np.array_equal(damaged, other)


def test_noise_alone_has_no_mask() -> None:
    damaged, mask = Damage(sigma=10).apply("a", picture())
    assert mask is None
    assert 8 < (damaged.astype(float) - picture()).std() < 12


def test_cells_of_the_grid() -> None:
    _, mask = Damage("grid", 0.25, cell_px=8).apply("a", picture())
    assert mask is not None
    blocks = mask.reshape(H // 8, 8, W // 8, 8).mean((1, 3))
    assert set(np.unique(blocks)) == {0, 1}
    assert blocks.mean() == 0.25


# Scores.


def test_score_measures_every_method_on_the_same_bytes() -> None:
    seen: list[tuple[bytes, bytes | None, float]] = []

    def spy(image: U8, mask: U8 | None, sigma: float) -> U8:
        seen.append((image.tobytes(), None if mask is None else mask.tobytes(), sigma))
        return image

    damage = Damage("rects", 0.2, 10.0)
    pictures = [("a", picture(0)), ("b", picture(1))]
    found = list(score(pictures, damage, {"one": spy, "two": spy}))
    assert [(s.picture, s.method) for s in found] == [
        ("a", "one"),
        ("a", "two"),
        ("b", "one"),
        ("b", "two"),
    ]
    assert seen[0] == seen[1]
    assert seen[2] == seen[3]
    assert seen[0] != seen[2]
    assert {s for _, _, s in seen} == {10}
    for name, clean in pictures:
        damaged, mask = damage.apply(name, clean)
        assert mask is not None
        first = next(s for s in found if s.picture == name)
        assert first.psnr == psnr(damaged, clean)
        assert first.hole_psnr == hole_psnr(damaged, clean, mask)
        assert first.ssim == ssim(damaged, clean)
        assert first.damage == damage.label
        assert first.seconds >= 0


def test_a_perfect_result_is_capped() -> None:
    clean = picture()
    for damage in (Damage("rects", 0.2), Damage(sigma=5)):
        (found,) = score([("a", clean)], damage, {"cheat": lambda *_: clean})
        assert found.psnr == CAP_DB == 100
        assert found.hole_psnr == (CAP_DB if damage.holes else None)
        assert found.ssim == pytest.approx(1)


def test_scores_come_as_they_are_ready() -> None:
    def pictures() -> Any:
        yield "a", picture()
        raise RuntimeError("too far")

    scores = score(pictures(), Damage(sigma=5), {"input": nothing})
    assert next(scores).picture == "a"
    with pytest.raises(RuntimeError, match="too far"):
        next(scores)


def test_too_small_a_picture_is_named() -> None:
    with pytest.raises(InputError, match=r"^mini: .*at least 11 px"):
        list(score([("mini", picture()[:10])], Damage(sigma=5), {"input": nothing}))


# Means, paired gains, intervals.


def test_gains_are_paired_by_picture() -> None:
    """Pictures differ by 20 dB, methods by 1 dB: only the pairs show it."""
    rng = np.random.default_rng(0)
    names = [f"p{i}" for i in range(40)]
    base = dict(zip(names, rng.uniform(20, 40, 40), strict=True))
    gain = dict(zip(names, rng.normal(1, 0.2, 40), strict=True))
    ours = [entry(n, "ours", base[n] + gain[n]) for n in names]
    theirs = [entry(n, "theirs", base[n]) for n in reversed(names)]  # order does not matter
    first, second = summarise([*theirs, *ours], "ours")
    rows = {r.method: r for r in (first, second)}
    assert rows["ours"].gain is None
    assert rows["ours"].psnr == pytest.approx(np.mean([s.psnr for s in ours]))
    found = rows["theirs"].gain
    assert found is not None
    mean, low, high = found
    assert mean == pytest.approx(np.mean(list(gain.values())))
    assert 0.85 < low < mean < high < 1.15
    error = np.std(list(gain.values())) / math.sqrt(40)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.2)


def test_one_picture_has_an_interval_of_no_width() -> None:
    rows = summarise([entry("a", "ours", 31), entry("a", "theirs", 30)], "ours")
    assert rows[1].gain == (1, 1, 1)


def test_means() -> None:
    scores = [
        entry("a", "m", 30, hole_psnr=20, ssim=0.5, seconds=0.1),
        entry("b", "m", 40, hole_psnr=None, ssim=0.7, seconds=0.3),
    ]
    (row,) = summarise(scores, "ours")
    assert row.to_json() == {
        "damage": "d",
        "method": "m",
        "n": 2,
        "psnr": 35,
        "hole_psnr": 20,
        "ssim": pytest.approx(0.6),
        "seconds": pytest.approx(0.2),
        "gain": None,
    }
    json.dumps(row.to_json())


def test_damages_are_apart_and_in_order() -> None:
    scores = [
        entry("a", method, figure, damage=damage)
        for damage, figure in (("z", 30), ("a", 20))
        for method in ("ours", "theirs")
    ]
    rows = summarise(scores, "ours")
    assert [(r.damage, r.method, r.psnr) for r in rows] == [
        ("z", "ours", 30),
        ("z", "theirs", 30),
        ("a", "ours", 20),
        ("a", "theirs", 20),
    ]


def test_repeatable() -> None:
    rng = np.random.default_rng(1)
    scores = [entry(f"p{i}", m, rng.uniform(20, 40)) for i in range(9) for m in ("ours", "x")]
    assert summarise(scores, "ours") == summarise(scores, "ours")
    assert summarise(scores, "ours", seed=1)[1].gain != summarise(scores, "ours", seed=2)[1].gain


def test_methods_that_saw_different_pictures_are_refused() -> None:
    scores = [entry("a", "ours", 30), entry("b", "ours", 30), entry("a", "theirs", 30)]
    with pytest.raises(InputError, match="d: theirs and ours saw different pictures"):
        summarise(scores, "ours")
    scores[1] = entry("c", "theirs", 30)
    with pytest.raises(InputError, match="saw different pictures"):
        summarise(scores, "ours")


def test_two_pictures_of_one_name_are_refused() -> None:
    scores = [entry("a", m, f) for f in (30, 20) for m in ("ours", "theirs")]
    with pytest.raises(InputError, match=r"^a: "):
        summarise(scores, "ours")


def test_markdown() -> None:
    rows = [
        Row("freeform 20 %", "ours", 12, 30.126, 23.01, 0.98765, 0.0104, None),
        Row("freeform 20 %", "theirs", 12, 28.0, None, 0.9, 1.5, (2.126, -1.004, 3.0)),
    ]
    assert markdown(rows).splitlines()[2:] == [
        "| freeform 20 % | ours | 12 | 30.13 | 23.01 | 0.9877 |  | 10 |",
        "| freeform 20 % | theirs | 12 | 28.00 |  | 0.9000 | +2.13 (-1.00 to +3.00) | 1500 |",
    ]
    head, rule = markdown([]).splitlines()
    assert head.count("|") == rule.count("|") == 9
    assert set(rule) == {"|", "-", " "}


# The methods to compare with.


def test_inpainters_for_holes_and_denoisers_for_noise() -> None:
    assert set(classical_methods(Damage("rects", 0.2))) == {"input", *INPAINTERS}
    assert set(classical_methods(Damage("rects", 0.2, 25))) == {"input", *INPAINTERS}
    assert set(classical_methods(Damage(sigma=25))) == {"input", *DENOISERS}
    assert set(classical_methods(Damage("rects", 0.2), ["telea"])) == {"input", "telea"}
    with pytest.raises(InputError, match="telea: does not fit sigma 25"):
        classical_methods(Damage(sigma=25), ["telea"])
    assert set(classical_methods(Damage(sigma=25), [])) == {"input"}


def test_patchmatch_runs_only_when_named() -> None:
    damage = Damage("rects", 0.2)
    assert set(classical_methods(damage, ["patchmatch"])) == {"input", "patchmatch"}
    assert "patchmatch" not in classical_methods(damage)


def test_unknown_methods_are_refused_with_the_known() -> None:
    words = r"^method magic: not known; choose from telea, .*bilateral"
    with pytest.raises(InputError, match=words):
        classical_methods(Damage("rects", 0.2), ["telea", "magic"])


@pytest.mark.parametrize("name", ["telea", "navier_stokes"])
def test_inpainters_fill_and_keep(name: str) -> None:
    damage, clean = Damage("rects", 0.1), picture()
    damaged, mask = damage.apply("a", clean)
    assert mask is not None
    method = classical_methods(damage)[name]
    out = method(damaged, mask, 0.0)
    assert np.array_equal(out[mask == 0], clean[mask == 0])
    assert psnr(out, clean) > psnr(damaged, clean) + 5
    assert np.array_equal(method(damaged, None, 0.0), damaged)
    assert np.array_equal(classical_methods(damage)["input"](damaged, mask, 0.0), damaged)


@pytest.mark.parametrize("name", DENOISERS)
def test_denoisers_are_told_the_sigma(name: str) -> None:
    method = classical_methods(Damage(sigma=25))[name]
    noisy, _ = Damage(sigma=25).apply("a", picture())
    assert np.array_equal(method(noisy, None, 0.0), noisy)
    assert psnr(method(noisy, None, 25.0), picture()) > psnr(noisy, picture()) + 1
