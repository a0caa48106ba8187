"""Decoupled annealing posterior sampling (DAPS)."""

import math
from dataclasses import dataclass

from torch import Tensor

from potentia._potential import Potential
from potentia._random import Generators, standard_normal
from potentia._validate import count, positive
from potentia.inference._guided import Guided, check_quadratic, denoised, positive_count, prior_of
from potentia.inference._precondition import terms


@dataclass(frozen=True)
class DAPS(Guided):
    """Decoupled annealing: estimate the clean image, draw one near it that explains the data, add noise anew.

    A step from scale s to scale r:

        x^   = the end of the probability-flow ODE dx/ds = (x - D(x, s)) / s from x, in ``num_ode`` Euler steps
        x0   ~ exp(-||x0 - x^||^2 / (2 s^2) - L(x0)), up to its norm
        x'   = x0 + r xi

    The last step ends with x0. A step costs ``num_ode`` evaluations of the denoiser. The ODE's scales go from s to
    ``sigma_min``, then to 0.

    With ``num_langevin`` = 0 the draw of x0 is exact, which needs a linear-Gaussian likelihood. Otherwise it takes that
    many Langevin steps from x^, ``x0 - h grad + sqrt(2 h) xi``, for any likelihood; the step size h falls linearly from
    ``step_size`` at the first scale to ``step_decay`` times that at the last. They are stable for h below
    2 / (1/s^2 + the greatest curvature of L), and reach their target only if h times their number is far above its
    variances. The authors take 100 of them from h = 1e-4 down to 1e-6, 200 scales from 100 down, and 5 steps an ODE.

    Deviations: the exact draw, the limit of many small Langevin steps; the likelihood's own noise std, where the
    authors' programs take a smaller one. As in the paper, x0's variance given x_s is guessed to be s^2.

    Raises: TypeError or ValueError, as Guided; TypeError for an exact draw with terms without a quadratic form;
        ValueError for numbers of steps or sizes out of range.
    Source: Zhang et al. 2025 (arXiv 2407.01521), algorithm 1.
    """

    num_ode: int = 5
    num_langevin: int = 0
    step_size: float = 1e-4
    step_decay: float = 0.01
    sigma_min: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_count("DAPS", num_ode=self.num_ode)
        count("DAPS", "num_langevin", self.num_langevin, least=0)
        for name in ("step_size", "step_decay", "sigma_min"):
            positive("DAPS", name, getattr(self, name))

    def _check(self, posterior: Potential) -> None:
        prior_of("DAPS", posterior)
        if self.num_langevin == 0:
            check_quadratic("DAPS", posterior)

    def _move(
        self, posterior: Potential, x: Tensor, sigma: float, below: float, generator: Generators
    ) -> tuple[Tensor, int, int]:
        centre, evaluations = denoised(
            prior_of("DAPS", posterior), x, sigma, self.sigma_min, self.num_ode, generator=None
        )
        if self.num_langevin == 0:
            x = self._conditioned(posterior, centre, sigma, generator)
        else:
            x = self._langevin(posterior, centre, sigma, generator)
        if below > 0:
            x = x + below * standard_normal(x.shape, generator, dtype=x.dtype, device=x.device)
        return x, evaluations, 0

    def _langevin(self, posterior: Potential, centre: Tensor, sigma: float, generator: Generators) -> Tensor:
        last = max(self.steps_per_draw - 1, 1)
        done = self._scales.index(sigma) / last
        size = self.step_size * (1 - done + done * self.step_decay)
        others = [term for term in terms(posterior) if term.multiscale_weight == 0]
        x = centre
        for _ in range(self.num_langevin):
            grad = (x - centre) / sigma**2
            for term in others:
                grad = grad + term.grad(x)
            noise = standard_normal(x.shape, generator, dtype=x.dtype, device=x.device)
            x = x - size * grad + math.sqrt(2 * size) * noise
        return x
