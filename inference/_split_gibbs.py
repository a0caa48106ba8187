"""The split Gibbs sampler with diffusion priors (PnP-DM)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from potentia._potential import Potential
from potentia._random import Generators, generator_device
from potentia._validate import count, positive
from potentia.inference._guided import Guided, denoised, positive_count, prior_of


@dataclass(frozen=True)
class SplitGibbs(Guided):
    """Split Gibbs sampling (PnP-DM): draw in turn from the likelihood and from the prior, tied to one another.

    The target is ``exp(-L(z) - U(x) - ||x - z||^2 / (2 rho^2))``, up to its norm. A step at coupling rho, the sigma of
    a level of the annealer:

        z  ~ exp(-L(z) - ||z - x||^2 / (2 rho^2)): with P = (Λ + I / rho^2)^-1, z = P (b + x / rho^2) + P^(1/2) xi
        x' ~ p(x | z = x + rho n): reverse diffusion from z at scale rho to 0, in ``num_denoise`` ancestral steps

    Its x is distributed as p(x) times the likelihood of noise with variance rho^2 A A^T more, which tends to the
    posterior as rho falls; the smaller rho, the slower it moves. The paper lets rho fall by 0.9 a step from 10 to 0.3
    or less, and takes 100 steps. ``annealer`` is that schedule; ``steps_per_level`` holds for levels that do not state
    their own. The scales of a denoising go from rho to ``sigma_min``, then to 0; a step costs ``num_denoise``
    evaluations. A run starts from x = 0.

    Deviations: ancestral steps where the paper discretises the reverse SDE by Euler's rule (they agree to first order,
    and ancestral ones are exact where the denoiser is constant); a run gives its last x, where the paper averages over
    the later ones. L has to be linear-Gaussian, for the exact draw.

    Raises: TypeError or ValueError, as Guided; TypeError for terms without a quadratic form; ValueError for numbers of
        steps below one.
    Source: Wu et al. 2024 (arXiv 2405.18782), algorithm 1; Vono et al. 2019, the split Gibbs sampler.
    """

    num_denoise: int = 8
    steps_per_level: int = 1
    sigma_min: float = 0.01

    def __post_init__(self) -> None:
        count("SplitGibbs", "steps_per_level", self.steps_per_level)
        super().__post_init__()
        positive_count("SplitGibbs", num_denoise=self.num_denoise)
        positive("SplitGibbs", "sigma_min", self.sigma_min)

    def _visits(self, sigma: float, steps: int | None) -> int:
        return steps or self.steps_per_level

    def start(self, posterior: Potential, shape: Sequence[int], dtype: torch.dtype, generator: Generators) -> Tensor:
        """Zero: the noise enters with the first step. ``shape`` is (chains, C, H, W)."""
        return torch.zeros(tuple(shape), dtype=dtype, device=generator_device(generator))

    def _move(
        self, posterior: Potential, x: Tensor, sigma: float, below: float, generator: Generators
    ) -> tuple[Tensor, int, int]:
        z = self._conditioned(posterior, x, sigma, generator)
        prior = prior_of("SplitGibbs", posterior)
        x, evaluations = denoised(prior, z, sigma, self.sigma_min, self.num_denoise, generator)
        return x, evaluations, 0
