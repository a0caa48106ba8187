"""The Dask cluster that a data set is reconstructed on: found or made, and watched while it works."""

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from distributed import Client, Future

_CONNECT = "10s"
_GRACE = 60.0  # seconds after which workers that are gone are not waited for any more
_LOOK_EVERY = 0.05  # seconds
# A terminal's Ctrl-C reaches the workers too, which would end in a traceback each; they end with their cluster.
_DEAF = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"


@contextlib.contextmanager
def connected(client: "Client | str | None", workers: int | None, retries: int, num_items: int) -> "Iterator[Client]":
    """A client: the one given, one to the scheduler at an address, or one of a cluster made for the occasion.

    Raises: ImportError without Dask's ``distributed``; TypeError; OSError if no scheduler answers.
    """
    try:
        import dask.config
        import distributed
        from dask.system import CPU_COUNT
    except ImportError as err:
        raise ImportError(
            "sample_dataset: Dask's distributed is missing, expected it to run workers: pip install 'potentia[dask]'"
        ) from err
    if isinstance(client, distributed.Client):
        yield client
        return
    if isinstance(client, str):
        try:
            own = distributed.Client(client, timeout=_CONNECT, set_as_default=False)
        except (OSError, ValueError) as err:
            raise OSError(
                f"sample_dataset: no scheduler answers at {client}, expected one such as tcp://host:8786"
            ) from err
        with own:
            yield own
        return
    if client is not None:
        raise TypeError(
            f"sample_dataset: client is a {type(client).__name__}, expected a distributed.Client or an address"
        )
    # A worker gets an item when it is free: those that wait at a worker that dies would share the blame.
    with dask.config.set({"distributed.scheduler.worker-saturation": 1.0}):
        cluster = distributed.LocalCluster(
            n_workers=min(workers or CPU_COUNT, num_items),
            threads_per_worker=1,
            dashboard_address=cast(str, None),  # its default alone says what type it takes
            # Dask counts what it did not allocate as well, and would kill workers for the memory of a sampler's images.
            memory_limit=0,
            # There is no dashboard, but Dask serves its health at a port all the same, and warns if that is taken.
            scheduler_kwargs={"allowed_failures": retries, "dashboard_address": "127.0.0.1:0"},
            preload=_DEAF,
            silence_logs=logging.CRITICAL,  # failures are told at the end, each once
        )
    with cluster, distributed.Client(cluster, set_as_default=False) as own:
        yield own


def ended(client: "Client", futures: "Sequence[Future[Any]]") -> "Iterator[tuple[Future[Any], Any]]":
    """Futures as they end, each with its result once that has come from the worker.

    Workers that have not come yet are waited for, as in the queue of a cluster.

    Raises: OSError where there were workers, and for a minute there are none.
    """
    import distributed

    waiting = distributed.as_completed(futures, loop=client.loop, with_results=True, raise_errors=False)
    watch = _Watch(client)
    while not waiting.is_empty():
        if waiting.has_ready():
            watch.seen()
            yield next(waiting)
        else:
            watch.look()
            time.sleep(_LOOK_EVERY)


class _Watch:
    """Knows when a cluster last had a worker."""

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._asked = -math.inf
        self._seen: float | None = None

    def seen(self) -> None:
        """Note that there is one."""
        self._seen = time.monotonic()

    def look(self) -> None:
        """Ask the scheduler, now and then, for its workers.

        Raises: OSError as ``ended``.
        """
        now = time.monotonic()
        if now - self._asked < _GRACE / 20:
            return
        self._asked = now
        try:
            workers = self._client.nthreads()
        except OSError:
            return  # the scheduler is gone, and with it the futures, which end
        if workers:
            self.seen()
        elif self._seen is not None and now - self._seen > _GRACE:
            raise OSError(f"sample_dataset: the cluster has had no workers for {_GRACE:g} s, expected one or more")
