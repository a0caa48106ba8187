"""Collections: the ensembles of many reconstructions under one folder, and an index that says how each stands."""

import contextlib
import json
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, Self

from potentia._files import sync_folder, written_whole
from potentia._validate import shape_text
from potentia.io._ensemble import Ensemble, open_ensemble
from potentia.io._errors import StoreError, StoreExistsError
from potentia.io._integrity import committed_draws
from potentia.io._location import Location, StorePath
from potentia.io._schema import json_ready, read_layout, refuse_other

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

INDEX = "collection.json"
COLLECTION_VERSION = 1
SUFFIX = ".zarr"
_LOCKS = ".locks"
_LONGEST = 200  # bytes of a name: file systems take 255, and temporary names are longer
_BAD = re.compile(r"[\x00-\x1f/\\]")

State = Literal["complete", "partial", "failed", "pending"]
STATES: tuple[State, ...] = ("complete", "partial", "failed", "pending")


@dataclass(frozen=True)
class Item:
    """How one reconstruction of a collection stands.

    - ``state``: ``complete``; ``partial``, begun and to be gone on with; ``failed``; ``pending``, not begun.
    - ``message``: why it failed, in one sentence; ``traceback``: where, if the error was not one of our own.
    - ``num_draws``: committed draws of each chain; a failed item may have some, which can be opened.
    - ``concerns``: what the diagnostics of a complete item warn of.
    """

    name: str
    state: State
    message: str = ""
    traceback: str = ""
    num_draws: int = 0
    concerns: tuple[str, ...] = ()


