"""The benchmark of the kernels without a GPU: another device stands in, and its times are given."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="the extra kernels is not installed")
pytest.importorskip("onnx", reason="the extra kernels is not installed")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import bench_kernels as bench  # noqa: E402
import kernel_device  # noqa: E402
import kernel_measure  # noqa: E402
import kernel_readme  # noqa: E402
import kernel_report  # noqa: E402
import kernel_roofs  # noqa: E402
import kernel_subjects  # noqa: E402
from kernel_measure import Budget, CutShortError, Item  # noqa: E402
from kernel_roofs import Roofs  # noqa: E402

from fastrestore.errors import InputError  # noqa: E402
from fastrestore.kernels import launch  # noqa: E402
from fastrestore.kernels.operator import Case, Traffic  # noqa: E402
from fastrestore.kernels.registry import OPERATORS  # noqa: E402

ROOFS = Roofs("Fake H100", 1000.0, 100.0, 10.0)
US = {"kernel": 10.0, "native": 12.0, "eager": 80.0, "compiled": 30.0}


class Fake:
    """Computes on the CPU when it captures, and returns the times that it was given."""

    torch_device = torch.device("cpu")

    def __init__(self, us: Mapping[str, float] = US, **card: str) -> None:
        self.us = us
        self.card = {"name": "Fake H100", "driver": "1", "torch": "2", "triton": "3"} | card
        self.card |= {"cuda": "12", "cudnn": "9"}
        self.compiled: list[Any] = []
        self.roofed = 0

    def describe(self) -> dict[str, Any]:
        return dict(self.card)

    def clocks(self) -> dict[str, str] | None:
        return {"clocks.sm": "1980 MHz"}

    def roofs(self) -> tuple[Roofs, float]:
        self.roofed += 1
        return ROOFS, 2.5

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        self.compiled.append(function)
        return function

    def capture(self, run: Callable[[], object]) -> Callable[[], object]:
        results = run()
        return lambda: results

    def time(self, replays: Mapping[str, Any], seconds: float, least: int = 1) -> Any:
        return {name: [self.us.get(name, 50.0)] * 99 + [500.0] for name in replays}

    time_host = time

    def free(self) -> None:
        pass


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators compute by their references."""
    monkeypatch.setattr(launch, "INTERPRETED", False)


def budget(seconds: float = 1000.0, **changes: Any) -> Budget:
    return Budget(time.monotonic() + seconds, **changes)


def item(name: str, side: int = 32, **options: Any) -> Item:
    operator = OPERATORS[name]
    chosen = next(v for v in operator.variants if options.items() <= v.items())
    return Item(operator, Case(1, side, side, chosen), "1080p")


# Arithmetic.


def test_the_roof_is_the_slower_of_memory_and_arithmetic() -> None:
    roofs = Roofs("", bandwidth=1000, tensor=100, plain=10)
    assert roofs.predict_us(Traffic(3_000_000, 1_000_000, 0), tensor=False) == pytest.approx(4)
    assert roofs.predict_us(Traffic(1, 1, 500_000_000), tensor=True) == pytest.approx(5)
    assert roofs.predict_us(Traffic(1, 1, 500_000_000), tensor=False) == pytest.approx(50)


def test_known_figures_of_the_arithmetic() -> None:
    """By hand, 1080p: 2,073,600 px."""
    h100, _, orin, _ = kernel_roofs.CARDS
    pack = OPERATORS["pack"]
    case = Case(1, 1080, 1920, {"past": True})
    work = kernel_roofs.traffic(pack, case)
    assert h100.predict_us(work, tensor=False) == pytest.approx(2.0736e6 * 30.03 / 3350e3, rel=1e-3)
    edge = kernel_roofs.traffic(OPERATORS["edge_loss"], Case(1, 1080, 1920))
    moved = edge.read + edge.written  # forward 8 + 1, backward 1 + 4 a value; weights twice
    assert moved == pytest.approx(2.0736e6 * (3 * 14 + 8), rel=1e-6)
    block = OPERATORS["residual_block"]
    assert kernel_roofs.on_tensor_cores(block)
    assert not kernel_roofs.on_tensor_cores(pack)
    wide = kernel_roofs.traffic(block, Case(1, 1080, 1920, {"channels": 64, "dilation": 1}))
    flops = 20 * 64**2 * 270 * 480
    assert orin.predict_us(wide, tensor=True) == pytest.approx(flops / 42.6e6, rel=1e-6)


