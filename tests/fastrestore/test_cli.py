"""The `fastrestore` program: exit codes, streams, names, folders, pipes.

A new process where the process itself matters (codes, signals, pipes, limits); the same `main`
within this one elsewhere, which saves a second a test.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
from PIL import Image

from fastrestore import cli
from fastrestore.arrays import U8
from fastrestore.backend import weights_folder
from fastrestore.demo import sample_folder
from fastrestore.errors import ModelError
from fastrestore.images import Picture, decode_picture, read_picture, write_picture
from fastrestore.video_io import read_frames, write_frames

ROOT = Path(__file__).resolve().parents[2]
ORT = ("--backend", "ort", "--threads", "1")
H, W = 48, 64


class Result(NamedTuple):
    """What a run of the program left."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()


Call = Callable[..., Result]


@pytest.fixture
def fr(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Run the program in this process."""

    def call(*args: str) -> Result:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["fastrestore", *args])
        with pytest.raises(SystemExit) as e:
            cli.main()
        code = e.value.code
        assert isinstance(code, int)
        return Result(code, *capfd.readouterr())

    return call


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "fastrestore", *args]


def program(*args: str, cwd: Path, data: bytes = b"", **options: Any) -> Result:
    """Run the program in a process of its own."""
    done = subprocess.run(
        command(*args),
        cwd=cwd,
        env=environment(),
        input=data,
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
        **options,
    )
    out = (done.stdout or b"").decode("latin-1")
    return Result(done.returncode, out, done.stderr.decode())


def refused(result: Result, code: int, words: str) -> None:
    """One line on stderr that says it, nothing on stdout, the right code."""
    assert result.lines, "nothing was said"
    assert len(result.lines) == 1, result.err
    assert re.match(f"fastrestore: .*({words})", result.err), result.err
    assert (result.code, result.out) == (code, "")


def photo(seed: int = 0) -> U8:
    cat = read_picture(sample_folder() / "cat.webp").rgb
    y, x = np.random.default_rng(seed).integers(0, 200, 2)
    return np.ascontiguousarray(cat[y : y + H, x : x + W])


def save(path: Path, image: U8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(path, Picture(image), image)
    return path


HOLE = np.zeros((H, W), np.uint8)
HOLE[10:20, 20:40] = 1
WHITE = HOLE[..., None].repeat(3, 2) * np.uint8(255)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a picture, its mask and a small clip, to work in."""
    save(tmp_path / "a.png", photo())
    save(tmp_path / "m.png", WHITE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}


# 0, 1, 2, 3, 4, 5, 130.


def test_exit_0_and_the_streams(here: Path) -> None:
    result = program("restore", "a.png", "-o", "b.png", "--mask", "m.png", "--json", cwd=here)
    assert result.code == 0, result.err
    (line,) = result.out.splitlines()
    found = json.loads(line)
    assert (found["input"], found["output"], found["error"]) == ("a.png", "b.png", None)
    assert (found["width"], found["height"], found["frames"]) == (W, H, 1)
    assert re.fullmatch(rf"a\.png -> b\.png \({W}x{H}, \d+\.\d\d s\)\n", result.err)
    out = read_picture(here / "b.png").rgb
    far = np.ones((H, W), bool)
    far[9:21, 19:41] = False  # the hole and one pixel around
    assert np.array_equal(out[far], photo()[far])
    assert not np.array_equal(out, photo())


def _bad_files(folder: Path) -> dict[str, str]:
    """Write inputs that must be refused; return words of the refusal by name."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)
    image = Image.fromarray(pixels)
    image.save(folder / "moves.gif", save_all=True, append_images=[image.rotate(90)])
    image.convert("CMYK").save(folder / "inks.jpg")
    Image.fromarray(pixels[..., 0].astype(np.float32)).save(folder / "float.tif")
    png, jpeg = io.BytesIO(), io.BytesIO()
    image.save(png, "PNG")
    image.save(jpeg, "JPEG")
    (folder / "cut.png").write_bytes(png.getvalue()[:2000])
    (folder / "cut.jpg").write_bytes(jpeg.getvalue()[:600])
    huge = bytearray(png.getvalue())
    huge[16:24] = (20_000).to_bytes(4, "big") * 2  # the header claims 400 megapixels
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    (folder / "gigantic.png").write_bytes(huge)
    (folder / "zero.png").touch()
    (folder / "zero.mp4").touch()
    (folder / "text.webp").write_text("<html>not found</html>")
    (folder / "playlist.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://localhost/x.ts\n")
    (folder / "dangling.png").symlink_to("nowhere.png")
    clip = folder / "cut.mp4"
    write_frames(clip, [pixels] * 3, fps=10, codec="libx264")
    clip.write_bytes(clip.read_bytes()[:-300])
    with av.open(str(folder / "sound.mkv"), "w") as container:
        stream: Any = container.add_stream("aac", rate=8000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        container.mux([*stream.encode(silence), *stream.encode(None)])
    return {
        "moves.gif": "animated; make a video",
        "inks.jpg": "CMYK without a colour profile; convert",
        "float.tif": "pixel type",
        "cut.png": "cut short",
        "cut.jpg": "cut short",
        "gigantic.png": "20000x20000 is 400 million pixels",
        "zero.png": r"is empty \(0 bytes\); copy it again",
        "zero.mp4": "empty; copy it again",
        "text.webp": "is not a picture",
        "playlist.mp4": "video",
        "cut.mp4": "cut off",
        "sound.mkv": "no video",
        # A dangling link is no file, so a folder does not give it.
    }


def test_exit_1_when_some_fail_and_3_when_all_do(here: Path) -> None:
    """The bad-input table in one folder: a line each that names the file, no partial output."""
    words = _bad_files(here / "in")
    save(here / "in" / "good.png", photo())
    save(here / "in" / "one.png", photo()[:1, :1])
    save(here / "in" / "row.png", photo()[:1])
    save(here / "in" / "odd.bmp", photo()[:17, :31])
    good = {"good.png", "one.png", "row.png", "odd.bmp"}
    result = program("restore", "in", "-o", "out", "--clean", "5", "--json", *ORT, cwd=here)
    assert result.code == 1, result.err
    assert files(here / "out") == good
    assert "Traceback" not in result.err
    *lines, last = result.lines
    assert last == f"{len(good)} restored, {len(words)} failed"
    said = [line for line in lines if line.startswith("fastrestore: ")]
    assert len(said) == len(words)
    assert len(lines) == len(words) + len(good), result.err
    for name, text in words.items():
        assert [s for s in said if re.match(rf"fastrestore: in/{name}: .*{text}", s)], (name, said)
    rows = [json.loads(line) for line in result.out.splitlines()]
    assert [Path(r["input"]).name for r in rows] == sorted({*words, *good})
    codes = {Path(r["input"]).name: r["error"] and r["error"]["code"] for r in rows}
    assert codes == {**dict.fromkeys(words, 3), **dict.fromkeys(good)}

    for name in good:
        (here / "in" / name).unlink()
    result = program("restore", "in", "-o", "out2", "-q", *ORT, cwd=here)
    assert (result.code, result.out) == (3, "")
    assert len(result.lines) == len(words)
    assert not files(here / "out2")


def test_exit_2_for_usage(here: Path) -> None:
    result = program("restore", "a.png", "--grow", "65", cwd=here)
    assert (result.code, result.out) == (2, "")
    assert "Usage: " in result.err
    assert "--grow" in result.lines[-1]


@pytest.mark.parametrize(
    "args",
    [
        "nonsense",
        "--nonsense",
        "restore --nonsense a.png",
        "restore a.png --clean 300",
        "restore a.png --clean loud",
        "restore a.png --quality 0",
        "restore a.png --crf 64",
        "restore a.png --max-pixels 0",
        "restore a.png --threads 0",
        "restore a.png --backend gpu",
        "restore a.png -o",
        "degrade a.png --holes rects",
        "degrade a.png -o d --holes stars",
        "degrade a.png -o d --holes rects --ratio 1",
        "degrade a.png -o d --sigma 255",
        "evaluate . --ratio 0",
        "evaluate . --limit 0",
        "bench --hole 2",
        "bench --compare a.json",
        "models extra",
        "doctor extra",
        "train --data x --output y",
        "train --data x --output y --track secret",
        "export a",
        "export a -o b.onnx --version 0",
    ],
)
def test_usage_errors(here: Path, fr: Call, args: str) -> None:
    result = fr(*args.split())
    assert (result.code, result.out) == (2, "")
    assert "Error: " in result.err
    assert files(here) == {"a.png", "m.png"}


@pytest.mark.parametrize("args", ["", "restore", "degrade", "evaluate", "train", "export"])
def test_nothing_given_shows_the_help(here: Path, fr: Call, args: str) -> None:
    result = fr(*args.split())
    assert result.code == 2
    assert re.match(rf"Usage: .*fastrestore {args}", result.err + result.out)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("nope.png", r"nope\.png: no such file"),
        ("nope", "nope: no such file"),
        ("nope/", "nope: no such file"),
        ("nope/*.png", r"nope/\*\.png: matches no file"),
        ("a.png --mask nope.png", r"nope\.png: no such mask"),
        ("a.png --threshold 0.4 --mask m.png", "a threshold goes with --mask auto only"),
        ("a.png --detector d.onnx --mask m.png", "--detector goes with --mask auto only"),
        ("a.png --mask-out found.png", "--mask-out: there is no mask to write; give --mask"),
        ("a.png --mask m.png --mask-out m.jpg", r"m\.jpg: masks are written as PNG"),
        ("a.png --mask m.png --mask-out a.png", r"a\.png: its mask would replace a\.png"),
        ("a.png -o - --mask m.png --mask-out a.png", r"a\.png: its mask would replace a\.png"),
        ("a.png --mask alpha", r"a\.png: has no alpha channel"),
        ("a.png --mask small.png", r"small\.png: the mask is 5x4, the picture 64x48; resize"),
        ("a.png --mask white.png", r"a\.png: .*covers the whole picture"),
        ("a.png --mask notes.txt", r"notes\.txt: is not a picture"),
        ("a.png --mask m.png --mask-color #ff00ff", "either a mask or a mask colour"),
        ("a.png --mask-color pink", "six hexadecimal digits"),
        ("a.png --max-pixels 100", r"a\.png: 64x48 .* allow it with --max-pixels 3072"),
        ("a.png m.png -o notes.txt", r"notes\.txt: is a file, but 2 inputs need a folder"),
        ("a.png -o a.png", r"a\.png: the output would replace the input"),
        ("a.png -o ./x/../a.png --overwrite", r"a\.png: the output would replace the input"),
        ("a.png x/a.png -o out", r"x/a\.png: would be written to out/a\.png, as a\.png would"),
        ("a.png a.png", r"a\.png: would be written to a\.restored\.png"),
        ("a.png -o b.gif", r"b\.gif: not a picture name; known: "),
        ("empty", "empty: no pictures or videos in this folder"),
        ("notes.txt -o b.png", r"notes\.txt: is not a picture that is read here"),
    ],
)
def test_exit_3_for_bad_input(here: Path, fr: Call, args: str, words: str) -> None:
    save(here / "small.png", photo()[:4, :5])
    save(here / "white.png", np.full((H, W, 3), 255, np.uint8))
    save(here / "x" / "a.png", photo())
    (here / "notes.txt").write_text("hello")
    (here / "empty").mkdir()
    before = files(here)
    refused(fr("restore", *args.split(), *ORT), 3, words)
    assert files(here) == before


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("nope", "nope: no such model; shipped: .*tiny"),
        ("hello.onnx", r"hello\.onnx: not an ONNX file"),
        ("empty.onnx", r"empty\.onnx: "),
        ("cut.onnx", r"cut\.onnx: not an ONNX file"),
        (".", "no such model"),
    ],
)
def test_exit_4_without_a_usable_model(here: Path, fr: Call, model: str, words: str) -> None:
    (here / "hello.onnx").write_text("hello")
    (here / "empty.onnx").touch()
    (here / "cut.onnx").write_bytes((weights_folder() / "tiny.onnx").read_bytes()[:-9])
    before = files(here)
    for args in (("a.png",), ("a.png", "-o", "-")):
        refused(fr("restore", *args, "--model", model, *ORT), 4, words)
    assert files(here) == before


# The mask is found.


def spotted() -> U8:
    image = np.minimum(photo(), 200)
    image[HOLE > 0] = (255, 0, 255)
    return image


def test_damage_is_found_and_repaired(here: Path, fr: Call, magenta_detector: Path) -> None:
    save(here / "a.png", spotted())
    auto = ("--mask", "auto", "--detector", str(magenta_detector), "--mask-out", "found.png")
    result = fr("restore", "a.png", "-o", "b.png", *auto, *ORT)
    assert result.code == 0, result.err
    assert result.lines[1:] == ["  damage found: 6.51% of the picture"]
    found, out = read_picture(here / "found.png").rgb, read_picture(here / "b.png").rgb
    assert np.array_equal(found, WHITE)
    far = np.ones((H, W), bool)
    far[8:22, 18:42] = False  # two pixels around
    assert np.array_equal(out[far], spotted()[far])
    clean = np.minimum(photo(), 200).astype(float)
    before, after = (np.abs(p - clean)[HOLE > 0].mean() for p in (spotted(), out))
    assert after < before / 4
    # What was written is the mask as it was found: used again, it gives the same picture.
    again = fr("restore", "a.png", "-o", "c.png", "--mask", "found.png", *ORT)
    assert again.code == 0, again.err
    assert np.array_equal(read_picture(here / "c.png").rgb, out)


def test_an_undamaged_picture_stays(here: Path, fr: Call, magenta_detector: Path) -> None:
    save(here / "a.png", np.minimum(photo(), 200))
    auto = ("--mask", "auto", "--detector", str(magenta_detector))
    result = fr("restore", "a.png", "-o", "b.png", *auto, *ORT)
    assert (result.code, result.lines[1:]) == (0, ["  no damage found: nothing is changed"])
    assert np.array_equal(read_picture(here / "b.png").rgb, np.minimum(photo(), 200))


def test_masks_of_a_folder_and_of_a_pipe(here: Path, fr: Call, magenta_detector: Path) -> None:
    save(here / "in" / "a.png", spotted())
    save(here / "in" / "b.webp", np.minimum(photo(), 200))
    auto = ("--mask", "auto", "--detector", str(magenta_detector))
    assert fr("restore", "in", "-o", "out", *auto, "--mask-out", "masks", *ORT).code == 0
    assert {"masks/a.png", "masks/b.png", "out/a.png", "out/b.webp"} <= files(here)
    assert np.array_equal(read_picture(here / "masks" / "a.png").rgb, WHITE)
    assert not read_picture(here / "masks" / "b.png").rgb.any()
    piped = fr("restore", "in/a.png", "-o", "-", *auto, "--mask-out", "p.png", *ORT)
    assert piped.code == 0, piped.err
    assert np.array_equal(read_picture(here / "p.png").rgb, WHITE)
    old = fr("restore", "in/a.png", "-o", "-", *auto, "--mask-out", "p.png", *ORT)
    refused(old, 5, r"p\.png: exists; use --overwrite")


def test_the_wrong_kind_of_model(here: Path, fr: Call, magenta_detector: Path) -> None:
    found = str(magenta_detector)
    for args, words in (
        (("--mask", "auto", "--detector", "nano"), "is a restorer, not a detector"),
        (("--mask", "m.png", "--model", found), "is a detector, not a restorer"),
        (("--mask", "auto", "--detector", "none.onnx"), r"none\.onnx: no such model"),
    ):
        refused(fr("restore", "a.png", *args, *ORT), 4, words)


def test_without_a_detector_inside(here: Path, fr: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastrestore import detect

    monkeypatch.setattr(detect, "weights_folder", lambda: here)
    result = fr("restore", "a.png", "--mask", "auto", *ORT)
    refused(result, 4, "no damage detector is installed; reinstall fastrestore, or give a mask")


def test_exit_4_without_an_extra(here: Path, fr: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        m for m in sys.modules if re.match(r"(torch|fastrestore\.(kernels|train|export))\b", m)
    ]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("openvino", "torch", "triton", "skimage", "skimage.restoration"):
        monkeypatch.setitem(sys.modules, name, None)
    missing = r"{} is not installed: pip install 'fastrestore\[{}\]'"
    refused(
        fr("restore", "a.png", "--backend", "openvino"), 4, missing.format("openvino", "openvino")
    )
    refused(
        fr("restore", "a.png", "--backend", "triton"),
        4,
        missing.format("(torch|triton)", "kernels"),
    )
    refused(
        fr("evaluate", ".", "--methods", "biharmonic", *ORT),
        4,
        missing.format(r"skimage[.\w]*", "evaluate"),
    )
    refused(
        fr("train", "--data", ".", "--track", "free", "--output", "run"),
        4,
        missing.format("torch", "train"),
    )
    refused(fr("export", "run", "-o", "x.onnx"), 4, missing.format("torch", "export"))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("a.png -o old.png", r"old\.png: exists; use --overwrite"),
        ("a.png -o folder.png/", ""),
        ("a.png -o m.png/b.png", r"m\.png: "),
        ("a.png -o taken --overwrite", ""),
    ],
)
def test_exit_5_for_the_output(here: Path, fr: Call, args: str, words: str) -> None:
    save(here / "old.png", photo())
    (here / "folder.png").touch()
    (here / "taken" / "a.png").mkdir(parents=True)
    before = files(here)
    result = fr("restore", *args.split(), "--mask", "m.png", *ORT)
    refused(result, 3 if "is a file" in result.err else 5, words)
    assert files(here) == before


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits")
def test_exit_5_when_the_disk_is_full(here: Path) -> None:
    """A limit on file sizes stands for the full disk; stdout on /dev/full for a full pipe."""
    import resource

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    noise = np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)
    save(here / "n.png", noise)
    before = files(here)
    args = ("restore", "n.png", "-o", "b.png", "--mask", "m.png", *ORT)
    refused(program(*args, cwd=here, preexec_fn=limited), 5, r"b\.png: .*; ")
    assert files(here) == before
    if os.path.exists("/dev/full"):
        with open("/dev/full", "wb") as full:
            args = ("restore", "n.png", "-o", "-", *ORT)
            refused(program(*args, cwd=here, stdout=full), 5, "stdout: ")
            refused(program("models", "--json", cwd=here, stdout=full), 5, "stdout: ")


@pytest.mark.skipif(sys.platform == "win32", reason="other signals")
@pytest.mark.parametrize("wrapped", [False, True])
def test_exit_130_when_an_import_is_interrupted(
    fr: Call, monkeypatch: pytest.MonkeyPatch, wrapped: bool
) -> None:
    def interrupted(**_: Any) -> None:
        try:
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt as e:
                raise ImportError("initialization failed") from e
        except ImportError as e:
            if wrapped:
                raise ModelError("cannot be loaded") from e
            raise

    monkeypatch.setattr(cli.cli, "main", interrupted)
    result = fr("doctor")
    assert (result.code, result.err) == (130, "fastrestore: interrupted\n")


def test_exit_130_when_interrupted(here: Path) -> None:
    """A folder and a clip at once: what is done stays, the clip's part file plays."""
    rng = np.random.default_rng(0)
    for i in range(40):
        save(here / "in" / f"{i:02}.png", rng.integers(0, 256, (160, 160, 3), np.uint8))
    clip = [rng.integers(0, 256, (128, 192, 3), np.uint8) for _ in range(8)]
    write_frames(here / "v.mkv", clip * 25, fps=25, codec="ffv1")
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    shared: dict[str, Any] = {"cwd": here, "env": environment(), **pipes}
    options = ("--clean", "20", *ORT)
    with (
        subprocess.Popen(command("restore", "in", "-o", "out", "--json", *options), **shared) as a,
        subprocess.Popen(
            command("restore", "v.mkv", "-o", "w.mkv", "--encoder", "ffv1", *options), **shared
        ) as b,
    ):
        first = json.loads(a.stdout.readline())  # type: ignore[union-attr]
        a.send_signal(signal.SIGINT)
        end = time.monotonic() + 30
        while time.monotonic() < end and not any(
            p.stat().st_size > 300_000 for p in here.glob("w.part-*.mkv")
        ):
            time.sleep(0.01)
        b.send_signal(signal.SIGINT)
        said = [p.communicate(timeout=30)[1].decode().split("\n") for p in (a, b)]
    said = [[line for line in lines if line] for lines in said]  # an empty one ends the ^C
    assert (a.returncode, b.returncode) == (130, 130), said
    (part,) = here.glob("w.part-*.mkv")
    assert said[1] == [f"fastrestore: interrupted; what is done so far plays: {part.name}"]
    assert said[0][-1] == "fastrestore: interrupted"
    assert not any("Traceback" in line for lines in said for line in lines)
    done = files(here / "out")
    assert first["output"] == "out/00.png"
    assert "00.png" in done
    assert len(done) < 40
    assert all(read_picture(here / "out" / name).rgb.shape == (160, 160, 3) for name in done)
    assert files(here) >= {"v.mkv", part.name}
    assert not (here / "w.mkv").exists()
    frames = sum(1 for _ in read_frames(part))
    assert 0 < frames < 200


# Pipes.


def test_stdin_to_stdout_is_what_a_file_gives(here: Path) -> None:
    data = (here / "a.png").read_bytes()
    args = ("restore", "-", "-o", "-", "--mask", "m.png", *ORT)
    result = program(*args, cwd=here, data=data)
    assert (result.code, result.err) == (0, "")
    program("restore", "a.png", "-o", "b.png", "--mask", "m.png", *ORT, cwd=here)
    piped = decode_picture(io.BytesIO(result.out.encode("latin-1")), "stdout")
    assert piped.format == "PNG"
    assert np.array_equal(piped.rgb, read_picture(here / "b.png").rgb)


class _Stdin:
    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


@pytest.mark.parametrize(
    ("args", "data", "code", "words"),
    [
        ("- -o -", b"", 3, r"stdin: is empty \(0 bytes\)"),
        ("- -o -", b"hello", 3, "stdin: is not a picture"),
        ("- -o -", b"\x89PNG\r\n\x1a\n", 3, "stdin: "),
        ("-", b"", 3, "stdin and stdout take one picture"),
        ("- a.png -o -", b"", 3, "stdin and stdout take one picture"),
        ("- -o - --mask white.png", None, 3, "stdin: .*covers the whole picture"),
        ("- -o - --mask alpha", None, 3, "stdin: has no alpha channel"),
        ("- -o - --max-pixels 9", None, 3, "stdin: 64x48 "),
        ("- -o old.png", None, 5, r"old\.png: exists; use --overwrite"),
        ("- -o nowhere/b.png", None, 5, r"nowhere/b\.png: |nowhere: "),
        ("- -o m.png/b.png", None, 5, r"m\.png"),
        ("nope.png -o -", b"", 3, r"nope\.png: no such file"),
    ],
)
def test_bad_pipes(
    here: Path,
    fr: Call,
    monkeypatch: pytest.MonkeyPatch,
    args: str,
    data: bytes | None,
    code: int,
    words: str,
) -> None:
    save(here / "old.png", photo(1))
    save(here / "white.png", np.full((H, W, 3), 255, np.uint8))
    given = (here / "a.png").read_bytes() if data is None else data
    monkeypatch.setattr(sys, "stdin", _Stdin(given))
    before = files(here)
    if "nowhere" in args:  # a folder may be made, as for any other input
        result = fr("restore", *args.split(), *ORT)
        assert result.code in (0, code)
        return
    refused(fr("restore", *args.split(), *ORT), code, words)
    assert files(here) == before
    assert np.array_equal(read_picture(here / "old.png").rgb, photo(1))


def test_stdin_to_a_file(here: Path, fr: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    save(here / "old.png", photo(1))
    monkeypatch.setattr(sys, "stdin", _Stdin((here / "a.png").read_bytes()))
    assert fr("restore", "-", "-o", "old.png", "--overwrite", "--mask", "m.png", *ORT).code == 0
    assert np.array_equal(read_picture(here / "old.png").rgb[30:], photo()[30:])


@pytest.mark.skipif(sys.platform == "win32", reason="other pipes")
def test_a_reader_that_goes_away_is_no_error(here: Path) -> None:
    args = command("restore", "a.png", "-o", "-", *ORT)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(args, cwd=here, env=environment(), **pipes) as process:
        process.stdout.close()  # type: ignore[union-attr]
        said = process.stderr.read()  # type: ignore[union-attr]
        assert process.wait(30) == 0
    assert said == b""


# Folders, names, what exists.


def test_a_folder_with_masks_by_stem(here: Path, fr: Call) -> None:
    for i, name in enumerate(("x.png", "y.jpg", "z.webp")):
        save(here / "in" / name, photo(i))
    (here / "in" / "notes.txt").write_text("hello")
    save(here / "masks" / "x.bmp", WHITE)
    save(here / "masks" / "y.png", WHITE)
    result = fr("restore", "in", "-o", "out", "--mask", "masks", "--json", *ORT)
    assert result.code == 1
    assert files(here / "out") == {"x.png", "y.jpg"}
    rows = [json.loads(line) for line in result.out.splitlines()]
    assert [r["input"] for r in rows] == ["in/x.png", "in/y.jpg", "in/z.webp"]
    assert "no mask named z.*" in rows[2]["error"]["message"]
    assert np.array_equal(read_picture(here / "out" / "x.png").rgb[30:], photo(0)[30:])


def test_what_exists_is_refused_skipped_or_replaced(here: Path, fr: Call) -> None:
    for i, name in enumerate(("x.png", "y.png")):
        save(here / "in" / name, photo(i))
    args = ("restore", "in", "-o", "out", "--mask", "m.png", *ORT)
    old = save(here / "out" / "x.png", photo(7)).read_bytes()
    result = fr(*args)
    assert result.code == 1
    assert "out/x.png: exists; use --overwrite or --skip-existing" in result.err
    assert (here / "out" / "x.png").read_bytes() == old
    assert fr(*args).code == 5
    result = fr(*args, "--skip-existing", "--json")
    assert (result.code, result.out) == (0, "")
    assert (here / "out" / "x.png").read_bytes() == old
    assert fr(*args, "--overwrite").code == 0
    assert (here / "out" / "x.png").read_bytes() != old


ODD = ["sp ace.png", "-dash.png", "p%03d.png", "br[1].png", "ünï☃.png", "'$(x)`.png", "#1?.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="names that Windows does not allow")
def test_odd_names(here: Path) -> None:
    for name in [*ODD, "line\nbreak.png"]:
        save(here / name, photo())
    write_frames(here / "v %d [1].mkv", [photo()] * 2, fps=10, codec="ffv1")
    save(here / "sp ace m%d.png", WHITE)
    names = [*ODD, "v %d [1].mkv", "line\nbreak.png"]
    result = program("restore", "--mask", "sp ace m%d.png", *ORT, "--", *names, cwd=here)
    assert result.code == 0, result.err
    stems = [os.path.splitext(n) for n in names]
    assert files(here) >= {f"{stem}.restored{suffix}" for stem, suffix in stems}
    assert len(result.lines) == len(names) + 1, result.err  # one a file, and the count


def test_links(here: Path, fr: Call) -> None:
    save(here / "other.png", photo(3))
    (here / "in.png").symlink_to("a.png")
    (here / "out.png").symlink_to("other.png")
    (here / "self.png").symlink_to("a.png")
    refused(fr("restore", "a.png", "-o", "self.png", "--overwrite", *ORT), 3, "replace the input")
    result = fr("restore", "in.png", "-o", "out.png", "--overwrite", "--mask", "m.png", *ORT)
    assert result.code == 0, result.err
    assert not (here / "out.png").is_symlink()
    assert np.array_equal(read_picture(here / "other.png").rgb, photo(3))
    assert np.array_equal(read_picture(here / "a.png").rgb, photo())


def test_masks_by_colour_and_inverted(here: Path, fr: Call) -> None:
    image = photo()
    image[HOLE > 0] = 255, 0, 255
    save(here / "c.png", image)
    save(here / "black.png", 255 - WHITE)
    assert fr("restore", "c.png", "-o", "1.png", "--mask-color", "#ff00ff", *ORT).code == 0
    assert fr("restore", "c.png", "-o", "2.png", "--mask", "m.png", *ORT).code == 0
    args = ("restore", "c.png", "-o", "3.png", "--mask", "black.png", "--invert-mask", *ORT)
    assert fr(*args).code == 0
    outs = [read_picture(here / f"{i}.png").rgb for i in (1, 2, 3)]
    assert np.array_equal(outs[0], outs[1])
    assert np.array_equal(outs[0], outs[2])


def test_quiet_says_errors_only_and_an_empty_mask_is_said(here: Path, fr: Call) -> None:
    save(here / "black.png", 0 * WHITE)
    args = ("restore", "a.png", "--mask", "black.png", *ORT)
    result = fr(*args, "-o", "1.png")
    assert result.code == 0
    assert "the mask is empty" in result.err
    assert np.array_equal(read_picture(here / "1.png").rgb, photo())
    result = fr(*args, "-o", "2.png", "-q")
    assert (result.code, result.out, result.err) == (0, "", "")


def test_clean_without_a_number_means_auto(here: Path, fr: Call) -> None:
    noise = np.random.default_rng(0).integers(-40, 41, (H, W, 3))
    save(here / "n.png", np.clip(photo().astype(int) + noise, 0, 255).astype(np.uint8))
    for i, args in enumerate(((), ("--clean",), ("--clean", "auto"), ("--clean", "0"))):
        assert fr("restore", "n.png", "-o", f"{i}.png", *args, *ORT).code == 0
    outs = [read_picture(here / f"{i}.png").rgb for i in range(4)]
    assert np.array_equal(outs[0], outs[1])
    assert np.array_equal(outs[0], outs[2])
    assert np.array_equal(outs[3], read_picture(here / "n.png").rgb)
    assert not np.array_equal(outs[0], outs[3])


def test_a_clip_with_a_mask(here: Path, fr: Call) -> None:
    write_frames(here / "v.mkv", [photo()] * 3, fps=10, codec="ffv1")
    args = ("restore", "v.mkv", "-o", "w.mkv", "--mask", "m.png", "--encoder", "ffv1", "--json")
    result = fr(*args, *ORT)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert (found["frames"], found["width"], found["height"]) == (3, W, H)
    before, after = list(read_frames(here / "v.mkv")), list(read_frames(here / "w.mkv"))
    assert all(np.array_equal(a[30:], b[30:]) for a, b in zip(before, after, strict=True))
    assert files(here) == {"a.png", "m.png", "v.mkv", "w.mkv"}


# Help.


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_has_an_example(fr: Call, name: str) -> None:
    for option in ("--help", "-h"):
        result = fr(name, option)
        assert (result.code, result.err) == (0, "")
    examples = re.findall(rf"^  fastrestore {name}\b.*$", result.out, re.MULTILINE)
    assert examples
    assert cli.COMMANDS[name][2].endswith(".")


def test_the_programs_own_help_and_version(fr: Call) -> None:
    result = fr("--help")
    assert (result.code, result.err) == (0, "")
    for name, (_, _, text) in cli.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", result.out, re.MULTILINE)
    assert re.fullmatch(r".*fastrestore, version \d+\.\d+\.\d+\S*\n", fr("--version").out)


def test_help_loads_nothing_heavy() -> None:
    """What keeps it under 0.3 s."""
    code = (
        "import sys; from fastrestore.cli import main; sys.argv = ['fastrestore', 'restore', '-h']"
        "\ntry: main()\nfinally: print('LOADED', *(m for m in"
        " ('numpy', 'onnxruntime', 'cv2', 'av', 'PIL', 'torch', 'onnx') if m in sys.modules))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    loaded = out.stdout.splitlines()[-1].split()
    assert set(loaded) <= {"LOADED", "numpy"}


def _examples(name: str) -> list[str]:
    """The example lines of a command's help text."""
    from importlib import import_module

    command: Any = import_module(cli.COMMANDS[name][0]).command
    return re.findall(rf"^\s*(fastrestore {name} .*)$", command.help, re.MULTILINE)


@pytest.mark.parametrize("name", ["restore", "degrade", "evaluate"])
def test_examples_of_help_texts_work(
    here: Path, fr: Call, name: str, request: pytest.FixtureRequest
) -> None:
    for target in (
        "photo.jpg",
        "old.jpg",
        "noisy.png",
        "scans/s.png",
        "photos/1.png",
        "photos/2.png",
    ):
        save(here / target, photo())
    for target in ("holes.png", "masks/s.png", "logo.png"):
        save(here / target, WHITE)
    write_frames(here / "clip.mp4", [photo()] * 2, fps=10, codec="libx264")
    examples = _examples(name)
    assert examples
    for example in examples:
        _, _, *args = shlex.split(example)
        if name in ("restore", "evaluate"):
            args += ORT
        if "auto" in args:
            args += ["--detector", str(request.getfixturevalue("magenta_detector"))]
        result = fr(name, *args)
        assert result.code == 0, (example, result.err)


# The other commands.


def test_degrade(here: Path, fr: Call) -> None:
    save(here / "b.jpg", photo(1))
    args = ("degrade", "a.png", "b.jpg", "-o", "d", "--holes", "freeform", "--ratio", "0.2")
    result = fr(*args)
    assert (result.code, result.out) == (0, "")
    assert len(result.lines) == 2
    assert files(here / "d") == {"a.png", "a.mask.png", "b.png", "b.mask.png"}
    mask = read_picture(here / "d" / "a.mask.png").rgb
    assert set(np.unique(mask)) == {0, 255}
    assert 0.15 < (mask > 0).mean() < 0.25
    damaged = read_picture(here / "d" / "a.png").rgb
    assert np.array_equal(damaged, np.where(mask > 0, 0, photo()))
    assert fr(*args).code == 5  # it exists
    first = {name: (here / "d" / name).read_bytes() for name in files(here / "d")}
    assert fr(*args, "--overwrite").code == 0
    assert first == {name: (here / "d" / name).read_bytes() for name in files(here / "d")}


def test_degrade_with_noise_alone(here: Path, fr: Call) -> None:
    assert fr("degrade", "a.png", "-o", "d", "--sigma", "25").code == 0
    assert files(here / "d") == {"a.png"}
    noise = read_picture(here / "d" / "a.png").rgb.astype(int) - photo()
    assert 18 < noise.std() < 30


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ("a.png -o d", 3, "nothing to do: give --holes, --sigma or both"),
        ("nope.png -o d --sigma 5", 3, r"nope\.png: no such file"),
        ("a.png a.webp -o d --sigma 5", 3, r"another input would be written to d/a\.png"),
        ("a.png -o . --sigma 5", 3, r"a\.png: the output would replace the input"),
        ("a.png a.mask.png -o d --holes rects", 3, r"d/a\.mask\.png"),
        ("a.png -o m.png --sigma 5", 5, r"m\.png: cannot be made"),
    ],
)
def test_bad_degrade(here: Path, fr: Call, args: str, code: int, words: str) -> None:
    save(here / "a.webp", photo())
    save(here / "a.mask.png", photo())
    before = files(here)
    refused(fr("degrade", *args.split()), code, words)
    assert files(here) == before


def test_models(fr: Call) -> None:
    result = fr("models", "--json")
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    shipped = sorted(p.stem for p in weights_folder().glob("*.md"))
    assert [m["name"] for m in found["shipped"]] == shipped
    assert {p["name"] for p in found["presets"]} >= {"nano", "tiny", "base"}
    for model in found["shipped"]:
        assert model["track"] == "free"
        assert model["bytes"] == (weights_folder() / f"{model['name']}.onnx").stat().st_size
        assert len(model["sha256"]) == 64
        assert model["kind"] == ("detector" if model["name"] == "detector" else "restorer")
    text = fr("models")
    assert (text.code, text.err) == (0, "")
    assert all(f"{name}: " in text.out for name in shipped)
    assert "predicted" in text.out


def test_models_tell_a_detector_from_a_restorer(
    here: Path, fr: Call, monkeypatch: pytest.MonkeyPatch, magenta_detector: Path
) -> None:
    from fastrestore import backend

    (here / "detector.onnx").write_bytes(magenta_detector.read_bytes())
    monkeypatch.setattr(backend, "weights_folder", lambda: here)
    text = fr("models")
    assert text.out.startswith("detector: finds damage (--mask auto), nano, free track"), text.out


def test_doctor(fr: Call) -> None:
    result = fr("doctor", "--json")
    report = json.loads(result.out)
    assert result.code == (4 if report["status"] == "fail" else 0)
    assert result.err == ""
    failed = [c for c in report["checks"] if c["status"] == "fail"]
    assert not failed


def test_doctor_of_a_broken_installation(
    here: Path, fr: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastrestore import doctor

    (here / "broken.onnx").write_text("hello")
    monkeypatch.setattr(doctor, "shipped_models", lambda: sorted(here.glob("*.onnx")))
    result = fr("doctor")
    assert (result.code, result.err) == (4, "")
    assert "FAIL  model broken: broken.onnx: not an ONNX file; make one with" in result.out


def test_evaluate(here: Path, fr: Call) -> None:
    for i in range(2):
        save(here / "photos" / f"{i}.png", photo(i))
    args = ("evaluate", "photos", "--ratio", "0.1", "--methods", "telea", *ORT)
    result = fr(*args)
    assert (result.code, result.err) == (0, "")
    head, _, *rows = result.out.splitlines()
    assert head.startswith("| damage | method | n | PSNR |")
    assert [[c.strip() for c in r.split("|")[1:4]] for r in rows] == [
        ["freeform 10 %", "fastrestore tiny", "2"],
        ["freeform 10 %", "input", "2"],
        ["freeform 10 %", "telea", "2"],
    ]
    result = fr(*args, "--limit", "1", "--sigma", "25", "--json")
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    assert [r["n"] for r in found["rows"]] == [1, 1, 1]
    assert found["rows"][0]["damage"] == "freeform 10 % + sigma 25"
    assert found["env"]["usable_cores"] >= 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("nope", "nope: no such folder"),
        ("a.png", r"a\.png: no such folder"),
        ("empty", "empty: no pictures in this folder"),
        ("photos --methods magic", "method magic: not known; choose from telea"),
        ("bad", r"bad/1\.png: is not a picture"),
        ("small", r"small/1\.png|1: .*at least 11 px"),
        ("twice", "twice/1|1: "),
    ],
)
def test_bad_evaluate(here: Path, fr: Call, args: str, words: str) -> None:
    save(here / "photos" / "1.png", photo())
    (here / "empty").mkdir()
    (here / "bad").mkdir()
    (here / "bad" / "1.png").write_text("hello")
    save(here / "small" / "1.png", photo()[:5, :5])
    save(here / "twice" / "1.png", photo())
    save(here / "twice" / "1.webp", photo(1))
    folder, *rest = args.split()
    methods = [] if rest else ["--methods", "telea"]
    refused(fr("evaluate", folder, *rest, *methods, *ORT), 3, words)


def test_export_and_train_refuse_in_one_line(here: Path, fr: Call) -> None:
    pytest.importorskip("torch", reason="the extra train is not installed")
    pytest.importorskip("onnx", reason="the extra export is not installed")
    (here / "old.onnx").touch()
    (here / "empty").mkdir()
    refused(fr("export", "nope", "-o", "x.onnx"), 3, "nope: ")
    refused(fr("export", "empty", "-o", "x.onnx"), 3, "empty.*: no checkpoint")
    refused(fr("export", "empty", "-o", "x.txt"), 3, r"x\.txt: the name must end in \.onnx")
    refused(fr("export", "empty", "-o", "old.onnx"), 5, r"old\.onnx: exists; use --overwrite")
    run = ("--track", "free", "--output", "run", "--minutes", "0.01")
    refused(fr("train", "--data", "nope", *run), 3, "nope: no such folder")
    assert files(here) == {"a.png", "m.png", "old.onnx"}
