"""Stores behind URLs, and in zip archives."""

import os
import zipfile
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potentia.io._checksums import one_line
from potentia.io._errors import StoreError

if TYPE_CHECKING:
    from zarr.abc.store import Store

SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "http", "https")
READ_ONLY = ("http", "https")
_RETRIES: Any = {"max_retries": 5, "retry_timeout": timedelta(seconds=30)}


def object_store(url: str, *, writable: bool) -> "Store":
    """Open a bucket's folder, or a web server's, through obstore.

    Credentials and endpoints are taken from the environment: ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``,
    ``AWS_REGION``, ``AWS_ENDPOINT_URL``; ``GOOGLE_SERVICE_ACCOUNT``; ``AZURE_STORAGE_ACCOUNT_NAME`` and so on. Servers
    that do not answer are given up after half a minute.

    Raises: StoreError for an unknown scheme, a URL that cannot be parsed, or if obstore is not installed.
    """
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES:
        raise StoreError(f"{url}: unknown scheme {scheme!r}, expected a folder or one of {', '.join(SCHEMES)}")
    if writable and scheme in READ_ONLY:
        raise StoreError(f"{url}: web servers can only be read from, expected a folder or an object store to write to")
    try:
        import obstore
        from zarr.storage import ObjectStore
    except ImportError as err:
        raise StoreError(f"{url}: obstore is not installed; pip install 'potentia[cloud]'") from err
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "") if scheme.startswith("s3") else url
    client: Any = {"connect_timeout": timedelta(seconds=10), "timeout": timedelta(minutes=5)}
    if endpoint.startswith("http://"):
        client["allow_http"] = True
    try:
        opened = obstore.store.from_url(url, client_options=client, retry_config=_RETRIES)
    except Exception as err:  # a dozen types of obstore's own
        raise StoreError(f"{url}: cannot be opened: {one_line(err)}") from err
    return ObjectStore(opened, read_only=not writable)


def zip_store(path: Path) -> "Store":
    """Open an archive for reading.

    Raises: StoreError if there is none, or it is damaged.
    """
    from zarr.storage import ZipStore

    if not path.is_file():  # a pipe would hang
        raise StoreError(f"{path}: there is no such store, expected a zip archive written by potentia")
    store = ZipStore(path, mode="r")
    try:
        store._sync_open()
    except Exception as err:  # zipfile raises half a dozen types for damaged archives
        raise StoreError(f"{path}: cannot be opened as a zip archive: {one_line(err)}") from err
    return store


def pack(folder: Path, archive: Path) -> None:
    """Put all files of a folder into a new archive, uncompressed.

    Raises: OSError.
    """
    with zipfile.ZipFile(archive, "x", zipfile.ZIP_STORED, allowZip64=True) as packed:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            # One date for all: the same ensemble makes the same archive.
            entry = zipfile.ZipInfo(file.relative_to(folder).as_posix())
            entry.external_attr = 0o644 << 16
            with file.open("rb") as source, packed.open(entry, "w", force_zip64=True) as target:
                while part := source.read(2**24):
                    target.write(part)