def test_the_network_is_dearer_in_more_launches_and_larger_batches() -> None:
    card = kernel_roofs.CARDS[0]
    one, eight = (kernel_roofs.predict_network_us(card, n, 256, 256, fused=True) for n in (1, 8))
    assert eight == pytest.approx(8 * one, rel=1e-3)
    assert kernel_roofs.predict_network_us(card, 1, 256, 256, fused=False) > 1.2 * one


def test_arithmetic_is_printed_without_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--arithmetic"]) == 0
    out = capsys.readouterr().out
    assert "Not measured." in out
    for name in (*OPERATORS, "whole network"):
        assert f"\n{name}" in out
    assert out.count("| 4K |") == 2  # both variants of pull_push


# What is measured.


def test_the_plan_has_every_variant_once_and_begins_with_the_targets() -> None:
    items = bench.plan()
    variants = sum(len(o.variants) for o in OPERATORS.values())
    assert len(items) == 3 * variants + len(OPERATORS["pull_push"].variants) + 6
    assert len({i.key for i in items}) == len(items)
    first = [i for i in items if not i.rank[0]]
    assert items[: len(first)] == first
    assert {i.name for i in first} == set(OPERATORS) - {"sobel"} | {"network"}
    assert {i.size for i in first if i.name == "pull_push"} == {"4K"}
    assert all(i.case.height % 16 == 0 for i in items if i.name == "network")
    assert {i.name for i in bench.plan(["sobel", "network"])} == {"sobel", "network"}


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_and_its_rivals_are_right(name: str) -> None:
    entry = kernel_measure.measure(item(name), Fake(), ROOFS, budget())
    assert entry["fault"] == ""
    assert entry["check"]
    assert all(row["error"] <= row["allowed"] for row in entry["check"])
    times = entry["device_us"]
    expected = {"kernel", "eager", "compiled"}
    if name == "pull_push":
        expected |= {"eager, float16"}
    if name == "residual_block":  # a call of cuDNN's that a CPU does not have
        assert "fault" in times.pop("eager, fused ReLU")
    assert set(times) == expected
    assert times["kernel"] == {"median": 10.0, "p99": pytest.approx(14.9), "min": 10.0, "n": 100}
    assert entry["predicted_us"]["kernel"] > 0
    assert json.dumps(entry)


def test_the_whole_network_is_measured_on_both_sides_of_the_bus() -> None:
    device = Fake()
    entry = kernel_measure.measure(Item(None, Case(2, 32, 48), "256x256"), device, ROOFS, budget())
    assert entry["fault"] == ""
    assert len(entry["check"]) == 2 * 2 * 2  # both blocks, eager and replayed, picture and state
    assert set(entry["device_us"]) == set(entry["host_us"]) == {"kernel", "native", "compiled"}
    assert device.compiled
    assert entry["predicted_us"]["native"] > entry["predicted_us"]["kernel"]


@pytest.mark.parametrize("name", ["pack", "edge_loss", "residual_block"])
def test_a_wrong_kernel_gets_no_number(name: str) -> None:
    good = item(name)
    assert good.operator is not None

    def wrong(*inputs: Any) -> Any:
        result = good.operator.run(*inputs)  # type: ignore[union-attr]
        if isinstance(result, tuple):
            return result[0] + 0.25, *result[1:]
        return result * 1.2

    bad = good._replace(operator=replace(good.operator, run=wrong))
    entry = kernel_measure.measure(bad, Fake(), ROOFS, budget())
    assert entry["fault"].startswith("kernel: wrong by ")
    assert entry["device_us"] == entry["host_us"] == {}


