"""What `-o` replaces: engines of ours, damaged ones on request, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fastrestore.engine_file import (
    DeviceRecord,
    EngineRecord,
    ModelRecord,
    backup,
    check_engine,
    sidecar,
    write_engine,
)
from fastrestore.errors import EngineError, OutputError
from fastrestore.export.engine_output import refuse_output

DATA = b"ftrt" + bytes(100)
RECORD = EngineRecord(
    product="tensorrt",
    product_version="10.3.0",
    os="linux",
    arch="x86_64",
    model=ModelRecord("tiny", 2, "a" * 64, "free", "CC0-1.0"),
    precision="fp16",
    profile={"frame": ((1, 64, 64, 3),) * 3},
    opt_level=3,
    build_seconds=1.0,
    code_version="0.1.0",
    device=DeviceRecord("L4", "8.9"),
)
Spoil = Callable[[Path], object]


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    path = tmp_path / "a.engine"
    write_engine(path, DATA, RECORD)
    (tmp_path / "a.onnx").write_bytes(b"model")
    return path


def refusal(path: Path, is_rebuild: bool = False) -> str:
    """Return why an engine is not replaced, empty if it is."""
    try:
        refuse_output(path, path.with_name("a.onnx"), is_rebuild)
    except OutputError as e:
        return str(e)
    return ""


def cut(n: int) -> Spoil:
    return lambda p: sidecar(p).write_bytes(sidecar(p).read_bytes()[:n])


def other_schema(path: Path) -> None:
    told = json.loads(sidecar(path).read_text())
    sidecar(path).write_text(json.dumps({**told, "schema": 2}))


DAMAGED: dict[str, tuple[Spoil, str]] = {
    "half": (cut(300), "a.engine: its sidecar is damaged (is not JSON)"),
    "a few bytes": (cut(9), "a.engine: its sidecar is damaged (is not JSON)"),
    "nothing": (cut(0), "a.engine: its sidecar is damaged (is not JSON)"),
    "zeros": (
        lambda p: sidecar(p).write_bytes(bytes(1500)),
        "a.engine: its sidecar is damaged (is not JSON)",
    ),
    "newer": (other_schema, "a.engine: its sidecar is damaged (schema 2 is not known"),
    "lost": (lambda p: sidecar(p).unlink(), "a.engine: has no sidecar a.engine.json"),
    "all zeros": (
        lambda p: (sidecar(p).write_bytes(b""), p.write_bytes(b"")),
        "a.engine: its sidecar is damaged (is not JSON)",
    ),
    "no engine": (
        lambda p: (cut(300)(p), p.unlink()),
        "a.engine: its sidecar is damaged (is not JSON)",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_engine_is_replaced_on_request(pair: Path, case: str) -> None:
    spoil, words = DAMAGED[case]
    assert refusal(pair) == ""
    spoil(pair)
    told = refusal(pair)
    assert words in told
    assert told.endswith("; add --rebuild to replace it, or choose another -o")
    assert "exists and is no engine" not in told
    assert refusal(pair, is_rebuild=True) == ""
    write_engine(pair, DATA, RECORD)
    assert check_engine(pair).data == DATA


STRANGE: dict[str, tuple[Spoil, str]] = {
    "notes": (lambda p: sidecar(p).write_text("notes"), "a.engine.json"),
    "other JSON": (lambda p: sidecar(p).write_text('{"product": "milk"}'), "a.engine.json"),
    "a list": (lambda p: sidecar(p).write_text("[]"), "a.engine.json"),
    "large": (lambda p: sidecar(p).write_bytes(bytes(1_000_001)), "a.engine.json"),
    "a folder": (lambda p: (sidecar(p).unlink(), sidecar(p).mkdir()), "a.engine.json"),
    "a link": (
        lambda p: (sidecar(p).rename(p.with_name("x")), sidecar(p).symlink_to(p.with_name("x"))),
        "a.engine.json",
    ),
    "another file": (lambda p: p.write_bytes(b"photo"), "a.engine"),
    "another file, sidecar damaged": (lambda p: (p.write_bytes(b"photo"), cut(9)(p)), "a.engine"),
    "another copy": (lambda p: backup(p).write_bytes(b"photo"), "a.engine.old"),
}


@pytest.mark.parametrize("is_rebuild", [False, True])
@pytest.mark.parametrize("case", STRANGE)
def test_what_is_no_engine_stays_in_any_case(pair: Path, case: str, is_rebuild: bool) -> None:
    spoil, name = STRANGE[case]
    spoil(pair)
    told = f"{pair.with_name(name)}: exists and is no engine; choose another -o"
    assert refusal(pair, is_rebuild) == told
    assert told.isprintable()


def test_names_that_cannot_be(tmp_path: Path) -> None:
    assert "name the engine, not its .json" in refusal(tmp_path / "a.engine.json")
    assert refusal(tmp_path / ("a" * 240)) == ""
    assert "the name is too long; choose a shorter one" in refusal(tmp_path / ("ä" * 121))


def test_an_engine_whose_first_byte_was_damaged_is_one(pair: Path) -> None:
    pair.write_bytes(b"F" + DATA[1:])
    with pytest.raises(EngineError, match="SHA-256 differs"):
        check_engine(pair)
    assert refusal(pair) == ""
    pair.write_bytes(b"F" + DATA)
    assert "exists and is no engine" in refusal(pair)
