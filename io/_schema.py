"""The schema of an ensemble store (version 2): which arrays it has, how they are chunked and named."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from potentia.io._errors import StoreError

if TYPE_CHECKING:
    import zarr

STORE_VERSION = 2
IMAGE_DIMS = ("chain", "draw", "channel", "y", "x")
STATS: Mapping[str, str] = {
    "lp": "<f8",
    "acceptance_rate": "<f8",
    "step_size": "<f8",
    "diverging": "|b1",
    "sigma": "<f8",
    "n_grad": "<i8",
}
BY_PIXEL = "posterior_by_pixel"  # the group of the draws' second copy
STATE_HEADER = 16  # draw count, length and checksum of the sampler state
_CHUNK_BYTES = 16 * 2**20  # 8 to 16 MiB write at the speed of a plain file
_DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class Layout:
    """Sizes of an ensemble: everything that the shapes and chunks of the store follow from.

    ``event_shape`` is the image as the sampler sees it, (C, H, W); complex channels are stored as two real ones.
    ``num_ranks`` processes write the store side by side, each its own chains; no chunk spans those of two.
    ``parameters`` are numbers sampled beside the image, by name.
    """

    num_chains: int
    num_draws: int
    event_shape: tuple[int, int, int]
    is_complex: bool
    dtype: np.dtype[Any]
    block: int  # draws in a chunk
    num_ranks: int = 1
    parameters: tuple[str, ...] = ()

    @classmethod
    def checked(
        cls,
        num_chains: int,
        num_draws: int,
        event_shape: Sequence[int],
        is_complex: bool,
        dtype: Any,
        block: int | None = None,
        num_ranks: int = 1,
        parameters: Sequence[str] = (),
    ) -> "Layout":
        """Check the numbers of a caller; ``block`` None makes chunks of about 16 MiB.

        Raises: ValueError for sizes below one, for another number of dimensions, another dtype, or more ranks than
            chains.
        """
        shape = tuple(int(n) for n in event_shape)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"EnsembleWriter: event_shape must be (C, H, W), each at least 1, got {shape}")
        for name, value in (("num_chains", num_chains), ("num_draws", num_draws), ("num_ranks", num_ranks)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"EnsembleWriter: {name} must be an integer of at least 1, got {value!r}")
        if len(rank_chains(num_chains, num_ranks, num_ranks - 1)) == 0:
            raise ValueError(
                f"EnsembleWriter: {num_chains} chains leave some of {num_ranks} ranks without any, expected fewer ranks"
            )
        name = str(dtype).removeprefix("torch.")
        if isinstance(dtype, type):
            name = np.dtype(dtype).name  # np.float32
        if name not in _DTYPES:
            raise ValueError(f"EnsembleWriter: dtype must be float32 or float64, got {name}")
        stored = np.dtype(name).newbyteorder("<")
        if block is None:
            block = _block(num_draws, math.prod(shape) * stored.itemsize * (2 if is_complex else 1))
        _check_parameters(parameters)
        event = (shape[0], shape[1], shape[2])
        return cls(num_chains, num_draws, event, is_complex, stored, block, num_ranks, tuple(parameters))

    @property
    def stats(self) -> dict[str, str]:
        """The dtype of each number that a draw has beside its image, by name."""
        return {**STATS, **dict.fromkeys(self.parameters, "<f8")}

    def path_of(self, stat: str) -> str:
        """Where a number of each draw is stored: parameters beside the image, as ArviZ expects them."""
        return f"posterior/{stat}" if stat in self.parameters else f"sample_stats/{stat}"

    def chains_of(self, rank: int) -> range:
        """The chains that a rank writes."""
        return rank_chains(self.num_chains, self.num_ranks, rank)

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        """Shape of one draw in the store, with real and imaginary parts as channels."""
        channels, height, width = self.event_shape
        return (2 * channels if self.is_complex else channels, height, width)

    @property
    def channel_names(self) -> list[str]:
        """Names of the stored channels: ``0, 1, ...`` or ``re, im`` or ``re0, im0, re1, ...``."""
        channels = self.event_shape[0]
        if not self.is_complex:
            return [str(c) for c in range(channels)]
        return ["re", "im"] if channels == 1 else [part + str(c) for c in range(channels) for part in ("re", "im")]


def _check_parameters(names: Sequence[str]) -> None:
    for name in names:
        if not isinstance(name, str) or not name.isidentifier() or name in ("image", *IMAGE_DIMS, *STATS):
            raise ValueError(f"EnsembleWriter: {name!r} cannot name a parameter, expected an identifier of its own")


def rank_chains(num_chains: int, num_ranks: int, rank: int) -> range:
    """The chains of one rank: the same number each, but for the last ranks, which may have fewer."""
    share = math.ceil(num_chains / num_ranks)
    return range(min(rank * share, num_chains), min((rank + 1) * share, num_chains))


def _block(num_draws: int, draw_bytes: int) -> int:
    """Draws in a chunk: as many as fit 16 MiB, evened out so that the last chunk is not mostly padding."""
    most = max(1, min(num_draws, _CHUNK_BYTES // draw_bytes))
    return math.ceil(num_draws / math.ceil(num_draws / most))


def json_ready(where: str, value: Mapping[str, object]) -> dict[str, Any]:
    """Return what JSON makes of a mapping, so that it compares equal to what is read back.

    Raises: ValueError if it does not fit JSON (NaN and infinity do not).
    """
    try:
        ready: dict[str, Any] = json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError) as err:
        raise ValueError(f"{where} must be storable as JSON: {err}") from err
    return ready


def refuse_other(where: object, what: str, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to go on with a run, or whatever it is, that was begun with other settings, either way round.

    Raises: StoreError naming the first that differs.
    """
    for key in dict.fromkeys([*wanted, *stored]):
        if stored.get(key) != wanted.get(key):
            raise StoreError(
                f"{where}: {key} of the stored {what} is {stored.get(key)!r}, this run has {wanted.get(key)!r}"
            )


