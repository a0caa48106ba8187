"""Examples of operators and forward models beyond masks, blur and magnetic resonance."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from potentia import likelihoods
from potentia.likelihoods import ForwardModel, Operator

if TYPE_CHECKING:
    from potentia.testing.examples import Maker, Source


def _kernel(source: "Source", *number: int) -> Tensor:
    return source.normal(*number, min(3, source.shape[-2]), min(2, source.shape[-1]))


def _factor(source: "Source") -> int:
    height, width = source.plane
    return next((k for k in (2, 3, 5) if height % k == 0 == width % k), 1)


def _bicubic(source: "Source") -> Operator | None:
    factor = _factor(source)
    fits = 4 * factor <= min(source.plane)
    return likelihoods.SuperResolution(factor, "bicubic", source.plane) if fits else None


def _product(source: "Source") -> Operator:
    return likelihoods.ProductConvolution(_kernel(source, 2), source.positive(2, *source.plane))


def _degrees(source: "Source", turn: float) -> Tensor:
    return turn * torch.rand(6, generator=source.generator, dtype=source.dtype)


def _fan(source: "Source", **detector: object) -> Operator:
    far = float(sum(source.plane))
    return likelihoods.FanBeam(_degrees(source, 360), source.plane, far, 0.5 * far, **detector)  # type: ignore[arg-type]


def _random(source: "Source") -> Operator:
    size = source.shape[0] * source.shape[1] * source.shape[2]
    return likelihoods.StructuredRandom(max(1, size - 2), source.shape, seed=3)


def _stack(source: "Source") -> Operator:
    blur = likelihoods.Convolution(_kernel(source), source.plane)
    return likelihoods.Stack([blur, likelihoods.Mask(source.mask(*source.plane)), 0.5 * blur])


def _matrix(source: "Source") -> Operator:
    size = source.shape[0] * source.shape[1] * source.shape[2]
    return likelihoods.Matrix(source.normal(size + 3, size, is_complex=True), source.shape)


def _curve(source: "Source") -> Tensor:
    return source.positive(6).cumsum(0)


OPERATORS: "dict[type, dict[str, Maker[Operator]]]" = {
    likelihoods.Bayer: {"GBRG": lambda s: likelihoods.Bayer("GBRG", s.plane)},
    likelihoods.ChannelMix: {"to 2 channels": lambda s: likelihoods.ChannelMix(s.normal(2, s.shape[0]))},
    likelihoods.FanBeam: {"flat": _fan, "arc": lambda s: _fan(s, detector="arc", spacing=1.3)},
    likelihoods.PaddedFourier: {
        "complex images": lambda s: likelihoods.PaddedFourier(2),
        "real images": lambda s: likelihoods.PaddedFourier(3, real=True),
        "not padded": lambda s: likelihoods.PaddedFourier(1, real=True),
    },
    likelihoods.ProductConvolution: {"2 kernels": _product},
    likelihoods.Radon: {
        "6 angles": lambda s: likelihoods.Radon(_degrees(s, 180), s.plane),
        "few detectors": lambda s: likelihoods.Radon(_degrees(s, 180), s.plane, num_detectors=3, spacing=1.5),
    },
    likelihoods.Stack: {"blurred and masked": _stack},
    likelihoods.StructuredRandom: {"2 left out": _random},
    likelihoods.SuperResolution: {
        "box": lambda s: likelihoods.SuperResolution(_factor(s), "box", s.plane),
        "bicubic": _bicubic,
        "a kernel": lambda s: likelihoods.SuperResolution(_factor(s), _kernel(s), s.plane),
    },
    likelihoods.ValidConvolution: {"asymmetric": lambda s: likelihoods.ValidConvolution(_kernel(s), s.plane)},
}

FORWARD_MODELS: "dict[type, dict[str, Maker[ForwardModel]]]" = {
    likelihoods.PhaseRetrieval: {
        "magnitudes": lambda s: likelihoods.PhaseRetrieval(_matrix(s)),
        "intensities": lambda s: likelihoods.PhaseRetrieval(_matrix(s), intensity=True),
    },
    likelihoods.FourierPhaseRetrieval: {
        "complex images": lambda s: likelihoods.FourierPhaseRetrieval(),
        "real images": lambda s: likelihoods.FourierPhaseRetrieval(intensity=True, real=True),
    },
    likelihoods.CodedDiffraction: {
        "2 masks": lambda s: likelihoods.CodedDiffraction(s.normal(2, *s.plane, is_complex=True), intensity=True),
        "real images": lambda s: likelihoods.CodedDiffraction(s.normal(2, *s.plane, is_complex=True), real=True),
    },
    likelihoods.ToneCurve: {
        "gamma": lambda s: likelihoods.ToneCurve(2.2, exposure=0.4, smoothness=0.1),
        "a curve": lambda s: likelihoods.ToneCurve(_curve(s), exposure=0.4, smoothness=0.1),
    },
    ForwardModel: {
        "after an operator": lambda s: (
            likelihoods.ToneCurve(1.8, smoothness=0.2) @ likelihoods.Convolution(_kernel(s), s.plane)
        ),
        "before an operator": lambda s: likelihoods.Mask(s.mask(*s.plane)) @ likelihoods.ToneCurve(smoothness=0.2),
        "two": lambda s: likelihoods.ToneCurve(smoothness=0.2) @ likelihoods.FourierPhaseRetrieval(intensity=True),
    },
}
