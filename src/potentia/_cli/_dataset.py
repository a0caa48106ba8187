"""``potentia sample`` on a folder, or on a volume slice by slice: an ensemble an item, over a Dask cluster."""

import os
import re
import sys
import warnings
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from potentia._cli._options import SampleOptions
from potentia._cli._report import print_rows
from potentia._cli._sample import build_reconstruction
from potentia._validate import count
from potentia.inference._dataset import FailedItemsWarning, Reconstruction, sample_dataset
from potentia.io._collection import Collection
from potentia.io._read_scan import BART, HDF5, count_slices
from potentia.io._readers import ARRAYS, PICTURES, VOLUMES

EXIT_SOME_FAILED = 1
_IMAGES = (*PICTURES, *ARRAYS, *VOLUMES)
_SCANS = (*HDF5, BART[0], *ARRAYS)
_KINDS = (*_IMAGES, *_SCANS)
# Where things lie and how they are written is no part of what is computed; sample_dataset keeps the numbers itself.
_NOT_KEPT = (
    "data",
    "store",
    "overwrite",
    "resume",
    "plot",
    "page",
    "device",
    "index",
    "durability",
    "chains",
    "draws",
    "seed",
)


@dataclass(frozen=True)
class DatasetOptions:
    """Options of ``potentia sample`` that make sense for data sets alone."""

    scheduler: str | None = None
    workers: int | None = None
    slices: str | None = None
    array: str | None = None
    retries: int = 2


@dataclass(frozen=True)
class DataItem:
    """One file, or one slice of a volume or of a scan."""

    path: str
    index: int | None = None


@dataclass(frozen=True)
class BuildItem:
    """Makes the posterior of an item, on a worker: the options of the command, with the item's file put in."""

    options: SampleOptions
    array: str | None = None

    def __call__(self, item: DataItem) -> Reconstruction:
        """Read and compose.

        Raises: FileNotFoundError, ValueError as ``potentia sample`` does.
        """
        data = item.path
        if self.array is not None and data.lower().endswith(".npz"):
            data = f"{data}:{self.array}"
        own: dict[str, Any] = {
            name: _filled(getattr(self.options, name), item.path) for name in ("mask", "coil_maps", "truth")
        }
        return build_reconstruction(replace(self.options, data=data, index=item.index, **own))


def is_dataset(options: SampleOptions, dataset: DatasetOptions) -> bool:
    """Whether the options ask for a data set: a folder, or anything that only data sets have."""
    return Path(options.data).is_dir() or dataset != DatasetOptions()


def run_dataset(options: SampleOptions, dataset: DatasetOptions) -> int:
    """Sample every item, say what failed and why, and return the exit code: 0, or 1 if items failed.

    Raises: ValueError, FileNotFoundError, StoreError before anything is written.
    """
    items = list_items(options, dataset)
    build = BuildItem(_anchored(options), dataset.array)
    _try_one(build, items)
    record = {name: value for name, value in asdict(options).items() if name not in _NOT_KEPT}
    print_rows(f"{len(items)} items of {options.data}, each {options.chains} chains of {options.draws} draws", [])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FailedItemsWarning)  # the table says it
            collection = sample_dataset(
                items,
                build,
                root=options.store,
                num_chains=options.chains,
                num_draws=options.draws,
                seed=options.seed,
                resume=options.resume,
                overwrite=options.overwrite,
                durability=options.durability,
                client=dataset.scheduler,
                workers=dataset.workers,
                retries=dataset.retries,
                device=options.device,
                dtype=options.dtype,
                record={**record, "array": dataset.array},
            )
    except KeyboardInterrupt:
        sys.stderr.write(f"potentia: {options.store}: finished items and committed draws are kept; --resume goes on\n")
        raise
    return _report(collection, list(items))


def _report(collection: Collection, names: list[str]) -> int:
    states = collection.states
    failed = [states[name] for name in names if states[name].state == "failed"]
    done = sum(states[name].state == "complete" for name in names)
    print_rows("", [("written", f"{collection.path}: {done} of {len(names)} items complete")])
    if failed:
        print_rows(f"{len(failed)} of {len(names)} items failed", [(item.name, item.message) for item in failed])
    return EXIT_SOME_FAILED if failed else 0


def list_items(options: SampleOptions, dataset: DatasetOptions) -> dict[str, DataItem]:
    """The items of a folder, or of one file, by name.

    Pictures and arrays are named by their file, ``scan_7.png``; slices of volumes by axis and index as well,
    ``head.nii.gz.z012``, those of scans of several by index, ``scan.h5.z012``. Files go by name, with numbers in them
    by value. Hidden files, those of other kinds, and those that other options name are passed over.

    Raises: FileNotFoundError; ValueError if there is no item, or for options that do not go with data sets.
    """
    for name in ("plot", "page", "index"):
        if getattr(options, name) is not None:
            instead = ": use --slices" if name == "index" else ": expected one image"
            raise ValueError(f"--{'report' if name == 'page' else name}: does not go with a data set{instead}")
    if options.slice_axis not in (0, 1, 2):
        raise ValueError(f"--slice-axis: is {options.slice_axis}, expected 0, 1 or 2")
    if dataset.workers is not None:
        count("sample", "--workers", dataset.workers)
    is_scan = options.task == "mri"
    if is_scan and dataset.array is not None:
        raise ValueError("--array: does not go with --task mri, which takes kspace of each npz file")
    chosen = _slice_of(dataset.slices)
    folder = Path(options.data).expanduser()
    if not folder.exists():
        raise FileNotFoundError(f"{options.data}: there is no such file or folder")
    files = _files(folder, options) if folder.is_dir() else [folder.resolve()]
    items: dict[str, DataItem] = {}
    for file in files:
        items |= _slices_of_scan(file, chosen) if is_scan else _items_of(file, options.slice_axis, chosen)
    if not items:
        kinds = ", ".join(_SCANS if is_scan else _IMAGES)
        raise ValueError(f"{options.data}: has no items, expected files of {kinds}, and slices within --slices")
    return items