def test_memory_that_a_kernel_leaves_out_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    good = item("sobel")
    assert good.operator is not None
    reference = good.operator.reference

    def lazy(x: Any, gradients: bool) -> Any:
        """Write nothing: what lies there from before is the right result."""
        memory = launch.allocate((1, 32, 32, 1), torch.float16, x)
        return memory if memory.isnan().any() else reference(x, gradients)

    def before(shape: Any, dtype: torch.dtype, like: Any) -> Any:
        return torch.zeros(shape, dtype=dtype)

    monkeypatch.setattr(launch, "allocate", before)
    bad = good._replace(operator=replace(good.operator, run=lazy))
    assert kernel_measure.measure(bad, Fake(), ROOFS, budget())["fault"].endswith("wrong by inf")
    assert launch.allocate is before


def test_a_few_values_may_be_off_where_rounding_decides_a_sign() -> None:
    value = torch.zeros(1000)
    found = value.clone()
    found[:16] = 1
    assert kernel_subjects.Goal(value, 0.1, outliers=16).error(found) == 0
    assert kernel_subjects.Goal(value, 0.1, outliers=15).error(found) == 1
    found[500] = float("nan")
    assert kernel_subjects.Goal(value, 0.1).error(found) == float("inf")
    assert kernel_subjects.Goal(value, 0.1).error(found[:5]) == float("inf")


def test_a_rival_that_fails_or_is_wrong_is_told_in_words() -> None:
    class Breaking(Fake):
        def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
            raise RuntimeError("no\ncompiler | here")

    class Wrong(Fake):
        def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *inputs: function(*inputs) + 5000

    entry = kernel_measure.measure(item("sobel"), Breaking(), ROOFS, budget())
    assert entry["device_us"]["compiled"] == {"fault": "RuntimeError: no compiler / here"}
    assert entry["device_us"]["kernel"]["median"] == 10.0
    entry = kernel_measure.measure(item("sobel"), Wrong(), ROOFS, budget())
    assert entry["device_us"]["compiled"]["fault"].startswith("computes something else (errors 5")


class Slow(Fake):
    """A compiler that takes three seconds and goes on after exceptions."""

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        until = time.monotonic() + 3
        while time.monotonic() < until:
            try:
                time.sleep(0.01)
            except Exception:  # noqa: S112
                continue
        return function


def test_a_compiler_that_does_not_end_is_stopped() -> None:
    entry = kernel_measure.measure(item("sobel"), Slow(), ROOFS, budget(compile_s=0.1))
    assert entry["device_us"]["compiled"] == {"fault": "not compiled in 0 s"}
    assert set(entry["device_us"]) == {"kernel", "eager", "compiled"}


def test_a_compilation_that_the_end_of_the_run_cuts_short_is_no_result() -> None:
    with pytest.raises(CutShortError):
        kernel_measure.measure(item("sobel"), Slow(), ROOFS, budget(10.2))


def test_a_limit_leaves_nothing_behind() -> None:
    with pytest.raises(kernel_device.OutOfTime), kernel_device.limit(0.05):
        time.sleep(2)
    with kernel_device.limit(0.2):
        pass
    time.sleep(0.3)


