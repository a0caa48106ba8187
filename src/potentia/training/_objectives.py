"""What is minimised: denoising for a teacher, distillation or score matching for an energy."""

from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from potentia._potential import Energy
from potentia._tensor import squared_norm

Trained = TypeVar("Trained", bound=nn.Module)


class Objective(nn.Module, Generic[Trained]):
    """A loss an image of a network in training.

    ``trained`` is what is trained, averaged and saved. Losses are those of denoisers with the weight (s^2 + d^2) / (s
    d)^2 of Karras et al. 2022, d the standard deviation of the data, so that every scale matters alike; squares are
    averaged over the real entries of an image.
    """

    trained: Trained

    def __init__(self, trained: Trained, sigma_data: float) -> None:
        super().__init__()
        self.trained = trained
        self.sigma_data = sigma_data

    def forward(self, x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        """Clean images (N, C, H, W), scales (N,) and standard normal noise like x -> losses (N,)."""
        raise NotImplementedError

    def weighted(self, error: Tensor, sigma: Tensor) -> Tensor:
        """The weighted mean square of a denoiser's error, an image."""
        entries = error[0].numel() * (2 if error.is_complex() else 1)
        weight = (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
        return weight * squared_norm(error) / entries


class Denoising(Objective[nn.Module]):
    """A teacher D(x, s): E w(s) ||D(x + s n, s) - x||^2 (Karras et al. 2022, equation 2)."""

    def forward(self, x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        noisy = x + sigma[:, None, None, None] * noise
        return self.weighted(self.trained(noisy, sigma) - x, sigma)


class ScoreMatching(Objective[Energy]):
    """An energy with no teacher: its own denoiser x - s^2 grad U_s is held to the clean image (Vincent 2011).

    ``consistency`` weighs the second half of dual score matching, which makes the values of the energy comparable over
    scales: dU_s/ds at a noisy image is held to (n - ||noise||^2) / s, n the real entries of an image, whose mean given
    the noisy image is that of -log of the smoothed density (Choi et al. 2022; Guth et al. 2025). The energy needs an
    ``offset`` for it.

    Raises: ValueError if consistency is negative.
    """

    def __init__(self, trained: Energy, sigma_data: float, *, consistency: float = 0.0) -> None:
        super().__init__(trained, sigma_data)
        if not consistency >= 0:
            raise ValueError(f"ScoreMatching: consistency is {consistency:g}, expected zero or more")
        self.consistency = consistency

    def target(self, noisy: Tensor, sigma: Tensor, clean: Tensor) -> Tensor:
        """What the energy's denoiser is to give."""
        del noisy, sigma
        return clean

    def forward(self, x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        noisy = x + sigma[:, None, None, None] * noise
        target = self.target(noisy, sigma, x)
        if not self.consistency:
            return self.weighted(differentiable_denoise(self.trained, noisy, sigma) - target, sigma)
        z = noisy.detach().requires_grad_(True)
        s = sigma.detach().requires_grad_(True)
        slope_x, slope_s = torch.autograd.grad(self.trained(z, s).sum(), (z, s), create_graph=True)
        denoised = z - sigma[:, None, None, None] ** 2 * slope_x
        entries = x[0].numel() * (2 if x.is_complex() else 1)
        # In units of the target's own standard deviation, sqrt(2 n) / s.
        across = (sigma * slope_s - (entries - squared_norm(noise))) / (2 * entries) ** 0.5
        loss: Tensor = self.weighted(denoised - target, sigma) + self.consistency * across.square()
        return loss


class Distillation(ScoreMatching):
    """An energy whose denoiser is held to a teacher's: E w(s) ||grad E(z, s) - (z - D(z, s))||^2, z = x + s n.

    Source: Chand and Jacob 2026; Thornton et al. 2025. ``teacher`` is any callable D(z, s); it is not trained, nor
    saved.
    """

    def __init__(self, trained: Energy, teacher: Any, sigma_data: float, *, consistency: float = 0.0) -> None:
        super().__init__(trained, sigma_data, consistency=consistency)
        # Hidden from the module tree: its parameters are neither to be trained nor shared among processes.
        self._teacher = (teacher,)

    def target(self, noisy: Tensor, sigma: Tensor, clean: Tensor) -> Tensor:
        del clean
        with torch.no_grad():
            out: Tensor = self._teacher[0](noisy, sigma)
        return out


def differentiable_denoise(energy: Energy, x: Tensor, sigma: Tensor) -> Tensor:
    """Tweedie's x - s^2 grad U_s(x), with a graph back to the energy's parameters.

    Shapes: x (N, C, H, W), sigma (N,); returns x's.
    """
    z = x.detach().requires_grad_(True)
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(energy(z, sigma).sum(), z, create_graph=True)
    return z - sigma[:, None, None, None] ** 2 * slope
