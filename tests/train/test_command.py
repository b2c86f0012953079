"""`fastrestore train`: options are the config's fields, and a run works as a user starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from fastrestore.errors import InputError, OutputError
from fastrestore.train import command as train_command
from fastrestore.train.command import command
from fastrestore.train.config import RECIPES, TrainConfig

ROOT = Path(__file__).parents[2]
FIELDS = {f.name: f for f in fields(TrainConfig)}
OPTIONS = {p.name: p for p in command.params if isinstance(p, click.Option)}


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False
    )


def flag(name: str) -> str:
    return "--from" if name == "from_weights" else f"--{name.replace('_', '-')}"


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_an_option_with_its_sentence(name: str) -> None:
    option = OPTIONS[name]
    assert option.opts == [flag(name)]
    assert option.help
    assert f"{name}: {option.help}" in " ".join((TrainConfig.__doc__ or "").split())
    assert option.help.endswith(".") or name == "from_weights"
    assert option.required == (name in ("data", "track"))
    if not option.required:
        assert option.default == FIELDS[name].default
        assert option.show_default


def test_other_options_are_few_and_only_the_folder_is_required() -> None:
    others = OPTIONS.keys() - FIELDS.keys()
    assert others == {"output", "recipe", "slice_minutes", "model"}
    assert [name for name in others if OPTIONS[name].required] == ["output"]


def test_help_says_all() -> None:
    text = CliRunner().invoke(command, ["--help"], terminal_width=100).output
    words = " ".join(text.split())
    for name in FIELDS:
        assert f"{flag(name)} " in words
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
    [
        ("--track", "paid"),
        ("--preset", "huge"),
        ("--device", "tpu"),
        ("--steps", "many"),
        ("--recipe", "blunt"),
        ("--gan", "w"),
        ("--slice", "0"),
    ],
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


ROWS = [{"step": 0, "psnr": {"a": 30.0, "b": 20.0}}, {"step": 9, "psnr": {"a": 31.0, "b": 20.5}}]


class Calls:
    """Stands in for training and export: notes what was asked for, and answers as told."""

    def __init__(self) -> None:
        self.config: TrainConfig | None = None
        self.history: list[dict[str, Any]] = ROWS
        self.exported: list[tuple[Path, Path]] = []
        self.behave: Callable[[threading.Event], object] = lambda stop: None

    def train(self, config: TrainConfig, folder: Path, show: object, stop: threading.Event) -> Any:
        self.config = config
        self.behave(stop)
        return SimpleNamespace(step=9, crops=72, seconds=90.0, history=self.history)

    def export(self, run: Path, target: Path) -> None:
        self.exported.append((run, target))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    from fastrestore.train import loop

    calls = Calls()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "train", calls.train)
    return calls


def run_command(*options: str) -> int:
    return int(command.main([*ENOUGH, *options], standalone_mode=False))


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_sets_what_the_options_do_not(calls: Calls, recipe: str) -> None:
    given = {"track": "free", "data": ("d",), "steps": 900, "from_weights": "tiny"}
    more = ("--recipe", recipe, "--steps", "900", "--from", "tiny")
    assert run_command(*more) == 0
    assert calls.config == TrainConfig.of(recipe, given)
    # A value that is the field's default is given, too, and rules.
    assert run_command(*more, "--edge", "0.5", "--lr", "0.02") == 0
    assert calls.config == TrainConfig.of(recipe, {**given, "edge": 0.5, "lr": 0.02})


def test_options_of_another_name_reach_the_config(calls: Calls) -> None:
    assert run_command("--from", "runs/one", "--data", "e=2", "--ablate", "no-sobel") == 0
    assert calls.config is not None
    assert calls.config.from_weights == "runs/one"
    assert calls.config.data == ("d", "e=2")
    assert calls.config.ablate == "no-sobel"


def test_tuned_detector_is_judged_by_overlap_and_false_alarms() -> None:
    before = {"step": 0, "iou": {"a": 0.5, "b": 0.7}, "false_alarms_percent": {"clean": 1.0}}
    worse = {**before, "step": 9, "false_alarms_percent": {"clean": 90.0}}
    better = {**worse, "iou": {"a": 0.9, "b": 0.7}, "false_alarms_percent": {"clean": 0.5}}
    config = TrainConfig(track="free", data=("a",), steps=1, task="detector")
    assert not train_command._say_figures(config, [before, worse])
    assert train_command._say_figures(config, [before, better])


def test_figures_are_told(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("--from", "tiny") == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "o: 9 steps, 72 crops, 1.5 min" in err
    assert "held out: {'psnr': {'a': 31.0, 'b': 20.5}}" in err
    assert "before: {'psnr': {'a': 30.0, 'b': 20.0}}, on 24 held-out pictures" in err
    calls.history = [{"step": 9, "iou": {"lines": 0.5}, "false_alarms_percent": {"a": 0.1}}]
    assert run_command("--task", "detector") == 0
    err = capsys.readouterr().err
    assert "held out: {'iou': {'lines': 0.5}, 'false_alarms_percent': {'a': 0.1}}" in err


@pytest.mark.parametrize(
    ("options", "history", "written"),
    [
        ((), ROWS, True),
        ((), ROWS[::-1], True),  # from scratch: there is nothing that it could be worse than
        (("--from", "tiny"), ROWS, True),
        (("--from", "tiny"), [ROWS[0], {**ROWS[0], "step": 9}], False),
        (
            ("--from", "tiny", "--recipe", "sharp", "--steps", "900"),
            [ROWS[0], {**ROWS[0], "step": 9}],
            True,
        ),
    ],
    ids=["better", "scratch", "tuned", "not better", "stage 2"],
)
def test_tuned_model_is_written_if_it_became_better(
    calls: Calls,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    history: list[dict[str, Any]],
    written: bool,
) -> None:
    pytest.importorskip("onnx", reason="the extra export is not installed")
    from fastrestore.export import command as export

    monkeypatch.setattr(export, "export_run", calls.export)
    calls.history = history
    assert run_command(*options, "--export", "own.onnx") == (0 if written else 1)
    assert calls.exported == ([(Path("o"), Path("own.onnx"))] if written else [])
    told = "own.onnx: not written; tiny stays the better one"
    assert (told in capsys.readouterr().err) == (not written)


def test_target_that_cannot_be_written_is_said_before_training(calls: Calls) -> None:
    pytest.importorskip("onnx", reason="the extra export is not installed")
    Path("own.onnx").write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"own\.onnx"):
        run_command("--export", "own.onnx")
    assert calls.config is None


def wait(stop: threading.Event) -> None:
    assert stop.wait(10)
    raise KeyboardInterrupt


def test_slice_ends_in_words(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    calls.behave = wait
    assert run_command("--slice", "0.001") == 1
    assert "o: the slice is over; the same command goes on" in capsys.readouterr().err


def test_run_shorter_than_its_slice_ends_as_ever(calls: Calls) -> None:
    before = threading.active_count()
    assert run_command("--slice", "10") == 0
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before  # the timer is gone


def test_interrupt_is_patient_once(calls: Calls) -> None:
    seen: list[bool] = []

    def interrupted(stop: threading.Event) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        seen.append(stop.wait(5))
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    calls.behave = interrupted
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises((KeyboardInterrupt, click.Abort)):
        run_command("--slice", "10")
    assert seen == [True]
    assert signal.getsignal(signal.SIGINT) is before


def test_only_the_first_of_several_processes_tells_and_exports(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx", reason="the extra export is not installed")
    from fastrestore.export import command as export

    monkeypatch.setattr(export, "export_run", calls.export)
    monkeypatch.setenv("RANK", "1")
    calls.history = []
    assert run_command("--export", "own.onnx") == 0
    assert capsys.readouterr().err == ""
    assert calls.exported == []


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
    assert "held out: {'psnr': {'ff10':" in words
    assert "WARNING skipped" in words
    assert sorted(os.listdir(output)) == ["checkpoint.safetensors", "grid.png", "log.jsonl"]
    data_bytes = (output / "checkpoint.safetensors").read_bytes()
    header = json.loads(data_bytes[8 : 8 + int.from_bytes(data_bytes[:8], "little")])
    record = json.loads(header["__metadata__"]["fastrestore"])
    assert record["step"] == 4
    config = TrainConfig.from_json(record["config"])
    assert (config.track, config.preset, config.data) == ("free", "nano", (f"{data}=2",))
