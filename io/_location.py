"""Where a store lies: in memory, on this machine, or behind a URL; how it is opened, and its writes made to count."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potentia.io._checksums import MANIFEST, one_line
from potentia.io._errors import StoreError
from potentia.io._schema import STORE_VERSION

if TYPE_CHECKING:
    import zarr
    from zarr.abc.store import Store

StorePath = str | os.PathLike[str]


@dataclass(frozen=True)
class Location:
    """One of a local folder, a zip archive, a URL, or a store object held in memory.

    ``folder`` and ``archive`` are absolute. URLs: ``memory://NAME`` (shared within the process), ``s3://``, ``gs://``,
    ``az://``, ``http(s)://`` (read-only), ``icechunk://FOLDER``, ``icechunk+s3://`` and ``icechunk+gs://``.
    """

    folder: Path | None = None
    url: str | None = None
    memory: Any = None
    archive: Path | None = None

    @classmethod
    def of(cls, path: StorePath | None) -> "Location":
        """Sort a caller's path; ``file://`` is stripped, ``None`` gives a fresh store in memory.

        Raises: StoreError for an empty path.
        """
        if path is None:
            from potentia.io._memory import OwnMemoryStore

            return cls(memory=OwnMemoryStore())
        text = os.fspath(path)
        if text.startswith("file://"):
            text = text.removeprefix("file://")
        elif "://" in text:
            return cls(url=text.rstrip("/"))
        if not text:
            raise StoreError("the path of a store is empty, expected a folder name")
        place = Path(text).expanduser().resolve()
        return cls(archive=place) if place.suffix == ".zip" and not place.is_dir() else cls(folder=place)

    def __str__(self) -> str:
        return str(self.folder or self.archive or self.url or "<memory>")

    @property
    def scheme(self) -> str:
        """What comes before ``://`` in a URL, else nothing."""
        return self.url.partition("://")[0] if self.url is not None else ""

    @property
    def target(self) -> Any:
        """What zarr and xarray open: a store for reading, every file of which is held to its checksum.

        Raises: StoreError.
        """
        return self.open().store

    def open(self, *, writable: bool = False, rank: int = 0, durable: bool = False) -> "zarr.Group":
        """Open the root group.

        ``rank`` says whose table of checksums a writer keeps; ``durable`` makes every file of a local store reach the
        disk before the next is written.

        Raises: StoreError if nothing is there, it cannot be read as a zarr group, is damaged, or cannot be written to.
        """
        import zarr

        inner = self.inner(writable=writable)
        try:
            store = inner if self.unchecked else self._checked(inner, writable, rank, durable)
            return zarr.open_group(store, mode="r+" if writable else "r")
        except StoreError:
            raise
        except Exception as err:  # zarr raises a dozen unrelated types for damaged metadata
            raise StoreError(f"{self}: cannot be opened as an ensemble store: {one_line(err)}") from err

    @property
    def unchecked(self) -> bool:
        """Whether checksums are not kept: memory does not rot."""
        return self.memory is not None or self.scheme == "memory"

    def _checked(self, inner: "Store", writable: bool, rank: int, durable: bool) -> "Store":
        import zarr
        from zarr.core.buffer import default_buffer_prototype
        from zarr.core.sync import sync

        from potentia.io._checked import CheckedStore

        options = {"rank": rank, "durable": durable, "read_only": not writable}
        checked = sync(CheckedStore.loaded(inner, str(self), **options))
        if checked is not None:
            return checked
        if sync(inner.get("zarr.json", default_buffer_prototype())) is None:
            raise StoreError(f"{self}: there is no such store, expected one written by potentia")
        # No ensemble, or one of another version, which is for the reader of the attributes to say.
        potentia = zarr.open_group(inner, mode="r").attrs.asdict().get("potentia")
        if isinstance(potentia, dict) and potentia.get("store_version") == STORE_VERSION:
            raise StoreError(f"{self}: the store is cut short: {MANIFEST} is missing or has no checksums")
        return inner

    def inner(self, *, writable: bool = False) -> "Store":
        """Open the store as it is, without checksums.

        Raises: StoreError if nothing is there, or it cannot be written to.
        """
        if self.archive is not None:
            if writable:
                raise StoreError(
                    f"{self}: a zip archive can only be read: one that is cut short by a kill is lost whole. Sample to "
                    f'a folder and pack it with Ensemble.save("{self.archive.name}")'
                )
            from potentia.io._remote import zip_store

            return zip_store(self.archive)
        if self.url is None:
            return self.memory if self.folder is None else self._folder_store(self.folder, writable)
        if self.scheme == "memory":
            from potentia.io._memory import named_store

            named = named_store(self.url)
            if named is None:
                raise StoreError(f"{self}: there is no such store in this process")
            return named
        if self.scheme.startswith("icechunk"):
            from potentia.io._icechunk import open_repository

            return open_repository(self.url, writable=writable)
        from potentia.io._remote import object_store

        return object_store(self.url, writable=writable)

    def _folder_store(self, folder: Path, writable: bool) -> "Store":
        if not folder.exists():
            raise StoreError(f"{self}: there is no such store, expected a folder written by potentia")
        if not (folder / "zarr.json").is_file():
            raise StoreError(f"{self}: this is no ensemble store: it has no zarr.json")
        from potentia.io._files import RegularFiles

        return RegularFiles(folder, read_only=not writable)

    def flush(self, root: "zarr.Group", *, settle: bool = False) -> None:
        """Record the checksums of what was written through ``root``, without which readers do not see it.

        ``settle``, at the end of a run, forgets those of the files that were replaced.

        Raises: OSError, StoreError.
        """
        from potentia.io._checked import CheckedStore

        if isinstance(root.store, CheckedStore):
            from zarr.core.sync import sync

            sync(root.store.flush(settle=settle))

    def commit(self, root: "zarr.Group", message: str) -> None:
        """End a transaction where the store has them, in icechunk; nothing elsewhere.

        Raises: StoreError.
        """
        from potentia.io._checked import CheckedStore

        store = root.store
        if self.scheme.startswith("icechunk") and isinstance(store, CheckedStore):
            from potentia.io._icechunk import IcechunkFiles

            if isinstance(store.inner, IcechunkFiles):
                try:
                    store.inner.commit(message)
                except StoreError as err:
                    raise StoreError(f"{self}: {err}") from err

    @contextlib.contextmanager
    def together(self, message: str) -> "Iterator[zarr.Group]":
        """Open for writing; what is new counts for readers all at once at the end, or not at all.

        Raises: StoreError.
        """
        from potentia.io._checked import CheckedStore

        root = self.open(writable=True)
        if isinstance(root.store, CheckedStore):
            with root.store.held():
                yield root
        else:
            yield root
        self.commit(root, message)

    def verify(self) -> int:
        """Read every file of the store and hold it to its checksum; how many there are.

        Raises: StoreError for the first that is damaged or missing.
        """
        from zarr.core.sync import sync

        from potentia.io._checked import CheckedStore

        store = self.open().store
        return sync(store.verify()) if isinstance(store, CheckedStore) else 0
