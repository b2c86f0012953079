"""The gate catches kernels that were made to fail; it runs without the interpreter, in a child."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
from fastrestore.errors import InputError
from fastrestore.kernels import gate
from fastrestore.kernels.assemble import ARCHS
from fastrestore.kernels.registry import launches

ROOT = Path(__file__).resolve().parents[2]
ENV = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)

PLANTED = """
import json, sys
from pathlib import Path
import triton
import triton.language as tl
from fastrestore.errors import FastRestoreError
from fastrestore.kernels import compile as aot, gate
from fastrestore.kernels.operator import Axis, Launch

@triton.jit
def hold(x, n, y, size: tl.constexpr):
    at = tl.program_id(0) * size + tl.arange(0, size)
    values = tl.load(x + at, mask=at < n)
    tl.store(y + at, values * tl.sum(values), mask=at < n)

@triton.jit
def multiply(x, n, y, size: tl.constexpr):
    at = tl.arange(0, size)[:, None] * size + tl.arange(0, size)[None, :] + n * 16
    values = tl.load(x + at)
    tl.store(y + at, tl.dot(values, values).to(tl.float16))

@triton.jit
def backwards(y, x, n, size: tl.constexpr):
    at = tl.arange(0, size)
    tl.store(y + at, tl.load(x + at, mask=at < n), mask=at < n)

@triton.jit
def scaled(x, n, y, size: tl.constexpr):
    at = tl.arange(0, size)
    tl.store(y + at, tl.load(x + at) * n)

def make(name, kernel=hold, kind="*fp32", scalar="i32", size=512, **kw):
    arguments = {"x": kind, "n": scalar, "y": kind}
    if kernel is backwards:
        arguments = {"y": kind, "x": kind, "n": scalar}
    kw = {"divisible": ("x", "n", "y") if scalar == "i32" else ("x", "y"), **kw}
    return Launch(name, kernel, arguments, {"size": size},
                  (Axis(("n",), size), Axis(), Axis()), plugin=True, **kw)

launches = [
    make("good"),
    make("matrix", multiply, "*fp16", size=32, tensor_cores=True),
    make("spilling", size=8192, warps=1, wide_copies=False),
    make("dotless", tensor_cores=True),
    make("narrow", divisible=()),
    make("disordered", backwards, wide_copies=False),
    make("float_scalar", scaled, scalar="fp32", wide_copies=False),
]
greedy = make("greedy", multiply, "*fp16", size=32, wide_copies=False)
archs = json.loads(sys.argv[1])
with aot.compiler():
    found = {x.name: gate.inspect(x, archs) for x in launches}
    aot.MOST_SHARED, gate.SHARED_KIB["sm_87"] = 1024, 1  # real ones take long to compile
    found["greedy"] = gate.inspect(greedy, archs)
    aot.MOST_SHARED, gate.SHARED_KIB["sm_87"] = 48 * 1024, 163
    out = {name: [f.registers, f.portable, f.faults] for name, f in found.items()}
    good = launches[:2]
    path = Path("resources.json")
    said = []
    chip = archs[:1]
    out["missing"] = gate.run(good, chip, [], False, said.append, path)
    out["update"] = gate.run(good, chip, [], True, said.append, path)
    out["again"] = gate.run(good, chip, [], False, said.append, path)
    committed = json.loads(path.read_text())
    (version,) = committed
    committed[version]["good"][archs[0]] -= 1
    path.write_text(json.dumps(committed))
    out["rise"] = gate.run(good, chip, [], False, said.append, path)
    before = path.read_bytes()
    out["bad update"] = gate.run(launches[3:4], chip, [], True, said.append, path)
    out["kept"] = path.read_bytes() == before
    out["twice"] = gate.run([good[0], good[0]], chip, [], False, said.append, path)
    try:
        gate.run(good, chip, ["nothing"], False, said.append, path)
    except FastRestoreError as e:
        out["no match"] = str(e)
    out["said"] = said
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the gate says of planted kernels, on an Orin and a card with wgmma."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "planted.py").write_text(PLANTED)
    run = subprocess.run(
        [sys.executable, "planted.py", json.dumps(["sm_87", "sm_90"])],
        cwd=folder,
        env={**ENV, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found: dict[str, Any] = json.loads(run.stdout)
    return found


@needs_triton
@pytest.mark.parametrize("name", ["good", "matrix"])
def test_a_good_kernel_passes(planted: dict[str, Any], name: str) -> None:
    registers, portable, faults = planted[name]
    assert faults == []
    assert set(registers) == set(portable) == {"sm_87", "sm_90"}
    assert all(8 <= count <= 255 for count in [*registers.values(), *portable.values()])


@needs_triton
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("spilling", "spilling sm_87: spills registers ("),
        ("spilling", "spilling PTX on sm_90: spills registers ("),
        ("dotless", "dotless sm_90: no matrix instruction"),
        ("narrow", "narrow sm_87: no load, store or copy of 16 bytes"),
        ("greedy", "greedy: 2048 bytes of shared memory, a plugin has 1024"),
        ("greedy", "greedy sm_87: 2048 bytes of shared memory, the chip has 1 KiB"),
        ("disordered", "disordered: arguments are not inputs, i32 scalars, outputs"),
        ("float_scalar", "float_scalar: arguments are not inputs, i32 scalars, outputs"),
    ],
)
def test_a_planted_fault_is_caught(planted: dict[str, Any], name: str, fault: str) -> None:
    faults = planted[name][2]
    assert any(line.startswith(fault) for line in faults), faults
    assert not any("\n" in line for line in faults)