def own_attributes(layout: Layout) -> dict[str, Any]:
    """What the store itself keeps in the ``potentia`` entry, beside what the caller says of the run."""
    return {
        "store_version": STORE_VERSION,
        "complex": layout.is_complex,
        "event_shape": list(layout.event_shape),
        "num_ranks": layout.num_ranks,
        "parameters": list(layout.parameters),
    }


def root_attributes(layout: Layout, potentia: dict[str, Any]) -> dict[str, Any]:
    """Root attributes of a new store: those that ArviZ writes and the caller's ``potentia`` entry."""
    version = _version()
    return {
        "created_at": datetime.now(UTC).isoformat(),
        "creation_library": "potentia",
        "creation_library_version": version,
        "inference_library": "potentia",
        "inference_library_version": version,
        "sampling_time": 0.0,
        "tuning_steps": 0,
        "potentia": potentia | own_attributes(layout),
    }


def _version() -> str:
    try:
        return metadata.version("potentia")
    except metadata.PackageNotFoundError:
        return "0+unknown"


def add_array(
    group: "zarr.Group",
    name: str,
    shape: Sequence[int],
    chunks: Sequence[int],
    dtype: Any,
    dims: Sequence[str],
    fill: Any,
) -> "zarr.Array[Any]":
    """Create one array in the store's layout: plain bytes, no shards, empty chunks written."""
    array: zarr.Array[Any] = group.create_array(
        name,
        shape=tuple(shape),
        chunks=tuple(max(1, n) for n in chunks),
        dtype=dtype,
        dimension_names=list(dims),
        fill_value=fill,
        filters=None,
        compressors=None,
        config={"write_empty_chunks": True},
        chunk_key_encoding={"name": "default", "separator": "."},
    )
    return array


def stat_fill(dtype: str) -> float | bool:
    """What a statistic holds that was not given."""
    return math.nan if dtype == "<f8" else False if dtype == "|b1" else 0


def build(root: "zarr.Group", layout: Layout, state_bytes: int) -> None:
    """Create every group, array and coordinate of an empty ensemble; no draw is written."""
    chains, draws, k, event = layout.num_chains, layout.num_draws, layout.block, layout.stored_shape
    share = len(layout.chains_of(0))
    posterior = root.create_group("posterior")
    # NaN, so that a draw that was never written cannot pass for an image
    add_array(posterior, "image", (chains, draws, *event), (1, k, *event), layout.dtype, IMAGE_DIMS, math.nan)
    stats = root.create_group("sample_stats")
    for name, dtype in layout.stats.items():
        group = posterior if name in layout.parameters else stats
        # a chunk for each chain would cost more than the images do
        add_array(group, name, (chains, draws), (share, k), dtype, ("chain", "draw"), stat_fill(dtype))
    summary = root.create_group("posterior_summary")
    for name in ("mean", "m2"):
        add_array(summary, name, (chains, *event), (1, *event), "<f8", ("chain", "channel", "y", "x"), math.nan)
    add_array(summary, "count", (chains,), (share,), "<i8", ("chain",), 0)[:] = 0
    writer = root.create_group("writer")
    add_array(writer, "n_committed", (chains,), (share,), "<i8", ("chain",), 0)[:] = 0
    size = STATE_HEADER + state_bytes
    add_array(writer, "state", (layout.num_ranks, size), (1, size), "|u1", ("rank", "byte"), 0)[:] = 0
    for group, names in ((posterior, "chain draw channel"), (stats, "chain draw"), (summary, "chain channel")):
        _add_coordinates(group, layout, names.split())


