"""What TensorRT-RTX compiles on the user's GPU at the first run, kept for the next process.

Never run: without a GPU no engine of RTX can be loaded.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
from pathlib import Path
from typing import Any

from fastrestore.atomic import label, write_file
from fastrestore.engine_cache import make_folder
from fastrestore.engine_file import refuse_hands
from fastrestore.errors import EngineError, FastRestoreError

logger = logging.getLogger(__name__)


def cache_file(engine: bytes, place: str) -> Path:
    """Return where the compiled kernels of an engine on a GPU lie; the folder is made.

    Args:
        engine: Its bytes.
        place: The GPU, and the runtime's version.

    Raises:
        EngineError, InputError, OutputError: See `engine_cache.make_folder`.
    """
    digest = hashlib.sha256(engine + place.encode()).hexdigest()
    name = re.sub(r"[^A-Za-z0-9.]+", "_", place)[:100]
    return make_folder("runtime") / f"{name}-{digest[:8]}.cache"


class RtxCache:
    """The kernels of one engine on one GPU.

    A cache that cannot be read or written costs a second compilation, and is a warning.

    Attributes:
        config: For `create_execution_context`: with this cache, and CUDA graphs of RTX's own.
    """

    def __init__(self, trt: Any, engine: Any, data: bytes, place: str) -> None:
        self.config = engine.create_runtime_config()
        self.config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._cache: Any = self.config.create_runtime_cache()
        self._path: Path | None = None
        self._saved = b""
        try:
            self._path = cache_file(data, f"{place} {trt.__version__}")
            self._saved = _read(self._path)
        except FastRestoreError as e:
            logger.warning("%s; kernels are compiled anew each time", e)
        if self._saved and not self._cache.deserialize(self._saved):
            logger.info("%s: of another driver or version, is made anew", self._path)
            self._saved = b""
        self.config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write what was compiled since it was read, only for the owner."""
        if self._path is None:
            return
        data = bytes(self._cache.serialize())
        if data == self._saved:
            return
        try:
            write_file(self._path, data)
            self._path.chmod(0o600)
        except OSError as e:  # OutputError is one
            logger.warning("%s; kernels are compiled anew each time", e)
            self._path = None
        self._saved = data


def _read(path: Path) -> bytes:
    """Read a cache, never through a link nor from other hands: it holds programs.

    Raises:
        EngineError: It is a link, in other hands, or cannot be read.
    """
    try:
        info = path.lstat()
        if not stat.S_ISREG(info.st_mode):
            raise EngineError(f"{label(path)}: is not a file; remove it")
        refuse_hands(path, info)
        with open(path, "rb", opener=_no_follow) as file:
            return file.read()
    except FileNotFoundError:
        return b""
    except OSError as e:
        raise EngineError(f"{label(path)}: cannot be read ({e.strerror}); remove it") from e


def _no_follow(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0))
