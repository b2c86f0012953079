"""Addresses of streams: how they are named without their secrets, and why one does not open."""

from __future__ import annotations

import re
import socket
from urllib.parse import SplitResult, urlsplit

from fastrestore.atomic import label
from fastrestore.errors import InputError

TIMEOUT_S = 5.0  # without an answer or a picture for so long, a stream is lost
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# FFmpeg's answers (class names of av.error) -> what they mean and how to mend it. These are final.
_REFUSALS = {
    "HTTPUnauthorizedError": "wants another user or password (401); write USER:PASSWORD@ before "
    "the host",
    "HTTPForbiddenError": "is forbidden (403); ask its owner",
    "HTTPNotFoundError": "there is nothing there (404); check the path",
    "HTTPBadRequestError": "does not understand the request (400); check the address",
    "HTTPOtherClientError": "refuses the request (4xx); check the address",
}


def scheme(text: str) -> str | None:
    """Return the lower-case scheme of an address, None where the text is none."""
    found = _SCHEME.match(text)
    return found[1].lower() if found else None


def masked(address: str) -> str:
    """Return an address for messages: without user, password, query and the key of RTMP."""
    kind, _, rest = address.partition("://")
    _, at, place = rest.rpartition("@")  # the last one: a password may hold any sign
    place = re.split(r"[?#]", place, maxsplit=1)[0]
    if kind.lower().startswith("rtmp"):
        folder, slash, key = place.rpartition("/")
        place = f"{folder}/***" if slash and key else place
    return label(f"{kind}://{'***@' if at else ''}{place}")


def split(address: str) -> SplitResult:
    """Take an address apart.

    Raises:
        InputError: It names no host, or a port that is none.
    """
    try:
        parts = urlsplit(address)
        usable = bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # half an IPv6 address, a port beyond 65535
        usable = False
    if not usable:
        raise InputError(f"{masked(address)}: is no address; write it as scheme://host:port/path")
    return parts


def problem(address: str, error: Exception, timeout: float) -> tuple[str, bool]:
    """Put FFmpeg's error about an address into words.

    Args:
        address: That was opened.
        error: What came of it.
        timeout: Seconds that were waited.

    Returns:
        What is wrong and how to mend it, and whether it may pass by itself.
    """
    import av

    kind = type(error).__name__
    if kind in _REFUSALS:
        return _REFUSALS[kind], False
    if isinstance(error, av.error.ProtocolNotFoundError):
        return (
            f"PyAV cannot open {scheme(address)}://; let a program that can pipe it, for example "
            f"`ffmpeg -i ADDRESS -f nut - | fastrestore live --source -`",
            False,
        )
    if isinstance(error, av.error.ExitError | TimeoutError):
        return silence(timeout), True
    if isinstance(error, ConnectionRefusedError):
        return "connection refused; is it running, and is the port right?", True
    if isinstance(error, av.error.InvalidDataError | ValueError):
        return "sends no video that is known here; play it with ffplay to see what it is", False
    reason = getattr(error, "strerror", None) or type(error).__name__
    host = str(split(address).hostname)
    if not _is_known(host):
        return f"host {label(host)} is not known; check its name and the network", True
    return f"cannot be reached ({reason}); check the address and the network", True


def silence(timeout: float) -> str:
    """Say that nobody answers."""
    return f"no answer for {timeout:g} s; check the address and the network"


def _is_known(host: str) -> bool:
    """Ask the name service: FFmpeg calls an unknown name an input/output error."""
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return False
    return True


def break_off(error: Exception, timeout: float) -> str:
    """Put into words why a stream that had come does not go on."""
    import av

    if isinstance(error, av.error.ExitError | TimeoutError):
        return f"nothing has come for {timeout:g} s"
    return f"broke off ({getattr(error, 'strerror', None) or type(error).__name__})"
