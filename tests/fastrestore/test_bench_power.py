"""Power: recorded lines, files as the kernel lays them out, stand-ins for NVML. No hardware."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fastrestore.bench import nvml, power, rails, tegrastats
from fastrestore.bench.power import PowerLog

ORIN_NANO = (
    "11-29-2023 12:11:20 RAM 3051/7620MB (lfb 20x4MB) SWAP 0/3810MB (cached 0MB) CPU "
    "[12%@1510,0%@729,0%@729,0%@729,off,off] EMC_FREQ 0%@2133 GR3D_FREQ 37%@[305] NVDEC off "
    "NVJPG off VIC off OFA off APE 200 cv0@-256C cpu@48.062C soc2@47.656C gpu@47.75C tj@48.5C "
    "VDD_IN 4826mW/4751mW VDD_CPU_GPU_CV 501mW/498mW VDD_SOC 1453mW/1450mW"
)
AGX_ORIN = (
    "RAM 5678/62795MB (lfb 12345x4MB) SWAP 0/31398MB (cached 0MB) CPU [12%@2201,34%@2201] "
    "EMC_FREQ 0% GR3D_FREQ 78% GR3D2_FREQ 0% cpu@48.5C tj@52C VDD_GPU_SOC 3456mW/3400mW "
    "VDD_CPU_CV 2345mW/2300mW VIN_SYS_5V0 4240mW/4240mW NC 0mW/0mW VDDQ_VDD2_1V8AO 603mW/603mW"
)
OLD_NANO = (
    "RAM 1766/3964MB (lfb 197x4MB) SWAP 0/2048MB (cached 0MB) CPU [24%@1224,15%@1224] EMC_FREQ 0% "
    "GR3D_FREQ 0% PLL@21C CPU@25C POM_5V_IN 2545/2547 POM_5V_GPU 0/0 POM_5V_CPU 549/529"
)
SHORT = "RAM 3162/7620MB (lfb 4x2MB) GR3D_FREQ 1% tj@62.843C VDD_IN 3913mW/3922mW VDD_SOC 598mW/598"


# tegrastats.


def test_a_line_of_a_board_with_one_input() -> None:
    line = tegrastats.parse(ORIN_NANO)
    assert line.watts == {"VDD_IN": 4.826, "VDD_CPU_GPU_CV": 0.501, "VDD_SOC": 1.453}
    assert line.temperatures_c == {"cpu": 48.062, "soc2": 47.656, "gpu": 47.75, "tj": 48.5}
    assert (line.gpu_percent, line.gpu_mhz) == (37, 305)
    assert tegrastats.total(line.watts) == ("VDD_IN", 4.826)


def test_a_line_of_a_board_whose_inputs_are_several() -> None:
    line = tegrastats.parse(AGX_ORIN)
    assert line.watts["VDDQ_VDD2_1V8AO"] == 0.603
    assert (line.gpu_percent, line.gpu_mhz) == (78, None)
    name, watts = tegrastats.total(line.watts) or ("", 0)
    assert name == "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"
    assert watts == pytest.approx(3.456 + 2.345 + 4.24)


def test_lines_without_units_and_cut_lines() -> None:
    old = tegrastats.parse(OLD_NANO)
    assert old.watts == {"POM_5V_IN": 2.545, "POM_5V_GPU": 0.0, "POM_5V_CPU": 0.549}
    assert "RAM" not in old.watts
    assert tegrastats.total(old.watts) == ("POM_5V_IN", 2.545)
    assert tegrastats.parse(SHORT).watts == {"VDD_IN": 3.913, "VDD_SOC": 0.598}
    for text in ("", "tegrastats: not found", "RAM 3162/7620MB (lfb 4x2MB)"):
        assert tegrastats.parse(text) == tegrastats.Line()
    assert tegrastats.total({"VDD_SOC": 1.0}) is None


@pytest.mark.skipif(os.name != "posix", reason="a script stands in for the program")
def test_the_program_is_followed_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "tegrastats"
    loop = f"while true; do echo '{ORIN_NANO}'; sleep 0.02; done"
    script.write_text(f'#!/bin/sh\n[ "$1 $2" = "--interval 100" ] || exit 1\n{loop}\n')
    script.chmod(0o755)
    monkeypatch.setattr(tegrastats, "find", lambda name: str(script) if name else None)
    meter = tegrastats.Tegrastats.here()
    assert meter is not None
    deadline = time.monotonic() + 5
    while not meter.read(0.0) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert meter.total(meter.read(0.0)) == ("VDD_IN", 4.826)
    meter.close()
    assert meter._process.poll() is not None
    monkeypatch.setattr(tegrastats, "find", lambda _: None)
    assert tegrastats.Tegrastats.here() is None


# Files of the kernel.


def write(root: Path, files: Mapping[str, object]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def test_rails_of_a_board(tmp_path: Path) -> None:
    folder = "sys/class/hwmon/hwmon3"
    write(tmp_path, {"sys/class/hwmon/hwmon0/name": "acpitz", f"{folder}/name": "ina3221"})
    write(tmp_path, {f"{folder}/in1_label": "VDD_IN", f"{folder}/in2_label": "VDD_SOC"})
    write(tmp_path, {f"{folder}/in1_input": 5000, f"{folder}/curr1_input": 960})
    write(tmp_path, {f"{folder}/in2_input": 5000})  # no current: not a rail
    write(tmp_path, {f"{folder}/in7_label": "sum of shunt voltages", f"{folder}/in7_input": 3})
    meter = rails.Rails.here(tmp_path)
    assert meter is not None
    assert meter.read(0.0) == {"VDD_IN": 4.8}
    write(tmp_path, {f"{folder}/curr1_input": 1200})
    assert meter.total(meter.read(0.1)) == ("VDD_IN", 6.0)
    assert rails.Rails.here(tmp_path / "nothing") is None


def test_a_sensor_that_tells_power_itself(tmp_path: Path) -> None:
    folder = "sys/class/hwmon/hwmon1"
    write(tmp_path, {f"{folder}/name": "ina238", f"{folder}/power1_label": "VIN"})
    write(tmp_path, {f"{folder}/power1_input": 12_500_000})
    meter = rails.Rails.here(tmp_path)
    assert meter is not None
    assert meter.total(meter.read(0.0)) == ("VIN", 12.5)


def package(root: Path, number: str, name: str, joules: float) -> None:
    folder = f"sys/class/powercap/intel-rapl:{number}"
    write(root, {f"{folder}/name": name, f"{folder}/energy_uj": int(joules * 1e6)})
    write(root, {f"{folder}/max_energy_range_uj": 1_000_000_000})


def test_packages_of_a_processor(tmp_path: Path) -> None:
    package(tmp_path, "0", "package-0", 10)
    package(tmp_path, "0:0", "core", 4)  # a part of it
    package(tmp_path, "1", "package-1", 990)
    package(tmp_path, "2", "psys", 1)
    meter = rails.Rapl.here(tmp_path)
    assert isinstance(meter, rails.Rapl)
    assert meter.read(5.0) == {}
    package(tmp_path, "0", "package-0", 16)
    package(tmp_path, "1", "package-1", 0)  # it began anew: 10 J of 1000
    assert meter.total(meter.read(5.5)) == ("package-0 + package-1", 12 + 20)
    assert meter.read(5.5) == {}  # no time has passed


def test_why_there_is_no_rapl(tmp_path: Path) -> None:
    assert rails.Rapl.here(tmp_path) == "no RAPL"
    package(tmp_path, "0", "package-0", 10)
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("")  # as for a user
    assert rails.Rapl.here(tmp_path) == "RAPL not readable (root only)"


# NVML.


class FakeNvml:
    """Answers like the library; `absent` are calls that this card does not know."""

    def __init__(self, absent: tuple[str, ...] = (), millijoules: int = 0) -> None:
        self.absent, self.millijoules = absent, millijoules
        self.inits = 0
        self.address = b""
        self.reasons = 0x4 | 0x40 | 0x1
        self.numbers: dict[str, int] = {
            "nvmlDeviceGetEnforcedPowerLimit": 450_000,
            "nvmlDeviceGetPowerUsage": 123_000,
            "nvmlDeviceGetTemperature": 61,
        }

    def __getattr__(self, name: str) -> Any:
        if name in self.absent:
            raise AttributeError(name)
        return lambda *arguments: self.answer(name, *arguments)

    def answer(self, name: str, *a: Any) -> int:
        if name in ("nvmlInit_v2", "nvmlShutdown"):
            self.inits += 1 if name == "nvmlInit_v2" else -1
        elif name == "nvmlDeviceGetHandleByPciBusId_v2":
            self.address = a[0]
        elif name == "nvmlDeviceGetHandleByIndex_v2":
            return 0 if a[0].value == 0 else 2
        elif name == "nvmlDeviceGetName":
            a[1].value = b"RTX 4070"
        elif name == "nvmlSystemGetDriverVersion":
            a[0].value = b"550.54"
        elif name in ("nvmlDeviceGetClockInfo", "nvmlDeviceGetMaxClockInfo"):
            a[2]._obj.value = (100 if "Max" in name else 90) * (a[1].value + 1)
        elif name == "nvmlDeviceGetTotalEnergyConsumption":
            a[1]._obj.value = self.millijoules
        elif name.endswith(("EventReasons", "ThrottleReasons")):
            a[1]._obj.value = self.reasons
        elif name == "nvmlDeviceGetComputeRunningProcesses_v3":
            a[1]._obj.value = 2
            return 7
        else:
            a[-1]._obj.value = self.numbers[name]
        return 0


class FakeCuda:
    """The driver, as far as it knows where a device is."""

    def cuInit(self, _flags: int) -> int:
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index
        return 0 if index < 2 else 101

    def cuDeviceGetPCIBusId(self, text: Any, _size: int, device: Any) -> int:
        text.value = b"0000:%02x:00.0" % (device.value + 65)
        return 0


def card(library: FakeNvml, cuda: Any = None) -> nvml.Nvml:
    found = nvml.Nvml.here(0, library, cuda or FakeCuda())
    assert isinstance(found, nvml.Nvml)
    return found


def test_what_a_card_says_of_itself() -> None:
    library = FakeNvml()
    found = card(library)
    assert found.describe() == {
        "name": "RTX 4070",
        "driver": "550.54",
        "clocks_mhz": {
            "graphics": {"now": 90, "max": 100},
            "sm": {"now": 180, "max": 200},
            "memory": {"now": 270, "max": 300},
        },
        "power_limit_w": 450.0,
        "temperature_c": 61,
        "throttled_by": ["power cap", "thermal slowdown (hardware)"],
        "processes": 2,
    }
    assert found.clock_mhz() == 180
    found.close()
    assert library.inits == 0


def test_a_device_is_found_by_its_place_on_the_bus() -> None:
    library = FakeNvml()
    nvml.Nvml.here(1, library, FakeCuda())
    assert library.address == b"0000:42:00.0"


def test_power_by_the_counter_else_of_the_moment() -> None:
    library = FakeNvml(millijoules=1000)
    found = card(library)
    assert found.has_power()
    assert found.read(1.0) == {}
    library.millijoules = 6000
    assert found.total(found.read(1.5)) == ("RTX 4070", 10.0)
    old = card(FakeNvml(("nvmlDeviceGetTotalEnergyConsumption",)))
    assert old.has_power()
    assert old.read(1.0) == {"RTX 4070": 123.0}
    mute = ("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage")
    silent = card(FakeNvml(mute))
    assert not silent.has_power()
    assert silent.total(silent.read(1.0)) is None


def test_older_libraries_tell_reasons_by_the_older_name() -> None:
    library = FakeNvml(("nvmlDeviceGetCurrentClocksEventReasons",))
    assert card(library).throttles() == ["power cap", "thermal slowdown (hardware)"]
    both = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
    assert card(FakeNvml(both)).throttles() == []
    assert (
        card(FakeNvml(("nvmlDeviceGetComputeRunningProcesses_v3",))).describe()["processes"] is None
    )


def test_why_there_is_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeNvml()
    assert nvml.Nvml.here(5, library, FakeCuda()) == "NVML knows no device 5 (code 2)"
    assert library.inits == 0
    monkeypatch.setattr(library, "answer", lambda *_: 9)
    assert nvml.Nvml.here(0, library, FakeCuda()) == "NVML does not start (code 9)"

    def absent(_name: str) -> Any:
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert nvml.Nvml.here(0) == "no NVML"


# The log.


class FakeMeter:
    """Power as a test sets it."""

    name = "fake"

    def __init__(self) -> None:
        self.watts: dict[str, float] = {"in": 4.0, "part": 1.0}
        self.is_closed = False

    def read(self, _now_s: float) -> Mapping[str, float]:
        return dict(self.watts)

    def total(self, watts: Mapping[str, float]) -> tuple[str, float] | None:
        return ("in", watts["in"]) if "in" in watts else None

    def close(self) -> None:
        self.is_closed = True


def test_energy_is_mean_power_inside_the_turns_times_the_time_of_a_picture() -> None:
    meter, now = FakeMeter(), [0.0]
    log = PowerLog([meter], lambda: now[0])
    for second, watts in enumerate((9.0, 10.0, 12.0, 99.0, 14.0, 99.0)):
        now[0], meter.watts["in"] = float(second), watts
        log.take()
    log._idle = {"fake": {"in": 4.0}}
    # readings at 1 and 2 lie in the first turn, that at 4 began before the second
    (found,) = log.summary([(0.0, 2.5), (3.5, 4.5)], 0.02)
    assert (found["n"], found["mean_w"], found["idle_w"]) == (3, (9 + 10 + 12) / 3, 4.0)
    assert found["mj_per_item"] == pytest.approx(1e3 * 31 / 3 * 0.02)
    assert found["mj_per_item_above_idle"] == pytest.approx(1e3 * (31 / 3 - 4) * 0.02)
    assert (found["rail"], found["rails_w"]["part"]) == ("in", 1.0)
    assert log.summary([(50.0, 60.0)], 0.02) == []


def test_the_thread_reads_idle_power_first_and_ends() -> None:
    meter = FakeMeter()
    log = PowerLog([meter], interval_s=0.005)
    log.start(idle_s=0.1)
    assert log._idle["fake"]["in"] == 4.0
    log.close()
    assert meter.is_closed
    assert not log._thread.is_alive()  # type: ignore[union-attr]


def test_without_meters_nothing_runs() -> None:
    log = PowerLog([])
    log.start()  # at once
    assert log._thread is None
    assert log.summary([(0.0, 1.0)], 1.0) == []
    log.close()


def test_what_is_absent_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = card(FakeNvml(("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage")))
    monkeypatch.setattr(power.Nvml, "here", lambda _: "no NVML")
    monkeypatch.setattr(power.Rapl, "here", lambda: "RAPL not readable (root only)")
    monkeypatch.setattr(power.Rails, "here", lambda: None)
    monkeypatch.setattr(power, "is_jetson", lambda: False)
    found, absent = power.meters()
    assert found == []
    assert absent == ["no NVML", "no tegrastats", "RAPL not readable (root only)"]
    meter = FakeMeter()
    monkeypatch.setattr(power.Nvml, "here", lambda _: silent)
    monkeypatch.setattr(power.Tegrastats, "here", lambda: meter)
    monkeypatch.setattr(power, "is_jetson", lambda: True)
    found, absent = power.meters()
    assert found == [meter]
    assert absent[0] == "NVML tells no power of RTX 4070"


def test_a_library_without_a_name_for_its_card_is_no_fault() -> None:
    library = FakeNvml()
    plain = library.answer
    library.answer = lambda name, *a: 3 if name == "nvmlDeviceGetName" else plain(name, *a)  # type: ignore[method-assign]
    assert card(library).card == "GPU"
