"""Stores in icechunk repositories: every commit of a block is a commit of the repository."""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import WrapperStore

from potentia.io._checksums import one_line
from potentia.io._errors import StoreError

if TYPE_CHECKING:
    from icechunk import Repository, Session

_BRANCH = "main"
_DOTS, _SLASHES = b'"separator": "."', b'"separator": "/"'


class IcechunkFiles(WrapperStore[Store]):
    """The main branch of a repository: what was written counts for others from the next ``commit`` on.

    Icechunk takes chunks by zarr's default names alone, ``c/0/1`` where our stores have ``c.0.1``: they are renamed on
    the way, and so is what the arrays' metadata say of them.
    """

    def __init__(self, session: "Session", repository: "Repository") -> None:
        super().__init__(session.store)
        self._session = session
        self._repository = repository

    def with_read_only(self, read_only: bool = False) -> "IcechunkFiles":
        """Return the same branch for reading, or for writing."""
        return self if read_only == self.read_only else _begin(self._repository, writable=not read_only)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read one file."""
        value = await super().get(_with_slashes(key), prototype, byte_range)
        if value is None or not key.endswith("zarr.json"):
            return value
        return prototype.buffer.from_bytes(value.to_bytes().replace(_SLASHES, _DOTS))

    async def set(self, key: str, value: Buffer) -> None:
        """Write one file."""
        if key.endswith("zarr.json"):
            raw = value.to_bytes().replace(_DOTS, _SLASHES)
            value = default_buffer_prototype().buffer.from_bytes(raw)
        await super().set(_with_slashes(key), value)

    async def exists(self, key: str) -> bool:
        """Whether a file is there."""
        return await super().exists(_with_slashes(key))

    async def delete(self, key: str) -> None:
        """Delete one file, if it is there."""
        await super().delete(_with_slashes(key))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read several parts."""
        return [await self.get(key, prototype, part) for key, part in key_ranges]

    def commit(self, message: str) -> None:
        """Make everything written so far one commit, and go on from there.

        Raises: StoreError if someone else committed meanwhile, or the repository cannot be written.
        """
        import icechunk

        try:
            if not self._session.has_uncommitted_changes:
                return
            self._session.commit(message)
        except (icechunk.IcechunkError, icechunk.ConflictError) as err:
            raise StoreError(f"the repository does not take the commit {message!r}: {one_line(err)}") from err
        self._session = self._repository.writable_session(_BRANCH)
        self._store = self._session.store


def _with_slashes(key: str) -> str:
    folder, _, name = key.rpartition("/")
    return f"{folder}/{name.replace('.', '/')}" if name.startswith("c.") else key


def open_repository(url: str, *, writable: bool, create: bool = False) -> IcechunkFiles:
    """Open ``icechunk://FOLDER`` or ``icechunk+s3://BUCKET/PREFIX``; None is created unless asked for.

    Raises: StoreError if there is none, or icechunk is not installed.
    """
    try:
        import icechunk
    except ImportError as err:
        raise StoreError(f"{url}: icechunk is not installed; pip install 'potentia[icechunk]'") from err
    # A folder is refused to several committers by whoever opens it; the library would warn on every opening.
    with contextlib.suppress(AttributeError):
        icechunk.set_logs_filter("error")
    try:
        storage = _storage(icechunk, url)
        if not icechunk.Repository.exists(storage):
            if not create:
                raise StoreError(f"{url}: there is no such store, expected an icechunk repository")  # noqa: TRY301
            return _begin(icechunk.Repository.create(storage), writable=True)
        return _begin(icechunk.Repository.open(storage), writable=writable)
    except StoreError:
        raise
    except (icechunk.IcechunkError, ValueError, OSError) as err:
        raise StoreError(f"{url}: cannot be opened as an icechunk repository: {one_line(err)}") from err


def _begin(repository: "Repository", *, writable: bool) -> IcechunkFiles:
    session = repository.writable_session(_BRANCH) if writable else repository.readonly_session(_BRANCH)
    return IcechunkFiles(session, repository)


def _storage(icechunk: Any, url: str) -> Any:
    scheme, _, rest = url.partition("://")
    if scheme == "icechunk":
        return icechunk.local_filesystem_storage(str(Path(rest).expanduser().resolve()))
    bucket, _, prefix = rest.partition("/")
    if scheme == "icechunk+s3":
        import os

        endpoint = os.environ.get("AWS_ENDPOINT_URL")
        return icechunk.s3_storage(
            bucket=bucket,
            prefix=prefix,
            from_env=True,
            region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
            endpoint_url=endpoint,
            allow_http=bool(endpoint and endpoint.startswith("http://")),
            force_path_style=endpoint is not None,
        )
    if scheme == "icechunk+gs":
        return icechunk.gcs_storage(bucket=bucket, prefix=prefix, from_env=True)
    raise StoreError(f"{url}: unknown kind of icechunk store, expected icechunk://, icechunk+s3:// or icechunk+gs://")
