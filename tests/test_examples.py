"""README's code blocks and the examples in the help texts are run, so that they stay true."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fastrestore.demo import sample_folder
from fastrestore.video_io import read_frames, write_frames

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [body for name, body in fences if name == language]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that README's commands name, small."""
    top = tmp_path_factory.mktemp("readme")
    small = Image.open(sample_folder() / "vegetables.webp").convert("RGB").resize((96, 80))
    hole = np.zeros((80, 96), np.uint8)
    hole[30:40, 40:60] = 255
    noisy = np.asarray(small) + np.random.default_rng(0).normal(0, 15, (80, 96, 3))
    small.save(top / "photo.jpg")
    small.save(top / "old.jpg")
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(top / "noisy.png")
    for name in ("holes.png", "logo.png", "masks/one.png"):
        (top / name).parent.mkdir(exist_ok=True)
        Image.fromarray(hole).save(top / name)
    (top / "scans").mkdir()
    small.save(top / "scans" / "one.png")
    write_frames(top / "clip.mkv", [np.asarray(small)] * 4, fps=25, codec="ffv1")
    run(top, "restore clip.mkv -o clip.mp4 --clean 0")
    (top / "photos").mkdir()
    for i in range(60):
        small.resize((64, 64)).rotate(i).save(top / "photos" / f"{i:02}.png")
    return top


def run(folder: Path, command: str, *codes: int) -> subprocess.CompletedProcess[str]:
    out = subprocess.run(
        [sys.executable, "-m", "fastrestore", *shlex.split(command, comments=True)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "FASTRESTORE_CACHE": str(folder / "cache")},
    )
    assert out.returncode in (codes or (0,)), f"{command}\n{out.stderr}"
    return out


def pipes() -> list[str]:
    """The README's lines for a shell that need neither a camera nor a network."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [c for c in lines if "fastrestore live" in c and not re.search(r"-source (0|rtsp)", c)]


def commands() -> list[str]:
    lines = [line for block in blocks("") for line in block.splitlines()]
    return [c.removeprefix("fastrestore ") for c in lines if c.startswith("fastrestore ")]


def test_readme_has_commands_and_python() -> None:
    assert len(commands()) >= 8
    assert len(blocks("python")) >= 1


def test_commands_of_the_readme(folder: Path) -> None:
    perceptual = (ROOT.parent / "shared" / "weights").is_dir()
    for command in commands():
        if command.startswith("prepare-weights"):
            continue  # it downloads
        if not perceptual and ("sharp" in command or "runs/two" in command):
            continue  # stage 2 needs what that command makes
        run(folder, quick(command), *codes(command))
        if "--recipe tune" in command and not (folder / "own.onnx").exists():
            run(folder, "export runs/own -o own.onnx")  # two steps need not have bettered it
    assert (folder / "photo.restored.jpg").exists()
    assert (folder / "clean" / "one.png").exists()
    assert (folder / "mine.jpg").exists()


def codes(command: str) -> tuple[int, ...]:
    """Return how a command may end: what needs a GPU or its libraries says so with 4."""
    if re.search(r"^build-engine|--backend t(ensorrt|riton)", command):
        return 0, 4
    return (0, 1) if "--recipe tune" in command else (0,)


def quick(command: str) -> str:
    """Turn an hour of training into two steps on small crops; all else runs as it stands."""
    few = "--steps 2 --batch 1 --crop 32 --large-crop 64 --held-out 2"
    few += "" if "--from tiny" in command else " --preset nano"
    few += " --d-warm 1" if "--recipe sharp" in command else ""
    return re.sub(r"--minutes \d+", few, command)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_of_the_readme(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102  our own README


def test_pipes_of_the_readme(folder: Path) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("no ffmpeg on PATH to pipe into")
    assert len(pipes()) >= 1
    for line in pipes():
        ours = f"{shlex.quote(sys.executable)} -m fastrestore live"
        command = line.replace("fastrestore live", ours).replace("ffmpeg", "ffmpeg -v error")
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        out = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],  # noqa: S607
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            env=env,
        )
        assert out.returncode == 0, f"{line}\n{out.stderr}"
    assert sum(1 for _ in read_frames(folder / "new.mkv")) == 4


def test_opencv_loop(folder: Path, tmp_path: Path) -> None:
    main = runpy.run_path(str(ROOT / "examples" / "opencv_loop.py"))["main"]
    target = tmp_path / "out.avi"
    assert main(str(folder / "clip.mkv"), str(target)) == 4
    assert sum(1 for _ in read_frames(target)) == 4
    with pytest.raises(SystemExit, match="cannot be opened"):
        main(str(tmp_path / "none.mkv"), str(target))


class Frame(list[np.ndarray]):
    """Stands in for VapourSynth's frame: three planes, a copy that can be written."""

    props = {"_Matrix": 2}  # noqa: RUF012

    def copy(self) -> Frame:
        return Frame([plane.copy() for plane in self])

    def __enter__(self) -> Frame:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


def test_vapoursynth_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in for VapourSynth, whose wheels need a newer Python: what it calls is ours."""
    picture = np.asarray(Image.open(sample_folder() / "vegetables.webp").convert("RGB"))[:64, :80]
    noise = np.random.default_rng(0).normal(0, 25, picture.shape)
    noisy = (picture + noise).clip(0, 255).astype(np.uint8)
    frame = Frame([np.ascontiguousarray(noisy[..., c]) for c in range(3)])
    clip = SimpleNamespace(height=64, get_frame=lambda n: frame)
    called: list[Callable[[int, Frame], Frame]] = []
    out = SimpleNamespace(set_output=lambda: None)
    core = SimpleNamespace(
        num_threads=0,
        resize=SimpleNamespace(Bicubic=lambda clip, **how: out),
        std=SimpleNamespace(ModifyFrame=lambda clip, clips, f: called.append(f)),
    )
    names = SimpleNamespace(core=core, RGB24=0, YUV444P8=1, VideoFrame=Frame)
    monkeypatch.setitem(sys.modules, "vapoursynth", names)  # type: ignore[arg-type]
    runpy.run_path(str(ROOT / "examples" / "restore.vpy"), {"video_in": clip})
    (restore,) = called
    errors = [np.abs(np.dstack(restore(n, frame)) - picture.astype(float)).mean() for n in (0, 1)]
    assert errors[0] < 0.6 * np.abs(noise).mean()
    sought = np.dstack(restore(7, frame))  # a seek: as if it were the first
    assert np.array_equal(sought, np.dstack(restore(0, frame)))
    assert not np.array_equal(sought, np.dstack(restore(1, frame)))
