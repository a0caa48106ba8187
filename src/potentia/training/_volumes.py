"""Slices of NIfTI volumes as images of one orientation, scale and pixel size."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potentia._validate import shape_text
from potentia.training._parts import Part, Size, centred, held_out
from potentia.training._table import Table

VOLUMES = (".nii", ".nii.gz")
NILEARN = "nilearn:"
TEMPLATES = ("mni152_t1",)
KEYS = (
    "path", "slice_axis", "slices", "percentile", "clip", "background", "spacing", "orient", "min_content",
    "validation",
)  # fmt: skip
OF_SLICES = {"volume", "slices", "gap"}  # the keys of validation that do not choose volumes of a folder
LEAST_SIGNAL = 0.01  # of a volume's largest departure from the background: what counts as content


@dataclass(frozen=True)
class _Settings:
    axis: int
    percentile: float | None
    clip: float | None
    background: float
    spacing: float | None
    upright: bool
    min_content: float

    @classmethod
    def of(cls, table: Table) -> "_Settings":
        axis = table.whole("slice_axis", 2)
        if axis > 2:
            raise table.fault("slice_axis", "0, 1 or 2")
        for key in ("percentile", "clip", "spacing"):
            if table.number(key, 1.0, least=0, most=100 if key == "percentile" else math.inf) == 0:
                raise table.fault(key, "a number above 0")
        return cls(
            axis,
            table.number("percentile", None),
            table.number("clip", None),
            table.number("background", 0.0),
            table.number("spacing", None),
            table.choice("orient", "upright", ("upright", "stored")) == "upright",
            table.number("min_content", 0.02, least=0, most=1),
        )


def read_volumes(
    where: str, source: Mapping[str, Any], paths: Sequence[Path | str], size: Size | None, *, folder: bool = False
) -> Part:
    """Read the slices of one volume, or of every volume of a folder.

    Keys: ``slice_axis`` (2) and ``slices`` [a, b), all by default, count along the axes of ``orient``: "upright", the
    default, turns the volume to right, anterior, superior, and its slices so that anterior, or superior, is up and
    the subject's right is at the right hand; "stored" keeps axes and slices as they lie in the file. Values are
    divided by ``percentile`` of those voxels of the volume that differ from ``background`` (0), then clipped from
    above at ``clip``. ``spacing`` in mm resamples each slice to square pixels: by averages where they become coarser,
    by linear interpolation where finer. ``size`` crops or fills up with the background. Slices of which no more than
    ``min_content`` (0.02) of the pixels hold signal, above 1 % of the volume's peak, are dropped.

    ``validation`` is {volume = true}; or {slices = [a, b], gap = g}, which also drops g slices on either side from
    training; or, for a folder, a choice of whole volumes by name: fraction, first, last, indices.

    Raises: FileNotFoundError; ValueError for values that will not do, files that cannot be read, or no slices left;
        ImportError without nibabel, or nilearn for its template.
    """
    table = Table(where, source, KEYS)
    settings = _Settings.of(table)
    spec = source.get("validation")
    by_slice = spec is None or (isinstance(spec, Mapping) and bool(OF_SLICES & spec.keys()))
    where = f"{where} validation"
    if not by_slice and not folder:
        raise ValueError(
            f"{where}: got {spec!r}, expected {{volume = true}} or {{slices = [a, b], gap = g}}: the slices of one "
            "volume are too alike for a share of them to be held out"
        )
    whole = range(0) if by_slice else held_out(where, spec, len(paths), "volumes")
    cuts = []
    for number, path in enumerate(paths):
        values, zooms = _load(path, settings.upright)
        length = values.shape[settings.axis]
        used = table.interval("slices", (0, length), length)
        start, stop = used if number in whole else (0, 0)
        rule = _Rule.of(where, spec, used) if by_slice else _Rule(start, stop, 0)
        cuts.append(_cut(str(path), _slices(str(path), values, zooms, used, settings, size), used, rule, settings))
    return _gather(source["path"], cuts)


@dataclass(frozen=True, eq=False)
class _Cut:
    """The slices of one volume, and how many were dropped as empty or beside those held out."""

    train: Tensor
    validation: Tensor
    empty: int
    beside: int


def _cut(name: str, slices: tuple[Tensor, Tensor], used: tuple[int, int], rule: "_Rule", settings: _Settings) -> _Cut:
    images, content = slices
    full = content > settings.min_content
    if not full.any():
        raise ValueError(
            f"{name}: slices {used[0]} to {used[1] - 1} hold signal in {float(content.max()):.2g} of their pixels at "
            f"most, expected one above min_content, {settings.min_content:g}"
        )
    index = torch.arange(*used)
    held, near = rule.held(index), rule.near(index)
    train, validation = images[full & ~held & ~near], images[full & held]
    return _Cut(train, validation, int((~full).sum()), int((full & near).sum()))


def _gather(name: str, cuts: Sequence[_Cut]) -> Part:
    sizes = sorted({tuple(cut.train.shape[1:]) for cut in cuts})
    if len(sizes) > 1:
        found = ", ".join(shape_text(size) for size in sizes)
        raise ValueError(f"{name}: volumes give slices of shapes {found}, expected one: set size in [data]")
    train, validation = torch.cat([cut.train for cut in cuts]), torch.cat([cut.validation for cut in cuts])
    whole = sum(not len(cut.train) for cut in cuts)
    note = f"{name}: {len(cuts)} volume{'s' * (len(cuts) > 1)}, {len(train)} slices of shape {shape_text(sizes[0])}"
    note += f" to train on, {len(validation)} held out for validation" + (f" ({whole} whole)" if whole else "")
    beside, empty = sum(cut.beside for cut in cuts), sum(cut.empty for cut in cuts)
    note += f", {beside} beside those left out" if beside else ""
    note += f", {empty} almost empty ones dropped" if empty else ""
    return Part(name, train, validation, note + ".")


@dataclass(frozen=True)
class _Rule:
    """Which slices of a volume are held out, [start, stop), and how many beside them are not used."""

    start: int
    stop: int
    gap: int

    @classmethod
    def of(cls, where: str, spec: object, used: tuple[int, int]) -> "_Rule":
        if spec is None:
            return cls(0, 0, 0)
        table = Table(where, spec, ("volume", "slices", "gap"))
        gap = table.whole("gap", 0)
        if "volume" in table:
            if table.flag("volume", False) is not True or len(table.values) > 1:
                raise ValueError(f"{where}: got {dict(table.values)}, expected volume = true alone")
            return cls(*used, 0)
        table.required("slices")
        start, stop = table.interval("slices", used, used[1])
        if start < used[0]:
            raise table.fault("slices", f"a range within the slices used, [{used[0]}, {used[1]})")
        return cls(start, stop, gap)

    def held(self, index: Tensor) -> Tensor:
        return (index >= self.start) & (index < self.stop)

    def near(self, index: Tensor) -> Tensor:
        if self.start == self.stop:
            return torch.zeros_like(index, dtype=torch.bool)
        return (index >= self.start - self.gap) & (index < self.stop + self.gap) & ~self.held(index)


def _slices(
    name: str,
    values: NDArray[np.float32],
    zooms: tuple[float, ...],
    used: tuple[int, int],
    settings: _Settings,
    size: Size | None,
) -> tuple[Tensor, Tensor]:
    """Cut the slices of a volume as images (N, 1, H, W), with the share of each that holds signal (N,)."""
    volume, background = torch.from_numpy(values), settings.background
    if settings.percentile is not None:
        signal = np.abs(values[values != background])
        scale = float(np.percentile(signal, settings.percentile)) if signal.size else 0.0
        if scale == 0:
            raise ValueError(f"{name}: the {settings.percentile:g}th percentile is 0, expected above zero")
        volume, background = volume / scale, background / scale
    threshold = LEAST_SIGNAL * float((volume - background).abs().max())
    if settings.clip is not None:
        volume = volume.clamp(max=settings.clip)
    images = volume.movedim(settings.axis, 0)[used[0] : used[1], None]
    pixel = [zoom for axis, zoom in enumerate(zooms) if axis != settings.axis]
    if settings.upright:
        images, pixel = images.transpose(-1, -2).flip(-2), pixel[::-1]
    if settings.spacing is not None:
        images = _resampled(images - background, pixel, settings.spacing) + background
    images = centred(images, size, background).contiguous()
    return images, ((images - background).abs() > threshold).float().mean(dim=(1, 2, 3))


def _resampled(images: Tensor, pixel: Sequence[float], spacing: float) -> Tensor:
    """Resample to square pixels; the first edge stays where it is, and beyond the last lies zero."""
    rows, columns = (_weights(n, width / spacing).to(images) for n, width in zip(images.shape[-2:], pixel, strict=True))
    return rows @ images @ columns.T


def _weights(length: int, ratio: float) -> Tensor:
    """Give the matrix that resamples a line whose pixels are ``ratio`` of the wanted ones: (wanted, length)."""
    number = max(1, math.ceil(length * ratio - 1e-4))
    wanted, have = torch.arange(number, dtype=torch.float64)[:, None], torch.arange(length, dtype=torch.float64)
    if ratio <= 1:  # the share of each wanted pixel that each pixel covers
        low, high = torch.maximum(wanted, have * ratio), torch.minimum(wanted + 1, (have + 1) * ratio)
        return (high - low).clamp(min=0)
    centres = (wanted + 0.5) / ratio - 0.5
    return (1 - (centres - have).abs()).clamp(min=0)


def _load(path: Path | str, upright: bool) -> tuple[NDArray[np.float32], tuple[float, ...]]:
    """Read a volume and its voxel size in mm."""
    try:
        import nibabel
    except ImportError as err:
        raise ImportError(f"{path}: nibabel is missing, expected it for NIfTI: pip install 'potentia[images]'") from err
    if isinstance(path, Path) and not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        image: Any = _template(path) if isinstance(path, str) else nibabel.load(path)
        if upright and len(image.shape) == 3:
            image = nibabel.as_closest_canonical(image)  # type: ignore[no-untyped-call]
        values = np.asarray(image.dataobj)
        zooms = tuple(float(z) for z in image.header.get_zooms())
    except (ImportError, _TemplateError):
        raise
    except Exception as err:  # nibabel raises a dozen unrelated types for damaged files
        raise ValueError(f"{path}: cannot be read as NIfTI: {err}") from err
    if values.ndim != 3 or values.dtype.kind not in "biuf":
        raise ValueError(f"{path}: volume has shape {values.shape} of {values.dtype}, expected three of real numbers")
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise ValueError(f"{path}: has {bad} NaN or infinite of {values.size} voxels, expected finite data")
    return np.ascontiguousarray(values, dtype=np.float32), zooms


class _TemplateError(ValueError):
    """There is no template of this name."""


def _template(name: str) -> Any:
    """Load a volume that nilearn carries along; nothing is fetched."""
    if name.removeprefix(NILEARN) not in TEMPLATES:
        raise _TemplateError(f"{name}: there is no such template, expected {NILEARN}{TEMPLATES[0]}")
    try:
        from nilearn.datasets import load_mni152_template
    except ImportError as err:
        raise ImportError(f"{name}: nilearn is missing, expected it: pip install 'potentia[demo]'") from err
    return load_mni152_template(resolution=1)
