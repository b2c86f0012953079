"""`fastrestore demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastrestore.commands.options import engine_options, model_options


@click.command("demo")
@click.option("-o", "--output", default="demo", show_default=True, metavar="DIR")
@model_options
@engine_options
def command(output: str, model: str, backend: str, threads: int | None, **engine: Any) -> None:
    """Damage the built-in samples (pictures and a clip) and restore them.

    \b
    fastrestore demo
    fastrestore demo -o /tmp/demo --model nano
    """
    from fastrestore.demo import demo
    from fastrestore.restore import Restorer

    with Restorer(model, backend=backend, threads=threads, **engine) as restorer:
        for s in demo(Path(output), restorer):
            click.echo(
                f"{s.what}\n  before {s.before}  {s.psnr_before:.2f} dB\n"
                f"  after  {s.after}  {s.psnr_after:.2f} dB  ({s.seconds:.2f} s)"
            )
        click.echo(f"model {restorer.spec.name} on {restorer.backend}")
