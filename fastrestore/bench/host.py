"""Level `host`: uint8 pictures from host memory to host memory, in the ways that MLPerf names.

- `single-stream`: one picture after the other; judged by p90.
- `multi-stream`: a query is one picture for each stream, and is answered when the last is done;
  judged by p99. (MLPerf's query has 8 pictures: so many streams are the default.)
- `offline`: all pictures are there; judged by pictures a second.

Lengths of runs are not MLPerf's: nothing here is a result of MLPerf.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

from fastrestore.arrays import U8
from fastrestore.backend import find_model, open_backend
from fastrestore.bench.engine import identity
from fastrestore.bench.record import Labels, Scenario
from fastrestore.bench.scene import SIGMA, Scene
from fastrestore.bench.subject import Subject, expect
from fastrestore.environment import usable_cores
from fastrestore.restore import Restorer

WARM_CALLS = 3  # graphs are captured at the second call of a shape, or compiled at the third
PER_STREAM = 8  # pictures of one stream in an offline call: waiting for the last is an eighth


class Host:
    """A model on a backend, opened once for each stream, for all sizes and tasks."""

    def __init__(
        self,
        model: str,
        backend: str,
        threads: int | None = None,
        device: int = 0,
        streams: int = 1,
    ) -> None:
        """Load it as often as there are streams, each with its share of the threads.

        Args:
            model: Name or file.
            backend: Of `open_backend`.
            threads: CPU threads of all streams together.
            device: CUDA device.
            streams: Pictures that are restored at the same time.

        Raises:
            ModelError, EngineError, MissingExtraError, InputError: See `open_backend`.
        """
        each = threads if streams == 1 else max(1, (threads or usable_cores()) // streams)
        loaded = open_backend(model, backend, each, device=device)
        self.name, self.backend = find_model(model).stem, loaded.name
        self.precision, self.sha256 = identity(model, loaded)
        loaded.close()
        with ExitStack() as held:
            self.restorers = [
                held.enter_context(Restorer(model, backend=backend, threads=each, device=device))
                for _ in range(streams)
            ]
            self._pool = ThreadPoolExecutor(streams) if streams > 1 else None
            self._held = held.pop_all()

    def subject(self, scene: Scene, scenario: Scenario = "single-stream") -> Subject:
        """Return what is timed.

        Args:
            scene: What every picture is.
            scenario: How they come.

        Raises:
            ModelError, EngineError, InputError: It cannot be restored here.
        """
        calls = [_call(restorer, scene) for restorer in self.restorers]
        for call in calls * WARM_CALLS:
            expect(call(), scene.image.shape, self.backend)
        labels = Labels(self.backend, self.name, self.precision, scene.task, scenario, len(calls))
        query, items = together(calls, scenario, self._pool)
        return Subject("host", labels, scene.image.shape, query, items, sha256=self.sha256)

    def close(self) -> None:
        """Free everything."""
        if self._pool is not None:
            self._pool.shutdown()
        self._held.close()


def together(
    calls: list[Callable[[], U8]], scenario: Scenario, pool: ThreadPoolExecutor | None
) -> tuple[Callable[[], object], int]:
    """Return what makes one query of a scenario, and how many pictures it restores.

    Args:
        calls: Of each stream, for one picture.
        scenario: How pictures come.
        pool: A thread for each stream; None with one stream.
    """
    times = PER_STREAM if scenario == "offline" else 1
    if pool is None:
        only = calls[0]
        return (only if times == 1 else lambda: _repeat(only, times)), times

    def query() -> None:
        waiting: list[Future[None]] = [pool.submit(_repeat, call, times) for call in calls]
        for one in waiting:
            one.result()

    return query, times * len(calls)


def _repeat(call: Callable[[], U8], times: int) -> None:
    for _ in range(times):
        call()


def _call(restorer: Restorer, scene: Scene) -> Callable[[], U8]:
    image, mask = scene.image, scene.mask
    if mask is None:
        return lambda: restorer(image, sigma=SIGMA)
    return lambda: restorer(image, mask, sigma=0)
