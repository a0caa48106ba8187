"""The files of a local store."""

import asyncio
import stat
from pathlib import Path

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import LocalStore

from potentia._files import sync_file, sync_folder
from potentia.io._errors import StoreError


def cut(value: Buffer, byte_range: ByteRequest | None) -> Buffer:
    """Return the part of a file that was asked for."""
    if byte_range is None:
        return value
    if isinstance(byte_range, RangeByteRequest):
        return value[byte_range.start : byte_range.end]
    if isinstance(byte_range, OffsetByteRequest):
        return value[byte_range.offset :]
    if isinstance(byte_range, SuffixByteRequest):
        return value[max(0, len(value) - byte_range.suffix) :]
    raise TypeError(f"byte_range is {byte_range!r}, expected a byte request of zarr")


def sync_to_disk(path: Path) -> None:
    """Wait until a file, and its name in its folder, are on the disk."""
    sync_file(path)
    sync_folder(path.parent)


class RegularFiles(LocalStore):
    """A local folder of which only regular files are read: a pipe would hang, a device never end."""

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read one file, or None where there is none.

        Raises: StoreError for anything but a regular file; OSError.
        """
        if not self._is_open:
            await self._open()
        path, prototype = self.root / key, prototype or default_buffer_prototype()
        return await asyncio.to_thread(_read, path, prototype, byte_range, None)

    async def get_at_most(self, key: str, prototype: BufferPrototype, most: int | None) -> Buffer | None:
        """Read one file if it has no more than ``most`` bytes: a damaged disk may say anything of a file's length.

        Raises: StoreError, OSError.
        """
        if not self._is_open:
            await self._open()
        return await asyncio.to_thread(_read, self.root / key, prototype, None, most)


_MOST_METADATA = 256 * 2**20


def _read(path: Path, prototype: BufferPrototype, byte_range: ByteRequest | None, most: int | None) -> Buffer | None:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(found.st_mode):
        raise StoreError("is no regular file")
    if most is None and path.name == "zarr.json":
        most = _MOST_METADATA
    if most is not None and found.st_size > most:
        raise StoreError(f"is damaged: it has {found.st_size} bytes, expected at most {most}")
    if isinstance(byte_range, RangeByteRequest):
        with path.open("rb") as file:
            file.seek(byte_range.start)
            return prototype.buffer.from_bytes(file.read(byte_range.end - byte_range.start))
    with path.open("rb") as file:
        return cut(prototype.buffer.from_bytes(file.read()), byte_range)
