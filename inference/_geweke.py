"""Geweke's joint distribution test: does a kernel in turn with the data keep the joint law of image and data?"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from potentia._potential import Potential
from potentia._random import chain_generators
from potentia._validate import count, same_shape
from potentia.inference._calibration import MakePosterior, PriorSample, checked_image
from potentia.inference._diagnostics import mcse
from potentia.inference._protocol import Sampler
from potentia.inference._special import normal_tail
from potentia.inference._statistics import Statistic, default_statistics, evaluate
from potentia.inference._uniformity import bonferroni

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Step = Callable[[Potential, Tensor, torch.Generator], Tensor]
_LEAST_STEPS = 20


@dataclass(frozen=True, eq=False)
class GewekeResult:
    """Differences between the two simulators in standard errors, for mean and spread of each statistic.

    - ``z``: (tests,), standard normal if the kernel is right; ``names`` of the tests; ``p_values`` two-sided, by name;
      ``p_value`` the least, corrected for their number.
    - ``independent``, ``successive``: the averages that are compared, (tests,), in std of the statistic.
    - ``ess``: effective sample size of each successive average.
    """

    names: tuple[str, ...]
    z: Tensor
    independent: Tensor
    successive: Tensor
    ess: Tensor

    @property
    def p_values(self) -> dict[str, float]:
        """Two-sided p-value of each test."""
        return dict(zip(self.names, normal_tail(self.z).tolist(), strict=True))

    @property
    def p_value(self) -> float:
        """P-value of all tests together (Bonferroni)."""
        return bonferroni(normal_tail(self.z))

    def __repr__(self) -> str:
        lines = [
            f"Geweke's joint distribution test: p-value {self.p_value:.3g} in all",
            f"{'':<32}{'z':>8}{'p':>10}{'difference':>12}{'ESS':>8}",
        ]
        difference = self.successive - self.independent
        rows = zip(self.names, self.z, normal_tail(self.z), difference, self.ess, strict=True)
        lines += [
            f"{n:<32}{float(z):>8.2f}{float(p):>10.3g}{float(d):>12.3f}{float(e):>8.0f}" for n, z, p, d, e in rows
        ]
        return "\n".join(lines)

    def plot(self, path: str | Path | None = None) -> "Figure":
        """The z-scores beside the band that holds all of them with a probability of 95 %.

        Raises: ImportError without matplotlib.
        """
        from potentia.inference._calibration_plots import plot_geweke

        return plot_geweke(self, path)


def geweke_test(
    prior_sample: PriorSample,
    make_posterior: MakePosterior,
    kernel: Sampler | Step,
    *,
    num_steps: int = 1000,
    num_chains: int = 4,
    num_independent: int | None = None,
    statistics: Mapping[str, Statistic] | None = None,
    batched: bool = False,
    seed: int = 0,
) -> GewekeResult:
    """Compare two ways of drawing images together with data, one of which goes by the kernel.

    The marginal-conditional simulator draws an image from the prior and data from the image, again and again. The
    successive-conditional one draws data from the image and moves the image by the kernel for these data, in turn. Both
    have one joint law if, and only if, the kernel leaves every posterior invariant; it need not be run to convergence.
    A fault of a percent adds up over steps, so that this sees smaller ones than simulation-based calibration does.

    Args:
        prior_sample: Draws one image (C, H, W) of the prior from a generator.
        make_posterior: Given an image and a generator, simulates data and returns prior + likelihood.
        kernel: A function of posterior, image (1, C, H, W) and generator that returns the image moved; or a sampler,
            whose ``steps_per_draw`` steps are one move. Step sizes must be fixed: a sampler that adapts is not
            invariant.
        num_steps: Moves of each chain.
        num_chains: Independent chains, each started from the prior.
        num_independent: Draws of the marginal-conditional simulator; as many as moves by default.
        statistics: By name, functions of images (n, C, H, W) and posterior that give (n,) numbers. The mean of each and
            its squared distance from the mean are compared. By default as in ``simulation_based_calibration``.
        batched: Move all chains at once: images have shape (chains, C, H, W), and ``make_posterior`` gets all of them
            and returns a potential whose batch entry c holds the data of chain c.
        seed: Seed of all random numbers.

    Raises:
        TypeError, ValueError: For arguments, images or statistics of another kind or shape.
    Source: Geweke 2004, section 3; his spectral estimate of the error is here the ESS of Vehtari et al. 2021.
    """
    where = "geweke_test"
    steps = count(where, "num_steps", num_steps, least=_LEAST_STEPS)
    chains = count(where, "num_chains", num_chains)
    alone = steps * chains if num_independent is None else count(where, "num_independent", num_independent, least=2)
    move = _move(where, kernel)
    joint = _Joint(where, prior_sample, make_posterior, statistics, batched)
    *each, last = chain_generators(seed, range(chains + 1))
    if batched:
        successive = joint.successive(move, steps, each, each[0])
        rounds = -(-alone // chains)
        marginal = torch.cat([joint.start([last] * chains, last)[1] for _ in range(rounds)], dim=1)
    else:
        successive = torch.cat([joint.successive(move, steps, [g], g) for g in each], dim=1)
        marginal = torch.cat([joint.start([last], last)[1] for _ in range(alone)], dim=1)
    return _compare(tuple(joint.statistics or ()), marginal, successive)


def _move(where: str, kernel: Any) -> Step:
    if not isinstance(kernel, Sampler):
        if not callable(kernel):
            raise TypeError(f"{where}: kernel is a {type(kernel).__name__}, expected a sampler or a function")
        return cast(Step, kernel)

    def of_sampler(posterior: Potential, x: Tensor, generator: torch.Generator) -> Tensor:
        generators = [generator] if len(x) == 1 else _split(generator, len(x))
        state = kernel.init(posterior, x, generators)
        state = state._replace(memory=kernel.freeze(state.memory))
        for _ in range(kernel.steps_per_draw):
            state, _info = kernel.step(posterior, state)
        return state.x

    return of_sampler


def _split(generator: torch.Generator, number: int) -> list[torch.Generator]:
    """Generators for each of several chains, seeded by one."""
    word = int(torch.randint(2**62, (), generator=generator))
    return chain_generators(word, range(number), generator.device)


class _Joint:
    """Draws images and data together, and takes statistics of both."""

    def __init__(
        self,
        where: str,
        prior_sample: PriorSample,
        make_posterior: MakePosterior,
        statistics: Mapping[str, Statistic] | None,
        batched: bool,
    ) -> None:
        self.where = where
        self.prior_sample = prior_sample
        self.make_posterior = make_posterior
        self.statistics = None if statistics is None else dict(statistics)
        self.batched = batched

    def _take(self, x: Tensor, posterior: Potential) -> Tensor:
        if not isinstance(posterior, Potential):
            raise TypeError(
                f"{self.where}: make_posterior gave a {type(posterior).__name__}, expected prior + likelihood"
            )
        if self.statistics is None:
            self.statistics = default_statistics(x, posterior)
        return evaluate(self.where, self.statistics, x, posterior)

    def _data(self, x: Tensor, generator: torch.Generator) -> Potential:
        return self.make_posterior(x if self.batched else x[0], generator)

    def start(self, generators: list[torch.Generator], own: torch.Generator) -> tuple[Tensor, Tensor, Potential]:
        """Images of the prior (chains, C, H, W), statistics (statistics, chains), and the posteriors of their data."""
        x = torch.stack([checked_image(self.where, self.prior_sample(g)) for g in generators])
        posterior = self._data(x, own)
        return x, self._take(x, posterior), posterior

    def successive(self, move: Step, steps: int, generators: list[torch.Generator], own: torch.Generator) -> Tensor:
        """Statistics along chains that move and draw data in turn: (statistics, chains, steps)."""
        x, _, posterior = self.start(generators, own)
        found = []
        for _ in range(steps):
            moved = move(posterior, x, own)
            same_shape(self.where, "the moved image", tuple(moved.shape), tuple(x.shape))
            x = moved.detach()
            # Beside the data that it was moved by, not those drawn from it: these would fit it whatever the kernel did.
            found.append(self._take(x, posterior))
            posterior = self._data(x, own)
        return torch.stack(found, dim=2)


def _compare(names: tuple[str, ...], marginal: Tensor, successive: Tensor) -> GewekeResult:
    """Means and spreads of (statistics, n) against (statistics, chains, steps)."""
    centre, scale = marginal.mean(dim=1), marginal.std(dim=1)
    scale = torch.where(scale > 0, scale, 1.0)
    alone = (marginal - centre[:, None]) / scale[:, None]
    chain = (successive - centre[:, None, None]) / scale[:, None, None]
    # Means of squares beside the means: a fault of the spread shows in them first.
    alone, chain = torch.cat([alone, alone.square()]), torch.cat([chain, chain.square()])
    error_alone = alone.std(dim=1) / alone.shape[1] ** 0.5
    error_chain = mcse(chain.permute(1, 2, 0), "mean")
    variance = error_alone.square() + error_chain.square()
    difference = chain.mean(dim=(1, 2)) - alone.mean(dim=1)
    z = torch.where(variance > 0, difference / variance.sqrt(), torch.where(difference == 0, 0.0, torch.inf))
    told = tuple(f"mean of {n}" for n in names) + tuple(f"spread of {n}" for n in names)
    ess = chain.flatten(1).var(dim=1) / error_chain.square()
    return GewekeResult(told, z, alone.mean(dim=1), chain.mean(dim=(1, 2)), ess)
