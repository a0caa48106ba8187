"""The streaming writer: blocks of draws go to the store as whole chunks, and are committed last."""

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from torch import Tensor

from potentia.io._ensemble import Ensemble
from potentia.io._errors import StoreError
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

    Draws gather in a staging block; a full block is written as one chunk a chain, then the running sums, then the
    sampler's state, and the count of committed draws last: whatever is counted is whole.
    """

    def __init__(self, location: Location, root: "zarr.Group", layout: Layout, moments: Moments) -> None:
        self._location = location
        self._root = root
        self._layout = layout
        self._moments = moments
        self._staged = 0
        chains, k = layout.num_chains, layout.block
        self._images = np.empty((chains, k, *layout.stored_shape), layout.dtype)
        self._stats = {name: np.zeros((chains, k), dtype) for name, dtype in STATS.items()}
        self._image = find_array(root, "posterior/image", location)

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
        committed, state = _read_state(root, location)
        if committed > layout.num_draws:
            raise StoreError(f"{location}: {committed} draws are marked committed, the store holds {layout.num_draws}")
        if location.folder is not None:
            remove_orphans(location.folder)
        moments = Moments.empty(layout.num_chains, layout.stored_shape)
        writer = cls(location, root, layout, moments)
        # A kill may have come between the sums and the state, so that the sums are taken anew.
        for start in range(0, committed, layout.block):
            moments.update(np.asarray(writer._image[:, start : min(start + layout.block, committed)]))
        return writer, state

    @property
    def block(self) -> int:
        """Draws in a chunk."""
        return self._layout.block

    @property
    def num_committed(self) -> int:
        """Draws of each chain that are safely written."""
        return self._moments.count

    @property
    def ready_to_commit(self) -> bool:
        """Whether a block is full, or the last draw was reached."""
        reached = self.num_committed + self._staged
        return self._staged == self.block or (self._staged > 0 and reached == self._layout.num_draws)

    def append(self, images: Tensor, stats: Mapping[str, Any]) -> None:
        """Stage one draw of every chain.

        Shapes: images (chain, C, H, W); each of ``stats`` a number or (chain,).
        Raises: ValueError for another shape or field, an unknown statistic, or more draws than were asked for.
        """
        layout = self._layout
        if self._staged == self.block or self.num_committed + self._staged == layout.num_draws:
            raise ValueError("EnsembleWriter: append after a full block, expected commit first")
        want = (layout.num_chains, *layout.event_shape)
        if tuple(images.shape) != want or images.is_complex() != layout.is_complex:
            raise ValueError(
                f"EnsembleWriter: images have shape {tuple(images.shape)} and dtype {images.dtype}, expected {want}, "
                f"{'complex' if layout.is_complex else 'real'}"
            )
        values = images.detach().cpu()
        slot = self._images[:, self._staged]
        if layout.is_complex:
            parts = slot.reshape(layout.num_chains, layout.event_shape[0], 2, *layout.event_shape[1:])
            parts[:, :, 0], parts[:, :, 1] = values.real.numpy(), values.imag.numpy()
        else:
            slot[...] = values.numpy()
        for name, value in stats.items():
            if name not in self._stats:
                raise ValueError(f"EnsembleWriter: {name!r} is no sample statistic, expected one of {', '.join(STATS)}")
            self._stats[name][:, self._staged] = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        self._staged += 1

    def commit(self, state: bytes = b"") -> None:
        """Write the staged block, one chunk a chain, and mark it committed last.

        Raises: ValueError for a state larger than ``state_bytes``; StoreError if the disk does not take it.
        """
        if not self._staged:
            return
        size = self._root["writer/state"].shape[0]
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
        for chain in range(self._layout.num_chains):
            self._image[chain, start:stop] = self._images[chain, :n]
        for name, values in self._stats.items():
            self._root[f"sample_stats/{name}"][:, start:stop] = values[:, :n]
        grown = self._moments.copy()
        grown.update(self._images[:, :n])
        for chain in range(self._layout.num_chains):
            self._root["posterior_summary/mean"][chain] = grown.mean[chain]
            self._root["posterior_summary/m2"][chain] = grown.m2[chain]
        self._root["posterior_summary/count"][:] = stop
        self._write_state(stop, state)
        self._root["writer/n_committed"][:] = stop
        self._moments, self._staged = grown, 0

    def _write_state(self, committed: int, state: bytes) -> None:
        array = self._root["writer/state"]
        packed = _HEADER.pack(committed, len(state), zlib.crc32(state)) + state
        array[:] = np.frombuffer(packed.ljust(array.shape[0], b"\0"), np.uint8)

    def close(self, **attrs: object) -> Ensemble:
        """Write what is staged, update root attributes such as ``sampling_time``, and open the ensemble."""
        self.commit()
        self._root.attrs.update(json_ready("EnsembleWriter: attributes", attrs))
        return Ensemble(self._location)


def _read_state(root: "zarr.Group", location: Location) -> tuple[int, bytes]:
    raw = np.asarray(find_array(root, "writer/state", location)[:], np.uint8).tobytes()
    if len(raw) < STATE_HEADER:
        raise StoreError(
            f"{location}: the sampler state is cut short: {len(raw)} bytes, expected at least {STATE_HEADER}"
        )
    committed, length, checksum = _HEADER.unpack_from(raw)
    state = raw[STATE_HEADER : STATE_HEADER + length]
    if len(state) != length or zlib.crc32(state) != checksum:
        raise StoreError(f"{location}: the sampler state is damaged, so that the run cannot be resumed")
    return committed, state
