"""Plots of reports: that they are there, whole and repeatable; their looks are for the eye."""

from __future__ import annotations

import sys
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from fastrestore.bench.plot import check_format, draw
from fastrestore.bench.record import Labels, Report, Run
from fastrestore.bench.timing import Samples
from fastrestore.errors import InputError, MissingExtraError

pytest.importorskip("matplotlib", reason="the extra plot is not installed")
ENV: dict[str, Any] = {
    "version": "0.1.0",
    "cpu": "Fast CPU",
    "python": "CPython 3.11.7",
    "usable_cores": 2,
    "load_average": None,
    "memory_mb": {"total": None},
    "clocks_mhz": {"now": None, "max": None},
    "is_virtual": False,
    "packages": {},
}


def report() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    runs = []
    for shape, scale in (((256, 512, 3), 1.0), ((64, 64, 3), 100.0)):
        for i, model in enumerate(("tiny", "nano")):
            ms = (1 + scale * i) * rng.uniform(1, 2, 50)
            labels = Labels("ort", model, "fp32", "fill")
            runs.append(Run("host", labels, shape, Samples(ms, ms, (25, 25))))
    return Report(ENV, {}, runs).to_dict()


def test_an_svg_names_everything_that_was_measured() -> None:
    data = draw(report(), "svg")
    assert ElementTree.fromstring(data).tag.endswith("svg")  # noqa: S314  # our own
    text = data.decode()
    for words in ("Fast CPU", "host 512x256 fill", "host 64x64 fill", "ort tiny fp32", "ort nano"):
        assert words in text
    assert draw(report(), "svg") == data


def test_a_png() -> None:
    assert draw(report(), "png").startswith(b"\x89PNG")


def test_formats() -> None:
    assert [check_format(f"a/b.{s}") for s in ("svg", "PNG")] == ["svg", "png"]
    with pytest.raises(InputError, match=r"b\.pdf: end its name in \.svg or \.png"):
        check_format("b.pdf")


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"fastrestore\[plot\]"):
        check_format("a.svg")
