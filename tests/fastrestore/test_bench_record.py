"""Reports: their form, what is refused, text, spreadsheet and comparison."""

from __future__ import annotations

import csv
import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastrestore.bench import compare as comparing
from fastrestore.bench import table
from fastrestore.bench.record import (
    Labels,
    Report,
    Run,
    check_report,
    key,
    read_report,
    to_json,
)
from fastrestore.bench.stats import Percentiles
from fastrestore.bench.timing import Samples
from fastrestore.errors import InputError

LABELS = Labels("fake", "tiny", "fp32", "fill")
ENV: dict[str, Any] = {
    "version": "0.1.0",
    "cpu": "Fast CPU",
    "machine": "x86_64",
    "python": "CPython 3.11.7",
    "usable_cores": 2,
    "load_average": [0.1, 0.1, 0.1],
    "memory_mb": {"total": 8192},
    "clocks_mhz": {"now": [2000.0, 2100.0], "max": None, "governor": None},
    "is_virtual": True,
    "packages": {"onnxruntime": "1.32.0", "openvino": None},
    "models": {"tiny": "ab" * 32},
    "gpu": None,
    "jetson": None,
    "warnings": ["from the environment"],
}


def samples(ms: list[float], turns: int = 1) -> Samples:
    wall = np.array(ms)
    return Samples(wall, 2 * wall, tuple(len(part) for part in np.array_split(wall, turns)))


def run(ms: list[float], turns: int = 1, **changes: Any) -> Run:
    options: dict[str, Any] = {
        "level": "host",
        "labels": LABELS,
        "shape": (8, 6, 3),
        "sha256": {"model": "ab" * 32},
        **changes,
    }
    return Run(samples=samples(ms, turns), **options)


def report(*runs: Run, quiet: dict[str, Any] | None = None, **env: Any) -> dict[str, Any]:
    made = Report({**ENV, **env}, {"seconds": 1.0}, runs, quiet or {}, ["left out: x"], ["noisy"])
    found: dict[str, Any] = json.loads(to_json(made.to_dict()))
    return found


def test_report_has_the_documented_form() -> None:
    r = report(run([1.0, 2.0, 3.0]))
    names = ["schema", "env", "options", "runs", "ratios", "quiet", "notes", "warnings"]
    assert list(r) == names
    assert r["schema"] == 2
    (one,) = r["runs"]
    assert (one["level"], one["shape"], one["precision"]) == ("host", [8, 6, 3], "fp32")
    assert (one["n"], one["ms"]["p50"], one["cpu_ms"]["p50"]) == (3, 2, 4)
    assert one["samples_ms"] == [1, 2, 3]
    assert one["turns"] == [3]
    assert (one["metric"], one["per_second"]) == ("p90", 500)
    assert r["warnings"][:2] == ["from the environment", "noisy"]
    assert "host 6x8 fill fake tiny fp32: 3 samples alone" in r["warnings"][2]


def test_unstable_lines_are_one_warning() -> None:
    wild = report(run([1.0, 9.0] * 10), run([2.0] * 20, labels=LABELS._replace(model="nano")))
    (said,) = [w for w in wild["warnings"] if "unstable" in w]
    assert said.startswith("1 of 2 lines are unstable (cv above 0.2), most of all host 6x8 fill")
    assert len(report(run([2.0] * 20))["warnings"]) == 2


def test_numbers_of_a_list_stand_in_one_line() -> None:
    text = to_json(Report(ENV, {}, [run([1.0, 2.0, 3.0])]).to_dict())
    assert '"samples_ms": [ 1.0, 2.0, 3.0 ]' in text
    assert '"warnings": [\n' in text


def test_what_is_not_a_number_is_null() -> None:
    idle = report(run([1.0] * 20, power=[{"mean_w": float("nan")}]))
    assert idle["runs"][0]["power"] == [{"mean_w": None}]


