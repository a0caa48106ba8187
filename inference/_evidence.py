"""The evidence: how probable the measurements are under a prior, an operator and a noise level."""

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from potentia._algebra import Scaled, Sum, unscaled
from potentia._potential import Likelihood, Potential
from potentia._random import chain_generators
from potentia._validate import count
from potentia.annealers import Annealer
from potentia.inference._paths import Start, Tempered, gaussian_start
from potentia.inference._precondition import terms
from potentia.inference._prepare import Problem, prepare
from potentia.inference._smc import SMC, check_value, walk
from potentia.inference._twisted import EVIDENCE, TwistedSMC

LEAST_RUNS = 4


class EvidenceWarning(UserWarning):
    """Runs disagree so much about an evidence that its error bar is not to be relied upon."""


class Evidence(NamedTuple):
    """What ``log_evidence`` found.

    ``log_value`` is log p(y) in nats and ``std_error`` its standard error; ``log_values`` are those of the runs, and
    ``n_grad`` the evaluations of the prior for each particle, all runs together.
    """

    log_value: float
    std_error: float
    log_values: tuple[float, ...]
    n_grad: int


class Run(NamedTuple):
    """One run's estimate: log of the integral that it stands for, and evaluations for each particle."""

    log_integral: float
    n_grad: int


class Task(NamedTuple):
    """What every run of an estimate shares. Shapes: like (C, H, W), for its shape, dtype and device."""

    posterior: Potential
    sampler: SMC
    num_particles: int
    like: Tensor
    start: Start


Method = Callable[[Task, torch.Generator], Run]


def log_evidence(
    posterior: Potential,
    annealer: Annealer,
    *,
    method: str = "smc",
    num_particles: int = 256,
    num_runs: int = 8,
    moves: int = 8,
    target: float = 0.8,
    normalise_prior: bool = False,
    tolerance: float | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
) -> Evidence:
    """Estimate log p(y) = log of the integral of p(x) p(y | x) over all images.

    It says which operator, noise level or prior the measurements favour: the difference of two is the log Bayes factor.
    The prior is taken smoothed to the annealer's smallest scale, and the likelihood normalised over y
    (``Likelihood.log_normaliser``); a weighted one counts as that power of its density.

    - "smc": ``SMC`` over the noise scales, from a Gaussian whose integral is known. Exact for priors that are
      normalised at every scale (Gaussians and their mixtures). For others (learned ones, total variation) the value is
      off by a constant of the prior, the same for all likelihoods, which cancels where these are compared; with
      ``normalise_prior`` a second pass for the prior alone estimates the constant and takes it off.
    - "power": particles of the prior, by SMC over its scales, and then the likelihood's power from 0 to 1 at the
      smallest scale. The prior's constant cancels. It needs more particles where few of the prior's images explain the
      measurements, and loses modes that only those find.
    - "twisted": ``TwistedSMC`` over the annealer's own scales, for one multi-scale prior and linear-Gaussian
      likelihoods. It needs no values, so that score-only priors do, and knows no constant of the prior. Its reverse
      kernel is Gaussian, which leaves a bias where the prior is not, outside of the error bar, that falls in
      proportion to the number of scales: on a mixture of unlike widths 0.29 nats at 24 scales, 0.04 at 96. ``n_grad``
      counts vector-Jacobian products too; ``moves`` and ``target`` are not used.

    Independent runs are pooled by the mean of their estimates, which are free of bias but for the adaptation's, of
    order 1 / num_particles. The standard error comes from their scatter, enlarged by sqrt((n - 1) / (n - 3)) for n
    runs, so that the error in units of it has variance one; the error of a log-determinant that is estimated is added.

    Error bars know only what some run has seen. Static posteriors may give a mode a tiny weight at middling scales
    that has a large one at the end (a blur of the wrong width, under a prior of several textures, had 4e-7 of the mass
    at sigma 0.7 where 9 in 10 were to end): then all of "smc"'s runs miss it, and agree. The other method goes another
    way; where the two differ by more than their errors, believe the greater: a missed mode only lowers the value.

    Args:
        posterior: ``prior + likelihood``, energies with values throughout.
        annealer: Its largest and smallest scale bound the path; the scales between are chosen on the way ("twisted"
            takes those of the annealer: 50 to 100).
        method: "smc", "power" or "twisted".
        num_particles: Of each run.
        num_runs: Independent runs, four or more.
        moves: Langevin moves at each level.
        target: Conditional effective sample size at each level, as a fraction.
        normalise_prior: Estimate the prior's normaliser too.
        tolerance: Relative residual for likelihoods that need conjugate gradients; None is the solver's own.
        seed: Seed of all random numbers.
        device: Where to compute; by default where the posterior's tensors are.
        dtype: Precision, as in ``sample``.

    Raises:
        TypeError: For arguments of the wrong kind, a score-only prior ("twisted" takes them), a likelihood that has no
            normaliser, or, for "twisted", one that has no quadratic form.
        ValueError: For arguments out of range, an unknown method, or a posterior without prior or likelihood.
        FloatingPointError: If weights stop being finite.

    Warns:
        EvidenceWarning: If runs scatter by more than a nat: then the largest of them outweighs the others.

    Source: Del Moral, Doucet and Jasra 2006, section 3.2 (normalisers); Chopin 2002 (powers of the likelihood).
    """
    if method not in METHODS:
        raise ValueError(f"log_evidence: method is {method!r}, expected one of {', '.join(map(repr, METHODS))}")
    particles = count("log_evidence", "num_particles", num_particles, least=2)
    runs = count("log_evidence", "num_runs", num_runs, least=LEAST_RUNS)
    sampler = SMC(annealer, moves=moves, target=target, tolerance=tolerance)
    problem = prepare(posterior, sampler, particles, None, seed, device, dtype)
    twisted = method == "twisted"
    if not twisted:
        check_value("log_evidence", problem.posterior)
    prior = _parts(problem.posterior)
    constant = float(sum(_log_normaliser(t) for t in terms(problem.posterior) if _is_likelihood(t)))
    whole = _task(problem, problem.posterior, sampler)
    alone = _task(problem, prior, sampler) if normalise_prior and method == "smc" else None
    logs, n_grad, prior_logs = [], 0, []
    for generator in chain_generators(seed, range(runs), problem.device):
        run = METHODS[method](whole, generator)
        logs.append(run.log_integral - constant)
        n_grad += run.n_grad
        if alone is not None:
            run = _by_scales(alone, generator)
            prior_logs.append(run.log_integral)
            n_grad += run.n_grad
    value, error = pooled(logs)
    error = math.hypot(error, whole.start.std_error if method == "smc" else 0.0)
    if prior_logs:
        normaliser, its_error = pooled(prior_logs)
        value, error = value - normaliser, math.hypot(error, its_error)
        logs = [v - normaliser for v in logs]
    return Evidence(value, error, tuple(logs), n_grad)


