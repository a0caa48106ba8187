"""Twisted sequential Monte Carlo: guided diffusion with weights, for the modes of a posterior."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from potentia._potential import Energy, Potential
from potentia._quadratic import Quadratic
from potentia._random import Generators, generator_device, standard_normal
from potentia._validate import count
from potentia.annealers import Annealer
from potentia.inference._logdet import LogDet
from potentia.inference._moments import (
    Conditioned,
    DenoiserCovariance,
    Gauss,
    first_basis,
    fixed_probe,
    low_rank,
    split,
)
from potentia.inference._protocol import ADAPTED, Info, Sampler, State
from potentia.inference._resampling import (
    conditional_effective_sample_size,
    effective_sample_size,
    log_mean_exp,
    systematic,
)

EVIDENCE = ADAPTED + "log_evidence"
EFFECTIVE = ADAPTED + "effective"
_LARGEST, _LEAST, _LEVELS = 10.0, 0.05, 20  # where no annealer is given
_MOST = 1 - 1e-3  # of s^2: variances of a clean image above it tell nothing of the prior's own


@dataclass(frozen=True)
class TwistedSMC(Sampler):
    """Particles that walk the reverse diffusion under guidance, and are weighed so that modes get their due.

    Chains are the particles. From scale s to the next scale r, with D the denoised image, C = s^2 J its covariance
    (J the denoiser's Jacobian) and N(clean; D, C) taken for what the prior knows:

        clean ~ N(clean; D, C) L(clean) / Z,                  Z = twist_s(x) = integral of N(clean; D, C) L(clean)
        x'    = (1 - r^2/s^2) clean + r^2/s^2 x + r sqrt(1 - r^2/s^2) xi
        weight *= twist_r(x') / Z',                           Z' = integral of N(clean; D', C') L(clean)

    where N(D', C') is N(D, C) given x' too, so that Z' is the twist that the model of scale s expects at x'. Particles
    start at clean images of N(m, Σ) L plus noise of the largest scale, m and Σ those of the Gaussian prior whose
    denoiser has the value and the Jacobian that are found there, and the first weights account for it. All weights are
    one where the prior is Gaussian, however few the scales and whatever the largest: they pay for its not being so.
    Particles are resampled (systematic) where the effective sample size falls below ``resample_below`` of them, and at
    the end, where a draw is an image from N(clean; D, C) L. The product of mean weights estimates the evidence.

    C is low rank plus isotropic, ``rank`` directions that subspace iteration follows from scale to scale and the rest
    of the trace, at ``rank + 1`` vector-Jacobian products a scale. The weights are exact for the prior that the reverse
    steps make of N(D, C), which tends to the prior itself as scales lie closer: with a good C some twenty of them do,
    with a bad one spread is lost, and weights are uneven. Where one scale's weights alone are worth less than
    ``least_effective`` of the particles, only that power of them is applied which is worth as much, and the rest is
    owed to the next scales: errors of early twists cancel there. What is still owed at the end is dropped. The memory
    of a draw holds ``adapted_effective``, the share of the particles that all weights were worth together, those of
    particles with a common ancestor added up, and what was dropped included: mode weights and evidence are to be
    trusted only where it is not small. ``adapted_log_evidence`` is each run's estimate of the log of the prior's mean
    of exp(-L): that of the data, up to the constants that the likelihood leaves out.

    The particles form ``num_runs`` independent runs, pooled at the end by their evidences. Draws of one run have
    common ancestors: later stages (``>> Langevin(...) >> MALA()``) take copies apart. A chain's draws depend on the
    others'; each step of random numbers still comes from the chain's own generator, resampling from the first of a run.

    ``annealer`` gives the scales; its temperatures and steps are not used. None is 20 geometric scales from 10 to 0.05,
    cut to the prior's own.

    Raises: TypeError, at the first step, for a posterior other than one multi-scale prior of weight one and terms with
        quadratic forms; ValueError for numbers out of range.
    Source: Wu et al. 2023 (arXiv 2306.17775, the twisted diffusion sampler); the moment-matched twist is that of Rozet
        et al. 2024 (arXiv 2405.13712); families of particles are those of Lee and Whiteley 2018. The reverse kernel
        with C in it, the weight that follows, and the start are ours.
    """

    annealer: Annealer | None = None
    rank: int = 16
    num_runs: int = 4
    resample_below: float = 0.5
    least_effective: float = 0.2
    first_rounds: int = 2

    def __post_init__(self) -> None:
        if self.annealer is not None:
            given: object = self.annealer
            if not isinstance(given, Annealer):
                got = type(given).__name__
                raise TypeError(f"TwistedSMC: annealer is a {got}, expected one of potentia.annealers")
            if self.steps_per_draw < 2:
                raise ValueError("TwistedSMC: the annealer has one scale, expected two or more")
        count("TwistedSMC", "rank", self.rank)
        count("TwistedSMC", "num_runs", self.num_runs)
        count("TwistedSMC", "first_rounds", self.first_rounds, least=0)
        for name in ("resample_below", "least_effective"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"TwistedSMC: {name} must lie between 0 and 1, got {value}")

    def _scales(self, posterior: Potential) -> list[float]:
        if self.annealer is not None:
            return sorted({level.sigma for level in self.annealer}, reverse=True)
        low, high = posterior.scales or (0.0, math.inf)
        top = min(_LARGEST, high)
        bottom = min(max(_LEAST, low), top)
        return [top * (bottom / top) ** (k / (_LEVELS - 1)) for k in range(_LEVELS)]

    @property
    def steps_per_draw(self) -> int:
        """Scales: one step each."""
        return _LEVELS if self.annealer is None else len({level.sigma for level in self.annealer})

    @property
    def couples_chains(self) -> bool:
        """True: particles are weighed against one another."""
        return True

    @property
    def independent_draws(self) -> bool:
        """True: every draw is a run of its own. The chains of one draw are not independent of one another."""
        return True

    def start(self, posterior: Potential, shape: Sequence[int], dtype: torch.dtype, generator: Generators) -> Tensor:
        """Images of the first guess, given the measurements, plus noise of the largest scale.

        ``shape`` is (chains, C, H, W).
        """
        noise = standard_normal(shape, generator, dtype=dtype, device=generator_device(generator))
        prior, form = split("TwistedSMC", posterior, noise)
        likelihood = _Seen.of(form, noise)
        sigma = self._scales(posterior)[0]
        guess, _ = self._first_guess(prior, noise[:1], sigma)
        means = Gauss(guess.mean.expand(noise.shape), guess.covariance)
        return likelihood.given(means).draw(generator) + sigma * noise

    def init(self, posterior: Potential, x0: Tensor, generator: Generators) -> State:
        """State of particles at the largest scale, (chains, C, H, W)."""
        posterior.check(x0)
        split("TwistedSMC", posterior, x0)
        return State(x0.detach(), None, 0, generator)

    def step(self, posterior: Potential, state: State) -> tuple[State, Info]:
        """From one scale to the next; at the last one, the draw."""
        scales = self._scales(posterior)
        k = state.step % len(scales)
        x, memory = state.x, state.memory
        if k == 0:
            memory = {}
            if state.step > 0:
                x = self.start(posterior, x.shape, x.dtype, state.generator)
        prior, form = split("TwistedSMC", posterior, x)
        likelihood = _Seen.of(form, x)
        now, products = self._guess(prior, x, scales[k], memory.get("basis"), likelihood)
        expected = memory["log_expected"] if k > 0 else self._expected_first(prior, x, scales[0], likelihood)
        weights = _Weights.of(memory, len(x), self._runs(len(x)), x.device)
        weights = weights.times(now.posterior.log_evidence - expected, self.least_effective)
        info = Info(scales[k], 1.0, 1, n_vjp=products)
        if k + 1 == len(scales):
            pooled = weights.pooled()
            index = systematic(pooled, _first(state.generator))
            held = {EVIDENCE: weights.log_sum + log_mean_exp(weights.log_weight), EFFECTIVE: weights.worth()}
            drawn = now.at(index, likelihood).posterior.draw(state.generator)
            return state._replace(x=drawn, step=state.step + 1, memory=held), info
        chosen, weights = weights.resampled(self.resample_below, state.generator)
        if chosen is not None:
            x, now = x[chosen], now.at(chosen, likelihood)
        x, expected = self._move(x, now, scales[k], scales[k + 1], likelihood, state.generator)
        memory = {"basis": now.basis, "log_expected": expected, **weights.memory()}
        return state._replace(x=x, step=state.step + 1, memory=memory), info

    def _runs(self, chains: int) -> int:
        """As many runs as asked for, or the next fewer that divide the chains evenly."""
        return next(r for r in range(min(self.num_runs, chains), 0, -1) if chains % r == 0)

    def _guess(
        self, prior: Energy, x: Tensor, sigma: float, basis: Tensor | None, likelihood: "_Seen"
    ) -> tuple["_Guess", int]:
        """What the prior knows of the clean image, and the vector-Jacobian products that it took."""
        clean, pull = prior.denoise_with_vjp(x, sigma)
        rank = max(1, min(self.rank, x[0].numel() - 1))
        products = rank + 1
        if basis is None:
            basis = first_basis(pull, x.shape, rank, self.first_rounds, x)
            products += rank * self.first_rounds
        covariance, following = low_rank(pull, sigma, basis, fixed_probe(x.shape[1:], x))
        return _Guess(Gauss(clean, covariance), following, likelihood.given(Gauss(clean, covariance))), products

    def _first_guess(self, prior: Energy, like: Tensor, sigma: float) -> tuple[Gauss, Gauss]:
        """The prior as one Gaussian, and what it knows of a clean image given one at the largest scale.

        Of a Gaussian N(m, Σ), the denoiser at any x tells all: Σ^-1 = C^-1 - I / s^2 and m = x + Σ C^-1 (D - x). The
        second Gaussian's mean is that for x = m, which is m itself.

        Shapes: like (1, C, H, W).
        """

        def at(x: Tensor, basis: Tensor | None) -> tuple[Gauss, Gauss, Tensor]:
            clean, pull = prior.denoise_with_vjp(x, sigma)
            if basis is None:
                rank = max(1, min(self.rank, x[0].numel() - 1))
                basis = first_basis(pull, x.shape, rank, max(1, self.first_rounds), x)
            covariance, basis = low_rank(pull, sigma, basis, fixed_probe(x.shape[1:], x))
            covariance = covariance.at_most(_MOST * sigma**2)
            wide = covariance.sharpened(-1 / sigma**2)
            ratio = DenoiserCovariance(
                covariance.basis, wide.variances / covariance.variances, wide.rest / covariance.rest
            )
            mean = x + ratio.apply(clean - x)
            return Gauss(mean, wide), Gauss(mean, covariance), basis

        first, _, basis = at(torch.zeros_like(like), None)
        guess, given, _ = at(first.mean, basis)
        return guess, given

    def _expected_first(self, prior: Energy, x: Tensor, sigma: float, likelihood: "_Seen") -> Tensor:
        """Log of the twist that the first guess expects at particles of the largest scale, over its evidence."""
        guess, given = self._first_guess(prior, x[:1], sigma)
        clean = given.mean + given.covariance.apply(x - given.mean) / sigma**2
        expected = likelihood.given(Gauss(clean, given.covariance)).log_evidence
        return expected - likelihood.given(guess).log_evidence

    @staticmethod
    def _move(
        x: Tensor, now: "_Guess", sigma: float, following: float, likelihood: "_Seen", generator: Generators
    ) -> tuple[Tensor, Tensor]:
        """The particles at the following scale, and the log twist that this scale's model expects there."""
        share = (following / sigma) ** 2
        clean = now.posterior.draw(generator)
        noise = standard_normal(x.shape, generator, dtype=x.dtype, device=x.device)
        new = (1 - share) * clean + share * x + following * math.sqrt(1 - share) * noise
        # To the clean image, x' is a measurement of precision (1 - share) / r^2.
        mean, covariance = now.prior
        sharper = covariance.sharpened((1 - share) / following**2)
        centre = mean + sharper.apply(new - share * x - (1 - share) * mean) / following**2
        return new, likelihood.given(Gauss(centre, sharper)).log_evidence


class _Seen(NamedTuple):
    """The likelihood: its quadratic form, and log det(Λ + shift I)."""

    form: Quadratic
    logdet: LogDet

    @classmethod
    def of(cls, form: Quadratic, like: Tensor) -> Self:
        return cls(form, LogDet.of(form.structure, like.shape[1:], like.dtype, device=like.device))

    def given(self, guess: Gauss) -> Conditioned:
        return Conditioned(guess, self.form, self.logdet)


class _Guess(NamedTuple):
    """What is known of the clean image of each particle: by the prior, and by the measurements too."""

    prior: Gauss
    basis: Tensor  # to begin with at the next scale
    posterior: Conditioned

    def at(self, index: Tensor, likelihood: _Seen) -> "_Guess":
        """Those of the particles with these indices."""
        prior = Gauss(self.prior.mean[index], self.prior.covariance[index])
        return _Guess(prior, self.basis[index], likelihood.given(prior))


class _Weights(NamedTuple):
    """Weights of the particles of each run: applied, owed, and the log of the evidence that went into resampling.

    Shapes: log_weight and log_owed (runs, particles); log_sum (runs,); all float64. family (runs, particles), int64,
        numbers the particle of the first scale that each descends from.
    """

    log_weight: Tensor
    log_owed: Tensor
    log_sum: Tensor
    family: Tensor

    @classmethod
    def of(cls, memory: Mapping[str, Tensor], particles: int, runs: int, device: torch.device) -> Self:
        if "log_weight" in memory:
            return cls(*(memory[name] for name in cls._fields))
        zeros = torch.zeros(runs, particles // runs, dtype=torch.float64, device=device)
        return cls(zeros, zeros, zeros[:, 0], torch.arange(particles, device=device).reshape(runs, -1))

    def memory(self) -> dict[str, Tensor]:
        return self._asdict()

    def times(self, log_factors: Tensor, least: float) -> "_Weights":
        """Multiply by what is owed and new, or by that power of it which is worth the least share of the particles."""
        due = self.log_owed + log_factors.reshape(self.log_weight.shape)
        power = _power(self.log_weight, due, least * due.shape[1])[:, None]
        return self._replace(log_weight=self.log_weight + power * due, log_owed=(1 - power) * due)

    def resampled(self, below: float, generator: Generators) -> "tuple[Tensor | None, _Weights]":
        """Indices into all particles, and the weights of what they give; None where no run needed it."""
        runs, n = self.log_weight.shape
        poor = effective_sample_size(self.log_weight) < below * n
        if not bool(poor.any()):
            return None, self
        index = torch.arange(n, device=poor.device).repeat(runs, 1)
        for run in poor.nonzero()[:, 0].tolist():
            source = generator if isinstance(generator, torch.Generator) else generator[run * n]
            index[run] = systematic(self.log_weight[run], source)
        weights = _Weights(
            torch.where(poor[:, None], 0.0, self.log_weight),
            self.log_owed.gather(1, index),
            self.log_sum + torch.where(poor, log_mean_exp(self.log_weight), 0.0),
            self.family.gather(1, index),
        )
        return (index + n * torch.arange(runs, device=poor.device)[:, None]).reshape(-1), weights

    def pooled(self) -> Tensor:
        """Log weights of all particles together, each run by its evidence: (runs * particles,)."""
        return (self.log_weight + self.log_sum[:, None]).reshape(-1)

    def worth(self) -> Tensor:
        """Share of the particles that all weights, what is owed among them, are worth, family by family: ()."""
        share = (self.pooled() + self.log_owed.reshape(-1)).softmax(0)
        families = torch.zeros_like(share).index_add_(0, self.family.reshape(-1), share)
        return 1 / families.square().sum() / share.numel()


def _power(log_weight: Tensor, due: Tensor, least: float) -> Tensor:
    """The largest power of factors, one at the most, that leaves so many effective of each run's particles: (runs,)."""
    low, high = torch.zeros_like(due[:, 0]), torch.ones_like(due[:, 0])
    enough = conditional_effective_sample_size(log_weight, due) >= least
    for _ in range(30):
        middle = 0.5 * (low + high)
        good = conditional_effective_sample_size(log_weight, middle[:, None] * due) >= least
        low, high = torch.where(good, middle, low), torch.where(good, high, middle)
    return torch.where(enough, 1.0, low)


def _first(generator: Generators) -> torch.Generator:
    return generator if isinstance(generator, torch.Generator) else generator[0]
