"""The Metropolis-adjusted Langevin kernel for Pyro. Importing this module imports Pyro; nothing else does."""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel  # noqa: TID253 - a base class is needed at once
from pyro.ops.dual_averaging import DualAveraging  # noqa: TID253
from torch import Tensor

from potentia._potential import Potential
from potentia._random import Generators, chain_generators
from potentia._tensor import EVENT_DIMS, inner, to_event
from potentia._validate import count, finite, positive, shape_text
from potentia.inference._precondition import Preconditioner, linear_term
from potentia.inference._pyro import (
    Params,
    PotentialFunction,
    device_of,
    image_dtype,
    potential_fn,
    to_image,
    to_real,
)

ValueAndGrad = Callable[[Tensor], tuple[Tensor, Tensor]]
MOST_NATS = 1000.0  # an energy error that Pyro, too, calls a divergence
MOST_DOUBLINGS = 60
LARGEST_LOG_STEP = 40.0  # where U is flat every step is accepted, and the step size grows without end


class Point(NamedTuple):
    """Chains with what a step needs to know of them.

    Shapes: x, grad, drift (chains, *event); value (chains,), float64. ``drift`` is P grad.
    """

    x: Tensor
    value: Tensor
    grad: Tensor
    drift: Tensor


class Outcome(NamedTuple):
    """What a step did: the probability of acceptance, its outcome, and whether U and its gradient were finite.

    Shapes: (chains,) each.
    """

    acceptance: Tensor
    accepted: Tensor
    diverging: Tensor
    finite: Tensor


def evaluate(value_and_grad: ValueAndGrad, p: Preconditioner, x: Tensor) -> tuple[Point, Tensor]:
    """U, its gradient and P times that at x; and where they are finite, (chains,).

    Where they are not, the gradient is set to zero, so that solvers work for the other chains.
    """
    value, grad = value_and_grad(x)
    value = value.double()
    finite = torch.isfinite(value) & torch.isfinite(grad).flatten(1).all(dim=1)
    grad = torch.where(to_event(finite, grad.dim() - 1), grad, torch.zeros_like(grad))  # type: ignore[arg-type]
    return Point(x, value, grad, p.solve(grad)), finite


def propose(point: Point, noise: Tensor, step_size: float) -> Tensor:
    """Give x - eps P grad U(x) + sqrt(2 eps) z, with z a draw from N(0, P)."""
    return point.x - step_size * point.drift + math.sqrt(2 * step_size) * noise


def log_ratio(old: Point, new: Point, step_size: float) -> Tensor:
    """Log of the Metropolis-Hastings ratio of a proposal: U - U' + log q(x | x') - log q(x' | x), (chains,).

    With q(x' | x) = N(x - eps P g, 2 eps P) the two densities' quadratic forms leave
    ``<x' - x, g + g'> / 2 - eps (<g', P g'> - <g, P g>) / 4``: no P^-1, and no determinant. It is the kinetic energy's
    ``-<p + xi, p - xi> / 2`` of one leapfrog step, whose end momentum is p = xi - sqrt(eps / 2) P^(1/2) (g + g').

    Source: Roberts and Tweedie 1996; the form without P^-1 follows Titsias 2023, proposition 1.
    """
    path = inner(new.x - old.x, old.grad + new.grad, old.x.dim() - 1)
    drift = inner(new.grad, new.drift, old.x.dim() - 1) - inner(old.grad, old.drift, old.x.dim() - 1)
    return old.value - new.value + 0.5 * path - 0.25 * step_size * drift


def settle(accepted: Tensor, new: Point, old: Point) -> Point:
    """Take the new point where it is accepted, all of the old one elsewhere: x, U, gradient and drift."""
    return Point(*(torch.where(to_event(accepted, a.dim() - 1), a, b) for a, b in zip(new, old, strict=True)))  # type: ignore[arg-type]


def mala_step(
    value_and_grad: ValueAndGrad, p: Preconditioner, point: Point, step_size: float, generator: Generators
) -> tuple[Point, Outcome]:
    """One step of all chains; a proposal where U or its gradient is not finite is refused."""
    noise = p.draw(generator, point.x.shape, point.x.dtype)
    new, finite = evaluate(value_and_grad, p, propose(point, noise, step_size))
    ratio = torch.where(finite, log_ratio(point, new, step_size), math.nan)
    accepted = _uniform(len(ratio), generator, ratio) < ratio.exp()
    acceptance = ratio.clamp(max=0.0).exp().nan_to_num(0.0)
    diverging = ~(ratio >= -MOST_NATS)
    return settle(accepted, new, point), Outcome(acceptance, accepted, diverging, finite)


