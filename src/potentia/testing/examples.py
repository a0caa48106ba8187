"""Examples of every public energy, operator and likelihood, for tests that are to hold for all of them.

``EXAMPLES`` maps a class to its makers, by the name of the variant. A new public class wants an entry here:
``missing_examples`` lists those without.
"""

import importlib.util
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from potentia import energies, likelihoods
from potentia._module import Module
from potentia._potential import Energy, Likelihood, Potential, Sigma
from potentia._random import standard_normal
from potentia._tensor import sum_event
from potentia._validate import Shape
from potentia.likelihoods import ForwardModel, Operator
from potentia.testing import _examples_mri as mri
from potentia.testing import _examples_operators as more
from potentia.testing._examples_noise import GAUSSIAN, NOISE
from potentia.testing._operator import takes

T = TypeVar("T", bound=Module)
F = TypeVar("F", bound=ForwardModel)


@dataclass(frozen=True)
class Source:
    """What an example is made of: random tensors for images of one shape in one precision.

    Shapes: shape (C, H, W).
    """

    generator: torch.Generator
    shape: Shape
    dtype: torch.dtype

    @property
    def plane(self) -> Shape:
        """(H, W)."""
        return self.shape[-2:]

    def normal(self, *shape: int, is_complex: bool = False) -> Tensor:
        """Standard normal numbers."""
        return standard_normal(shape, self.generator, dtype=self.dtype.to_complex() if is_complex else self.dtype)

    def positive(self, *shape: int) -> Tensor:
        """Numbers between 0.5 and 1.5."""
        return 0.5 + torch.rand(shape, generator=self.generator, dtype=self.dtype)

    def mask(self, *shape: int) -> Tensor:
        """Zeros and ones, about two thirds of them ones, and at least one."""
        m = (torch.rand(shape, generator=self.generator, dtype=self.dtype) < 0.67).to(self.dtype)
        m.view(-1)[0] = 1.0
        return m

    def spectrum(self, *, even: bool) -> Tensor:
        """Positive numbers per frequency, even (k and -k alike) or not: (C, H, W)."""
        s = self.positive(*self.shape)
        return (s + s.flip((-2, -1)).roll((1, 1), (-2, -1))) / 2 if even else s


@dataclass(frozen=True)
class Example(Generic[T]):
    """An instance, and the images that it takes.

    Shapes: shape (C, H, W).
    """

    name: str
    subject: T
    shape: Shape
    dtype: torch.dtype

    def images(self, generator: torch.Generator, *batch: int) -> Tensor:
        """Standard normal images that the instance takes: (*batch, C, H, W)."""
        return standard_normal((*batch, *self.shape), generator, dtype=self.dtype)

    def __str__(self) -> str:
        return self.name


Maker = Callable[[Source], T | None]  # None where the variant does not come in that shape


def _psi(x: Tensor, sigma: Tensor) -> Tensor:
    """A smooth map of images that depends on the scale and mixes neighbouring pixels, for either field."""
    s = sigma.reshape(-1, 1, 1, 1)
    y = (x + 0.5 * x.roll(1, -1)) / (1 + s.square())
    return y + 0.2 * s * x.roll(1, -2) / (1 + x.abs().square())


def _bowl(x: Tensor, sigma: Sigma = None) -> Tensor:
    """A convex function that flattens with the scale; without one, it is taken as zero."""
    s = torch.as_tensor(0.0 if sigma is None else sigma, dtype=x.real.dtype).square()
    return sum_event((1 + x.abs().square()).sqrt()) / (1 + s)


def _mixture(source: Source, **spread: Tensor) -> Energy:
    weights = source.positive(3)
    return energies.GaussianMixture(weights / weights.sum(), source.normal(3, *source.shape), **spread)


def _factors(source: Source) -> Tensor:
    d = source.shape[0] * source.shape[1] * source.shape[2]
    return 0.3 * source.normal(3, d, 2)


def _full(source: Source) -> Energy:
    f = _factors(source)
    return _mixture(source, covariances=f @ f.mT + torch.diag_embed(source.positive(3, *source.shape).flatten(1)))


