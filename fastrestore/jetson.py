"""What a Jetson says of itself, read without root and without running anything that could hang."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fastrestore.probe import ROOT, ask, read

# L4T release -> JetPack; the longest that the release begins with counts
JETPACKS = {
    "36.4.0": "6.1",
    "36.4": "6.2",
    "36.5": "6.2",
    "38.2": "7.0",
    "38.4": "7.1",
    "39.2": "7.2",
}
OLDEST_L4T = (36, 4)  # the first with TensorRT 10.3
_TEGRA = re.compile(r"R(\d+)\b.*?REVISION:\s*([\d.]+)")
_MODE = re.compile(r"NV Power Mode:\s*(\S.*?)\s*\n\s*(\d+)")
_CONFIGURED = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>")
_DRIVER = re.compile(r"\b\d{3,}(?:\.\d+)+\b")


@dataclass(frozen=True, slots=True)
class Mode:
    """A power mode: its number, which differs between boards, and its name, empty if unknown."""

    number: int
    name: str


def is_jetson(root: Path = ROOT) -> bool:
    """Return whether this is a Jetson; also inside a container, which has no release file."""
    return (root / "etc/nv_tegra_release").exists() or b"nvidia,tegra" in _bytes(
        root / "proc/device-tree/compatible"
    )


def is_container(root: Path = ROOT) -> bool:
    """Return whether this runs in a container, as far as Docker and Podman tell."""
    return any((root / name).exists() for name in (".dockerenv", "run/.containerenv"))


def board(root: Path = ROOT) -> str:
    """Return the board's name; empty if it has none."""
    return _bytes(root / "proc/device-tree/model").rstrip(b"\0 \n").decode(errors="replace")


def release(root: Path = ROOT) -> str | None:
    """Return the release of the board's Linux (L4T), as `36.4.3`; None if it does not tell."""
    found = _TEGRA.search(read(root / "etc/nv_tegra_release"))
    return f"{found[1]}.{found[2]}" if found else None


def jetpack(l4t: str | None) -> str | None:
    """Return the JetPack version: of the package, else as the release tells; None if neither."""
    package = ask(["dpkg-query", "--show", "--showformat=${Version}", "nvidia-jetpack"]).text
    if package:
        return package.partition("+")[0]
    fits = [known for known in JETPACKS if f"{l4t}.".startswith(f"{known}.")]
    return JETPACKS[max(fits, key=len)] if fits else None


def power_modes(root: Path = ROOT) -> list[Mode]:
    """Return the modes that this board has."""
    text = read(root / "etc/nvpmodel.conf")
    return [Mode(int(number), name) for number, name in _CONFIGURED.findall(text)]


def power_mode(root: Path = ROOT) -> Mode | None:
    """Return the mode that is set; None if it is not told to this user, or in this container."""
    found = _MODE.search(ask(["nvpmodel", "-q"]).text)
    if found:
        return Mode(int(found[2]), found[1])
    stored = re.search(r"pmode:\s*(\d+)", read(root / "var/lib/nvpmodel/status"))
    if stored is None:
        return None
    number = int(stored[1])
    return Mode(number, next((m.name for m in power_modes(root) if m.number == number), ""))


def gpu_clocks_mhz(root: Path = ROOT) -> tuple[int, int] | None:
    """Return between what the GPU's clock may change: twice the same if it is locked."""
    folders = [
        f
        for f in sorted((root / "sys/class/devfreq").glob("*"))
        if f.name.startswith("gpu-gpc") or f.name.endswith((".gpu", ".ga10b", ".gv11b"))
    ]
    for folder in folders:
        low, high = (read(folder / name).strip() for name in ("min_freq", "max_freq"))
        if low.isdigit() and high.isdigit():
            return int(low) // 1_000_000, int(high) // 1_000_000
    return None


def swap_mb(root: Path = ROOT) -> tuple[int, bool]:
    """Return the size of all swap, and whether it is nothing but compressed memory."""
    rows = [line.split() for line in read(root / "proc/swaps").splitlines()[1:]]
    rows = [row for row in rows if len(row) > 2 and row[2].isdigit()]
    kilobytes = sum(int(row[2]) for row in rows)
    return kilobytes // 1024, bool(rows) and all("zram" in row[0] for row in rows)


def driver_version(root: Path = ROOT) -> str | None:
    """Return the version of the driver that the kernel has loaded, on any machine."""
    found = _DRIVER.search(read(root / "proc/driver/nvidia/version"))
    return found.group() if found else None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
