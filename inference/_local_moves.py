"""Langevin moves for populations that stand in places of unlike width, each at a step that suits it."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from potentia._quadratic import Structure
from potentia._random import Generators, generator_device
from potentia._tensor import inner, squared_norm, to_event

Evaluate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
# A log ratio beyond this, either way, says that the step is too long where it starts.
WIDEST = 1.0
MOST_HALVINGS = 6
# High, so that narrow modes are served as well as wide ones: of a mixture in 50 pixels with stds of 1 and 0.3, the
# narrow mode lost all its weight at 0.57 and none at 0.9.
TARGET_ACCEPTANCE = 0.9
LONGEST = 0.5 * math.pi


class Place(NamedTuple):
    """Where members of a population stand: x, U(x) in float64, and its gradient.

    Shapes: x and grad (n, C, H, W); value (n,).
    """

    x: Tensor
    value: Tensor
    grad: Tensor

    def where(self, chosen: Tensor, other: "Place") -> "Place":
        """This place for the chosen members, the other for the rest; chosen is (n,)."""
        keep = chosen.reshape(-1, 1, 1, 1)
        return Place(
            torch.where(keep, self.x, other.x),
            torch.where(chosen, self.value, other.value),
            torch.where(keep, self.grad, other.grad),
        )

    def at(self, index: Tensor) -> "Place":
        """The members with these indices."""
        return Place(self.x[index], self.value[index], self.grad[index])


class Moved(NamedTuple):
    """What a move did.

    ``acceptance`` is zero where the way back would have chosen another step, and where the proposal is not finite,
    which ``diverging`` marks. ``curvature`` is <d, H d> and <d, d> for the step d, H the mean Hessian along it of what
    the quadratic form leaves out. ``evaluations`` counts those of all members together.

    Shapes: acceptance, accepted, diverging (n,); curvature (2, n).
    """

    acceptance: Tensor
    accepted: Tensor
    diverging: Tensor
    curvature: Tensor
    evaluations: int


def uniform(shape: tuple[int, ...], generator: Generators, device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1), float64; of several generators, the i-th draws row i."""
    if isinstance(generator, torch.Generator):
        rows = torch.rand(shape, generator=generator, dtype=torch.float64, device=generator_device(generator))
    else:
        rows = torch.stack(
            [torch.rand(shape[1:], generator=g, dtype=torch.float64, device=g.device) for g in generator]
        )
    return rows.to(device)


class _Trial(NamedTuple):
    """A proposal: where it leads, P times the gradient there, the log ratio, and the step taken."""

    place: Place
    drift: Tensor
    log_ratio: Tensor
    step: Tensor