def _wavelet(source: Source) -> Energy | None:
    even = all(n % 2 == 0 for n in source.plane)
    return energies.Sparsity(energies.Wavelet("haar", 1), 0.5) if even and _installed("pywt") else None


def _cosines(source: Source) -> Energy | None:
    return energies.Sparsity(energies.DCT(), 0.5, penalise_coarse=True) if _installed("scipy") else None


def _experts(source: Source) -> Energy | None:
    filters = source.normal(3, min(3, source.shape[-2]), min(2, source.shape[-1]))
    return energies.FieldsOfExperts(filters, source.positive(3), scale=source.positive(3))


ENERGIES: dict[type, dict[str, Maker[Energy]]] = {
    energies.Gaussian: {
        "real": lambda s: energies.Gaussian(s.normal(*s.shape), s.positive(*s.shape)),
        "complex": lambda s: energies.Gaussian(s.normal(*s.shape, is_complex=True), 0.7),
        "any shape": lambda s: energies.Gaussian(0.2, 0.7),
    },
    energies.GaussianField: {
        "real": lambda s: energies.GaussianField(s.spectrum(even=True), 0.3),
        "complex": lambda s: energies.GaussianField(s.spectrum(even=False), 0.3 + 0.1j),
    },
    energies.GaussianMixture: {
        "variances": lambda s: _mixture(s, variances=s.positive(3, *s.shape)),
        "covariances": _full,
        "factors": lambda s: _mixture(s, factors=_factors(s), variances=s.positive(3)),
    },
    energies.TotalDeepVariation: {
        "random": lambda s: (
            energies.TotalDeepVariation.random(s.generator, s.shape[0], 4, levels=2, blocks=1, dtype=s.dtype)
            if min(s.plane) > 2
            else None
        ),
    },
    energies.TotalVariation: {
        "free edges": lambda s: energies.TotalVariation(0.5),
        "periodic": lambda s: energies.TotalVariation(0.5, periodic=True),
    },
    energies.Sparsity: {"wavelet": _wavelet, "cosines": _cosines},
    energies.FieldsOfExperts: {"3 filters": _experts},
    energies.StudentT: {"dof 3": lambda s: energies.StudentT(0.5, 3.0) if min(s.plane) > 1 else None},
    energies.Denoiser: {
        "residual": lambda s: energies.Denoiser(_psi, (0.05, 5.0)),
        "inner product": lambda s: energies.Denoiser(_psi, (0.05, 5.0), form="inner-product"),
        "scalar": lambda s: energies.Denoiser(_bowl, (0.05, 5.0), form="scalar"),
        "offset": lambda s: energies.Denoiser(_psi, (0.05, 5.0), offset=energies.ScaleOffset(0.05, 5.0)),
    },
    energies.ScoreModel: {"function": lambda s: energies.ScoreModel(_psi, (0.05, 5.0))},
    energies.Function: {
        "without scales": lambda s: energies.Function(_bowl),
        "with scales": lambda s: energies.Function(_bowl, (0.05, 5.0)),
    },
}


def _downsample(source: Source) -> Operator:
    height, width = source.plane
    return likelihoods.Downsample(next((k for k in (2, 3, 5) if height % k == 0 == width % k), 1))


def _maps(source: Source) -> Tensor:
    return source.normal(3, *source.plane, is_complex=True)


def _kernel(source: Source) -> Tensor:
    return source.normal(min(3, source.shape[-2]), min(2, source.shape[-1]))


def _matrix(source: Source, *, is_complex: bool) -> Operator:
    d = source.shape[0] * source.shape[1] * source.shape[2]
    return likelihoods.Matrix(source.normal(max(1, d - 2), d, is_complex=is_complex), source.shape)


def _motion(source: Source) -> Operator | None:
    return likelihoods.MotionBlur(2.0, 30.0, source.plane) if min(source.plane) >= 5 else None


