"""Gibbs sampling of an image and unknown parameters of its posterior."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from potentia._algebra import Sum
from potentia._potential import Potential
from potentia._random import Generators
from potentia.inference._parameters import Make, Parameter
from potentia.inference._per_chain import PerChain
from potentia.inference._protocol import ADAPTED, NOTHING, Info, Memory, Sampler, State

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
    sampler's mode weights, an unadjusted step too large) is wrong with that of the parameters too.

    Raises: TypeError for blocks of another kind; ValueError without an "image" block, for a name that is no identifier,
        an image sampler that couples chains without adapting, or a term that does not exist when sampled.
    Source: Geman and Geman 1984; Bardsley 2012 for noise levels and prior weights in imaging.
    """

    blocks: Mapping[str, Sampler | Parameter]
    _cache: "_Conditionals" = field(default_factory=lambda: _Conditionals(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        blocks = dict(self.blocks)
        image = blocks.get(IMAGE)
        if not isinstance(image, Sampler):
            raise TypeError(f"Gibbs: the block 'image' is a {type(image).__name__}, expected a sampler of images")
        if isinstance(image, Gibbs) or (image.couples_chains and not image.adapts):
            raise ValueError(f"Gibbs: {image!r} couples the chains, expected a sampler that moves each by itself")
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
        conditional = self._given(posterior, held)
        state = self.image.init(conditional, x0, generator)
        return state._replace(memory={**state.memory, **held})

    def step(self, posterior: Potential, state: State) -> tuple[State, Info]:
        """One step of the image's sampler; after the last of a draw, an update of every parameter."""
        held = {name: t for name, t in state.memory.items() if name.startswith(PREFIX)}
        own = {name: t for name, t in state.memory.items() if not name.startswith(PREFIX)}
        within = state.step % self.image.steps_per_draw
        conditional = self._given(posterior, held)
        inner = state._replace(step=within, memory=own or NOTHING)
        if within == 0 and state.step > 0:
            inner = self._afresh(conditional, inner)
        inner, info = self.image.step(conditional, inner)
        value = inner.value
        if within == self.image.steps_per_draw - 1:
            held = self._update(posterior, inner.x, held, _each(state.generator, len(inner.x)))
            value = self._value(posterior, inner.x, held, info.sigma)
        memory = {**inner.memory, **held}
        told = {name: held[PREFIX + name] for name in self.parameters}
        return inner._replace(step=state.step + 1, value=value, memory=memory), info._replace(parameters=told)

    def freeze(self, memory: Memory) -> Memory:
        """Freeze what the image's sampler has learned."""
        held = {name: t for name, t in memory.items() if name.startswith(PREFIX)}
        return {**self.image.freeze({n: t for n, t in memory.items() if n not in held}), **held}

    def _afresh(self, conditional: Potential, state: State) -> State:
        """The image's sampler at the start of another draw: the parameters have changed, so has its posterior."""
        x = state.x
        if self.image.independent_draws:
            x = self.image.start(conditional, x.shape, x.dtype, state.generator)
        fresh = self.image.init(conditional, x, state.generator)
        learned = {name: t for name, t in state.memory.items() if name.startswith(ADAPTED)}
        return fresh._replace(memory={**fresh.memory, **learned})

    def _of_term(self, posterior: Potential) -> dict[str, dict[str, Parameter]]:
        """The parameters of each term that has some, by the term's name."""
        names = _by_name(posterior)
        found: dict[str, dict[str, Parameter]] = {}
        for name, parameter in self.parameters.items():
            if parameter.term not in names:
                raise ValueError(
                    f"Gibbs: {name!r} belongs to the term {parameter.term!r}, expected one of {', '.join(names)}"
                )
            found.setdefault(parameter.term, {})[name] = parameter
        return found

    def _given(self, posterior: Potential, held: Mapping[str, Tensor]) -> Potential:
        return self._cache.get(posterior, held, lambda: self._conditional(posterior, held))

    def _conditional(self, posterior: Potential, held: Mapping[str, Tensor]) -> Potential:
        """The posterior of the image given each chain's parameters."""
        parts = _by_name(posterior)
        for name, parameters in self._of_term(posterior).items():
            chains = len(held[PREFIX + next(iter(parameters))])
            term = parts[name]
            parts[name] = PerChain([_composed(term, parameters, held, c) for c in range(chains)])
        return Sum(*(term.named(name) for name, term in parts.items()))

    def _update(
        self,
        posterior: Potential,
        x: Tensor,
        held: Mapping[str, Tensor],
        generators: Sequence[torch.Generator],
    ) -> dict[str, Tensor]:
        held = dict(held)
        of_term, parts = self._of_term(posterior), _by_name(posterior)
        for name, parameter in self.parameters.items():
            make = _maker(parts[parameter.term], of_term[parameter.term], held, name)
            held[PREFIX + name] = parameter.update(make, x, held[PREFIX + name], generators)
        return held

    def _value(self, posterior: Potential, x: Tensor, held: Mapping[str, Tensor], sigma: float | None) -> Tensor | None:
        """-log density of image and parameters, None for a score-only prior."""
        if not posterior.has_value:
            return None
        of_term, parts = self._of_term(posterior), _by_name(posterior)
        with torch.no_grad():
            total: Tensor = self._given(posterior, held)(x, sigma).double()
        for name, parameter in self.parameters.items():
            make = _maker(parts[parameter.term], of_term[parameter.term], held, name)
            total = total + parameter.potential(make, held[PREFIX + name], tuple(x.shape[1:])).to(total.device)
        return total


class _Conditionals:
    """The last conditional posterior, so that the steps of a draw share it and what their sampler prepares for it."""

    def __init__(self) -> None:
        self._posterior: Callable[[], Potential | None] = lambda: None
        self._held: dict[str, Tensor] = {}
        self._made: Potential | None = None

    def get(self, posterior: Potential, held: Mapping[str, Tensor], make: Callable[[], Potential]) -> Potential:
        same = self._posterior() is posterior and all(t is self._held.get(name) for name, t in held.items())
        if self._made is None or not same:
            self._made, self._posterior, self._held = make(), weakref.ref(posterior), dict(held)
        return self._made

    def __reduce__(self) -> "tuple[type[_Conditionals], tuple[()]]":
        return _Conditionals, ()


def _by_name(posterior: Potential) -> dict[str, Potential]:
    return dict(posterior.terms) if isinstance(posterior, Sum) else {posterior.name: posterior}


def _composed(
    term: Potential, parameters: Mapping[str, Parameter], held: Mapping[str, Tensor], chain: int
) -> Potential:
    for name, parameter in parameters.items():
        term = parameter.given(term, float(held[PREFIX + name][chain]))
    return term


def _maker(term: Potential, parameters: Mapping[str, Parameter], held: Mapping[str, Tensor], name: str) -> Make:
    """The term of a chain as a function of one of its parameters."""

    def make(chain: int, value: float) -> Potential:
        changed = {**held, PREFIX + name: torch.full_like(held[PREFIX + name], value)}
        return _composed(term, parameters, changed, chain)

    return make


def _each(generator: Generators, chains: int) -> Sequence[torch.Generator]:
    return [generator] * chains if isinstance(generator, torch.Generator) else list(generator)
