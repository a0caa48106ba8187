"""Making a store where there was none, so that at no time a half-made one opens."""

import contextlib
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from potentia._files import sync_folder, sync_tree
from potentia.io._checksums import TABLES, chunk_keys, one_line
from potentia.io._errors import StoreError, StoreExistsError
from potentia.io._schema import BY_PIXEL

if TYPE_CHECKING:
    import zarr
    from zarr.abc.store import Store

    from potentia.io._location import Location

_GROUPS = ("posterior", "posterior_summary", "sample_stats", "observed_data", "constant_data", "writer", BY_PIXEL)
Build = Callable[["zarr.Group"], None]


def create_at(location: "Location", build: Build, *, overwrite: bool, durable: bool = False) -> None:
    """Make a store with ``build``, whole or not at all.

    On a local disk it grows under a temporary sibling name and is renamed, if ``durable`` once all of it is on the
    disk; behind a URL the root's metadata, without which nothing opens, are written last.

    Raises: StoreExistsError if the place is taken; StoreError if it cannot be written.
    """
    refuse_place(location, overwrite=overwrite)
    if location.folder is not None:
        _create_folder(location, location.folder, build, overwrite=overwrite, durable=durable)
    elif location.scheme == "memory":
        from potentia.io._memory import OwnMemoryStore, name_store

        store = OwnMemoryStore()
        _fill(store, location, build)
        name_store(str(location.url), store)
    elif location.scheme.startswith("icechunk"):
        _create_repository(location, build, overwrite=overwrite)
    elif location.url is not None:
        with _store_errors(location):
            inner = location.inner(writable=True)
            if overwrite:
                _clear(inner)
            _fill(inner, location, build)
    else:
        _fill(location.memory, location, build)


def create_archive(location: "Location", build: Build, *, overwrite: bool) -> None:
    """Make a zip archive of a store: it grows in a temporary sibling folder, is packed, and renamed when it is whole.

    Raises: StoreExistsError, StoreError.
    """
    from potentia.io._remote import pack

    archive = location.archive
    if archive is None:
        raise ValueError(f"create_archive: {location} is no zip archive")
    _refuse_parent(archive)
    refuse = f"{archive}: a file is there already; pass overwrite=True to replace it"
    if archive.exists() and not overwrite:
        raise StoreExistsError(refuse)
    staging = _staging(archive)
    packed = staging.with_suffix(".packing")
    with _store_errors(location):
        try:
            _fill(_local(staging), location, build)
            pack(staging, packed)
            if archive.exists() and not overwrite:  # someone may have come first
                raise StoreExistsError(refuse)
            packed.replace(archive)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            packed.unlink(missing_ok=True)


def _fill(inner: "Store", location: "Location", build: Build) -> None:
    import zarr

    if location.unchecked:
        build(zarr.open_group(inner, mode="w-"))
        return
    from potentia.io._checked import CheckedStore

    store = CheckedStore.building(inner, str(location))
    root = zarr.open_group(store, mode="w-")
    build(root)
    _seal(root)


def _seal(root: "zarr.Group") -> None:
    """Give a new store its tables of checksums, and write its root's metadata."""
    import zarr
    from zarr.codecs import Crc32cCodec
    from zarr.core.sync import sync

    from potentia.io._checked import CheckedStore, grid_of

    grids, chunk_bytes = {}, {}
    for name, group in root.groups():
        for member, array in group.arrays():
            if _is_written_by_runs(f"{name}/{member}", array.ndim) and min(array.shape) > 0:
                grids[array.path] = grid_of(array)
                if not array.compressors and array.shards is None:
                    chunk_bytes[array.path] = math.prod(array.chunks) * array.dtype.itemsize
    state = root["writer/state"]
    ranks = state.shape[0] if isinstance(state, zarr.Array) and state.ndim == 2 else 1
    size = sum(len(chunk_keys(path, grid)) for path, grid in grids.items())
    writer = root["writer"]
    if not isinstance(writer, zarr.Group) or not isinstance(root.store, CheckedStore):
        raise TypeError("create_at: a store needs a group writer")
    writer.create_array(
        TABLES.partition("/")[2],
        shape=(ranks, size, 2),
        chunks=(1, size, 2),
        dtype="<u4",
        dimension_names=["rank", "file", "version"],
        fill_value=0,
        filters=None,
        compressors=[Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},
    )
    sync(root.store.seal(grids, chunk_bytes, ranks))


def _is_written_by_runs(path: str, ndim: int) -> bool:
    """Whether an array's chunks are written while sampling; coordinates are not."""
    group = path.partition("/")[0]
    if group in ("sample_stats", "posterior"):
        return ndim > 1
    sums = ("mean", "m2", "count")
    return path in [f"posterior_summary/{n}" for n in sums] or group == "writer"


