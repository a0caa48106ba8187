"""The contract of Markov kernels."""

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potentia import energies
from potentia._potential import Energy, Potential, Sigma
from potentia._random import Generators, chain_generators, standard_normal
from potentia._structure import Fourier, Shift, Structure
from potentia._tensor import EVENT_DIMS, squared_norm
from potentia.inference._precondition import Preconditioner
from potentia.inference._protocol import ADAPTED, NOTHING, Info, Memory, Sampler, State
from potentia.testing._probe import generator_of, identical
from potentia.testing._report import require, require_close, subject

SHAPE = (1, 2, 2)
LogProposal = Callable[[Potential, Info, Tensor, Tensor], Tensor]
"""log q(x' | x) up to a constant, of (posterior, info of the step, x, x'): (chains,)."""

_FEW = 6
_STEPS = 4


def check_kernel(
    sampler: Sampler,
    *,
    log_proposal: LogProposal | None = None,
    reversible: bool = True,
    convention: str | None = None,
    num_chains: int = 40_000,
    num_steps: int = 20,
    num_warmup: int = 200,
    z: float = 5.0,
    seed: int = 0,
) -> None:
    """Check what a Markov kernel promises, on a Gaussian and a mixture of two Gaussians in four dimensions.

    The identities, in order:

    - the caller's tensors and the state handed in are left alone, steps are counted, and U and its gradient, where a
      state holds them, are those at x: a gradient left over from a refused proposal is none of them;
    - the same generators give the same chains; a chain is untouched, to the bit, by what another starts from, and does
      not depend on the number of chains, to rounding; chains that start together part;
    - a proposal where U is NaN is refused (samplers with a Metropolis test);
    - where ``log_proposal`` gives the density, the reported log ratio is U - U' + log q(x | x') - log q(x' | x);
    - rotating the target rotates the chain (samplers with a ``preconditioner`` field);
    - the step size that is reported is what its ``convention`` says: from a flat U the mean squared move a dimension is
      2 eps ("langevin") or (n h)^2 after n gradients ("leapfrog");
    - invariance: ``num_chains`` exact draws are still distributed exactly after ``num_steps`` steps: the means of x,
      of its products and of U are as they were, within ``z`` standard errors of the differences, chain by chain;
    - detailed balance, unless ``reversible`` is False: starts and ends of one step can be exchanged.

    Samplers that adapt warm up for ``num_warmup`` steps of 64 chains; what they have learned is frozen, and kept. Those
    with a true ``per_chain`` do not: what each chain has learned fits no other number of chains.
    Statistical checks see what ``num_chains`` lets them: 40,000 find a wrong test or noise at acceptances of 0.9 and
    below, subtler faults take more. ``num_chains=0`` leaves them out.

    Raises: AssertionError that names the class, the identity, got and expected.
    """
    where, generator = subject(sampler), generator_of(seed)
    cases = {"a Gaussian": _gaussian(), "a mixture": _mixture()}
    for name, target in cases.items():
        learned = _learned(sampler, target, num_warmup, seed)
        at = f"{where} on {name}"
        starts = target.sample(generator, _FEW)
        _check_state(at, sampler, target, starts, learned, seed)
        _check_chains(at, sampler, target, starts, learned, seed)
        if log_proposal is not None:
            _check_ratio(at, sampler, target, target.sample(generator, 200), learned, log_proposal, seed)
        _check_rotation(at, sampler, target, starts, learned, seed, generator)
    learned = _learned(sampler, _mixture(), num_warmup, seed)
    _check_nan(where, sampler, learned, seed)
    if convention is not None:
        _check_convention(where, sampler, convention, z, seed)
    for name, target in cases.items() if num_chains else ():
        learned = _learned(sampler, target, num_warmup, seed)
        _check_invariance(
            f"{where} on {name}", sampler, target, learned, num_chains, num_steps, reversible, z, seed, generator
        )


# The targets: smooth, in double precision, with exact draws.


def _covariances(*scales: float) -> Tensor:
    root = standard_normal((4, 4), torch.Generator().manual_seed(11), dtype=torch.float64)
    base = root @ root.mT / 4 + 0.3 * torch.eye(4, dtype=torch.float64)
    return torch.stack([s * base.roll(k, 0).roll(k, 1) for k, s in enumerate(scales)])