@pytest.mark.parametrize(
    ("changes", "rate"),
    [
        ({}, 500),  # 1 / p50
        ({"labels": LABELS._replace(scenario="multi-stream", streams=2), "items": 2}, None),
        ({"labels": LABELS._replace(scenario="offline"), "items": 6}, 2000),  # of all the time
        ({"level": "engine", "items": 3, "shape": (3, 8, 6, 3)}, 1000),
        ({"level": "pipeline", "per_second": 7.5}, 7.5),
    ],
)
def test_pictures_a_second(changes: dict[str, Any], rate: float | None) -> None:
    assert run([1.0, 2.0, 6.0], **changes).rate == rate


def test_runs_are_named_by_what_they_share_and_what_they_are() -> None:
    batch = run([1.0], level="engine", shape=(4, 8, 6, 3), labels=Labels("ort", "tiny")).to_dict()
    assert key(batch) == "engine 6x8 batch 4 ort tiny fp32"
    offline = run([1.0], labels=LABELS._replace(scenario="offline", precision="")).to_dict()
    assert key(offline) == "host 6x8 fill offline streams 1 fake tiny"


def test_ratios_are_to_the_first_of_a_group_round_by_round() -> None:
    a = [10.0, 10.0, 40.0, 40.0] * 5
    fast = run([0.5 * v for v in a], 10, labels=LABELS._replace(model="nano"))
    alone = run(a, 10, shape=(9, 9, 3))
    r = report(run(a, 10), fast, alone)
    (ratio,) = r["ratios"]
    assert ratio["over"] == "host 6x8 fill fake tiny fp32"
    assert (ratio["ratio"], ratio["low"], ratio["high"]) == (0.5, 0.5, 0.5)
    assert (ratio["paired"], ratio["cpu_ratio"]) == (True, 0.5)
    few = report(run(a, 2), run(a, 2, labels=LABELS._replace(model="nano")))["ratios"][0]
    assert few["paired"] is False
    assert few["low"] < 1 < few["high"]


# Files.


def test_a_report_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    wanted = report(run([1.0, 2.0]))
    path.write_text(json.dumps(wanted))
    assert read_report(path) == wanted


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, r"a\.json: not a report \(No such file"),
        ("hello", r"a\.json: not a report \(Expecting"),
        ("[]", r"a\.json: not a report of"),
        ("{}", r"a\.json: not a report of"),
        ('{"schema": 1, "env": {}, "runs": []}', "has schema 1, this version reads 2; measure"),
        ('{"schema": 2}', "a damaged report, see env, options, runs, ratios, quiet, notes, warn"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_report(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"samples_ms": [0.0, 1.0]}, "times"),
        ({"samples_ms": [1.0]}, "times"),
        ({"ms": {"p50": 1}}, "TypeError"),
        ({"shape": []}, "ValueError"),
        ({"turns": "no"}, "TypeError"),
        ({"env": {"cpu": "x"}}, "KeyError"),
    ],
)
def test_damaged_runs_are_refused(change: dict[str, Any], words: str) -> None:
    broken = report(run([1.0, 2.0]))
    (broken if "env" in change else broken["runs"][0]).update(change)
    with pytest.raises(InputError, match=f"x: a damaged report, see .*{words}"):
        check_report(broken, "x")


# Comparison.


def noisy(mean_ms: float, n: int = 300, seed: int = 0) -> list[float]:
    rng = np.random.default_rng(seed)
    return [float(v) for v in mean_ms * np.exp(rng.normal(0, 0.05, n))]


quick = partial(comparing.compare, resamples=200)


def test_compare_finds_a_difference_and_its_size() -> None:
    (row,) = quick(report(run(noisy(10))), report(run(noisy(8, seed=1))))
    assert row.verdict == "b is faster"
    assert row.ratio is not None
    assert row.low is not None
    assert row.high is not None
    assert row.low < 0.8 < row.high < 1
    assert row.low < row.ratio < row.high
    assert row.high - row.low < 0.05
    assert row.cpu_ratio == pytest.approx(0.8, abs=0.02)
    (back,) = quick(report(run(noisy(8, seed=1))), report(run(noisy(10))))
    assert back.verdict == "b is slower"


