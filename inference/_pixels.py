"""Diagnostics of every pixel of an ensemble, a tile at a time."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potentia.inference._diagnostics import LEAST_DRAWS, Pixels, by_pixel

if TYPE_CHECKING:
    import xarray as xr

    from potentia.io import Ensemble

_STATISTICS: dict[str, Callable[[Pixels], Tensor]] = {
    "rhat": lambda p: p.rhat,
    "ess_bulk": lambda p: p.ess_bulk,
    "ess_tail": lambda p: p.ess_tail,
    "ess_mean": lambda p: p.ess_mean,
    "ess_std": lambda p: p.squared_deviations.ess_mean,
    "mcse_mean": lambda p: p.mcse_mean,
    "mcse_std": lambda p: p.mcse_std,
}
_DEFAULT = ("rhat", "ess_bulk", "ess_tail", "mcse_mean", "mcse_std")


def pixel_diagnostics(ensemble: "Ensemble", statistics: str | Sequence[str] = _DEFAULT) -> "xr.Dataset":
    """R-hat, effective sample sizes and Monte-Carlo errors of every pixel.

    They are what ``rhat``, ``ess`` and ``mcse`` give for the draws: ``rhat``; ``ess_bulk``, ``ess_tail``, ``ess_mean``,
    ``ess_std``; ``mcse_mean`` and ``mcse_std``, in the unit of the images. Where ``summary`` chooses a statistic for
    the chains at hand and judges it, these are plain: NaN for fewer than four draws a chain, and R-hat for one chain.

    The draws are read in tiles, as many at a time as torch uses threads, so that memory stays bounded.

    Shapes: each (channel, y, x), float64.
    Raises: TypeError for what is no ensemble; ValueError for no statistic or an unknown one.
    """
    import xarray as xr

    from potentia.io import Ensemble

    if not isinstance(ensemble, Ensemble):
        raise TypeError(f"pixel_diagnostics: got a {type(ensemble).__name__}, expected an ensemble, as sample returns")
    names = [statistics] if isinstance(statistics, str) else list(dict.fromkeys(statistics))
    unknown = [name for name in names if name not in _STATISTICS]
    if unknown or not names:
        raise ValueError(f"pixel_diagnostics: statistics are {names}, expected some of {', '.join(_STATISTICS)}")
    defined = [
        name for name in names if ensemble.num_draws >= LEAST_DRAWS and (name != "rhat" or ensemble.num_chains > 1)
    ]
    values = np.full((len(names), *ensemble.image.shape[2:]), np.nan)
    places = [names.index(name) for name in defined]

    def of_tile(draws: NDArray[Any]) -> NDArray[np.float64]:
        found = by_pixel(torch.from_numpy(draws), lambda p: torch.stack([_STATISTICS[name](p) for name in defined]))
        return found.numpy()

    if defined:
        for rows, columns, found in ensemble.map_tiles(of_tile):
            values[places, :, rows, columns] = found
    coords = {"channel": ensemble.image.coords["channel"].values}
    return xr.Dataset({name: (("channel", "y", "x"), values[k]) for k, name in enumerate(names)}, coords=coords)