OPERATORS: dict[type, dict[str, Maker[Operator]]] = {
    likelihoods.Identity: {"any": lambda s: likelihoods.Identity()},
    likelihoods.Mask: {
        "a plane": lambda s: likelihoods.Mask(s.mask(*s.plane)),
        "weights": lambda s: likelihoods.Mask(s.mask(*s.shape) * s.positive(*s.shape)),
    },
    likelihoods.Convolution: {"asymmetric": lambda s: likelihoods.Convolution(_kernel(s), s.plane)},
    likelihoods.GaussianBlur: {"std 0.8": lambda s: likelihoods.GaussianBlur(0.8, s.plane)},
    likelihoods.MotionBlur: {"30 degrees": _motion},
    likelihoods.Downsample: {"blocks": _downsample},
    likelihoods.Fourier: {
        "all": lambda s: likelihoods.Fourier(),
        "masked": lambda s: likelihoods.Fourier(s.mask(*s.plane)),
        "real images": lambda s: likelihoods.Fourier(s.mask(*s.plane), real=True),
        **mri.MORE_FOURIER,
    },
    likelihoods.Sense: {
        "all": lambda s: likelihoods.Sense(_maps(s)),
        "masked": lambda s: likelihoods.Sense(_maps(s), s.mask(*s.plane)),
        "real images": lambda s: likelihoods.Sense(_maps(s), s.mask(*s.plane), real=True),
        **mri.MORE_SENSE,
    },
    likelihoods.Matrix: {
        "real": lambda s: _matrix(s, is_complex=False),
        "complex": lambda s: _matrix(s, is_complex=True),
    },
    Operator: {
        "composed": lambda s: likelihoods.Mask(s.mask(*s.plane)) @ likelihoods.Convolution(_kernel(s), s.plane),
        "added": lambda s: likelihoods.Identity() + likelihoods.Convolution(_kernel(s), s.plane),
        "scaled": lambda s: 2.5 * likelihoods.Fourier(s.mask(*s.plane)),
    },
    **more.OPERATORS,
    **mri.OPERATORS,
}


def _gaussian(source: Source, operator: Operator, *, is_complex: bool = False, varying: bool = False) -> Likelihood:
    operator = operator.to(source.dtype)
    x = source.normal(*_image_shape(operator, source.shape), is_complex=is_complex)
    std = source.positive(*operator(x).shape) if varying else 0.5
    return likelihoods.Gaussian(operator.measure(x, std, source.generator), operator, std)


LIKELIHOODS: dict[type, dict[str, Maker[Likelihood]]] = {
    likelihoods.Gaussian: {
        "denoising": lambda s: _gaussian(s, likelihoods.Identity()),
        "denoising, complex": lambda s: _gaussian(s, likelihoods.Identity(), is_complex=True),
        "inpainting": lambda s: _gaussian(s, likelihoods.Mask(s.mask(*s.plane)), varying=True),
        "deblurring": lambda s: _gaussian(s, likelihoods.Convolution(_kernel(s), s.plane)),
        "deblurring, noise varies": lambda s: _gaussian(s, likelihoods.Convolution(_kernel(s), s.plane), varying=True),
        "matrix": lambda s: _gaussian(s, _matrix(s, is_complex=False)),
        "fourier": lambda s: _gaussian(s, likelihoods.Fourier(s.mask(*s.plane)), is_complex=True),
        "fourier, real images": lambda s: _gaussian(s, likelihoods.Fourier(s.mask(*s.plane), real=True)),
        "sense": lambda s: _gaussian(s, likelihoods.Sense(_maps(s), s.mask(*s.plane)), is_complex=True),
        "sense, real images": lambda s: _gaussian(s, likelihoods.Sense(_maps(s), s.mask(*s.plane), real=True)),
        **GAUSSIAN,
    },
    **NOISE,
}

FORWARD_MODELS: dict[type, dict[str, Maker[ForwardModel]]] = more.FORWARD_MODELS

EXAMPLES: dict[type, Mapping[str, Maker[Module]]] = {**ENERGIES, **OPERATORS, **FORWARD_MODELS, **LIKELIHOODS}


