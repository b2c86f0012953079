"""What differs between TensorRT and TensorRT-RTX, and what their texts mean."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from fastrestore.backends.engine_load import log_of
from fastrestore.errors import EngineError, MissingExtraError
from fastrestore.export import toolkit
from fastrestore.export.toolkit import CAUSES, Lines, Toolkit, explain, open_toolkit

REAL_TEXTS = {
    "Error Code 7: BuildCanceled (Build canceled by user.)": "cancelled",
    "Network has dynamic or shape inputs, but no optimization profile has been defined": "--for",
    "Dynamic input tensor mask is missing dimensions in profile 0": "no size",
    "please ensure that the optimization profiles satisfy MIN<=OPT<=MAX": "small to large",
    "Profile kMIN values are not self-consistent ... reshape would change volume": "multiple",
    "header.magicTag == kEXPECTED_MAGIC_TAG failed. Trying to load an engine created with "
    "incompatible serialization version (1953657958 != 1953657974)": "other product",
    "plan.header.size == blobSize failed": "cut short",
    "stdVersionRead == kSERIALIZATION_VERSION failed. Version tag does not match.": "version",
    "generated on an incompatible device, expecting compute 12.0 got compute 8.9": "another GPU",
    "cudaError 35: CUDA driver version is insufficient for CUDA runtime version": "driver",
    "legalUINT8: TensorRT does not support UINT8 types for intermediate tensors": "casts to bytes",
    "Non-zero zero point is not supported": "not symmetric",
    "dilated.b_DequantizeLinear: input has type Int32 but must have type FP8, ...": "biases",
    "ElementWiseOperation SUM must have same input types": "mixes precisions",
    "Plugin not found, are the plugin name, version, and namespace correct?": "nothing here knows",
    "Could not find any implementation for node {ForeignNode[...]}": "--workspace",
    "Tactic Selection: no tactics to implement the operation within workspace limit": "--workspace",
    "Requested amount of GPU memory could not be allocated: out of memory": "memory",
}


@pytest.mark.parametrize("text", REAL_TEXTS)
def test_a_known_text_becomes_one_line_with_its_mend(text: str) -> None:
    told = explain(["something else", text], "it failed")
    assert REAL_TEXTS[text] in told.split(" (")[0]
    assert text[:60] in told
    assert "\n" not in told


def test_an_unknown_text_is_quoted() -> None:
    told = explain(["one", "two\nlines", "three", "four"], "nothing was built")
    assert told == "nothing was built; see `fastrestore doctor` (two lines | three | four)"


def test_a_missing_driver_is_not_blamed_for_what_went_wrong_before() -> None:
    lines = ["cudaError 35: CUDA driver version is insufficient", "HW-specific datatypes: b16"]
    assert "compute capabilities" in explain(lines, "it failed")


def test_every_cause_has_a_mend() -> None:
    assert all(c.text and c.words and c.mend and "\n" not in c.words + c.mend for c in CAUSES)
    assert len({c.text for c in CAUSES}) == len(CAUSES)


def test_a_process_has_one_logger_and_the_newest_lines_hear_it(fake_trt: Any) -> None:
    first, second = Lines(), Lines()
    kit = Toolkit("tensorrt", fake_trt, "10.3.0")
    log = kit.logger(first)
    log.log(fake_trt.ILogger.Severity.WARNING, "one")
    assert kit.logger(second) is log is log_of(fake_trt).sink
    log_of(fake_trt).clear()
    log.log(fake_trt.ILogger.Severity.ERROR, "out of memory")
    assert (first.warnings, first.errors) == (["one"], [])
    assert (second.warnings, second.errors) == ([], ["out of memory"])
    assert log_of(fake_trt).reason()[0] == "out of GPU memory"


def test_chatter_is_counted_and_the_rest_kept(fake_trt: Any) -> None:
    lines, severity = Lines(), fake_trt.ILogger.Severity
    log = Toolkit("tensorrt", fake_trt, "10.3.0").logger(lines)
    for _ in range(3):
        log.log(severity.WARNING, "A node named x already exists")
    log.log(severity.WARNING, "Converting conv weight scales to fp32")
    log.log(severity.ERROR, "Skipping tactic 3 due to insufficient memory")
    log.log(severity.WARNING, "odd")
    log.log(severity.INFO, "chatter")
    log.log(severity.ERROR, "bad")
    assert (lines.errors, lines.warnings) == (["bad"], ["odd"])
    assert lines.summary() == [
        "odd",
        "3 repeated node names",
        "1 INT8 scales converted to FP32",
        "1 tactics skipped, most for want of memory",
    ]


def test_the_last_line_of_very_many_is_kept() -> None:
    lines = Lines()
    for i in range(200):
        lines.add(True, f"line {i}")
    assert len(lines.errors) == toolkit.KEPT_LINES
    assert lines.errors[-1] == "line 199"


@pytest.mark.parametrize(("typed", "aot"), [(1, 3), (0, 2)])  # TensorRT 10 and 11
def test_flags_go_by_name(typed: int, aot: int) -> None:
    kinds = SimpleNamespace(STRONGLY_TYPED=typed, PREFER_AOT_PYTHON_PLUGINS=aot)
    kit = Toolkit("tensorrt", SimpleNamespace(NetworkDefinitionCreationFlag=kinds), "10")
    assert kit.network_flags() == 1 << typed
    assert kit.network_flags("PREFER_AOT_PYTHON_PLUGINS") == 1 << typed | 1 << aot


def test_a_version_without_strong_types_is_refused() -> None:
    kinds = SimpleNamespace(EXPLICIT_BATCH=0)
    kit = Toolkit("tensorrt", SimpleNamespace(NetworkDefinitionCreationFlag=kinds), "8.6.1")
    with pytest.raises(EngineError, match=r"8\.6\.1: has no STRONGLY_TYPED; TensorRT 10\.3"):
        kit.network_flags()


def test_compute_capabilities_by_name() -> None:
    kinds = SimpleNamespace(CURRENT="now", NONE=0, SM75=75, SM89=89, SM120=120)
    kit = Toolkit("tensorrt_rtx", SimpleNamespace(ComputeCapability=kinds), "1.7")
    assert [kit.capability(c) for c in ("8.9", "12.0", "current")] == [89, 120, "now"]
    with pytest.raises(EngineError, match=r"8\.7: .* choose from 7\.5, 8\.9, 12\.0"):
        kit.capability("8.7")


def pretend(monkeypatch: pytest.MonkeyPatch, **modules: Any) -> None:
    """Let only these libraries be installed; a text = why it does not import."""
    found = lambda name: object() if name in modules else None  # noqa: E731
    monkeypatch.setattr(
        toolkit,
        "importlib",
        SimpleNamespace(
            util=SimpleNamespace(find_spec=found), import_module=importlib.import_module
        ),
    )
    for name, module in modules.items():
        if isinstance(module, str):
            monkeypatch.setattr(toolkit.importlib, "import_module", raising(module))
        else:
            monkeypatch.setitem(sys.modules, name, module)


def raising(text: str) -> Any:
    def load(name: str) -> Any:
        raise ImportError(text)

    return load


def test_tensorrt_comes_first(monkeypatch: pytest.MonkeyPatch, fake_trt: Any) -> None:
    rtx = SimpleNamespace(Builder=1, IProgressMonitor=1, __version__="1.7")
    pretend(monkeypatch, tensorrt=fake_trt, tensorrt_rtx=rtx)
    assert open_toolkit().product == "tensorrt"
    kit = open_toolkit("tensorrt_rtx")
    assert (kit.product, kit.version, kit.is_portable) == ("tensorrt_rtx", "1.7", True)


def test_the_other_one_is_taken_if_it_is_all(monkeypatch: pytest.MonkeyPatch) -> None:
    rtx = SimpleNamespace(Builder=1, IProgressMonitor=1, __version__="1.7")
    pretend(monkeypatch, tensorrt_rtx=rtx)
    assert open_toolkit().product == "tensorrt_rtx"
    with pytest.raises(MissingExtraError, match=r"^TensorRT is not installed: pip install"):
        open_toolkit("tensorrt")


def test_nothing_installed_names_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    with pytest.raises(MissingExtraError, match=r"fastrestore\[rtx\].*fastrestore\[tensorrt\]"):
        open_toolkit()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("libnvinfer.so.10: cannot open shared object file", "libnvinfer.so.10 is missing"),
        ("libnvdla_compiler.so: cannot open shared object file", "container lacks"),
        ("DLL load failed", "cannot be loaded (DLL load failed)"),
    ],
)
def test_a_library_that_does_not_import(
    monkeypatch: pytest.MonkeyPatch, text: str, told: str
) -> None:
    pretend(monkeypatch, tensorrt=text)
    with pytest.raises(EngineError) as caught:
        open_toolkit()
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_old_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, tensorrt=SimpleNamespace(Builder=1, __version__="8.6.1"))
    with pytest.raises(EngineError, match=r"TensorRT 8\.6\.1: is too old"):
        open_toolkit()
