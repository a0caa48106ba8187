"""The streaming writer: blocks of draws go to the store as whole chunks, and are committed last."""

import struct
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from torch import Tensor

from potentia.io._ensemble import Ensemble
from potentia.io._errors import StoreError
from potentia.io._integrity import check_chunks, check_whole, committed_draws
from potentia.io._location import Location, StorePath, create_at, refuse_taken, remove_orphans
from potentia.io._moments import Moments
from potentia.io._schema import (
    STATE_HEADER,
    STATS,
    Layout,
    add_data,
    build,
    find_array,
    json_ready,
    read_layout,
    root_attributes,
    stat_fill,
)

if TYPE_CHECKING:
    import zarr

_HEADER = struct.Struct("<QII")  # draws committed, length and CRC-32 of the sampler's state


def check_target(path: StorePath, *, overwrite: bool = False) -> None:
    """Refuse early, before hours of sampling, a place where a store cannot be written.

    Raises: StoreExistsError if something is there that may not be replaced; StoreError if the place is not writable.
    """
    location = Location.of(path)
    if location.folder is not None:
        refuse_taken(location.folder, overwrite=overwrite)


class EnsembleWriter:
    """Writes draws of all chains to a zarr store, in memory or on disk.

    Draws gather in a staging block; a full block is written as one chunk a chain, then the sampler's state, and the
    count of committed draws last: whatever is counted is whole. The running sums, a fifth of the draws' size if they
    were written with every block, follow at the last draw and on ``close``; without them readers sum the draws.
    """

    def __init__(self, location: Location, root: "zarr.Group", layout: Layout, moments: Moments) -> None:
        self._location = location
        self._root = root
        self._layout = layout
        self._moments = moments
        self._staged = 0
        self._sums_written = 0  # draws that the sums in the store are of
        chains, k = layout.num_chains, layout.block
        self._images = np.empty((chains, k, *layout.stored_shape), layout.dtype)
        self._stats = {name: np.zeros((chains, k), dtype) for name, dtype in STATS.items()}
        self._arrays: dict[str, zarr.Array[Any]] = {}

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
    ) -> Self:
        """Make an empty store, whole or not at all.

        ``path`` None keeps it in memory. ``attrs`` go to the root attribute ``potentia``. ``state_bytes`` is the room
        for the sampler's state.

        Shapes: event_shape (C, H, W), complex channels counted once.
        Raises: ValueError for bad sizes; StoreExistsError, StoreError as ``check_target``.
        """
        layout = Layout.checked(num_chains, num_draws, event_shape, is_complex, dtype)
        potentia = json_ready("EnsembleWriter: attrs", attrs or {})
        location = Location.of(path)

        def fill(root: "zarr.Group") -> None:
            root.attrs.update(root_attributes(layout, potentia))
            build(root, layout, state_bytes)
            add_data(root.create_group("observed_data"), observed or {})
            add_data(root.create_group("constant_data"), constant or {})

        create_at(location, fill, overwrite=overwrite)
        return cls(location, location.open(writable=True), layout, Moments.empty(num_chains, layout.stored_shape))

    @classmethod
    def resume(cls, path: StorePath, *, expect: Mapping[str, object]) -> tuple[Self, bytes]:
        """Open a store to go on writing: the writer, and the sampler's state as of the last committed draw.

        Raises: StoreError if the store is none, damaged, or of a run that differs from ``expect``.
        """
        location = Location.of(path)
        root = location.open(writable=True)
        layout, potentia = read_layout(root, location)
        for key, want in json_ready("EnsembleWriter: expect", expect).items():
            if potentia.get(key) != want:
                raise StoreError(f"{location}: {key} of the stored run is {potentia.get(key)!r}, this run has {want!r}")
        committed_draws(root, layout, location)  # may lag one block behind the state
        committed, state = _read_state(root, location)
        if committed > layout.num_draws:
            raise StoreError(f"{location}: {committed} draws are marked committed, the store holds {layout.num_draws}")
        check_whole(root, layout, location, committed)
        if location.folder is not None:
            remove_orphans(location.folder)
        moments = Moments.empty(layout.num_chains, layout.stored_shape)
        writer = cls(location, root, layout, moments)
        # A kill may have come between the sums and the state, so that the sums are taken anew.
        for start in range(0, committed, layout.block):
            stop = min(start + layout.block, committed)
            moments.update(np.asarray(writer._array("posterior/image")[:, start:stop]))
        # A kill may have come between the state and the count too.
        writer._array("writer/n_committed")[:] = committed
        return writer, state

    def _array(self, path: str) -> "zarr.Array[Any]":
        if path not in self._arrays:
            found = find_array(self._root, path, self._location)
            # The setting is not kept in the store: without it a block of zeros would leave no chunk behind.
            self._arrays[path] = found.with_config({"write_empty_chunks": True})
        return self._arrays[path]

    @property
    def block(self) -> int:
        """Draws in a chunk."""
        return self._layout.block

    @property
    def num_committed(self) -> int:
        """Draws of each chain that are safely written."""
        return self._moments.count

    @property
    def _room(self) -> int:
        """Draws that may be staged: to the end of the chunk, so that a commit writes one chunk a chain."""
        committed = self.num_committed
        return min(self.block - committed % self.block, self._layout.num_draws - committed)

    @property
    def ready_to_commit(self) -> bool:
        """Whether a block is full, or the last draw was reached."""
        return self._staged > 0 and self._staged == self._room

    def append(self, images: Tensor, stats: Mapping[str, Any]) -> None:
        """Stage one draw of every chain.

        Shapes: images (chain, C, H, W); each of ``stats`` a number or (chain,).
        Raises: ValueError for another shape or field, an unknown statistic, or more draws than were asked for.
        """
        layout = self._layout
        if self.num_committed == layout.num_draws:
            raise ValueError(f"EnsembleWriter: append after the last draw, expected {layout.num_draws} draws")
        if self._staged == self._room:
            raise ValueError("EnsembleWriter: append after a full block, expected commit first")
        want = (layout.num_chains, *layout.event_shape)
        if tuple(images.shape) != want or images.is_complex() != layout.is_complex:
            raise ValueError(
                f"EnsembleWriter: images have shape {tuple(images.shape)} and dtype {images.dtype}, expected {want}, "
                f"{'complex' if layout.is_complex else 'real'}"
            )
        self._stage_stats(stats)
        values = images.detach().cpu()
        slot = self._images[:, self._staged]
        if layout.is_complex:
            parts = slot.reshape(layout.num_chains, layout.event_shape[0], 2, *layout.event_shape[1:])
            parts[:, :, 0], parts[:, :, 1] = values.real.numpy(), values.imag.numpy()
        else:
            slot[...] = values.numpy()
        self._staged += 1

    def _stage_stats(self, stats: Mapping[str, Any]) -> None:
        """Stage statistics; those that are not given hold what says so, never a draw of an earlier block."""
        for name in stats:
            if name not in STATS:
                raise ValueError(f"EnsembleWriter: {name!r} is no sample statistic, expected one of {', '.join(STATS)}")
        for name, dtype in STATS.items():
            value = stats.get(name, stat_fill(dtype))
            value = np.asarray(value.detach().cpu().numpy() if isinstance(value, Tensor) else value)
            if value.shape not in ((), (self._layout.num_chains,)):
                raise ValueError(
                    f"EnsembleWriter: {name} has shape {value.shape}, expected a number or ({self._layout.num_chains},)"
                )
            self._stats[name][:, self._staged] = value

    def commit(self, state: bytes = b"") -> None:
        """Write the staged block, one chunk a chain, and mark it committed last.

        Raises: ValueError for a state larger than ``state_bytes``; StoreError if the disk does not take it.
        """
        if not self._staged:
            return
        size = self._array("writer/state").shape[0]
        if STATE_HEADER + len(state) > size:
            raise ValueError(f"EnsembleWriter: state has {len(state)} bytes, expected at most {size - STATE_HEADER}")
        try:
            self._write_block(state)
        except OSError as err:
            raise StoreError(
                f"{self._location}: a block of draws cannot be written ({err}); {self.num_committed} draws are kept"
            ) from err

    def _write_block(self, state: bytes) -> None:
        n, start = self._staged, self.num_committed
        stop = start + n
        with ThreadPoolExecutor(1) as pool:  # numpy and the disk both let go of the interpreter's lock
            sums = pool.submit(self._moments.updated, self._images[:, :n])
            for chain in range(self._layout.num_chains):
                self._array("posterior/image")[chain, start:stop] = self._images[chain, :n]
            for name, values in self._stats.items():
                self._array(f"sample_stats/{name}")[:, start:stop] = values[:, :n]
        self._write_state(stop, state)
        self._array("writer/n_committed")[:] = stop
        self._moments, self._staged = sums.result(), 0
        if stop == self._layout.num_draws:
            self._write_sums()

    def _write_sums(self) -> None:
        """Write the running sums; their count says of which draws they are, none while they are being written."""
        self._array("posterior_summary/count")[:] = 0
        for chain in range(self._layout.num_chains):
            self._array("posterior_summary/mean")[chain] = self._moments.mean[chain]
            self._array("posterior_summary/m2")[chain] = self._moments.m2[chain]
        self._array("posterior_summary/count")[:] = self._moments.count
        self._sums_written = self._moments.count

    def _write_state(self, committed: int, state: bytes) -> None:
        array = self._array("writer/state")
        packed = _HEADER.pack(committed, len(state), zlib.crc32(state)) + state
        array[:] = np.frombuffer(packed.ljust(array.shape[0], b"\0"), np.uint8)

    def close(self, **attrs: object) -> Ensemble:
        """Write what is staged, update root attributes such as ``sampling_time``, and open the ensemble."""
        self.commit()
        try:
            if self._sums_written != self.num_committed:
                self._write_sums()
        except OSError as err:
            raise StoreError(f"{self._location}: the running sums cannot be written ({err})") from err
        self._root.attrs.update(json_ready("EnsembleWriter: attributes", attrs))
        return Ensemble(self._location)


def _read_state(root: "zarr.Group", location: Location) -> tuple[int, bytes]:
    array = find_array(root, "writer/state", location)
    check_chunks(location, array)
    raw = np.asarray(array[:], np.uint8).tobytes()
    if len(raw) < STATE_HEADER:
        raise StoreError(
            f"{location}: the sampler state is cut short: {len(raw)} bytes, expected at least {STATE_HEADER}"
        )
    committed, length, checksum = _HEADER.unpack_from(raw)
    state = raw[STATE_HEADER : STATE_HEADER + length]
    if len(state) != length or zlib.crc32(state) != checksum:
        raise StoreError(f"{location}: the sampler state is damaged, so that the run cannot be resumed")
    return committed, state
