"""``summary``: how far the chains of an ensemble can be trusted, for every pixel, and the warnings that follow."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from potentia._validate import count, shape_text
from potentia.inference._diagnostics import LEAST_DRAWS, Pixels, by_pixel
from potentia.inference._judge import ESS_PER_CHAIN, RHAT_LIMIT, Method, beyond_chance

if TYPE_CHECKING:
    import xarray as xr

    from potentia.io import Ensemble

_TILE_BYTES = 256 * 2**20
_ROWS: tuple[str, ...] = ("rhat", "ess_bulk", "ess_tail", "mcse_mean", "std")
_LABELS = {"rhat": "R-hat", "ess_bulk": "bulk ESS", "ess_tail": "tail ESS", "mcse_mean": "error of the mean"}
_NEVER_MORE = 1024  # pixels that warnings are based on
_AT_LEAST = 64

_silent: ContextVar[bool] = ContextVar("potentia_diagnostics_silent", default=False)


class DiagnosticWarning(UserWarning):
    """A diagnostic of a run strays further from its limit than chance explains."""


@dataclass(frozen=True)
class Concern:
    """One statistic that is out of bounds: its name, its worst value, the limit, and a sentence with what to do."""

    statistic: str
    value: float
    limit: float
    message: str


@dataclass(frozen=True, repr=False, eq=False)
class Summary:
    """What the chains of an ensemble tell about their convergence and precision; ``print`` shows a table.

    - ``pixels``: ``rhat``, ``ess_bulk``, ``ess_tail``, ``mcse_mean`` (Monte-Carlo error of the mean image, in its
      unit) and ``std``, each (channel, y, x).
    - ``lp``: the same of the log posterior, NaN for score-only priors.
    - ``worst``, ``median``: over the pixels; ``where`` says which pixel is the worst. The worst error of the mean is
      the one that is greatest beside the pixel's std.
    - ``method``: which R-hat and ESS these are, as ``notes`` says in words.
    - ``acceptance_rate``: mean over draws and chains, and ``lowest_acceptance`` the least mean of a chain.
    - ``divergences``: draws marked as diverging. ``stuck_chains``: chains that never moved.
    - ``n_grad``: gradient evaluations a chain.
    - ``concerns``: what ``sample`` warns of.
    """

    pixels: "xr.Dataset"
    lp: Mapping[str, float]
    worst: Mapping[str, float]
    median: Mapping[str, float]
    where: Mapping[str, tuple[str, int, int]]
    method: Method
    acceptance_rate: float
    lowest_acceptance: float
    divergences: int
    stuck_chains: tuple[int, ...]
    n_grad: int
    notes: tuple[str, ...]
    concerns: tuple[Concern, ...]

    def __repr__(self) -> str:
        shape = shape_text(tuple(self.pixels["std"].shape))
        lines = [
            f"Summary of {self.method.told}, pixels {shape}",
            f"{'':<18}{'median':>10}{'worst':>10}  {'at (channel, y, x)':<20}{'log posterior':>13}",
        ]
        for name, label in _LABELS.items():
            place = self.where.get(name)
            at = "" if place is None else f"({', '.join(map(str, place))})"
            cells = f"{_number(self.median[name]):>10}{_number(self.worst[name]):>10}  {at:<20}"
            lines.append(f"{label:<18}{cells}{_number(self.lp[name]):>13}")
        shares = [of["mcse_mean"] / of["std"] if of["std"] else math.nan for of in (self.median, self.worst)]
        lines.append(f"{'  beside the std':<18}{_number(shares[0]):>10}{_number(shares[1]):>10}")
        lines.append(
            f"acceptance {self.acceptance_rate:.3f} (lowest chain {self.lowest_acceptance:.3f}), "
            f"divergences {self.divergences}, gradient evaluations a chain {self.n_grad}"
        )
        lines += [f"- {note}" for note in self.notes]
        lines += [f"! {concern.message}" for concern in self.concerns] or ["No concerns."]
        return "\n".join(lines)


def summary(ensemble: "Ensemble", *, max_pixels: int | None = None) -> Summary:
    """Tell how well the chains of an ensemble have mixed, and how precise its mean is, for every pixel.

    What can be asked depends on the chains:

    - R-hat needs four draws of two chains. Sixteen or more chains of fewer than 100 draws get *nested* R-hat: plain
      R-hat of so many short chains alarms for nothing. Chains whose first draws are neighbours in a pixel make a
      superchain, and draws of the second half are compared, so that it sees whether they remember where they began.
    - ESS comes from the autocorrelation. Below ten draws a chain it is the number of draws, if the ensemble's
      attributes say ``independent_draws``, as for samplers that start every draw afresh; or else it comes from the
      spread between the chains' means. For one draw a chain both are the number of chains, which holds if they are
      independent; whether they have converged nothing here can tell then.

    A statistic is a concern when it is beyond its limit (R-hat 1.01, bulk ESS 100 a chain where a chain has as many
    draws) *and* chance does not explain it: the greatest of thousands of R-hats exceeds 1.01 in many good runs. A run
    with 100 effective draws a chain in every pixel, or of independent draws if it is shorter, raises each concern with
    a probability of 1 % at the most, however many pixels there are and however they depend on one another. Tested are
    the worst pixel (Bonferroni), the median pixel (twice its p-value, Rüger 1978) and the log posterior. Divergences
    and chains that never moved always are.

    Pixels are read in tiles of at most 256 MiB, or one row of the image. ``max_pixels`` looks at about so many, evenly
    spread; ``pixels`` then has the coordinates of those.

    Raises: TypeError for what is no ensemble; ValueError for a max_pixels below one.
    Source: Vehtari et al. 2021; Margossian et al. 2024, whose superchains share their starting points; the p-values by
        F tests, and an exponential tail for the ESS, were checked by simulation.
    """
    from potentia.io import Ensemble

    if not isinstance(ensemble, Ensemble):
        raise TypeError(f"summary: got a {type(ensemble).__name__}, expected an ensemble, as sample returns")
    if max_pixels is not None:
        count("summary", "max_pixels", max_pixels)
    independent = ensemble.attrs.get("independent_draws") is True
    method = Method(ensemble.num_chains, ensemble.num_draws, independent)
    image = _spread(ensemble.image, max_pixels)
    values, stuck = _statistics(image, method)
    stats = ensemble.tree["sample_stats"].to_dataset()
    log_posterior = torch.from_numpy(np.array(stats["lp"].values, dtype=np.float64))
    of_lp = by_pixel(log_posterior, lambda p: _all_of(p, method))
    pixels = _labelled(image, values)
    worst, where = _worst(pixels)
    acceptance = np.asarray(stats["acceptance_rate"].values, dtype=np.float64).mean(axis=1)
    lp = dict(zip(_ROWS, (float(v) for v in of_lp), strict=False))
    median = {name: _median(values[k]) for k, name in enumerate(_ROWS)}
    divergences = int(np.asarray(stats["diverging"].values).sum())
    moved = tuple(int(c) for c in stuck.nonzero().flatten())
    told = _Told(method, worst, median, lp, where)
    return Summary(
        pixels=pixels,
        lp=lp,
        worst=worst,
        median=median,
        where=where,
        method=method,
        acceptance_rate=float(acceptance.mean()),
        lowest_acceptance=float(acceptance.min()),
        divergences=divergences,
        stuck_chains=moved,
        n_grad=int(np.asarray(stats["n_grad"].values).max()),
        notes=_notes(method, values, image.shape[2:], ensemble.image.shape[2:], lp),
        concerns=told.concerns(values, of_lp, divergences, moved),
    )


def warn_if_suspect(ensemble: "Ensemble", *, stacklevel: int = 2) -> None:
    """Warn of each concern that the summary of an ensemble has, one DiagnosticWarning a statistic.

    It looks at the log posterior and at one in 256 of the pixels, but at least 64 and at most 1,024, evenly spread: so
    it costs a small part of what sampling costs. ``stacklevel`` 2 blames the line that calls this function, 3 the line
    that calls the caller. Nothing is looked at within ``without_diagnostics``.
    """
    if _silent.get():
        return
    total = math.prod(ensemble.image.shape[2:])
    found = summary(ensemble, max_pixels=min(_NEVER_MORE, max(_AT_LEAST, total // 256)))
    for concern in found.concerns:
        warnings.warn(concern.message, DiagnosticWarning, stacklevel=stacklevel)


@contextmanager
def without_diagnostics() -> Iterator[None]:
    """Within, ``warn_if_suspect`` does nothing: for runs that are deliberately short, such as those of a test."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


