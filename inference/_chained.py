"""Samplers one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from potentia._potential import Potential
from potentia._random import Generators
from potentia.inference._protocol import ADAPTED, Info, Memory, Sampler, State


@dataclass(frozen=True)
class Chained(Sampler):
    """Stages within each draw: the first takes its steps, hands the chains to the second, and so on.

    Made by ``a >> b``. Draws are independent where the first stage's are; otherwise the first stage goes on from where
    the last one ended. What a stage learns (step sizes, preconditioners) it keeps from draw to draw.

    Raises: TypeError for stages that are no samplers.
    """

    stages: tuple[Sampler, ...]

    def __post_init__(self) -> None:
        flat: list[Sampler] = []
        for stage in self.stages:
            if not isinstance(stage, Sampler):
                raise TypeError(f"Chained: a stage is a {type(stage).__name__}, expected samplers")
            flat.extend(stage.stages if isinstance(stage, Chained) else (stage,))
        if not flat:
            raise ValueError("Chained: got no stages, expected at least one")
        object.__setattr__(self, "stages", tuple(flat))

    def __repr__(self) -> str:
        return " >> ".join(map(repr, self.stages))

    @property
    def steps_per_draw(self) -> int:
        return sum(stage.steps_per_draw for stage in self.stages)

    @property
    def default_warmup(self) -> int:
        """The first stage's; at least one where a stage is to adapt."""
        return max(self.stages[0].default_warmup, int(self.adapts))

    @property
    def independent_draws(self) -> bool:
        return self.stages[0].independent_draws

    @property
    def couples_chains(self) -> bool:
        return any(stage.couples_chains for stage in self.stages)

    @property
    def adapts(self) -> bool:
        return any(stage.adapts for stage in self.stages)

    def start(self, posterior: Potential, shape: Sequence[int], dtype: torch.dtype, generator: Generators) -> Tensor:
        """Where the first stage likes to start."""
        return self.stages[0].start(posterior, shape, dtype, generator)

    def init(self, posterior: Potential, x0: Tensor, generator: Generators) -> State:
        """State of the first stage."""
        return self.stages[0].init(posterior, x0, generator)

    def step(self, posterior: Potential, state: State) -> tuple[State, Info]:
        """One step of the stage whose turn it is."""
        position = state.step % self.steps_per_draw
        ends = list(accumulate(stage.steps_per_draw for stage in self.stages))
        index = next(k for k, end in enumerate(ends) if position < end)
        stage, within = self.stages[index], position - (ends[index - 1] if index else 0)
        memory = dict(state.memory)
        if within == 0 and state.step > 0:
            memory = self._set_aside(memory, (index - 1) % len(self.stages))
            x = state.x
            if index == 0 and stage.independent_draws:
                x = stage.start(posterior, x.shape, x.dtype, state.generator)
            fresh = stage.init(posterior, x, state.generator)
            learned = {k.split("/", 1)[1]: v for k, v in memory.items() if k.startswith(f"{index}/")}
            state = fresh._replace(memory={**fresh.memory, **learned}, step=state.step)
        others = {k: v for k, v in memory.items() if "/" in k and not k.startswith(f"{index}/")}
        own = {k: v for k, v in state.memory.items() if "/" not in k}
        inner, info = stage.step(posterior, state._replace(step=within, memory=own))
        return inner._replace(step=state.step + 1, memory={**others, **inner.memory}), info

    @staticmethod
    def _set_aside(memory: dict[str, Tensor], index: int) -> dict[str, Tensor]:
        """Keep what the stage that ended has learned, under its number; forget the rest."""
        kept = {k: v for k, v in memory.items() if "/" in k}
        return kept | {f"{index}/{k}": v for k, v in memory.items() if k.startswith(ADAPTED)}

    def freeze(self, memory: Memory) -> Memory:
        """Freeze what every stage has learned; between draws, the last stage's memory is the one in use."""
        frozen: dict[str, Tensor] = {}
        for index, stage in enumerate(self.stages):
            own = {k.split("/", 1)[1]: v for k, v in memory.items() if k.startswith(f"{index}/")}
            frozen |= {f"{index}/{k}": v for k, v in stage.freeze(own).items()}
        last = {k: v for k, v in memory.items() if "/" not in k}
        return frozen | dict(self.stages[-1].freeze(last))
