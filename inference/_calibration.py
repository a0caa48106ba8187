"""Simulation-based calibration: where truths drawn from the prior rank among draws of their posteriors."""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from potentia._potential import Potential
from potentia._random import chain_generators
from potentia._validate import count, shape_text
from potentia.inference._prepare import prepare
from potentia.inference._protocol import Sampler
from potentia.inference._statistics import Statistic, default_statistics, evaluate
from potentia.inference._summary import DiagnosticWarning, without_diagnostics
from potentia.inference._uniformity import bonferroni, chi_square_p, ecdf_p, histogram, num_bins, random_ranks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PriorSample = Callable[[torch.Generator], Tensor]
MakePosterior = Callable[[Tensor, torch.Generator], Potential]
Draw = Callable[[Potential, torch.Generator], Any]

_MOST_AUTOCORRELATION = 0.1


@dataclass(frozen=True, eq=False)
class SBCResult:
    """Ranks of true statistics among those of posterior draws; uniform if the sampler and the model are right.

    - ``ranks``: (replications, statistics), from 0 to ``num_draws``; ``names`` of the statistics.
    - ``uniform``: the same as numbers in (0, 1), each rank spread evenly over its share.
    - ``chi_square_p``, ``ecdf_p``: p-values of uniformity, by name; of Pearson's test in ``bins`` bins of equal, or
      where the ranks do not divide evenly nearly equal, expectation, and of the ECDF's greatest departure, which sees
      smaller faults. ``p_value`` is the least of all of them, corrected for their number.
    - ``autocorrelation``: of neighbouring draws of a chain, by name. Above 0.1 ranks are too extreme even of a correct
      sampler: thin more.
    """

    ranks: Tensor
    num_draws: int
    names: tuple[str, ...]
    uniform: Tensor = field(repr=False)
    autocorrelation: Mapping[str, float] = field(default_factory=dict)

    @property
    def bins(self) -> int:
        """Bins of the chi-square test and of the histograms: ten replications each, 20 at most."""
        return num_bins(len(self.ranks), self.num_draws)

    @property
    def chi_square_p(self) -> dict[str, float]:
        """P-value of Pearson's chi-square test of each statistic."""
        return {n: chi_square_p(self.ranks[:, k], self.bins, self.num_draws) for k, n in enumerate(self.names)}

    @property
    def ecdf_p(self) -> dict[str, float]:
        """P-value of the ECDF's departure of each statistic."""
        return {n: ecdf_p(self.uniform[:, k]) for k, n in enumerate(self.names)}

    @property
    def p_value(self) -> float:
        """P-value of all tests of all statistics together (Bonferroni)."""
        return bonferroni([*self.chi_square_p.values(), *self.ecdf_p.values()])

    def counts(self, name: str) -> Tensor:
        """Histogram of one statistic's ranks: (bins,)."""
        return histogram(self.ranks[:, self.names.index(name)], self.bins, self.num_draws)

    def __repr__(self) -> str:
        lines = [
            f"Simulation-based calibration: {len(self.ranks)} replications, ranks among {self.num_draws} draws, "
            f"p-value {self.p_value:.3g} in all",
            f"{'':<20}{'chi-square p':>14}{'ECDF p':>10}{'mean rank':>11}{'spread':>8}",
        ]
        chi, ecdf = self.chi_square_p, self.ecdf_p
        for k, name in enumerate(self.names):
            u = self.uniform[:, k]
            spread = 12 * float((u - 0.5).square().mean())
            lines.append(f"{name:<20}{chi[name]:>14.3g}{ecdf[name]:>10.3g}{float(u.mean()):>11.3f}{spread:>8.2f}")
        lines.append("mean rank: 0.5 if unbiased; spread: 1 if calibrated, above if the posterior is too narrow")
        return "\n".join(lines)

    def plot(self, path: str | Path | None = None) -> "Figure":
        """Histogram, and ECDF less its expectation with a simultaneous 95 % band, of each statistic.

        Raises: ImportError without matplotlib.
        """
        from potentia.inference._calibration_plots import plot_sbc

        return plot_sbc(self, path)