class Collection:
    """Ensembles of many reconstructions: one store an item, ``ROOT/NAME.zarr``, and an index of all items.

    Made by ``sample_dataset`` and ``open_collection``; it shows how things stood when it was made. Iteration gives the
    items' names, in the order of the data; ``collection[name]`` opens an ensemble.

    Shapes: ``mean`` and ``std`` (item, channel, y, x); ``image`` (item, chain, draw, channel, y, x).
    """

    def __init__(self, root: Location) -> None:
        self._root = root
        self._index = _read_index(root)
        self._items: dict[str, Item] | None = None

    @property
    def path(self) -> str:
        """Where the collection lies."""
        return str(self._root)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all items, whatever their state."""
        return tuple(self._index["items"])

    @property
    def attrs(self) -> dict[str, Any]:
        """What the index keeps of the run: numbers of chains and draws, the seed, options."""
        return dict(self._index["record"])

    @property
    def states(self) -> dict[str, Item]:
        """How each item stands.

        What the index calls complete is taken as such; the others' stores are looked at.
        """
        if self._items is None:
            self._items = {name: self._state(name) for name in self.names}
        return dict(self._items)

    @property
    def complete(self) -> tuple[str, ...]:
        """Names of the items that have all their draws."""
        return self._in("complete")

    @property
    def partial(self) -> tuple[str, ...]:
        """Names of the items that were begun and not finished."""
        return self._in("partial")

    @property
    def failed(self) -> dict[str, str]:
        """Names of the items that failed, with the reason."""
        return {name: item.message for name, item in self.states.items() if item.state == "failed"}

    def _in(self, state: State) -> tuple[str, ...]:
        return tuple(name for name, item in self.states.items() if item.state == state)

    def _state(self, name: str) -> Item:
        finished, failure = self._index["complete"].get(name), self._index["failed"].get(name)
        place = item_path(self._root, name)
        if finished is not None and failure is None and store_exists(place):
            concerns = tuple(finished.get("concerns", ()))
            return Item(name, "complete", num_draws=int(finished["num_draws"]), concerns=concerns)
        found = stored_state(name, place)
        if failure is None:
            return found
        return Item(name, "failed", failure["message"], failure.get("traceback", ""), found.num_draws)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Ensemble:
        """Open an item's ensemble, also one that is only begun.

        Raises: KeyError for a name that is none; StoreError if the item has no committed draw, or its store is damaged.
        """
        if name not in self:
            raise KeyError(f"{self._root}: there is no item {name!r}, expected one of {_few(self.names)}")
        place = item_path(self._root, name)
        if not store_exists(place):
            item = self.states[name]
            why = f"failed: {item.message}" if item.state == "failed" else "was not begun"
            raise StoreError(f"{self._root}: item {name} has no ensemble: it {why}")
        return open_ensemble(place)

    def mean(self, names: Sequence[str] | None = None) -> "xr.DataArray":
        """Means over chains and draws of all complete items, or of those named: (item, channel, y, x), lazy with Dask.

        Each item's mean comes from the running sums of its store, and is read when it is computed.

        Raises: ValueError if images differ in shape, or there is no item; KeyError for a name that is none; StoreError
            for an item without draws; ImportError without Dask.
        """
        return self._per_item("mean", names)

    def std(self, names: Sequence[str] | None = None) -> "xr.DataArray":
        """Standard deviations over chains and draws, as ``mean``: (item, channel, y, x), lazy with Dask.

        Raises: As ``mean``; ValueError when it is computed, if an item has a single sample.
        """
        return self._per_item("std", names)

    def image(self, names: Sequence[str] | None = None) -> "xr.DataArray":
        """All draws of all complete items, or of those named, lazy with Dask in the chunks of the stores.

        Shapes: (item, chain, draw, channel, y, x).
        Raises: As ``mean``; ValueError also if the numbers of chains or draws differ.
        """
        import pandas as pd
        import xarray as xr

        chosen = self._chosen(names)
        _dask()
        ensembles = {name: self[name] for name in chosen}
        _agree(self._root, {n: (e.num_chains, e.num_draws, *e._layout.stored_shape) for n, e in ensembles.items()})
        images = [e.dask()["posterior"].to_dataset()["image"] for e in ensembles.values()]
        index = pd.Index(list(chosen), name="item", dtype=object)
        together = xr.concat(images, dim=index, join="exact", coords="minimal", compat="override")
        return together.rename("image")

    def _per_item(self, what: str, names: Sequence[str] | None) -> "xr.DataArray":
        import xarray as xr

        chosen = self._chosen(names)
        dask, array = _dask()
        channels = {name: self._channels(name) for name in chosen}
        shape = _agree(self._root, {name: (len(labels), *size) for name, (labels, size) in channels.items()})
        read = dask.delayed(_statistic, pure=False)
        rows = [
            array.from_delayed(read(item_path(self._root, name), what), shape=shape, dtype="float64") for name in chosen
        ]
        labels = channels[chosen[0]][0]
        coords = {"item": list(chosen), "channel": labels}
        return xr.DataArray(array.stack(rows), dims=("item", "channel", "y", "x"), coords=coords, name=what)

    def _channels(self, name: str) -> tuple[list[str], tuple[int, int]]:
        """Names of an item's stored channels, and (H, W); from the index, so that long lists open nothing."""
        known = self._index["complete"].get(name)
        if known is not None:
            return list(known["channel"]), (int(known["size"][0]), int(known["size"][1]))
        told = described(self[name])
        return told["channel"], (told["size"][0], told["size"][1])

    def _chosen(self, names: Sequence[str] | None) -> tuple[str, ...]:
        chosen = self.complete if names is None else tuple(names)
        for name in chosen:
            if name not in self:
                raise KeyError(f"{self._root}: there is no item {name!r}, expected one of {_few(self.names)}")
        if not chosen:
            raise ValueError(f"{self._root}: no item is {'complete' if names is None else 'named'}, expected some")
        return chosen

    def __repr__(self) -> str:
        told = [f"{len(self._in(state))} {state}" for state in STATES if self._in(state)]
        return f"Collection({len(self)} items: {', '.join(told) or 'none'}, {self._root})"


def open_collection(root: StorePath) -> Collection:
    """Open a collection of ensembles, finished or not.

    Raises: StoreError if there is none, or its index is damaged or of another version.
    """
    return Collection(Location.of(root))