def _gaussian() -> energies.GaussianMixture:
    mean = torch.tensor([1.0, -0.5, 0.0, 0.3], dtype=torch.float64).reshape(1, *SHAPE)
    return energies.GaussianMixture(torch.ones(1, dtype=torch.float64), mean, covariances=_covariances(1.0))


def _mixture() -> energies.GaussianMixture:
    means = torch.tensor([[1.0, 1.0, 0.5, 0.0], [-1.0, 0.0, 0.0, 0.5]], dtype=torch.float64).reshape(2, *SHAPE)
    weights = torch.tensor([0.6, 0.4], dtype=torch.float64)
    return energies.GaussianMixture(weights, means, covariances=_covariances(0.8, 0.4))


class _Torn(Energy):
    """A standard normal density that is NaN beyond a distance."""

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        value = 0.5 * squared_norm(x)
        return value + torch.where(value.detach() < 1.0, 0.0, math.nan)


class _Flat(Energy):
    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return 0.0 * squared_norm(x)


# Running a sampler.


def _learned(sampler: Sampler, target: energies.GaussianMixture, steps: int, seed: int) -> Memory:
    """What the sampler keeps of a warm-up, frozen."""
    if not sampler.adapts or getattr(sampler, "per_chain", False):
        return NOTHING
    x = target.sample(torch.Generator().manual_seed(seed), 64)
    state = sampler.init(target, x, torch.Generator().manual_seed(seed + 1))
    for _ in range(steps):
        state, _ = sampler.step(target, state)
    return {k: v for k, v in sampler.freeze(state.memory).items() if k.startswith(ADAPTED)}


def _begin(sampler: Sampler, target: Potential, x: Tensor, generators: Generators, learned: Memory) -> State:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few chains: these do not adapt
        state = sampler.init(target, x, generators)
    return state._replace(memory=sampler.freeze({**state.memory, **learned})) if sampler.adapts else state


def _run(
    sampler: Sampler,
    target: Potential,
    x: Tensor,
    chains: Sequence[int],
    learned: Memory,
    seed: int,
    steps: int = _STEPS,
) -> list[Tensor]:
    """Where the chains stand after each step."""
    state = _begin(sampler, target, x, chain_generators(seed, chains), learned)
    path = []
    for _ in range(steps):
        state, _ = sampler.step(target, state)
        path.append(state.x)
    return path


# The identities.


def _check_state(
    where: str, sampler: Sampler, target: Potential, x: Tensor, learned: Memory, seed: int, steps: int = 12
) -> None:
    kept = x.clone()
    state = _begin(sampler, target, x, chain_generators(seed, range(len(x))), learned)
    for _ in range(steps):
        before = state
        held = {"x": state.x, "value": state.value, "grad": state.grad, **state.memory}
        copies = {k: t.clone() for k, t in held.items() if t is not None}
        state, info = sampler.step(target, state)
        changed = [k for k, t in held.items() if t is not None and not identical(t, copies[k])]
        require(not changed, where, "leaves the state it is given alone", f"changes in {changed}", "none")
        require(state.step == before.step + 1, where, "counts steps", state.step, before.step + 1)
        require(state.x.dtype == x.dtype, where, "keeps the dtype of x", state.x.dtype, x.dtype)
        value, grad = target.value_and_grad(state.x, info.sigma)
        if state.value is not None:
            bound = 1e-9 * (1 + value.abs())
            require_close(where, "the state's value is U at its x", state.value, value.to(state.value.dtype), bound)
        if state.grad is not None:
            require_close(
                where, "the state's grad is that at its x", state.grad, grad, 1e-9 * (1 + float(grad.abs().max()))
            )
        for name in ("acceptance", "accepted", "log_ratio", "diverging"):
            field = getattr(info, name)
            shape = None if field is None else tuple(field.shape)
            require(shape in (None, (len(x),)), where, f"info.{name} has one entry a chain", shape, (len(x),))
        if info.accepted is not None:
            moved = (state.x != before.x).flatten(1).any(1)
            require(
                not bool((moved & ~info.accepted).any()),
                where,
                "a chain whose proposal is refused stays",
                "a move",
                "none",
            )
    require(identical(x, kept), where, "leaves its starting points alone", "points written to", "the same ones")


