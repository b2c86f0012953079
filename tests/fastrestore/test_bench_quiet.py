"""What else a machine did, from files laid out as the kernel lays them out; the machine's line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastrestore.bench import machine, quiet
from fastrestore.bench.quiet import Watch, ticks

CORES = frozenset({0, 2})


class Box:
    """A machine of files whose time passes when it is told."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.now_s, self.own_s = root, 100.0, 5.0
        self.cpus = {c: [100, 0, 50, 1000, 20, 0, 5, 0] for c in (0, 1, 2)}
        self.khz, self.throttled, self.swapped, self.celsius = 3_000_000, 3, 7, 50_000
        monkeypatch.setattr(quiet.time, "monotonic", lambda: self.now_s)
        plain = ticks
        monkeypatch.setattr(quiet, "ticks", lambda proc: plain(proc, CORES))
        monkeypatch.setattr(quiet.os, "sysconf", lambda _: 100)
        self.write()

    def write(self) -> None:
        lines = ["cpu  1 2 3 4 5 6 7 8 9 9"]
        lines += [f"cpu{c} {' '.join(map(str, v))} 0 0" for c, v in self.cpus.items()]
        cpu0 = "sys/devices/system/cpu/cpu0"
        for name, text in {
            "proc/stat": "\n".join([*lines, "intr 12 3", "ctxt 9"]),
            "proc/vmstat": f"nr_free_pages 9\npswpin {self.swapped}\npswpout 1",
            f"{cpu0}/cpufreq/scaling_cur_freq": self.khz,
            f"{cpu0}/thermal_throttle/core_throttle_count": self.throttled,
            "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp",
            "sys/class/thermal/thermal_zone0/temp": self.celsius,
        }.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")

    def passes(self, seconds: float, own: float, others: float, steal: float = 0.0) -> None:
        """Seconds of two cores: used by us, by others, taken by the host, else idle."""
        self.now_s += seconds
        self.own_s += own
        for core in CORES:
            row = self.cpus[core]
            row[0] += round(50 * (own + others))
            row[7] += round(50 * steal)
            row[3] += round(100 * seconds) - round(50 * (own + others)) - round(50 * steal)
        self.cpus[1][0] += round(100 * seconds)  # a core that is not ours
        self.write()

    def watch(self, card: Any = None) -> Watch:
        return Watch(self.root / "proc", self.root / "sys", card, lambda: self.own_s)


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    return Box(tmp_path, monkeypatch)


def test_a_quiet_machine_is_worth_no_warning(box: Box) -> None:
    watch = box.watch()
    for _ in range(4):
        box.passes(1.0, own=1.8, others=0.02)
        watch.look()
    seen = watch.summary()
    assert seen["seconds"] == 4
    assert seen["others_cpu"] == pytest.approx(0.01, abs=0.002)
    assert (seen["stolen_cpu"], seen["throttled"], seen["swapped_pages"]) == (0, 0, 0)
    assert (seen["clock_mhz"], seen["temperature_c"]) == ([3000, 3000], [50, 50])
    assert quiet.warnings(seen) == []


def test_what_others_use_is_a_share_of_our_cores(box: Box) -> None:
    watch = box.watch()
    box.passes(1.0, own=1.0, others=0.72)
    watch.look()
    box.passes(3.0, own=3.0, others=0.0)
    watch.look()
    seen = watch.summary()
    assert seen["others_cpu"] == pytest.approx(0.09)
    assert seen["others_cpu_worst"] == pytest.approx(0.36)
    assert quiet.warnings(seen) == []
    box.passes(1.0, own=0.5, others=1.5)
    (said,) = quiet.warnings(watch.summary())
    assert said.startswith("other processes used 22% of our cores meanwhile (at worst 36%)")


def test_a_moment_too_short_for_ticks_is_added_to_the_next(box: Box) -> None:
    watch = box.watch()
    for _ in range(3):
        box.passes(0.1, own=0.0, others=0.2)
        watch.look()
    assert watch.summary()["others_cpu_worst"] == pytest.approx(1.0)
    assert watch._worst == pytest.approx(1.0)  # of the three together


