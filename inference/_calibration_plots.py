"""Pictures of calibration checks."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from potentia.inference._uniformity import ecdf_band, expected_shares

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from potentia.inference._calibration import SBCResult
    from potentia.inference._geweke import GewekeResult
    from potentia.inference._rank_histogram import RankHistogram
    from potentia.inference._tarp import TARPResult

_FILL, _LINE, _BAND = "#4c78a8", "#1f3b5c", "#d9d9d9"
_KOLMOGOROV_95 = 1.358


def _figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as err:
        raise ImportError(
            "plot: matplotlib is missing, expected it for pictures: pip install 'potentia[plot]'"
        ) from err
    return Figure(figsize=(width, height), layout="constrained")


def _saved(figure: "Figure", path: str | Path | None) -> "Figure":
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure


def _bars(axis: Any, counts: Any, expected: Any, band: bool) -> None:
    """A histogram over ranks as shares of their range, a flat one as a line, and what 95 % of bins keep within."""
    edges = np.concatenate([[0.0], np.cumsum(expected / expected.sum())])
    centres, widths = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    # Bins may be of unequal width where ranks do not divide evenly: heights are relative to what each expects.
    if band:
        error = 1.96 * np.sqrt((1 - expected / expected.sum()) / expected)
        axis.bar(centres, 2 * error, widths, bottom=1 - error, color=_BAND, zorder=1)
    axis.bar(centres, counts / expected, widths * 0.92, color=_FILL, alpha=0.8, zorder=2)
    axis.axhline(1.0, color="black", lw=1, zorder=3)
    axis.set_xlim(0, 1)
    axis.set_xlabel("rank of the truth / number of ranks")


def plot_rank_histogram(result: "RankHistogram", path: str | Path | None) -> "Figure":
    """Draw one histogram."""
    figure = _figure(5.2, 3.6)
    axis = figure.subplots()
    _bars(axis, result.counts.numpy(), result.expected.numpy(), band=False)
    axis.set_ylabel("pixels / expected")
    axis.set_title(
        f"{int(result.counts.sum())} pixels among {result.num_draws} samples\n"
        f"mean rank {result.mean_rank:.3f}, spread {result.spread:.2f}",
        fontsize=10,
    )
    return _saved(figure, path)


def plot_sbc(result: "SBCResult", path: str | Path | None) -> "Figure":
    """Draw, for each statistic, the histogram of ranks above the ECDF less its expectation; four in a row."""
    names = result.names
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = _figure(max(4.0, 2.7 * columns), 4.4 * rows)
    axes = figure.subplots(2 * rows, columns, squeeze=False, sharex=True)
    expected = (expected_shares(result.bins, result.num_draws) * len(result.ranks)).numpy()
    levels, low, high = (t.numpy() for t in ecdf_band(len(result.ranks)))
    chi, ecdf = result.chi_square_p, result.ecdf_p
    for axis in axes.ravel():
        axis.set_visible(False)
    for k, name in enumerate(names):
        row, column = divmod(k, columns)
        top, bottom = axes[2 * row, column], axes[2 * row + 1, column]
        top.set_visible(True)
        bottom.set_visible(True)
        _bars(top, result.counts(name).numpy(), expected, band=True)
        top.set_xlabel("")
        top.set_title(f"{name}\np = {chi[name]:.2g}, {ecdf[name]:.2g}", fontsize=9)
        u = np.sort(result.uniform[:, k].numpy())
        shares = np.searchsorted(u, levels, side="right") / len(u)
        bottom.fill_between(levels, low - levels, high - levels, color=_BAND, step="mid")
        bottom.plot(levels, shares - levels, color=_LINE, lw=1.3)
        bottom.axhline(0.0, color="black", lw=0.8)
        bottom.set_xlabel("rank / number of ranks")
        if column == 0:
            top.set_ylabel("replications / expected")
            bottom.set_ylabel("ECDF − level")
    return _saved(figure, path)


def plot_tarp(result: "TARPResult", path: str | Path | None) -> "Figure":
    """Draw the coverage curve with Kolmogorov's 95 % band."""
    figure = _figure(4.4, 4.4)
    axis = figure.subplots()
    levels = result.levels.numpy()
    root = math.sqrt(len(result.uniform))
    half = _KOLMOGOROV_95 / (root + 0.12 + 0.11 / root)
    axis.fill_between(
        levels, np.clip(levels - half, 0, 1), np.clip(levels + half, 0, 1), color=_BAND, label="95 % band"
    )
    axis.plot([0, 1], [0, 1], color="black", lw=0.8)
    axis.plot(levels, result.coverage.numpy(), color=_FILL, lw=2, label="expected coverage")
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="credibility level", ylabel="share of truths held", aspect="equal")
    axis.set_title(f"error {result.coverage_error:.3f}, area {result.area:+.3f}, p = {result.p_value:.2g}", fontsize=10)
    axis.legend(loc="upper left", frameon=False)
    return _saved(figure, path)


def plot_geweke(result: "GewekeResult", path: str | Path | None) -> "Figure":
    """Draw the z-scores, one a line, with the band that holds all of them in 95 of 100 runs."""
    import torch

    number = len(result.names)
    figure = _figure(6.0, 1.2 + 0.26 * number)
    axis = figure.subplots()
    half = float(torch.special.ndtri(torch.tensor(1 - 0.025 / number, dtype=torch.float64)))
    axis.axvspan(-half, half, color=_BAND)
    axis.axvline(0.0, color="black", lw=0.8)
    z = result.z.numpy()
    most = max(2 * half, 1.1 * float(np.abs(z[np.isfinite(z)]).max(initial=0.0)))
    axis.plot(np.clip(z, -most, most), np.arange(number), "o", color=_FILL)
    axis.set_yticks(np.arange(number), result.names, fontsize=8)
    axis.set(xlim=(-most, most), xlabel="difference of the simulators / standard error")
    axis.invert_yaxis()
    axis.set_title(f"p = {result.p_value:.2g}", fontsize=10)
    return _saved(figure, path)
