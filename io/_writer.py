"""The streaming writer: draws are staged by the sampler and written by a thread of its own."""

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np
from torch import Tensor

from potentia.io._blocks import Draw, Taker
from potentia.io._create import create_at, refuse_place, remove_orphans
from potentia.io._ensemble import Ensemble
from potentia.io._errors import StoreError
from potentia.io._integrity import check_whole, committed_draws
from potentia.io._location import Location, StorePath
from potentia.io._schema import (
    Layout,
    add_data,
    build,
    json_ready,
    own_attributes,
    read_layout,
    refuse_other,
    root_attributes,
    stat_fill,
)
from potentia.io._sink import Sink
from potentia.io._state import read_state

if TYPE_CHECKING:
    import zarr

Durability = Literal["process", "power"]

_PATIENCE = 30.0  # seconds after which a block is committed in part


def check_durability(where: str, name: str) -> Durability:
    """Return one of the two kinds.

    Raises: ValueError for a name that is none.
    """
    for known in get_args(Durability):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise ValueError(f"{where}: durability is {name!r}, expected one of {', '.join(get_args(Durability))}")


def check_target(path: StorePath, *, overwrite: bool = False) -> None:
    """Refuse early, before hours of sampling, a place where a store cannot be written.

    Raises: StoreExistsError if something is there that may not be replaced; StoreError if the place is not writable.
    """
    refuse_place(Location.of(path), overwrite=overwrite)