def _add_coordinates(group: "zarr.Group", layout: Layout, names: Sequence[str]) -> None:
    for name in names:
        if name == "channel":
            labels = layout.channel_names
            array = add_array(group, name, (len(labels),), (len(labels),), str, (name,), "")
            array[:] = np.array(labels, dtype=object)
        else:
            size = layout.num_chains if name == "chain" else layout.num_draws
            add_array(group, name, (size,), (size,), "<i8", (name,), 0)[:] = np.arange(size)


def add_data(group: "zarr.Group", data: Mapping[str, Any]) -> None:
    """Store named arrays; complex ones as real numbers with a leading dimension ``part = [re, im]``.

    Raises: ValueError for a name or a dtype that cannot be stored.
    """
    for name, value in data.items():
        if not name.isidentifier() or name == "part":
            raise ValueError(f"EnsembleWriter: {name!r} cannot name a stored array, expected an identifier")
        array = np.asarray(value.detach().cpu().numpy() if isinstance(value, Tensor) else value)
        if array.dtype.kind not in "biufc":
            raise ValueError(f"EnsembleWriter: {name} has dtype {array.dtype}, expected numbers")
        dims = [f"{name}_dim_{i}" for i in range(array.ndim)]  # ArviZ's names
        if array.dtype.kind == "c":
            array, dims = np.stack([np.real(array), np.imag(array)]), ["part", *dims]
            if "part" not in group:
                add_array(group, "part", (2,), (2,), str, ("part",), "")[:] = np.array(["re", "im"], dtype=object)
        fill = array.dtype.type(0).item()
        add_array(group, name, array.shape, array.shape, array.dtype, dims, fill)[...] = array


def find_array(root: "zarr.Group", path: str, where: object) -> "zarr.Array[Any]":
    """Return an array of the store.

    Raises: StoreError if it is missing or its metadata are damaged.
    """
    import zarr

    try:
        found = root[path]
    except Exception as err:  # zarr raises a dozen unrelated types for damaged metadata
        raise StoreError(f"{where}: the store is cut short: {path} is missing or damaged ({err})") from err
    if not isinstance(found, zarr.Array):
        raise StoreError(f"{where}: {path} is a group, expected an array")
    return found


def find_group(root: "zarr.Group", path: str, where: object) -> "zarr.Group":
    """Return a group of the store.

    Raises: StoreError if it is missing or its metadata are damaged.
    """
    import zarr

    try:
        found = root[path]
    except Exception as err:  # zarr raises a dozen unrelated types for damaged metadata
        raise StoreError(f"{where}: the store is cut short: {path} is missing or damaged ({err})") from err
    if not isinstance(found, zarr.Group):
        raise StoreError(f"{where}: {path} is an array, expected a group")
    return found


def read_layout(root: "zarr.Group", where: object) -> tuple[Layout, dict[str, Any]]:
    """Return the sizes of a stored ensemble and its ``potentia`` attributes.

    Raises: StoreError if the root is no ensemble of this version.
    """
    potentia: Any = root.attrs.asdict().get("potentia")
    if not isinstance(potentia, dict) or "store_version" not in potentia:
        raise StoreError(f"{where}: this is no ensemble store: its attributes have no potentia entry")
    if potentia["store_version"] != STORE_VERSION:
        raise StoreError(f"{where}: the store has version {potentia['store_version']}, expected {STORE_VERSION}")
    image = find_array(root, "posterior/image", where)
    try:
        layout = Layout.checked(
            image.shape[0],
            image.shape[1],
            potentia["event_shape"],
            bool(potentia["complex"]),
            image.dtype,
            image.chunks[1],
            potentia["num_ranks"],
            potentia.get("parameters", []),  # stores of before there were any do not say
        )
    except (KeyError, IndexError, TypeError, ValueError) as err:
        raise StoreError(f"{where}: the store's metadata are damaged: {err}") from err
    if image.shape[2:] != layout.stored_shape or image.chunks != (1, layout.block, *layout.stored_shape):
        raise StoreError(
            f"{where}: images have shape {image.shape[2:]} in chunks of {image.chunks}, expected "
            f"{layout.stored_shape}, each chunk whole images of one chain"
        )
    return layout, potentia
