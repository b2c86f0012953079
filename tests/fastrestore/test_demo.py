from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from fastrestore import cli
from fastrestore import demo as demo_module
from fastrestore.demo import CLIP_FRAMES, CLIP_SIZE, Shown, demo, sample_folder
from fastrestore.errors import ModelError, OutputError
from fastrestore.images import read_picture
from fastrestore.metrics import psnr
from fastrestore.restore import Restorer
from fastrestore.video_io import read_frames
from fastrestore.video_probe import probe

PICTURES = ("cat", "vegetables", "bridge")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> list[Shown]:
    """One run of the demo, with a shorter clip, over what an earlier one left."""
    folder = tmp_path_factory.mktemp("demo")
    for name in ("cat.damaged.png", "cat.restored.png", "clip.damaged.mkv", "clip.restored.mkv"):
        (folder / name).write_text("old")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_module, "CLIP_FRAMES", 12)
        with Restorer("tiny", backend="ort", threads=1) as restorer:
            return list(demo(folder, restorer))


def test_samples_are_inside_the_package_and_have_their_licences() -> None:
    found = {p.name for p in sample_folder().iterdir()}
    assert found >= {*(f"{name}.webp" for name in PICTURES), "README.md"}
    text = (sample_folder() / "README.md").read_text(encoding="utf-8")
    for name in PICTURES:
        picture = read_picture(sample_folder() / f"{name}.webp")
        assert min(picture.rgb.shape[:2]) >= 256
        assert name in text
    assert re.search("CC0|public domain", text, re.IGNORECASE)


def test_the_clip_fits_into_its_sample() -> None:
    height, width = read_picture(sample_folder() / "vegetables.webp").rgb.shape[:2]
    assert CLIP_SIZE[0] + 100 <= height
    assert CLIP_SIZE[1] + 48 <= width
    assert CLIP_FRAMES >= 24


def test_every_sample_gains(shown: list[Shown]) -> None:
    assert [s.what.split(":")[0] for s in shown] == [*PICTURES, "clip"]
    for s in shown:
        assert s.psnr_after > s.psnr_before + 3, s.what
        assert 0 < s.seconds < 60


def test_the_files_are_what_was_said(shown: list[Shown]) -> None:
    folder = shown[0].before.parent
    assert {p.name for p in folder.iterdir()} == {
        *(f"{name}.{step}.png" for name in PICTURES for step in ("damaged", "restored")),
        "cat.mask.png",
        "vegetables.mask.png",
        "clip.damaged.mkv",
        "clip.restored.mkv",
    }
    for s, name in zip(shown, PICTURES, strict=False):
        clean = read_picture(sample_folder() / f"{name}.webp").rgb
        for path, figure in ((s.before, s.psnr_before), (s.after, s.psnr_after)):
            assert psnr(read_picture(path).rgb, clean) == pytest.approx(figure)


def test_pictures_with_holes_are_changed_there_only(shown: list[Shown]) -> None:
    for s, name in zip(shown, ("cat", "vegetables"), strict=False):
        mask = read_picture(s.before.parent / f"{name}.mask.png").rgb[..., 0]
        before, after = read_picture(s.before).rgb, read_picture(s.after).rgb
        assert set(np.unique(mask)) == {0, 255}
        assert np.array_equal(before[mask == 0], after[mask == 0])
        assert (before[mask > 0] == 255).all()
        assert f"{(mask > 0).mean():.0%}" in s.what


def test_the_clip_is_whole(shown: list[Shown]) -> None:
    clip = shown[-1]
    for path in (clip.before, clip.after):
        info = probe(path)
        assert (info.height, info.width) == CLIP_SIZE
        assert sum(1 for _ in read_frames(path)) == 12


@pytest.mark.parametrize("where", ["file", "file/deep"])
def test_a_folder_that_cannot_be(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    restorer: Restorer = None  # type: ignore[assignment] # not reached
    with pytest.raises(OutputError, match=r"file.*: cannot be made"):
        next(demo(tmp_path / where, restorer))


def test_a_picture_that_cannot_be_restored_is_raised(tmp_path: Path) -> None:
    class Broken:
        sigma = 0.0

        def __call__(self, *_: object, **__: object) -> None:
            raise ModelError("broken")

    with pytest.raises(ModelError, match="broken"):
        next(demo(tmp_path, Broken()))  # type: ignore[arg-type]


def test_the_command(
    shown: list[Shown],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(demo_module, "CLIP_FRAMES", 2)
    target = str(tmp_path / "new" / "deep")
    args = ["fastrestore", "demo", "-o", target, "--backend", "ort", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", args)
    with pytest.raises(SystemExit) as e:
        cli.main()
    out, err = capfd.readouterr()
    assert (e.value.code, err) == (0, "")
    lines = out.splitlines()
    assert lines[-1] == "model tiny on ort"
    assert len(lines) == 3 * 4 + 1
    for what, before, after in zip(lines[:-1:3], lines[1:-1:3], lines[2:-1:3], strict=True):
        name = what.partition(":")[0]
        assert re.fullmatch(rf"  before \S*{name}\.damaged\.\w+  \d+\.\d\d dB", before)
        assert re.fullmatch(rf"  after  \S*{name}\.restored\.\w+  \d+\.\d\d dB  \(.* s\)", after)
        assert Path(before.split()[1]).is_file()
        assert Path(after.split()[1]).is_file()
    for s, before in zip(shown[:3], lines[1::3], strict=False):
        assert f"  {s.psnr_before:.2f} dB" in before  # the same damage every time


def test_the_command_refuses_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "taken" / "clip.damaged.mkv").mkdir(parents=True)
    monkeypatch.setattr(demo_module, "CLIP_FRAMES", 2)
    for where in ("file", "taken"):
        args = ["fastrestore", "demo", "-o", str(tmp_path / where), "--backend", "ort"]
        monkeypatch.setattr(sys, "argv", args)
        with pytest.raises(SystemExit) as e:
            cli.main()
        assert e.value.code == 5
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith(f"fastrestore: {tmp_path / where}")
