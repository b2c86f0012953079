"""`fastrestore bench`: what runs, its files, its exit codes. No speed is asserted."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fastrestore import cli, environment
from fastrestore.bench import session
from fastrestore.bench.plan import Plan
from fastrestore.commands import bench
from fastrestore.errors import EngineError, InputError, ModelError

QUICK = ("--threads", "1", "--seconds", "0.01", "--rounds", "4", "--model", "nano")
ORT = (*QUICK, "--backend", "ort")
SMALL = ("--size", "48x32", "--video-size", "48x32", "--frames", "5")


class Result(NamedTuple):
    """What a run of the program left."""

    code: int
    out: str
    err: str


Call = Callable[..., Result]


@pytest.fixture
def fr(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Run `fastrestore bench` in this process, in a folder of its own, on an idle machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTRESTORE_CACHE", str(tmp_path / "cache"))
    plain = session.Watch.summary
    idle = {"others_cpu": 0.0, "others_cpu_worst": 0.0, "stolen_cpu": 0.0}
    monkeypatch.setattr(session.Watch, "summary", lambda self: {**plain(self), **idle})

    def call(*args: str) -> Result:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["fastrestore", "bench", *args])
        with pytest.raises(SystemExit) as e:
            cli.main()
        assert isinstance(e.value.code, int)
        return Result(e.value.code, *capfd.readouterr())

    return call


def refused(result: Result, code: int, words: str) -> None:
    """One line on stderr that says it, nothing on stdout, the right code."""
    assert (result.code, result.out) == (code, "")
    assert len(result.err.splitlines()) == 1, result.err
    assert re.match(f"fastrestore: .*({words})", result.err), result.err


def change(path: str, into: str, times: float, **report: Any) -> None:
    """Write a report whose samples are many, and all slower or faster."""
    found = json.loads(Path(path).read_text())
    for run in found["runs"]:
        for name in ("samples_ms", "cpu_samples_ms"):
            run[name] = [times * t for t in run[name]] * 20
        run["turns"] = run["turns"] * 20
    found.update(report)
    Path(into).write_text(json.dumps(found))


def test_all_levels_and_every_file(fr: Call) -> None:
    plot = ("--plot", "a.svg") if importlib.util.find_spec("matplotlib") else ()
    result = fr(*ORT, *SMALL, "--output", "a.json", "--csv", "a.csv", *plot)
    assert result.code == 0, result.err
    report = json.loads(Path("a.json").read_text())
    levels = [(r["level"], r["task"]) for r in report["runs"]]
    hosts = [("host", "fill"), ("host", "denoise")]
    assert levels == [("engine", ""), *hosts, ("pipeline", "made 5 frames")]
    assert report["runs"][0]["shape"] == [1, 32, 48, 3]
    assert report["options"]["backends"] == ["ort"]
    assert result.out.splitlines()[0].startswith(report["env"]["cpu"])
    assert "engine 48x32" in result.out
    assert "  ort nano fp32" in result.out
    assert len(list(csv.reader(Path("a.csv").read_text().splitlines()))) == 5
    assert not plot or Path("a.svg").read_text().startswith("<?xml")
    again = fr("--from", "a.json")
    assert (again.code, again.out) == (0, result.out)
    assert again.err == result.err


def test_a_part_of_a_report_is_shown(fr: Call) -> None:
    assert fr(*ORT, *SMALL, "--level", "host", "--level", "engine", "--output", "a.json").code == 0
    shown = fr("--from", "a.json", "--level", "host", "--task", "fill", "--json")
    runs = json.loads(shown.out)["runs"]
    assert [(r["level"], r["task"]) for r in runs] == [("host", "fill")]
    refused(fr("--from", "a.json", "--size", "9x9"), 3, "--from: the report has none of these")


def test_json_on_stdout_is_the_report(fr: Call) -> None:
    result = fr(*ORT, *SMALL, "--level", "engine", "--output", "a.json", "--json")
    assert json.loads(result.out) == json.loads(Path("a.json").read_text())


def test_sizes_batches_and_models(fr: Call) -> None:
    sizes = ("--size", "24x32", "--size", "32x32", "--batch", "1", "--batch", "2")
    result = fr(*ORT, "--model", "nano", *sizes, "--level", "engine", "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    found = [r["shape"][:3] for r in report["runs"]]
    shapes = [[n, 32, w] for w in (24, 32) for n in (1, 2)]
    assert found == [shape for shape in shapes for _ in range(2)]  # two models, side by side
    assert len(report["ratios"]) == 4


def test_scenarios_and_rivals(fr: Call) -> None:
    level = ("--level", "host", "--task", "fill", "--size", "48x32", "--rival", "telea")
    scenarios = ("--scenario", "single-stream", "--scenario", "multi-stream", "--streams", "2")
    result = fr(*ORT, *level, *scenarios, "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert [(r["model"], r["scenario"], r["streams"]) for r in report["runs"]] == [
        ("nano", "single-stream", 1),
        ("telea", "single-stream", 1),
        ("nano", "multi-stream", 2),
    ]
    assert "multi-stream: 2 streams share 1 CPU threads" in report["notes"]
    assert "multi-stream: rivals run in single-stream alone" in report["notes"]
    (ratio,) = report["ratios"]
    assert "nano" in ratio["over"]


def test_two_reports_are_compared(fr: Call) -> None:
    assert fr(*ORT, *SMALL, "--level", "host", "--output", "a.json").code == 0
    change("a.json", "b.json", 1)
    change("a.json", "c.json", 2)
    result = fr("--compare", "b.json", "c.json")
    assert (result.code, result.err) == (0, "")
    assert result.out.count("b is slower") == 2
    assert "Row(" not in result.out  # words, not a Python object
    change("a.json", "busy.json", 1, quiet={"others_cpu": 0.5})
    refused(fr("--compare", "b.json", "busy.json"), 3, r"busy\.json: other processes used 50%")
    assert fr("--compare", "b.json", "busy.json", "--busy-ok").code == 0


def test_a_check_runs_what_the_baseline_ran(fr: Call) -> None:
    """Against times that are a thousandth and a thousandfold: no speed decides it."""
    assert fr(*ORT, *SMALL, "--level", "host", "--output", "a.json").code == 0
    change("a.json", "slow.json", 1000)
    result = fr("--check", "slow.json", "--busy-ok")
    assert result.code == 0, result.err
    assert result.out.count("b is faster") == 2
    change("a.json", "fast.json", 0.001)
    result = fr("--check", "fast.json", "--output", "now.json")
    assert result.code == 1
    assert result.err.count("slower by ") == 2
    assert "10% is allowed" in result.err
    options = [json.loads(Path(f).read_text())["options"] for f in ("a.json", "now.json")]
    assert options[0] == options[1]


def test_a_part_of_a_baseline_can_be_checked(fr: Call) -> None:
    assert fr(*ORT, *SMALL, "--level", "host", "--output", "a.json").code == 0
    change("a.json", "slow.json", 1000)
    result = fr("--check", "slow.json", "--task", "fill", "--json")
    assert result.code == 0, result.err
    assert len(json.loads(result.out)["runs"]) == 1
    assert result.err.count("b is faster") == 1  # stdout is the report's
    result = fr("--check", "slow.json", "--size", "32x32")
    assert (result.code, result.err.splitlines()[-1]) == (
        3,
        "fastrestore: slow.json: has none of these runs; leave sizes away",
    )


@pytest.mark.parametrize(
    ("env", "hashes", "words"),
    [
        ({"cpu": "Z80"}, {}, r"slow\.json: is of another machine \(processor Z80 and "),
        ({}, {"model": "00"}, r"host 48x32 fill ort nano fp32: another model file \(sha256 00 "),
    ],
)
def test_a_check_on_another_machine_or_model_says_so(
    fr: Call, env: dict[str, Any], hashes: dict[str, str], words: str
) -> None:
    assert fr(*ORT, *SMALL, "--level", "host", "--task", "fill", "--output", "a.json").code == 0
    report = json.loads(Path("a.json").read_text())
    report["env"].update(env)
    report["runs"][0]["sha256"].update(hashes)
    Path("slow.json").write_text(json.dumps(report))
    result = fr("--check", "slow.json")
    assert result.code == 3
    assert re.match(f"fastrestore: .*{words}", result.err.splitlines()[-1]), result.err


# What runs here.


def test_the_backends_that_run_here_and_why_others_do_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FASTRESTORE_CACHE", str(tmp_path))
    for there in (False, True):
        monkeypatch.setattr(session, "has_cuda_device", lambda there=there: there)
        for absent in ("", "torch", "triton", "openvino"):
            monkeypatch.setattr(session, "find_spec", lambda m, gone=absent: m != gone)
            names, notes = session.usable(Plan())
            wanted = ["ort"] + ["openvino"] * (absent != "openvino")
            wanted += ["triton"] * (there and absent not in ("torch", "triton"))
            assert list(names) == wanted
            assert "tensorrt: no engine: fastrestore build-engine tiny" in notes
            assert {n.partition(":")[0] for n in notes} == {"tensorrt"} | (
                {"openvino", "triton"} - set(names)
            )
    assert session.usable(Plan(backends=("rtx",))) == (("rtx",), [])


def test_what_fails_unasked_is_left_out_in_words(fr: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = session.Engine

    def load(model: str, backend: str, *more: Any) -> Any:
        if backend == "openvino":
            raise ModelError("openvino: broken")
        return plain(model, backend, *more)

    monkeypatch.setattr(session, "Engine", load)
    monkeypatch.setattr(session, "usable", lambda _: (("ort", "openvino"), []))
    result = fr(*QUICK, *SMALL, "--level", "engine")
    assert result.code == 0
    assert "left out: openvino: broken" in result.err


def test_what_was_asked_for_must_be_there(fr: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any) -> Any:
        raise EngineError("nano: no engine; build one")

    monkeypatch.setattr(session, "Engine", load)
    refused(fr(*ORT, "--level", "engine"), 4, "nano: no engine; build one")


def test_a_size_that_does_not_go_is_left_out_and_the_rest_measured(
    fr: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = session.Engine.subject

    def subject(self: Any, size: tuple[int, int], batch: int = 1) -> Any:
        if size == (32, 32):
            raise EngineError("no engine takes 32x32")
        return plain(self, size, batch)

    monkeypatch.setattr(session.Engine, "subject", subject)
    level = ("--level", "engine")
    result = fr(*ORT, "--size", "32x32", "--size", "48x32", *level, "--json")
    report = json.loads(result.out)
    assert len(report["runs"]) == 1
    assert "left out: no engine takes 32x32" in report["notes"]
    refused(fr(*ORT, "--size", "32x32", *level), 4, "no engine takes 32x32")


# What is refused.


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ("--size 8x8", 3, "size 8x8: must be from 16x16"),
        ("--size big", 3, "size big: write it as WIDTHxHEIGHT"),
        ("--size 99999x99999", 3, "64 megapixels"),
        ("--video-size 8x8", 3, "size 8x8"),
        ("--compare nope.json a.json", 3, r"nope\.json: not a report"),
        ("--compare empty.json empty.json", 3, r"empty\.json: not a report"),
        ("--check old.json", 3, r"old\.json: has schema 1, this version reads 2; measure again"),
        ("--from old.json", 3, r"old\.json: has schema 1"),
        ("--model nope", 4, "no such model"),
        ("--rival magic --level host --backend ort", 3, "rival magic: not known"),
        ("--plot a.pdf", 3, r"a\.pdf: end its name in"),
        ("--output nowhere/a.json", 5, r"nowhere/a\.json: its folder does not exist"),
        ("--csv nowhere/a.csv", 5, r"nowhere/a\.csv: its folder does not exist"),
        ("--clip nope.mp4 --level pipeline", 3, r"nope\.mp4: no such file"),
    ],
)
def test_what_makes_no_sense(fr: Call, args: str, code: int, words: str) -> None:
    Path("empty.json").write_text("{}")
    Path("old.json").write_text('{"schema": 1, "env": {}, "runs": []}')
    refused(fr(*args.split()), code, words)


def test_a_target_that_cannot_be_written_is_said_before_anything_is_measured(
    fr: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(_: Plan) -> Any:
        raise AssertionError("it measured first")

    monkeypatch.setattr(bench, "_measured", measure)
    refused(fr("--output", "nowhere/a.json"), 5, "nowhere")


@pytest.mark.parametrize(
    "change", [{"seconds": "long"}, {"colour": 1}, {"levels": ["magic"]}, {"sizes": ["8x8"]}]
)
def test_options_of_a_report_that_cannot_be_repeated(change: dict[str, Any]) -> None:
    options = {**Plan().to_dict(), **change}
    with pytest.raises(
        InputError, match=r"size 8x8|a\.json: options: (seconds|colour|levels): cann"
    ):
        Plan.from_dict(options, "a.json")


def test_options_come_back_as_they_were() -> None:
    plan = Plan(models=("nano",), threads=2, batches=(1, 4), clip="a.mp4", seconds=1.5)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict())), "x") == plan
    assert [plan.streams_of(s) for s in ("single-stream", "multi-stream", "offline")] == [1, 8, 1]
    assert Plan(streams=3).streams_of("multi-stream") == 3


def test_examples_of_the_help_text_work(fr: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = re.findall(r"^\s*fastrestore bench ?(.*)$", bench.command.help or "", re.MULTILINE)
    assert len(shown) == 6
    measured: list[Plan] = []
    assert fr(*ORT, *SMALL, "--level", "host", "--output", "openvino.json").code == 0

    def measure(plan: Plan) -> Any:
        measured.append(plan)
        return json.loads(Path("openvino.json").read_text())

    monkeypatch.setattr(bench, "_measured", measure)
    for line in shown:
        result = fr(*shlex.split(line))
        assert result.code in (0, 1), (line, result.err)
    assert len(measured) == 4
    assert measured[2].adapters == ("lama",)


def test_a_machine_is_described_before_it_is_measured(
    fr: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The load average must not be the measurement's own."""
    order: list[str] = []
    describe = environment.describe
    monkeypatch.setattr(
        session.machine, "describe_environment", lambda: order.append("env") or describe()
    )
    plain = session.Engine
    monkeypatch.setattr(session, "Engine", lambda *a: order.append("load") or plain(*a))
    assert fr(*ORT, *SMALL, "--level", "engine").code == 0
    assert order == ["env", "load"]
