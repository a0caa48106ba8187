"""What every sampler is: ``start``, ``init``, ``step``, and how one hands chains on to the next."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from potentia._potential import Potential
from potentia._random import Generators

if TYPE_CHECKING:
    from potentia.inference._chained import Chained

Memory = Mapping[str, Tensor]
NOTHING: Memory = MappingProxyType({})
ADAPTED = "adapted_"  # keys of a memory that outlive a fresh start: step sizes, learned preconditioners


class State(NamedTuple):
    """Where a batch of chains stands.

    ``white`` are the random numbers that the Leimkuhler-Matthews rule carries over to the next step; ``step`` counts
    the steps taken since the chains were last started. ``value`` and ``grad`` are U and its gradient at x, for samplers
    that keep them. ``memory`` is what else a sampler carries from step to step, by name: weights, replicas and, under
    names that begin with ``adapted_``, what it has learned of the posterior.

    Shapes: x (chains, C, H, W); value (chains,), float64; grad as x.
    """

    x: Tensor
    white: tuple[Tensor, ...] | None
    step: int
    generator: Generators
    value: Tensor | None = None
    grad: Tensor | None = None
    memory: Memory = NOTHING


class Info(NamedTuple):
    """What one step did.

    ``n_grad`` counts gradient evaluations a chain, each of them one of a prior's denoiser; ``n_vjp`` the
    vector-Jacobian products of that denoiser beside them. ``acceptance`` is the probability of the Metropolis test,
    ``accepted`` its outcome, ``log_ratio`` the logarithm before it was cut at zero; all None for a sampler that accepts
    everything.
    ``diverging`` marks chains whose proposal was not finite, or so unlikely that the step size must be too large there.
    ``parameters`` are the unknowns that are sampled beside the image, by name.

    Shapes: acceptance, accepted, log_ratio, diverging and each of the parameters (chains,).
    """

    sigma: float | None
    step_size: float | Tensor
    n_grad: int
    acceptance: Tensor | None = None
    accepted: Tensor | None = None
    log_ratio: Tensor | None = None
    diverging: Tensor | None = None
    n_vjp: int = 0
    parameters: Memory = NOTHING


class Sampler(ABC):
    """A Markov chain on images, batched over one leading chain dimension.

    Subclasses give ``start``, ``init`` and ``step``. ``a >> b`` runs the steps of one draw of ``a``, then those of
    ``b`` from where they end, and draws there.
    """

    @property
    def steps_per_draw(self) -> int:
        """Steps that lead from one draw to the next."""
        return 1

    @property
    def default_warmup(self) -> int:
        """Draws to throw away before the first that counts."""
        return 0

    @property
    def independent_draws(self) -> bool:
        """Whether every draw starts afresh, so that it does not remember the one before."""
        return False

    @property
    def adapts(self) -> bool:
        """Whether it learns from its first draws, and wants a warm-up for that."""
        return False

    @property
    def couples_chains(self) -> bool:
        """Whether what one chain does depends on those beside it, so that processes cannot share them out."""
        return self.adapts

    @abstractmethod
    def start(self, posterior: Potential, shape: Sequence[int], dtype: torch.dtype, generator: Generators) -> Tensor:
        """Points to start from where the caller gives none: ``shape`` is (chains, C, H, W)."""

    @abstractmethod
    def init(self, posterior: Potential, x0: Tensor, generator: Generators) -> State:
        """State of chains that start from x0, (chains, C, H, W); the generator is one, or a sequence of one a chain."""

    @abstractmethod
    def step(self, posterior: Potential, state: State) -> tuple[State, Info]:
        """One step of all chains.

        The state handed in is left alone, but for its generators, and so is what was returned before: whoever writes
        the draws may still be reading them.
        """

    def freeze(self, memory: Memory) -> Memory:
        """Memory after the warm-up: whatever was adapted stays as it is from then on."""
        return memory

    def __rshift__(self, other: "Sampler") -> "Chained":
        """Hand the chains on to another sampler within each draw."""
        from potentia.inference._chained import Chained

        return Chained((self, other)) if isinstance(other, Sampler) else NotImplemented
