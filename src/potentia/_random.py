"""Random numbers from explicit generators, one a chain."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator]


def standard_normal(
    shape: Sequence[int], generator: Generators, *, dtype: torch.dtype, device: torch.device | str | None = None
) -> Tensor:
    """Draw standard normal numbers; complex ones have variance 1 in the real and 1 in the imaginary part.

    torch's own complex normal has variance 1/2 per part, which halves every variance that is built on it.

    Shapes: ``shape``; given a sequence of generators, ``shape[0]`` is their number and entry ``i`` is drawn from
        generator ``i`` alone, so that it does not depend on how many others there are.
    Raises: ValueError if the number of generators is not ``shape[0]``.
    """
    shape = tuple(shape)
    real = dtype.to_real()
    parts = (2,) if dtype.is_complex else ()
    where = generator_device(generator) if device is None else torch.device(device)
    if isinstance(generator, torch.Generator):
        out = torch.randn(*shape, *parts, generator=generator, dtype=real, device=where)
    else:
        if not shape or shape[0] != len(generator):
            raise ValueError(f"standard_normal: {len(generator)} generators for shape {shape}, expected one a chain")
        out = torch.empty(*shape, *parts, dtype=real, device=where)
        for chain, gen in enumerate(generator):
            torch.randn(*shape[1:], *parts, generator=gen, dtype=real, device=where, out=out[chain])
    return torch.view_as_complex(out) if dtype.is_complex else out


def standard_gamma(shape: Tensor, generator: torch.Generator) -> Tensor:
    """Draw gamma numbers of rate one: ``torch.distributions.Gamma`` draws from no generator but the global one.

    Shapes: shape, the gamma distribution's parameter, any; returns the same.
    """
    # torch's stubs do not hand this name on.
    return torch._standard_gamma(shape.contiguous(), generator=generator)  # pyright: ignore[reportPrivateImportUsage]


def generator_device(generator: Generators) -> torch.device:
    """Where a generator, or the first of several, draws."""
    return generator.device if isinstance(generator, torch.Generator) else generator[0].device


def chain_generators(seed: int, chains: Sequence[int], device: torch.device | str = "cpu") -> list[torch.Generator]:
    """Give each chain a generator of its own, seeded from ``(seed, chain)``.

    A chain's stream is the same whichever chains run beside it.

    Raises: ValueError for a negative seed or chain.
    """
    if seed < 0 or any(c < 0 for c in chains):
        raise ValueError(f"chain_generators: seed and chains must not be negative, got seed {seed}")
    generators = []
    for chain in chains:
        word = np.random.SeedSequence((seed, chain)).generate_state(1, np.uint64)[0]
        generators.append(torch.Generator(device=device).manual_seed(int(word) % 2**63))
    return generators
