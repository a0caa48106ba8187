"""Ensembles of posterior samples: what a store holds, and what is read off it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from potentia.io._analysis import pooled_quantiles
from potentia.io._errors import StoreError
from potentia.io._integrity import check_whole, committed_draws, stored_sums
from potentia.io._location import Location, StorePath
from potentia.io._moments import Moments
from potentia.io._schema import IMAGE_DIMS, find_array, find_group, read_layout
from potentia.io._summary import as_stored, write_summary

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

IMAGE_COORDS = IMAGE_DIMS[2:]


class Ensemble:
    """Posterior samples of images, with the statistics, data and attributes stored beside them.

    Made by ``sample`` and ``open_ensemble``. Pixels are read from the store when they are asked for.

    Shapes: images (chain, draw, channel, y, x); a complex image has channels ``re`` and ``im``.
    """

    def __init__(self, location: Location) -> None:
        self._location = location
        root = location.open()
        self._layout, self._record = read_layout(root, location)
        self._image = find_array(root, "posterior/image", location)
        self._committed = committed_draws(root, self._layout, location)
        if self._committed == 0:
            raise StoreError(
                f"{location}: no draw has been committed yet, expected at least one block of {self._layout.block}"
            )
        check_whole(root, self._layout, location, self._committed)
        self._tree: xr.DataTree | None = None

    @property
    def path(self) -> str:
        """Where the store lies; ``<memory>`` for one in memory."""
        return str(self._location)

    @property
    def num_chains(self) -> int:
        """Chains."""
        return self._layout.num_chains

    @property
    def num_draws(self) -> int:
        """Committed draws of each chain."""
        return self._committed

    @property
    def is_complex(self) -> bool:
        """Whether images are complex, stored as channels ``re`` and ``im``."""
        return self._layout.is_complex

    @property
    def event_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images as they were sampled."""
        return self._layout.event_shape

    @property
    def attrs(self) -> dict[str, Any]:
        """What the store keeps of the run: the posterior's printed tree, sampler, seed, versions."""
        return dict(self._record)

    @property
    def tree(self) -> "xr.DataTree":
        """Everything, as an xarray DataTree cut to the committed draws."""
        if self._tree is None:
            import xarray as xr

            try:
                opened = xr.open_datatree(self._location.target, engine="zarr", consolidated=False, chunks=None)
            except Exception as err:  # xarray and zarr raise unrelated types for damaged metadata
                raise StoreError(f"{self._location}: cannot be opened as a DataTree: {err}") from err
            self._tree = opened.isel(draw=slice(0, self._committed))
        return self._tree

    @property
    def image(self) -> "xr.DataArray":
        """The images, (chain, draw, channel, y, x), read when looked at."""
        return self.tree["posterior"].to_dataset()["image"]

    def samples(self) -> Tensor:
        """The images as a tensor (chain, draw, C, H, W), complex if they are."""
        stored = np.asarray(self._image[:, : self._committed])
        return self._as_sampled(torch.from_numpy(stored.astype(self._layout.dtype.newbyteorder("="), copy=False)))

    def _as_sampled(self, stored: Tensor) -> Tensor:
        if not self.is_complex:
            return stored
        channels, height, width = self.event_shape
        parts = stored.reshape(*stored.shape[:-3], channels, 2, height, width)
        return torch.complex(parts[..., 0, :, :].contiguous(), parts[..., 1, :, :].contiguous())

    def _moments(self) -> Moments:
        sums = stored_sums(self._location.open(), self._layout, self._location, self._committed)
        if sums is not None:
            return Moments(self._committed, np.asarray(sums[0][:]), np.asarray(sums[1][:]))
        moments = Moments.empty(self.num_chains, self._layout.stored_shape)
        for start in range(0, self._committed, self._layout.block):
            stop = min(start + self._layout.block, self._committed)
            moments.update(np.asarray(self._image[:, start:stop]))
        return moments

    def mean(self) -> "xr.DataArray":
        """Mean over chains and draws, the MMSE estimate: (channel, y, x)."""
        return self._labelled("mean", self._moments().pooled(0)[0])

    def std(self, ddof: int = 1) -> "xr.DataArray":
        """Standard deviation over chains and draws together: (channel, y, x).

        Raises: ValueError if there are no more than ``ddof`` samples.
        """
        total = self.num_chains * self._committed
        if total <= ddof:
            raise ValueError(f"std: the ensemble has {total} samples, expected more than {ddof}")
        return self._labelled("std", self._moments().pooled(ddof)[1])

    def quantile(self, q: float | Sequence[float]) -> "xr.DataArray":
        """Quantiles over chains and draws together, by linear interpolation.

        Shapes: (channel, y, x) for a number, with a leading ``quantile`` dimension for several.
        Raises: ValueError for a q outside [0, 1].
        """
        levels = np.atleast_1d(np.asarray(q, dtype=np.float64))
        if not bool(((levels >= 0) & (levels <= 1)).all()):
            raise ValueError(f"quantile: q is {q}, expected numbers between 0 and 1")
        values = pooled_quantiles(self._image, self._committed, levels)
        if np.ndim(q) == 0:
            return self._labelled("quantile", values[0])
        return self._labelled("quantile", values, quantile=levels)

    def interval(self, level: float = 0.9) -> "xr.DataArray":
        """Central interval of each pixel's marginal: (bound, channel, y, x) with bounds ``lower`` and ``upper``.

        The bounds are the order statistics that hold ``level`` of the predictive mass of one more draw, k / (n + 1)
        below the k-th of n samples: quantiles interpolated between the least and the greatest sample hold less. n
        samples hold (n - 1) / (n + 1) at the most, so that a level above that gives their range.

        Raises: ValueError for a level outside (0, 1).
        """
        if not 0 < level < 1:
            raise ValueError(f"interval: level is {level}, expected a number between 0 and 1")
        tail = (1 - level) / 2
        values = pooled_quantiles(self._image, self._committed, np.array([tail, 1 - tail]), "weibull")
        return self._labelled("interval", values, bound=["lower", "upper"])

    def coverage(self, truth: Any, level: float = 0.9, mask: Any = None) -> float:
        """Share of pixels whose interval holds the truth; real and imaginary parts count one each.

        Shapes: truth (C, H, W), real or complex as the ensemble, or (channel, y, x) as it is stored; mask broadcasts
            against (C, H, W), True where pixels count.
        Raises: ValueError for another shape, another field, NaN, or a mask that leaves nothing.
        """
        target = self._truth(truth)
        bounds = self.interval(level).values
        inside = (bounds[0] <= target) & (target <= bounds[1])
        if mask is None:
            return float(inside.mean())
        chosen = np.broadcast_to(np.asarray(mask, dtype=bool), self.event_shape)
        counted = inside[np.repeat(chosen, 2, axis=0) if self.is_complex else chosen]
        if counted.size == 0:
            raise ValueError("coverage: mask leaves no pixel to count")
        return float(counted.mean())

    def _truth(self, truth: Any) -> "np.ndarray[Any, Any]":
        array = truth.detach().cpu().numpy() if isinstance(truth, Tensor) else np.asarray(truth)
        if np.iscomplexobj(array) and self.is_complex:
            array = as_stored(torch.from_numpy(np.ascontiguousarray(array)))
        if array.shape != self._layout.stored_shape or np.iscomplexobj(array):
            kind = "complex" if self.is_complex else "real"
            raise ValueError(
                f"coverage: truth has shape {array.shape} and dtype {array.dtype}, expected {kind} {self.event_shape}"
            )
        if not bool(np.isfinite(array).all()):
            raise ValueError("coverage: truth has NaN or infinite entries, expected finite ones")
        return array

    def _labelled(self, name: str, values: "np.ndarray[Any, Any]", **leading: Any) -> "xr.DataArray":
        import xarray as xr

        coords = {**leading, "channel": self._layout.channel_names}
        return xr.DataArray(values, dims=(*leading, *IMAGE_COORDS), coords=coords, name=name)

    def set_summary(self, name: str, image: Tensor) -> None:
        """Keep an image, such as ``"map"``, in the store: (C, H, W).

        Raises: ValueError for another shape or field.
        """
        write_summary(self._location, self._layout, name, image)
        self._tree = None

    def summary(self) -> dict[str, Any]:
        """Numbers and words that describe the ensemble, for printing."""
        lp = np.asarray(self.tree["sample_stats"]["lp"].values)
        n_grad = np.asarray(self.tree["sample_stats"]["n_grad"].values)
        total = self.num_chains * self._committed
        told = {
            "posterior": self._record.get("posterior"),
            "sampler": self._record.get("sampler"),
            "seed": self._record.get("seed"),
            "samples": f"{self.num_chains} chains of {self._committed} draws (of {self._layout.num_draws})",
            "image": f"{self.event_shape} {'complex' if self.is_complex else 'real'} {self._layout.dtype.name}",
            "gradient evaluations a chain": int(n_grad.max()),
            "log posterior, mean": float(lp.mean()) if bool(np.isfinite(lp).all()) else "no value (score-only prior)",
            "mean of the pixels' std": float(self.std().values.mean()) if total > 1 else math.nan,
            "sampling time": f"{float(self.tree.attrs.get('sampling_time', 0.0)):.1f} s",
        }
        truth = self._stored_constant("truth")
        if truth is not None and truth.shape == self._layout.stored_shape:
            told["90 % interval holds the truth"] = f"{self.coverage(truth, 0.9):.3f} of the pixels"
        return {key: value for key, value in told.items() if value is not None}

    def _stored_constant(self, name: str) -> "np.ndarray[Any, Any] | None":
        """A constant as images are stored, (channel, y, x), or None."""
        root = self._location.open()
        if name not in find_group(root, "constant_data", self._location):
            return None
        array = np.asarray(find_array(root, f"constant_data/{name}", self._location)[...])
        # complex arrays are kept with a leading (re, im); images interleave the two within their channels
        return np.moveaxis(array, 0, 1).reshape(-1, *array.shape[2:]) if array.ndim == 4 else array

    def plot(
        self, path: str | Path | None = None, *, truth: Any = None, data: Any = None, num_samples: int = 3
    ) -> "Figure":
        """Panels of truth, data, mean, std, error and samples; magnitudes of complex images.

        ``truth`` and ``data`` (C, H, W) are taken from the store's ``truth`` and ``zero_filled`` where not given;
        panels without anything to show are left out. ``path`` writes a picture as well.
        """
        from potentia.io._plot import plot_ensemble

        figure = plot_ensemble(self, truth, data, num_samples)
        if path is not None:
            figure.savefig(path, dpi=120)
        return figure

    def save(self, path: StorePath, *, overwrite: bool = False) -> "Ensemble":
        """Write the ensemble, such as one in memory, to a store.

        Raises: StoreExistsError, StoreError.
        """
        from potentia.io._copy import copy_store

        return Ensemble(copy_store(self._location, path, overwrite=overwrite))

    def __repr__(self) -> str:
        kind = "complex" if self.is_complex else "real"
        return (
            f"Ensemble({self.num_chains} chains, {self._committed} draws, {kind} {self.event_shape}, {self._location})"
        )


def open_ensemble(path: StorePath) -> Ensemble:
    """Open a store of posterior samples.

    Raises: StoreError if there is none, it is of another version, nothing was committed yet, or committed draws are
        missing or cut short.
    """
    return Ensemble(Location.of(path))
