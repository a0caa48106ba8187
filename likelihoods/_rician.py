"""The Rician likelihood: magnitudes of complex data."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from potentia._random import standard_normal
from potentia.likelihoods._forward_model import ForwardModel
from potentia.likelihoods._modulus import Modulus
from potentia.likelihoods._noise import NoiseModel, noise_parameter, number_text
from potentia.likelihoods._operator import Operator

_LARGE = 500.0


class Rician(NoiseModel):
    """Magnitudes y = |A(x) + n|, n complex, with std ``noise_std`` of its real and of its imaginary part.

    L(x) = sum of (y - |z|)^2 / (2 noise_std^2) - log(exp(-u) I0(u)), z = A(x), u = y |z| / noise_std^2. A(x) may be
    complex or real; its phase or sign does not matter to L, and is the prior's to tell. Operators that take real images
    and complex ones alike (blur, masks) stand on real ones unless ``complex_images`` says otherwise.

    The curvature, of |z|, is |z|^2 / (noise_std^2 (|z|^2 + noise_std^2)): 7 % off the Fisher
    information at most.

    Shapes: y (*measurement), real, as |A(x)|; noise_std a number or broadcasting against y; x (*batch, C, H, W);
        returns (*batch,). Units: y and noise_std share the data's unit; L is in nats. The normaliser of a y of exactly
        0, where the density vanishes, is infinite.
    Raises: TypeError without noise_std; ValueError for y that is complex or negative, noise_std <= 0, or as
        ``NoiseModel``.
    Source: Rice 1944; Gudbjartsson and Patz 1995.
    """

    default_name: ClassVar[str] = "rician"
    noise_std: Tensor

    def __init__(
        self,
        y: object,
        operator: ForwardModel | None = None,
        noise_std: Any = None,
        *,
        complex_images: bool = False,
    ) -> None:
        self._prefers_complex = complex_images
        super().__init__(y, operator)
        if bool((self.y < 0).any()):
            raise ValueError(f"{self.name}: y has a least value of {float(self.y.min()):g}, expected magnitudes")
        self.register_buffer("noise_std", noise_parameter(self.name, "noise_std", noise_std, self.y))

    def _image_field(self, data: Tensor) -> bool:
        """Whether images are complex: as asked for, unless the operator takes only the others."""
        fields = [field for field in (False, True) if _takes(self.operator, field)]
        if not fields:
            raise ValueError(f"{self.operator.describe()} takes neither real nor complex images")
        return self._prefers_complex if self._prefers_complex in fields else fields[0]

    def entries(self, z: Tensor, y: Tensor) -> Tensor:
        v = self.noise_std.square()
        size = z.abs()
        log_bessel: Tensor = torch.special.i0e(y * size / v).log()
        return 0.5 * ((y - size) / self.noise_std).square() - log_bessel

    def slopes(self, z: Tensor, y: Tensor) -> Tensor:
        v = self.noise_std.square()
        size = z.abs()
        return z.sgn() * ((size - y) + y * _one_less_ratio(y * size / v)) / v

    def curvatures(self, z: Tensor) -> Tensor:
        v, square = self.noise_std.square(), z.abs().square()
        return square / (v * (square + v))

    def _tangent(self, x: Tensor) -> Operator:
        return Modulus(self.operator).linearise(x)

    def residual(self, x: Tensor) -> Tensor:
        """|A(x)| - y, zero where nothing is measured: (*batch, C, H, W) -> (*batch, *measurement)."""
        self.check(x)
        return self._measured(self.operator(x).abs() - self.y)

    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        dtype = z.dtype.to_complex()
        return (z + self.noise_std * standard_normal(z.shape, generator, dtype=dtype, device=z.device)).abs()

    def log_normalisers(self) -> Tensor:
        return 2 * self.noise_std.double().log() - self.y.double().log()

    def parameters_text(self) -> str:
        return f"noise_std {number_text(self.noise_std)}"


def _takes(operator: ForwardModel, is_complex: bool) -> bool:
    try:
        return operator.complex_input(operator.complex_output(is_complex)) == is_complex
    except ValueError:
        return False


def _one_less_ratio(u: Tensor) -> Tensor:
    """1 - I1(u) / I0(u) for u >= 0, for large u by its asymptotic series (DLMF 10.40.1)."""
    w = 1 / u.clamp_min(_LARGE)
    far = w * (1 / 2 + w * (1 / 8 + w * (1 / 8 + w * (25 / 128 + w * (13 / 32 + w * 1073 / 1024)))))
    return torch.where(u < _LARGE, 1 - torch.special.i1e(u) / torch.special.i0e(u), far)
