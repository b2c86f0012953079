"""Timings of earlier builds: a file of ours, and no other file is ever replaced."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastrestore.engine_cache import timing_cache
from fastrestore.engine_file import DeviceRecord
from fastrestore.errors import EngineError, OutputError
from fastrestore.export.timings import read_timings, write_timings

PHOTO = b"\xff\xd8\xff\xe0" + bytes(200)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTRESTORE_CACHE", str(tmp_path / "cache"))
    return timing_cache(DeviceRecord("L4", "8.9"), "10.3.0")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.cache"
    assert read_timings(file) == (b"", "")
    for data in (b"library's bytes", b"", bytes(1000)):
        write_timings(file, data)
        assert read_timings(file) == (data, "")


@pytest.mark.parametrize("data", [PHOTO, b"x", b"fastrestore", b"ptrt" + bytes(90), b"\0\1"])
def test_what_is_no_file_of_timings_is_never_replaced(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "photo.jpg"
    file.write_bytes(data)
    told = f"{file}: is no timing cache of fastrestore and is not replaced; name another --timing"
    for call in (lambda: read_timings(file), lambda: write_timings(file, b"new")):
        with pytest.raises(OutputError) as e:
            call()
        assert str(e.value).startswith(told)
        assert file.read_bytes() == data


@pytest.mark.skipif(os.name != "posix", reason="has no such files")
def test_folders_pipes_and_links_are_not_opened(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    write_timings(tmp_path / "real", b"x")
    link.symlink_to(tmp_path / "real")
    for path in (tmp_path, pipe, link, Path("/dev/zero")):
        with pytest.raises(OutputError, match="is no timing cache of fastrestore"):
            read_timings(path)
    with pytest.raises(EngineError, match=r"real/x: cannot be read \(Not a directory\)"):
        read_timings(tmp_path / "real" / "x")


def test_what_is_damaged_is_begun_anew(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "a.cache"
    write_timings(file, b"library's bytes")
    whole = file.read_bytes()
    for data in (whole[:-1], whole[:40], whole + b"x", b"\0" * 90, whole[:-1] + b"S"):
        file.write_bytes(data)
        assert read_timings(file) == (b"", "timing cache: damaged, begun anew")
    write_timings(file, b"new")
    assert read_timings(file).data == b"new"
    cache.write_bytes(PHOTO)  # nobody keeps photos there
    assert read_timings(cache).note == "timing cache: damaged, begun anew"
    write_timings(cache, b"new")
    assert read_timings(cache).data == b"new"
    cache.write_bytes(b"")
    assert read_timings(cache) == (b"", "")