def example_energies(
    seed: int = 0, shape: Shape = (1, 6, 5), dtype: torch.dtype = torch.float64
) -> list[Example[Energy]]:
    """An example of every public energy, and one per field where it takes real and complex images.

    Shapes: shape (C, H, W). ``dtype`` is the precision.
    """
    made = _made(ENERGIES.items(), seed, shape, dtype)
    return [e for name, energy in made for e in _by_field(name, energy, shape, dtype, _fields(energy))]


def example_likelihoods(
    seed: int = 0, shape: Shape = (1, 6, 5), dtype: torch.dtype = torch.float64
) -> list[Example[Likelihood]]:
    """An example of every public likelihood.

    Shapes: shape (C, H, W); some have one channel nevertheless. ``dtype`` is the precision.
    """
    made = _made(LIKELIHOODS.items(), seed, shape, dtype)
    return [e for name, term in made for e in _by_field(name, term, term.event_shape or shape, dtype, _fields(term))]


def example_operators(
    seed: int = 0, shape: Shape = (1, 6, 5), dtype: torch.dtype = torch.float64
) -> list[Example[Operator]]:
    """An example of every public operator, and one per field where it takes real and complex images.

    Shapes: shape (C, H, W); some take another number of channels nevertheless. ``dtype`` is the precision.
    """
    return _examples_of(OPERATORS.items(), seed, shape, dtype)


def example_forward_models(
    seed: int = 0, shape: Shape = (1, 6, 5), dtype: torch.dtype = torch.float64
) -> list[Example[ForwardModel]]:
    """An example of every public forward model that is not linear, one per field where it takes two.

    Shapes: shape (C, H, W); some take another number of channels nevertheless. ``dtype`` is the precision.
    """
    return _examples_of(FORWARD_MODELS.items(), seed, shape, dtype)


def _examples_of(
    table: Iterable[tuple[type, Mapping[str, Maker[F]]]], seed: int, shape: Shape, dtype: torch.dtype
) -> list[Example[F]]:
    found = []
    for name, model in _made(table, seed, shape, dtype):
        fields = [f for f in (False, True) if takes(model, dtype.to_complex() if f else dtype.to_real())]
        found += _by_field(name, model, _image_shape(model, shape), dtype, fields)
    return found


def missing_examples() -> list[str]:
    """Public energies, operators, forward models and likelihoods that have no example."""
    public = [getattr(layer, name) for layer in (energies, likelihoods) for name in layer.__all__]
    kinds = [c for c in public if inspect.isclass(c) and issubclass(c, Potential | ForwardModel) and c not in EXAMPLES]
    return [f"{c.__module__}.{c.__name__}" for c in kinds if not inspect.isabstract(c)]


def _made(
    table: Iterable[tuple[type, Mapping[str, Maker[T]]]], seed: int, shape: Shape, dtype: torch.dtype
) -> Iterator[tuple[str, T]]:
    for cls, variants in table:
        for variant, maker in variants.items():
            made = maker(Source(torch.Generator().manual_seed(seed), tuple(shape), dtype.to_real()))
            if made is not None:
                yield f"{cls.__name__}, {variant}", made.to(dtype)


def _by_field(name: str, subject: T, shape: Shape, dtype: torch.dtype, fields: list[bool]) -> list[Example[T]]:
    text = {False: "real images", True: "complex images"}
    return [
        Example(
            f"{name} ({text[f]})" if len(fields) > 1 else name,
            subject,
            tuple(shape),
            dtype.to_complex() if f else dtype.to_real(),
        )
        for f in fields
    ]


def _fields(potential: Potential) -> list[bool]:
    return [False, True] if potential.is_complex is None else [potential.is_complex]


def _image_shape(model: ForwardModel, shape: Shape) -> Shape:
    """The shape of images for a forward model: of the first number of channels that it takes, if not of this one."""
    for channels in (shape[0], 1, 3):
        try:
            model.output_shape((channels, *shape[-2:]))
        except ValueError:
            continue
        return (channels, *shape[-2:])
    raise ValueError(f"{model.describe()} takes images of none of 1, 3 and {shape[0]} channels")


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