def test_compare_finds_no_difference_in_the_same_thing() -> None:
    (row,) = quick(report(run(noisy(10))), report(run(noisy(10, seed=1))))
    assert row.verdict == "no difference"


def test_compare_interval_is_wider_when_neighbours_are_alike() -> None:
    rng = np.random.default_rng(3)
    independent = [float(v) for v in np.exp(rng.normal(0, 0.3, 512))]
    in_bursts = [float(v) for v in np.repeat(np.exp(rng.normal(0, 0.3, 64)), 8)]
    one = report(run([1.0]))
    (a,), (b,) = (quick(one, report(run(x))) for x in (independent, in_bursts))
    widths = [(r.high or 0) - (r.low or 0) for r in (a, b)]
    assert widths[1] > 1.7 * widths[0]


def test_compare_is_repeatable_and_pools_equal_runs() -> None:
    a, b = report(run(noisy(10))), report(run(noisy(9, seed=1)))
    assert quick(a, b) == quick(a, b)
    a["runs"].append(report(run([100.0] * 901))["runs"][0])
    (row,) = quick(a, b)
    assert row.p50_a_ms == 100


def test_compare_shows_runs_that_one_report_lacks() -> None:
    b = report(run(noisy(9), labels=LABELS._replace(model="nano")))
    rows = quick(report(run(noisy(10))), b)
    assert [(r.verdict, r.ratio) for r in rows] == [("only in a", None), ("only in b", None)]
    lines = table.comparison(rows).splitlines()
    assert lines[0].endswith("tiny fp32: only in a, p50 9.96 -> - ms")


@pytest.mark.parametrize(
    ("busy", "words"),
    [
        ({"load_average": [1.1, 0, 0]}, r"b: made at load 1\.1 on 2 cores"),
        ({"quiet": {"others_cpu": 0.3}}, "b: other processes used 30% of the cores"),
        ({"gpu": {"name": "A", "driver": "1", "processes": 1}}, "b: other processes computed on"),
    ],
)
def test_compare_refuses_a_busy_machine_unless_told(busy: dict[str, Any], words: str) -> None:
    idle, loud = report(run([1.0])), report(run([1.0]), **busy)
    with pytest.raises(InputError, match=words):
        quick(idle, loud)
    with pytest.raises(InputError, match=words.replace("b:", "a:")):
        quick(loud, idle)
    assert len(quick(idle, loud, busy_ok=True)) == 1


def test_what_others_did_meanwhile_says_more_than_the_load_before() -> None:
    after_a_build = report(run([1.0]), quiet={"others_cpu": 0.01}, load_average=[9.0, 9.0, 9.0])
    assert len(quick(after_a_build, report(run([1.0]), load_average=None))) == 1


# What a check refuses, and what it finds.


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"cpu": "Slow CPU"}, r"another machine \(processor Fast CPU and Slow CPU\)"),
        ({"gpu": {"name": "Orin", "driver": "1"}}, r"\(GPU none and Orin\)"),
        ({"usable_cores": 4, "cpu": "B"}, "processor .*; cores 2 and 4"),
        ({"jetson": {"board": "Orin Nano", "power_mode": "15W (0)"}}, "power mode none and 15W"),
    ],
)
def test_a_baseline_of_another_machine_is_refused(env: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=f"base: is of .*{words}.*fastrestore bench --output base"):
        comparing.refuse_others(report(run([1.0])), report(run([1.0]), **env), "base")


def test_a_baseline_of_another_model_or_engine_is_refused() -> None:
    a = report(run([1.0], sha256={"model": "ab" * 32, "engine 1": "12" * 32}))
    for other, words in (
        ({"model": "cd" * 32, "engine 1": "12" * 32}, "another model file .sha256 abababababab"),
        ({"model": "ab" * 32, "engine 1": "34" * 32}, "another engine 1 file"),
    ):
        with pytest.raises(InputError, match=f"base: host 6x8 fill .*{words}"):
            comparing.refuse_others(a, report(run([1.0], sha256=other)), "base")
    comparing.refuse_others(a, a, "base")
    with pytest.raises(InputError, match="could not be measured now"):
        comparing.refuse_others(a, report(run([1.0], shape=(9, 9, 3))), "base")


