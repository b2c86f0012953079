"""Which engine of several is kept: the fastest that passes its gates, with the reasons in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fastrestore.engine_record import Precision
from fastrestore.errors import EngineError
from fastrestore.export.quantize import GATE_HOLES_DB, GATE_NOISE_DB, Loss

GATE_SPEED = 1.15  # INT8 against the fastest other: less is not worth any loss
AUTO = "auto: "  # begins every reason of an engine that was chosen


class Candidate(NamedTuple):
    """What can be built: a precision, and whether our kernels are in it."""

    precision: Precision
    plugins: bool = False

    def __str__(self) -> str:
        """Return `fp16` or `fp16 with plugins`."""
        return self.precision + (" with plugins" if self.plugins else "")


class Tried(NamedTuple):
    """A candidate and how it did: `fault` says why it could not be built or was refused."""

    candidate: Candidate
    latency_ms: float = 0.0
    loss: Loss | None = None
    fault: str = ""


class Chosen(NamedTuple):
    """The candidate that is kept, and a line on each."""

    candidate: Candidate
    reasons: tuple[str, ...]


def choose(tried: Sequence[Tried]) -> Chosen:
    """Keep the fastest candidate within the gates.

    INT8 may lose at most 0.05 dB at 20 % holes and 0.1 dB at sigma 25, and must be 1.15 times as
    fast as the fastest other one.

    Args:
        tried: All that were built and measured, or failed.

    Raises:
        EngineError: None passed.
    """
    sound = [t for t in tried if not t.fault]
    others = [t for t in sound if t.candidate.precision != "int8"]
    best = min(others, key=lambda t: t.latency_ms, default=None)
    faults = {t.candidate: t.fault or _int8_fault(t, best) for t in tried}
    passed = [t for t in tried if not faults[t.candidate]]
    if not passed:
        told = "; ".join(f"{c}: {fault}" for c, fault in faults.items()) or "nothing to build"
        raise EngineError(
            f"no candidate passed ({told}); build with --precision fp32, or run the model with "
            "--backend ort"
        )
    kept = min(passed, key=lambda t: t.latency_ms)
    return Chosen(kept.candidate, tuple(_reason(t, kept, faults[t.candidate]) for t in tried))


def _int8_fault(t: Tried, best: Tried | None) -> str:
    """Return why an INT8 engine that works is not taken; empty if it may be."""
    if t.candidate.precision != "int8":
        return ""
    if t.loss is None:
        return "what it loses was not measured"
    if t.loss.holes_db > GATE_HOLES_DB:
        return f"loses {t.loss.holes_db:.3f} dB at 20 % holes, at most {GATE_HOLES_DB:g} is allowed"
    if t.loss.noise_db > GATE_NOISE_DB:
        return f"loses {t.loss.noise_db:.3f} dB at sigma 25, at most {GATE_NOISE_DB:g} is allowed"
    if best is not None and best.latency_ms < GATE_SPEED * t.latency_ms:
        gain = best.latency_ms / t.latency_ms
        return f"is {gain:.2f} times as fast as {best.candidate}, at least {GATE_SPEED:g} is wanted"
    return ""


def _reason(t: Tried, kept: Tried, fault: str) -> str:
    figures = f" {t.latency_ms:.3f} ms" if t.latency_ms else ""
    if t.loss is not None:
        figures += f", loses {t.loss.holes_db:.3f} and {t.loss.noise_db:.3f} dB"
    verdict = "kept, the fastest" if t is kept else fault or "slower"
    return f"{AUTO}{t.candidate}{figures}: {verdict}"
