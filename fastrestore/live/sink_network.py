"""Frames to the network: an encoder, and FFmpeg's own thread that sends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastrestore.live.addresses import TIMEOUT_S, masked, problem, scheme, split
from fastrestore.live.encode import Encoding
from fastrestore.live.sink_container import ContainerSink, Rate

if TYPE_CHECKING:
    from av.container import OutputContainer

NETWORK_MUXERS = {
    "rtmp": "flv",
    "rtmps": "flv",
    "rtsp": "rtsp",
    "rtsps": "rtsp",
    "srt": "mpegts",
    "tcp": "mpegts",
    "udp": "mpegts",
}
# A packet of UDP: seven of MPEG-TS, which fit into a frame of Ethernet.
_UDP_BYTES = 7 * 188
# Frames that may wait to be sent. Few: they are late already, and errors show so much later.
_QUEUE = 2


def network_sink(
    address: str, encoding: Encoding, rate: Rate, timeout: float = TIMEOUT_S
) -> ContainerSink:
    """Return a sink that sends to an address of a scheme in `NETWORK_MUXERS`.

    Args:
        address: User, password and the key of RTMP are never shown.
        encoding: From `choose_encoding`, for the scheme's muxer.
        rate: As for `ContainerSink`.
        timeout: Seconds without progress after which it has failed.

    Raises:
        InputError: The address is none.
    """
    split(address)
    return ContainerSink(
        masked(address),
        encoding,
        rate,
        lambda: _open(address, encoding.muxer, timeout),
        reason=lambda e: _reason(address, e, timeout),
    )


def _reason(address: str, error: Exception, timeout: float) -> str:
    """Put an error of sending into words."""
    import av

    if isinstance(error, av.error.InvalidDataError):  # RTSP says so of silence too
        return "gives no usable answer; does it take streams that are sent to it?"
    return problem(address, error, timeout)[0]


def _open(address: str, muxer: str, timeout: float) -> OutputContainer:
    """Open FFmpeg's `fifo` around the muxer.

    Otherwise PyAV would connect and wait for answers while it keeps Python from running, for
    ever where a server is silent, and without a way to say how long.
    """
    import av

    limit = round(timeout * 1e6)
    options = {
        "rtmp": f"rw_timeout={limit}",
        "rtsp": f"timeout={limit}:rtsp_transport=tcp",
        "tcp": f"timeout={limit}",
        "udp": f"pkt_size={_UDP_BYTES}",
    }.get(str(scheme(address)).removesuffix("s"), "")
    return av.open(
        address,
        "w",
        format="fifo",
        container_options={
            "fifo_format": muxer,
            "format_opts": options,
            "queue_size": str(_QUEUE),
        },
    )