class CollectionWriter:
    """Keeps a collection's index: one process writes it, and the workers write the items' stores.

    The index is replaced as a whole, so that a kill leaves the old one or the new one, and if ``durable`` a power
    failure too. What it does not know yet is read off the stores: it is never ahead of them.
    """

    def __init__(self, root: Location, index: dict[str, Any], *, durable: bool = False) -> None:
        self._root = root
        self._index = index
        self._durable = durable

    @classmethod
    def create(
        cls,
        root: StorePath,
        names: Sequence[str],
        record: Mapping[str, object],
        *,
        resume: bool = False,
        overwrite: bool = False,
        durable: bool = False,
    ) -> Self:
        """Begin a collection, or go on with one; items that are new are added.

        ``record`` is what a resumed run must agree with. ``overwrite`` deletes the items that a former index lists.

        Raises: ValueError for names that cannot be files; StoreExistsError if something is there; StoreError if it
            cannot be written, or a resumed collection is none or of other options.
        """
        check_names(names)
        place = Location.of(root)
        wanted = json_ready("collection: record", record)
        if resume:
            return cls._resumed(place, names, wanted, durable)
        if place.folder is None:
            if _get(place) is not None:
                raise StoreExistsError(f"{place}: a collection exists there already; resume it or choose another place")
        else:
            _prepare_folder(place, overwrite=overwrite, durable=durable)
        made = {
            "collection_version": COLLECTION_VERSION,
            "created_at": datetime.now(UTC).isoformat(),
            "record": wanted,
            "items": list(names),
            "complete": {},
            "failed": {},
        }
        writer = cls(place, made, durable=durable)
        writer.save()
        return writer

    @classmethod
    def _resumed(cls, place: Location, names: Sequence[str], wanted: dict[str, Any], durable: bool) -> Self:
        index = _read_index(place)
        refuse_other(place, "collection", index["record"], wanted)
        given = set(names)
        index["items"] = [*names, *(name for name in index["items"] if name not in given)]
        for name in given & set(index["failed"]):
            del index["failed"][name]
        writer = cls(place, index, durable=durable)
        writer.save()
        return writer

    def finish(self, name: str, told: Mapping[str, Any]) -> None:
        """Note that an item is complete, with what ``described`` says of it."""
        self._index["failed"].pop(name, None)
        self._index["complete"][name] = dict(told)

    def fail(self, name: str, message: str, traceback: str = "") -> None:
        """Note that an item failed, and why."""
        self._index["complete"].pop(name, None)
        self._index["failed"][name] = {"message": message, "traceback": traceback}

    def save(self) -> None:
        """Replace the index by what is known now.

        Raises: StoreError if it cannot be written.
        """
        raw = json.dumps({**self._index, "checksum": _checksum(self._index)}, indent=1).encode()
        _put(self._root, raw, self._durable)


def check_names(names: Sequence[str]) -> None:
    """Refuse names that cannot be those of files on every system.

    Raises: TypeError, ValueError with the first such name.
    """
    folded: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"collection: names of items must be text, got {name!r}")
        if not name.strip() or _BAD.search(name) or name.startswith((".", "__")):
            raise ValueError(
                f"collection: {name!r} cannot name an item, expected a file name without a slash that does not begin "
                "with . or __"
            )
        if len(name.encode()) > _LONGEST:
            raise ValueError(
                f"collection: {name[:20]}... has {len(name.encode())} bytes, expected a name of at most {_LONGEST}"
            )
        other = folded.setdefault(name.casefold(), name)
        if other is not name:
            raise ValueError(f"collection: items {other!r} and {name!r} would share a file where case does not count")


def item_path(root: Location, name: str) -> str:
    """Where an item's store lies."""
    return f"{root.url}/{name}{SUFFIX}" if root.url is not None else str(root.folder) + f"/{name}{SUFFIX}"


def store_exists(path: str) -> bool:
    """Whether something was begun to be written there."""
    place = Location.of(path)
    if place.folder is not None:
        return (place.folder / "zarr.json").is_file()
    from zarr.core.sync import sync

    return bool(sync(place.inner().exists("zarr.json")))


def stored_state(name: str, path: str) -> Item:
    """How an item stands by its store alone: ``pending``, ``partial``, ``complete``, or ``failed`` if damaged."""
    if not store_exists(path):
        return Item(name, "pending")
    place = Location.of(path)
    try:
        root = place.open()
        layout, _ = read_layout(root, place)
        committed = committed_draws(root, layout, place)
    except StoreError as err:
        return Item(name, "failed", str(err))
    return Item(name, "complete" if committed == layout.num_draws else "partial", num_draws=committed)


def described(ensemble: Ensemble) -> dict[str, Any]:
    """What the index keeps of a complete item, so that lists and views need not open it."""
    return {
        "num_chains": ensemble.num_chains,
        "num_draws": ensemble.num_draws,
        "channel": ensemble._layout.channel_names,
        "size": list(ensemble.event_shape[1:]),
    }


@contextlib.contextmanager
def held(root: Location, name: str, what: str) -> Iterator[None]:
    """Hold a lock while a store or an index is written; a process that dies lets go of it. Folders only.

    Raises: StoreError if another process holds it.
    """
    if root.folder is None:
        yield
        return
    import filelock

    folder = root.folder / _LOCKS
    lock = filelock.FileLock(folder / f"{name}.lock")
    try:
        folder.mkdir(exist_ok=True)
        lock.acquire(blocking=False)
    except filelock.Timeout as err:
        raise StoreError(f"{root}: {what} is being written by another run, expected to be alone") from err
    try:
        yield
    finally:
        lock.release()


