"""A zarr store that hands out nothing but what was recorded: every file is held to its checksum when it is read."""

import asyncio
import json
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import LocalStore

from potentia.io._checksums import (
    MANIFEST,
    TABLES,
    Manifest,
    chunk_checksum,
    empty_table,
    one_line,
    pack_table,
    table_key,
    unpack_table,
)
from potentia.io._errors import StoreError
from potentia.io._files import RegularFiles, cut, sync_to_disk

_RELOADS = 3  # how often a reader looks again at a store that is being written
_TOGETHER = 4  # files verified at once


class CheckedStore(Store):
    """Reads and writes another store, keeping checksums.

    A file that is not recorded does not exist for readers: orphans of a killed writer, chunks beyond the last commit,
    a summary half written. A recorded file that is replaced has both its checksums recorded before it is touched, so
    that a kill at any moment leaves every file with an accepted one.

    Reads raise StoreError for a file that is damaged, missing, or was put in another's place.
    """

    @property
    def supports_writes(self) -> bool:
        return True

    @property
    def supports_deletes(self) -> bool:
        return True

    @property
    def supports_listing(self) -> bool:
        return True

    def __init__(self, inner: Store, where: str, *, rank: int = 0, durable: bool = False, read_only: bool) -> None:
        super().__init__(read_only=read_only)
        self._inner = inner
        self._where = where
        self._rank = rank
        self._durable = durable
        self._building = False
        self._root: Buffer | None = None  # while the store is made: the root's metadata are written last
        self._held: dict[str, tuple[int, int]] | None = None  # checksum and size
        self._manifest = Manifest({})
        self._rows: dict[str, int] = {}
        self._tables = np.zeros((0, 0, 2), np.uint32)  # of all ranks; this rank's may be ahead of the disk
        self._written = empty_table(0)  # this rank's table as it is on disk
        self._actual = empty_table(0)[:, 0]  # checksums of this rank's files as they are now
        self._ranged: set[str] = set()  # files read in parts that were checked as a whole
        self._lock: asyncio.Lock | None = None

    @classmethod
    def building(cls, inner: Store, where: str) -> "CheckedStore":
        """Begin a new store, which ``sealed`` finishes."""
        store = cls(inner, where, read_only=False)
        store._building = True
        return store

    @classmethod
    async def loaded(cls, inner: Store, where: str, **options: Any) -> "CheckedStore | None":
        """Open a store with its checksums; None if it has none.

        Raises: StoreError if they are damaged or cannot be read.
        """
        store = cls(inner, where, **options)
        await store._ensure_open()
        return store if await store._load() else None

    @property
    def inner(self) -> Store:
        """What lies beneath; icechunk gives another after each commit."""
        return self._inner

    @inner.setter
    def inner(self, store: Store) -> None:
        self._inner = store

    # Loading

    async def _load(self) -> bool:
        raw = await self._fetch(MANIFEST)
        manifest = None if raw is None else Manifest.parsed(raw.to_bytes(), self._where)
        if manifest is None:
            return False
        rows = manifest.rows()
        size = 8 * len(rows) + 4
        chunks = await asyncio.gather(*(self._fetch(table_key(r), most=size) for r in range(manifest.ranks)))
        tables = [unpack_table(None if chunk is None else chunk.to_bytes(), len(rows), self._where) for chunk in chunks]
        if not self.read_only and self._rank >= manifest.ranks:
            raise StoreError(f"{self._where}: rank {self._rank} writes to a store of {manifest.ranks} ranks")
        self._manifest, self._rows = manifest, rows
        self._tables = np.stack(tables) if tables else np.zeros((0, 0, 2), np.uint32)
        if not self.read_only:
            self._written = self._tables[self._rank].copy()
            self._actual = self._written[:, 0].copy()
            await self._settle_interrupted()
        return True

    async def _settle_interrupted(self) -> None:
        """Find out which of two accepted checksums holds, where a kill came while a file was replaced."""
        keys = list(self._rows)
        for row in np.flatnonzero(self._written[:, 1]):
            value = await self._fetch(keys[row])
            found = 0 if value is None else chunk_checksum(value.as_numpy_array())
            if found in self._written[row]:
                self._actual[row] = found
        for key, accepted in self._manifest.files.items():
            if len(accepted) > 1:
                value = await self._fetch(key)
                found = 0 if value is None else chunk_checksum(value.as_numpy_array())
                if found in accepted:
                    self._manifest.files[key] = (found,)

    def _most(self, key: str) -> int | None:
        """Bytes that a file may have; None where that is not known."""
        if key in self._rows:
            return self._manifest.chunk_bytes.get(key.rpartition("/")[0])
        return self._manifest.sizes.get(key)

    async def _fetch(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
        most: int | None = None,
    ) -> Buffer | None:
        """Read one file as it is; None if it is missing."""
        prototype = prototype or default_buffer_prototype()
        try:
            if byte_range is None and isinstance(self._inner, RegularFiles):
                return await self._inner.get_at_most(key, prototype, most)
            return await self._inner.get(key, prototype, byte_range)
        except StoreError as err:
            raise StoreError(f"{self._where}: {key} {err}") from err
        except Exception as err:  # disks, archives and clouds raise unrelated types
            raise StoreError(f"{self._where}: {key} cannot be read: {one_line(err)}") from err

    # Reading

    def accepted(self, key: str) -> tuple[int, ...]:
        """Checksums that a file may have; none for a file that is not recorded."""
        row = self._rows.get(key)
        if row is None:
            if self._held is not None and key in self._held:
                return self._held[key][:1]
            return self._manifest.files.get(key, ())
        return tuple(int(value) for value in self._tables[:, row].ravel() if value)

    async def _checked(self, key: str, prototype: BufferPrototype) -> Buffer | None:
        accepted: tuple[int, ...] = ()
        value: Buffer | None = None
        for attempt in range(_RELOADS + 1):
            accepted = self.accepted(key)
            if not accepted and not self.read_only:
                return None
            value = await self._fetch(key, prototype, most=self._most(key)) if accepted else None
            if value is not None and chunk_checksum(value.as_numpy_array()) in accepted:
                return value
            # A writer may have gone on since the checksums were read, and another reading have read them again already.
            if not self.read_only or attempt == _RELOADS:
                break
            await self._reload()
            if self.accepted(key) == accepted:
                break
        if not accepted:
            return None
        if value is None:
            raise StoreError(f"{self._where}: the store is cut short: {key} is missing")
        raise StoreError(f"{self._where}: {key} is damaged: its {len(value)} bytes do not have the recorded checksum")

    async def _reload(self) -> None:
        if not await self._load():
            raise StoreError(f"{self._where}: the store is cut short: {MANIFEST} is missing")

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read one file and hold it to its checksum; of a file read in parts, the whole once.

        Raises: StoreError.
        """
        prototype = prototype or default_buffer_prototype()
        if key == MANIFEST:  # as it was checked when it was opened, and without the checksums, which are no attribute
            document = self._manifest.document
            return cut(prototype.buffer.from_bytes(json.dumps(document).encode()), byte_range) if document else None
        if key == "zarr.json" and self._root is not None:
            return cut(self._root, byte_range)
        if key.startswith(TABLES + "/c."):
            return await self._fetch(key, prototype, byte_range)
        if byte_range is not None and key in self._ranged:
            return await self._fetch(key, prototype, byte_range)
        value = await self._checked(key, prototype)
        if value is None or byte_range is None:
            return value
        self._ranged.add(key)
        return cut(value, byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read several parts, each as ``get`` does."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether a file is recorded and there."""
        if key == MANIFEST and self._building:
            return bool(self._manifest.document)
        if key == "zarr.json" and self._root is not None:
            return True
        return (key == MANIFEST or bool(self.accepted(key))) and await self._inner.exists(key)

    async def is_empty(self, prefix: str) -> bool:
        """Whether nothing below a prefix is recorded."""
        return not any(True for _ in self._keys(prefix))

    def _keys(self, prefix: str) -> Iterator[str]:
        start = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
        if self._root is not None and not start:
            yield "zarr.json"
        if MANIFEST.startswith(start) and self._manifest.document:
            yield MANIFEST
        listed = {**self._manifest.files, **(self._held or {})}
        yield from (key for key in listed if key.startswith(start) and not key.startswith(TABLES + "/"))
        yield from (key for key in self._rows if key.startswith(start) and self.accepted(key))

    async def list(self) -> AsyncIterator[str]:
        """All recorded files."""
        for key in self._keys(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Recorded files below a prefix."""
        for key in self._keys(prefix):
            yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names of recorded files and folders in a folder."""
        start = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
        for name in dict.fromkeys(key[len(start) :].partition("/")[0] for key in self._keys(prefix)):
            yield name

    # Writing

    def _guard(self) -> asyncio.Lock:
        if self._lock is None:
            self._lock = asyncio.Lock()
        return self._lock

    async def set(self, key: str, value: Buffer) -> None:
        """Write one file and record its checksum; it counts for readers from the next ``flush`` on.

        Raises: OSError if the disk does not take it; StoreError if a cloud does not.
        """
        self._check_writable()
        if key == MANIFEST:
            await self._set_manifest(value)
        elif key == "zarr.json" and self._building:
            self._root = value
        elif key.startswith(TABLES + "/c."):
            await self._put(key, value)
        elif key in self._rows:
            await self._set_row(key, value)
        else:
            await self._set_file(key, value)

    async def _set_manifest(self, value: Buffer) -> None:
        async with self._guard():
            if not self._building:
                await self._refresh_files()
            self._manifest.document = json.loads(value.to_bytes())
            if not self._building:
                await self._put_manifest()

    async def _set_row(self, key: str, value: Buffer) -> None:
        row, table = self._rows[key], self._tables[self._rank]
        if not self.accepted(key):
            writing = asyncio.ensure_future(self._put(key, value))
            await asyncio.sleep(0)  # the disk begins, and the checksum is taken while it works
            checksum = chunk_checksum(value.as_numpy_array())
            await writing
            table[row] = (checksum, 0)
        else:
            checksum = chunk_checksum(value.as_numpy_array())
            self._announce(row, checksum)
            if checksum not in self._written[row]:
                await self.flush()
            await self._put(key, value)
        self._actual[row] = checksum

    def _announce(self, row: int, checksum: int) -> None:
        """Accept what a file will hold, and what it holds now."""
        now = int(self._actual[row])
        self._tables[self._rank, row] = (checksum, now if now != checksum else 0)

    async def _set_file(self, key: str, value: Buffer) -> None:
        checksum = chunk_checksum(value.as_numpy_array())
        if self._building:
            await self._put(key, value)
            self._manifest.record(key, (checksum,), len(value))
            return
        async with self._guard():
            if self._held is None or key in self._manifest.files:  # the rest comes all at once
                await self._refresh_files()
            old = self._manifest.files.get(key)
            if old is not None:
                self._manifest.record(key, (checksum, old[0]), max(len(value), self._manifest.sizes[key]))
                await self._put_manifest()
                await self._put(key, value)
                self._manifest.record(key, (checksum,), len(value))  # written down with the next change
            elif self._held is not None:
                await self._put(key, value)
                self._held[key] = (checksum, len(value))
            else:
                await self._put(key, value)
                self._manifest.record(key, (checksum,), len(value))
                await self._put_manifest()

    async def _refresh_files(self) -> None:
        """Take over what another process recorded meanwhile, such as a summary."""
        raw = await self._fetch(MANIFEST)
        fresh = None if raw is None else Manifest.parsed(raw.to_bytes(), self._where)
        if fresh is None:
            raise StoreError(f"{self._where}: the store is cut short: {MANIFEST} has no checksums")
        settled = {key: one for key, one in self._manifest.files.items() if len(one) == 1}
        for key, accepted in fresh.files.items():
            if len(accepted) > 1 and settled.get(key, (0,))[0] in accepted:
                fresh.files[key] = settled[key]
        self._manifest = fresh

    async def _put_manifest(self) -> None:
        await self._put(MANIFEST, default_buffer_prototype().buffer.from_bytes(self._manifest.packed()))

    async def _put(self, key: str, value: Buffer) -> None:
        try:
            await self._inner.set(key, value)
            if self._durable and isinstance(self._inner, LocalStore):
                await asyncio.to_thread(sync_to_disk, self._inner.root / key)
        except (OSError, StoreError):
            raise
        except Exception as err:  # clouds raise unrelated types
            raise StoreError(f"{self._where}: {key} cannot be written: {one_line(err)}") from err

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write a file unless it is there."""
        if not await self.exists(key):
            await self.set(key, value)

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        await asyncio.gather(*(self.set(key, value) for key, value in values))

    async def flush(self, *, settle: bool = False) -> None:
        """Make what was written count for readers; ``settle`` forgets the checksums of replaced files.

        Raises: OSError, StoreError.
        """
        if self._building or not self._rows:
            return
        async with self._guard():
            table = self._tables[self._rank]
            if settle:
                table[:, 0], table[:, 1] = self._actual, 0
            if not np.array_equal(table, self._written):
                now = table.copy()
                await self._put(table_key(self._rank), default_buffer_prototype().buffer.from_bytes(pack_table(now)))
                self._written = now
            if settle and self._rank == 0:
                held = {key: accepted[:1] for key, accepted in self._manifest.files.items()}
                await self._refresh_files()
                if any(len(accepted) > 1 for accepted in self._manifest.files.values()):
                    self._manifest.files |= {key: one for key, one in held.items() if key in self._manifest.files}
                    await self._put_manifest()

    async def delete(self, key: str) -> None:
        """Forget a file, then delete it."""
        self._check_writable()
        await self._forget([key])
        await self._inner.delete(key)

    async def delete_dir(self, prefix: str) -> None:
        """Forget all files below a prefix, then delete them."""
        self._check_writable()
        await self._forget(list(self._keys(prefix)))
        await self._inner.delete_dir(prefix)

    async def _forget(self, keys: Collection[str]) -> None:
        rows = [self._rows[key] for key in keys if key in self._rows]
        if rows:
            self._tables[self._rank][rows] = 0
            self._actual[rows] = 0
            await self.flush()
        for key in keys:
            (self._held or {}).pop(key, None)
        if self._building:
            for key in keys:
                self._manifest.files.pop(key, None)
            return
        if not any(key in self._manifest.files for key in keys):
            return
        async with self._guard():
            await self._refresh_files()
            gone = [self._manifest.files.pop(key) for key in keys if key in self._manifest.files]
            if gone:
                await self._put_manifest()

    async def seal(self, grids: Mapping[str, tuple[int, ...]], chunk_bytes: Mapping[str, int], ranks: int) -> None:
        """Finish a new store: the tables, the list of files, and the root's metadata last."""
        if self._root is None:
            raise StoreError(f"{self._where}: the new store has no root")
        manifest = self._manifest
        manifest.grids, manifest.chunk_bytes, manifest.ranks = dict(grids), dict(chunk_bytes), ranks
        rows = manifest.rows()
        tables = np.stack([empty_table(len(rows))] * ranks)
        for key in [key for key in manifest.files if key in rows]:
            tables[manifest.owner(key), rows[key], 0] = manifest.files.pop(key)[0]
        for rank in range(ranks):
            await self._put(table_key(rank), default_buffer_prototype().buffer.from_bytes(pack_table(tables[rank])))
        manifest.record("zarr.json", (chunk_checksum(self._root.as_numpy_array()),), len(self._root))
        await self._put_manifest()
        await self._put("zarr.json", self._root)
        self._building, self._root = False, None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Files that are new within this context count all at once, when it ends without an error."""
        self._held = {}
        try:
            yield
            fresh = self._held
        finally:
            self._held = None
        from zarr.core.sync import sync

        sync(self._release(fresh))

    async def _release(self, fresh: Mapping[str, tuple[int, int]]) -> None:
        async with self._guard():
            await self._refresh_files()
            for key, (checksum, size) in fresh.items():
                self._manifest.record(key, (checksum,), size)
            await self._put_manifest()

    async def verify(self) -> int:
        """Read every recorded file; how many there are.

        Raises: StoreError for the first that is damaged or missing.
        """
        keys = list(self._keys(""))
        for start in range(0, len(keys), _TOGETHER):
            await asyncio.gather(*(self.get(key) for key in keys[start : start + _TOGETHER]))
        return len(keys)

    def with_read_only(self, read_only: bool = False) -> "CheckedStore":
        """Return the same store for reading, or for writing."""
        twin = type(self)(self._inner, self._where, rank=self._rank, durable=self._durable, read_only=read_only)
        twin._manifest, twin._rows = self._manifest, self._rows
        twin._tables, twin._written, twin._actual = self._tables.copy(), self._written.copy(), self._actual.copy()
        return twin

    async def _open(self) -> None:
        await self._inner._ensure_open()
        self._is_open = True

    def close(self) -> None:
        """Close what lies beneath."""
        self._inner.close()
        self._is_open = False

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_lock": None}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CheckedStore) and self._inner == other._inner

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return self._where


def grid_of(array: Any) -> tuple[int, ...]:
    """Count an array's stored files along each dimension: shards where it has them, else chunks."""
    sizes = getattr(array, "shards", None) or array.chunks
    return tuple(-(-n // k) for n, k in zip(array.shape, sizes, strict=True))
