"""Camera responses: from radiance to pixel values, with a curve and saturation."""

import math

import torch
from torch import Tensor

from potentia._tensor import EVENT_DIMS
from potentia._validate import Shape, positive, shape_text, tensor
from potentia.likelihoods._forward_model import ForwardModel


class ToneCurve(ForwardModel):
    """A(x) = curve(clip(exposure x)) in every pixel: what a camera records of the radiance x.

    ``clip`` is the identity within (0, 1) and bends to 0 and 1 over about ``smoothness``, so that saturated pixels keep
    a slope: s (softplus(u / s) - softplus((u - 1) / s)). The curve is gamma's, u^(1 / gamma), if given as a number, or
    the monotone cubic through its values at equally spaced points from 0 to 1. Frames of several exposures make one
    posterior by adding likelihoods.

    Shapes: curve a number or (n,), n >= 2, increasing; (*batch, C, H, W), real -> the same.
    Units: exposure in 1 / the image's unit; smoothness in the unit of exposure x.
    Raises: ValueError for gamma, exposure or smoothness <= 0, or a curve that does not increase.
    Source: Debevec and Malik 1997; the cubic is Fritsch and Carlson's of 1980 with Butland's slopes.
    """

    values: Tensor | None
    slopes: Tensor | None

    def __init__(self, curve: object = 2.2, *, exposure: float = 1.0, smoothness: float = 0.02) -> None:
        super().__init__()
        self.exposure = positive("ToneCurve", "exposure", exposure)
        self.smoothness = positive("ToneCurve", "smoothness", smoothness)
        self.gamma = positive("ToneCurve", "gamma", curve) if isinstance(curve, int | float) else None
        values = None if self.gamma is not None else _increasing(curve)
        self.register_buffer("values", values)
        self.register_buffer("slopes", None if values is None else _monotone_slopes(values))

    def forward(self, x: Tensor) -> Tensor:
        return self._evaluate(x)[0]

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return self._evaluate(x.detach())[1] * v

    def jvp(self, x: Tensor, t: Tensor) -> Tensor:
        return self._evaluate(x.detach())[1] * t

    def _evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values and derivatives in x."""
        low, high = self.exposure * x / self.smoothness, (self.exposure * x - 1) / self.smoothness
        zero = torch.zeros_like(low)
        # Not torch's softplus, which jumps by 2e-9 where it goes over to a straight line.
        clipped = self.smoothness * (torch.logaddexp(low, zero) - torch.logaddexp(high, zero))
        # sigmoid(low) - sigmoid(high), as a product that keeps its digits at both ends.
        slope = -self.exposure * math.expm1(-1 / self.smoothness) * torch.sigmoid(low) * torch.sigmoid(-high)
        value, steepness = self._power(clipped) if self.gamma is not None else self._cubic(clipped)
        return value, steepness * slope

    def _power(self, u: Tensor) -> tuple[Tensor, Tensor]:
        assert self.gamma is not None
        u = u.clamp_min(torch.finfo(u.dtype).tiny)
        value = u ** (1 / self.gamma)
        return value, value / (self.gamma * u)

    def _cubic(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The Hermite cubic between the knots beside u, and its derivative."""
        assert self.values is not None
        assert self.slopes is not None
        values, slopes = self.values.to(u.dtype), self.slopes.to(u.dtype)
        pieces = len(values) - 1
        k = (u.detach() * pieces).floor().long().clamp(0, pieces - 1)
        t = u * pieces - k
        start, end, m, n = values[k], values[k + 1], slopes[k], slopes[k + 1]
        rise = end - start
        square, cube = 3 * rise - 2 * m - n, m + n - 2 * rise
        value = start + t * (m + t * (square + t * cube))
        return value, pieces * (m + t * (2 * square + 3 * t * cube))

    def output_shape(self, input_shape: Shape) -> Shape:
        if len(input_shape) != EVENT_DIMS:
            raise ValueError(f"ToneCurve: got an image of shape {shape_text(tuple(input_shape))}, expected (C, H, W)")
        return tuple(input_shape)

    def input_shape(self, output_shape: Shape) -> Shape:
        return self.output_shape(output_shape)

    def complex_output(self, complex_input: bool) -> bool:
        return False

    def complex_input(self, complex_output: bool) -> bool:
        if complex_output:
            raise ValueError("ToneCurve: measurements are real, got complex ones")
        return False

    def extra_repr(self) -> str:
        curve = f"gamma {self.gamma:g}" if self.values is None else f"a curve of {len(self.values)} points"
        return f"{curve}, exposure {self.exposure:g}"


def _increasing(curve: object) -> Tensor:
    values = tensor("ToneCurve", "curve", curve)
    if values.dim() != 1 or len(values) < 2 or values.is_complex() or not bool((values.diff() > 0).all()):
        raise ValueError(
            f"ToneCurve: curve has shape {shape_text(tuple(values.shape))} and dtype {values.dtype}, expected at least "
            "two real numbers that increase"
        )
    return values


def _monotone_slopes(values: Tensor) -> Tensor:
    """Derivatives at equally spaced knots, per step, that keep the cubic monotone: (n,).

    Within, the harmonic mean of the slopes on both sides; at the ends, the slope of the chord, which is at most three
    times itself, as monotone cubics need.
    """
    chords = values.diff()
    inner = 2 * chords[1:] * chords[:-1] / (chords[1:] + chords[:-1])
    return torch.cat([chords[:1], inner, chords[-1:]])
