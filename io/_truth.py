"""How an ensemble compares with a known truth: coverage of its intervals, and error beside its std."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from potentia._validate import count

if TYPE_CHECKING:
    import xarray as xr

    from potentia.io._ensemble import Ensemble

DEFAULT_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True, eq=False, repr=False)
class Calibration:
    """How far predicted uncertainty is borne out by a known truth, over pixels.

    - ``coverage`` (level): share of the pixels whose central interval holds the truth.
    - ``reliability``: over ``bin``, of pixels sorted by their std into bins of equal size: ``predicted``, the root mean
      square of the error that the posterior expects of its mean; ``rmse``, that of the error made; ``count``.
    - ``error_over_std``: root mean square of error / predicted error. 1 if calibrated, more if overconfident.

    The truth is one draw: pixels of one image err together, so that single numbers scatter more than ``count``
    independent ones would.
    """

    coverage: "xr.DataArray"
    reliability: "xr.Dataset"
    error_over_std: float

    def __repr__(self) -> str:
        lines = [f"Calibration: error / std {self.error_over_std:.3f}", f"{'level':>12}{'coverage':>12}"]
        lines += [
            f"{level:>12.2f}{held:>12.3f}"
            for level, held in zip(self.coverage["level"].values, self.coverage.values, strict=True)
        ]
        lines.append(f"{'predicted':>12}{'rmse':>12}{'pixels':>12}")
        table = self.reliability
        rows = zip(table["predicted"].values, table["rmse"].values, table["count"].values, strict=True)
        lines += [f"{p:>12.4g}{e:>12.4g}{n:>12}" for p, e, n in rows]
        return "\n".join(lines)


def calibrate(
    ensemble: "Ensemble",
    truth: NDArray[Any],
    chosen: NDArray[np.bool_],
    levels: NDArray[np.float64],
    num_bins: int,
    bounds: NDArray[np.float64],
) -> Calibration:
    """See ``Ensemble.calibration``.

    Shapes: truth and chosen (channel, y, x); bounds (2, level, channel, y, x), lower and upper.
    """
    import xarray as xr

    count("calibration", "num_bins", num_bins)
    inside = (bounds[0] <= truth) & (truth <= bounds[1])
    held = inside[:, chosen].mean(axis=1)
    samples = ensemble.num_chains * ensemble.num_draws
    # The mean of finitely many draws errs too.
    predicted = ensemble.std().values[chosen] * np.sqrt(1 + 1 / samples)
    error = ensemble.mean().values[chosen] - truth[chosen]
    if num_bins > len(error):
        raise ValueError(f"calibration: num_bins is {num_bins}, expected at most {len(error)}, the pixels looked at")
    order = np.argsort(predicted, kind="stable")
    bins = np.array_split(order, num_bins)
    table = xr.Dataset(
        {
            "predicted": ("bin", np.array([_rms(predicted[b]) for b in bins])),
            "rmse": ("bin", np.array([_rms(error[b]) for b in bins])),
            "count": ("bin", np.array([len(b) for b in bins])),
        }
    )
    told = (predicted > 0) | (error != 0)  # a pixel that is known and right says nothing
    with np.errstate(divide="ignore"):
        ratio = _rms(error[told] / predicted[told]) if told.any() else np.nan
    coverage = xr.DataArray(held, dims="level", coords={"level": levels}, name="coverage")
    return Calibration(coverage, table, float(ratio))


def checked_levels(levels: Any) -> NDArray[np.float64]:
    """Levels of central intervals, each between 0 and 1.

    Raises: ValueError.
    """
    array = np.atleast_1d(np.asarray(levels, dtype=np.float64))
    if array.ndim != 1 or array.size == 0 or not bool(((array > 0) & (array < 1)).all()):
        raise ValueError(f"calibration: levels are {levels}, expected numbers between 0 and 1")
    return array


def _rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.square(values).mean()))