def simulation_based_calibration(
    prior_sample: PriorSample,
    make_posterior: MakePosterior,
    sampler: Sampler | Draw,
    *,
    num_replications: int = 500,
    num_draws: int = 99,
    num_chains: int = 1,
    num_warmup: int | None = None,
    thin: int = 1,
    statistics: Mapping[str, Statistic] | None = None,
    batched: bool = False,
    seed: int = 0,
) -> SBCResult:
    """Check a sampler, or a model, on data simulated from the model itself.

    A truth is drawn from the prior, data from the truth, and draws from the posterior of these data; then the truth is
    one more draw, and its rank among the others is uniform, for any statistic. What fails: a posterior too narrow
    (ranks at both ends), too wide (ranks in the middle), biased (ranks at one end), a prior or a likelihood that is not
    the one simulated from. Draws must be nearly independent: thin until ``autocorrelation`` is below 0.1, of which a
    DiagnosticWarning tells.

    Args:
        prior_sample: Draws one image (C, H, W) of the prior from a generator.
        make_posterior: Given the true image and a generator, simulates data and returns prior + likelihood.
        sampler: A sampler of ``potentia.inference``; or a function of posterior and generator that returns draws,
            (draws, C, H, W) or (chains, draws, C, H, W) or an ensemble, always the same number.
        num_replications: Truths.
        num_draws: Draws kept of each chain.
        num_chains: Chains for each truth; ranks are among the draws of all.
        num_warmup: Draws thrown away first; None is the sampler's own default.
        thin: Keep every thin-th draw.
        statistics: By name, functions of images (n, C, H, W) and posterior that give (n,) numbers; by default four
            pixels, the mean, the squared norm, the posterior's potential and its likelihood's.
        batched: Run all replications as one batch of chains, one a replication. ``make_posterior`` is then called once,
            with all truths (replications, C, H, W), and returns a potential whose batch entry r holds the data of
            truth r; of functions the draws have shape (replications, draws, C, H, W).
        seed: Seed of all random numbers.

    Raises:
        TypeError, ValueError: For arguments, draws or statistics of another kind or shape.
    Source: Talts, Betancourt, Simpson, Vehtari and Gelman 2018, algorithms 1 and 2; Modrák et al. 2023.
    """
    where = "simulation_based_calibration"
    replications = count(where, "num_replications", num_replications, least=2)
    count(where, "num_draws", num_draws)
    count(where, "num_chains", num_chains)
    count(where, "thin", thin)
    if batched and num_chains != 1:
        raise ValueError(f"{where}: batched runs have one chain a replication, got num_chains {num_chains}")
    if num_warmup is not None:
        count(where, "num_warmup", num_warmup, least=0)
    run = _Replication(where, sampler, num_draws * thin, num_warmup, thin, statistics)
    generators = chain_generators(seed, range(replications))
    if batched:
        truths = torch.stack([checked_image(where, prior_sample(g)) for g in generators])
        posterior = make_posterior(truths, generators[0])
        result = run.batch(truths, posterior, generators[0], seed)
        return _result(run, *result, generators[0])
    parts = []
    for replication, generator in enumerate(generators):
        truth = checked_image(where, prior_sample(generator))
        posterior = make_posterior(truth, generator)
        parts.append(run.single(truth, posterior, generator, num_chains, _seed(seed, replication)))
    true, drawn = (torch.stack(rows) for rows in zip(*parts, strict=True))
    return _result(run, true, drawn, generators[0])


