"""`fastrestore doctor`."""

from __future__ import annotations

import click

_MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(as_json: bool) -> int:
    """Check this installation, and the GPU, if there is one, with all that engines need of it.

    Packages, codecs, backends and models; driver, CUDA binding, TensorRT, the cache of engines, and
    a Jetson's power mode, clocks and memory. Exit code 4 if a check fails.

    \b
    fastrestore doctor
    fastrestore doctor --json
    """
    from fastrestore.doctor import checks, to_json, worst

    found = checks()
    if as_json:
        click.echo(to_json(found), nl=False)
    else:
        for c in found:
            click.echo(f"{_MARKS[c.status]}  {c.name}: {c.detail}")
            if c.mend:
                click.echo(f"      {c.mend}")
    return 4 if worst(found) == "fail" else 0
