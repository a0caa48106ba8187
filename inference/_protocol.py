"""What every sampler gives: ``start``, ``init``, ``step``."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from potentia._potential import Potential
from potentia._random import Generators


class State(NamedTuple):
    """Where a batch of chains stands.

    ``white`` are the random numbers that the Leimkuhler-Matthews rule carries over to the next step; ``step`` counts
    the steps taken since the chains were last started.

    Shapes: x (chains, C, H, W).
    """

    x: Tensor
    white: tuple[Tensor, ...] | None
    step: int
    generator: Generators


class Info(NamedTuple):
    """What one step did.

    ``n_grad`` counts gradient evaluations a chain; ``acceptance`` is None for a sampler that accepts everything.

    Shapes: acceptance (chains,).
    """

    sigma: float | None
    step_size: float
    n_grad: int
    acceptance: Tensor | None = None


@runtime_checkable
class Sampler(Protocol):
    """A Markov chain on images, batched over one leading chain dimension.

    ``steps_per_draw`` steps lead from one draw to the next; ``default_warmup`` draws are thrown away unless the
    caller of ``sample`` says otherwise.
    """

    @property
    def steps_per_draw(self) -> int:
        """Steps that lead from one draw to the next."""
        ...

    @property
    def default_warmup(self) -> int:
        """Draws to throw away before the first that counts."""
        ...

    def start(self, posterior: Potential, shape: Sequence[int], dtype: torch.dtype, generator: Generators) -> Tensor:
        """Points to start from where the caller gives none: ``shape`` is (chains, C, H, W)."""
        ...

    def init(self, posterior: Potential, x0: Tensor, generator: Generators) -> State:
        """State of chains that start from x0, (chains, C, H, W); the generator is one, or a sequence of one a chain."""
        ...

    def step(self, posterior: Potential, state: State) -> tuple[State, Info]:
        """One step of all chains; the state handed in is left alone, but for its generators."""
        ...