def _spread(image: "xr.DataArray", most: int | None) -> "xr.DataArray":
    """Every k-th row and column, so that about ``most`` pixels are left."""
    channels, height, width = image.shape[2:]
    if most is None or channels * height * width <= most:
        return image
    step = math.ceil(math.sqrt(channels * height * width / most))
    rows, columns = (slice(min(step // 2, size - 1), None, step) for size in (height, width))
    return image.assign_coords(y=np.arange(height), x=np.arange(width)).isel(y=rows, x=columns)


def _all_of(pixels: Pixels, method: Method) -> Tensor:
    """The statistics of _ROWS, then what R-hat is judged by: (6, pixels)."""
    value, excess = method.rhat_and_excess(pixels)
    bulk, tails, mean = method.sizes(pixels)
    return torch.stack([value, bulk, tails, pixels.std / mean.sqrt(), pixels.std, excess])


def _statistics(image: "xr.DataArray", method: Method) -> tuple[Tensor, Tensor]:
    """What ``_all_of`` gives, (6, channel, y, x), and which chains never moved, (chain,)."""
    chains, draws, channels, height, width = image.shape
    row_bytes = chains * draws * channels * width * image.dtype.itemsize
    rows = max(1, min(height, _TILE_BYTES // max(1, row_bytes)))
    parts = []
    stuck = torch.full((chains,), draws > 1)
    for start in range(0, height, rows):
        stored = np.asarray(image.isel(y=slice(start, start + rows)).values)
        tile = torch.from_numpy(stored.astype(stored.dtype.newbyteorder("="), copy=False))
        for chain in stuck.nonzero().flatten():
            stuck[chain] = bool((tile[chain] == tile[chain, :1]).all())
        parts.append(by_pixel(tile, lambda p: _all_of(p, method)))
    return torch.cat(parts, dim=2), stuck


def _labelled(image: "xr.DataArray", values: Tensor) -> "xr.Dataset":
    import xarray as xr

    coords: dict[str, object] = {name: image.coords[name] for name in ("y", "x") if name in image.coords}
    coords["channel"] = [str(name) for name in image.coords["channel"].values]
    arrays = {name: (("channel", "y", "x"), values[k].numpy()) for k, name in enumerate(_ROWS)}
    return xr.Dataset(arrays, coords=coords)


def _worst(pixels: "xr.Dataset") -> tuple[dict[str, float], dict[str, tuple[str, int, int]]]:
    """The worst value of each statistic, and the pixel where it is found; NaN, and no place, where there is none."""
    worst, where = dict.fromkeys(_ROWS, math.nan), {}
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = pixels["mcse_mean"].values / pixels["std"].values
    badness = {
        "rhat": pixels["rhat"].values,
        "ess_bulk": -pixels["ess_bulk"].values,
        "ess_tail": -pixels["ess_tail"].values,
        "mcse_mean": relative,
    }
    for name, bad in badness.items():
        if np.isnan(bad).all():
            continue
        place = tuple(int(i) for i in np.unravel_index(int(np.nanargmax(bad)), bad.shape))
        cell = pixels.isel(channel=place[0], y=place[1], x=place[2])
        worst[name] = float(cell[name])
        at = [int(cell[d]) if d in pixels.coords else place[k] for k, d in ((1, "y"), (2, "x"))]
        where[name] = (str(cell["channel"].values), at[0], at[1])
        if name == "mcse_mean":
            worst["std"] = float(cell["std"])
    return worst, where


def _median(values: Tensor) -> float:
    known = values[~torch.isnan(values)]
    return float(known.median()) if len(known) else math.nan


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"


def _notes(
    method: Method, values: Tensor, looked_at: tuple[int, ...], there_are: tuple[int, ...], lp: Mapping[str, float]
) -> tuple[str, ...]:
    notes = []
    chains, draws = method.chains, method.draws
    if draws == 1 and chains > 1:
        notes.append(
            "One draw a chain: R-hat is not defined, and nothing here tells whether the chains have converged. The ESS "
            "is the number of chains, as it should be for independent ones."
        )
    elif method.rhat is None:
        lacking = "one chain" if chains < 2 else f"fewer than {LEAST_DRAWS} draws a chain"
        notes.append(f"No R-hat: {lacking}.")
    if method.rhat == "nested":
        notes.append(
            f"R-hat is nested, as {method.told} are too many and too short for the plain one: "
            f"{method.superchains} superchains of {method.superchain_size} chains with neighbouring first draws, "
            "compared by the draws of the second half."
        )
    if method.ess == "between chains" and draws > 1:
        notes.append(
            f"ESS is by the spread between the chains' means, as {draws} draws a chain are too few for the "
            f"autocorrelation; its relative error is {math.sqrt(2 / (chains - 1)):.0%}."
        )
    if method.ess == "independent" and draws > 1:
        notes.append("ESS is the number of draws: the sampler starts each of them afresh.")
    if method.ess is None:
        notes.append(f"No ESS: {method.told}.")
    std = values[_ROWS.index("std")]
    for what, number in (("NaN", int(torch.isnan(std).sum())), ("the same in all draws", int((std == 0).sum()))):
        if number and chains * draws > 1:
            notes.append(f"{number} of {std.numel()} pixels are {what}.")
    if looked_at != there_are:
        notes.append(f"Looked at {math.prod(looked_at)} of {math.prod(there_are)} pixels, evenly spread.")
    if math.isnan(lp["std"]) and chains * draws > 1:
        notes.append("The log posterior is not known: the posterior has no value, or it is NaN in some draws.")
    return tuple(notes)


@dataclass(frozen=True)
class _Told:
    """What the sentences about concerns need to know."""

    method: Method
    worst: Mapping[str, float]
    median: Mapping[str, float]
    lp: Mapping[str, float]
    where: Mapping[str, tuple[str, int, int]]

    def concerns(self, values: Tensor, of_lp: Tensor, divergences: int, stuck: tuple[int, ...]) -> tuple[Concern, ...]:
        found = [
            self._concern("rhat", self.method.rhat_tail, values[-1], of_lp[-1], RHAT_LIMIT),
            self._concern("ess_bulk", self.method.ess_tail, values[1], of_lp[1], self.method.ess_wanted or 0.0),
            self._diverged(divergences),
            self._stuck(stuck),
        ]
        return tuple(c for c in found if c is not None)

    def _concern(
        self, name: str, tail: Callable[[Tensor], Tensor], of_pixels: Tensor, of_lp: Tensor, limit: float
    ) -> Concern | None:
        sign = 1 if name == "rhat" else -1
        values = {"median": self.median[name], "worst": self.worst[name], "log posterior": self.lp[name]}
        for which in beyond_chance(tail(of_pixels.flatten()), float(tail(of_lp))):
            if sign * values[which] > sign * limit:
                worst = values["log posterior" if which == "log posterior" else "worst"]
                return Concern(_LABELS[name], worst, limit, self._sentence(name, which, worst, limit))
        return None

    def _sentence(self, name: str, which: str, worst: float, limit: float) -> str:
        method = self.method
        if which == "log posterior":
            at = "for the log posterior"
        else:
            channel, y, x = self.where[name]
            at = f"at worst (channel {channel}, y {y}, x {x}) and {_number(self.median[name])} in the median pixel"
        if name == "rhat":
            label = "nested R-hat" if method.rhat == "nested" else "R-hat"
            return (
                f"{label} is {_number(worst)} {at}, expected at most {limit}: the {method.chains} chains do not agree. "
                "Warm up and run longer, or use a sampler that crosses between modes."
            )
        return (
            f"bulk ESS is {_number(worst)} {at}, expected at least {limit:.0f}, {ESS_PER_CHAIN} for each of "
            f"{method.chains} chains: draws are strongly correlated. Draw more, thin more (steps_per_draw), or "
            "precondition better."
        )

    def _diverged(self, number: int) -> Concern | None:
        if not number:
            return None
        total = self.method.chains * self.method.draws
        return Concern(
            "divergences",
            float(number),
            0.0,
            f"{number} of {total} draws ({number / total:.2%}) diverged, expected none: the integrator misses steep "
            "parts of the posterior, and the draws with it. Lower the step size or raise the target acceptance; for "
            "noise that is not Gaussian take HMC with Preconditioner.gauss_newton.",
        )

    def _stuck(self, chains: tuple[int, ...]) -> Concern | None:
        if not chains:
            return None
        names = ", ".join(map(str, chains[:8])) + (", ..." if len(chains) > 8 else "")
        return Concern(
            "stuck chains",
            float(len(chains)),
            0.0,
            f"{len(chains)} of {self.method.chains} chains never moved in {self.method.draws} draws (chain {names}), "
            "expected none: every proposal was refused. Lower the step size, or start elsewhere.",
        )
