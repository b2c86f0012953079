"""`fastrestore train`: options are the config's fields, and a run works as a user starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from fastrestore.errors import InputError
from fastrestore.train.command import command
from fastrestore.train.config import TrainConfig

ROOT = Path(__file__).parents[2]
FIELDS = {f.name: f for f in fields(TrainConfig)}
OPTIONS = {p.name: p for p in command.params if isinstance(p, click.Option)}


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False
    )


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_an_option_with_its_sentence(name: str) -> None:
    option = OPTIONS[name]
    assert option.opts == [f"--{name.replace('_', '-')}"]
    assert option.help
    assert f"{name}: {option.help}" in " ".join((TrainConfig.__doc__ or "").split())
    assert option.help.endswith(".") or name == "from_weights"
    assert option.required == (name in ("data", "track"))
    if not option.required:
        assert option.default == FIELDS[name].default
        assert option.show_default


def test_there_is_no_other_option_but_the_folder() -> None:
    assert OPTIONS.keys() - FIELDS.keys() == {"output"}
    assert OPTIONS["output"].required


def test_help_says_all() -> None:
    text = CliRunner().invoke(command, ["--help"], terminal_width=100).output
    words = " ".join(text.split())
    for name in FIELDS:
        assert f"--{name.replace('_', '-')} " in words
    assert "fastrestore train --data" in words
    assert "[free|research]" in words


ENOUGH = ("--data", "d", "--track", "free", "--output", "o", "--steps", "1")


@pytest.mark.parametrize("missing", ["--data", "--track", "--output"])
def test_missing_option_is_a_usage_error(missing: str) -> None:
    at = ENOUGH.index(missing)
    result = CliRunner().invoke(command, [*ENOUGH[:at], *ENOUGH[at + 2 :]])
    assert result.exit_code == 2
    assert missing in result.output


@pytest.mark.parametrize(
    "wrong",
    [("--track", "paid"), ("--preset", "huge"), ("--device", "tpu"), ("--steps", "many")],
    ids=" ".join,
)
def test_wrong_choice_is_a_usage_error(wrong: tuple[str, str]) -> None:
    result = CliRunner().invoke(command, [*ENOUGH, *wrong])
    assert result.exit_code == 2
    assert wrong[0] in result.output


def test_config_that_cannot_be_trained_is_bad_input(tmp_path: Path) -> None:
    run = ["--data", "d", "--track", "free", "--output", str(tmp_path / "run")]
    result = CliRunner().invoke(command, run)
    assert isinstance(result.exception, InputError)
    assert "either minutes or steps" in str(result.exception)
    assert not (tmp_path / "run").exists()


CALL = """
import sys
{before}
from fastrestore.cli import main
sys.argv = ["fastrestore", *{arguments!r}]
try:
    main()
finally:
    print("LOADED", *sorted({{"torch", "cv2", "PIL", "av"}} & set(sys.modules)))
"""


def test_help_does_not_import_torch() -> None:
    done = python("-c", CALL.format(before="", arguments=["train", "--help"]))
    assert done.returncode == 0, done.stderr
    assert "--large-crop" in done.stdout
    assert done.stdout.splitlines()[-1] == "LOADED"


def test_without_torch_the_extra_is_named(tmp_path: Path) -> None:
    arguments = ["train", *ENOUGH[:4], "--steps", "1", "--output", str(tmp_path / "run")]
    before = 'sys.modules["torch"] = None'
    done = python("-c", CALL.format(before=before, arguments=arguments))
    assert done.returncode == 4
    assert "pip install 'fastrestore[train]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_run_from_the_command_line(tmp_path: Path) -> None:
    rng, data, output = np.random.default_rng(0), tmp_path / "my photos", tmp_path / "run"
    data.mkdir()
    for i in range(8):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8))
        coarse.resize((70, 66), Image.Resampling.BICUBIC).save(data / f"{i}.png")
    (data / "broken.jpg").write_bytes(b"no picture")
    options = "--track free --preset nano --steps 4 --batch 2 --crop 32 --large-crop 32"
    done = python(
        *("-m", "fastrestore", "train", "--data", f"{data}=2", "--output", str(output)),
        *(*options.split(), "--large-share", "0.5", "--held-out", "1"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    words = " ".join(done.stderr.split())
    assert "4 steps, 6 crops" in words
    assert "held-out PSNR: {'ff10':" in words
    assert "WARNING skipped" in words
    assert sorted(os.listdir(output)) == ["checkpoint.safetensors", "grid.png", "log.jsonl"]
    data_bytes = (output / "checkpoint.safetensors").read_bytes()
    header = json.loads(data_bytes[8 : 8 + int.from_bytes(data_bytes[:8], "little")])
    record = json.loads(header["__metadata__"]["fastrestore"])
    assert record["step"] == 4
    config = TrainConfig.from_json(record["config"])
    assert (config.track, config.preset, config.data) == ("free", "nano", (f"{data}=2",))