def move(
    evaluate: Evaluate,
    place: Place,
    structure: Structure,
    shift: float | Tensor,
    angle: float | Tensor,
    noise: Tensor,
    u: Tensor,
) -> tuple[Place, Moved]:
    """One Metropolis-adjusted Langevin move with P = (structure + shift I)^-1, of a length that fits where it starts.

    With z from N(0, P) and the angle h in (0, pi/2], the step is d = sin(h) z - (1 - cos(h)) P g: the preconditioned
    Langevin step of size eps = 1 - cos(h) with noise of variance eps (2 - eps) P, under which N(0, P) is invariant.
    Whatever P is, the log ratio is U - U' + (<d, g + g'> - eps / 2 (<g', P g'> - <g, P g>)) / (2 - eps).
    Where that is beyond +-1, h is halved until it is not. The move is accepted with the usual probability if from its
    end, with the velocity reversed, the same h would have been found, and never otherwise: so detailed balance holds.

    Shapes: shift and angle numbers or (n,); noise (n, C, H, W), z; u (n,), uniform numbers in [0, 1).
        ``evaluate(x, index)`` gives U and its gradient for the members with these indices.
    Source: Beskos, Pinski, Sanz-Serna and Stuart 2011 (the step); Biron-Lattes et al. 2024 (autoMALA), with fixed
        thresholds and halving only.
    """
    n = len(place.x)
    device = place.x.device
    real = place.x.real.dtype
    every = torch.arange(n, device=device)
    h = torch.as_tensor(angle, dtype=torch.float64, device=device).expand(n)
    count = 0

    def solve(v: Tensor, index: Tensor) -> Tensor:
        s = to_event(shift[index].to(real)) if isinstance(shift, Tensor) else shift
        return structure.solve(v, s)

    def attempt(start: Place, drift: Tensor, z: Tensor, halvings: int, index: Tensor) -> _Trial:
        nonlocal count
        count += len(index)
        turn = h[index] * 0.5**halvings
        pull = 1 - turn.cos()
        d = to_event(turn.sin().to(real)) * z - to_event(pull.to(real)) * drift
        finite = torch.isfinite(d).flatten(1).all(1)
        d = torch.where(finite.reshape(-1, 1, 1, 1), d, 0.0)  # solvers and energies may refuse what is not finite
        x = start.x + d
        value, grad = evaluate(x, index)
        value = value.double()
        finite = finite & torch.isfinite(value) & torch.isfinite(grad).flatten(1).all(1)
        end = Place(x, value, grad).where(finite, start)
        drift_end = solve(end.grad, index)
        change = inner(end.grad, drift_end) - inner(start.grad, drift)
        ratio = start.value - end.value + (inner(d, start.grad + end.grad) - 0.5 * pull * change) / (2 - pull)
        return _Trial(end, drift_end, torch.where(finite, ratio, torch.nan), d)

    drift = solve(place.grad, every)
    found = attempt(place, drift, noise, 0, every)
    halvings = torch.zeros(n, dtype=torch.int64, device=device)
    for k in range(1, MOST_HALVINGS + 1):
        index = (_too_long(found.log_ratio) & (halvings == k - 1)).nonzero()[:, 0]
        if not len(index):
            break
        halvings[index] = k
        part = attempt(place.at(index), drift[index], noise[index], k, index)
        found = _put(found, index, part)
    # The velocity with which the way back begins.
    back = to_event((0.5 * h * 0.5**halvings).tan().to(real)) * (drift + found.drift) - noise
    finite = torch.isfinite(found.log_ratio)
    valid = finite & _reversible(attempt, found, back, halvings, finite)
    acceptance = torch.where(valid, found.log_ratio.clamp(max=0).exp(), 0.0)
    accepted = u < acceptance
    bent = found.place.grad - place.grad - structure.apply(found.step)
    curvature = torch.stack([inner(found.step, bent), squared_norm(found.step)])
    moved = Moved(acceptance, accepted, ~finite, torch.where(finite, curvature, 0.0), count)
    return found.place.where(accepted, place), moved


def _reversible(
    attempt: Callable[[Place, Tensor, Tensor, int, Tensor], _Trial],
    found: _Trial,
    back: Tensor,
    halvings: Tensor,
    finite: Tensor,
) -> Tensor:
    """Whether the way back would find every longer step too long as well, (n,)."""
    valid = finite.clone()
    for k in range(MOST_HALVINGS):
        index = (valid & (halvings > k)).nonzero()[:, 0]
        if not len(index):
            break
        part = attempt(found.place.at(index), found.drift[index], back[index], k, index)
        valid[index] = _too_long(part.log_ratio)
    return valid


def adapted(angle: float, acceptance: float) -> float:
    """The angle to take next, where this one was accepted so often."""
    return min(LONGEST, angle * math.exp(0.5 * (acceptance - TARGET_ACCEPTANCE)))


def _too_long(log_ratio: Tensor) -> Tensor:
    return ~(log_ratio.abs() <= WIDEST)


def _put(whole: _Trial, index: Tensor, part: _Trial) -> _Trial:
    def put(a: Tensor, b: Tensor) -> Tensor:
        return a.index_copy(0, index, b)

    place = Place(*(put(a, b) for a, b in zip(whole.place, part.place, strict=True)))
    return _Trial(place, *(put(a, b) for a, b in zip(whole[1:], part[1:], strict=True)))
