"""Gibbs sampling of an image and unknown parameters of its posterior."""

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from potentia._algebra import Sum, unscaled
from potentia._potential import Likelihood, Potential
from potentia._random import Generators
from potentia.inference._calibrated import Calibrated
from potentia.inference._chained import Chained
from potentia.inference._dps import DPS
from potentia.inference._langevin import Langevin
from potentia.inference._parameters import Make, Parameter, Weight
from potentia.inference._per_chain import PerChain
from potentia.inference._protocol import ADAPTED, NOTHING, Info, Memory, Sampler, State
from potentia.inference._tempering import ParallelTempering

IMAGE = "image"
PREFIX = "parameter_"


@dataclass(frozen=True)
class Gibbs(Sampler):
    """Draw in turn the image given the parameters, and each parameter given the image and the others.

    ``blocks`` holds the sampler of the image under the name "image", and under names of their own the unknown
    parameters: ``NoiseStd`` and ``Weight`` (conjugate, drawn exactly), ``Unknown`` (anything else, by slice sampling or
    a Metropolis kernel)::

        posterior = prior + likelihoods.Gaussian(y, blur, noise_std=1.0)
        sampler = inference.Gibbs({
            "image": inference.Langevin(),
            "noise_std": inference.NoiseStd("gaussian", shape=1.0, rate=0.01),
        })
        ensemble = pt.sample(posterior, sampler, num_chains=4, num_draws=200)
        ensemble.parameter("noise_std")                      # (chain, draw)

    A draw takes the steps of one draw of the image's sampler, with the chain's parameters held, then updates every
    parameter once, in order. A sampler with independent draws (``ALPS``) starts each of them afresh, and so draws the
    image given the parameters anew; others go on from the image at hand, keeping what they have learned. Several
    parameters may belong to one term; an ``Unknown``, which builds it anew, comes first among them. Each chain has
    parameters of its own, and goes its way alone. ``lp`` is the log density of image and parameters together.

    The image's sampler must leave p(image | parameters) as it is: what is wrong with that distribution (an annealed
    sampler's mode weights, an unadjusted step too large) is wrong with that of the parameters too. It must move each
    chain by itself: samplers that weigh chains against one another (``SMC``, ``TwistedSMC``), look at the posterior
    with images of their own (``Calibrated``, ``ParallelTempering``) or ask for the likelihood as such (``DPS``) are
    refused.

    Raises: TypeError for blocks of another kind; ValueError without an "image" block, for a name that is no identifier,
        or an image sampler of those refused; when sampled, for a term that does not exist, or an unknown weight of one
        of several priors whose ``normaliser`` is not given; FloatingPointError for images that are no longer finite.
    Source: Geman and Geman 1984; Bardsley 2012 for noise levels and prior weights in imaging.
    """

    blocks: Mapping[str, Sampler | Parameter]
    _cache: "_Cache" = field(default_factory=lambda: _Cache(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        blocks = dict(self.blocks)
        image = blocks.get(IMAGE)
        if not isinstance(image, Sampler):
            raise TypeError(f"Gibbs: the block 'image' is a {type(image).__name__}, expected a sampler of images")
        for stage in image.stages if isinstance(image, Chained) else (image,):
            if isinstance(stage, _TOGETHER) or (stage.couples_chains and not stage.adapts):
                raise ValueError(
                    f"Gibbs: {stage!r} does not move each chain by itself, expected a sampler that does, such as "
                    "ALPS(annealer), Langevin or MALA"
                )
        built: set[str] = set()
        for name, block in blocks.items():
            if name == IMAGE:
                continue
            if not isinstance(block, Parameter):
                raise TypeError(
                    f"Gibbs: block {name!r} is a {type(block).__name__}, expected a parameter such as NoiseStd"
                )
            if not name.isidentifier():
                raise ValueError(f"Gibbs: a parameter's name must be an identifier, got {name!r}")
            if block.term in built and block.rebuilds:
                raise ValueError(
                    f"Gibbs: block {name!r} builds {block.term!r} anew, which an earlier block changes; expected it "
                    "before that"
                )
            built.add(block.term)
        if len(blocks) < 2:
            raise ValueError("Gibbs: there is no parameter beside the image, expected at least one")
        object.__setattr__(self, "blocks", MappingProxyType(blocks))

    def __repr__(self) -> str:
        return f"Gibbs({{{', '.join(f'{name!r}: {block!r}' for name, block in self.blocks.items())}}})"

    def __reduce__(self) -> tuple[type["Gibbs"], tuple[dict[str, Sampler | Parameter]]]:
        return Gibbs, (dict(self.blocks),)

    @property
    def image(self) -> Sampler:
        """The sampler of the image."""
        return self.blocks[IMAGE]  # type: ignore[return-value]

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The parameters by name, in order."""
        return {name: b for name, b in self.blocks.items() if isinstance(b, Parameter)}

    @property
    def steps_per_draw(self) -> int:
        return self.image.steps_per_draw

    @property
    def default_warmup(self) -> int:
        """At least 20 draws: the parameters start from their priors."""
        return max(self.image.default_warmup, 20)

    @property
    def adapts(self) -> bool:
        return self.image.adapts

    @property
    def couples_chains(self) -> bool:
        return self.image.couples_chains

    def start(self, posterior: Potential, shape: Sequence[int], dtype: torch.dtype, generator: Generators) -> Tensor:
        """Where the image's sampler starts under the posterior as it stands."""
        return self.image.start(posterior, shape, dtype, generator)

    def init(self, posterior: Potential, x0: Tensor, generator: Generators) -> State:
        """State of chains that start from x0, their parameters where those start."""
        each = _each(generator, len(x0))
        held = {PREFIX + name: p.start(each).double() for name, p in self.parameters.items()}
        conditional = self._given(posterior, held, x0.shape[1:])
        state = self.image.init(conditional, x0, generator)
        return state._replace(memory={**state.memory, **held})

    def step(self, posterior: Potential, state: State) -> tuple[State, Info]:
        """One step of the image's sampler; after the last of a draw, an update of every parameter."""
        held = {name: t for name, t in state.memory.items() if name.startswith(PREFIX)}
        own = {name: t for name, t in state.memory.items() if not name.startswith(PREFIX)}
        within = state.step % self.image.steps_per_draw
        conditional = self._given(posterior, held, state.x.shape[1:])
        inner = state._replace(memory=own or NOTHING)
        if within == 0 and state.step > 0:
            inner = self._afresh(conditional, inner)
        inner, info = self.image.step(conditional, inner)
        value = inner.value
        if within == self.image.steps_per_draw - 1:
            held = self._update(posterior, inner.x, held, _each(state.generator, len(inner.x)))
            value = self._value(posterior, inner.x, held, info.sigma)
        told = {name: held[PREFIX + name] for name in self.parameters}
        return inner._replace(value=value, memory={**inner.memory, **held}), info._replace(parameters=told)

    def freeze(self, memory: Memory) -> Memory:
        """Freeze what the image's sampler has learned."""
        held = {name: t for name, t in memory.items() if name.startswith(PREFIX)}
        return {**self.image.freeze({n: t for n, t in memory.items() if n not in held}), **held}

    def _afresh(self, conditional: Potential, state: State) -> State:
        """The image's sampler at the start of another draw: the parameters have changed, so has its posterior."""
        if self.image.independent_draws or isinstance(self.image, Chained):
            return state  # these start anew by themselves
        fresh = self.image.init(conditional, state.x, state.generator)
        learned = {name: t for name, t in state.memory.items() if name.startswith(ADAPTED)}
        white = _first_noise(self.image, conditional, state)
        return fresh._replace(white=white, step=state.step, memory={**fresh.memory, **learned})

    def _of_term(self, posterior: Potential, event_shape: tuple[int, ...]) -> dict[str, dict[str, Parameter]]:
        """The parameters of each term that has some, by the term's name, their normalisers found where they can be."""
        terms = _by_name(posterior)
        priors = [name for name, term in terms.items() if not isinstance(unscaled(term), Likelihood)]
        found: dict[str, dict[str, Parameter]] = {}
        for name, parameter in self.parameters.items():
            if parameter.term not in terms:
                raise ValueError(
                    f"Gibbs: {name!r} belongs to the term {parameter.term!r}, expected one of {', '.join(terms)}"
                )
            unsolved = isinstance(parameter, Weight) and parameter.normaliser is None
            if unsolved and parameter.term in priors and len(priors) > 1:
                raise ValueError(
                    f"Gibbs: {name!r} is the weight of {parameter.term!r}, one of the priors {', '.join(priors)}, "
                    "which have one normaliser together; expected its normaliser=Homogeneous(dims, degree)"
                )
            found.setdefault(parameter.term, {})[name] = parameter
        for term, parameters in found.items():
            (name, parameter), *others = parameters.items()
            if not others and isinstance(parameter, Weight):
                parameters[name] = parameter.solved(terms[term], event_shape)
        return found

    def _model(self, posterior: Potential, event_shape: Sequence[int]) -> "_Model":
        shape = tuple(event_shape)
        return self._cache.model(posterior, shape, lambda: _Model(_by_name(posterior), self._of_term(posterior, shape)))

    def _given(self, posterior: Potential, held: Mapping[str, Tensor], event_shape: Sequence[int]) -> Potential:
        model = self._model(posterior, event_shape)
        return self._cache.conditional(held, lambda: model.given(held))

    def _update(
        self,
        posterior: Potential,
        x: Tensor,
        held: Mapping[str, Tensor],
        generators: Sequence[torch.Generator],
    ) -> dict[str, Tensor]:
        bad = ~torch.isfinite(x).flatten(1).all(dim=1)
        if bool(bad.any()):
            raise FloatingPointError(
                f"Gibbs: {int(bad.sum())} of {len(bad)} chains are no longer finite, the first of them "
                f"{int(bad.nonzero()[0])}; a smaller step size may help"
            )
        held = dict(held)
        model = self._model(posterior, x.shape[1:])
        for name in self.parameters:
            parameter, make = model.of(name, held)
            held[PREFIX + name] = parameter.update(make, x, held[PREFIX + name], generators)
        return held

    def _value(self, posterior: Potential, x: Tensor, held: Mapping[str, Tensor], sigma: float | None) -> Tensor | None:
        """-log density of image and parameters, None for a score-only prior."""
        if not posterior.has_value:
            return None
        model, shape = self._model(posterior, x.shape[1:]), tuple(x.shape[1:])
        with torch.no_grad():
            total: Tensor = self._given(posterior, held, shape)(x, sigma).double()
        for name in self.parameters:
            parameter, make = model.of(name, held)
            total = total + parameter.potential(make, held[PREFIX + name], shape).to(total.device)
        return total


# Samplers that evaluate the posterior at other images than one a chain, or whose likelihood must be one.
_TOGETHER = (Calibrated, DPS, Gibbs, ParallelTempering)


class _Model:
    """The terms of a posterior and the parameters that they have, by the terms' names.

    Of each chain it keeps the term that was built last, which is the one under the parameter's value most of the time.
    """

    def __init__(self, terms: Mapping[str, Potential], parameters: Mapping[str, Mapping[str, Parameter]]) -> None:
        self._terms = terms
        self._parameters = parameters
        self._built: dict[tuple[str, int], tuple[float, Potential]] = {}

    def given(self, held: Mapping[str, Tensor]) -> Potential:
        """The posterior of the image given each chain's parameters."""
        parts = dict(self._terms)
        for name, parameters in self._parameters.items():
            chains = len(held[PREFIX + next(iter(parameters))])
            parts[name] = PerChain([self._composed(name, held, c) for c in range(chains)])
        return Sum(*(term.named(name) for name, term in parts.items()))

    def of(self, name: str, held: Mapping[str, Tensor]) -> tuple[Parameter, Make]:
        """A parameter, and the term of a chain as a function of it, the others held."""
        term, parameter = next((t, own[name]) for t, own in self._parameters.items() if name in own)

        def make(chain: int, value: float) -> Potential:
            return self._composed(term, {**held, PREFIX + name: torch.full_like(held[PREFIX + name], value)}, chain)

        return parameter, make

    def _composed(self, name: str, held: Mapping[str, Tensor], chain: int) -> Potential:
        term = self._terms[name]
        for own, parameter in self._parameters[name].items():
            value = float(held[PREFIX + own][chain])
            term = self._build(own, parameter, value, chain) if parameter.rebuilds else parameter.given(term, value)
        return term

    def _build(self, name: str, parameter: Parameter, value: float, chain: int) -> Potential:
        last = self._built.get((name, chain))
        if last is None or last[0] != value:
            last = self._built[name, chain] = value, parameter.given(self._terms[parameter.term], value)
        return last[1]


class _Cache:
    """The model of the last posterior and its last conditional, so that the steps of a draw share what they prepare."""

    def __init__(self) -> None:
        self._posterior: Callable[[], Potential | None] = lambda: None
        self._shape: tuple[int, ...] = ()
        self._model: _Model | None = None
        self._held: dict[str, Tensor] = {}
        self._made: Potential | None = None

    def model(self, posterior: Potential, event_shape: tuple[int, ...], make: Callable[[], _Model]) -> _Model:
        if self._model is None or self._posterior() is not posterior or self._shape != event_shape:
            self._model, self._posterior, self._shape, self._made = make(), weakref.ref(posterior), event_shape, None
        return self._model

    def conditional(self, held: Mapping[str, Tensor], make: Callable[[], Potential]) -> Potential:
        """The conditional of the model given last, which is called for first."""
        if self._made is None or any(t is not self._held.get(name) for name, t in held.items()):
            self._made, self._held = make(), dict(held)
        return self._made

    def __reduce__(self) -> "tuple[type[_Cache], tuple[()]]":
        return _Cache, ()


def _first_noise(image: Sampler, conditional: Potential, state: State) -> tuple[Tensor, ...] | None:
    """Random numbers for the Leimkuhler-Matthews rule to go on with from a draw, once the parameters have changed.

    Those carried over are a part of the image, which the parameters were drawn from. New ones are not, and the step
    would have half of the noise that keeps the image's law: sqrt(3 - 2 eps) times as large, they keep a Gaussian of
    precision P^-1, and others up to eps^2.
    """
    if state.white is None or not isinstance(image, Langevin):
        return None
    p = image._preconditioner(conditional, state.x)
    size = math.sqrt(max(3 - 2 * image.step_size, 0.0))
    return tuple(size * n for n in p.white(state.generator, tuple(state.x.shape), state.x.dtype))


def _by_name(posterior: Potential) -> dict[str, Potential]:
    return dict(posterior.terms) if isinstance(posterior, Sum) else {posterior.name: posterior}


def _each(generator: Generators, chains: int) -> Sequence[torch.Generator]:
    return [generator] * chains if isinstance(generator, torch.Generator) else list(generator)
