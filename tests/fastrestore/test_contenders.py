from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastrestore.arrays import U8
from fastrestore.classical import DENOISERS, INPAINTERS
from fastrestore.contenders import (
    GIVEN,
    RAW,
    TOLD,
    WITHHELD,
    Contender,
    check_names,
    classical_contenders,
    fitting,
    identities,
    our_contenders,
    titled,
    untouched,
)
from fastrestore.errors import InputError
from fastrestore.noise import estimate_sigma
from fastrestore.protocol import Case
from fastrestore.restore import Restorer

HOLES = Case("rects", (("rects", 0.1),))
NOISE, FLOAT = Case("noise", sigma=25), Case("noise", sigma=25, noise="float")
ALL = Case("all", (("freeform", 0.2), ("grid", 0.1)), 25)
MODEL = "nano"


def picture() -> U8:
    y, x = np.mgrid[:48, :64]
    waves = [127 + 100 * np.sin(x / 9 + c) * np.cos(y / 13 - c) for c in range(3)]
    return np.stack(waves, -1).astype(np.uint8)


class Finder:
    """A detector that finds what it is told to."""

    def __init__(self, found: U8 | None = None) -> None:
        self.found = found

    def mask(self, image: U8, threshold: float = 0.5) -> U8:
        if self.found is not None:
            return self.found.copy()
        return (image == 0).all(2).astype(np.uint8)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def ours(stack: ExitStack, **options: Any) -> dict[tuple[str, str], Contender]:
    """By variant and the slug of the case that it fits."""
    found = our_contenders(stack, MODEL, backend="ort", threads=1, **options)
    return {(c.variant, k.slug): c for k in (HOLES, NOISE, FLOAT, ALL) for c in fitting(found, k)}


def titles(contenders: Sequence[Contender], case: Case) -> set[str]:
    return {c.title for c in fitting(contenders, case)}


# Ours.


def test_the_modes_of_ours(stack: ExitStack) -> None:
    found = ours(stack, detector=Finder())  # type: ignore[arg-type]
    assert set(found) == {
        (GIVEN, HOLES.slug),
        (RAW, HOLES.slug),
        (WITHHELD, HOLES.slug),
        (GIVEN, NOISE.slug),
        (TOLD, NOISE.slug),
        (GIVEN, ALL.slug),
        (WITHHELD, ALL.slug),
    }
    assert {c.method for c in found.values()} == {"fastrestore nano"}


def test_ours_is_what_users_get(stack: ExitStack) -> None:
    found = ours(stack)
    with Restorer(MODEL, backend="ort", threads=1) as restorer:
        d = HOLES.damage("a", picture())
        out = found[GIVEN, HOLES.slug].run("a", HOLES, d)
        assert np.array_equal(out, restorer(d.image, d.mask))
        assert d.mask is not None
        assert np.array_equal(out[d.mask == 0], d.image[d.mask == 0])
        n = NOISE.damage("a", picture())
        blind = found[GIVEN, NOISE.slug].run("a", NOISE, n)
        assert np.array_equal(blind, restorer(n.image))
        assert restorer.sigma == pytest.approx(estimate_sigma(n.image))
        told = found[TOLD, NOISE.slug].run("a", NOISE, n)
        assert np.array_equal(told, restorer(n.image, sigma=25.0))
        both = ALL.damage("a", picture())
        out = found[GIVEN, ALL.slug].run("a", ALL, both)
        assert np.array_equal(out, restorer(both.image, both.mask, sigma="auto"))


def test_a_withheld_mask_is_what_the_detector_finds(stack: ExitStack) -> None:
    d = HOLES.damage("a", np.maximum(picture(), 1))
    with Restorer(MODEL, backend="ort", threads=1) as restorer:
        wanted = restorer(d.image, d.mask, grow_px=1)  # what `restore --mask auto` does
    blind = ours(stack, detector=Finder())[WITHHELD, HOLES.slug]  # type: ignore[arg-type]
    assert np.array_equal(blind.run("a", HOLES, d), wanted)
    for value in (0, 1):  # nothing found; everything found
        finder = Finder(np.full((48, 64), value, np.uint8))
        lost = ours(stack, detector=finder)[WITHHELD, HOLES.slug]  # type: ignore[arg-type]
        assert np.array_equal(lost.run("a", HOLES, d), d.image)


