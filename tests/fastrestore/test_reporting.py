from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from fastrestore.contenders import RAW
from fastrestore.measure import Line
from fastrestore.metrics import bootstrap_interval
from fastrestore.protocol import Case
from fastrestore.reporting import (
    RESAMPLES,
    SEED,
    Result,
    as_reported,
    headline,
    markdown_report,
    summarise_cases,
)

N = 20
HOLES, NOISE = Case("rects", (("rects", 0.2),)), Case("noise", sigma=25, noise="float")
CASES = {c.slug: c.to_json() for c in (HOLES, NOISE)}
RNG = np.random.default_rng(0)
BASE = RNG.uniform(20, 40, N)
GAIN = RNG.normal(1, 0.3, N)


def line(i: int, method: str, psnr: float, case: Case = HOLES, **changes: Any) -> Line:
    fields: dict[str, Any] = {
        "picture": f"p{i:02}",
        "case": case.slug,
        "method": method,
        "variant": "",
        "share": 0.191 + 0.001 * i,
        "psnr": psnr,
        "hole_psnr": psnr - 7 if case is HOLES else None,
        "ssim": 0.9,
        "lpips": 0.1,
        "edge_f1": 0.5,
        "seconds": 0.25,
    }
    return Line(**{**fields, **changes})


def lines(gain: Any = GAIN, **changes: Any) -> list[Line]:
    theirs = [line(i, "telea", BASE[i], **changes) for i in range(N)]
    return theirs + [line(i, "ours", BASE[i] + gain[i], **changes) for i in range(N)]


def results(gain: Any = GAIN, **changes: Any) -> dict[str, Result]:
    found, notes = summarise_cases(lines(gain, **changes), CASES, N, "ours")
    assert notes == []
    return {r.title: r for r in found}


def test_means_and_paired_gains_with_intervals() -> None:
    found = results()
    theirs = found["Telea"]
    assert theirs.n == N
    expected = bootstrap_interval(BASE, np.random.default_rng(SEED), RESAMPLES)
    assert theirs.mean["psnr"] == pytest.approx(expected, abs=1e-9)
    expected = bootstrap_interval(GAIN, np.random.default_rng(SEED), RESAMPLES)
    assert theirs.gain["psnr"] == pytest.approx(expected, abs=1e-9)
    low, high = theirs.gain["psnr"][1:]
    assert high - low < 0.4 < 5 < theirs.mean["psnr"][2] - theirs.mean["psnr"][1]
    assert found["ours"].gain == {}
    assert theirs.gain["lpips"] == pytest.approx((0, 0, 0))
    assert theirs.share == pytest.approx((0.2005, 0.191, 0.21))
    assert theirs.seconds == pytest.approx(0.25)


def test_order_does_not_matter() -> None:
    a, _ = summarise_cases(lines(), CASES, N, "ours")
    b, _ = summarise_cases(lines()[::-1], CASES, N, "ours")
    assert {r.title: r.gain for r in a} == {r.title: r.gain for r in b}


def test_figures_that_do_not_exist_are_absent() -> None:
    found = results(lpips=None, case=NOISE, seconds=None)
    assert set(found["Telea"].mean) == set(found["Telea"].gain) == {"psnr", "ssim", "edge_f1"}
    assert found["Telea"].seconds is None


def test_who_has_not_seen_all_is_left_out_in_words() -> None:
    found, notes = summarise_cases(lines()[1:], CASES, N, "ours")
    assert [r.title for r in found] == ["ours"]
    assert notes == [f"rects-20: Telea has seen 19 of {N} pictures and is left out"]


def test_without_ours_there_are_no_gains() -> None:
    found, _ = summarise_cases(lines()[:N], CASES, N, "ours")
    assert [r.gain for r in found] == [{}]
    assert headline(found, "ours") == []


def test_the_headline_counts_honestly() -> None:
    ahead = headline(list(results().values()), "ours")
    assert "ahead in 1 of 1 comparisons, behind in 0, open (the interval holds 0) in 0" in ahead[0]
    assert ahead[1].startswith("The smallest gain: +1.")
    assert ahead[1].endswith("dB over Telea at rects 20 %.")
    assert (
        "ahead in 0 of 1 comparisons, behind in 1"
        in headline(list(results(-GAIN).values()), "ours")[0]
    )
    noise = GAIN - GAIN.mean()
    assert "open (the interval holds 0) in 1" in headline(list(results(noise).values()), "ours")[0]


def test_input_and_our_other_models_are_no_rivals() -> None:
    found = list(results().values())
    assert headline(found, "ours", ["telea"]) == []


def report(unclipped: bool = False, **changes: Any) -> str:
    chosen = {"case": NOISE} if unclipped else {}
    raw = [line(i, "ours", BASE[i] + GAIN[i], variant=RAW, **chosen) for i in range(N)]
    found, _ = summarise_cases([*lines(**chosen), *raw], CASES, N, "ours")
    return markdown_report(found, ours="ours", about=["n pictures"], notes=["x: left out"])


def test_the_report() -> None:
    text = report()
    assert text.startswith("# ours by the paper's protocol\n\nPSNR of ours against the others")
    assert "- n pictures\n" in text
    assert "Left out:\n- x: left out\n" in text
    assert "## Rectangles" in text
    (row,) = (r for r in text.splitlines() if r.startswith("| rects 20 % ") and "Telea" in r)
    cells = [c.strip() for c in row.split("|")[1:-1]]
    assert cells[:5] == ["rects 20 %", "20.1", "Telea", "20", f"{BASE.mean():.2f}"]
    assert cells[-3].startswith(f"+{GAIN.mean():.2f} (+")
    assert cells[-1] == "250"
    (row,) = (r for r in text.splitlines() if "ours, raw" in r)
    assert "| +0.00 (+0.00 to +0.00) |" in row
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({r.count("|") for r in block.splitlines()}) == 1


def test_foreign_figures_stand_apart() -> None:
    text = report()
    ours, _, theirs = text.partition("## As reported elsewhere, not measured here")
    assert "30.24" in theirs
    assert "EdgeConnect | 26.42 | 0.891" in theirs
    assert "EdgeConnect" not in ours
    assert "FFDNet" not in text  # of another test than was run
    assert "FFDNet" in report(unclipped=True)
    assert "FFDNet" in as_reported(True)


def test_json() -> None:
    found = json.loads(json.dumps([r.to_json() for r in results().values()]))
    assert found[0]["mean"]["psnr"][0] == pytest.approx(BASE.mean())
    assert found[0]["case"] == "rects-20"
