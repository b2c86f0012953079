"""Building: on a stand-in what goes wrong, on the real TensorRT-RTX that it goes right."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from fastrestore.backend import find_model
from fastrestore.backends.engine_load import log_of
from fastrestore.errors import EngineError, OutputError
from fastrestore.export import builder
from fastrestore.export.builder import AbandonedError, Built, Settings, Size, build, profile_of
from fastrestore.export.precision import Convolution, inline, to_bf16, to_fp16
from fastrestore.export.progress import Progress, Shown
from fastrestore.export.quantize import calibration_inputs, quantize
from fastrestore.export.timings import read_timings, write_timings
from fastrestore.export.toolkit import Toolkit, installed, open_toolkit

SIDE: Size = (1, 128, 128)
needs_rtx = pytest.mark.skipif(
    "tensorrt_rtx" not in installed(),
    reason="tensorrt_rtx is not installed: pip install tensorrt-rtx-cu12 (x86_64 Linux, Windows)",
)


@functools.lru_cache
def load(name: str) -> ModelProto:
    return onnx.load(find_model(name))


@functools.lru_cache
def form(name: str, precision: str) -> ModelProto:
    model = load(name)
    if precision == "int8":
        rng = np.random.default_rng(0)
        pictures = [rng.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(2)]
        return to_fp16(quantize(model, calibration_inputs(pictures, 2, 0, model=model)))
    make = {"fp32": lambda m: m, "fp16": to_fp16, "bf16": to_bf16}[precision]
    return inline(make(model))


def fake_build(trt: Any, settings: Settings | None = None, **more: Any) -> Built:
    model = form("nano", "fp16")
    kit = Toolkit("tensorrt", trt, trt.__version__)
    profile = profile_of(model, SIDE, SIDE, SIDE)
    return build(kit, model, profile, settings or Settings(), **more)


def test_profile_has_every_input() -> None:
    profile = profile_of(load("nano"), (1, 64, 64), (2, 128, 96), (4, 256, 256))
    assert profile == {
        "frame": ((1, 64, 64, 3), (2, 128, 96, 3), (4, 256, 256, 3)),
        "mask": ((1, 64, 64, 1), (2, 128, 96, 1), (4, 256, 256, 1)),
        "state": ((1, 64, 64, 4), (2, 128, 96, 4), (4, 256, 256, 4)),
        "sigma": ((1,), (2,), (4,)),
    }


def test_settings_reach_the_library(fake_trt: Any) -> None:
    built = fake_build(fake_trt, Settings(opt_level=2, workspace_bytes=1 << 28))
    config = fake_trt.configs[0]
    assert config.builder_optimization_level == built.opt_level == 2
    assert config.pools == {"workspace": 1 << 28}
    assert config.profiling_verbosity == "detailed"
    assert config.profiles[0]["sigma"] == ((1,),) * 3
    assert fake_trt.networks[0].flags == 1 << 1  # strongly typed, nothing else
    assert built.data == b"ftrt" * 16


def test_plugins_ask_for_aot(fake_trt: Any) -> None:
    fake_build(fake_trt, Settings(plugins=("PackFrame",)))
    assert fake_trt.networks[0].flags == 1 << 1 | 1 << 3


def test_it_runs_around_the_device(fake_trt: Any) -> None:
    from contextlib import contextmanager

    seen: list[Any] = []

    @contextmanager
    def around() -> Any:
        seen.append(threading.current_thread().name)
        yield
        seen.append(fake_trt.n_built)

    fake_build(fake_trt, around=around)
    assert seen == ["build-engine", 1]


def lose_dilation(layers: list[Any]) -> None:
    i = next(i for i, x in enumerate(layers) if x.found and x.found.dilations == (2, 2))
    layers[i].found = layers[i].found._replace(dilations=(1, 1))


def lose_deconvolution(layers: list[Any]) -> None:
    layers.remove(next(x for x in layers if x.type == "deconv"))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            lose_dilation,
            r"lost 3x3 stride \(1, 1\) dilation \(2, 2\).*found 3x3.*dilation \(1, 1\)",
        ),
        (lose_deconvolution, r"2 transposed convolutions became 1, lost 2x2 stride \(2, 2\)"),
    ],
)
def test_a_network_that_is_not_the_graph_is_refused(fake_trt: Any, spoil: Any, told: str) -> None:
    fake_trt.spoil = spoil
    with pytest.raises(EngineError, match=told):
        fake_build(fake_trt)
    assert fake_trt.n_built == 0


def test_what_cannot_be_parsed_is_told(fake_trt: Any) -> None:
    fake_trt.parse_errors = ["In node 3 (importNode): Plugin not found, are the plugin name"]
    with pytest.raises(EngineError, match="nothing here knows; use --plugins off"):
        fake_build(fake_trt)


def test_what_cannot_be_built_is_told(fake_trt: Any) -> None:
    fake_trt.plans, fake_trt.errors = [None], ["CUDA error: out of memory"]
    with pytest.raises(EngineError, match="memory was used up; close other programs"):
        fake_build(fake_trt)


def test_a_size_that_is_only_warned_of_is_refused(fake_trt: Any) -> None:
    fake_trt.warnings = ["Profile kMIN values are not self-consistent: reshape would change volume"]
    with pytest.raises(EngineError, match="multiple"):
        fake_build(fake_trt)


def test_no_kernel_is_tried_once_more(fake_trt: Any) -> None:
    fake_trt.plans, fake_trt.errors = [None, b"ftrt2"], ["10: Could not find any implementation"]
    built = fake_build(fake_trt, Settings(opt_level=5, workspace_bytes=1 << 20))
    assert (built.data, built.opt_level) == (b"ftrt2", 3)
    assert fake_trt.configs[1].pools == {}
    assert "built again" in built.heard[0]


def test_no_kernel_twice_is_an_error(fake_trt: Any) -> None:
    fake_trt.plans, fake_trt.errors = [None] * 3, ["10: Could not find any implementation"]
    with pytest.raises(EngineError, match="give more --workspace"):
        fake_build(fake_trt, Settings(workspace_bytes=1 << 20))
    assert fake_trt.n_built == 2


def test_timings_are_kept_and_foreign_ones_passed_over(fake_trt: Any, tmp_path: Path) -> None:
    file = tmp_path / "timing.cache"
    fake_build(fake_trt, Settings(timing_cache=file))
    assert read_timings(file).data == b"device+new"
    write_timings(file, b"other GPU")
    built = fake_build(fake_trt, Settings(timing_cache=file))
    assert fake_trt.configs[1].refused == [b"other GPU"]
    assert built.heard == ("timing cache: of another device or version, begun anew",)
    assert read_timings(file).data == b"device+new"
    file.write_bytes(file.read_bytes()[:-1])
    built = fake_build(fake_trt, Settings(timing_cache=file))
    assert built.heard == ("timing cache: damaged, begun anew",)


def test_timings_never_replace_another_file(fake_trt: Any, tmp_path: Path) -> None:
    file = tmp_path / "photo.jpg"
    file.write_bytes(b"photo")
    with pytest.raises(OutputError, match="is no timing cache of fastrestore"):
        fake_build(fake_trt, Settings(timing_cache=file))
    file.unlink()

    def photo_comes(monitor: Any) -> bool:
        file.write_bytes(b"photo")
        return True

    fake_trt.on_build = photo_comes
    built = fake_build(fake_trt, Settings(timing_cache=file))
    assert built.heard[0].startswith("timing cache not kept: ")
    assert file.read_bytes() == b"photo"


def test_a_display_that_fails_is_the_error(fake_trt: Any) -> None:
    class Broken:
        def show(self, shown: Shown) -> None:
            raise OSError("terminal gone")

    def on_build(monitor: Any) -> bool:
        monitor.phase_start("root", None, 2)
        return bool(monitor.step_complete("root", 0))

    fake_trt.on_build = on_build
    with pytest.raises(OSError, match="terminal gone"):
        fake_build(fake_trt, progress=Progress(Broken()))


def interrupt_when(event: threading.Event) -> None:
    """Send this process SIGINT, as Ctrl+C does, once the build is at work."""

    def send() -> None:
        event.wait(5)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=send).start()


def test_interrupt_ends_the_build_at_its_next_step(fake_trt: Any) -> None:
    began, ended = threading.Event(), threading.Event()

    def on_build(monitor: Any) -> bool:
        began.set()
        while monitor.step_complete("root", 0):
            time.sleep(0.01)
        ended.set()
        return False

    fake_trt.on_build = on_build
    interrupt_when(began)
    with pytest.raises(KeyboardInterrupt) as caught:
        fake_build(fake_trt)
    assert caught.type is KeyboardInterrupt
    assert ended.is_set()


def test_a_step_that_does_not_end_is_left_behind(
    fake_trt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, let_go = threading.Event(), threading.Event()

    def on_build(monitor: Any) -> bool:
        began.set()
        let_go.wait(10)
        return False

    fake_trt.on_build = on_build
    monkeypatch.setattr(builder, "GRACE_S", 0.1)
    interrupt_when(began)
    start = time.monotonic()
    with pytest.raises(AbandonedError):
        fake_build(fake_trt)
    let_go.set()
    assert time.monotonic() - start < 1


class Watch:
    """Follows the real monitor and checks that phases nest."""

    def __init__(self, stop_at: int = 10**9) -> None:
        self.progress, self.stack, self.n, self.stop_at = Progress(), list[str](), 0, stop_at
        self.roots: list[tuple[str, int]] = []
        self.root_steps: list[int] = []
        self.failure: Exception | None = None

    @property
    def is_cancelled(self) -> bool:
        return self.n > self.stop_at

    def phase_start(self, name: str, parent: str | None, steps: int) -> None:
        assert parent == (self.stack[-1] if self.stack else None)
        if not self.stack:
            self.roots.append((name, steps))
        self.stack.append(name)

    def step_complete(self, name: str, step: int) -> bool:
        if name == self.roots[0][0]:
            self.root_steps.append(step)
        self.n += 1
        return self.n <= self.stop_at

    def phase_finish(self, name: str) -> None:
        assert self.stack.pop() == name


def real_build(name: str, precision: str, sizes: tuple[Size, Size, Size], **more: Any) -> Built:
    model = form(name, precision)
    return build(open_toolkit("tensorrt_rtx"), model, profile_of(model, *sizes), **more)


@needs_rtx
@pytest.mark.parametrize(
    ("name", "precision"),
    [("nano", "fp32"), ("nano", "fp16"), ("nano", "bf16"), ("nano", "int8"), ("tiny", "fp16")],
)
def test_rtx_builds(name: str, precision: str) -> None:
    built = real_build(name, precision, (SIDE,) * 3, settings=Settings(capabilities=("8.9",)))
    assert built.data[:4] == b"vtrt"
    assert int.from_bytes(built.data[16:24], "little") == len(built.data)
    wanted = "INT8 scales converted to FP32" if precision == "int8" else ""
    assert all(wanted and wanted in line for line in built.heard), built.heard


@needs_rtx
def test_rtx_builds_for_several_sizes_and_gpus_with_progress_in_order() -> None:
    watch: Any = Watch()
    sizes = ((1, 64, 64), (1, 64, 64), (2, 64, 128))
    built = real_build(
        "nano",
        "fp16",
        sizes,
        settings=Settings(capabilities=("7.5", "8.9"), workspace_bytes=1 << 28),
        progress=watch,
    )
    assert built.data[:4] == b"vtrt"
    assert watch.roots == [("Building engine", 6)]
    assert watch.root_steps == sorted(watch.root_steps)
    assert watch.stack == []
    assert watch.n > 50


@needs_rtx
def test_rtx_does_not_complain_of_a_second_logger() -> None:
    """It keeps the first one of a process as long as anything lives that was made with it."""
    trt = open_toolkit("tensorrt_rtx").trt
    alive = trt.Runtime(log_of(trt).sink)
    assert real_build("nano", "fp16", (SIDE,) * 3, settings=Settings()).heard == ()
    assert alive is not None


@needs_rtx
def test_rtx_cancels_at_a_step() -> None:
    watch: Any = Watch(stop_at=20)
    with pytest.raises(EngineError, match="cancelled"):
        real_build("nano", "fp16", (SIDE,) * 3, settings=Settings(), progress=watch)
    assert watch.n < 40


@needs_rtx
def test_rtx_tells_what_it_cannot_do() -> None:
    with pytest.raises(EngineError, match=r"lacks a type of the graph; use fp16, or 8\.0"):
        real_build("nano", "bf16", (SIDE,) * 3, settings=Settings(capabilities=("7.5",)))


@needs_rtx
def test_rtx_for_windows_is_refused_not_built_for_linux() -> None:
    """RTX 1.7.1 logs an error, ignores the setting, and would build for this system."""
    with pytest.raises(EngineError, match="not build for Windows here; build it on the Windows"):
        real_build("nano", "fp16", (SIDE,) * 3, settings=Settings(windows=True))


@needs_rtx
def test_rtx_parser_is_caught_dropping_a_dilation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison works on the real network: tell it of a convolution that is not there."""
    other = [Convolution((3, 3), (1, 1), (16, 16), (16,) * 4)]
    real = builder.convolutions
    monkeypatch.setattr(builder, "convolutions", lambda m: sorted([*real(m)[1:], *other]))
    with pytest.raises(EngineError, match=r"lost 3x3 stride \(1, 1\) dilation \(16, 16\)"):
        real_build("nano", "fp16", (SIDE,) * 3, settings=Settings())
