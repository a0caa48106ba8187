"""Arrays of BART: a text of dimensions (.hdr) beside complex numbers in column-major order (.cfl)."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# BART's dimensions of ours: (slices, coils, ky, kx) are its 13, 3, 1 and 0.
DIMS = 16
AXES = (13, 3, 1, 0)


def write_cfl(path: str | Path, array: NDArray[Any]) -> None:
    """Write k-space, coil maps or images as BART's pair of files, PATH.cfl and PATH.hdr.

    Shapes: array (coils, y, x) or (slices, coils, y, x); the last axis becomes BART's readout, dimension 0, the one
        before it phase encoding, 1, coils 3 and slices 13. Written as complex64.
    Raises: ValueError for another shape or entries that are no numbers.
    """
    if array.ndim not in (3, 4) or array.size == 0 or array.dtype.kind not in "biufc":
        raise ValueError(
            f"write_cfl: array has shape {array.shape} and dtype {array.dtype}, expected numbers (coils, y, x) or "
            f"(slices, coils, y, x)"
        )
    four = array if array.ndim == 4 else array[None]
    dims = [1] * DIMS
    for axis, size in zip(AXES, four.shape, strict=True):
        dims[axis] = size
    data, header = _pair(path)
    np.ascontiguousarray(four, dtype="<c8").tofile(data)  # column-major order of the reversed axes
    header.write_text("# Dimensions\n" + " ".join(map(str, dims)) + "\n", encoding="ascii")


def read_cfl(path: str | Path) -> NDArray[np.complex64]:
    """Read what BART wrote, as (slices, coils, y, x): BART's dimensions 13, 3, 1 and 0.

    Raises: FileNotFoundError; ValueError for a damaged pair of files, entries that are not finite, or further
        dimensions than these.
    """
    data, header = _pair(path)
    for file in (data, header):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: there is no such file, expected {data.name} and {header.name}")
    dims = _dims(header)
    extra = [f"{dim}: {size}" for dim, size in enumerate(dims) if size != 1 and dim not in AXES]
    if extra:
        raise ValueError(f"{header}: has dimensions {', '.join(extra)}, expected none but 0, 1, 3 and 13")
    entries, held = math.prod(dims), data.stat().st_size
    if held != 8 * entries:
        raise ValueError(f"{data}: has {held} bytes, expected {8 * entries} for the dimensions in {header.name}")
    array = np.fromfile(data, dtype="<c8").astype(np.complex64, copy=False)
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise ValueError(f"{data}: has {bad} NaN or infinite of {entries} entries, expected finite data")
    return array.reshape([dims[axis] for axis in AXES])


def _pair(path: str | Path) -> tuple[Path, Path]:
    base = str(path)
    base = base[:-4] if base.endswith((".cfl", ".hdr")) else base
    return Path(base + ".cfl"), Path(base + ".hdr")


def _dims(header: Path) -> list[int]:
    with header.open("rb") as file:
        lines = file.read(2**16).split(b"\n")
    marks = [at for at, line in enumerate(lines) if line.strip() == b"# Dimensions"]
    words = lines[marks[0] + 1].split() if marks and marks[0] + 1 < len(lines) else []
    if not 1 <= len(words) <= DIMS or not all(word.isdigit() and len(word) < 10 and int(word) > 0 for word in words):
        raise ValueError(f"{header}: is no header of BART, expected '# Dimensions' and a line of up to {DIMS} sizes")
    return [int(word) for word in words] + [1] * (DIMS - len(words))