def _uniform(num: int, generator: Generators, like: Tensor) -> Tensor:
    if isinstance(generator, torch.Generator):
        return torch.rand(num, generator=generator, dtype=like.dtype, device=like.device)
    return torch.stack([torch.rand((), generator=g, dtype=like.dtype, device=like.device) for g in generator])


class _Layout(Protocol):
    """How Pyro's sites make a batch of chains.

    Shapes: x (chains, C, H, W), or (chains, 1, 1, D) for sites other than an image.
    """

    batched: bool

    def pack(self, params: Params) -> Tensor: ...

    def unpack(self, x: Tensor) -> dict[str, Tensor]: ...


class _Image:
    """One site, an image."""

    def __init__(self, site: str, is_complex: bool, batched: bool) -> None:
        self.site = site
        self.is_complex = is_complex
        self.batched = batched

    def pack(self, params: Params) -> Tensor:
        x = to_image(params[self.site].detach(), self.is_complex)
        return x if self.batched else x[None]

    def unpack(self, x: Tensor) -> dict[str, Tensor]:
        return {self.site: to_real(x if self.batched else x[0])}


class _Vector:
    """Any real sites, in the order of their names."""

    def __init__(self, params: Params, batched: bool) -> None:
        self.batched = batched
        self.names = sorted(params)
        self.shapes = [tuple(params[n].shape) for n in self.names]
        self.sizes = [math.prod(s[1:] if batched else s) for s in self.shapes]

    def pack(self, params: Params) -> Tensor:
        flat = [params[n].detach().reshape(-1, k) for n, k in zip(self.names, self.sizes, strict=True)]
        return torch.cat(flat, dim=1)[:, None, None, :]

    def unpack(self, x: Tensor) -> dict[str, Tensor]:
        parts = x.flatten(1).split(self.sizes, dim=1)
        return {n: p.reshape(s) for n, p, s in zip(self.names, parts, self.shapes, strict=True)}


