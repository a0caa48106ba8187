"""Unknown parameters of a posterior's terms, and how Gibbs sampling draws them given the image."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from potentia._algebra import scale, unscaled
from potentia._potential import Likelihood, Potential, Sigma
from potentia._random import standard_gamma, standard_normal
from potentia._validate import count, positive, shape_text
from potentia.inference._per_chain import PerChain
from potentia.inference._protocol import Sampler
from potentia.inference._pyro import Homogeneous

if TYPE_CHECKING:
    from torch.distributions import Distribution

Build = Callable[[float], Potential]
LogDensity = Callable[[Tensor], Tensor]
Make = Callable[[int, float], Potential]  # chain, value: the term of that chain, its other parameters as they are


class Parameter(ABC):
    """A number that one term of the posterior depends on; each chain has a value of its own.

    Subclasses are frozen dataclasses with a field ``term``, the name of the term within the posterior.
    """

    term: str
    rebuilds: ClassVar[bool] = False  # whether it makes the term anew, whatever another parameter made of it

    @abstractmethod
    def start(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Values to start from, (chains,), float64."""

    @abstractmethod
    def given(self, term: Potential, value: float) -> Potential:
        """The term under one value of the parameter."""

    @abstractmethod
    def update(self, make: Make, x: Tensor, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """New values given the images, by a step that leaves their distribution given the images as it is.

        Shapes: x (chains, C, H, W); values (chains,) -> (chains,), float64.
        """

    @abstractmethod
    def potential(self, make: Make, values: Tensor, event_shape: tuple[int, ...]) -> Tensor:
        """What image and parameter have beside the term: -log of the prior, and the log of the term's normaliser.

        Shapes: (chains,) -> (chains,), in nats.
        """


@dataclass(frozen=True)
class Weight(Parameter):
    """An unknown weight w of a term, w U(x), with the conjugate prior Gamma(shape, rate).

    For a U that is homogeneous about its minimum m, of degree k in d real dimensions (quadratic forms, total variation;
    see ``Homogeneous``, which ``normaliser`` None asks for it), the density of x or y holds w^(d/k), so that

        w | x ~ Gamma(shape + d/k, rate + U(x) - U(m)),

    drawn exactly. Chains start from the prior.

    A term with noise scales counts at its finest, so that its weight does not go with annealed samplers.

    Units: 1 / rate as the weight.
    Raises: ValueError for a shape or rate that is not positive; when sampled, for a term without a quadratic form where
        ``normaliser`` is None.
    Source: Pereyra, Bioucas-Dias and Figueiredo 2015, eq. 8; for Gaussian terms it is the textbook's conjugate update.
    """

    term: str
    shape: float
    rate: float
    normaliser: Homogeneous | None = None

    def __post_init__(self) -> None:
        for name in ("shape", "rate"):
            positive(type(self).__name__, name, getattr(self, name))

    def _weights(self, values: Tensor) -> Tensor:
        return values

    def _values(self, weights: Tensor) -> Tensor:
        return weights

    @property
    def _unit(self) -> float:
        """The value under which the term is as it was built."""
        return float(self._values(torch.ones((), dtype=torch.float64)))

    @property
    def _title(self) -> str:
        return f"{type(self).__name__} of {self.term}"

    def solved(self, term: Potential, event_shape: tuple[int, ...]) -> Self:
        """The same with the ``normaliser`` of this term, which is found by solving for its minimum."""
        return replace(self, normaliser=self._law(term, event_shape))

    def _law(self, term: Potential, event_shape: tuple[int, ...]) -> Homogeneous:
        return Homogeneous.of(term, event_shape) if self.normaliser is None else self.normaliser

    def start(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Draws from the prior."""
        return self._values(_gamma(torch.full((len(generators),), float(self.shape)), generators) / self.rate)

    def given(self, term: Potential, value: float) -> Potential:
        """W times the term."""
        return scale(term, float(self._weights(torch.tensor(value, dtype=torch.float64))))

    def update(self, make: Make, x: Tensor, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Draw from the Gamma distribution that w has given x."""
        terms = [make(c, self._unit) for c in range(len(values))]
        laws = [self._law(term, tuple(x.shape[1:])) for term in terms]
        with torch.no_grad():
            level = PerChain(terms)(x).double().cpu()
        excess = level - torch.tensor([law.minimum for law in laws], dtype=torch.float64)
        if not bool(torch.isfinite(excess).all()):
            c = int((~torch.isfinite(excess)).nonzero()[0])
            raise FloatingPointError(
                f"{self._title}: U is {float(level[c]):g} at the image of chain {c}, expected a finite number"
            )
        shapes = self.shape + torch.tensor([law.dims / law.degree for law in laws], dtype=torch.float64)
        return self._values(_gamma(shapes, generators) / (self.rate + excess.clamp_min(0.0)))

    def potential(self, make: Make, values: Tensor, event_shape: tuple[int, ...]) -> Tensor:
        """-log Gamma(w) + log Z(w), as a density of w."""
        w = self._weights(values)
        constant = math.lgamma(self.shape) - self.shape * math.log(self.rate)
        normaliser = [self._law(make(c, self._unit), event_shape)(one) for c, one in enumerate(w)]
        return constant - (self.shape - 1) * w.log() + self.rate * w + torch.stack(normaliser)


@dataclass(frozen=True)
class NoiseStd(Weight):
    """An unknown noise level: the likelihood's ``noise_std`` times tau, 1 / tau^2 ~ Gamma(shape, rate).

    Build the likelihood with ``noise_std=1.0``, and tau is the noise level itself; with one per measurement, or a
    covariance, it is what all of them are multiplied by. With N real numbers measured and L the likelihood as built,
    ``1 / tau^2 | x ~ Gamma(shape + N/2, rate + L(x))``, drawn exactly. The prior's mean of 1 / tau^2 is shape / rate:
    ``shape=1, rate=0.01`` says little about a tau around 0.1.

    Raises: as ``Weight``; when sampled, TypeError for a prior, ValueError for a likelihood that is not of degree 2, as
        Laplace noise.
    """

    term: str = "gaussian"
    shape: float = 1.0
    rate: float = 1.0

    def _weights(self, values: Tensor) -> Tensor:
        return values**-2

    def _values(self, weights: Tensor) -> Tensor:
        return weights**-0.5

    def _law(self, term: Potential, event_shape: tuple[int, ...]) -> Homogeneous:
        if not isinstance(unscaled(term), Likelihood):
            raise TypeError(
                f"{self._title}: the term is a prior, {term.describe()}, expected the name of the likelihood; use "
                "Weight for a prior"
            )
        law = super()._law(term, event_shape)
        if law.degree != 2:
            raise ValueError(
                f"{self._title}: the term is homogeneous of degree {law.degree:g}, expected the 2 of Gaussian noise; "
                "use Weight, which is 1 / scale of Laplace noise"
            )
        return law


@dataclass(frozen=True)
class Unknown(Parameter):
    """Any parameter of a term: ``build(value)`` makes the term anew, such as a likelihood with another blur.

    ``prior`` is a distribution of torch or Pyro over one real number: its ``log_prob`` and ``support`` are used. Given
    the image, the parameter is moved within the real line that the support is mapped to, by ``kernel``:

    - None: ``num_updates`` rounds of slice sampling with stepping out, from a first bracket of ``width``: exact, and
      without a step size;
    - a sampler with a fixed step size, such as ``MALA(step_size=0.1)``: it gets the parameter as images of one pixel,
      ``steps_per_draw`` steps of it. Its gradients are central differences, which the Metropolis test makes up for, so
      that only adjusted samplers are taken.

    A likelihood counts with its ``log_normaliser``, which may depend on the parameter; a prior term that ``build``
    returns must be normalised, or differ by a constant from that. ``initial`` is where the chains start (None: the
    prior's mean), spread by ``width`` on the real line.

    Raises: TypeError for a prior without ``log_prob`` and ``support`` or a kernel of another kind; ValueError for a
        prior that is discrete or not over one real number, ``initial`` outside of its support, or numbers out of range;
        when sampled, ValueError where ``build`` or what it builds fails, FloatingPointError for a density that is NaN
        or infinite, or zero where a chain stands.
    Source: Neal 2003, figures 3 and 5, slice sampling.
    """

    term: str
    build: Build
    prior: "Distribution"
    kernel: Sampler | None = None
    initial: float | None = None
    width: float = 1.0
    num_updates: int = 1
    rebuilds: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not callable(self.build):
            raise TypeError(f"Unknown: build is a {type(self.build).__name__}, expected a function of the value")
        if not hasattr(self.prior, "log_prob") or getattr(self.prior, "support", None) is None:
            raise TypeError(f"Unknown: prior is a {type(self.prior).__name__}, expected a torch or Pyro distribution")
        self._check_prior()
        if self.kernel is not None and not (isinstance(self.kernel, Sampler) and hasattr(self.kernel, "_metric")):
            raise TypeError(
                f"Unknown: kernel is a {type(self.kernel).__name__}, expected None or a Metropolis-adjusted sampler"
            )
        if self.kernel is not None and self.kernel.adapts:
            raise ValueError("Unknown: the kernel adapts, expected one with a fixed step_size")
        positive("Unknown", "width", self.width)
        count("Unknown", "num_updates", self.num_updates)

    def __repr__(self) -> str:
        name = getattr(self.build, "__qualname__", type(self.build).__name__)
        return f"Unknown(term={self.term!r}, build={name}, prior={self.prior!r}, kernel={self.kernel!r})"

    def _check_prior(self) -> None:
        shape = tuple(self.prior.batch_shape) + tuple(self.prior.event_shape)
        if shape or self._support.is_discrete:
            what = "discrete" if not shape else f"of numbers of shape {shape_text(shape)}"
            raise ValueError(f"Unknown: the prior of {self.term} is {what}, expected one of one real number")
        if self.initial is not None and not self._supported(torch.tensor(self.initial, dtype=torch.float64)):
            raise ValueError(
                f"Unknown: initial is {self.initial:g}, outside of the prior of {self.term}, whose support is "
                f"{self._support}"
            )

    def _supported(self, value: Tensor) -> bool:
        return bool(self._support.check(value)) and bool(torch.isfinite(value))

    @property
    def _support(self) -> Any:
        return self.prior.support

    @cached_property
    def _to_support(self) -> Any:  # a Transform, which torch leaves untyped
        from torch.distributions import biject_to

        return biject_to(self._support)

    def _middle(self) -> Tensor:
        try:
            middle = torch.as_tensor(self.prior.mean if self.initial is None else self.initial, dtype=torch.float64)
        except NotImplementedError:
            middle = torch.tensor(math.nan)
        if not bool(torch.isfinite(middle)):
            raise ValueError(f"Unknown: the prior of {self.term} has no mean, expected initial")
        return middle

    def start(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Around ``initial``."""
        middle = self._middle()
        spread = standard_normal((len(generators), 1), generators, dtype=torch.float64, device="cpu")[:, 0]
        values: Tensor = self._to_support(self._to_support.inv(middle) + self.width * spread)
        return values

    def given(self, term: Potential, value: float) -> Potential:
        """The term built anew, under the name that it has in the posterior."""
        try:
            built = self.build(value)
        except Exception as err:
            raise ValueError(f"{self._title}: build({value:.6g}) failed: {type(err).__name__}: {err}") from err
        if not isinstance(built, Potential):
            raise TypeError(f"{self._title}: build({value:.6g}) gave a {type(built).__name__}, expected a potential")
        return built.named(self.term)

    @property
    def _title(self) -> str:
        return f"Unknown of {self.term}"

    def potential(self, make: Make, values: Tensor, event_shape: tuple[int, ...]) -> Tensor:
        """-log prior, and the normalisers of likelihoods."""
        normalisers = [_log_normaliser(make(c, float(v))) for c, v in enumerate(values)]
        return torch.tensor(normalisers, dtype=torch.float64) - self._log_prior(values)

    def _log_prior(self, values: Tensor) -> Tensor:
        out: Tensor = self.prior.log_prob(values)
        return out

    def _density(self, make: Build, x: Tensor) -> LogDensity:
        """Log density of positions on the real line given one image, the change of variables included."""
        transform = self._to_support

        def log_density(u: Tensor) -> Tensor:
            value = transform(u)
            if not self._supported(value):  # by rounding, far out on the line
                return torch.tensor(-math.inf, dtype=torch.float64)
            total: Tensor = self._log_prior(value) + transform.log_abs_det_jacobian(u, value)
            if float(total) == -math.inf:
                return total
            density: Tensor = total - self._level(make(float(value)), x, float(value))
            if bool(density.isnan()) or float(density) == math.inf:
                raise FloatingPointError(f"{self._title}: its log density is {float(density)} at {float(value):.6g}")
            return density

        return log_density

    def _level(self, built: Potential, x: Tensor, value: float) -> float:
        """U at the image, and the log of its normaliser."""
        try:
            with torch.no_grad():
                return float(built(x)) + _log_normaliser(built)
        except Exception as err:
            raise ValueError(
                f"{self._title}: what build({value:.6g}) gives failed at the image: {type(err).__name__}: {err}"
            ) from err

    def update(self, make: Make, x: Tensor, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Move each chain's value in turn."""
        moved = []
        for c, generator in enumerate(generators):
            density = self._density(partial(make, c), x[c : c + 1])
            u = self._to_support.inv(values[c])
            if float(density(u)) == -math.inf:
                raise FloatingPointError(
                    f"{self._title}: chain {c} stands at {float(values[c]):.6g}, where its density is zero; expected "
                    "an initial, with a width, within the prior's and the data's support"
                )
            for _ in range(self.num_updates):
                if self.kernel is None:
                    u = slice_sample(density, u, self.width, generator)
                else:
                    u = _kernel_steps(self.kernel, density, u, generator)
            moved.append(self._to_support(u))
        return torch.stack(moved)


def _log_normaliser(term: Potential) -> float:
    likelihood = unscaled(term)
    return float(likelihood.log_normaliser()) if isinstance(likelihood, Likelihood) else 0.0


def _gamma(shapes: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Gamma draws of rate one, each from its chain's generator: (chains,), float64."""
    shapes = shapes.double().cpu()
    # Drawn on the CPU, by a generator seeded from the chain's, so that the chain's may live on a GPU.
    drawn = [standard_gamma(s, _cpu(g)) for s, g in zip(shapes, generators, strict=True)]
    return torch.stack(drawn)


def _cpu(generator: torch.Generator) -> torch.Generator:
    if generator.device.type == "cpu":
        return generator
    word = torch.randint(2**62, (), generator=generator, device=generator.device)
    return torch.Generator().manual_seed(int(word))


def slice_sample(
    log_density: LogDensity,
    u: Tensor,
    width: float,
    generator: torch.Generator,
    most_steps: int = 32,
) -> Tensor:
    """One update of slice sampling on the real line, with stepping out and shrinkage.

    Shapes: u () -> (), float64.
    Source: Neal 2003, figures 3 and 5.
    """
    source = _cpu(generator)

    def uniform() -> float:
        return float(torch.rand((), generator=source, dtype=torch.float64))

    level = float(log_density(u)) + math.log(max(uniform(), 1e-300))
    left = float(u) - width * uniform()
    right = left + width
    # The bracket grows by so many steps at most, shared out between its ends at random, which keeps it reversible.
    lower = int(most_steps * uniform())
    for _ in range(lower):
        if float(log_density(torch.tensor(left, dtype=torch.float64))) <= level:
            break
        left -= width
    for _ in range(most_steps - 1 - lower):
        if float(log_density(torch.tensor(right, dtype=torch.float64))) <= level:
            break
        right += width
    while True:
        new = torch.tensor(left + (right - left) * uniform(), dtype=torch.float64)
        if float(log_density(new)) > level:
            return new
        if right - left < 1e-12 * (1 + abs(float(u))):
            return u
        if float(new) < float(u):
            left = float(new)
        else:
            right = float(new)


class _OnePixel(Potential):
    """A function of one real number as a potential of images of one pixel, its gradient by central differences."""

    default_name = "parameter"

    def __init__(self, log_density: LogDensity) -> None:
        super().__init__()
        self.log_density = log_density

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return torch.stack([-self.log_density(u) for u in x.flatten()]).reshape(x.shape[:-3])

    def value_and_grad(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        step = 1e-4 * (1 + x.abs())
        slope = (self(x + step) - self(x - step)) / (2 * step.reshape(x.shape[:-3]))
        return self(x), slope.reshape(x.shape)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (1, 1, 1)


def _kernel_steps(kernel: Sampler, log_density: LogDensity, u: Tensor, generator: torch.Generator) -> Tensor:
    posterior: Any = _OnePixel(log_density)
    state = kernel.init(posterior, u.reshape(1, 1, 1, 1), [_cpu(generator)])
    for _ in range(kernel.steps_per_draw):
        state, _ = kernel.step(posterior, state)
    return state.x.reshape(())
