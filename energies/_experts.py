"""Heavy-tailed filter responses: fields of experts and Student's t."""

from typing import ClassVar

import torch
from torch import Tensor

from potentia._potential import Energy, Sigma
from potentia._tensor import EVENT_DIMS, squared_magnitude, sum_event
from potentia._validate import positive, shape_text, tensor
from potentia.energies._shared import number_or_tensor, positive_entries


class FieldsOfExperts(Energy):
    """Fields of experts: heavy-tailed responses of a bank of filters; it has no scales.

    U(x) = sum_i weights_i sum over pixels of log(1 + |filters_i * x|^2 / (2 scale_i^2)), unnormalised, with circular
    correlations, on each channel by itself. The exponents alpha of Roth and Black are the weights.

    Shapes: filters (J, h, w), real; weights and scale a number or (J,); x (*batch, C, H, W), real or complex, at least
        as large as the filters; returns (*batch,).
    Units: scale in the unit of the responses; U is in nats.
    Raises: ValueError if weights are negative, scale is not positive, or shapes clash.
    Source: Roth and Black 2009, equations 12 and 17; per channel, circular boundaries and scale are ours.
    """

    default_name: ClassVar[str] = "experts"
    filters: Tensor
    weights: Tensor
    scale: Tensor

    def __init__(self, filters: Tensor, weights: Tensor | float, *, scale: Tensor | float = 1.0) -> None:
        super().__init__()
        f = tensor(self.name, "filters", filters)
        if f.dim() != 3 or f.is_complex():
            got = f"shape {shape_text(tuple(f.shape))} and dtype {f.dtype}"
            raise ValueError(f"{self.name}: filters have {got}, expected (J, h, w), real")
        self.register_buffer("filters", f)
        self.register_buffer("weights", _per_filter(self.name, "weights", weights, f, zero=True))
        self.register_buffer("scale", _per_filter(self.name, "scale", scale, f, zero=False))

    def extra_repr(self) -> str:
        return f"{self.filters.shape[0]} filters of {' by '.join(str(n) for n in self.filters.shape[1:])}"

    def check(self, x: Tensor) -> None:
        super().check(x)
        if any(n < k for n, k in zip(x.shape[-2:], self.filters.shape[-2:], strict=True)):
            raise ValueError(
                f"{self.name}: x has shape {shape_text(tuple(x.shape))}, smaller than the filters' "
                f"{shape_text(tuple(self.filters.shape[-2:]))}"
            )

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        self.check(x)
        y = _inverse(_forward(x).unsqueeze(-3) * self._transfer(x), x)
        return self._value(squared_magnitude(y))

    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        """Adjoint filters on weights_i 2 y_i / (2 scale_i^2 + |y_i|^2)."""
        return self.value_and_grad(x, sigma)[1]

    @torch.no_grad()
    def value_and_grad(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        self.check(x)
        transfer = self._transfer(x)
        y = _inverse(_forward(x).unsqueeze(-3) * transfer, x)
        squared = squared_magnitude(y)
        slope = self._spread(self.weights) * 2 / (2 * self._spread(self.scale).square() + squared)
        grad = _inverse((_forward(slope * y) * transfer.conj()).sum(-3), x)
        return self._value(squared), grad.to(x.dtype)

    def _value(self, squared: Tensor) -> Tensor:
        """Shapes: squared (*batch, C, J, H, W) -> (*batch,)."""
        logs = torch.log1p(squared / (2 * self._spread(self.scale).square()))
        return sum_event(self._spread(self.weights) * logs, EVENT_DIMS + 1)

    def _spread(self, per_filter: Tensor) -> Tensor:
        return per_filter.reshape(-1, 1, 1)

    def _transfer(self, x: Tensor) -> Tensor:
        """Transfer functions of the circular correlations with the filters, (J, H, W) or half of that for real x."""
        size = tuple(x.shape[-2:])
        f = self.filters.to(torch.promote_types(self.filters.dtype, x.real.dtype))
        spectrum: Tensor = torch.fft.fft2(f, s=size) if x.is_complex() else torch.fft.rfft2(f, s=size)
        return spectrum.conj()


class StudentT(FieldsOfExperts):
    """Student's t on the horizontal and vertical differences between neighbours, which wrap around the edges.

    U(x) = (dof + 1) / 2 sum over pixels of log(1 + |dx|^2 / (dof scale^2)) + the same for dy: the two-filter case of
    ``FieldsOfExperts``. Flat regions and sharp edges are both cheap; small dof and scale make edges cheaper.

    Shapes: x (*batch, C, H, W), at least 2 by 2, real or complex; returns (*batch,).
    Units: scale in the image's unit; U is in nats.
    Raises: ValueError if scale or dof is not positive.
    Source: Lan, Roth, Huttenlocher and Black 2006.
    """

    default_name: ClassVar[str] = "student_t"

    def __init__(self, scale: float, dof: float = 2.0) -> None:
        s, nu = positive(self.default_name, "scale", scale), positive(self.default_name, "dof", dof)
        differences = torch.tensor([[[-1.0, 1.0], [0.0, 0.0]], [[-1.0, 0.0], [1.0, 0.0]]])
        super().__init__(differences, 0.5 * (nu + 1), scale=s * (0.5 * nu) ** 0.5)
        self.dof = nu

    def extra_repr(self) -> str:
        return f"scale={float(self.scale[0]) / (0.5 * self.dof) ** 0.5:g}, dof={self.dof:g}"


def _per_filter(where: str, what: str, value: Tensor | float, filters: Tensor, *, zero: bool) -> Tensor:
    t = number_or_tensor(where, what, value)
    positive_entries(where, what, t, zero=zero)
    j = filters.shape[0]
    if tuple(t.shape) not in ((), (j,)):
        raise ValueError(f"{where}: {what} has shape {shape_text(tuple(t.shape))}, expected a number or ({j},)")
    return t.to(filters.device).expand(j).clone()


def _forward(x: Tensor) -> Tensor:
    out: Tensor = torch.fft.fft2(x) if x.is_complex() else torch.fft.rfft2(x)
    return out


def _inverse(spectrum: Tensor, like: Tensor) -> Tensor:
    size = like.shape[-2:]
    out: Tensor = torch.fft.ifft2(spectrum) if like.is_complex() else torch.fft.irfft2(spectrum, s=size)
    return out
