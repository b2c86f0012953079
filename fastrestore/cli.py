"""The `fastrestore` program: loads one command, runs it, turns errors into exit codes.

Data goes to stdout only where asked for; everything else to stderr. Exit codes: 0 ok, 1 some of
several inputs failed, 2 usage, 3 bad input, 4 no usable backend, extra or model, 5 output or
disk, 130 interrupted.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
from typing import Any

import click

from fastrestore._version import __version__
from fastrestore.atomic import label
from fastrestore.errors import FastRestoreError, OutputError, need

# name -> (module, extra it needs or "", what it does)
COMMANDS = {
    "restore": ("fastrestore.commands.restore", "", "Restore pictures, folders and videos."),
    "live": ("fastrestore.commands.live", "", "Restore a camera, a stream or a pipe as it comes."),
    "demo": ("fastrestore.commands.demo", "", "Damage and restore the built-in samples."),
    "degrade": ("fastrestore.commands.degrade", "", "Damage pictures on purpose, seeded."),
    "models": ("fastrestore.commands.models", "", "List shipped models and model sizes."),
    "build-engine": ("fastrestore.export.build_command", "rtx", "Build a checked TensorRT engine."),
    "engines": ("fastrestore.commands.engines", "", "List, check and remove built engines."),
    "doctor": ("fastrestore.commands.doctor", "", "Check this installation."),
    "bench": ("fastrestore.commands.bench", "", "Measure latency on this machine."),
    "evaluate": ("fastrestore.commands.evaluate", "", "Measure quality against other methods."),
    "prepare": ("fastrestore.train.prepare", "", "Pack pictures for training, with hashes."),
    "train": ("fastrestore.train.command", "train", "Train a generator on your pictures."),
    "export": ("fastrestore.export.command", "export", "Write a trained generator as ONNX."),
    "prepare-weights": ("fastrestore.train.prepare_weights", "", "Make the perceptual weights."),
}


class LazyGroup(click.Group):
    """Imports a command's module only when it runs, so that `--help` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order a user meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        module, extra, _ = COMMANDS[cmd_name]
        loaded = need(module, extra) if extra else importlib.import_module(module)
        command: click.Command = loaded.command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run one command; a stdout that cannot be written is no traceback."""
        try:
            return super().invoke(ctx)
        except FastRestoreError:
            raise
        except BrokenPipeError:
            # The reader of our stdout went away (`| head`): not our error, but say nothing more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except OSError as e:
            if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO) or e.filename is not None:
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise OutputError(f"stdout: cannot be written ({e.strerror})") from e

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="fastrestore")
def cli() -> None:
    """Restore damaged pictures and video: holes, scratches, lost blocks, noise.

    \b
    fastrestore demo                                  see it work
    fastrestore restore old.jpg --mask scratches.png  fill what the mask marks white
    fastrestore restore noisy.mp4 -o clean.mp4        remove noise
    """


def _is_interrupt(e: BaseException | None) -> bool:
    """Return whether Ctrl+C is behind an error: a library's import turns it into its own."""
    while e is not None:
        if isinstance(e, KeyboardInterrupt):
            return True
        e = e.__cause__ or e.__context__
    return False


def main() -> None:
    """Run the program; deliberate errors are one line on stderr and an exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl+C, parts complete
    try:
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as e:
        e.show()
        sys.exit(e.exit_code)
    except (FastRestoreError, ImportError) as e:
        if _is_interrupt(e):
            click.echo("fastrestore: interrupted", err=True)
            sys.exit(130)
        if not isinstance(e, FastRestoreError):
            raise
        click.echo(f"fastrestore: {e}", err=True)
        sys.exit(e.exit_code)
    except OSError as e:  # a name that the system does not take, a folder that cannot be read
        click.echo(f"fastrestore: {label(e.filename or '?')}: {e.strerror}; mend it", err=True)
        sys.exit(3)
    except (KeyboardInterrupt, click.Abort) as e:
        # click turns the one into the other; its argument names what an interrupted video left
        left = "".join(f"; {a}" for a in (e.__cause__ or e).args)
        click.echo(f"fastrestore: interrupted{left}", err=True)
        sys.exit(130)
