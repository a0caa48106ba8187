"""Parallel tempering over noise scales."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from potentia._potential import Potential
from potentia._quadratic import Structure
from potentia._random import Generators
from potentia._validate import count, positive
from potentia.annealers import Annealer, Ladder
from potentia.inference import _dual_averaging as averaging
from potentia.inference._alps import ALPS
from potentia.inference._local_moves import LONGEST, TARGET_ACCEPTANCE, Moved, Place, move, uniform
from potentia.inference._precondition import Preconditioner
from potentia.inference._protocol import Info, Memory, Sampler, State
from potentia.inference._smc import check_annealer, check_value

_FORGET = 0.95  # of the curvature seen, a step keeps so much in warm-up
_LEAST_CURVATURE = 1e-3  # of that at the scale


@dataclass(frozen=True)
class ParallelTempering(Sampler):
    """Replicas at all scales of an annealer, which move and change places; draws are those at the smallest scale.

    The replica at scale s moves on the static posterior exp(-U_s(x) - L(x)) by Metropolis-adjusted, preconditioned
    Langevin steps, all chains and replicas in one batch. After ``moves`` of them neighbours swap: even and odd pairs
    take turns, each with probability min(1, exp(U_s(x) + U_r(z) - U_s(z) - U_r(x))), s the scale of x and r that of z,
    in which the likelihood cancels. So images pass from large scales, where modes join, to the smallest. A draw is
    ``steps_per_draw`` rounds of moves and swaps, and costs about ``steps_per_draw * (moves + 1)`` evaluations for each
    scale.

    Angles of the steps and the curvature of what has no quadratic form are learned in warm-up, for each replica of each
    chain, and frozen after it. A chain's draws do not depend on how many others there are.

    The state's memory holds, beside ``replicas`` (chains, K - 1, C, H, W), from the largest scale to the last but one,
    with their ``values`` and ``grads``: ``swaps`` (2, chains, K - 1), the sum of the swaps' acceptance probabilities
    for each pair of neighbours and how many were tried, which ``swap_rates`` divides; and ``arrivals`` (chains,), how
    often an image has come all the way from the largest scale to the smallest. Both count from the end of the
    warm-up. Swap rates far below 0.4 ask for more scales, which ``respaced`` puts where they are wanted; healthy rates
    without arrivals ask for more rounds.

    Raises: TypeError for what is no annealer; ValueError for numbers out of range or temperatures other than 1.
    Source: Geyer 1991; Okabe et al. 2001 (even and odd pairs in turn); Syed et al. 2022 (why that is better than at
        random, and the rates).
    """

    annealer: Annealer
    moves: int = 1
    steps_per_draw: int = 5  # pyright: ignore[reportIncompatibleMethodOverride]
    default_warmup: int = 50  # pyright: ignore[reportIncompatibleMethodOverride]
    tolerance: float | None = None

    def __post_init__(self) -> None:
        check_annealer("ParallelTempering", self.annealer)
        count("ParallelTempering", "moves", self.moves)
        count("ParallelTempering", "steps_per_draw", self.steps_per_draw)
        count("ParallelTempering", "default_warmup", self.default_warmup, least=0)
        if self.tolerance is not None:
            positive("ParallelTempering", "tolerance", self.tolerance)

    @property
    def adapts(self) -> bool:
        """True: it learns step sizes and curvatures."""
        return True

    def start(self, posterior: Potential, shape: Sequence[int], dtype: torch.dtype, generator: Generators) -> Tensor:
        """Ends of a short anneal down the same scales. ``shape`` is (chains, C, H, W)."""
        sampler = ALPS(self.annealer.with_step_size(1.0).with_steps(None), 2)
        state = sampler.init(posterior, sampler.start(posterior, shape, dtype, generator), generator)
        for _ in range(sampler.steps_per_draw):
            state, _ = sampler.step(posterior, state)
        return state.x

    def init(self, posterior: Potential, x0: Tensor, generator: Generators) -> State:
        """State of chains whose smallest scale starts at x0, (chains, C, H, W), and the others spread around it.

        Raises: TypeError for a posterior without a value.
        """
        posterior.check(x0)
        check_value("ParallelTempering", posterior)
        sigma = self._sigma(x0)
        chains, levels = sigma.shape
        structure, shift = self._structure(posterior, x0), self._least_shift(posterior, sigma)
        spread = structure.draw(
            generator, (chains, levels, *x0.shape[1:]), _images(shift, x0), dtype=x0.dtype
        )  # a draw from N(0, P) at each scale
        x = x0.detach()[:, None] + spread
        x[:, -1] = x0.detach()
        value, grad = posterior.value_and_grad(x, sigma.to(x0.real.dtype))
        zero = torch.zeros_like(sigma)
        memory = {
            "adapted_angle": averaging.restart(torch.ones_like(sigma)),
            "adapted_curvature": torch.stack([shift, torch.ones_like(shift)]),
            "adapted_frozen": torch.zeros((), device=x.device),
            "swaps": torch.stack([zero, zero])[..., 1:],
            "walkers": torch.zeros_like(sigma, dtype=torch.int64),
            "arrivals": torch.zeros(chains, dtype=torch.int64, device=x.device),
        }
        return self._state(Place(x, value.double(), grad), memory, 0, generator)

    def step(self, posterior: Potential, state: State) -> tuple[State, Info]:
        """``moves`` moves of every replica, and one round of swaps between neighbours."""
        place = _all(state)
        memory = dict(state.memory)
        sigma = self._sigma(state.x)
        chains, levels = sigma.shape
        structure, least = self._structure(posterior, state.x), self._least_shift(posterior, sigma)
        frozen = bool(memory["adapted_frozen"])
        flat = Place(place.x.flatten(0, 1), place.value.flatten(), place.grad.flatten(0, 1))
        each = sigma.flatten().to(state.x.real.dtype)
        done: list[Moved] = []
        for _ in range(self.moves):
            angle, shift = _current(memory, least, frozen)
            noise = structure.draw(
                state.generator, place.x.shape, _images(shift, state.x), dtype=place.x.dtype
            ).flatten(0, 1)
            u = uniform((chains, levels), state.generator, state.x.device).flatten()
            flat, moved = move(
                lambda z, index: posterior.value_and_grad(z, each[index]),
                flat,
                structure,
                shift.flatten(),
                angle.flatten(),
                noise,
                u,
            )
            if not frozen:
                _learn(memory, moved)
            done.append(moved)
        place = Place(*(v.unflatten(0, (chains, levels)) for v in flat))
        place, swaps = self._swapped(posterior, place, sigma, memory, state.step % 2, state.generator)
        evaluations = sum(m.evaluations for m in done) / chains + swaps
        finest = torch.stack([m.acceptance.reshape(chains, levels)[:, -1] for m in done]).mean(0)
        diverging = torch.stack([m.diverging.reshape(chains, levels).any(1) for m in done]).any(0)
        angle, _ = _current(memory, least, frozen)
        info = Info(
            self.annealer.sigma_min,
            1 - angle[:, -1].cos(),
            round(evaluations),
            acceptance=finest,
            diverging=diverging,
        )
        return self._state(place, memory, state.step + 1, state.generator), info

    def _swapped(
        self,
        posterior: Potential,
        place: Place,
        sigma: Tensor,
        memory: dict[str, Tensor],
        first: int,
        generator: Generators,
    ) -> tuple[Place, int]:
        """Exchange neighbours, pairs beginning at level ``first``; also the evaluations a chain that this takes."""
        chains, levels = sigma.shape
        u = uniform((chains, levels), generator, sigma.device)
        lower = torch.arange(first, max(first, levels - 1), 2, device=sigma.device)
        if not len(lower):
            return place, 0
        upper = lower + 1
        both = torch.cat([lower, upper])
        crossed = place.x[:, torch.cat([upper, lower])]
        value, grad = posterior.value_and_grad(crossed, sigma[:, both].to(place.x.real.dtype))
        value = value.double()
        log_ratio = (place.value[:, both] - value).unflatten(1, (2, len(lower))).sum(1)
        probability = _acceptance(log_ratio)
        accepted = (u[:, lower] < probability).repeat(1, 2)
        x, old, slope = place.x.clone(), place.value.clone(), place.grad.clone()
        wide = accepted[..., None, None, None]
        x[:, both] = torch.where(wide, crossed, x[:, both])
        old[:, both] = torch.where(accepted, value, old[:, both])
        slope[:, both] = torch.where(wide, grad, slope[:, both])
        swaps = memory["swaps"].clone()
        swaps[0][:, lower] += probability
        swaps[1][:, lower] += 1
        # An image that has been at the top carries a mark until it reaches the bottom.
        marks = memory["walkers"].clone()
        other = marks[:, torch.cat([upper, lower])]
        marks[:, both] = torch.where(accepted, other, marks[:, both])
        marks[:, 0] = 1
        memory["arrivals"] = memory["arrivals"] + marks[:, -1]
        marks[:, -1] = 0
        memory |= {"swaps": swaps, "walkers": marks}
        return Place(x, old, slope), len(both)

    def freeze(self, memory: Memory) -> Memory:
        """Keep angles and curvatures as they are, and begin to count swaps and arrivals."""
        new = dict(memory)
        new["adapted_frozen"] = torch.ones_like(memory["adapted_frozen"]) if memory else torch.ones(())
        return new | {name: torch.zeros_like(memory[name]) for name in ("swaps", "arrivals") if name in memory}

    @staticmethod
    def swap_rates(memory: Memory) -> Tensor:
        """Mean acceptance of the swaps between neighbouring scales, (chains, K - 1), from a state's memory."""
        total, tries = memory["swaps"]
        rates: Tensor = total / tries
        return rates

    def respaced(self, memory: Memory, num_levels: int | None = None) -> "ParallelTempering":
        """The same sampler with scales spaced so that every swap is rejected as often as the next, from a trial run.

        Shapes: as many levels as there are if ``num_levels`` is None; the ends stay.
        Raises: ValueError if some pair of neighbours has never tried to swap, or there are fewer than two levels.
        Source: Syed et al. 2022, section 5: equal shares of the communication barrier, interpolated in log(sigma).
        """
        n = count("ParallelTempering.respaced", "num_levels", num_levels or len(self.annealer), least=2)
        rates = self.swap_rates(memory).mean(0)
        if len(rates) == 0 or not bool(torch.isfinite(rates).all()):
            raise ValueError(
                "ParallelTempering.respaced: some neighbours have never tried to swap, expected a trial run"
            )
        # A little of each step, so that scales that always swap are not stacked.
        barrier = torch.cat([rates.new_zeros(1), (1 - rates + 1e-3).cumsum(0)]).tolist()
        logs = [math.log(s) for s in self.annealer.sigmas]
        sigmas = [self.annealer.sigma_max]
        for i in range(1, n - 1):
            goal = barrier[-1] * i / (n - 1)
            k = next(k for k in range(len(rates)) if barrier[k + 1] >= goal)
            share = (goal - barrier[k]) / (barrier[k + 1] - barrier[k])
            sigmas.append(min(sigmas[-1], math.exp(logs[k] + share * (logs[k + 1] - logs[k]))))
        return replace(self, annealer=Ladder.of([*sigmas, self.annealer.sigma_min]))

    def _sigma(self, x0: Tensor) -> Tensor:
        """The scales of every chain, (chains, K), float64."""
        sigma = torch.tensor(self.annealer.sigmas, dtype=torch.float64, device=x0.device)
        return sigma.expand(len(x0), -1)

    def _structure(self, posterior: Potential, like: Tensor) -> Structure:
        # Only multi-scale terms change with the scale, and they are left out.
        return Preconditioner.annealed(posterior, self.annealer.sigma_min).adapted(like, self.tolerance).structure

    def _least_shift(self, posterior: Potential, sigma: Tensor) -> Tensor:
        weight = posterior.multiscale_weight
        return (weight if weight > 0 else 1.0) / sigma**2

    def _state(self, place: Place, memory: dict[str, Tensor], step: int, generator: Generators) -> State:
        memory |= {"replicas": place.x[:, :-1], "values": place.value[:, :-1], "grads": place.grad[:, :-1]}
        return State(place.x[:, -1], None, step, generator, place.value[:, -1], place.grad[:, -1], memory)