def test_float_frames_reach_the_model(stack: ExitStack) -> None:
    pytest.importorskip("onnx", reason="the extra evaluate is not installed")
    found = ours(stack, noise="float")
    assert {v for v, slug in found if slug == FLOAT.slug} == {GIVEN, TOLD}
    bright = np.full((48, 64, 3), 253, np.uint8)
    d = FLOAT.damage("a", bright)
    told = found[TOLD, FLOAT.slug].run("a", FLOAT, d)
    clipped = found[TOLD, NOISE.slug].run("a", NOISE, NOISE.damage("a", bright))
    assert told.mean() > clipped.mean() + 1


# Classical ones.


def test_fast_ones_are_the_default() -> None:
    found, skipped = classical_contenders()
    assert skipped == []
    assert titles(found, HOLES) == {"Telea", "Navier-Stokes"}
    assert titles(found, NOISE) == titles(found, FLOAT) == {"bilateral", "non-local means"}
    assert titles(found, ALL) == {
        f"{a} + {b}" for a in ("Telea", "Navier-Stokes") for b in ("bilateral", "non-local means")
    }


def test_named_ones() -> None:
    found, _ = classical_contenders(["telea", "telea"])
    assert titles(found, HOLES) == {"Telea"}
    assert titles(found, NOISE) == titles(found, ALL) == set()
    with pytest.raises(InputError, match=r"method magic: not known; choose from telea, .*patch"):
        classical_contenders(["magic"])


def test_absent_packages_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "patchmatch", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    found, skipped = classical_contenders(["patchmatch", "biharmonic", "telea"])
    assert [c.method for c in found] == ["telea"]
    assert skipped == [
        "biharmonic: left out, pip install 'fastrestore[evaluate]'",
        "patchmatch: left out, pip install pypatchmatch",
    ]


def test_a_filler_is_followed_by_a_denoiser() -> None:
    (both,) = fitting(classical_contenders(["telea", "bilateral"])[0], ALL)
    d = ALL.damage("a", picture())
    assert d.mask is not None
    expected = DENOISERS["bilateral"](INPAINTERS["telea"](d.image, d.mask), 25)
    assert np.array_equal(both.run("a", ALL, d), expected)


def test_denoisers_get_what_they_can_read() -> None:
    found = classical_contenders(["bilateral", "non_local_means"])[0]
    bright = np.full((48, 64, 3), 250, np.uint8)
    d = FLOAT.damage("a", bright)
    out = {c.method: c.run("a", FLOAT, d) for c in fitting(found, FLOAT)}
    assert np.array_equal(out["non_local_means"], DENOISERS["non_local_means"](d.image, 25))
    assert out["bilateral"].mean() > DENOISERS["bilateral"](d.image, 25).mean() + 3


# All.


def test_the_input_is_untouched() -> None:
    for case in (HOLES, NOISE, FLOAT, ALL):
        d = case.damage("a", picture())
        assert untouched().fits(case)
        assert untouched().run("a", case, d) is d.image


def test_titles() -> None:
    assert titled("navier_stokes", "") == "Navier-Stokes"
    assert titled("telea + bilateral", "") == "Telea + bilateral"
    assert titled("fastrestore tiny", RAW) == "fastrestore tiny, raw"


def test_identities(stack: ExitStack) -> None:
    finder: Any = Finder()
    found = our_contenders(stack, MODEL, backend="ort", detector=finder, detector_identity="dd")
    known = identities(found)
    variants = ("", ", raw", ", mask withheld", ", sigma told")
    assert set(known) == {f"fastrestore nano{v}" for v in variants}
    assert known["fastrestore nano, mask withheld"] == known["fastrestore nano"] + " dd"
    scoped = SimpleNamespace(title="lama", scope="rects-20", identity="1")
    assert identities([scoped]) == {"lama (rects-20)": "1"}  # type: ignore[list-item]


def test_two_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match="input: two methods have this name"):
        check_names([untouched(), untouched()], [HOLES])