def _files(folder: Path, options: SampleOptions) -> list[Path]:
    others = [options.mask, options.coil_maps, options.truth, *options.prior_data]
    # What is read beside an item is no item, unless it lies in the item's own file.
    patterns = [_file_of(_pattern(other)) for other in others if other is not None and "{path}" not in other]
    found = [p for p in folder.resolve().iterdir() if p.is_file() and not p.name.startswith(".")]
    found = [p for p in found if p.name.lower().endswith(_SCANS if options.task == "mri" else _IMAGES)]
    return sorted((p for p in found if not any(fnmatch(str(p), pattern) for pattern in patterns)), key=_by_number)


def _pattern(text: str) -> str:
    return re.sub(r"[\[\]?*]", "?", os.path.abspath(text)).replace("{stem}", "*")


def _by_number(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    parts = re.split(r"(\d+)", path.name)
    return [(1, int(p), "") if p.isdecimal() else (0, 0, p) for p in parts], path.name


def _items_of(file: Path, axis: int, chosen: slice) -> dict[str, DataItem]:
    if not file.name.lower().endswith(VOLUMES):
        return {file.name: DataItem(str(file))}
    shape = _shape(file)
    if shape is None or len(shape) != 3:
        return {file.name: DataItem(str(file))}  # a picture, or something that fails by itself when it is read
    return {f"{file.name}.{'xyz'[axis]}{k:03d}": DataItem(str(file), k) for k in range(shape[axis])[chosen]}


def _slices_of_scan(file: Path, chosen: slice) -> dict[str, DataItem]:
    slices = count_slices(file)
    if slices == 1:
        return {file.name: DataItem(str(file))}
    return {f"{file.name}.z{k:03d}": DataItem(str(file), k) for k in range(slices)[chosen]}


def _shape(file: Path) -> tuple[int, ...] | None:
    """Shape of a volume by its header; None if it cannot be read."""
    try:
        import nibabel
    except ImportError as err:
        raise ImportError(f"{file}: nibabel is missing, expected it for NIfTI: pip install 'potentia[images]'") from err
    try:
        return tuple(nibabel.load(file).shape)  # type: ignore[attr-defined]
    except Exception:  # nibabel raises a dozen unrelated types for damaged files
        return None


def _slice_of(text: str | None) -> slice:
    """``10:20``, ``10:``, ``:20``, ``::2``, or ``12`` alone."""
    if text is None:
        return slice(None)
    found = re.fullmatch(r"(\d*)(?::(\d*)(?::([1-9]\d*))?)?", text.strip())
    if found is None or not text.strip():
        raise ValueError(f"--slices: is {text!r}, expected START:STOP, START:STOP:STEP or one index")
    numbers = [int(part) if part else None for part in found.groups()]
    if ":" not in text:
        first = numbers[0] or 0
        return slice(first, first + 1)
    return slice(*numbers)


def _try_one(build: BuildItem, items: dict[str, DataItem]) -> None:
    """Build items until one can be: options that are wrong for all are told before anything is written."""
    first: Exception | None = None
    for item in items.values():
        try:
            build(item)
        except Exception as err:  # what is wrong with one item alone is for its worker to tell
            first = first or err
        else:
            return
    if first is not None:
        raise first


def _stem(path: str) -> str:
    name = Path(path).name
    for kind in sorted(_KINDS, key=len, reverse=True):
        if name.lower().endswith(kind):
            return name[: -len(kind)]
    return name


def _filled(text: str | None, path: str) -> str | None:
    return None if text is None else text.replace("{path}", path).replace("{stem}", _stem(path))


def _file_of(text: str) -> str:
    """The file that ``FILE.npz:KEY`` names."""
    return re.sub(r"(?<=\.npz):.*", "", text)


def _anchored(options: SampleOptions) -> SampleOptions:
    """The options with absolute paths: a worker may stand in another folder.

    Raises: FileNotFoundError for a file that all items would miss.
    """
    found: dict[str, Any] = {}
    for name in ("mask", "coil_maps", "truth"):
        path = getattr(options, name)
        if path is None or "{path}" in path:
            found[name] = path
            continue
        if "{stem}" not in path and not Path(_file_of(path)).exists():
            raise FileNotFoundError(f"{path}: there is no such file")
        found[name] = os.path.abspath(path)
    prior = " + ".join(_anchored_prior(item) for item in options.prior.split("+"))
    return replace(options, prior=prior, prior_data=tuple(map(os.path.abspath, options.prior_data)), **found)


def _anchored_prior(item: str) -> str:
    weight, star, name = item.strip().rpartition("*")
    is_file = name.strip().endswith(".safetensors") and "://" not in name
    return weight + star + (os.path.abspath(name.strip()) if is_file else name)
