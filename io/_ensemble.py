"""Ensembles of posterior samples: what a store holds, and what is read off it."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from potentia._validate import open_unit
from potentia.io._analysis import event_probability, exceedance, pooled_quantiles
from potentia.io._errors import StoreError
from potentia.io._integrity import check_whole, committed_draws, stored_sums
from potentia.io._location import Location, StorePath
from potentia.io._moments import Moments
from potentia.io._rechunk import drop
from potentia.io._rechunk import rechunk as write_by_pixel
from potentia.io._schema import BY_PIXEL, IMAGE_DIMS, find_array, find_group, read_layout
from potentia.io._summary import as_stored, write_summary
from potentia.io._tiles import Draws, Tile
from potentia.io._truth import DEFAULT_LEVELS

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from potentia.io._modes import Modes
    from potentia.io._regions import RegionStatistics
    from potentia.io._truth import Calibration

IMAGE_COORDS = IMAGE_DIMS[2:]


class Ensemble:
    """Posterior samples of images, with the statistics, data and attributes stored beside them.

    Made by ``sample`` and ``open_ensemble``. Pixels are read from the store when they are asked for.

    Shapes: images (chain, draw, channel, y, x); a complex image has channels ``re`` and ``im``.
    Raises: StoreError for a store that no draw has been committed to, or that is damaged or cut short.
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
        self._draws = Draws(location, root, self._image, self._layout, self._committed)
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
        """Everything, as an xarray DataTree cut to the committed draws.

        Raises: StoreError for metadata that xarray cannot read.
        """
        if self._tree is None:
            import xarray as xr

            try:
                opened = xr.open_datatree(self._location.target, engine="zarr", consolidated=False, chunks=None)
            except Exception as err:  # xarray and zarr raise unrelated types for damaged metadata
                raise StoreError(f"{self._location}: cannot be opened as a DataTree: {err}") from err
            # the rechunked copy holds the same draws once more
            self._tree = opened.drop_nodes(BY_PIXEL, errors="ignore").isel(draw=slice(0, self._committed))
        return self._tree

    @property
    def image(self) -> "xr.DataArray":
        """The images, (chain, draw, channel, y, x), read when looked at."""
        return self.tree["posterior"].to_dataset()["image"]

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the numbers that were sampled beside the image, as by ``Gibbs``."""
        return self._layout.parameters

    def parameter(self, name: str) -> "xr.DataArray":
        """Draws of a parameter that was sampled beside the image, (chain, draw).

        Raises: KeyError for a name that is none.
        """
        if name not in self.parameters:
            known = ", ".join(self.parameters) or "none"
            raise KeyError(f"{self._location}: has no parameter {name!r}, its parameters are: {known}")
        return self.tree["posterior"].to_dataset()[name]

    def dask(self, chunks: Mapping[str, int] | None = None) -> "xr.DataTree":
        """The tree with its arrays in Dask chunks, for computations of one's own on ensembles larger than memory.

        ``chunks`` gives sizes by dimension; None takes those of the store, blocks of draws of one chain.

        Raises: ImportError without Dask.
        """
        from potentia.io._export import dask_tree

        return dask_tree(self, chunks)

    def tiles(self, max_bytes: int | None = None) -> Iterator[Tile]:
        """All draws of one rectangle of the image after the other, so that memory stays bounded by ``max_bytes``.

        A tile has ``rows``, ``columns`` and ``draws`` (chain, draw, channel, rows, columns). None is 32 MiB, or the
        chunks of ``finalize(rechunk=True)``; a store that can be read by whole chunks only takes 192 MiB.

        Raises: StoreError if a chunk is missing or cut short.
        """
        return self._draws.tiles(max_bytes)

    def map_tiles(
        self, function: Callable[["np.ndarray[Any, Any]"], Any], max_bytes: int | None = None
    ) -> Iterator[tuple[slice, slice, Any]]:
        """Apply a function to the draws of each of ``tiles``: rows, columns, and what the function gives.

        As many tiles are worked on at a time as torch uses threads, four at the most; they come in order.

        Shapes: the function takes (chain, draw, channel, rows, columns).
        Raises: StoreError as ``tiles``, and what the function raises.
        """
        return self._draws.map_tiles(function, max_bytes)

    def samples(self) -> Tensor:
        """The images as a tensor (chain, draw, C, H, W), complex if they are."""
        stored = np.asarray(self._image[:, : self._committed])
        return self._as_sampled(stored.astype(self._layout.dtype.newbyteorder("="), copy=False))

    def _as_sampled(self, stored: "np.ndarray[Any, Any]") -> Tensor:
        """Images as the store keeps them, (..., channel, y, x), as the sampler saw them."""
        return torch.from_numpy(self._draws.as_sampled(stored))

    @cached_property
    def _moments(self) -> Moments:
        """The running sums over the draws that this ensemble shows, which do not change."""
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
        return self._labelled("mean", self._moments.pooled(0)[0])

    def std(self, ddof: int = 1) -> "xr.DataArray":
        """Standard deviation over chains and draws together: (channel, y, x).

        Raises: ValueError if there are no more than ``ddof`` samples.
        """
        total = self.num_chains * self._committed
        if total <= ddof:
            raise ValueError(f"std: the ensemble has {total} samples, expected more than {ddof}")
        return self._labelled("std", self._moments.pooled(ddof)[1])

    def quantile(self, q: float | Sequence[float], *, magnitude: bool = False) -> "xr.DataArray":
        """Quantiles over chains and draws together, by linear interpolation; NaN where a draw is NaN.

        ``magnitude`` takes those of the magnitudes of complex images.

        Shapes: (channel, y, x) for a number, with a leading ``quantile`` dimension for several.
        Raises: ValueError for a q outside [0, 1].
        """
        levels = np.atleast_1d(np.asarray(q, dtype=np.float64))
        if levels.ndim != 1 or not bool(((levels >= 0) & (levels <= 1)).all()):
            raise ValueError(f"quantile: q is {q}, expected numbers between 0 and 1")
        values = pooled_quantiles(self._draws, levels, magnitude=magnitude)
        if np.ndim(q) == 0:
            return self._labelled("quantile", values[0])
        return self._labelled("quantile", values, quantile=levels)

    def interval(self, level: float = 0.9, *, magnitude: bool = False) -> "xr.DataArray":
        """Central interval of each pixel's marginal: (bound, channel, y, x) with bounds ``lower`` and ``upper``.

        The bounds are the order statistics that hold ``level`` of the predictive mass of one more draw, k / (n + 1)
        below the k-th of n samples: quantiles interpolated between the least and the greatest sample hold less. n
        samples hold (n - 1) / (n + 1) at the most, so that a level above that gives their range. ``magnitude`` takes
        the magnitudes of complex images.

        Raises: ValueError for a level outside (0, 1).
        """
        open_unit("interval", "level", level)
        values = self._bounds(np.array([level]), magnitude)[:, 0]
        return self._labelled("interval", values, bound=["lower", "upper"])

    def _bounds(self, levels: "np.ndarray[Any, Any]", magnitude: bool = False) -> "np.ndarray[Any, Any]":
        """Lower and upper bounds of central intervals: (level,) -> (2, level, channel, y, x)."""
        tails = (1 - levels) / 2
        values = pooled_quantiles(self._draws, np.concatenate([tails, 1 - tails]), "weibull", magnitude=magnitude)
        return values.reshape(2, len(levels), *values.shape[1:])

    def probability(self, event: Callable[[Any], Any]) -> "xr.DataArray":
        """Posterior probability of an event at each pixel, the share of the draws in which it holds: (channel, y, x).

        ``event`` takes images and tells where it holds: ``ensemble.probability(lambda x: x > 0.5)``. It sees whole
        images, so that it may compare pixels with their neighbours. NaN where a draw is NaN. An estimate p from n
        effective draws has the standard error sqrt(p (1 - p) / n).

        Shapes: event (k, C, H, W) -> boolean (k, C, H, W), complex images as such.
        Raises: TypeError, ValueError if the event gives anything else.
        """
        return self._labelled("probability", event_probability(self._draws, event))

    def probability_above(self, threshold: Any) -> "xr.DataArray":
        """Posterior probability that a pixel exceeds a threshold; its magnitude, if images are complex.

        Shapes: threshold a number, or broadcasting against (C, H, W) -> (channel, y, x).
        Raises: TypeError, ValueError for a threshold that is not real, NaN, or of another shape.
        """
        limit = threshold.detach().cpu().numpy() if isinstance(threshold, Tensor) else np.asarray(threshold)
        if limit.dtype.kind not in "iuf":
            raise TypeError(f"probability_above: threshold has dtype {limit.dtype}, expected real numbers")
        fits = limit.ndim <= 3 and all(
            n in (1, m) for n, m in zip(limit.shape[::-1], self.event_shape[::-1], strict=False)
        )
        if not fits or bool(np.isnan(limit).any()):
            raise ValueError(
                f"probability_above: threshold has shape {limit.shape}{' and NaN' if fits else ''}, expected numbers "
                f"that broadcast against {self.event_shape}"
            )
        return self._labelled("probability", exceedance(self._draws, limit.astype(np.float64)))

    def regions(
        self, masks: Any, *, threshold: float | None = None, level: float = 0.9, pixel_size: float = 1.0
    ) -> "RegionStatistics":
        """Mean intensity of a region, and the volume above a threshold in it, with central intervals at ``level``.

        ``masks`` is one mask or a mapping of names to masks. Each draw has a mean and a volume of its own, so that
        intervals take in how pixels vary together; adding up those of single pixels would not. The volume is the number
        of pixels above the threshold, over channels, times ``pixel_size``. Complex images count by magnitude.

        Shapes: masks (H, W) or (C, H, W), True or 1 within.
        Raises: TypeError, ValueError for a mask of other numbers or another shape, one without pixels, a level outside
            (0, 1), or a pixel size that is not positive.
        """
        from potentia.io._regions import region_statistics

        return region_statistics(self._draws, masks, threshold, level, pixel_size)

    def components(self, num: int = 10, *, every: int = 1) -> "xr.Dataset":
        """Principal components of the posterior: the directions in which draws differ most.

        - ``mean`` (channel, y, x), ``component`` (component, channel, y, x), orthonormal, its largest entry positive.
        - ``explained_variance`` (component) and ``explained_variance_ratio``, its share of all variance.
        - ``score`` (chain, draw, component): a draw is the mean plus its scores times the components, if ``num`` is
          one less than the samples.

        Exact, by the Gram matrix of the draws: two passes over them and memory for samples squared. ``every`` k-th draw
        of each chain counts. Complex images are decomposed by their real and imaginary parts. Of few samples the
        leading variances are too large: with fewer samples than pixels, draws lie in a plane of their own.

        Raises: TypeError, ValueError for a num above the samples less one, too many samples, or draws not finite.
        Source: Sirovich 1987, the method of snapshots.
        """
        from potentia.io._components import principal_components

        return principal_components(self._draws, num, every)

    def distances(self, *, every: int = 1) -> "xr.DataArray":
        """Root mean square distance of every two draws over the pixels: (sample, other), in the unit of the images.

        Samples are chain by chain, as the coordinates ``chain`` and ``draw`` of ``sample`` say. ``every`` as for
        ``components``.

        Raises: TypeError, ValueError as ``components``.
        """
        from potentia.io._components import rms_distances

        return rms_distances(self._draws, every)

    def modes(self, *, num_components: int = 5, level: float = 0.01, every: int = 1, most: int = 16) -> "Modes":
        """Count the modes of the posterior, as far as its draws tell them apart.

        All draws are one cluster at first. A cluster's leading ``num_components`` principal directions, and that
        between two clusters of k-means in their span, are found on one half of its samples; the other half, projected
        on each, is put to Hartigan's dip test for a single mode. If the least p-value, times the number of directions,
        is below ``level``, the cluster is cut in two there, and each part is tested in turn, up to ``most`` modes.

        Limits. One mode is kept, but for a share of ``level`` of cases, if draws are independent and the posterior has
        one mode along every line, as log-concave ones do. Draws that hang together look like clusters: thin them by
        ``every``, and mind R-hat. A cut needs enough draws: of 640, two modes of equal weight are found from five
        standard deviations (along their line) on, weights of 0.2 and 0.8 from seven, 0.1 and 0.9 in half of the cases
        at twelve, and lighter ones not. Fewer than 24 samples are not tested. Modes that are apart in directions of
        little variance, or wound about one another, are not found; nor are those that no chain has visited.

        Raises: TypeError, ValueError for bad numbers, and as ``components``; ImportError without scikit-learn.
        Source: Hartigan and Hartigan 1985, the dip test; Kalogeratos and Likas 2012, dip tests within a divisive
            clustering; Cox 1975, a hypothesis found on one half of the data and tested on the other.
        """
        from potentia.io._modes import count_modes

        return count_modes(self._draws, num_components, level, every, most)

    def calibration(
        self, truth: Any = None, *, levels: Sequence[float] = DEFAULT_LEVELS, num_bins: int = 10, mask: Any = None
    ) -> "Calibration":
        """Compare with a known truth: coverage over ``levels``, and the error of the mean beside what the std predicts.

        ``truth`` is taken from the store where not given. Real and imaginary parts count one each.

        Shapes: truth and mask as ``coverage``.
        Raises: TypeError, ValueError for levels outside (0, 1), another shape or field, NaN, no truth, more bins than
            pixels, a mask that leaves nothing, or a single sample.
        """
        from potentia.io._truth import calibrate, checked_levels

        wanted = checked_levels(levels)
        known = self._stored_constant("truth") if truth is None else truth
        if known is None:
            raise ValueError("calibration: the store holds no truth, expected one as an argument")
        target = self._truth(known, "calibration")
        chosen = self._chosen("calibration", mask)
        return calibrate(self, target, chosen, wanted, num_bins, self._bounds(wanted))

    def coverage(self, truth: Any, level: float = 0.9, mask: Any = None) -> float:
        """Share of pixels whose interval holds the truth; real and imaginary parts count one each.

        Shapes: truth (C, H, W), real or complex as the ensemble, or (channel, y, x) as it is stored; mask broadcasts
            against (C, H, W), True where pixels count.
        Raises: ValueError for another shape, another field, NaN, or a mask that leaves nothing.
        """
        target = self._truth(truth, "coverage")
        bounds = self.interval(level).values
        inside = (bounds[0] <= target) & (target <= bounds[1])
        return float(inside[self._chosen("coverage", mask)].mean())

    def _chosen(self, where: str, mask: Any) -> "np.ndarray[Any, Any]":
        """A mask as booleans of the stored shape (channel, y, x)."""
        array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(True if mask is None else mask)
        try:
            chosen = np.broadcast_to(array.astype(bool), self.event_shape)
        except ValueError:
            raise ValueError(
                f"{where}: mask has shape {array.shape}, expected one that broadcasts against {self.event_shape}"
            ) from None
        if not chosen.any():
            raise ValueError(f"{where}: mask leaves no pixel to count")
        return np.repeat(chosen, 2, axis=0) if self.is_complex else chosen

    def _truth(self, truth: Any, where: str) -> "np.ndarray[Any, Any]":
        array = truth.detach().cpu().numpy() if isinstance(truth, Tensor) else np.asarray(truth)
        if np.iscomplexobj(array) and self.is_complex:
            array = as_stored(torch.from_numpy(np.ascontiguousarray(array)))
        if array.shape != self._layout.stored_shape or np.iscomplexobj(array):
            kind = "complex" if self.is_complex else "real"
            raise ValueError(
                f"{where}: truth has shape {array.shape} and dtype {array.dtype}, expected {kind} {self.event_shape}"
            )
        if not bool(np.isfinite(array).all()):
            raise ValueError(f"{where}: truth has NaN or infinite entries, expected finite ones")
        return array

    def _labelled(self, name: str, values: "np.ndarray[Any, Any]", **leading: Any) -> "xr.DataArray":
        import xarray as xr

        names = self._layout.channel_names
        if values.shape[-3] != len(names):  # of magnitudes
            names = [str(c) for c in range(values.shape[-3])]
        coords = {**leading, "channel": names}
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

    def figures(self, folder: str | Path, *, truth: Any = None, overwrite: bool = False) -> list[Path]:
        """Write pictures for a paper to a folder, which is made if need be, and return their paths.

        - ``overview.png``, the panels of ``plot``.
        - ``mean.png``, ``std.png``, and ``error.png`` where the truth is known, each alone with its scale.
        - ``interval.png``, the width of the 90 % interval; ``components.png``, four principal components.
        - ``calibration.png``, coverage and error beside std, where the truth is known.

        Raises: FileExistsError if one of them is there; ValueError for a truth that does not fit; ImportError without
            matplotlib.
        """
        from potentia.io._figures import write_figures

        return write_figures(self, folder, truth, overwrite=overwrite)

    def finalize(self, *, rechunk: bool = False) -> None:
        """Put a finished store in order for reading.

        ``rechunk=True`` writes the draws a second time, in chunks that hold all draws of a tile of pixels: quantiles,
        R-hat and the like then read nothing twice, whatever the store lies on. It takes as much room again as the
        draws. ``rechunk=False`` removes that copy. Draws that are added later make it obsolete, and it is not read. A
        kill in between leaves a store without the copy.

        Raises: StoreError if the store cannot be written.
        """
        (write_by_pixel if rechunk else drop)(self._draws)
        self._draws = Draws(self._location, self._location.open(), self._image, self._layout, self._committed)

    def to_arviz(self) -> Any:
        """For ArviZ: its InferenceData (0.x), or the DataTree that ArviZ 1 works on.

        Raises: ImportError without ArviZ.
        """
        from potentia.io._export import to_arviz

        return to_arviz(self)

    def to_netcdf(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write everything to one netCDF-4 file, which ArviZ and xarray read; complex images as ``re`` and ``im``.

        Groups are those of the store, but for the writer's own. The file appears when it is whole.

        Raises: FileExistsError, FileNotFoundError; ValueError for another ending than .nc, .nc4 or .h5; ImportError
            without h5netcdf.
        """
        from potentia.io._export import to_netcdf

        return to_netcdf(self, path, overwrite=overwrite)

    def to_nifti(self, path: str | Path, what: Any = "mean", affine: Any = None, *, overwrite: bool = False) -> Path:
        """Write an image as NIfTI: ``"mean"``, ``"std"``, the name of one kept by ``set_summary``, or an array.

        Axes are (x, y, 1), with channels as a fourth one where there are several. Complex images are written as complex
        numbers, their std as one number of both parts together.

        Shapes: what (C, H, W), or as it is stored; affine (4, 4) from indices to millimetres, the identity by default.
        Raises: FileExistsError, FileNotFoundError; ValueError for an unknown name, another shape, an affine that is not
            (4, 4), or another ending than .nii or .nii.gz; ImportError without nibabel.
        """
        from potentia.io._export import to_nifti

        return to_nifti(self, path, what, affine, overwrite=overwrite)

    def verify(self) -> int:
        """Read every file of the store and hold it to its checksum; how many there are.

        What is read for an analysis is checked then; this reads all of it.

        Raises: StoreError for the first that is damaged or missing.
        """
        return self._location.verify()

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