def _check_chains(where: str, sampler: Sampler, target: Potential, x: Tensor, learned: Memory, seed: int) -> None:
    everyone = range(len(x))
    path = _run(sampler, target, x, everyone, learned, seed)
    again = _run(sampler, target, x, everyone, learned, seed)
    same = all(identical(a, b) for a, b in zip(path, again, strict=True))
    require(same, where, "the same generators give the same chains", "different ones", "the same")
    for chosen in ([0, 1, 2], [3, 5]):
        fewer = _run(sampler, target, x[chosen], chosen, learned, seed)
        for a, b in zip(fewer, path, strict=True):
            identity = f"chains {chosen} by themselves are what they are among {len(x)}"
            require_close(where, identity, a, b[chosen], 1e-8 * (1 + float(b.abs().max())))
    for disturbed in (0, len(x) - 1):
        other = x.clone()
        other[disturbed] = 2 * other[disturbed] + 1
        moved = _run(sampler, target, other, everyone, learned, seed)
        rest = [c for c in everyone if c != disturbed]
        same = all(identical(a[rest], b[rest]) for a, b in zip(path, moved, strict=True))
        identity = f"another start of chain {disturbed} leaves the other chains alone, to the bit"
        require(same, where, identity, "other draws", "the same draws")
    together = _run(sampler, target, x[:1].expand_as(x).clone(), everyone, learned, seed, 30)[-1]
    gone = together[(together != x[:1]).flatten(1).any(1)]
    distinct = len(torch.unique(gone.flatten(1), dim=0))
    require(len(gone) > 1, where, "chains move within 30 steps", f"{len(gone)} of {len(x)}", "2 or more")
    require(distinct == len(gone), where, "chains that start together part", f"{distinct} different", len(gone))


def _check_ratio(
    where: str,
    sampler: Sampler,
    target: Potential,
    x: Tensor,
    learned: Memory,
    log_proposal: LogProposal,
    seed: int,
) -> None:
    """Only accepted proposals are seen: what is reported of the refused ones cannot be checked."""
    state = _begin(sampler, target, x, chain_generators(seed, range(len(x))), learned)
    new, info = sampler.step(target, state)
    if info.log_ratio is None or info.accepted is None:
        require(False, where, "reports its log ratio and what it accepted", None, "Info.log_ratio, Info.accepted")
        return
    y = new.x
    there, back = log_proposal(target, info, x, y), log_proposal(target, info, y, x)
    u, v = (target(t, info.sigma).double() for t in (x, y))
    want = u - v + back - there
    bound = 1e-10 * (1 + u.abs() + v.abs() + there.abs() + back.abs())
    accepted = info.accepted
    require(bool(accepted.sum() >= 10), where, "accepts some proposals", int(accepted.sum()), "10 of 200 or more")
    identity = "the log ratio is that of the densities"
    require_close(where, identity, info.log_ratio[accepted], want[accepted], bound[accepted])


