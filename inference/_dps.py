"""Diffusion posterior sampling (DPS)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from potentia._algebra import Scaled, unscaled
from potentia._potential import Likelihood, Potential
from potentia._random import Generators
from potentia._tensor import squared_norm, to_event
from potentia._validate import positive
from potentia.inference._guided import Guided, ancestral, prior_of
from potentia.inference._precondition import terms


@dataclass(frozen=True)
class DPS(Guided):
    """Diffusion posterior sampling: reverse diffusion, pulled towards the data through the denoiser's Jacobian.

    A step from scale s to scale r, with the denoiser D, its Jacobian J at x, and white noise xi:

        x' = D + (r/s)^2 (x - D) + r sqrt(1 - (r/s)^2) xi  -  k J^T g,    k = sqrt((1 + s^2) (1 + r^2))
        g  = zeta / ||A D - y|| * grad ||A D - y||^2, the gradient at D

    The last step goes to r = 0. A step costs one evaluation of the denoiser and one vector-Jacobian product. The
    paper's schedule has 1,000 scales from 157 to 0.01; its zeta, in the image's unit, is between 0.1 and 1.

    Deviations: the paper walks z = x / sqrt(1 + s^2) (variance preserving), which is the same walk: its ancestral step
    is the one above, and k turns its gradient step into these coordinates. g is computed from the likelihood's
    potential L as ``zeta ||A D - y|| grad L / L``, which is the same for Gaussian noise of one std, weighs by the noise
    where there are several, and serves other likelihoods whose L is zero at a perfect fit; several likelihoods add up.
    Runs start from N(0, s^2 I).

    The ensemble is not calibrated: the noise std does not enter, and zeta sets the weight of the data.

    Raises: TypeError or ValueError, as Guided; TypeError for terms that are neither the prior nor a likelihood;
        ValueError for zeta that is not positive.
    Source: Chung et al. 2023 (arXiv 2209.14687), algorithm 1.
    """

    zeta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("DPS", "zeta", self.zeta)

    def _check(self, posterior: Potential) -> None:
        prior_of("DPS", posterior)
        for term in terms(posterior):
            if term.multiscale_weight == 0 and not isinstance(unscaled(term), Likelihood):
                raise TypeError(f"DPS: {term.name} is neither the prior nor a likelihood, expected prior + likelihood")
            if isinstance(term, Scaled) and term.weight <= 0:
                raise ValueError(f"DPS: {term.name} has weight {term.weight:g}, expected a positive one")

    def _move(
        self, posterior: Potential, x: Tensor, sigma: float, below: float, generator: Generators
    ) -> tuple[Tensor, int, int]:
        clean, pull = prior_of("DPS", posterior).denoise_with_vjp(x, sigma)
        force = torch.zeros_like(x)
        for term in terms(posterior):
            bare = unscaled(term)
            if isinstance(bare, Likelihood):
                misfit, slope = bare.value_and_grad(clean)
                length = squared_norm(bare.residual(clean).flatten(1), 1).sqrt()
                # Where the fit is perfect there is nothing to pull at.
                size = torch.where(misfit > 0, length / misfit, 0.0)
                force = force + to_event(size.to(x.real.dtype)) * slope
        frame = ((1 + sigma**2) * (1 + below**2)) ** 0.5
        return ancestral(x, clean, sigma, below, generator) - frame * self.zeta * pull(force), 1, 1
