"""Pictures of an ensemble in a folder, one file each."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from potentia.io._ensemble import Ensemble

_COMPONENTS = 4
_LEVEL = 0.9


def write_figures(ensemble: "Ensemble", folder: str | Path, truth: Any, *, overwrite: bool) -> list[Path]:
    """See ``Ensemble.figures``."""
    target = Path(folder).expanduser()
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"figures: {target} is a file, expected a folder")
    pictures = _pictures(ensemble, truth)
    paths = {name: target / f"{name}.png" for name in pictures}
    taken = [str(path) for path in paths.values() if path.exists()]
    if taken and not overwrite:
        raise FileExistsError(f"figures: {taken[0]} exists already; pass overwrite=True to replace it")
    target.mkdir(parents=True, exist_ok=True)
    for name, figure in pictures.items():
        figure.savefig(paths[name], dpi=150)
    return list(paths.values())


def _pictures(ensemble: "Ensemble", truth: Any) -> dict[str, "Figure"]:
    held = ensemble._stored_constant("truth") if truth is None else truth
    known = None if held is None else ensemble._truth(held, "figures")
    several = ensemble.num_chains * ensemble.num_draws > 1
    mean = ensemble.mean().values
    pictures = {
        "overview": ensemble.plot(truth=truth),
        "mean": _image("mean", _flat(ensemble, mean), "gray"),
    }
    if several:
        pictures["std"] = _image("std", _flat(ensemble, ensemble.std().values), "magma", 0.0)
        low, high = ensemble.interval(_LEVEL).values
        title = f"width of the {_LEVEL:.0%} interval"
        pictures["interval"] = _image(title, _flat(ensemble, high - low), "magma", 0.0)
        pictures["components"] = _components(ensemble)
    if known is not None:
        error = np.abs(_flat(ensemble, mean) - _flat(ensemble, known))
        pictures["error"] = _image("error of the mean", error, "magma", 0.0)
        if several:
            pictures["calibration"] = _calibration(ensemble, known)
    return pictures


def _flat(ensemble: "Ensemble", stored: NDArray[Any]) -> NDArray[np.float64]:
    """Mean over channels of magnitudes; of a spread, that of both parts together: (channel, y, x) -> (y, x)."""
    values: NDArray[np.float64] = ensemble._draws.magnitudes(stored).mean(axis=0, dtype=np.float64)
    return values


def _figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as err:
        raise ImportError("figures: matplotlib is missing: pip install 'potentia[plot]'") from err
    return Figure(figsize=(width, height), layout="constrained")


def _image(title: str, picture: NDArray[np.float64], colours: str, low: float | None = None) -> "Figure":
    height, width = picture.shape
    figure = _figure(5.0, 4.2 * min(1.6, max(0.6, height / width)) + 0.4)
    axis = figure.subplots()
    drawn = axis.imshow(picture, cmap=colours, vmin=low)
    figure.colorbar(drawn, ax=axis, fraction=0.046, pad=0.03)
    axis.set_title(title)
    axis.set_axis_off()
    return figure


def _components(ensemble: "Ensemble") -> "Figure":
    samples = ensemble.num_chains * ensemble.num_draws
    every = max(1, samples // 512)  # a picture needs no more samples
    kept = ensemble.num_chains * len(range(0, ensemble.num_draws, every))
    if kept < 2:
        every, kept = 1, samples
    found = ensemble.components(min(_COMPONENTS, kept - 1), every=every)
    parts = found["component"].values
    figure = _figure(3.3 * len(parts), 3.6)
    for axis, part, share in zip(
        figure.subplots(1, len(parts), squeeze=False).ravel(),
        parts,
        found["explained_variance_ratio"].values,
        strict=True,
    ):
        picture = part.mean(axis=0) if not ensemble.is_complex else part[0::2].mean(axis=0)
        limit = float(np.abs(picture).max()) or 1.0
        axis.imshow(picture, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axis.set_title(f"{share:.1%} of the variance" + (" (real part)" if ensemble.is_complex else ""))
        axis.set_axis_off()
    return figure


def _calibration(ensemble: "Ensemble", truth: NDArray[Any]) -> "Figure":
    found = ensemble.calibration(truth, num_bins=min(10, truth.size))
    figure = _figure(8.0, 4.0)
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="0.7")
    left.plot(found.coverage["level"], found.coverage, "o-")
    left.set(xlabel="level of the interval", ylabel="share of pixels that it holds", xlim=(0, 1), ylim=(0, 1))
    table = found.reliability
    top = float(max(table["predicted"].max(), table["rmse"].max())) or 1.0
    right.plot([0, top], [0, top], color="0.7")
    right.plot(table["predicted"], table["rmse"], "o-")
    right.set(xlabel="predicted error of the mean", ylabel="error made")
    return figure