def remove_unfinished(root: Location, name: str) -> None:
    """Delete what a killed worker left of a store that it was making; the item's lock must be held."""
    if root.folder is not None:
        for left in root.folder.glob(f".{_literal(name)}{SUFFIX}.*.creating"):
            shutil.rmtree(left, ignore_errors=True)


def _literal(name: str) -> str:
    import glob

    return glob.escape(name)


def _prepare_folder(place: Location, *, overwrite: bool, durable: bool) -> None:
    """Make the folder, or empty it of a former collection."""
    folder = place.folder
    if folder is None:
        raise StoreError(f"{place}: expected a folder or a URL")
    try:
        if folder.is_dir() and (folder / INDEX).is_file():
            if not overwrite:
                raise StoreExistsError(
                    f"{place}: a collection exists there already; resume it, or pass overwrite=True to replace it"
                )
            for name in _read_index(place)["items"]:
                if store_exists(item_path(place, name)):
                    shutil.rmtree(item_path(place, name))
            return
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StoreExistsError(
                f"{place}: something is there that is no collection, which potentia never deletes; choose another place"
            )
        if not folder.parent.is_dir():
            raise StoreError(f"{place}: the parent folder {folder.parent} does not exist, expected one to write into")
        folder.mkdir(exist_ok=True)
        if durable:
            sync_folder(folder.parent)
    except OSError as err:
        if isinstance(err, StoreError):
            raise
        raise StoreError(f"{place}: the collection cannot be written: {err}") from err


def _read_index(root: Location) -> dict[str, Any]:
    raw = _get(root)
    if raw is None:
        raise StoreError(f"{root}: there is no collection: it has no {INDEX}")
    try:
        index = json.loads(raw)
        version, checksum = index["collection_version"], index.pop("checksum")
        whole = checksum == _checksum(index) or version != COLLECTION_VERSION
        if whole and version == COLLECTION_VERSION:
            check_names(index["items"])  # they become paths
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise StoreError(f"{root}: {INDEX} is damaged: {err!r}") from err
    if version != COLLECTION_VERSION:
        raise StoreError(f"{root}: the collection has version {version}, expected {COLLECTION_VERSION}")
    if not whole:
        raise StoreError(f"{root}: {INDEX} is damaged: it does not have the checksum that it was written with")
    return dict(index)


def _checksum(index: Mapping[str, Any]) -> int:
    """CRC-32 of an index, as JSON makes it out."""
    return zlib.crc32(json.dumps(index, sort_keys=True).encode())


def _get(root: Location) -> bytes | None:
    if root.folder is not None:
        try:
            return (root.folder / INDEX).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as err:
            raise StoreError(f"{root}: {INDEX} cannot be read: {err}") from err
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync

    found = sync(_bucket(root, writable=False).get(INDEX, default_buffer_prototype()))
    return None if found is None else found.to_bytes()


def _put(root: Location, raw: bytes, durable: bool) -> None:
    if root.folder is not None:
        try:
            with written_whole(root.folder / INDEX, durable=durable) as fresh:
                fresh.write_bytes(raw)
        except OSError as err:
            raise StoreError(f"{root}: {INDEX} cannot be written: {err}") from err
        return
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync

    sync(_bucket(root, writable=True).set(INDEX, default_buffer_prototype().buffer.from_bytes(raw)))


def _bucket(root: Location, *, writable: bool) -> Any:
    if root.url is None or root.scheme == "memory" or root.scheme.startswith("icechunk"):
        raise StoreError(f"{root}: collections lie in a folder or an object store, expected one that all workers reach")
    return root.inner(writable=writable)


def _agree(root: Location, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape that all items have.

    Raises: ValueError that lists them, if there are several.
    """
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, shape in shapes.items():
        by_shape.setdefault(shape, []).append(name)
    if len(by_shape) > 1:
        told = "; ".join(f"{shape_text(shape)}: {_few(names)}" for shape, names in by_shape.items())
        raise ValueError(f"{root}: items differ in shape ({told}), expected one; pass the names of some")
    return next(iter(by_shape))


def _few(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _statistic(path: str, what: str) -> "np.ndarray[Any, Any]":
    """Read one item's mean or std: (channel, y, x) float64. Runs on a worker."""
    values: np.ndarray[Any, Any] = getattr(open_ensemble(path), what)().values.astype("float64", copy=False)
    return values


def _dask() -> tuple[Any, Any]:
    try:
        import dask
        import dask.array
    except ImportError as err:
        raise ImportError(
            "collection: Dask is missing, expected it for lazy arrays: pip install 'potentia[dask]'"
        ) from err
    return dask, dask.array
