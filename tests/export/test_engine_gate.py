"""The verify gate on stand-ins: a good engine passes, a bad one is refused with the reason."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fastrestore.arrays import F32, U8
from fastrestore.backend import Backend, read_model
from fastrestore.backends.ort import OrtBackend
from fastrestore.engine_file import (
    EngineRecord,
    ModelRecord,
    Verification,
    read_record,
    write_engine,
)
from fastrestore.engine_record import system
from fastrestore.errors import EngineError, ModelError
from fastrestore.export import gate
from fastrestore.export.gate import LIMITS, Fixture, compare, fixtures, judge, loss
from fastrestore.export.precision import to_fp16
from fastrestore.export.quality import ort_runner
from fastrestore.spec import ModelSpec

SIZE = (1, 64, 96)
SPEC = ModelSpec("fake", "nano", 8, 64, 6, "free", "CC0-1.0")
OS, ARCH = system()


class Echo:
    """Gives the frame back, a little changed."""

    name, spec = "echo", SPEC

    def __init__(self, change: Any = lambda restored: restored, state: int = 0) -> None:
        self.change, self.add, self.warm = change, state, list[tuple[int, ...]]()

    def run(self, frame: U8, mask: U8, state: U8, sigma: F32) -> tuple[U8, U8]:
        out = self.change(frame.astype(np.int16))
        return np.clip(out, 0, 255).astype(np.uint8), np.minimum(state, 200) + np.uint8(self.add)

    def warm_up(self, shape: tuple[int, int, int]) -> None:
        self.warm.append(shape)

    def close(self) -> None:
        self.is_closed = True


class Form:
    """A form of a model in ONNX Runtime: stands for an engine of that precision."""

    name = "form"

    def __init__(self, model: Any, spec: ModelSpec) -> None:
        self.spec, self.run = spec, ort_runner(model)

    def warm_up(self, shape: tuple[int, int, int]) -> None: ...

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def cases() -> list[Fixture]:
    return fixtures(SIZE)


@pytest.fixture
def clock() -> Any:
    ticks = iter(range(10_000))
    return lambda: next(ticks) / 100


def record(precision: Any = "fp16", low: Any = SIZE, high: Any = SIZE, sha: str = "a" * 64) -> Any:
    return EngineRecord(
        product="tensorrt_rtx",
        product_version="1.7.1.116",
        os=OS,
        arch=ARCH,
        model=ModelRecord("nano", 1, sha, "free", "Apache-2.0"),
        precision=precision,
        profile={"frame": ((*low, 3), (*SIZE, 3), (*high, 3))},
        opt_level=3,
        build_seconds=1.0,
        code_version="0.1.0",
        compute_capabilities=("8.0+",),
    )


def test_fixtures_cover_what_breaks_engines(cases: list[Fixture]) -> None:
    names = [c.name for c in cases]
    assert len(set(names)) == len(names)
    for ratio in (10, 20, 30, 40, 50, 60):
        case = cases[names.index(f"holes {ratio}%")]
        assert abs(case.mask.mean() - ratio / 100) < 0.03
        assert not case.frame[case.mask[..., 0] > 0].any()
    assert {"white", "black", "checkerboard of pixels", "nothing known", "odd size"} <= set(names)
    assert cases[names.index("white")].frame.min() == 255
    assert cases[names.index("nothing known")].mask.all()
    assert {float(c.sigma[0]) for c in cases} == {0.0, 5.0, 25.0, 50.0, 254.0}
    assert any(c.state.any() for c in cases)
    odd = cases[names.index("odd size")].frame[0]
    assert (odd[-4] == odd[-1]).all()
    assert (odd[:, -6] == odd[:, -1]).all()


def test_fixtures_have_the_shapes_of_the_protocol_and_are_the_same_each_time() -> None:
    first, again = fixtures((2, 64, 64)), fixtures((2, 64, 64))
    for a, b in zip(first, again, strict=True):
        assert a.frame.shape == (2, 64, 64, 3)
        assert a.mask.shape == (2, 64, 64, 1)
        assert a.state.shape == (2, 64, 64, 4)
        assert a.sigma.shape == (2,)
        assert a.sigma.dtype == np.float32
        assert (a.frame == b.frame).all()
        assert (a.mask == b.mask).all()


def test_samples_are_continued_for_large_frames() -> None:
    assert fixtures((1, 640, 1100))[0].frame.shape == (1, 640, 1100, 3)


def test_a_backend_that_is_the_same_passes(cases: list[Fixture], clock: Any) -> None:
    candidate = Echo()
    verdict = judge(Echo(), candidate, cases, LIMITS["fp16"], clock)
    assert verdict.faults == ()
    v = verdict.verification
    assert (v.psnr, v.max_error, v.nan_count, v.cases, v.backend) == (
        None,
        0,
        0,
        len(cases),
        "echo",
    )
    assert v.mean_latency_ms == pytest.approx(10, rel=0.2)
    assert candidate.warm == [SIZE]


def test_one_level_off_passes_in_every_precision(cases: list[Fixture], clock: Any) -> None:
    for limits in LIMITS.values():
        verdict = judge(Echo(), Echo(lambda x: x + 1), cases, limits, clock)
        assert verdict.faults == ()
        assert verdict.verification.max_error == 1
        assert verdict.verification.psnr is not None


@pytest.mark.parametrize("precision", list(LIMITS))
def test_twenty_levels_off_is_refused(cases: list[Fixture], clock: Any, precision: Any) -> None:
    verdict = judge(Echo(), Echo(lambda x: x + 20), cases, LIMITS[precision], clock)
    assert any("dB from FP32, at least" in fault for fault in verdict.faults)
    assert verdict.verification.max_error == 20


@pytest.mark.parametrize("precision", list(LIMITS))
def test_black_is_refused(cases: list[Fixture], clock: Any, precision: Any) -> None:
    verdict = judge(Echo(), Echo(lambda x: x * 0), cases, LIMITS[precision], clock)
    assert "samples are black that should not be" in verdict.faults[0]
    assert verdict.verification.nan_count > 1000


def test_one_black_pixel_of_one_frame_is_refused(cases: list[Fixture], clock: Any) -> None:
    """Seen elsewhere: one frame of thousands, by its content."""

    def spot(x: Any) -> Any:
        if x.min() == 255:  # saturated white alone
            x[0, 3, 3] = 0
        return x

    verdict = judge(Echo(), Echo(spot), cases, LIMITS["int8"], clock)
    assert len(verdict.faults) >= 1
    assert all("white" in fault for fault in verdict.faults)
    assert verdict.verification.nan_count == 3


def test_a_wrong_state_is_refused(cases: list[Fixture], clock: Any) -> None:
    verdict = judge(Echo(), Echo(state=50), cases, LIMITS["fp16"], clock)
    assert "50 levels from FP32, at most 16" in verdict.faults[0]


def test_another_shape_is_refused(cases: list[Fixture], clock: Any) -> None:
    verdict = judge(Echo(), Echo(lambda x: x[:, ::2]), cases[:2], LIMITS["fp16"], clock)
    assert verdict.faults[0] == "holes 10%: gives uint8 (1, 32, 96, 3)"


def test_refusal_names_reason_and_fallback() -> None:
    line = str(gate.refusal("tiny fp16", ["white: 3 samples are black", "b", "c"]))
    assert line.startswith("tiny fp16: refused, white: 3 samples are black (and 2 more); build")
    assert "--backend ort" in line


def test_forms_of_a_real_model_pass() -> None:
    data, spec = read_model("nano", "restorer")
    model = onnx.load_model_from_string(data)
    reference, half = OrtBackend(data, spec, 1), Form(to_fp16(model), spec)
    verdict = compare(record(), reference, half)
    assert verdict.faults == ()
    assert verdict.verification.psnr is not None
    assert verdict.verification.psnr > 50
    lost = loss(reference, half, SIZE)
    assert abs(lost.holes_db) < 0.02
    assert abs(lost.noise_db) < 0.02


def test_loss_is_what_a_worse_backend_loses() -> None:
    lost = loss(Echo(), Echo(lambda x: x + 4), SIZE)
    assert lost.noise_db > 0.05
    assert loss(Echo(), Echo(), SIZE) == (0, 0)


def test_ends_of_a_dynamic_profile_are_judged_too() -> None:
    def only_large(x: Any) -> Any:
        return x if x.shape[2] == SIZE[2] else x * 0

    wide = record(low=(1, 64, 64), high=(1, 128, 128))
    verdict = compare(wide, Echo(), Echo(only_large))
    assert {f.split(":")[0] for f in verdict.faults} == {"1x64x64", "1x128x128"}
    assert verdict.verification.cases == len(fixtures(SIZE)) + 6


def write(folder: Path, **more: Any) -> Path:
    data, _ = read_model("nano", "restorer")
    sha = more.pop("sha", hashlib.sha256(data).hexdigest())
    path = folder / "x.engine"
    size = 2000
    body = b"vtrt" + bytes(12) + size.to_bytes(8, "little") + bytes(size - 24)
    write_engine(path, body, replace(record(sha=sha), **more))
    return path


def opened(monkeypatch: pytest.MonkeyPatch, change: Any) -> list[Any]:
    """Let engines be ONNX Runtime with its results changed."""
    made: list[Any] = []

    class Changed(Echo):
        def __init__(self, path: Path, spec: ModelSpec, device: int, trust: bool) -> None:
            super().__init__(change)
            self.trust = trust
            self.inner = OrtBackend(read_model("nano", "restorer")[0], spec, 1)

        def run(self, frame: U8, mask: U8, state: U8, sigma: F32) -> tuple[U8, U8]:
            restored, after = self.inner.run(frame, mask, state, sigma)
            changed = np.clip(self.change(restored.astype(np.int16)), 0, 255)
            return changed.astype(np.uint8), after

    def open_engine(path: Path, spec: ModelSpec, device: int = 0, trust: bool = False) -> Backend:
        made.append(Changed(path, spec, device, trust))
        backend: Backend = made[-1]
        return backend

    monkeypatch.setattr(gate, "open_engine", open_engine)
    monkeypatch.setattr(gate, "LATENCY_RUNS", 2)
    return made


def test_verify_engine_notes_it_in_the_sidecar(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, made = write(tmp_path), opened(monkeypatch, lambda x: x)
    found = gate.verify_engine(path)
    assert found["max_error"] == 0
    assert read_record(path).verification == Verification(**found)
    assert made[0].is_closed
    assert not made[0].trust


def test_verify_engine_trusts_what_others_may_change(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, made = write(tmp_path), opened(monkeypatch, lambda x: x)
    path.parent.chmod(0o777)
    with pytest.raises(EngineError, match="others may write"):
        gate.verify_engine(path)
    assert gate.verify_engine(path, trust=True)["max_error"] == 0
    assert [backend.trust for backend in made] == [True]


def test_verify_engine_refuses_and_takes_the_mark_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = Verification(50.0, 1.0, 0, 1.0, 19, "ort")
    path = write(tmp_path, verification=old)
    opened(monkeypatch, lambda x: x * 0)
    with pytest.raises(EngineError, match=r"x\.engine: refused, holes 10%: .* black"):
        gate.verify_engine(path)
    assert read_record(path).verification is None


def test_verify_engine_needs_the_model(tmp_path: Path) -> None:
    path = write(tmp_path, sha="b" * 64)
    with pytest.raises(ModelError, match="does not ship; add --model FILE"):
        gate.verify_engine(path)
    with pytest.raises(ModelError, match="is not what the engine was built from"):
        gate.verify_engine(path, "tiny")