def pooled(log_values: list[float]) -> tuple[float, float]:
    """Log of the mean of independent estimates, and its standard error.

    The larger of two errors is taken: of the logarithm of the mean, by the delta method, and of the mean logarithm.

    Raises: ValueError for fewer than four estimates. Warns: EvidenceWarning as ``log_evidence``.
    """
    n = count("log_evidence", "num_runs", len(log_values), least=LEAST_RUNS)
    logs = torch.tensor(log_values, dtype=torch.float64)
    top = logs.max()
    ratio = (logs - top).exp()
    spread = float(logs.std())
    if spread > 1:
        warnings.warn(
            f"log_evidence: the runs scatter by {spread:.2f} nats (std), expected 1 or less: "
            "more particles, more moves or a higher target are needed",
            EvidenceWarning,
            stacklevel=3,
        )
    error = max(float(ratio.std() / ratio.mean()), spread) / math.sqrt(n) * math.sqrt((n - 1) / (n - 3))
    return float(top + ratio.mean().log()), error


def _by_scales(task: Task, generator: torch.Generator) -> Run:
    found = task.sampler.run(task.posterior, task.like, task.num_particles, generator, task.start)
    return Run(float(found.log_integral), found.n_grad)


def _by_power(task: Task, generator: torch.Generator) -> Run:
    prior = _parts(task.posterior)
    added = Sum(*(t for t in terms(task.posterior) if _is_likelihood(t)))
    found = task.sampler.run(prior, task.like, task.num_particles, generator)
    found = found._replace(log_integral=torch.zeros_like(found.log_integral))
    leg = Tempered(task.sampler.annealer.sigma_min, prior, added)
    found = walk(found, leg, task.sampler.plan, generator, "log_evidence")
    return Run(float(found.log_integral), found.n_grad)


def _by_twists(task: Task, generator: torch.Generator) -> Run:
    sampler = TwistedSMC(task.sampler.annealer, num_runs=1)
    shape = (task.num_particles, *task.like.shape)
    state = sampler.init(task.posterior, sampler.start(task.posterior, shape, task.like.dtype, generator), generator)
    n_grad = 0
    for _ in range(sampler.steps_per_draw):
        state, info = sampler.step(task.posterior, state)
        n_grad += info.n_grad + info.n_vjp
    return Run(float(state.memory[EVIDENCE]), n_grad)


METHODS: dict[str, Method] = {"smc": _by_scales, "power": _by_power, "twisted": _by_twists}


def _task(problem: Problem, posterior: Potential, sampler: SMC) -> Task:
    like = torch.zeros(problem.shape, dtype=problem.dtype, device=problem.device)
    start = gaussian_start(posterior, sampler.annealer.sigma_max, like, sampler.tolerance)
    return Task(posterior, sampler, problem.num_chains, like, start)


def _is_likelihood(term: Potential) -> bool:
    return isinstance(unscaled(term), Likelihood)


def _parts(posterior: Potential) -> Potential:
    """The prior of a posterior that has a likelihood too.

    Raises: ValueError if either is missing.
    """
    prior = [t for t in terms(posterior) if not _is_likelihood(t)]
    if not prior or len(prior) == len(terms(posterior)):
        missing = "prior" if not prior else "likelihood"
        raise ValueError(f"log_evidence: the posterior has no {missing}, expected prior + likelihood")
    return Sum(*prior)


def _log_normaliser(term: Potential) -> Tensor:
    likelihood = unscaled(term)
    assert isinstance(likelihood, Likelihood)
    weight = term.weight if isinstance(term, Scaled) else 1.0
    return weight * likelihood.log_normaliser()