@contextlib.contextmanager
def _store_errors(location: "Location") -> Iterator[None]:
    """Make StoreErrors of what disks and clouds raise; a caller's own errors pass."""
    try:
        yield
    except StoreError:
        raise
    except OSError as err:
        raise StoreError(f"{location}: the store cannot be written: {err}") from err
    except Exception as err:
        if type(err).__module__.startswith(("obstore", "icechunk", "_obstore")):
            raise StoreError(f"{location}: the store cannot be written: {one_line(err)}") from err
        raise


def _local(folder: Path) -> "Store":
    from potentia.io._files import RegularFiles

    return RegularFiles(folder)


def _staging(place: Path) -> Path:
    return place.parent / f".{place.name}.{uuid.uuid4().hex[:12]}.creating"


def _create_folder(location: "Location", folder: Path, build: Build, *, overwrite: bool, durable: bool) -> None:
    staging = _staging(folder)
    with _store_errors(location):
        try:
            _fill(_local(staging), location, build)
            if durable:
                sync_tree(staging)
            _install(staging, folder, overwrite=overwrite)
            if durable:
                sync_folder(folder.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _create_repository(location: "Location", build: Build, *, overwrite: bool) -> None:
    from zarr.core.sync import sync

    from potentia.io._icechunk import open_repository

    with _store_errors(location):
        files = open_repository(str(location.url), writable=True, create=True)
        if overwrite:
            sync(files.clear())
        _fill(files, location, build)  # nothing of it is there before the commit
        files.commit("an empty ensemble")


def refuse_place(location: "Location", *, overwrite: bool) -> None:
    """Refuse a place that holds what may not be replaced, or that cannot be written.

    Raises: StoreExistsError, StoreError.
    """
    if location.folder is not None:
        refuse_taken(location.folder, overwrite=overwrite)
        return
    if location.archive is not None:
        location.inner(writable=True)  # says why not
    if location.url is None or location.scheme == "memory":
        from potentia.io._memory import named_store

        taken = location.url is not None and named_store(location.url) is not None
    else:
        taken = _url_taken(location)
    if taken and not overwrite:
        raise StoreExistsError(f"{location}: a store exists there already; pass overwrite=True to replace it")


def _url_taken(location: "Location") -> bool:
    """Whether a store is there; a folder with anything else is refused, a store that was half made is not."""
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync

    with _store_errors(location):
        if location.scheme.startswith("icechunk"):
            from potentia.io._icechunk import open_repository

            try:
                inner: Store = open_repository(str(location.url), writable=False)
            except StoreError as err:
                if "there is no such store" in str(err):
                    return False
                raise
        else:
            inner = location.inner(writable=True)
        if sync(inner.get("zarr.json", default_buffer_prototype())) is not None:
            return True
        foreign = sync(_first_foreign(inner))
    if foreign:
        raise StoreExistsError(
            f"{location}: {foreign} is there, and no store, which potentia never deletes; choose another place"
        )
    return False


async def _first_foreign(inner: "Store") -> str | None:
    async for key in inner.list():
        if key.partition("/")[0] not in _GROUPS:
            return key
    return None


def _clear(inner: "Store") -> None:
    """Delete a store behind a URL, its root first, so that it cannot be opened while the rest goes."""
    from zarr.core.sync import sync

    sync(inner.delete("zarr.json"))
    for group in _GROUPS:
        sync(inner.delete_dir(group))


def refuse_taken(folder: Path, *, overwrite: bool) -> None:
    """Refuse a local place that holds what may not be replaced, or that cannot be written.

    Raises: StoreExistsError, StoreError.
    """
    _refuse_parent(folder)
    if not folder.exists():
        return
    if not (folder / "zarr.json").is_file():
        what = "a folder that is no zarr store" if folder.is_dir() else "a file"
        raise StoreExistsError(f"{folder}: {what} is there, which potentia never deletes; choose another path")
    if not overwrite:
        raise StoreExistsError(f"{folder}: a store exists there already; pass overwrite=True to replace it")


def _refuse_parent(place: Path) -> None:
    if not place.parent.is_dir():
        raise StoreError(f"{place}: the parent folder {place.parent} does not exist, expected a folder to write into")
    if not os.access(place.parent, os.W_OK | os.X_OK):
        raise StoreError(f"{place}: the parent folder {place.parent} is not writable")


def _install(staging: Path, folder: Path, *, overwrite: bool) -> None:
    """Move a whole store into place; an old one is moved aside first, so that at no time a mixture of both is seen."""
    aside = None
    if folder.exists():
        refuse_taken(folder, overwrite=overwrite)  # someone may have come first while we were building
        aside = staging.with_suffix(".replaced")
        folder.rename(aside)
    try:
        staging.rename(folder)
    except OSError:
        if aside is not None:
            aside.rename(folder)
        raise
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def remove_orphans(folder: Path) -> None:
    """Delete the ``.partial`` files that a killed writer left behind."""
    for orphan in folder.rglob("*.partial"):
        with contextlib.suppress(FileNotFoundError):
            orphan.unlink()
