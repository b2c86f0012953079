"""The quality report: figures, composites, tables."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fastrestore.arrays import F32, U8
from fastrestore.errors import InputError
from fastrestore.export.quality import BOTH, CASES, HOLES, NOISE, UNMEASURED, composed, report
from fastrestore.metrics import hole_psnr, psnr

RNG = np.random.default_rng(0)
PICTURES = {f"p{i}": RNG.integers(0, 256, (70, 90, 3), np.uint8) for i in range(2)}


def grey(frame: U8, mask: U8, state: U8, sigma: F32) -> tuple[U8, U8]:
    """Give grey where there is a hole, and a level more elsewhere."""
    assert frame.shape[1] % 64 == frame.shape[2] % 64 == 0
    assert state.shape == (*frame.shape[:3], 4)
    assert sigma.dtype == np.float32
    known = np.minimum(frame, 254) + np.uint8(1)
    return np.where(mask > 0, np.uint8(128), known), state


def darker(frame: U8, mask: U8, state: U8, sigma: F32) -> tuple[U8, U8]:
    restored, state = grey(frame, mask, state, sigma)
    return np.where(mask > 0, np.uint8(118), restored), state


def test_cases_are_the_four_of_the_gate() -> None:
    shares = [(sum(r for _, r in c.holes), c.sigma) for c in CASES]
    assert shares == [(0.2, 0), (0.4, 0), (0, 25), (0.2, 25)]


def test_known_pixels_are_the_inputs_own_where_it_is_clean() -> None:
    damaged = HOLES.damage("p0", PICTURES["p0"])
    assert damaged.mask is not None
    out = composed(grey, damaged)
    known = damaged.mask == 0
    assert np.array_equal(out[known], damaged.image[known])
    assert (out[~known] == 128).all()
    noisy = BOTH.damage("p0", PICTURES["p0"])
    assert not np.array_equal(composed(grey, noisy)[known], noisy.image[known])


def test_figures_are_means_over_pictures() -> None:
    found = report({"FP32": grey, "dark": darker}, "FP32", PICTURES, cases=[HOLES])
    row = next(r for r in found.rows if r.artefact == "dark")
    wholes, holes, near = [], [], []
    for name, clean in PICTURES.items():
        d = HOLES.damage(name, clean)
        assert d.mask is not None
        a, b = composed(grey, d), composed(darker, d)
        wholes.append((psnr(a, clean), psnr(b, clean)))
        holes.append((hole_psnr(a, clean, d.mask), hole_psnr(b, clean, d.mask)))
        near.append(psnr(a, b))
    reference, own = np.mean(wholes, 0)
    assert row.psnr == pytest.approx(own)
    assert row.psnr_lost == pytest.approx(reference - own)
    assert row.hole_psnr_lost == pytest.approx(np.mean(holes, 0)[0] - np.mean(holes, 0)[1])
    assert row.psnr_to_reference == pytest.approx(np.mean(near))
    assert row.levels_to_reference == 10
    assert row.pictures == 2


def test_no_hole_no_hole_figure() -> None:
    found = report({"FP32": grey}, "FP32", PICTURES, cases=[NOISE])
    assert found.rows[0].hole_psnr is None
    assert found.rows[0].psnr_lost == 0


def test_lpips_is_measured_or_said_not_to_be() -> None:
    def distance(a: U8, b: U8) -> float:
        return float(np.abs(a.astype(float) - b).mean())

    forms = {"FP32": grey, "dark": darker}
    without = report(forms, "FP32", PICTURES, cases=[HOLES])
    assert without.rows[1].lpips is without.rows[1].lpips_lost is None
    assert UNMEASURED in without.markdown()
    assert without.lpips == UNMEASURED
    found = report(forms, "FP32", PICTURES, cases=[HOLES], distance=distance, lpips="abc")
    first, second = found.rows
    assert first.lpips is not None
    assert second.lpips is not None
    assert second.lpips_lost == pytest.approx(second.lpips - first.lpips)
    assert UNMEASURED not in found.markdown()


def test_tables() -> None:
    found = report({"FP32": grey, "dark": darker}, "FP32", PICTURES, cases=[HOLES, NOISE])
    data = json.loads(json.dumps(found.to_json()))
    assert [r["artefact"] for r in data["rows"]] == ["FP32", "dark"] * 2
    lines = found.markdown().splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert f"({found.rows[1].psnr_lost:+.3f})" in lines[3]


def test_wrong_calls_are_refused() -> None:
    with pytest.raises(InputError, match="FP16: not among FP32"):
        report({"FP32": grey}, "FP16", PICTURES)
    with pytest.raises(InputError, match="no pictures"):
        report({"FP32": grey}, "FP32", {})