def _acceptance(log_ratio: Tensor) -> Tensor:
    """Probability of a swap; none where a value is not finite."""
    return torch.where(torch.isnan(log_ratio), 0.0, log_ratio.clamp(max=0).exp())


def _all(state: State) -> Place:
    """All replicas, (chains, K, ...)."""
    value, grad, memory = state.value, state.grad, state.memory
    if value is None or grad is None:
        raise ValueError("ParallelTempering: the state has no value and gradient, expected one that init made")
    return Place(
        torch.cat([memory["replicas"], state.x[:, None]], 1),
        torch.cat([memory["values"], value[:, None]], 1),
        torch.cat([memory["grads"], grad[:, None]], 1),
    )


def _images(per_replica: Tensor, like: Tensor) -> Tensor:
    """(chains, K) -> (chains, K, 1, 1, 1), in the images' precision."""
    return per_replica.to(like.real.dtype)[..., None, None, None]


def _current(memory: Memory, scale: Tensor, frozen: bool) -> tuple[Tensor, Tensor]:
    """Angles and shifts to move with, (chains, K)."""
    record = memory["adapted_angle"]
    angle = (averaging.averaged(record) if frozen else averaging.current(record)).clamp(max=LONGEST)
    along, length = memory["adapted_curvature"]
    return angle, torch.maximum(along / length, _LEAST_CURVATURE * scale)


def _learn(memory: dict[str, Tensor], moved: Moved) -> None:
    """Take what one move has shown into the record."""
    record = memory["adapted_angle"]
    shape = record.shape[1:]
    memory["adapted_angle"] = averaging.update(record, TARGET_ACCEPTANCE - moved.acceptance.reshape(shape))
    along, length = moved.curvature.reshape(2, *shape)
    # Each move counts the same, however long it was.
    seen = torch.stack([torch.where(length > 0, along / length, 0.0), (length > 0).double()])
    memory["adapted_curvature"] = _FORGET * memory["adapted_curvature"] + (1 - _FORGET) * seen