@pytest.mark.parametrize(("mean", "tolerance", "slow"), [(12, 0.1, 1), (12, 0.3, 0), (8, 0.0, 0)])
def test_too_slow_is_beyond_the_tolerance_with_its_whole_interval(
    mean: float, tolerance: float, slow: int
) -> None:
    rows = quick(report(run(noisy(10))), report(run(noisy(mean, seed=1))))
    found = comparing.too_slow(rows, tolerance)
    assert len(found) == slow
    if slow:
        assert found[0][1:] == (rows[0].ratio, rows[0].low)
    few = quick(report(run(noisy(10, 4))), report(run([9.0, 15.0, 11.5, 12.0])))
    assert few[0].ratio is not None
    assert few[0].ratio > 1.1
    assert comparing.too_slow(few, 0.1) == []  # the interval is not clear of it


# As text and as a spreadsheet.


def test_the_text_begins_with_the_machine_and_is_aligned() -> None:
    power = {"meter": "nvml", "rail": "Orin", "mean_w": 9.5, "idle_w": 4.0, "n": 12}
    power |= {"mj_per_item": 95.0, "mj_per_item_above_idle": 55.0}
    device = dict.fromkeys(("Latency", "GPU Compute Time"), Percentiles.of([1.25]))
    a, b = run(noisy(10, 40), 10), run(noisy(5, 40), 10, labels=LABELS._replace(model="nano"))
    c = run(
        [1.0] * 20, level="engine", device=device, per_second=800.0, power=[power], notes=["a note"]
    )
    lines = table.text(report(a, b, c)).splitlines()
    assert lines[0].startswith("Fast CPU at 2.1 GHz, 2 cores (virtual), 8 GB, fastrestore 0.1.0")
    assert "onnxruntime 1.32.0" in lines[0]
    assert "openvino" not in lines[0]
    assert lines[1] == "tiny: sha256 abababababab"
    heads = [i for i, line in enumerate(lines) if " p50 " in line and " p99 " in line]
    assert [lines[i].split()[0] for i in heads] == ["host", "engine"]
    ends = {line.index(" p99 ") for line in (lines[i] for i in heads)}
    assert len(ends) == 1
    assert " 0.50 (0.50-0.50)" in next(line for line in lines if "nano" in line)
    text = "\n".join(lines)
    assert "p50 in ms: Latency 1.250, GPU Compute Time 1.250; Throughput 800.0 qps" in text
    assert "Orin (nvml): 9.50 W, idle 4.00 W; 95.0 mJ a picture, 55.0 mJ above idle (n 12)" in text
    assert "    a note" in text


def test_the_spreadsheet_has_a_line_for_each_run() -> None:
    a, b = run(noisy(10, 40), 10), run(noisy(5, 40), 10, labels=LABELS._replace(model="nano"))
    r = report(a, b, run([1.0] * 20, level="engine", shape=(4, 8, 6, 3)))
    rows = list(csv.DictReader(io.StringIO(table.sheet(r))))
    assert [(x["model"], x["batch"], x["height"], x["width"]) for x in rows] == [
        ("tiny", "1", "8", "6"),
        ("nano", "1", "8", "6"),
        ("tiny", "4", "8", "6"),
    ]
    assert float(rows[0]["p50_ms"]) == r["runs"][0]["ms"]["p50"]
    assert float(rows[0]["cv"]) == r["runs"][0]["ms"]["cv"]
    assert (rows[0]["ratio"], rows[0]["rail"]) == ("", "")
    assert float(rows[1]["ratio"]) == r["ratios"][0]["ratio"]
