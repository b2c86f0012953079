"""`fastrestore live`."""

from __future__ import annotations

import click


@click.command("live")
def command() -> None:
    """Restore a camera, a stream or a pipe as it comes."""
    raise click.UsageError("not built yet")
