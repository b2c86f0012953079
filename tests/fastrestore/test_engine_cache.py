"""The cache of engines: where it lies, what things are called, which fits, what may go."""

from __future__ import annotations

import os
import stat
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from fastrestore import engine_cache
from fastrestore.engine_cache import (
    build_lock,
    engine_path,
    entries,
    find,
    key,
    make_folder,
    prune,
    root,
    timing_cache,
)
from fastrestore.engine_file import (
    DeviceRecord,
    EngineRecord,
    Expected,
    ModelRecord,
    PluginRecord,
    Verification,
    backup,
    check_engine,
    sidecar,
    write_engine,
    write_lock,
)
from fastrestore.engine_record import system
from fastrestore.errors import EngineError, InputError, OutputError
from fastrestore.locking import lock

ORIN = DeviceRecord("Orin", "8.7")
GOOD = Verification(58.0, 2.0, 0, 4.5, 12, "ort")
RECORD = EngineRecord(
    product="tensorrt",
    product_version="10.3.0",
    os=system()[0],
    arch=system()[1],
    model=ModelRecord("tiny", 2, "a" * 64, "free", "CC0-1.0"),
    precision="fp16",
    profile={"frame": ((1, 736, 1280, 3),) * 3},
    opt_level=3,
    build_seconds=81.5,
    code_version="0.1.0",
    device=ORIN,
    verification=GOOD,
)
HERE = Expected("tensorrt", "10.3.0", ORIN, "a" * 64, "tiny", (1, 736, 1280))
DATA = b"ftrt" + bytes(100)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of its own."""
    monkeypatch.setenv("FASTRESTORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put(age_s: float = 0.0, **changes: Any) -> Path:
    record = replace(RECORD, **changes)
    path = engine_path(record)
    write_engine(path, DATA, record)
    when = time.time() - age_s
    os.utime(path, (when, when))
    return path


def test_its_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("FASTRESTORE_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for platform, variable, without, with_it in (
        ("linux", "XDG_CACHE_HOME", ".cache/fastrestore", "x/fastrestore"),
        ("darwin", "XDG_CACHE_HOME", "Library/Caches/fastrestore", None),
        ("win32", "LOCALAPPDATA", "AppData/Local/fastrestore", "x/fastrestore"),
    ):
        monkeypatch.setattr(sys, "platform", platform)
        assert root() == tmp_path / without
        with monkeypatch.context() as patch:
            patch.setenv(variable, str(tmp_path / "x"))
            assert root() == tmp_path / (with_it or without)
            patch.setenv("FASTRESTORE_CACHE", str(tmp_path / "mine"))
            assert root() == tmp_path / "mine"
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert root() == tmp_path / ".cache/fastrestore"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(InputError, match="no home folder; set FASTRESTORE_CACHE"):
        root()


def test_folders_are_private(cache: Path) -> None:
    umask = os.umask(0)
    try:
        path = put()
        timing = timing_cache(ORIN, "10.3.0")
    finally:
        os.umask(umask)
    for folder in (cache, path.parent, timing.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(p.stat().st_mode) for p in (path, sidecar(path))] == [0o600] * 2


def test_a_folder_in_other_hands_is_refused_before_a_build(cache: Path) -> None:
    make_folder("engines").chmod(0o770)
    with pytest.raises(EngineError, match="others may write to it; `chmod go-w ") as e:
        engine_path(RECORD)
    assert str(e.value).startswith(f"{cache / 'engines'}: ")
    assert "--trust-engine" not in str(e.value)  # which no builder has


def test_a_cache_that_cannot_be_made_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("FASTRESTORE_CACHE", str(tmp_path / "file" / "x"))
    with pytest.raises(OutputError, match=r"cannot be made .*; set FASTRESTORE_CACHE to another"):
        engine_path(RECORD)
    with pytest.raises(EngineError, match=r"cannot be read .*; set FASTRESTORE_CACHE"):
        entries()


def test_names_can_be_read(cache: Path) -> None:
    for changes, start in (
        ({}, "tiny-fp16-1x736x1280-sm87-10.3.0-"),
        (
            {
                "product": "tensorrt_rtx",
                "product_version": "1.7.1.116",
                "device": None,
                "compute_capabilities": ("7.5", "8.0+"),
                "precision": "int8",
            },
            "tiny-int8-1x736x1280-sm75+sm80up-1.7.1.116-",
        ),
        (
            {"profile": {"frame": ((1, 64, 64, 3), (1, 736, 1280, 3), (1, 736, 1280, 3))}},
            "tiny-fp16-1x736x1280-dynamic-sm87-10.3.0-",
        ),
        ({"model": replace(RECORD.model, name="../a b/é")}, "_a_b__-fp16-"),
    ):
        path = engine_path(replace(RECORD, **changes))
        assert path.parent == cache / "engines"
        assert path.name.startswith(start)
        assert path.name == f"{path.name[:-15]}{key(replace(RECORD, **changes))[:8]}.engine"
    assert len(engine_path(replace(RECORD, model=replace(RECORD.model, name="x" * 999))).name) < 200


def test_the_key_is_of_what_makes_an_engine() -> None:
    free = {
        "driver": "1",
        "build_seconds": 1.0,
        "power_mode": "15W",
        "verification": None,
        "reasons": ("because",),
        "calibration": "/photos",
        "engine_sha256": "e" * 64,
        "engine_bytes": 7,
    }
    bound: dict[str, Any] = {
        "product_version": "10.3.0.1",
        "os": "windows",
        "arch": "arm",
        "model": replace(RECORD.model, sha256="b" * 64),
        "precision": "fp32",
        "profile": {"frame": ((1, 8, 8, 3),) * 3},
        "opt_level": 4,
        "code_version": "0.2.0",
        "device": DeviceRecord("Orin NX", "8.7"),
        "cuda_runtime": "12.6",
        "plugins": {"P": PluginRecord("c" * 64, "3.2.0")},
        "flags": ("TF32",),
        "workspace_mb": 512,
        "int8_sha256": "e" * 64,
        "jetpack": "6.2",
    }
    known = {*free, *bound, "schema", "product", "compute_capabilities"}
    assert {f.name for f in fields(EngineRecord)} == known
    for name, value in free.items():
        assert key(replace(RECORD, **{name: value})) == key(RECORD), name
    keys = {key(replace(RECORD, **{name: value})) for name, value in bound.items()}
    assert len({*keys, key(RECORD)}) == len(bound) + 1


def test_timings_are_of_one_gpu_and_version(cache: Path) -> None:
    paths = {
        timing_cache(device, version)
        for device in (ORIN, DeviceRecord("Orin", "8.9"), DeviceRecord("a/../b", "8.7"))
        for version in ("10.3.0", "10.16.1")
    }
    assert len(paths) == 6
    assert {p.parent for p in paths} == {cache / "timing"}


def test_entries(cache: Path) -> None:
    assert entries() == []
    assert not cache.exists()
    old, new = put(age_s=100), put(precision="fp32")
    found = entries()
    assert [e.path for e in found] == [new, old]
    assert [e.problem for e in found] == ["", ""]
    assert found[0].size_bytes == len(DATA)
    assert found[1].age_s == pytest.approx(100, abs=20)
    sidecar(old).write_text("{")
    new.unlink()
    backup(old).write_bytes(b"")
    for path in (build_lock(old), write_lock(old)):
        path.write_bytes(b"")
    (old.parent / "notes.txt").write_text("")
    (old.parent / "orphan.engine").write_bytes(DATA)
    problems = {e.path.name: e.problem for e in entries()}
    assert set(problems) == {old.name, new.name, "orphan.engine"}
    assert "schema is missing" in problems[old.name] or "is not JSON" in problems[old.name]
    assert "the engine is gone" in problems[new.name]
    assert "has no sidecar" in problems["orphan.engine"]
    assert all(e.record is None for e in entries())
    assert all("\n" not in p for p in problems.values())


def test_a_link_is_no_entry_that_can_be_used(cache: Path, tmp_path: Path) -> None:
    path = put()
    path.rename(tmp_path / "real.engine")
    path.symlink_to(tmp_path / "real.engine")
    (entry,) = entries()
    assert entry.record is None
    assert entry.problem == f"{path}: is a link or a folder, no engine"
    assert len(prune(lambda e: e.record is not None).removed) == 1
    assert (tmp_path / "real.engine").read_bytes() == DATA
    assert entries() == []


def test_entries_of_one_moment_come_by_name(cache: Path) -> None:
    paths = [put(opt_level=n) for n in range(6)]
    for path in paths:
        os.utime(path, (1_000_000, 1_000_000))
    assert [e.path for e in entries()] == sorted(paths)


def test_the_fastest_that_fits_is_found(cache: Path) -> None:
    put(age_s=10)
    fast = put(precision="int8", verification=replace(GOOD, mean_latency_ms=3.0), age_s=20)
    put(precision="fp32", verification=None, age_s=1)
    put(product_version="10.16.1", verification=replace(GOOD, mean_latency_ms=1.0))
    assert find(HERE).path == fast
    assert find(HERE, "fp16").record == check_engine(find(HERE, "fp16").path, HERE).record
    assert find(HERE, "fp32", verified=False).path.name.startswith("tiny-fp32")
    assert find(HERE, verified=False).path == fast
    with pytest.raises(EngineError, match=r"tiny-fp32.*: is not verified; `fastrestore engines v"):
        find(HERE, "fp32")


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (replace(HERE, shape=(1, 1088, 1920)), "takes frames of 1x736x1280, not 1x1088x1920; "),
        (replace(HERE, version="10.16.1"), "was built by TensorRT 10.3.0, here runs 10.16.1; "),
        (replace(HERE, device=DeviceRecord("L4", "8.9")), r"built for Orin \(8.7\), this is L4"),
        (replace(HERE, model_sha256="c" * 64, model_name="b.onnx"), "build-engine b.onnx --reb"),
    ],
)
def test_what_comes_nearest_is_said(cache: Path, wanted: Expected, words: str) -> None:
    put()
    put(product_version="9.0", model=replace(RECORD.model, sha256="d" * 64), opt_level=5)
    with pytest.raises(EngineError, match=words) as e:
        find(wanted)
    assert str(e.value).isprintable()
    assert "`fastrestore build-engine " in str(e.value)
    assert e.value.exit_code == 4


def test_an_empty_cache_is_said(cache: Path) -> None:
    for product, target in (("tensorrt", "tensorrt"), ("tensorrt_rtx", "rtx")):
        with pytest.raises(EngineError) as e:
            find(Expected(product, model_name="tiny"))
        build = f"`fastrestore build-engine tiny --target {target}`"
        assert str(e.value) == f"{cache / 'engines'}: no engine is here; {build}"
    with pytest.raises(EngineError, match=r"from its \.onnx: `fastrestore build-engine FILE\.onnx"):
        find(HERE)  # a shipped name, another file


def test_engines_that_cannot_be_read_are_not_passed_over_in_silence(cache: Path) -> None:
    path = put()
    sidecar(path).write_text("{")
    with pytest.raises(EngineError) as e:
        find(Expected("tensorrt", model_name="tiny"))
    told = f"no engine is here that can be used ({sidecar(path)}: is not JSON); `fastrestore build"
    assert told in str(e.value)


def test_prune(cache: Path) -> None:
    stays, goes, damaged = put(), put(precision="fp32"), put(precision="bf16")
    sidecar(damaged).write_bytes(b"")
    backup(goes).write_bytes(DATA)

    def keep(entry: engine_cache.Entry) -> bool:
        return entry.path == stays

    before = sorted(os.listdir(stays.parent))
    would = {e.path for e in prune(keep, dry_run=True).removed}
    assert would == {goes, damaged}
    assert sorted(os.listdir(stays.parent)) == before
    assert {e.path for e in prune(keep).removed} == would
    assert sorted(os.listdir(stays.parent)) == [stays.name, sidecar(stays).name]
    assert check_engine(stays, HERE).data == DATA
    assert prune(keep) == ([], [])


def test_prune_passes_over_what_is_being_built(cache: Path) -> None:
    path = put()
    with lock(build_lock(path)):
        assert prune(lambda _: False) == ([], [])
        assert check_engine(path, HERE).data == DATA
    assert len(prune(lambda _: False).removed) == 1
    assert os.listdir(path.parent) == []


def test_prune_removes_what_killed_writers_left(cache: Path) -> None:
    path = put()
    part, locks = path.parent / ".0123.part", (build_lock(path), write_lock(path))
    for place in (part, *locks):
        place.write_bytes(b"")
    assert prune(lambda _: True) == ([], [])
    assert part.exists()  # it may be being written
    assert all(p.exists() for p in locks)
    for place in (part, *locks):
        os.utime(place, (1, 1))
    with lock(build_lock(path)):
        os.utime(build_lock(path), (1, 1))
        prune(lambda _: True)
        assert build_lock(path).exists()
    assert sorted(os.listdir(path.parent)) == [path.name, sidecar(path).name]