def checked_image(where: str, x: Tensor) -> Tensor:
    """Refuse what is no image of the prior, (C, H, W).

    Raises: ValueError.
    """
    if not isinstance(x, Tensor) or x.dim() != 3:
        got = shape_text(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{where}: prior_sample gave {got}, expected an image (C, H, W)")
    return x


def _seed(seed: int, replication: int) -> int:
    return int(np.random.SeedSequence((seed, replication, 1)).generate_state(1, np.uint32)[0])


class _Replication:
    """Runs the sampler for one truth, or all at once, and takes the statistics of truths and draws."""

    def __init__(
        self,
        where: str,
        sampler: Sampler | Draw,
        num_draws: int,
        num_warmup: int | None,
        thin: int,
        statistics: Mapping[str, Statistic] | None,
    ) -> None:
        if not isinstance(sampler, Sampler) and not callable(sampler):
            raise TypeError(
                f"{where}: sampler is a {type(sampler).__name__}, expected a sampler or a function that returns draws"
            )
        self.where = where
        self.sampler = sampler
        self.num_draws = num_draws
        self.num_warmup = num_warmup
        self.thin = thin
        self.statistics = None if statistics is None else dict(statistics)

    def _draws(self, posterior: Potential, generator: torch.Generator, chains: int, seed: int) -> Tensor:
        """Draws of all chains, thinned: (chains, draws, C, H, W)."""
        if not isinstance(posterior, Potential):
            raise TypeError(
                f"{self.where}: make_posterior gave a {type(posterior).__name__}, expected prior + likelihood"
            )
        if isinstance(self.sampler, Sampler):
            return self._run(self.sampler, posterior, chains, seed)
        with without_diagnostics():
            found: Any = self.sampler(posterior, generator)
        draws: Tensor = found.samples() if hasattr(found, "samples") else found
        if not isinstance(draws, Tensor) or draws.dim() not in (4, 5):
            got = shape_text(tuple(draws.shape)) if isinstance(draws, Tensor) else type(draws).__name__
            raise ValueError(f"{self.where}: the sampler gave {got}, expected draws (chains, draws, C, H, W)")
        draws = draws if draws.dim() == 5 else draws[None]
        return draws[:, self.thin - 1 :: self.thin]

    def _run(self, sampler: Sampler, posterior: Potential, chains: int, seed: int) -> Tensor:
        """What ``sample`` does, without a store, which would cost more than short chains do."""
        problem = prepare(posterior, sampler, chains, None, seed, None, None)
        generators = chain_generators(seed, range(chains), problem.device)
        warmup = sampler.default_warmup if self.num_warmup is None else self.num_warmup
        state = sampler.init(problem.posterior, problem.starts(sampler, generators), generators)
        kept = []
        for draw in range(warmup + self.num_draws):
            if draw == warmup:
                state = state._replace(memory=sampler.freeze(state.memory))
            for _ in range(sampler.steps_per_draw):
                state, _info = sampler.step(problem.posterior, state)
            if draw >= warmup and (draw - warmup + 1) % self.thin == 0:
                kept.append(state.x)
        return torch.stack(kept, dim=1)

    def _take(self, x: Tensor, posterior: Potential) -> Tensor:
        if self.statistics is None:
            self.statistics = default_statistics(x, posterior)
        return evaluate(self.where, self.statistics, x, posterior)

    def single(
        self, truth: Tensor, posterior: Potential, generator: torch.Generator, chains: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """True statistics (statistics,) and those of the draws, (statistics, chains, draws)."""
        draws = self._draws(posterior, generator, chains, seed)
        of_draws = self._take(draws.flatten(0, 1), posterior)
        true = self._take(truth[None].to(draws), posterior)
        return true[:, 0], of_draws.reshape(len(of_draws), *draws.shape[:2])

    def batch(
        self, truths: Tensor, posterior: Potential, generator: torch.Generator, seed: int
    ) -> tuple[Tensor, Tensor]:
        """True statistics (replications, statistics) and those of the draws, (replications, statistics, 1, draws)."""
        draws = self._draws(posterior, generator, len(truths), _seed(seed, len(truths)))
        if len(draws) != len(truths):
            raise ValueError(f"{self.where}: {len(draws)} batches of draws for {len(truths)} replications")
        each = [self._take(draws[:, k].contiguous(), posterior) for k in range(draws.shape[1])]
        true = self._take(truths.to(draws), posterior)
        return true.mT, torch.stack(each, dim=-1).transpose(0, 1)[:, :, None]


def _result(run: _Replication, true: Tensor, drawn: Tensor, generator: torch.Generator) -> SBCResult:
    """Ranks of (replications, statistics) among (replications, statistics, chains, draws)."""
    flat = drawn.flatten(2)
    below = (flat < true[..., None]).sum(dim=2)
    ranks = random_ranks(below, (flat == true[..., None]).sum(dim=2), generator)
    size = flat.shape[2]
    uniform = (ranks + torch.rand(ranks.shape, generator=generator, dtype=torch.float64)) / (size + 1)
    names = tuple(run.statistics or ())
    related = _autocorrelation(drawn)
    worst = int(related.argmax())
    error = 1 / math.sqrt(drawn.shape[0] * drawn.shape[2] * drawn.shape[3])
    if float(related[worst]) > _MOST_AUTOCORRELATION + 3 * error:
        warnings.warn(
            f"{run.where}: neighbouring draws have autocorrelation {float(related[worst]):.2f} ({names[worst]}), "
            f"expected at most {_MOST_AUTOCORRELATION}: ranks are too extreme even of a correct sampler; thin more",
            DiagnosticWarning,
            stacklevel=3,
        )
    return SBCResult(ranks, size, names, uniform, dict(zip(names, map(float, related), strict=True)))


def _autocorrelation(drawn: Tensor) -> Tensor:
    """Lag-one autocorrelation within chains, averaged over replications: (..., statistics, chains, n) -> (statistics,).

    The sample's own is low by about 1 / n, which is put right; 0 for chains of fewer than five draws.
    """
    n = drawn.shape[3]
    if n < 5:
        return torch.zeros(drawn.shape[1], dtype=torch.float64)
    off = drawn - drawn.mean(dim=3, keepdim=True)
    products = (off[..., 1:] * off[..., :-1]).sum(dim=3)
    share = products / off.square().sum(dim=3)
    return torch.nan_to_num(share).mean(dim=(0, 2)) + 1 / n
