"""Denoising diffusion models for plug-and-play image restoration (DiffPIR)."""

from dataclasses import dataclass

from torch import Tensor

from potentia._potential import Potential
from potentia._random import Generators, standard_normal
from potentia._validate import positive, real_number
from potentia.inference._guided import Guided, prior_of


@dataclass(frozen=True)
class DiffPIR(Guided):
    """Plug-and-play restoration along a diffusion: denoise, fit the data, add noise, part of it new.

    A step from scale s to scale r, with the denoiser D:

        x^ = argmin_z  L(z) + lam ||z - D||^2 / (2 s^2) = (Λ + lam I / s^2)^-1 (b + lam D / s^2)
        x' = x^ + r (sqrt(1 - zeta) (x - x^) / s + sqrt(zeta) xi)

    The last step goes to r = 0 and ends with x^. A step costs one evaluation of the denoiser. The paper takes 20 to 100
    of 1,000 scales between 157 and 0.01, lam about 1 to 10, and zeta 0.1 to 1.

    Deviations: the paper walks x / sqrt(1 + s^2) (variance preserving), which is the same walk. L has to be
    linear-Gaussian, for the closed form.

    The ensemble is not calibrated: x^ is the middle of a distribution, of which no draw is made.

    Raises: TypeError or ValueError, as Guided; TypeError for terms without a quadratic form; ValueError for lam that is
        not positive, or zeta outside of [0, 1].
    Source: Zhu et al. 2023 (arXiv 2305.08995), algorithm 1.
    """

    lam: float = 1.0
    zeta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("DiffPIR", "lam", self.lam)
        if not 0 <= real_number("DiffPIR", "zeta", self.zeta) <= 1:
            raise ValueError(f"DiffPIR: zeta must lie between 0 and 1, got {self.zeta:g}")

    def _move(
        self, posterior: Potential, x: Tensor, sigma: float, below: float, generator: Generators
    ) -> tuple[Tensor, int, int]:
        clean = prior_of("DiffPIR", posterior).denoise(x, sigma)
        fitted = self._conditioned(posterior, clean, sigma / self.lam**0.5, generator=None)
        if below == 0:
            return fitted, 1, 0
        old = (1 - self.zeta) ** 0.5 * (x - fitted) / sigma
        new = self.zeta**0.5 * standard_normal(x.shape, generator, dtype=x.dtype, device=x.device)
        return fitted + below * (old + new), 1, 0