class PyroMALA(MCMCKernel):
    """The Metropolis-adjusted Langevin algorithm as a kernel for ``pyro.infer.MCMC``, preconditioned.

    The proposal is ``x' = x - eps P grad U(x) + sqrt(2 eps) P^(1/2) xi``, accepted by the Metropolis rule; P is
    ``Preconditioner.of(posterior, sigma, curvature)`` unless one is given: the inverse of the terms' quadratic forms,
    which makes a Gaussian posterior as easy as a white one. For a plain function, P is the identity.

    ``step_size`` is eps; None adapts it in the warm-up to ``target_acceptance`` by dual averaging, all chains together,
    and freezes it before the first sample is kept. 0.574 is the best acceptance in many dimensions.

    ``target`` is a posterior; ``potential_fn(posterior)``; or any function ``{site: tensor}`` -> U, differentiable, for
    which P acts on all sites, flattened in the order of their names, as an image of shape (1, 1, D).
    Pyro's own chains run in sequence or in processes. ``num_batched_chains`` runs that many at once in one
    tensor, each accepted for itself; sites get a leading dimension of that length (a plain function then returns one U
    a chain), samples come back as (1, draws, chains, ...), and Pyro's own diagnostics take all chains for one:
    compute R-hat over the third dimension.

    Where U or its gradient is not finite the proposal is refused and counted; ``diagnostics()``, under
    ``MCMC.diagnostics()``, tells the draws of divergences (not finite, or more than 1,000 nats uphill), the
    acceptance rate, the step size and the number of gradients.

    Random numbers come from generators seeded, a chain, by one draw from torch's global generator, which
    ``pyro.set_rng_seed`` sets: Pyro's processes differ by that seed alone.

    In use: ``MCMC(PyroMALA(posterior), num_samples=1000, warmup_steps=500).run()``. Without ``initial_params`` chains
    start at ``P b`` plus a draw from N(0, P), b the linear term of the forms there are.

    Shapes: sites (C, H, W), or (C, H, W, 2) for complex images; with a leading dimension for batched chains.
    Raises: TypeError for a score-only prior; ValueError for numbers out of range, for starts of another shape or where
        U is not finite, and for a step size that is to be adapted without a warm-up.
    Source: Roberts and Tweedie 1996; Roberts and Rosenthal 1998 (0.574); Hoffman and Gelman 2014, section 3.2 and
        algorithm 4 (dual averaging and the first step size).
    """

    def __init__(
        self,
        target: Potential | PotentialFunction | Callable[[Params], Tensor],
        step_size: float | None = None,
        preconditioner: Preconditioner | None = None,
        target_acceptance: float = 0.574,
        *,
        sigma: float | None = None,
        curvature: float | None = None,
        tolerance: float | None = None,
        site: str = "x",
        num_batched_chains: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(target, Potential):
            target = potential_fn(target, sigma=sigma, site=site)
        elif not callable(target):
            raise TypeError(f"PyroMALA: target is a {type(target).__name__}, expected a potential or a function")
        elif sigma is not None or (curvature is not None and not isinstance(target, PotentialFunction)):
            raise ValueError("PyroMALA: sigma and curvature belong to a posterior, got a function with one of them")
        self.potential_fn = target
        self.fixed_step_size = None if step_size is None else positive("PyroMALA", "step_size", step_size)
        self.target_acceptance = positive("PyroMALA", "target_acceptance", target_acceptance)
        if self.target_acceptance >= 1:
            raise ValueError(f"PyroMALA: target_acceptance must be below 1, got {target_acceptance:g}")
        self.preconditioner = preconditioner
        self.curvature = None if curvature is None else positive("PyroMALA", "curvature", curvature)
        self.tolerance = None if tolerance is None else positive("PyroMALA", "tolerance", tolerance)
        if num_batched_chains is not None:
            count("PyroMALA", "num_batched_chains", num_batched_chains)
        self.num_batched_chains = num_batched_chains
        self.step_size = math.nan if self.fixed_step_size is None else self.fixed_step_size
        # Pyro looks for these after sampling; all sites are unconstrained.
        self.model = None
        self.transforms: dict[str, Any] = {}
        self._initial_params: dict[str, Tensor] | None = None
        self._run: _Run | None = None
        self._counts = _Counts(0)

    @property
    def initial_params(self) -> dict[str, Tensor] | None:
        """Where the chains start, by site; None before ``setup`` if none were given."""
        return self._initial_params

    @initial_params.setter
    def initial_params(self, params: Params | None) -> None:
        self._initial_params = None if params is None else dict(params)

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Evaluate the starts and find a first step size: what Pyro calls before every chain.

        Raises: TypeError for arguments, which only a model takes; ValueError as the class says.
        """
        if args or kwargs:
            raise TypeError("PyroMALA: run() got arguments, which only a Pyro model takes, expected none")
        if self.fixed_step_size is None and warmup_steps < 1:
            raise ValueError("PyroMALA: warmup_steps is 0, but step_size=None is adapted in the warm-up; give either")
        seed = int(torch.randint(2**62, ()))
        params = self._starts(seed) if self._initial_params is None else self._initial_params
        layout = self._layout(params)
        x = layout.pack(params)
        value_and_grad = self._value_and_grad(layout)
        p = self._preconditioner(x)
        point = _evaluated(value_and_grad, p, x)
        # Streams other than those that drew the starts.
        generators = chain_generators(seed + 1, range(len(x)), x.device)
        self._initial_params = layout.unpack(x)
        self._counts = _Counts(len(x))
        run = _Run(layout, p, value_and_grad, point, generators, warmup_steps, dict(self._initial_params))
        if self.fixed_step_size is None:
            self.step_size = self._first_step_size(run)
            run.averaging.prox_center = math.log(10 * self.step_size)
        self._run = run

    def sample(self, params: Params) -> dict[str, Tensor]:
        """One step of all chains, and within the warm-up one of the adaptation.

        Shapes: by site, as the starts.
        """
        run = self._run
        if run is None:
            raise RuntimeError("PyroMALA: sample was called before setup")
        if any(params[name] is not value for name, value in run.handed_out.items()):
            # Somebody else has moved the chains: a hook, or a kernel that takes turns with this one.
            run.point = _evaluated(run.value_and_grad, run.preconditioner, run.layout.pack(params))
            self._counts.gradients += 1
        run.point, outcome = self._step(run)
        run.step += 1
        acceptance = self._counts.add(outcome, run.step - run.warmup_steps)
        if self.fixed_step_size is None and run.step <= run.warmup_steps:
            now, average = run.adapt(self.target_acceptance - acceptance)
            # Pyro never says that the warm-up is over.
            self.step_size = math.exp(min(LARGEST_LOG_STEP, average if run.step == run.warmup_steps else now))
        run.handed_out = run.layout.unpack(run.point.x)
        return dict(run.handed_out)

    # Pyro's own says that it returns None, and its progress bar takes a dictionary.
    def logging(self) -> "OrderedDict[str, str]":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Step size and mean acceptance so far, for the progress bar."""
        return OrderedDict(
            [("step size", f"{self.step_size:.2e}"), ("acc. prob", f"{self._counts.mean_acceptance:.3f}")]
        )

    def diagnostics(self) -> dict[str, Any]:
        """What became of the chains; of the draws after the warm-up unless it says otherwise.

        ``divergences`` lists the draws of diverging proposals, one entry each; ``acceptance rate`` is the share of
        proposals that were accepted; ``gradients`` counts evaluations a chain, the warm-up's included.
        """
        counts = self._counts
        return {
            "divergences": list(counts.divergences),
            "acceptance rate": counts.acceptance_rate,
            "step size": self.step_size,
            "proposals not finite": counts.not_finite,
            "warm-up divergences": counts.warmup_divergences,
            "gradients": counts.gradients,
        }

    def cleanup(self) -> None:
        """Forget the chains and their starts; the step size and the counts stay to be read."""
        self._run = None
        self._initial_params = None

    def _starts(self, seed: int) -> dict[str, Tensor]:
        fn = self.potential_fn
        shape = fn.posterior.event_shape if isinstance(fn, PotentialFunction) else None
        if shape is None or not isinstance(fn, PotentialFunction):
            raise ValueError("PyroMALA: the target does not fix the shape of its sites; give MCMC initial_params")
        chains = self.num_batched_chains or 1
        device = device_of(fn.posterior)
        like = torch.zeros((chains, *shape), dtype=image_dtype(fn.posterior), device=device)
        p = self._preconditioner(like)
        noise = p.draw(chain_generators(seed, range(chains), device), like.shape, like.dtype)
        x = p.solve(linear_term(fn.posterior, fn.sigma, like, multiscale=True)) + noise
        return fn.params(x if self.num_batched_chains else x[0])

    def _layout(self, params: Params) -> "_Layout":
        fn, chains = self.potential_fn, self.num_batched_chains
        for name, value in params.items():
            finite("PyroMALA", f"initial_params[{name!r}]", value)
            if value.is_complex():
                raise ValueError(
                    f"PyroMALA: initial_params[{name!r}] has dtype {value.dtype}, expected real numbers; "
                    "potential_fn(posterior).params(x) makes them of complex images"
                )
        if not isinstance(fn, PotentialFunction):
            layout: _Layout = _Vector(params, chains is not None)
        elif set(params) != {fn.site}:
            raise ValueError(f"PyroMALA: initial_params has sites {sorted(params)}, expected {fn.site!r} alone")
        else:
            event = EVENT_DIMS + (fn.posterior.is_complex is True)
            layout = _Image(fn.site, event > EVENT_DIMS, params[fn.site].dim() == event + 1)
            if params[fn.site].dim() not in (event, event + 1):
                raise ValueError(
                    f"PyroMALA: initial_params has shape {shape_text(tuple(params[fn.site].shape))}, expected "
                    f"{event} dimensions for one chain, one more for several"
                )
        lengths = {name: tuple(value.shape)[:1] for name, value in params.items()}
        if chains is not None and (not layout.batched or any(n != (chains,) for n in lengths.values())):
            raise ValueError(
                f"PyroMALA: initial_params has leading dimensions {lengths}, expected {chains} at every site for "
                f"num_batched_chains={chains}"
            )
        return layout

    def _value_and_grad(self, layout: "_Layout") -> ValueAndGrad:
        fn = self.potential_fn
        if isinstance(fn, PotentialFunction):
            posterior, sigma = fn.posterior, fn.sigma
            return lambda x: posterior.value_and_grad(x, sigma)

        def by_autograd(x: Tensor) -> tuple[Tensor, Tensor]:
            z = x.detach().requires_grad_(True)
            with torch.enable_grad():
                value = fn(layout.unpack(z))
                expected = (len(x),) if layout.batched else ()
                if tuple(value.shape) != expected:
                    raise ValueError(
                        f"PyroMALA: the function returned shape {shape_text(tuple(value.shape))}, expected "
                        f"{shape_text(expected)}"
                    )
                (grad,) = torch.autograd.grad(value.sum(), z)
            return value.detach().reshape(len(x)), grad

        return by_autograd

    def _preconditioner(self, like: Tensor) -> Preconditioner:
        fn, p = self.potential_fn, self.preconditioner
        if p is not None:
            return p.adapted(like, self.tolerance)
        if not isinstance(fn, PotentialFunction):
            return Preconditioner.identity().adapted(like)
        p = Preconditioner.of(fn.posterior, fn.sigma, self.curvature).adapted(like, self.tolerance)
        try:
            p.solve(torch.zeros_like(like))
        except ValueError as err:
            raise ValueError(
                "PyroMALA: the quadratic forms of the posterior's terms leave some directions without curvature "
                f"({err}); give curvature, about that of the other terms"
            ) from err
        return p

    def _first_step_size(self, run: "_Run") -> float:
        """Double or halve until the acceptance crosses one half."""
        reals = run.point.x[0].numel() * (2 if run.point.x.is_complex() else 1)
        # The best for a white Gaussian in many dimensions.
        step_size = 1.36 * math.pow(reals, -1 / 3)
        factor = 0.0
        for _ in range(MOST_DOUBLINGS):
            self.step_size = step_size
            _, outcome = self._step(run)
            self._counts.gradients += 1
            now = 2.0 if float(outcome.acceptance.mean()) > 0.5 else 0.5
            if now * factor == 1.0:
                return step_size
            factor = now
            step_size *= factor
        if factor < 1:
            raise ValueError(
                f"PyroMALA: steps as small as {step_size:.1e} are refused where the chains start; does the gradient "
                "belong to U?"
            )
        return step_size

    def _step(self, run: "_Run") -> tuple[Point, Outcome]:
        return mala_step(run.value_and_grad, run.preconditioner, run.point, self.step_size, run.generators)


class _Run:
    """The chains between ``setup`` and ``cleanup``."""

    def __init__(
        self,
        layout: _Layout,
        preconditioner: Preconditioner,
        value_and_grad: ValueAndGrad,
        point: Point,
        generators: Generators,
        warmup_steps: int,
        handed_out: dict[str, Tensor],
    ) -> None:
        self.layout = layout
        self.preconditioner = preconditioner
        self.value_and_grad = value_and_grad
        self.point = point
        self.generators = generators
        self.warmup_steps = warmup_steps
        self.handed_out = handed_out
        self.step = 0
        self.averaging: Any = DualAveraging()  # type: ignore[no-untyped-call]

    def adapt(self, excess: float) -> tuple[float, float]:
        """Logarithms of the step size to try next, and of the average so far."""
        self.averaging.step(excess)
        now, average = self.averaging.get_state()
        return now, average


class _Counts:
    """What diagnostics and the progress bar tell; plain numbers, so that they travel between processes."""

    def __init__(self, chains: int) -> None:
        self.chains = chains
        self.steps = self.accepted = self.not_finite = self.warmup_divergences = 0
        self.gradients = 1
        self.mean_acceptance = 0.0
        self.divergences: list[int] = []
        self.warm = True

    def add(self, outcome: Outcome, draw: int) -> float:
        """Count a step, the draw of which is numbered from one, warm-up steps from zero downwards; its acceptance."""
        if draw >= 1 and self.warm:
            self.warm = False
            self.steps, self.mean_acceptance = 0, 0.0
        sums = (outcome.acceptance, outcome.accepted, outcome.diverging, ~outcome.finite)
        # One transfer from the device a step.
        acceptance, accepted, diverging, not_finite = torch.stack([s.double().sum() for s in sums]).tolist()
        self.gradients += 1
        self.steps += 1
        self.mean_acceptance += (acceptance / self.chains - self.mean_acceptance) / self.steps
        self.not_finite += int(not_finite)
        if self.warm:
            self.warmup_divergences += int(diverging)
        else:
            self.accepted += int(accepted)
            self.divergences += [draw - 1] * int(diverging)
        share: float = acceptance / self.chains
        return share

    @property
    def acceptance_rate(self) -> float:
        """Share of the proposals after the warm-up that were accepted."""
        return math.nan if self.warm or self.steps == 0 else self.accepted / (self.steps * self.chains)


def _evaluated(value_and_grad: ValueAndGrad, p: Preconditioner, x: Tensor) -> Point:
    point, ok = evaluate(value_and_grad, p, x)
    if not bool(ok.all()):
        bad = (~ok).nonzero()
        raise ValueError(
            f"PyroMALA: U or its gradient is not finite where chain {int(bad[0])} starts, with {len(bad)} of {len(ok)} "
            "chains affected; give other initial_params"
        )
    return point
