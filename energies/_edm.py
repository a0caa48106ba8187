"""Networks preconditioned for every noise scale."""

import torch
from torch import Tensor, nn

from potentia._validate import positive, shape_text


class EDM(nn.Module):
    """The denoiser D(x, s) = c_skip x + c_out F(c_in x, c_noise) of a network F.

    c_skip = d^2 / (s^2 + d^2), c_out = s d / sqrt(s^2 + d^2), c_in = 1 / sqrt(s^2 + d^2), c_noise = log(s) / 4, where
    d is ``sigma_data``, the standard deviation of the images about zero, so that input and target of F have unit
    variance at every scale. Complex images go to F as two channels for one, all real parts first; d is then that of a
    part.

    Shapes: x (N, C, H, W), real or complex, sigma (N,); returns x's.
    Units: x, sigma and sigma_data share the image's unit.
    Raises: ValueError if sigma_data is not positive or x has other channels than the network.
    Source: Karras et al. 2022, table 1.
    """

    def __init__(self, network: nn.Module, sigma_data: float) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = positive("EDM", "sigma_data", sigma_data)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        parts = real_parts(x)
        check_channels("EDM", self.network, x)
        s = sigma[:, None, None, None]
        total = s**2 + self.sigma_data**2
        raw = self.network(parts * total.rsqrt(), sigma.log() / 4)
        d = parts * (self.sigma_data**2 / total) + (s * self.sigma_data * total.rsqrt()) * raw.to(parts.dtype)
        result: Tensor = complex_image(d) if x.is_complex() else d
        return result

    def extra_repr(self) -> str:
        return f"sigma_data={self.sigma_data:g}"


class EDMPotential(nn.Module):
    """A scalar network: the potential of every noise scale, in nats.

    U(x, s) = ||x||^2 / (2 (s^2 + d^2)) - (d / s) f(c_in x, c_noise), where f sums a network's output over pixels and
    channels. Its Tweedie denoiser is that of :class:`EDM` with F = grad f, so that one training fits both.

    Shapes: x (N, C, H, W), real or complex, sigma (N,); returns (N,).
    Units: x, sigma and sigma_data share the image's unit; U is in nats.
    Raises: ValueError if sigma_data is not positive or x has other channels than the network.
    Source: Karras et al. 2022; Du et al. 2023 compare scalar networks with the other forms.
    """

    def __init__(self, network: nn.Module, sigma_data: float) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = positive("EDMPotential", "sigma_data", sigma_data)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        parts = real_parts(x)
        check_channels("EDMPotential", self.network, x)
        total = sigma**2 + self.sigma_data**2
        raw = self.network(parts * total.rsqrt()[:, None, None, None], sigma.log() / 4)
        dims = (1, 2, 3)
        quadratic = parts.square().sum(dims) / (2 * total)
        value: Tensor = quadratic - (self.sigma_data / sigma) * raw.to(parts.dtype).sum(dims)
        return value

    def extra_repr(self) -> str:
        return f"sigma_data={self.sigma_data:g}"


def real_parts(x: Tensor) -> Tensor:
    """(N, C, H, W) complex -> (N, 2 C, H, W) real, real parts first; real images as they are."""
    return torch.cat([x.real, x.imag], dim=-3) if x.is_complex() else x


def complex_image(parts: Tensor) -> Tensor:
    """The inverse of :func:`real_parts` for complex images."""
    real, imaginary = parts.chunk(2, dim=-3)
    return torch.complex(real.contiguous(), imaginary.contiguous())


def check_channels(where: str, network: nn.Module, x: Tensor) -> None:
    """Refuse an image of another number of channels than the network was made for.

    Raises: ValueError with both.
    """
    wanted = getattr(network, "settings", {}).get("channels_in")
    got = x.shape[-3] * (2 if x.is_complex() else 1)
    if wanted is not None and got != wanted:
        field = "complex" if x.is_complex() else "real"
        raise ValueError(
            f"{where}: image of shape {shape_text(tuple(x.shape))} is {field} and has {got} real channels, "
            f"the network takes {wanted}"
        )
