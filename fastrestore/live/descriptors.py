"""The two ends of pipes: reading and writing that another thread can end at any time.

Where the system cannot wait for pipes (Windows), a wait ends with the next byte instead.
"""

from __future__ import annotations

import os
import select
import stat

from fastrestore.errors import OutputError
from fastrestore.live.frame import ReaderGoneError

# A pipe that can take anything can take so much (POSIX: PIPE_BUF) without a wait.
_PIPE_BYTES = getattr(select, "PIPE_BUF", 512)
_FILE_BYTES = 1 << 20


class _Waiter:
    """Waits for a descriptor, or for being woken. Any thread may `wake` it; that lasts."""

    def __init__(self, descriptor: int, *, writing: bool) -> None:
        self._descriptor = descriptor
        self._woken, self._waker = os.pipe()
        self.closed = self._released = False
        self._poll = None
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(descriptor, select.POLLOUT if writing else select.POLLIN)
            self._poll.register(self._woken, select.POLLIN)

    def wait(self) -> bool:
        """Wait until the descriptor is ready; False = woken."""
        if self._poll is not None and not self.closed:
            self._poll.poll()
        return not self.closed

    def wake(self) -> None:
        if not self.closed:
            self.closed = True
            os.write(self._waker, b"\0")

    def release(self) -> None:
        """Free what it holds; nobody waits any more. Twice is once."""
        self.closed = True
        if not self._released:
            self._released = True
            os.close(self._woken)
            os.close(self._waker)


class Inlet:
    """A descriptor that is read. `close` from any thread ends a `read` that waits.

    The descriptor itself stays open: it may be the process's own stdin.

    Attributes:
        taken: Bytes handed out so far.
    """

    def __init__(self, descriptor: int) -> None:
        """Take it over."""
        self._descriptor = descriptor
        self._waiter = _Waiter(descriptor, writing=False)
        self._head = b""
        self.taken = 0

    def read(self, size: int) -> bytes:
        """Wait for the next bytes, at most `size`; none = the end."""
        data, self._head = self._head[:size], self._head[size:]
        data = data or self._more(size)
        self.taken += len(data)
        return data

    def peek(self, size: int, end: bytes | None = None) -> bytes:
        """Look at the next `size` bytes; fewer at the end of the pipe, or from `end` on."""
        while len(self._head) < size and not (end and end in self._head):
            more = self._more(size - len(self._head))
            if not more:
                break
            self._head += more
        return self._head

    def _more(self, size: int) -> bytes:
        return os.read(self._descriptor, size) if self._waiter.wait() else b""

    def close(self) -> None:
        """End a `read` that waits, and all later ones."""
        self._waiter.wake()

    def release(self) -> None:
        """Free what it holds; nobody reads any more."""
        self._waiter.release()


class Outlet:
    """A descriptor that is written. `close` from any thread ends a `write` that waits.

    The descriptor itself stays open: it may be the process's own stdout.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        """Take it over; `name` is for messages."""
        self.name = name
        self._descriptor = descriptor
        self._waiter = _Waiter(descriptor, writing=True)
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._piece = _FILE_BYTES if is_file else _PIPE_BYTES

    def write(self, data: bytes | memoryview) -> int:
        """Write all of it.

        Raises:
            OutputError: Nobody reads any more, the disk is full, or it was closed.
        """
        left = memoryview(data).cast("B")
        try:
            while left:
                if not self._waiter.wait():
                    raise OutputError(f"{self.name}: was closed")
                left = left[os.write(self._descriptor, left[: self._piece]) :]
        except BrokenPipeError:
            gone = f"{self.name}: its reader has gone, nothing more is shown"
            raise ReaderGoneError(gone) from None
        except OSError as e:
            if isinstance(e, OutputError):
                raise
            mend = "send it to another place"
            raise OutputError(f"{self.name}: cannot be written ({e.strerror}); {mend}") from e
        return memoryview(data).nbytes

    def close(self) -> None:
        """End a `write` that waits, and all later ones."""
        self._waiter.wake()

    def release(self) -> None:
        """Free what it holds; nobody writes any more."""
        self._waiter.release()
