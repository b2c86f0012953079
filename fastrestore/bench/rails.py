"""Power sensors in /sys: the rails of a Jetson's INA3221, the packages of an x86 processor (RAPL).

Tested on files laid out as the kernel's documentation says; never run on hardware.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fastrestore.bench import tegrastats
from fastrestore.probe import ROOT, read

_SENSORS = ("ina3221", "ina3221x", "ina238")


class Rails:
    """Power monitors on a board's rails, as volts and amperes of the moment."""

    name = "rails"

    def __init__(self, sensors: Mapping[str, tuple[Path, Path | None]]) -> None:
        """Take what `find` found."""
        self._sensors = sensors

    @classmethod
    def here(cls, root: Path = ROOT) -> Rails | None:
        """Return the monitors of this board, None where there are none that can be read.

        Args:
            root: Where the file system begins.
        """
        found: dict[str, tuple[Path, Path | None]] = {}
        for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
            if read(folder / "name").strip() not in _SENSORS:
                continue
            for label in sorted(folder.glob("in*_label")):
                number = label.name.removeprefix("in").removesuffix("_label")
                name = read(label).strip()
                volts, amperes = folder / f"in{number}_input", folder / f"curr{number}_input"
                if name and _number(volts) is not None and _number(amperes) is not None:
                    found[name] = (volts, amperes)
            power = folder / "power1_input"
            name = read(folder / "power1_label").strip()
            if name and _number(power) is not None:
                found[name] = (power, None)
        return cls(found) if found else None

    def read(self, _now_s: float) -> Mapping[str, float]:
        """See `power.Meter`."""
        watts = {}
        for name, (first, second) in self._sensors.items():
            a, b = _number(first), None if second is None else _number(second)
            if a is not None and second is None:
                watts[name] = a / 1e6  # microwatts
            elif a is not None and b is not None:
                watts[name] = a * b / 1e6  # millivolts, milliamperes
        return watts

    def total(self, watts: Mapping[str, float]) -> tuple[str, float] | None:
        """See `power.Meter`."""
        return tegrastats.total(watts)

    def close(self) -> None:
        """Nothing is held."""


class Rapl:
    """Energy counters of an x86 processor's packages: mean power since the last reading."""

    name = "rapl"

    def __init__(self, packages: Mapping[str, Path]) -> None:
        """Take the packages' folders by their names."""
        self._packages = packages
        self._ranges = {k: _number(f / "max_energy_range_uj") or 0 for k, f in packages.items()}
        self._last: dict[str, tuple[float, int]] = {}

    @classmethod
    def here(cls, root: Path = ROOT) -> Rapl | str:
        """Return the counters of this machine, or why there are none.

        Args:
            root: Where the file system begins.
        """
        folders = [
            folder
            for folder in sorted((root / "sys/class/powercap").glob("*-rapl:*"))
            if folder.name.count(":") == 1  # a second one counts a part of the first
        ]
        packages = {read(f / "name").strip() or f.name: f for f in folders}
        if not packages:
            return "no RAPL"
        if any(_number(f / "energy_uj") is None for f in folders):
            return "RAPL not readable (root only)"
        return cls(packages)

    def read(self, now_s: float) -> Mapping[str, float]:
        """See `power.Meter`."""
        watts = {}
        for name, folder in self._packages.items():
            joules = _number(folder / "energy_uj")
            if joules is None:
                continue
            before_s, before = self._last.get(name, (now_s, joules))
            self._last[name] = now_s, joules
            passed = joules - before
            if passed < 0:  # the counter began anew
                passed += self._ranges[name]
            if now_s > before_s:
                watts[name] = passed / (now_s - before_s) / 1e6
        return watts

    def total(self, watts: Mapping[str, float]) -> tuple[str, float] | None:
        """See `power.Meter`; memory and mainboard are not counted."""
        wanted = [name for name in self._packages if not name.startswith("psys")]
        if not wanted or not all(name in watts for name in wanted):
            return None
        return " + ".join(wanted), sum(watts[name] for name in wanted)

    def close(self) -> None:
        """Nothing is held."""


def _number(path: Path) -> int | None:
    text = read(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None
