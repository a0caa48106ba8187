"""Where a store lies: in memory, on this machine, or behind a URL; and how it gets there without a half-made state."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potentia.io._errors import StoreError, StoreExistsError

if TYPE_CHECKING:
    import zarr

StorePath = str | os.PathLike[str]


@dataclass(frozen=True)
class Location:
    """One of a local folder, a URL, or a store object held in memory."""

    folder: Path | None = None
    url: str | None = None
    memory: Any = None

    @classmethod
    def of(cls, path: StorePath | None) -> "Location":
        """Sort a caller's path; ``file://`` is stripped, ``None`` gives a fresh store in memory."""
        if path is None:
            from potentia.io._memory import OwnMemoryStore

            return cls(memory=OwnMemoryStore())
        text = os.fspath(path)
        if text.startswith("file://"):
            text = text.removeprefix("file://")
        elif "://" in text:
            return cls(url=text)
        if not text:
            raise StoreError("the path of a store is empty, expected a folder name")
        return cls(folder=Path(text).expanduser().resolve())

    def __str__(self) -> str:
        return str(self.folder or self.url or "<memory>")

    @property
    def target(self) -> Any:
        """What zarr and xarray open."""
        return self.folder if self.folder is not None else self.url if self.url is not None else self.memory

    def open(self, *, writable: bool = False) -> "zarr.Group":
        """Open the root group.

        Raises: StoreError if nothing is there or it cannot be read as a zarr group.
        """
        import zarr

        if self.folder is not None and not self.folder.exists():
            raise StoreError(f"{self}: there is no such store, expected a folder written by potentia")
        if self.folder is not None and not (self.folder / "zarr.json").is_file():
            raise StoreError(f"{self}: this is no ensemble store: it has no zarr.json")
        try:
            return zarr.open_group(self.target, mode="r+" if writable else "r")
        except Exception as err:  # zarr raises a dozen unrelated types for damaged metadata
            raise StoreError(f"{self}: cannot be opened as an ensemble store: {err}") from err


def create_at(location: Location, build: Callable[["zarr.Group"], None], *, overwrite: bool) -> None:
    """Make a store with ``build``; on a local disk under a temporary sibling name, renamed when it is whole.

    Raises: StoreExistsError if the place is taken; StoreError if it cannot be written.
    """
    import zarr

    if location.folder is not None:
        _create_folder(location.folder, build, overwrite=overwrite)
    elif location.url is not None:
        exists = _url_exists(location.url)
        if exists and not overwrite:
            raise StoreExistsError(f"{location}: a store exists there already; pass overwrite=True to replace it")
        # "w" deletes whatever lies there, and nothing but a store may be deleted
        build(zarr.open_group(location.url, mode="w" if exists else "w-"))
    else:
        build(zarr.open_group(location.memory, mode="w-"))


def _create_folder(folder: Path, build: Callable[["zarr.Group"], None], *, overwrite: bool) -> None:
    import zarr

    refuse_taken(folder, overwrite=overwrite)
    staging = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:12]}.creating"
    try:
        build(zarr.open_group(staging, mode="w-"))
        _install(staging, folder, overwrite=overwrite)
    except OSError as err:
        if isinstance(err, StoreExistsError):
            raise
        raise StoreError(f"{folder}: the store cannot be written: {err}") from err
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def refuse_taken(folder: Path, *, overwrite: bool) -> None:
    """Refuse a place that holds what may not be replaced, or that cannot be written.

    Raises: StoreExistsError, StoreError.
    """
    if not folder.parent.is_dir():
        raise StoreError(f"{folder}: the parent folder {folder.parent} does not exist, expected a folder to write into")
    if not os.access(folder.parent, os.W_OK | os.X_OK):
        raise StoreError(f"{folder}: the parent folder {folder.parent} is not writable")
    if not folder.exists():
        return
    if not (folder / "zarr.json").is_file():
        what = "a folder that is no zarr store" if folder.is_dir() else "a file"
        raise StoreExistsError(f"{folder}: {what} is there, which potentia never deletes; choose another path")
    if not overwrite:
        raise StoreExistsError(f"{folder}: a store exists there already; pass overwrite=True to replace it")


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


def _url_exists(url: str) -> bool:
    import zarr

    try:
        zarr.open_group(url, mode="r")
    except (FileNotFoundError, KeyError):
        return False
    return True


def remove_orphans(folder: Path) -> None:
    """Delete the ``.partial`` files that a killed writer left behind."""
    for orphan in folder.rglob("*.partial"):
        with contextlib.suppress(FileNotFoundError):
            orphan.unlink()
