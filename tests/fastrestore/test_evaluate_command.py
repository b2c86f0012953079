"""`fastrestore evaluate --protocol paper` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from fastrestore import paper
from fastrestore.commands.evaluate import command
from fastrestore.demo import sample_folder
from fastrestore.errors import InputError
from fastrestore.images import Picture, read_picture, write_picture

FAST = ("--model", "nano", "--backend", "ort", "--threads", "1")
SIDE = 48


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paper, "open_lpips", lambda _: (None, "LPIPS: left out (not here)"))
    monkeypatch.setattr(paper, "_draw_curve", lambda *_: [])
    cat = read_picture(sample_folder() / "cat.webp").rgb
    for i in range(2):
        part = np.ascontiguousarray(cat[40 * i :, 60 * i :][:SIDE, :SIDE])
        (tmp_path / "photos").mkdir(exist_ok=True)
        write_picture(tmp_path / "photos" / f"{i}.png", Picture(rgb=part), part)
    white = np.zeros((SIDE, SIDE, 3), np.uint8)
    white[10:20] = 255
    (tmp_path / "masks").mkdir()
    write_picture(tmp_path / "masks" / "m.png", Picture(rgb=white), white)
    (tmp_path / "blank").mkdir()
    write_picture(tmp_path / "blank" / "m.png", Picture(rgb=white * 0), white * 0)
    return tmp_path


def call(*args: str) -> Result:
    return CliRunner().invoke(command, args)


def paper_run(*args: str) -> Result:
    return call("photos", "--protocol", "paper", *args, *FAST)


def test_a_report(here: Path) -> None:
    result = paper_run(
        "--ratio", "0.2", "--holes", "rects", "--sigma", "25", "--masks", "masks",
        "--methods", "telea,bilateral", "--report", "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert "PSNR of fastrestore nano against the others" in result.stderr
    assert "LPIPS: left out (not here)" in result.stderr
    assert "report.md" in result.stderr.splitlines()[-1]
    report = json.loads((here / "out" / "report.json").read_text())
    assert {r["case"] for r in report["results"]} == {"rects-20", "files-20-30", "sigma-25"}
    assert {r["n"] for r in report["results"]} == {2}


def test_json_goes_to_the_standard_output(here: Path) -> None:
    result = paper_run("--sigma", "25", "--limit", "1", "--report", "out", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads((here / "out" / "report.json").read_text())


def test_inputs_out_and_pictures_back_in(here: Path) -> None:
    named = ("--holes", "rects", "--ratio", "0.2")
    result = paper_run(*named, "--write-inputs", "in")
    assert result.exit_code == 0, result.output
    assert "in: 2 pictures, 1 cases" in result.stderr
    assert not (here / "out").exists()
    (here / "them").mkdir()
    (here / "in" / "clean").rename(here / "them" / "rects-20")
    result = paper_run(*named, "--report", "out", "--outputs", "them=them", "--methods", "")
    assert result.exit_code == 0, result.output
    assert "behind in 1" in result.stderr
    (here / "them" / "rects-20" / "1.png").unlink()
    with pytest.raises(InputError, match=r"them lacks 1\.png"):
        raise result_error(paper_run(*named, "--report", "new", "--outputs", "them=them"))


def result_error(result: Result) -> BaseException:
    assert result.exception is not None, result.output
    return result.exception


def test_float_noise_is_asked_for(here: Path) -> None:
    pytest.importorskip("onnx", reason="the extra evaluate is not installed")
    result = paper_run("--sigma", "25", "--noise-protocol", "float", "--report", "out")
    assert result.exit_code == 0, result.output
    text = (here / "out" / "report.md").read_text()
    assert "sigma 25 unclipped" in text
    assert "FFDNet" in text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("--protocol paper", "--protocol needs --report DIR or --write-inputs DIR"),
        ("--protocol other", "'other' is not"),
        ("--protocol paper --report out --cell 8", "--cell goes without --protocol"),
        ("--protocol paper --report out --outputs them", "write NAME=DIR"),
        ("--report out", "--report goes with --protocol paper"),
        ("--quick", "--quick goes with --protocol paper"),
        ("--masks masks", "--masks goes with --protocol paper"),
        ("--noise-protocol uint8", "--noise-protocol goes with --protocol paper"),
        ("--also nano", "--also goes with"),
        ("--detector x", "--detector goes with"),
        ("--write-inputs x", "--write-inputs goes with"),
        ("--outputs a=b", "--outputs goes with"),
    ],
)
def test_wrong_use(here: Path, args: str, words: str) -> None:
    result = call("photos", *args.split(), *FAST)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("nope --protocol paper --report out", "nope: no such folder"),
        ("photos --protocol paper --report out --holes center", "center: not in the protocol"),
        ("photos --protocol paper --report out --methods magic", "method magic: not known"),
        ("photos --protocol paper --report out --masks blank", r"m\.png: needs both hole"),
        ("photos --protocol paper --report out --outputs x=gone", "gone: no such folder"),
        ("photos --protocol paper --write-inputs photos", "photos: is not an empty folder"),
    ],
)
def test_bad_input(here: Path, args: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        raise result_error(call(*args.split(), "--limit", "1", *FAST))
    assert not (here / "out").exists()
