"""The description of a machine, from files laid out as the kernel and git lay them out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from fastrestore import environment


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor\t: 0\nmodel name\t: Fast CPU @ 3 GHz\n", "Fast CPU @ 3 GHz"),
        ("processor\t: 0\nBogoMIPS: 38\n\nHardware\t: BCM2835\nModel\t\t: Pi 5\n", "Pi 5"),
    ],
)
def test_cpu_model(tmp_path: Path, text: str, name: str) -> None:
    write(tmp_path, {"cpuinfo": text})
    assert environment.cpu_model(tmp_path) == name
    assert environment.cpu_model(tmp_path / "absent")


A, B = "a" * 40, "b" * 40


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, None),
        ({".git/HEAD": f"{A}\n"}, A),
        ({".git/HEAD": "ref: refs/heads/main\n"}, None),
        ({".git/HEAD": "ref: refs/heads/main\n", ".git/refs/heads/main": f"{A}\n"}, A),
        (
            {
                ".git/HEAD": "ref: refs/heads/main\n",
                ".git/packed-refs": f"# pack-refs\n{B} refs/heads/other\n{A} refs/heads/main\n",
            },
            A,
        ),
        (
            {  # a loose ref is newer than its packed copy
                ".git/HEAD": "ref: refs/heads/main\n",
                ".git/refs/heads/main": f"{A}\n",
                ".git/packed-refs": f"{B} refs/heads/main\n",
            },
            A,
        ),
        (
            {  # a linked work tree keeps HEAD for itself and shares the refs
                ".git": "gitdir: repo/worktrees/w\n",
                "repo/worktrees/w/HEAD": "ref: refs/heads/side\n",
                "repo/worktrees/w/commondir": "../..\n",
                "repo/refs/heads/side": f"{B}\n",
            },
            B,
        ),
        ({".git/HEAD": "garbage\n"}, None),
    ],
)
def test_commit(tmp_path: Path, files: dict[str, str], found: str | None) -> None:
    write(tmp_path, files)
    assert environment.commit(tmp_path) == found


def test_commit_of_a_surrounding_checkout_is_not_ours(tmp_path: Path) -> None:
    write(tmp_path, {".git/HEAD": f"{A}\n"})
    assert environment.commit(tmp_path / "venv") is None


def test_describe_is_plain_json_and_says_what_is_doubtful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "usable_cores", lambda: 2)
    monkeypatch.setattr(environment, "load_average", lambda: [1.5, 1.0, 0.5])
    memory = {"total": 1, "available": 1, "limit": None, "swap_used": 7}
    monkeypatch.setattr(environment, "memory_mb", lambda: memory)
    env = json.loads(json.dumps(environment.describe()))
    assert env["packages"]["numpy"] == np.__version__
    assert set(env["packages"]) == set(environment.PACKAGES)
    assert len([w for w in env["warnings"] if "load average 1.5 on 2 cores" in w]) == 1
    assert len([w for w in env["warnings"] if "7 MB of swap" in w]) == 1
    monkeypatch.setattr(environment, "load_average", lambda: [1.0, 1.0, 1.0])
    memory["swap_used"] = 0
    assert environment.describe()["warnings"] == []


def test_load_average_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "getloadavg", raising=False)
    assert environment.load_average() is None


def test_clocks_of_a_board_with_two_kinds_of_cores(tmp_path: Path) -> None:
    for core, (now, most) in enumerate(((1_200_000, 1_510_400), (2_188_800, 2_201_600))):
        folder = f"sys/devices/system/cpu/cpu{core}/cpufreq"
        write(
            tmp_path,
            {
                f"{folder}/scaling_cur_freq": f"{now}\n",
                f"{folder}/cpuinfo_max_freq": f"{most}\n",
                f"{folder}/scaling_governor": "schedutil\n",
            },
        )
    assert environment.clocks_mhz(tmp_path / "sys", tmp_path / "proc") == {
        "now": [1200.0, 2188.8],
        "max": [1510.4, 2201.6],
        "governor": "schedutil",
    }


def test_clocks_where_only_the_processor_tells_them(tmp_path: Path) -> None:
    write(tmp_path, {"proc/cpuinfo": "cpu MHz\t\t: 2596.152\n\ncpu MHz\t\t: 3100.5\n"})
    found = environment.clocks_mhz(tmp_path / "sys", tmp_path / "proc")
    assert found == {"now": [2596.152, 3100.5], "max": None, "governor": None}
    nothing = environment.clocks_mhz(tmp_path / "no", tmp_path / "no")
    assert nothing == {"now": None, "max": None, "governor": None}


def test_temperatures_leave_out_what_is_switched_off(tmp_path: Path) -> None:
    zones = {"cpu-thermal": "48062", "cv0-thermal": "-256000", "x86_pkg_temp": "61000", "odd": "no"}
    for i, (name, value) in enumerate(zones.items()):
        folder = f"class/thermal/thermal_zone{i}"
        write(tmp_path, {f"{folder}/type": f"{name}\n", f"{folder}/temp": f"{value}\n"})
    found = environment.temperatures_c(tmp_path)
    assert found == {"cpu-thermal": 48.062, "x86_pkg_temp": 61.0}


@pytest.mark.parametrize(
    ("text", "virtual"),
    [
        ("flags\t\t: fpu vme hypervisor lahf_lm\n", True),
        ("flags\t\t: fpu vme lahf_lm\n", False),
        ("Features\t: fp asimd\n", False),
        ("", False),
    ],
)
def test_virtual_machines_are_told(tmp_path: Path, text: str, virtual: bool) -> None:
    write(tmp_path, {"cpuinfo": text})
    assert environment.is_virtual(tmp_path) is virtual
