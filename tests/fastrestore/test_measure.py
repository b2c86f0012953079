from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest

from fastrestore.arrays import U8
from fastrestore.contenders import GIVEN, RAW, Contender
from fastrestore.errors import InputError
from fastrestore.evaluate import CAP_DB
from fastrestore.measure import LEAST_PX, Line, measure, open_lpips
from fastrestore.metrics import edge_f1, hole_psnr, psnr, ssim
from fastrestore.protocol import Case, Damaged

HOLES, NOISE = Case("rects", (("rects", 0.2),)), Case("noise", sigma=25)


def picture() -> U8:
    y, x = np.mgrid[:40, :48]
    waves = [127 + 100 * np.sin(x / 4 + c) * np.cos(y / 6 - c) for c in range(3)]
    return np.stack(waves, -1).astype(np.uint8)


def contender(
    run: Callable[[Damaged], U8] = lambda d: d.image,
    method: str = "m",
    variant: str = GIVEN,
    **more: bool,
) -> Contender:
    return Contender(method, variant, "1", lambda _: True, lambda _n, _c, d: run(d), **more)


def lines(case: Case, *contenders: Contender, **options: object) -> list[Line]:
    damaged = case.damage("p", picture())
    options.setdefault("distance", None)
    return list(measure("p", case, damaged, contenders, **options))  # type: ignore[arg-type]


def test_figures_of_a_picture_with_a_hole() -> None:
    d = HOLES.damage("p", picture())
    assert d.mask is not None
    (line,) = lines(HOLES, contender(), distance=lambda a, b: 0.25)
    assert line.key == ("p", "rects-20", "m", GIVEN)
    assert line.share == pytest.approx(d.mask.mean(), abs=1e-6)
    assert line.psnr == pytest.approx(psnr(d.image, d.clean), abs=1e-5)
    assert line.hole_psnr == pytest.approx(hole_psnr(d.image, d.clean, d.mask), abs=1e-5)
    assert line.ssim == pytest.approx(ssim(d.image, d.clean), abs=1e-6)
    assert line.edge_f1 == pytest.approx(edge_f1(d.image, d.clean, d.mask), abs=1e-6)
    assert line.lpips == 0.25
    assert line.seconds is not None


def test_figures_of_noise() -> None:
    d = NOISE.damage("p", picture())
    (line,) = lines(NOISE, contender())
    assert (line.hole_psnr, line.lpips, line.share) == (None, None, 0)
    assert line.edge_f1 == pytest.approx(edge_f1(d.image, d.clean), abs=1e-6)


def test_a_perfect_picture_is_capped() -> None:
    (line,) = lines(HOLES, contender(lambda d: d.clean))
    assert (line.psnr, line.hole_psnr, line.edge_f1) == (CAP_DB, CAP_DB, 1)


def test_equal_pictures_are_measured_once() -> None:
    asked: list[int] = []

    def distance(a: U8, b: U8) -> float:
        asked.append(1)
        return 0.5

    found = lines(HOLES, contender(), contender(variant=RAW), distance=distance)
    assert len(found) == 2
    assert len(asked) == 1
    assert (found[0].psnr, found[0].lpips) == (found[1].psnr, found[1].lpips)


def test_what_is_done_is_not_run_again() -> None:
    def never(_: Damaged) -> U8:
        raise AssertionError("it ran")

    found = lines(HOLES, contender(never), contender(method="n"), done=lambda k: k[2] == "m")
    assert [line.method for line in found] == ["n"]


def test_a_contender_that_changes_its_input_is_found_out() -> None:
    def cheat(d: Damaged) -> U8:
        d.image[0, 0] += 1
        return d.image.copy()

    with pytest.raises(InputError, match=r"m: wrote into its input \(p\)"):
        lines(HOLES, contender(cheat))


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda d: d.image[:-1], "p comes back as 48x39 uint8, not 48x40"),
        (lambda d: d.image.astype(np.float32), "float32"),
    ],
)
def test_another_size_or_type_is_refused(run: Callable[[Damaged], U8], words: str) -> None:
    with pytest.raises(InputError, match=words):
        lines(HOLES, contender(run))


def test_time_of_files_is_not_ours() -> None:
    (line,) = lines(HOLES, contender(timed=False))
    assert line.seconds is None


def test_without_torch_lpips_is_left_out_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    distance, words = open_lpips()
    assert distance is None
    assert words.startswith("LPIPS: left out (torch is not installed")
    assert "\n" not in words


def test_without_weights_lpips_is_left_out_in_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    pytest.importorskip("torch", reason="the extra train is not installed")
    monkeypatch.setenv("FASTRESTORE_PERCEPTUAL", str(tmp_path))
    distance, words = open_lpips()
    assert distance is None
    assert words.startswith("LPIPS: left out (")


def test_lpips() -> None:
    pytest.importorskip("torch", reason="the extra train is not installed")
    distance, words = open_lpips(1)
    if distance is None:
        pytest.skip(words)
    d = Case("noise", sigma=50).damage("p", np.kron(picture(), np.ones((2, 2, 1), np.uint8)))
    assert len(words) == 64
    assert distance(d.clean, d.clean) == 0
    assert distance(d.image, d.clean) == pytest.approx(distance(d.clean, d.image), abs=1e-6)
    assert 0.1 < distance(d.image, d.clean) < 2
    assert min(d.clean.shape[:2]) >= LEAST_PX
