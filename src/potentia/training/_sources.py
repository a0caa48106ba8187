"""Images to train on: arrays, pictures, mosaics, folders and brain volumes, named in the table [data] of a recipe."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potentia._validate import shape_text
from potentia.io import read_array, read_image
from potentia.training._parts import Part, Size, centred, held_out, split, with_channels
from potentia.training._table import Table
from potentia.training._volumes import NILEARN, VOLUMES, read_volumes

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
LAYOUTS = ("NHW", "NHWC", "NCHW")
CHANNELS_LAST = (1, 3, 4)


@dataclass(frozen=True, eq=False)
class Images:
    """Training and validation images, and one sentence a source on what was read and what was held out.

    Shapes: train (N, C, H, W), validation (M, C, H, W), float32 or complex64; M may be 0.
    """

    train: Tensor
    validation: Tensor
    notes: tuple[str, ...]


def read_images(spec: Mapping[str, Any], base: Path) -> Images:
    """Read the sources that the table [data] of a recipe names, in its order; paths are relative to ``base``.

    Keys of [data]: ``size`` [H, W], ``complex``, and ``source``, a list of tables. Keys of every source: ``path`` and
    ``validation``, which holds out a contiguous range and never a random choice: one of ``fraction`` (from the end),
    ``last``, ``first``, ``indices``. By the kind of the path:

    - arrays (.npy, .npz): ``range`` is mapped to [-1, 1]; ``layout``; ``channels``; ``background`` fills up to size.
    - a picture, or a folder of them by name, in [-1, 1]: ``channels``; ``fit`` is "crop" or "resize"; a single one may
      be a ``mosaic`` of ``columns`` tiles a row, ``count`` in all, each of size ``tile``.
    - NIfTI, a folder of it, or nilearn:mni152_t1: see :func:`potentia.training._volumes.read_volumes`.

    Raises: FileNotFoundError; ValueError for unknown keys, values that will not do, files that cannot be read, sources
        of unlike shapes, or nothing to train on; ImportError if a reader's package is missing.
    """
    table = Table("[data]", spec, ("size", "complex", "source"))
    size = table.wholes("size", None, least=1)
    make_complex = table.flag("complex", False)
    sources = table.required("source")
    if not isinstance(sources, list | tuple) or not sources:
        raise table.fault("source", "a list of one table or more")
    parts = [_read(f"[data] source {i}", source, Path(base), size) for i, source in enumerate(sources)]
    _check_alike(parts, make_complex)
    train, validation = (torch.cat([getattr(part, name) for part in parts]) for name in ("train", "validation"))
    if not len(train):
        raise ValueError("[data]: every image is held out for validation, expected some to train on")
    if make_complex:
        train, validation = train.to(torch.complex64), validation.to(torch.complex64)
    return Images(train, validation, tuple(part.note for part in parts))


def _check_alike(parts: list[Part], complex_allowed: bool) -> None:
    for part in parts:
        if part.shape != parts[0].shape:
            raise ValueError(
                f"[data]: {part.name} has images of shape {shape_text(part.shape)}, {parts[0].name} of "
                f"{shape_text(parts[0].shape)}, expected the same of both: set size or channels"
            )
        if part.train.is_complex() and not complex_allowed:
            raise ValueError(f"[data]: {part.name} holds complex numbers, expected complex = true with it")


def _read(where: str, source: object, base: Path, size: Size | None) -> Part:
    if not isinstance(source, Mapping) or not isinstance(source.get("path"), str) or not source["path"]:
        raise ValueError(f"{where}: got {source!r}, expected a table with a path")
    name: str = source["path"]
    where = f"{where} ({name})"
    if name.startswith(NILEARN):
        return read_volumes(where, source, [name], size)
    path = base / Path(name).expanduser()
    kind = path.name.lower()
    if not path.exists() and ".npz:" not in kind:
        raise FileNotFoundError(f"{path}: there is no such file or folder, expected by {where}")
    if path.is_dir():
        return _read_folder(where, source, path, size)
    if kind.endswith(VOLUMES):
        return read_volumes(where, source, [path], size)
    if kind.endswith(PICTURES):
        return _read_picture(where, source, path, size)
    return _read_arrays(where, source, path, size)


def _read_arrays(where: str, source: Mapping[str, Any], path: Path, size: Size | None) -> Part:
    table = Table(where, source, ("path", "range", "layout", "channels", "background", "validation"))
    limits = table.numbers("range", None)
    background = table.number("background", 0.0 if limits is None else -1.0)
    channels = _channels(table)
    layout = table.choice("layout", None, LAYOUTS)
    array = _channels_first(where, read_array(path), layout)
    images = torch.from_numpy(np.ascontiguousarray(array))
    images = images.to(torch.complex64 if images.is_complex() else torch.float32)
    if limits is not None:
        images = _to_unit_range(table, images, *limits)
    images = centred(with_channels(where, images, channels), size, background)
    held = held_out(f"{where} validation", source.get("validation"), len(images), "images")
    return split(source["path"], images, held, "indices")


def _channels_first(where: str, array: np.ndarray[Any, Any], layout: str | None) -> np.ndarray[Any, Any]:
    """Bring an array into (N, C, H, W)."""
    shape = array.shape
    if layout is None and array.ndim == 3:
        layout = "NHW"
    if layout is None and array.ndim == 4:
        first, last = (n in CHANNELS_LAST for n in (shape[1], shape[3]))
        if not last or first:
            raise ValueError(
                f"{where}: array has shape {shape_text(shape)}, expected layout = 'NHWC' or 'NCHW' with it"
            )
        layout = "NHWC"
    if layout is None or array.ndim != len(layout):
        expected = layout or "(N, H, W), (N, H, W, C) or (N, C, H, W)"
        raise ValueError(f"{where}: array has shape {shape_text(shape)}, expected {expected}")
    if layout == "NHW":
        return array[:, None]
    return np.moveaxis(array, -1, 1) if layout == "NHWC" else array


def _to_unit_range(table: Table, images: Tensor, low: float, high: float) -> Tensor:
    """Map [low, high] to [-1, 1].

    Raises: ValueError if the range is empty, the images are complex or lie outside of it.
    """
    if low == high:
        raise table.fault("range", "two different numbers")
    if images.is_complex():
        raise table.fault("range", "none with complex numbers")
    least, most = float(images.min()), float(images.max())
    slack = 1e-6 * (high - low)
    if least < low - slack or most > high + slack:
        raise ValueError(f"{table.where}: values run from {least:g} to {most:g}, expected range {low:g} to {high:g}")
    return (images - low) / (high - low) * 2 - 1


def _channels(table: Table) -> int | None:
    channels = table.whole("channels", None)
    if channels not in (None, 1, 3):
        raise table.fault("channels", "1 or 3")
    return channels


def _read_picture(where: str, source: Mapping[str, Any], path: Path, size: Size | None) -> Part:
    """Read one picture, whole or cut into tiles."""
    table = Table(where, source, ("path", "channels", "fit", "mosaic", "validation"))
    channels, fit = _channels(table), table.choice("fit", "crop", ("crop", "resize"))
    image = with_channels(where, torch.from_numpy(read_image(path)), channels)
    images = _tiles(f"{where} mosaic", source["mosaic"], image) if "mosaic" in table else image[None]
    images = _fitted(where, images, size, fit)
    held = held_out(f"{where} validation", source.get("validation"), len(images), "images")
    return split(source["path"], images, held, "indices")


def _tiles(where: str, spec: object, image: Tensor) -> Tensor:
    """Cut a picture (C, H, W) into tiles, row by row."""
    table = Table(where, spec, ("tile", "columns", "count"))
    table.required("tile")
    height, width = table.wholes("tile", (1, 1), least=1)
    channels, *whole = image.shape
    if whole[0] % height or whole[1] % width:
        raise ValueError(f"{where}: picture has size {shape_text(tuple(whole))}, expected whole tiles {height}x{width}")
    rows, columns = whole[0] // height, whole[1] // width
    if table.whole("columns", columns, least=1) != columns:
        raise table.fault("columns", f"{columns}, that of {whole[1]} pixels a row")
    count = table.whole("count", rows * columns, least=1)
    if count > rows * columns:
        raise table.fault("count", f"at most {rows * columns}, that of {rows} rows")
    tiles = image.reshape(channels, rows, height, columns, width).permute(1, 3, 0, 2, 4)
    return tiles.reshape(-1, channels, height, width)[:count].clone()


def _fitted(where: str, images: Tensor, size: Size | None, fit: str) -> Tensor:
    """Crop pictures (N, C, H, W) to size, after a resize that keeps the proportions if ``fit`` says so.

    Raises: ValueError for a picture smaller than that.
    """
    if size is None:
        return images
    have = tuple(images.shape[-2:])
    if fit == "resize":
        factor = max(m / n for n, m in zip(have, size, strict=True))
        scaled = [max(m, round(n * factor)) for n, m in zip(have, size, strict=True)]
        if scaled != list(have):
            images = torch.nn.functional.interpolate(images, size=scaled, mode="bilinear", antialias=True)
    elif have[0] < size[0] or have[1] < size[1]:
        raise ValueError(f"{where}: picture has size {shape_text(have)}, expected at least {shape_text(size)}")
    return centred(images, size, 0.0)


def _read_folder(where: str, source: Mapping[str, Any], folder: Path, size: Size | None) -> Part:
    """Read a folder of pictures or of volumes, sorted by name; files of other kinds are counted in the note."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    pictures = [p for p in files if p.name.lower().endswith(PICTURES)]
    volumes = [p for p in files if p.name.lower().endswith(VOLUMES)]
    if bool(pictures) == bool(volumes):
        raise ValueError(
            f"{where}: folder holds {len(pictures)} pictures and {len(volumes)} volumes, expected one kind or the other"
        )
    if volumes:
        return read_volumes(where, source, volumes, size, folder=True)
    table = Table(where, source, ("path", "channels", "fit", "validation"))
    channels, fit = _channels(table), table.choice("fit", "crop", ("crop", "resize"))
    held = held_out(f"{where} validation", source.get("validation"), len(pictures), "pictures")
    read: list[Tensor] = []
    for path in pictures:
        image = with_channels(str(path), torch.from_numpy(read_image(path)), channels)
        read.append(_fitted(str(path), image[None], size, fit)[0])
        if read[-1].shape != read[0].shape:
            got, expected = (shape_text(tuple(r.shape)) for r in (read[-1], read[0]))
            raise ValueError(f"{path}: picture has shape {got}, expected {expected} of the first: set size or channels")
    part = split(source["path"], torch.stack(read), held, "files")
    others = len(files) - len(pictures)
    note = part.note + (f" {others} files of other kinds were passed over." if others else "")
    return Part(part.name, part.train, part.validation, note)