@needs_triton
def test_registers_are_compared_with_the_committed_ones(planted: dict[str, Any]) -> None:
    assert len(planted["missing"]) == 2  # one a launch
    assert "good sm_87: no committed registers" in planted["missing"][0]
    assert planted["update"] == planted["again"] == []
    (rise,) = planted["rise"]
    assert rise.startswith("good sm_87: ")
    assert "before; see what changed" in rise
    assert any("dotless" in line for line in planted["bad update"])
    assert planted["kept"]  # a faulty kernel's registers are not committed
    assert any("two launches have this name" in line for line in planted["twice"])
    assert planted["no match"].startswith("--match: ")
    assert all("\n" not in line for line in planted["said"])


@needs_triton
def test_shipped_kernels_pass() -> None:
    """Three of them, on an Orin and a card with wgmma; all of them: `make kernels-gate`."""
    installed = importlib.metadata.version("triton")
    if installed not in gate.read(gate.COMMITTED):
        pytest.skip(f"no registers are committed for Triton {installed}")
    names = ["residual_block_plugin_c32_d1", "unpack_16_composite", "sobel_u8_c1_gradients"]
    command = [sys.executable, "-m", "fastrestore.kernels.compile", "gate", "--match", *names]
    run = subprocess.run(
        [*command, "--arch", "sm_87", "sm_90"],
        cwd=ROOT,
        env=ENV,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert {line.split()[0] for line in run.stdout.splitlines()} == set(names)


def test_compare() -> None:
    committed = {"a": {"sm_80": 40, "sm_87": 40}, "gone": {"sm_80": 8}}
    measured = {"a": {"sm_80": 41, "sm_87": 39}, "new": {"sm_80": 9}}
    faults, notes = gate.compare(measured, committed, whole=True)
    assert [fault.split(";")[0] for fault in faults] == [
        "a sm_80: 41 registers, 40 before",
        "new sm_80: no committed registers",
        "gone sm_80: committed, but there is none",
    ]
    assert notes == ["a sm_87: 39 registers, 40 before"]
    assert len(gate.compare(measured, committed, whole=False)[0]) == 2


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "resources.json"
    assert gate.read(path) == {}
    path.write_text("{")
    with pytest.raises(InputError, match=r"resources.json: is no JSON"):
        gate.read(path)
    shapes = "[]", "3", '{"3.9.0": []}', '{"3.9.0": {"a": 3}}', '{"3.9.0": {"a": {"sm_80": "8"}}}'
    for text in shapes:
        path.write_text(text)
        with pytest.raises(InputError, match=r"resources.json: does not hold registers by") as e:
            gate.read(path)
        assert "\n" not in str(e.value)
    with pytest.raises(InputError, match=r": cannot be read \(Is a directory\); "):
        gate.read(tmp_path)


def test_committed_registers_are_possible() -> None:
    for committed in gate.read(gate.COMMITTED).values():
        for name, archs in committed.items():
            assert set(archs) == set(ARCHS), name
            assert all(8 <= count <= 255 for count in archs.values()), name


def test_committed_registers_are_those_of_the_launches() -> None:
    for committed in gate.read(gate.COMMITTED).values():
        assert set(committed) == {launch.name for launch in launches()}
