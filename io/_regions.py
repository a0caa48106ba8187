"""Statistics of regions of the image, and how uncertain they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from potentia._validate import open_unit, positive, real_number
from potentia.io._tiles import Draws

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True, eq=False, repr=False)
class RegionStatistics:
    """Mean intensity of regions, and the volume above a threshold within them.

    - ``table``: each of ``mean`` and ``volume`` (region, statistic), with the statistics ``estimate`` (mean over the
      draws), ``std``, and the bounds ``lower`` and ``upper`` of the central interval at ``level``.
    - ``draws``: the same of every draw, (region, chain, draw), for histograms and diagnostics.

    ``volume`` is there only where a threshold was given.
    """

    table: "xr.Dataset"
    draws: "xr.Dataset"
    level: float

    def __repr__(self) -> str:
        heads = "".join(f"{name:>12}" for name in self.table["statistic"].values)
        lines = [f"{f'{self.level:.0%} intervals':<24}{heads}"]
        for name, of in self.table.items():
            for region, row in zip(of["region"].values, of.values, strict=True):
                lines.append(f"{f'{name} of {region}':<24}" + "".join(f"{v:>12.4g}" for v in row))
        return "\n".join(lines)


def region_statistics(
    draws: Draws, masks: Any, threshold: float | None, level: float, pixel_size: float
) -> RegionStatistics:
    """Pass over the images once; see ``Ensemble.regions``."""
    import xarray as xr

    named = _masks(draws, masks)
    open_unit("regions", "level", level)
    limit = None if threshold is None else draws.dtype.type(real_number("regions", "threshold", threshold))
    size = positive("regions", "pixel_size", pixel_size)
    values = {"mean": np.empty((len(named), *draws.shape[:2]))}
    if limit is not None:
        values["volume"] = np.empty_like(values["mean"])
    for chain, span, stored in draws.blocks():
        images = draws.magnitudes(stored)
        for k, mask in enumerate(named.values()):
            inside = images[:, mask]
            values["mean"][k, chain, span] = inside.mean(axis=1, dtype=np.float64)
            if limit is not None:
                held = np.count_nonzero(inside > limit, axis=1) * size
                values["volume"][k, chain, span] = np.where(np.isnan(inside).any(axis=1), np.nan, held)
    coords = {"region": list(named)}
    each = xr.Dataset({name: (("region", "chain", "draw"), of) for name, of in values.items()}, coords=coords)
    table = xr.Dataset(
        {name: (("region", "statistic"), _table(of.reshape(len(named), -1), level)) for name, of in values.items()},
        coords={**coords, "statistic": ["estimate", "std", "lower", "upper"]},
    )
    return RegionStatistics(table, each, level)


def _table(samples: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """(region, sample) -> (region, 4): estimate, std, and the bounds that ``Ensemble.interval`` would give."""
    tails = np.array([(1 - level) / 2, 1 - (1 - level) / 2])
    spread = samples.std(axis=1, ddof=1) if samples.shape[1] > 1 else np.full(len(samples), np.nan)
    low, high = np.quantile(samples, tails, axis=1, method="weibull")
    return np.stack([samples.mean(axis=1), spread, low, high], axis=1)


def _masks(draws: Draws, masks: Any) -> dict[str, NDArray[np.bool_]]:
    named = dict(masks) if isinstance(masks, Mapping) else {"region": masks}
    if not named:
        raise ValueError("regions: there are no masks, expected at least one")
    return {
        str(name): checked_mask("regions", str(name), mask, draws.layout.event_shape) for name, mask in named.items()
    }


def checked_mask(where: str, name: str, mask: Any, event_shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Return a mask as booleans of the image's shape (C, H, W).

    Raises: TypeError for other numbers than 0, 1, True and False; ValueError for another shape or an empty mask.
    """
    array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if array.dtype != np.bool_ and not (array.dtype.kind in "iuf" and bool(np.isin(array, (0, 1)).all())):
        raise TypeError(f"{where}: mask {name} has dtype {array.dtype}, expected booleans, or zeros and ones")
    if array.ndim not in (2, 3) or not _broadcasts(array.shape, event_shape):
        raise ValueError(
            f"{where}: mask {name} has shape {array.shape}, expected {event_shape[1:]} or {event_shape}, as the images"
        )
    full: NDArray[np.bool_] = np.broadcast_to(array.astype(bool), event_shape)
    if not full.any():
        raise ValueError(f"{where}: mask {name} leaves no pixel, expected at least one")
    return full


def _broadcasts(shape: tuple[int, ...], event_shape: tuple[int, int, int]) -> bool:
    return shape[-2:] == event_shape[1:] and (len(shape) == 2 or shape[0] in (1, event_shape[0]))
