"""Examples of noise models."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from potentia import likelihoods
from potentia._potential import Likelihood
from potentia._validate import Shape
from potentia.likelihoods._forward_model import ForwardModel

if TYPE_CHECKING:
    from potentia.testing.examples import Maker, Source


class ToneCurve(ForwardModel):
    """A(x) = x + 0.3 x^3 / (1 + x^2): a detector that is not linear."""

    def forward(self, x: Tensor) -> Tensor:
        square = x.square()
        return x + 0.3 * x * square / (1 + square)

    def output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def input_shape(self, output_shape: Shape) -> Shape:
        return tuple(output_shape)


class Exponential(ForwardModel):
    """A(x) = exp(x / 2): a positive signal, whatever the image."""

    def forward(self, x: Tensor) -> Tensor:
        return (0.5 * x).exp()

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return 0.5 * (0.5 * x).exp() * v

    def jvp(self, x: Tensor, t: Tensor) -> Tensor:
        return self.vjp(x, t)

    def output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def input_shape(self, output_shape: Shape) -> Shape:
        return tuple(output_shape)


def _counts(source: "Source", rate: float) -> Tensor:
    return torch.poisson(rate * source.positive(*source.shape), generator=source.generator)


def _inpainting(source: "Source") -> likelihoods.Mask:
    return likelihoods.Mask(source.mask(*source.plane))


def _covariance(source: "Source", channels: int, *, is_complex: bool) -> Tensor:
    factor = source.normal(channels, channels, is_complex=is_complex)
    return factor @ factor.mH / channels + 0.5 * torch.eye(channels, dtype=source.dtype)


def _sense(source: "Source") -> likelihoods.Sense:
    maps = source.normal(3, *source.plane, is_complex=True)
    return likelihoods.Sense(maps, source.mask(*source.plane)).to(source.dtype)


def _correlated_coils(source: "Source") -> Likelihood:
    y = source.normal(3, *source.plane, is_complex=True)
    return likelihoods.Gaussian(y, _sense(source), covariance=_covariance(source, 3, is_complex=True))


def _correlated_channels(source: "Source") -> Likelihood:
    y, channels = source.normal(*source.shape), source.shape[0]
    return likelihoods.Gaussian(y, _inpainting(source), covariance=_covariance(source, channels, is_complex=False))


def _magnitudes(source: "Source") -> Likelihood:
    y = source.normal(3, *source.plane).abs()
    return likelihoods.Rician(y, _sense(source), 0.5)


def _quantised(source: "Source", step: float, **ends: float) -> Likelihood:
    z = step * (source.normal(*source.shape) / step).round()
    clipped = z.clamp(ends.get("low", -torch.inf), ends.get("high", torch.inf))
    return likelihoods.Quantised(clipped, None, 0.4, step, **ends)


GAUSSIAN: "dict[str, Maker[Likelihood]]" = {
    "correlated coils": _correlated_coils,
    "correlated channels": _correlated_channels,
    "nonlinear": lambda s: likelihoods.Gaussian(s.normal(*s.shape), ToneCurve(), s.positive(*s.shape)),
}
NOISE: "dict[type, dict[str, Maker[Likelihood]]]" = {
    likelihoods.Poisson: {
        "with background": lambda s: likelihoods.Poisson(
            _counts(s, 60), _inpainting(s), 2.0, s.positive(*s.shape) + 60
        ),
        "nonlinear": lambda s: likelihoods.Poisson(_counts(s, 80), ToneCurve(), 1.5, 80.0),
        "dark": lambda s: likelihoods.Poisson(_counts(s, 3), None, 2.0),
    },
    likelihoods.PoissonGaussian: {
        "with background": lambda s: likelihoods.PoissonGaussian(
            _counts(s, 60) + 2 * s.normal(*s.shape), _inpainting(s), 2.0, 2.0, 60.0
        ),
        "dark": lambda s: likelihoods.PoissonGaussian(_counts(s, 3) + s.normal(*s.shape), None, 1.0, 2.0),
    },
    likelihoods.Rician: {
        "real images": lambda s: likelihoods.Rician(s.normal(*s.shape).abs(), None, 0.7),
        "complex images": lambda s: likelihoods.Rician(
            s.normal(*s.shape).abs(), _inpainting(s), 0.7, complex_images=True
        ),
        "sense": _magnitudes,
    },
    likelihoods.StudentT: {
        "inpainting": lambda s: likelihoods.StudentT(s.normal(*s.shape), _inpainting(s), s.positive(*s.shape), 3.0),
        "complex": lambda s: likelihoods.StudentT(s.normal(*s.shape, is_complex=True), likelihoods.Fourier(), 0.4, 2.5),
    },
    likelihoods.Laplace: {
        "denoising": lambda s: likelihoods.Laplace(s.normal(*s.shape), None, 0.5),
        "complex": lambda s: likelihoods.Laplace(
            s.normal(*s.shape, is_complex=True), _inpainting(s), s.positive(*s.shape)
        ),
    },
    likelihoods.Gamma: {
        "4 looks": lambda s: likelihoods.Gamma(s.positive(*s.shape), Exponential(), 4.0),
        "dark": lambda s: likelihoods.Gamma(s.positive(*s.shape), None, 4.0),
    },
    likelihoods.Quantised: {
        "coarse": lambda s: _quantised(s, 0.5),
        "fine, clipped": lambda s: _quantised(s, 0.1, low=-0.5, high=1.0),
    },
}