@dataclass(frozen=True, eq=False)
class _Turned(Structure):
    """The identity, whose draws are turned by an orthogonal matrix."""

    turn: Tensor

    def apply(self, x: Tensor) -> Tensor:
        return x

    def solve(self, rhs: Tensor, shift: Shift = 0.0) -> Tensor:
        return rhs / (1 + shift)

    def white(self, generator: Generators, shape: Sequence[int], *, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return (standard_normal(shape, generator, dtype=dtype),)

    def perturb(self, white: tuple[Tensor, ...], shift: Shift = 0.0) -> Tensor:
        return (1 + shift) ** 0.5 * _turned(self.turn, white[0])

    def noise(self, generator: Generators, shape: Sequence[int], *, dtype: torch.dtype) -> Tensor:
        return self.perturb(self.white(generator, shape, dtype=dtype))

    def circulant(self) -> Fourier | None:
        return None

    def __mul__(self, weight: float) -> Structure:
        raise NotImplementedError

    def to(self, dtype: torch.dtype) -> "_Turned":
        return _Turned(self.turn.to(dtype))


def _turned(turn: Tensor, x: Tensor) -> Tensor:
    return (x.flatten(-EVENT_DIMS) @ turn.mT).reshape(x.shape)


class _Rotated(Energy):
    """U of a turned image."""

    def __init__(self, target: Potential, turn: Tensor) -> None:
        super().__init__()
        self.target = target
        self.turn = turn

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        value: Tensor = self.target(_turned(self.turn, x), sigma)
        return value


def _check_rotation(
    where: str, sampler: Any, target: Potential, x: Tensor, learned: Memory, seed: int, generator: torch.Generator
) -> None:
    if "preconditioner" not in getattr(sampler, "__dataclass_fields__", ()):
        return
    turn, _ = torch.linalg.qr(standard_normal((4, 4), generator, dtype=torch.float64))
    straight, turned = (
        dataclasses.replace(sampler, preconditioner=Preconditioner(_Turned(t)))
        for t in (torch.eye(4, dtype=torch.float64), turn)
    )
    kept = {k: v for k, v in learned.items() if not sampler.adapts or straight.adapts}
    path = _run(turned, target, x, range(len(x)), kept, seed)
    other = _run(straight, _Rotated(target, turn), _turned(turn.mT, x), range(len(x)), kept, seed)
    for here, there in zip(path, other, strict=True):
        identity = "rotating the target, the start and the noise rotates the chain"
        require_close(where, identity, here, _turned(turn, there), 1e-9 * (1 + float(here.abs().max())))


def _check_nan(where: str, sampler: Sampler, learned: Memory, seed: int) -> None:
    x = torch.zeros(50, *SHAPE, dtype=torch.float64)
    state = _begin(sampler, _Torn(), x, chain_generators(seed, range(len(x))), learned)
    for _ in range(10):
        state, info = sampler.step(_Torn(), state)
        if info.accepted is None:
            return
        point = state.x
        ok = bool(torch.isfinite(point).all() & (0.5 * squared_norm(point) < 1.0).all())
        require(ok, where, "a proposal where U is NaN is refused", "a chain there", "none")


def _check_convention(where: str, sampler: Sampler, convention: str, z: float, seed: int) -> None:
    if convention not in ("langevin", "leapfrog"):
        raise ValueError(f"check_kernel: convention is {convention!r}, expected 'langevin' or 'leapfrog'")
    x = torch.zeros(4000, *SHAPE, dtype=torch.float64)
    state = _begin(sampler, _Flat(), x, torch.Generator().manual_seed(seed), NOTHING)
    new, info = sampler.step(_Flat(), state)
    step = torch.as_tensor(info.step_size, dtype=torch.float64).expand(len(x))
    jitter = getattr(sampler, "jitter", 0.0)
    wide = 2 * step if convention == "langevin" else (info.n_grad * step).square() * (1 + jitter**2 / 3)
    moves = squared_norm(new.x) / math.prod(SHAPE) / wide
    got, error = float(moves.mean()), float(moves.std()) / len(x) ** 0.5
    said = "2 eps" if convention == "langevin" else "(n h)^2"
    identity = f"the mean squared move from a flat U is {said} a dimension"
    require(abs(got - 1) <= z * error, where, identity, f"{got:.3f} of it", f"1 +- {z * error:.2g}")


def _check_invariance(
    where: str,
    sampler: Sampler,
    target: energies.GaussianMixture,
    learned: Memory,
    num_chains: int,
    num_steps: int,
    reversible: bool,
    z: float,
    seed: int,
    generator: torch.Generator,
) -> None:
    x = target.sample(generator, num_chains)
    state = _begin(sampler, target, x, torch.Generator().manual_seed(seed + 2), learned)
    start = _features(target, x)
    for k in range(num_steps):
        state, _ = sampler.step(target, state)
        if k == 0 and reversible:
            one = _features(target, state.x)
            both = start[:, :, None] * one[:, None] - one[:, :, None] * start[:, None]
            upper = torch.ones(both.shape[1:], dtype=torch.bool).triu(1)
            worst = _worst(both[:, upper])
            require(
                worst <= z, where, "detailed balance: ends can be exchanged", f"{worst:.1f} errors", f"{z:g} at most"
            )
    worst = _worst(_features(target, state.x) - start)
    identity = f"exact draws stay exact for {num_steps} steps"
    require(worst <= z, where, identity, f"a mean off by {worst:.1f} standard errors", f"{z:g} at most")


def _features(target: Potential, x: Tensor) -> Tensor:
    """x, its products and U, with their means at the start about removed: (chains, features)."""
    flat = x.flatten(1)
    pairs = torch.triu_indices(flat.shape[1], flat.shape[1])
    products = flat[:, pairs[0]] * flat[:, pairs[1]]
    value = target(x).double()[:, None]
    return torch.cat([flat, products, value - 5.0, (value - 5.0).square()], dim=1)


def _worst(differences: Tensor) -> float:
    """The largest mean, in its standard errors."""
    n = len(differences)
    error = differences.std(0) / n**0.5
    return float((differences.mean(0).abs() / error.clamp_min(1e-300)).where(error > 0, 0.0).max())