def test_everything_else_that_makes_a_figure_doubtful(box: Box) -> None:
    watch = box.watch()
    box.khz, box.throttled, box.swapped, box.celsius = 2_400_000, 5, 11, 95_000
    box.passes(1.0, own=1.0, others=0.0, steal=0.2)
    watch.look()
    seen = watch.summary()
    assert seen["temperature_c"] == [50, 95]
    assert quiet.warnings(seen) == [
        "the host of this virtual machine took 10% of our cores",
        "the processor's clock fell from 3000 to 2400 MHz; lock the clocks, or cool",
        "the processor was throttled 2 times: it is too hot",
        "4 pages were swapped: times contain disk access",
    ]


class Card:
    """A GPU that gets slower."""

    def __init__(self) -> None:
        self.mhz = [2000, 1200]

    def clock_mhz(self) -> int:
        return self.mhz.pop(0)

    def throttles(self) -> list[str]:
        return [] if self.mhz else ["power cap"]


def test_a_gpu_that_is_slowed_down(box: Box) -> None:
    watch = box.watch(Card())
    watch.look()
    said = quiet.warnings(watch.summary())
    assert said == [
        "the GPU's clock fell from 2000 to 1200 MHz; lock the clocks, or cool",
        "the GPU was slowed down: power cap",
    ]


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    assert ticks(tmp_path, CORES) is None
    watch = Watch(tmp_path, tmp_path, None, lambda: 1.0)
    watch.look()
    seen = watch.summary()
    assert seen["others_cpu"] is None
    assert seen["clock_mhz"] is None
    assert quiet.warnings(seen) == []


def test_the_real_machine_can_be_watched() -> None:
    watch = Watch()
    watch.look()
    assert quiet.warnings(watch.summary()) is not None


# The machine's own line.


def env(**changes: Any) -> dict[str, Any]:
    found = machine.describe(None)
    found["jetson"] = None
    return {**found, **changes}


def test_the_machine_is_one_line() -> None:
    words = machine.line(env(cpu="Fast CPU"))
    assert words.startswith("Fast CPU")
    assert "\n" not in words


def test_a_board_and_a_gpu_are_named_with_their_mode() -> None:
    gpu = {"name": "Orin", "driver": "540.4", "processes": 1, "throttled_by": []}
    board = {"board": "Jetson Orin Nano", "power_mode": "25W (1)"}
    words = machine.line(env(gpu=gpu, jetson=board, load_average=None))
    assert "Jetson Orin Nano, 25W (1), Orin, driver 540.4" in words
    assert "load" not in words
    unknown = machine.line(env(jetson={"board": "X", "power_mode": None}))
    assert "X, power mode unknown" in unknown


class Shared:
    """A GPU on which others compute."""

    def describe(self) -> dict[str, Any]:
        return {"name": "A", "processes": 2, "throttled_by": ["power cap"]}


def test_a_shared_or_slow_gpu_is_a_warning() -> None:
    said = machine.describe(Shared())["warnings"]  # type: ignore[arg-type]
    assert "other processes compute on the GPU: 2" in said
    assert "the GPU is slowed down: power cap" in said


def test_a_jetson_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastrestore import jetson

    answers: dict[str, Any] = {
        "is_jetson": True,
        "board": "Orin",
        "release": "36.4.3",
        "power_mode": jetson.Mode(1, "25W"),
        "gpu_clocks_mhz": (918, 918),
    }
    for name, value in answers.items():
        monkeypatch.setattr(jetson, name, lambda v=value: v)
    monkeypatch.setattr(jetson, "jetpack", lambda _: "6.2")
    assert machine.describe(None)["jetson"] == {
        "board": "Orin",
        "l4t": "36.4.3",
        "jetpack": "6.2",
        "power_mode": "25W (1)",
        "gpu_clocks_mhz": [918, 918],
        "clocks_locked": True,
    }
