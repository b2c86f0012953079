from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastrestore.atomic import label, write_file
from fastrestore.errors import OutputError
from fastrestore.images import Picture, read_picture, write_picture

PICTURE = Picture(np.random.default_rng(0).integers(0, 256, (8, 9, 3)).astype(np.uint8))


def refused(path: Path) -> str:
    with pytest.raises(OutputError) as caught:
        write_picture(path, PICTURE, PICTURE.rgb)
    assert caught.value.exit_code == 5
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert "; " in message
    return message


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "permission denied"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    ],
)
def test_a_failure_leaves_the_old_file_and_nothing_else(
    step: str, error: OSError, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"old")

    def fail(*_args: Any) -> None:
        assert len(os.listdir(tmp_path)) == 2  # the part is in the same folder
        raise error

    monkeypatch.setattr(os, step, fail)
    assert words in refused(path)
    assert os.listdir(tmp_path) == ["out.png"]
    assert path.read_bytes() == b"old"


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_picture(tmp_path / "out.png", PICTURE, PICTURE.rgb)
    assert os.listdir(tmp_path) == []


def test_bad_places(tmp_path: Path) -> None:
    assert "folder does not exist" in refused(tmp_path / "gone" / "out.png")
    (tmp_path / "folder.png").mkdir()
    assert "is a folder" in refused(tmp_path / "folder.png")
    (tmp_path / "file").write_bytes(b"")
    assert "its folder is a file" in refused(tmp_path / "file" / "out.png")
    assert "too long" in refused(tmp_path / f"{'x' * 300}.png")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "permission denied" in refused(tmp_path / "out.png")


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_mode_obeys_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_file(tmp_path / "out", b"data")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o666 & ~umask


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    kept = tmp_path / "kept.png"
    kept.write_bytes(b"kept")
    for target in (kept, tmp_path / "nowhere.png"):
        link = tmp_path / "link.png"
        link.symlink_to(target)
        write_picture(link, PICTURE, PICTURE.rgb)
        assert not link.is_symlink()
        assert np.array_equal(read_picture(link).rgb, PICTURE.rgb)
        link.unlink()
    assert kept.read_bytes() == b"kept"
    assert os.listdir(tmp_path) == ["kept.png"]


def test_label() -> None:
    assert label(Path("a b/\u5199.png")) == "a b/\u5199.png"
    assert label("a\nb") == "'a\\nb'"
