"""HDF5 files of others: what is read of them lies in the file itself, and is no larger than the file can hold."""

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

# Deflate holds at most 1,032 bytes in one.
MOST_INFLATED = 1100
ALWAYS_FINE = 2**20


@contextmanager
def reading(path: str | Path, what: str) -> Iterator[None]:
    """Turn whatever a library raises over a damaged file into a ValueError; errors of our own name the path first."""
    try:
        yield
    except ImportError:
        raise
    except Exception as err:  # HDF5, ISMRMRD and DICOM each raise a dozen unrelated types
        if isinstance(err, ValueError) and str(err).startswith(f"{path}: "):
            raise
        raise ValueError(f"{path}: cannot be read as {what}: {type(err).__name__}: {err}") from err


@contextmanager
def open_hdf5(path: str | Path) -> Iterator[Any]:
    """Open an HDF5 file to read.

    Raises: ImportError without h5py; ValueError for a file that is none, and for what goes wrong within.
    """
    try:
        import h5py
    except ImportError as err:
        raise ImportError(f"{path}: h5py is missing, expected it for HDF5: pip install 'potentia[mri]'") from err
    with reading(path, "HDF5"), h5py.File(path, "r") as file:
        yield file


def member(path: str | Path, group: Any, name: str) -> Any:
    """Return a group or dataset that a group itself holds, or None.

    Raises: ValueError for a link, which may lead to another file, and a dataset whose data lie elsewhere or that
        claims more than its stored bytes can hold.
    """
    import h5py

    link = group.get(name, getlink=True)
    if link is None:
        return None
    if type(link) is not h5py.HardLink:
        raise ValueError(f"{path}: {name!r} is a link, expected the data themselves")
    found = group[name]
    if isinstance(found, h5py.Dataset):
        if found.is_virtual or found.external:
            raise ValueError(f"{path}: {name!r} has its data in other files, expected them in this one")
        claimed, stored = found.size * found.dtype.itemsize, found.id.get_storage_size()
        if claimed > MOST_INFLATED * stored + ALWAYS_FINE:
            raise ValueError(f"{path}: {name!r} claims {claimed} bytes, which the {stored} that are stored cannot hold")
    return found


def check_entries(path: str | Path, dataset: Any, fields: Mapping[str | None, int]) -> None:
    """Check entries of variable length before HDF5 reads them: damaged ones make it crash, wait forever or take memory.

    On disk such an entry is its length (4 bytes), the address of a collection (8) and a number within it (4).
    ``fields`` has the bytes of one element by the name of the field, None for entries that are no part of a record.

    Raises: ValueError for entries longer than what the collection holds under their number, collections that are not
        well-formed, and data that are filtered or have other sizes of addresses, which cannot be looked into.
    Source: HDF5 file format specification 3.0, III.E (global heap).
    """
    plist = dataset.file.id.get_create_plist()
    if dataset.id.get_create_plist().get_nfilters() or plist.get_sizes() != (8, 8):
        raise ValueError(f"{path}: {dataset.name} has filtered entries of variable length, expected plain ones")
    step = 16 if None in fields else dataset.dtype.itemsize
    base, heaps = plist.get_userblock(), dict[int, dict[int, int]]()
    with Path(path).open("rb") as file:
        for offset, size in _stored(dataset):
            file.seek(offset)
            records = file.read(size)
            for start in range(0, len(records) // step * step, step):
                for field, element in fields.items():
                    at = start + (0 if field is None else dataset.dtype.fields[field][1])
                    length, address, number = struct.unpack_from("<IQI", records, at)
                    if not length:
                        continue
                    if address not in heaps:
                        heaps[address] = _collection(path, file, base + address)
                    if length * element > heaps[address].get(number, -1):
                        raise ValueError(f"{path}: {dataset.name} claims an entry of length {length} that is not there")


def _stored(dataset: Any) -> Iterator[tuple[int, int]]:
    """Where the records lie in the file, as offsets and sizes."""
    if dataset.chunks is None:
        offset = dataset.id.get_offset()
        if offset is not None:
            yield offset, dataset.id.get_storage_size()
        return
    for at in range(dataset.id.get_num_chunks()):
        chunk = dataset.id.get_chunk_info(at)
        yield chunk.byte_offset, chunk.size


def _collection(path: str | Path, file: BinaryIO, offset: int) -> dict[int, int]:
    """Sizes of the objects of a collection of the global heap, by their numbers."""
    file.seek(min(offset, 2**62))
    head = file.read(16)
    size = struct.unpack("<8xQ", head)[0] if head[:5] == b"GCOL\1" and len(head) == 16 else 0
    content = file.read(max(0, min(size, 2**40) - 16))
    if len(content) != size - 16:
        raise ValueError(f"{path}: is damaged, has no collection of entries at byte {offset}")
    found: dict[int, int] = {}
    at = 0
    while at + 16 <= len(content):
        number, length = struct.unpack_from("<HxxxxxxQ", content, at)
        taken = 16 + -(-length // 8) * 8 if number else length  # number 0 is what is free, and ends the collection
        left = len(content) - at
        if not 16 <= taken <= left or (number == 0 and taken != left):
            raise ValueError(f"{path}: is damaged, has an entry of {length} bytes at byte {offset + at}")
        if not number:
            break
        found[number] = length
        at += taken
    return found


def attribute(group: Any, name: str) -> str | None:
    """Return an attribute that is one number, as text, or None; texts are of variable length and cannot be checked."""
    if name not in group.attrs:
        return None
    kept = group.attrs.get_id(name)
    return str(group.attrs[name]) if kept.shape == () and kept.dtype.kind in "biuf" else None


def text(path: str | Path, dataset: Any) -> bytes | str:
    """Read a text that stands alone in a dataset.

    Raises: ValueError for anything else.
    """
    import h5py

    kind = h5py.check_string_dtype(getattr(dataset, "dtype", np.dtype("f4")))
    if kind is None or dataset.size != 1:
        raise ValueError(f"{path}: header is a {type(dataset).__name__} of another kind, expected one text")
    if kind.length is None:
        check_entries(path, dataset, {None: 1})
    content = np.asarray(dataset[()]).item()
    return cast(bytes | str, content)
