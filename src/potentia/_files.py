"""Files that appear whole or not at all, and what has reached the disk."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written_whole(path: Path, *, replace: bool = True, durable: bool = False) -> Iterator[Path]:
    """Give a place beside a file to write to; the file gets its name once all of it is there.

    The place ends as the name does, which some writers go by, and is gone afterwards. ``replace=False`` leaves alone
    what has come to the name meanwhile; ``durable`` waits for the disk, so that a power failure leaves the old file or
    the new one.

    Raises: FileExistsError for a name that is taken; OSError.
    """
    staging = path.with_name(f".{uuid.uuid4().hex[:12]}{''.join(path.suffixes[-2:])}")
    try:
        yield staging
        if durable:
            sync_file(staging)
        _name(staging, path, replace)
        if durable:
            sync_folder(path.parent)
    finally:
        staging.unlink(missing_ok=True)


def _name(staging: Path, path: Path, replace: bool) -> None:
    if not replace:
        # A link fails where a file has come in the meantime, which a rename would replace.
        with suppress(OSError):
            os.link(staging, path)
            return
        if path.exists():  # else this disk knows no links
            raise FileExistsError(f"{path}: a file exists there already; pass overwrite=True to replace it")
    os.replace(staging, path)


def sync_file(path: Path) -> None:
    """Wait until what a file holds is on the disk."""
    _sync(path, os.O_RDWR)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, on systems where one can."""
    if os.name != "nt":
        _sync(folder, os.O_RDONLY)


def sync_tree(folder: Path) -> None:
    """Wait until a folder and all that it holds are on the disk."""
    for parent, _, files in os.walk(folder):
        for name in files:
            sync_file(Path(parent) / name)
        sync_folder(Path(parent))


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
