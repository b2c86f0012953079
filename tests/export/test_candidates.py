"""Which engine is kept, and what is said of the others."""

from __future__ import annotations

import pytest

from fastrestore.errors import EngineError
from fastrestore.export.candidates import Candidate, Tried, choose
from fastrestore.export.quantize import Loss

HALF, INT8, KERNELS = Candidate("fp16"), Candidate("int8"), Candidate("fp16", plugins=True)
FINE = Loss(0.02, 0.04)


def test_int8_is_kept_if_it_is_fast_and_good_enough() -> None:
    chosen = choose([Tried(HALF, 4.0), Tried(INT8, 3.0, FINE)])
    assert chosen.candidate == INT8
    assert chosen.reasons == (
        "auto: fp16 4.000 ms: slower",
        "auto: int8 3.000 ms, loses 0.020 and 0.040 dB: kept, the fastest",
    )


@pytest.mark.parametrize(
    ("latency_ms", "lost", "why"),
    [
        (3.6, FINE, "is 1.11 times as fast as fp16, at least 1.15 is wanted"),
        (1.0, Loss(0.06, 0.0), "loses 0.060 dB at 20 % holes, at most 0.05 is allowed"),
        (1.0, Loss(0.0, 0.11), "loses 0.110 dB at sigma 25, at most 0.1 is allowed"),
        (1.0, None, "what it loses was not measured"),
    ],
)
def test_int8_is_not_kept(latency_ms: float, lost: Loss | None, why: str) -> None:
    chosen = choose([Tried(HALF, 4.0), Tried(INT8, latency_ms, lost)])
    assert chosen.candidate == HALF
    assert chosen.reasons[1].endswith(why)


def test_at_the_limits_int8_is_kept() -> None:
    assert choose([Tried(HALF, 4.6), Tried(INT8, 4.0, Loss(0.05, 0.1))]).candidate == INT8


def test_int8_is_compared_with_the_fastest_other() -> None:
    tried = [Tried(HALF, 4.0), Tried(KERNELS, 3.2), Tried(INT8, 3.0, FINE)]
    chosen = choose(tried)
    assert chosen.candidate == KERNELS
    assert chosen.reasons[1] == "auto: fp16 with plugins 3.200 ms: kept, the fastest"
    assert "as fast as fp16 with plugins" in chosen.reasons[2]


def test_a_refused_one_is_passed_over_whatever_its_speed() -> None:
    chosen = choose([Tried(HALF, 0.1, fault="refused, white: black"), Tried(KERNELS, 3.2)])
    assert chosen.candidate == KERNELS
    assert chosen.reasons[0].endswith("refused, white: black")


def test_int8_alone_needs_no_comparison() -> None:
    failed = Tried(HALF, fault="out of memory")
    assert choose([failed, Tried(INT8, 3.0, FINE)]).candidate == INT8


def test_none_left_is_an_error_with_every_reason() -> None:
    tried = [Tried(HALF, fault="black"), Tried(INT8, 3.0, Loss(1.0, 0.0))]
    with pytest.raises(EngineError, match=r"fp16: black; int8: loses 1\.000 dB .*--backend ort"):
        choose(tried)
