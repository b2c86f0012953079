"""Streams of the network as sources, by FFmpeg's own protocols."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fastrestore.errors import InputError
from fastrestore.live.addresses import (
    TIMEOUT_S,
    break_off,
    masked,
    problem,
    scheme,
    silence,
    split,
)
from fastrestore.live.decode import FORMATS, Decoder
from fastrestore.live.feed import Feed, Pictures
from fastrestore.live.frame import SourceLostError
from fastrestore.video_probe import odd_metadata

if TYPE_CHECKING:
    from av.container import InputContainer

# Scheme -> protocols that may be used on the way. Never `file`: what is sent must not name files.
_PROTOCOLS = {
    "http": "http,httpproxy,tcp,https,tls",
    "https": "https,httpproxy,tcp,tls,http",
    "rtmp": "rtmp,tcp",
    "rtmps": "rtmps,rtmp,tls,tcp",
    "rtsp": "rtsp,rtp,tcp,udp,tls",
    "rtsps": "rtsps,rtsp,rtp,tcp,udp,tls",
    "srt": "srt",
    "tcp": "tcp",
    "udp": "udp",
}
SCHEMES = tuple(_PROTOCOLS)
_OPTIONS = {
    # Over TCP: with UDP a lost packet damages every picture until the next keyframe.
    "rtsp": {"rtsp_transport": "tcp"},
    "rtsps": {"rtsp_transport": "tcp"},
    "udp": {"overrun_nonfatal": "1"},
}
_PROBE_US = 1_000_000  # how much of a stream is looked at before the first picture


def open_network(address: str, *, max_pixels: int, timeout: float = TIMEOUT_S) -> Feed:
    """Open a stream.

    Args:
        address: Of a scheme in `SCHEMES`; user and password are never shown.
        max_pixels: Largest picture that is accepted.
        timeout: Seconds without a sign of life after which it counts as lost.

    Raises:
        SourceLostError: Refused, silent, unknown host: it may come up.
        InputError: It does not want us, or sends nothing that can be used.
    """
    split(address)
    name = masked(address)
    container = _open(address, name, timeout)
    try:
        decoder = Decoder(container, name, max_pixels)
    except InputError:
        container.close()
        raise
    # A file on a web server waits for us: no frame of it is to be lost.
    finite = scheme(address) in ("http", "https") and container.size > 0
    lasting = not finite and scheme(address) != "tcp"  # there the sender closes when it has done
    notes: list[str] = []
    return Feed(
        name,
        _pictures(address, container, decoder, notes, lasting=lasting, timeout=timeout),
        live=not finite,
        rate=decoder.rate,
        notes=notes,
        patience=timeout,
    )


def _open(address: str, name: str, timeout: float) -> InputContainer:
    import av

    kind = str(scheme(address))
    options = {
        "protocol_whitelist": _PROTOCOLS[kind],
        "format_whitelist": "rtsp" if kind.startswith("rtsp") else FORMATS,
        "analyzeduration": str(_PROBE_US),
        **_OPTIONS.get(kind, {}),
    }
    started = time.monotonic()
    try:
        container: InputContainer = av.open(
            address, options=options, timeout=timeout, **odd_metadata()
        )
    except (av.error.FFmpegError, OSError, ValueError) as e:
        words, passing = problem(address, e, timeout)
        if time.monotonic() - started >= timeout:  # RTSP calls it invalid data
            words, passing = silence(timeout), True
    else:
        return container
    # Outside the handler: the error that FFmpeg raised holds the address with its password.
    raise (SourceLostError if passing else InputError)(f"{name}: {words}")


def _pictures(
    address: str,
    container: InputContainer,
    decoder: Decoder,
    notes: list[str],
    *,
    lasting: bool,
    timeout: float,
) -> Pictures:
    """Yield the pictures until the stream ends or breaks; close it.

    Args:
        address: Where they come from.
        container: The open stream.
        decoder: Of it.
        notes: Added to.
        lasting: Its end is no end, but a loss.
        timeout: As it was opened with.
    """
    import av

    name, words = masked(address), ""
    try:
        yield from decoder
    except (av.error.FFmpegError, OSError, ValueError) as e:
        if isinstance(e, InputError):
            raise
        words = break_off(e, timeout)
    finally:
        if decoder.damaged:
            notes.append(f"{name}: {decoder.damaged} damaged packets skipped")
        container.close()
    if words or lasting:
        raise SourceLostError(f"{name}: {words or 'the other side has ended it'}")
    if not decoder.frames:
        raise InputError(f"{name}: no frame of its video can be decoded")
