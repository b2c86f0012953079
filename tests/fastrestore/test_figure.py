from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastrestore.contenders import RAW, WITHHELD
from fastrestore.errors import InputError, MissingExtraError
from fastrestore.figure import OTHERS, OURS, _styles, curve
from fastrestore.reporting import Result

OUR_NAMES = ["fastrestore tiny", "fastrestore tiny-sharp"]


def result(family: str, ratio: float, method: str, variant: str = "", **changes: Any) -> Result:
    psnr = 35 - 20 * ratio
    fields: dict[str, Any] = {
        "case": f"{family}-{100 * ratio:g}",
        "label": f"{family} {100 * ratio:g} %",
        "family": family,
        "ratio": ratio,
        "share": (ratio, ratio, ratio),
        "sigma": 0.0,
        "method": method,
        "variant": variant,
        "n": 9,
        "mean": {"psnr": (psnr, psnr - 1, psnr + 1), "ssim": (0.9, 0.8, 0.95)},
        "gain": {},
        "seconds": 0.1,
    }
    return Result(**{**fields, **changes})


def results(families: tuple[str, ...] = ("freeform", "grid")) -> list[Result]:
    return [
        result(family, ratio, method, variant)
        for family in families
        for ratio in (0.1, 0.2, 0.4)
        for method, variant in (
            ("fastrestore tiny", ""),
            ("fastrestore tiny", WITHHELD),
            ("fastrestore tiny", RAW),
            ("telea", ""),
            ("navier_stokes", ""),
            ("input", ""),
        )
    ]


def draw(found: list[Result]) -> np.ndarray:
    pytest.importorskip("matplotlib", reason="the extra evaluate is not installed")
    return np.asarray(Image.open(io.BytesIO(curve(found, OUR_NAMES, "n = 9"))).convert("RGB"))


def has(image: np.ndarray, colour: str) -> bool:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.abs(image.astype(int) - wanted).max(2) <= 2).sum() > 50)


def test_the_curve_is_drawn() -> None:
    image = draw(results())
    assert has(image, OURS[0])
    assert has(image, OTHERS[0])
    assert has(image, OTHERS[1])
    assert not has(image, OTHERS[2])
    assert not has(image, OURS[1])
    assert (image[:3] == 255).all()  # nothing runs out of the picture
    assert (image[-3:] == 255).all()


def test_a_column_a_family_and_a_row_a_metric() -> None:
    one = draw([result("freeform", 0.2, "telea")])
    other = {"psnr": (30, 29, 31), "lpips": (0.1, 0.05, 0.2), "ssim": (0.9, 0.8, 1.0)}
    many = [result(f, 0.2, "telea", mean=other) for f in ("rects", "grid", "thin")]
    assert (draw(many).shape[:2] > np.array(one.shape[:2])).all()


def test_the_same_results_give_the_same_bytes() -> None:
    pytest.importorskip("matplotlib", reason="the extra evaluate is not installed")
    few = results(("freeform",))[:2]
    assert curve(few, OUR_NAMES) == curve(few, OUR_NAMES)


def test_every_method_looks_different() -> None:
    methods = ["telea", "navier_stokes", "biharmonic", "patchmatch", "lama", "mat", "migan", "ict"]
    found = [result("grid", 0.2, m) for m in [*methods, *OUR_NAMES]]
    found.append(result("grid", 0.2, OUR_NAMES[0], WITHHELD))
    looks = [tuple(sorted(s.items())) for s in _styles(found, OUR_NAMES).values()]
    assert len(looks) == 11
    assert len(set(looks)) == len(looks)


def test_nothing_to_draw() -> None:
    with pytest.raises(InputError, match="no curve to draw"):
        curve([], OUR_NAMES)
    with pytest.raises(InputError, match="no curve to draw"):
        curve([result("noise", 0.0, "bilateral", sigma=25)], OUR_NAMES)


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [m for m in sys.modules if m.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"matplotlib.* is not installed: .*\[evaluate\]"):
        curve(results(), OUR_NAMES)
