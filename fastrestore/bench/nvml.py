"""An NVIDIA GPU's clocks, temperature, throttling and power, by NVML. Never run on a GPU yet.

The library comes with the driver; it is called through ctypes, so that nothing is to be installed.
What a card does not tell is None. The order of its devices is that of the bus, whatever
CUDA_VISIBLE_DEVICES says, so a device is looked up by its address there.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from typing import Any

from fastrestore.cuda_driver import LIBRARY as CUDA

LIBRARY = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
# bit -> word; those that cost speed
THROTTLES = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "thermal slowdown (software)",
    0x40: "thermal slowdown (hardware)",
    0x80: "power brake",
}
_CLOCKS = {"graphics": 0, "sm": 1, "memory": 2}


class Nvml:
    """One device, from `here` to `close`."""

    name = "nvml"

    def __init__(self, library: Any, device: ctypes.c_void_p) -> None:
        """Take an initialised library and a device of it."""
        self._nvml, self._device = library, device
        self._last: tuple[float, int] | None = None
        self.card = self._text("nvmlDeviceGetName", device) or "GPU"

    @classmethod
    def here(cls, index: int = 0, library: Any = None, cuda: Any = None) -> Nvml | str:
        """Return a device, or why there is none.

        Args:
            index: Among those that CUDA_VISIBLE_DEVICES leaves.
            library: Stands in for NVML in tests.
            cuda: Stands in for CUDA's driver in tests.
        """
        try:
            nvml = ctypes.CDLL(LIBRARY) if library is None else library
        except OSError:
            return "no NVML"
        if code := nvml.nvmlInit_v2():
            return f"NVML does not start (code {code})"
        device = ctypes.c_void_p()
        address = _address(index, cuda)
        if address is None:
            code = nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device))
        else:
            code = nvml.nvmlDeviceGetHandleByPciBusId_v2(address, ctypes.byref(device))
        if code:
            nvml.nvmlShutdown()
            return f"NVML knows no device {index} (code {code})"
        return cls(nvml, device)

    def describe(self) -> dict[str, Any]:
        """Return what the report keeps of the card: it stays, or is that of the moment."""
        clocks = {
            kind: {
                "now": self._number("nvmlDeviceGetClockInfo", ctypes.c_uint(number)),
                "max": self._number("nvmlDeviceGetMaxClockInfo", ctypes.c_uint(number)),
            }
            for kind, number in _CLOCKS.items()
        }
        limit = self._number("nvmlDeviceGetEnforcedPowerLimit")
        return {
            "name": self.card,
            "driver": self._text("nvmlSystemGetDriverVersion"),
            "clocks_mhz": clocks,
            "power_limit_w": None if limit is None else limit / 1e3,
            "temperature_c": self.temperature_c(),
            "throttled_by": self.throttles(),
            "processes": self._processes(),
        }

    def clock_mhz(self) -> int | None:
        """Return the clock of the multiprocessors now."""
        return self._number("nvmlDeviceGetClockInfo", ctypes.c_uint(_CLOCKS["sm"]))

    def temperature_c(self) -> int | None:
        """Return the temperature of the chip."""
        return self._number("nvmlDeviceGetTemperature", ctypes.c_uint(0))

    def throttles(self) -> list[str]:
        """Return in words what slows the card down now."""
        bits = ctypes.c_ulonglong()
        for call in (
            "nvmlDeviceGetCurrentClocksEventReasons",
            "nvmlDeviceGetCurrentClocksThrottleReasons",  # before driver 535
        ):
            if self._ask(call, ctypes.byref(bits)):
                return [word for bit, word in THROTTLES.items() if bits.value & bit]
        return []

    def has_power(self) -> bool:
        """Return whether the card tells its power at all."""
        energy = ctypes.c_ulonglong()
        return (
            self._ask("nvmlDeviceGetTotalEnergyConsumption", ctypes.byref(energy))
            or self._number("nvmlDeviceGetPowerUsage") is not None
        )

    def read(self, now_s: float) -> Mapping[str, float]:
        """See `power.Meter`: by the energy counter, which older cards lack."""
        energy = ctypes.c_ulonglong()
        if not self._ask("nvmlDeviceGetTotalEnergyConsumption", ctypes.byref(energy)):
            milliwatts = self._number("nvmlDeviceGetPowerUsage")
            return {} if milliwatts is None else {self.card: milliwatts / 1e3}
        before, self._last = self._last, (now_s, energy.value)
        if before is None or now_s <= before[0]:
            return {}
        return {self.card: (energy.value - before[1]) / 1e3 / (now_s - before[0])}

    def total(self, watts: Mapping[str, float]) -> tuple[str, float] | None:
        """See `power.Meter`; the host is not counted."""
        return (self.card, watts[self.card]) if self.card in watts else None

    def close(self) -> None:
        """Give the library back."""
        self._nvml.nvmlShutdown()

    def _processes(self) -> int | None:
        """Return how many processes compute on the card, this one among them."""
        count = ctypes.c_uint(0)
        try:
            call = self._nvml.nvmlDeviceGetComputeRunningProcesses_v3
        except AttributeError:
            return None
        code = call(self._device, ctypes.byref(count), None)
        return count.value if code in (0, 7) else None  # 7: there are some, and no room for them

    def _ask(self, call: str, *arguments: Any) -> bool:
        try:
            function = getattr(self._nvml, call)
        except AttributeError:  # a library that is older than the call
            return False
        return bool(function(self._device, *arguments) == 0)

    def _number(self, call: str, *arguments: Any) -> int | None:
        number = ctypes.c_uint()
        return number.value if self._ask(call, *arguments, ctypes.byref(number)) else None

    def _text(self, call: str, *arguments: Any) -> str | None:
        text = ctypes.create_string_buffer(96)
        code = getattr(self._nvml, call)(*arguments, text, ctypes.c_uint(len(text)))
        return None if code else text.value.decode(errors="replace")


def _address(index: int, cuda: Any = None) -> bytes | None:
    """Return where on the bus CUDA's device is; None if the driver does not tell."""
    try:
        driver = ctypes.CDLL(CUDA) if cuda is None else cuda
    except OSError:
        return None
    device, text = ctypes.c_int(), ctypes.create_string_buffer(32)
    if (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), index)
        or driver.cuDeviceGetPCIBusId(text, len(text), device)
    ):
        return None
    return text.value