# Results on disk.


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Measuring a case takes nothing; the keys that were measured."""
    seen: list[str] = []

    def fake(chosen: Item, *_: Any) -> dict[str, Any]:
        seen.append(chosen.key)
        return made(chosen)

    monkeypatch.setattr(bench, "measure", fake)
    return seen


def made(chosen: Item, us: Mapping[str, float] = US, **changes: Any) -> dict[str, Any]:
    times = {name: kernel_report.summarise([t]) for name, t in us.items()}
    entry = {
        "kind": "operator" if chosen.operator else "network",
        "name": chosen.name,
        "variant": "",
        "options": dict(chosen.case.options),
        "size": chosen.size,
        "n": chosen.case.n,
        "height": chosen.case.height,
        "width": chosen.case.width,
        "predicted_us": {"kernel": 7.0, "native": 8.0},
        "least": {"read": 1000, "written": 1000, "flops": 5000},
        "check": [],
        "fault": "",
        "device_us": times,
        "host_us": {} if chosen.operator else times,
    }
    return {**entry, **changes}


ITEMS = [item("sobel"), item("pack"), item("unpack")]


def run(folder: Path, device: Fake | None = None, seconds: float = 1000, **changes: Any) -> Any:
    fresh = changes.pop("fresh", False)
    return bench.run(device or Fake(), ITEMS, budget(seconds), folder, fresh, lambda _: None)


def test_a_stopped_run_goes_on(tmp_path: Path, quick: list[str]) -> None:
    _, left = run(tmp_path, seconds=5)  # too little to begin a case
    assert left == 3
    assert quick == []
    ticks = iter(range(0, 10_000, 40))
    short = Budget(99.0, clock=lambda: float(next(ticks)))  # 0, 40, then too late
    data, left = bench.run(Fake(), ITEMS, short, tmp_path, False, lambda _: None)
    assert (left, len(data["cases"]), len(quick)) == (1, 2, 2)
    device = Fake()
    data, left = run(tmp_path, device)
    assert (left, len(data["cases"])) == (0, 3)
    assert quick == [i.key for i in ITEMS]
    assert device.roofed == 0  # those of the first run
    assert json.loads((tmp_path / "fake-h100.json").read_text())["cases"].keys() == set(quick)


def test_what_other_kernels_or_faults_gave_is_measured_again(
    tmp_path: Path, quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path)
    path = tmp_path / "fake-h100.json"
    data = json.loads(path.read_text())
    data["cases"][ITEMS[1].key]["fault"] = "kernel: wrong by 1"
    path.write_text(json.dumps(data))
    run(tmp_path)
    assert quick[3:] == [ITEMS[1].key]
    monkeypatch.setattr(bench, "code", lambda: "another")
    run(tmp_path)
    assert len(quick) == 7


def test_results_of_another_machine_are_not_mixed(tmp_path: Path, quick: list[str]) -> None:
    run(tmp_path)
    with pytest.raises(InputError, match=r"made with another driver \(1\)"):
        run(tmp_path, Fake(driver="2"))
    assert run(tmp_path, Fake(driver="2"), fresh=True)[0]["card"]["driver"] == "2"
    assert len(quick) == 6


def test_a_case_that_is_cut_short_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*_: Any) -> Any:
        raise CutShortError

    monkeypatch.setattr(bench, "measure", cut)
    data, left = run(tmp_path)
    assert (left, data["cases"]) == (3, {})


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 0, "card": {"name": 1}, "cases": {}}'])
def test_damaged_results_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "fake-h100.json").write_text(text)
    with pytest.raises(InputError, match=r"are no results .*; move it away"):
        run(tmp_path)


# What is said.


def results(us: Mapping[str, float] = US, **changes: Any) -> dict[str, Any]:
    cases = {i.key: made(i, us, **changes) for i in bench.plan()}
    roofs = {"roofs": ROOFS._asdict(), "floor_us": 2.5, "clocks": None}
    return {"schema": bench.SCHEMA, "card": Fake().card, "cases": cases, **roofs}


def verdicts(data: dict[str, Any]) -> dict[str, str]:
    return {t.text: t.verdict for t in kernel_report.targets(data)}


def test_targets_pass_miss_or_are_not_measured() -> None:
    found = verdicts(results())
    assert len(found) == 14
    assert set(found.values()) == {"pass"}
    slower = dict(US, eager=29.0, compiled=11.0)
    assert set(verdicts(results(slower)).values()) == {"pass", "miss"}
    misses = [text for text, verdict in verdicts(results(slower)).items() if verdict == "miss"]
    assert not any("share" in text or " ms" in text for text in misses)
    assert len(misses) == len(found) - 2 - 2 - 2  # cuDNN 2.9 is still enough
    slow = verdicts(results({**US, "kernel": 300.0, "native": 300.0}))
    assert set(slow.values()) == {"miss"}
    data = results()
    data["cases"] = {}
    assert set(verdicts(data).values()) == {"not measured"}


def test_the_worst_variant_counts_and_a_missing_one_is_said() -> None:
    data = results()
    entry = next(e for e in data["cases"].values() if (e["name"], e["size"]) == ("pack", "1080p"))
    entry["device_us"]["eager"] = kernel_report.summarise([40.0])
    assert verdicts(data)["pack over eager torch, 1080p"] == "miss"
    entry["device_us"]["eager"] = {"fault": "out of memory"}
    assert verdicts(data)["pack over eager torch, 1080p"] == "not measured"


def test_the_faster_rival_counts() -> None:
    entry = made(ITEMS[0], {**US, "eager, float16": 60.0})
    assert kernel_report.eager(entry) == 60.0
    whole = made(Item(None, Case(1, 256, 256), "256x256"), {"kernel": 12.0, "native": 11.0})
    assert kernel_report.ours(whole) == ("native", 11.0)


def test_the_report_has_every_case_and_the_plot_is_a_picture(tmp_path: Path) -> None:
    data = results()
    key = bench.plan(["sobel"])[0].key
    data["cases"][key] = made(bench.plan(["sobel"])[0], {}, fault="kernel: wrong by 3")
    text = bench.write_report(data, tmp_path)
    assert (tmp_path / "fake-h100.md").read_text() == text
    assert (tmp_path / "fake-h100.png").read_bytes().startswith(b"\x89PNG")
    assert "kernel: wrong by 3" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    operators = sum(1 for e in data["cases"].values() if e["kind"] == "operator")
    assert len(rows) == operators + 2 + 12 + 2 + 14 + 2
    assert "| 10.0 (10.0) | 70% | 80.0 (80.0) | 8.00 | 30.0 (30.0) | 3.00 |" in text
    path = tmp_path / "again.json"
    path.write_text(json.dumps(data))
    assert bench.main(["--report", str(path)]) == 0


# The command.


def test_without_a_device_one_line_and_code_4(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main([]) == 4
    err = capsys.readouterr().err
    assert err == "bench_kernels: no CUDA device; --arithmetic prints predicted times\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "foo"], "--only foo: no such operator"),
        (["--minutes", "1"], "--minutes 1: too short for --compile-limit"),
        (["--report", "nowhere.json"], "nowhere.json: are no results"),
    ],
)
def test_bad_input_is_code_3_and_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(arguments) == 3
    err = capsys.readouterr().err
    assert err.startswith(said)
    assert err.count("\n") == 1


@pytest.mark.usefixtures("quick")
def test_the_exit_code_says_whether_all_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(bench, "open_device", Fake)
    command = ["--output", str(tmp_path), "--only", "pack"]
    assert bench.main(command) == 0
    assert "| pack |" in capsys.readouterr().out
    monkeypatch.setattr(bench, "measure", lambda i, *_: made(i, {}, fault="kernel: wrong by 2"))
    assert bench.main([*command, "--fresh"]) == 1
    assert "kernel: wrong by 2" in capsys.readouterr().err


def test_the_interpreter_has_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "INTERPRETED", True)
    with pytest.raises(InputError, match="TRITON_INTERPRET"):
        bench.open_device()


# The README.


def test_the_readme_says_what_the_code_says() -> None:
    """If this fails: python benchmarks/bench_kernels.py --readme."""
    text = kernel_readme.README.read_text()
    assert kernel_readme.render(text) == text
    for name in OPERATORS:
        assert re.search(rf"^## `{name}`", text, re.MULTILINE), name


def test_a_lost_marker_is_said() -> None:
    text = kernel_readme.README.read_text().replace("<!-- registers pack -->", "")
    with pytest.raises(InputError, match="no place for registers pack"):
        kernel_readme.render(text)


def test_registers_are_grouped_by_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = OPERATORS["residual_block"]
    counts = {x.name: {"sm_80": 100 + i} for i, x in enumerate(operator.launches())}
    path = tmp_path / "resources.json"
    path.write_text(json.dumps({"3.6.0": {}, "3.10.0": counts}))
    monkeypatch.setattr(kernel_readme.gate, "COMMITTED", path)
    text = kernel_readme.registers(operator)
    assert "Triton 3.10.0" in text
    rows = [line for line in text.splitlines() if line.startswith("| residual_block_kernel")]
    assert len(rows) == 4
    assert all(re.search(r"\| 1\d\d-1\d\d \| - \|", row) for row in rows)
    path.unlink()
    assert kernel_readme.registers(operator) == "No registers are committed."