class EnsembleWriter:
    """Writes draws of all chains, or of one rank's chains, to a zarr store.

    ``append`` hands a draw to a writer thread, which gathers a chunk of them. With ``commit`` the thread writes one
    chunk a chain, then the sampler's state, and the count of committed draws last, so that whatever is counted is
    whole. Memory for ``queue_blocks`` chunks there is: for the one under way, and for the draws that wait for the
    thread. A sampler that is faster than the disk waits for room. 1 writes without a thread, as stores in memory do.
    Whatever goes wrong in the thread is raised by the next call. The running sums are kept beside; they follow at the
    last draw and on ``close``, and without them readers sum the draws.

    ``durability="power"`` waits for the disk before draws are counted, so that they survive a power failure; what is
    counted survives the death of the process either way.
    """

    def __init__(self, sink: Sink, layout: Layout, rank: int, *, queue_blocks: int, pinned: bool) -> None:
        self._sink = sink
        self._layout = layout
        self._chains = layout.chains_of(rank)
        self._position = sink.num_committed  # draws appended, those in flight among them
        self._queued = self._position  # draws whose commit was handed on
        self._taker = Taker(pinned)
        self._last: Draw | None = None  # to see whether the sampler leaves it alone
        self._work: queue.Queue[Draw | bytes | None] = queue.Queue()  # draws, and states that commit them
        self._room_to_wait = threading.Semaphore((queue_blocks - 1) * layout.block)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._handed = time.monotonic()
        self._threaded = queue_blocks > 1 and sink.location.memory is None
        if self._threaded and self._position < layout.num_draws:
            self._thread = threading.Thread(target=self._run, name="potentia-writer", daemon=True)
            self._thread.start()

    @classmethod
    def create(
        cls,
        path: StorePath | None,
        *,
        num_chains: int,
        num_draws: int,
        event_shape: Sequence[int],
        is_complex: bool = False,
        dtype: Any = "float32",
        attrs: Mapping[str, object] | None = None,
        observed: Mapping[str, Any] | None = None,
        constant: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        state_bytes: int = 0,
        num_ranks: int = 1,
        parameters: Sequence[str] = (),
        queue_blocks: int = 3,
        durability: Durability = "process",
        pinned: bool = False,
    ) -> Self:
        """Make an empty store, whole or not at all, and write its rank 0; other ranks take it up by ``resume``.

        ``path`` None keeps it in memory. ``attrs`` go to the root attribute ``potentia``. ``state_bytes`` is the room
        for the sampler's state. ``num_ranks`` processes share the chains out: ``ceil(num_chains / num_ranks)`` each.
        ``pinned`` stages in page-locked memory, for images on CUDA. ``parameters`` names numbers that every draw has
        beside its image; ``append`` takes them among the statistics.

        Shapes: event_shape (C, H, W), complex channels counted once.
        Raises: ValueError for bad sizes; StoreExistsError, StoreError as ``check_target``.
        """
        layout = Layout.checked(
            num_chains, num_draws, event_shape, is_complex, dtype, num_ranks=num_ranks, parameters=parameters
        )
        _check_options(queue_blocks, durability)
        potentia = json_ready("EnsembleWriter: attrs", attrs or {})
        location = Location.of(path)
        if num_ranks > 1 and location.memory is not None:
            raise ValueError(f"EnsembleWriter: num_ranks is {num_ranks}, which do not share memory; expected a path")
        if num_ranks > 1 and str(location).startswith("icechunk"):
            raise ValueError(f"EnsembleWriter: {location} has one committer, expected one rank, not {num_ranks}")

        def fill(root: "zarr.Group") -> None:
            root.attrs.update(root_attributes(layout, potentia))
            build(root, layout, state_bytes)
            add_data(root.create_group("observed_data"), observed or {})
            add_data(root.create_group("constant_data"), constant or {})

        durable = durability == "power"
        create_at(location, fill, overwrite=overwrite, durable=durable)
        sink = Sink(location, location.open(writable=True, durable=durable), layout, 0)
        return cls(sink, layout, 0, queue_blocks=queue_blocks, pinned=pinned)

    @classmethod
    def resume(
        cls,
        path: StorePath,
        *,
        expect: Mapping[str, object] | None = None,
        rank: int = 0,
        num_ranks: int = 1,
        queue_blocks: int = 3,
        durability: Durability = "process",
        pinned: bool = False,
    ) -> tuple[Self, bytes]:
        """Open a store to go on writing one rank's chains: the writer, and the sampler's state as of its last draw.

        ``expect`` None takes the run as it is. What killed writers left half-written is removed by rank 0, which others
        should wait for.

        Raises: StoreError if the store is none, damaged, or of a run that differs from ``expect`` or has another number
            of ranks.
        """
        _check_options(queue_blocks, durability)
        location = Location.of(path)
        root = location.open(writable=True, rank=rank, durable=durability == "power")
        layout, potentia = read_layout(root, location)
        if layout.num_ranks != num_ranks:
            raise StoreError(
                f"{location}: the store is shared out among {layout.num_ranks} ranks, this run has {num_ranks}; "
                "expected the same number"
            )
        if expect is not None:
            ours = own_attributes(layout)
            stored = {key: value for key, value in potentia.items() if key in expect or key not in ours}
            refuse_other(location, "run", stored, json_ready("EnsembleWriter: expect", expect))
        counted = committed_draws(root, layout, location)  # may lag one block behind the state
        committed, state = read_state(root, location, rank)
        if committed > layout.num_draws:
            raise StoreError(f"{location}: {committed} draws are marked committed, the store holds {layout.num_draws}")
        check_whole(root, layout, location, committed if num_ranks == 1 else counted)
        if location.folder is not None and rank == 0:
            remove_orphans(location.folder)
        sink = Sink(location, root, layout, rank)
        sink.recount(committed)
        return cls(sink, layout, rank, queue_blocks=queue_blocks, pinned=pinned), state

    @property
    def block(self) -> int:
        """Draws in a chunk."""
        return self._layout.block

    @property
    def num_committed(self) -> int:
        """Draws of each chain that are safely written by now; ``flush`` waits for those in flight."""
        return self._sink.num_committed

    @property
    def num_appended(self) -> int:
        """Draws of each chain that were appended, written or not."""
        return self._position

    @property
    def _room(self) -> int:
        """Draws that may still be staged: to the end of the chunk."""
        end = self._queued - self._queued % self.block + self.block
        return min(end, self._layout.num_draws) - self._position

    @property
    def ready_to_commit(self) -> bool:
        """Whether a block is full, the last draw was reached, or draws have waited for half a minute."""
        if self._position == self._queued:
            return False
        late = self._threaded and time.monotonic() - self._handed > _PATIENCE
        return self._room == 0 or late

    def append(self, images: Tensor, stats: Mapping[str, Any]) -> None:
        """Take one draw of every chain of this rank.

        Images on the CPU are taken by reference, and copied by the writer thread later: they must not be changed in
        place any more, neither in torch, which is found out, nor behind its back, as through an array of numpy that
        shares their memory. A tensor that is part of a larger one is copied at once, and so is one of inference mode.

        Shapes: images (chain, C, H, W); each of ``stats`` a number or (chain,).
        Raises: ValueError for another shape or field, an unknown statistic, or more draws than were asked for;
            RuntimeError for images of an earlier draw that were changed; StoreError for an earlier block that could not
            be written.
        """
        self.check()
        layout = self._layout
        if self._position == layout.num_draws:
            raise ValueError(f"EnsembleWriter: append after the last draw, expected {layout.num_draws} draws")
        if self._room == 0:
            raise ValueError("EnsembleWriter: append after a full block, expected commit first")
        want = (len(self._chains), *layout.event_shape)
        if tuple(images.shape) != want or images.is_complex() != layout.is_complex:
            raise ValueError(
                f"EnsembleWriter: images have shape {tuple(images.shape)} and dtype {images.dtype}, expected {want}, "
                f"{'complex' if layout.is_complex else 'real'}"
            )
        draw = self._taker.take(images, self._stats(stats))
        if self._position == self._queued:
            self._handed = time.monotonic()
        self._hand_on(draw)
        self.check()
        self._last = draw
        self._position += 1

    def _stats(self, stats: Mapping[str, Any]) -> dict[str, "np.ndarray[Any, Any]"]:
        """Statistics of one draw; those that are not given hold what says so, never a draw of an earlier block."""
        known = self._layout.stats
        for name in stats:
            if name not in known:
                raise ValueError(f"EnsembleWriter: {name!r} is no sample statistic, expected one of {', '.join(known)}")
        told = {}
        for name, dtype in known.items():
            value = stats.get(name, stat_fill(dtype))
            value = np.array(value.detach().cpu().numpy() if isinstance(value, Tensor) else value)
            if value.shape not in ((), (len(self._chains),)):
                raise ValueError(
                    f"EnsembleWriter: {name} has shape {value.shape}, expected a number or ({len(self._chains)},)"
                )
            told[name] = value
        return told

    def commit(self, state: bytes = b"") -> None:
        """Have the draws so far written, with the sampler's state after them.

        Raises: ValueError for a state larger than ``state_bytes``; RuntimeError, StoreError as ``check``.
        """
        self.check()
        if self._position == self._queued:
            return
        room = self._sink.state_bytes
        if len(state) > room:
            raise ValueError(f"EnsembleWriter: state has {len(state)} bytes, expected at most {room}")
        self._queued, self._handed = self._position, time.monotonic()
        self._hand_on(state)
        if not self._threaded:
            self.check()

    def _hand_on(self, order: Draw | bytes) -> None:
        """Give an order to the thread, once there is room for a draw, or carry it out where there is none."""
        if not self._threaded:
            self._carry_out(order)
            return
        if isinstance(order, Draw):
            # Waits with a limit, so that Ctrl-C is heard on every platform.
            while not self._room_to_wait.acquire(timeout=0.5):
                pass
        self._work.put(order)

    def _run(self) -> None:
        """The writer thread: every order in turn, until None."""
        try:
            self._sink.prepare()
        except BaseException as err:  # handed on to whoever calls next
            self._error = err
        while (order := self._work.get()) is not None:
            self._carry_out(order)
            if isinstance(order, Draw):
                self._room_to_wait.release()
            self._work.task_done()
        self._work.task_done()

    def _carry_out(self, order: Draw | bytes) -> None:
        try:
            if self._error is not None:
                return
            if isinstance(order, Draw):
                self._sink.add(order)
            else:
                self._sink.write(order)
        except BaseException as err:  # handed on to whoever calls next
            self._error = err

    def check(self) -> None:
        """Raise what went wrong in the writer thread.

        Raises: StoreError with the cause, where the disk did not take a block; RuntimeError if the images of the last
            draw were changed.
        """
        if self._last is not None:
            self._last.check()
        err = self._error
        if err is None:
            return
        if isinstance(err, OSError) and not isinstance(err, StoreError):
            raise StoreError(
                f"{self._sink.location}: a block of draws cannot be written ({err}); {self.num_committed} draws are "
                "kept"
            ) from err
        raise err

    def flush(self) -> None:
        """Wait until everything committed is written.

        Raises: StoreError for a block that could not be.
        """
        self._work.join()
        self.check()

    def stop(self) -> None:
        """Let the thread finish what it was handed, and end it; draws that were not committed are let go of."""
        if self._thread is not None:
            self._work.put(None)
            self._thread.join()
            self._thread = None

    def finish(self, **attrs: object) -> None:
        """Write what is staged and the running sums; rank 0 updates root attributes such as ``sampling_time``.

        Raises: StoreError.
        """
        self.commit()
        self.stop()
        self.check()
        try:
            self._sink.finish(json_ready("EnsembleWriter: attributes", attrs))
        except OSError as err:
            raise StoreError(f"{self._sink.location}: the running sums cannot be written ({err})") from err

    def close(self, **attrs: object) -> Ensemble:
        """Finish, and open the ensemble."""
        self.finish(**attrs)
        return Ensemble(self._sink.location)


def _check_options(queue_blocks: int, durability: str) -> None:
    if isinstance(queue_blocks, bool) or not isinstance(queue_blocks, int) or queue_blocks < 1:
        raise ValueError(f"EnsembleWriter: queue_blocks must be an integer of at least 1, got {queue_blocks!r}")
    check_durability("EnsembleWriter", durability)
