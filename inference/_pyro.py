"""Potentials for Pyro: its HMC and NUTS, and hierarchical models that hold a posterior of images."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from potentia._algebra import Scaled, Sum, unscaled
from potentia._potential import Likelihood, Potential, Sigma
from potentia._quadratic import MatrixFree, Quadratic
from potentia._tensor import EVENT_DIMS, to_event
from potentia._validate import count, finite, positive, real_number, shape_text

Params = Mapping[str, Tensor]
Normaliser = Callable[[Tensor], Tensor]


class PotentialFunction:
    """U of the image under one Pyro site, as ``potential_fn`` makes it; it can be pickled if its posterior can.

    Shapes: ``{site: x}`` with x (C, H, W) real, or (C, H, W, 2) for a posterior of complex images, real part first
        -> (), in the dtype of x.
    """

    def __init__(self, posterior: Potential, sigma: float | None, site: str, offset: float) -> None:
        self.posterior = posterior
        self.sigma = sigma
        self.site = site
        self.offset = offset

    def __call__(self, params: Params) -> Tensor:
        """U(x) - offset; its gradient is the posterior's own.

        Raises: ValueError for other sites than the one, or x of another shape or field than the posterior takes.
        """
        if set(params) != {self.site}:
            raise ValueError(f"potential_fn: got sites {sorted(params)}, expected {self.site!r} alone")
        x = params[self.site]
        dims = EVENT_DIMS + (self.posterior.is_complex is True)
        if x.dim() != dims or x.is_complex():
            expected = "(C, H, W)" if dims == EVENT_DIMS else "(C, H, W, 2), real and imaginary parts"
            raise ValueError(
                f"potential_fn: {self.site} has shape {shape_text(tuple(x.shape))} and dtype {x.dtype}, expected real "
                f"{expected}; Pyro's kernels take one chain, PyroMALA takes a batch of them"
            )
        return differentiable(self.posterior, x, self.sigma, self.offset)

    def params(self, x: Tensor) -> dict[str, Tensor]:
        """Give images as Pyro's parameters: ``{site: x}``, complex ones as (..., C, H, W, 2)."""
        return {self.site: to_real(x)}

    def images(self, samples: Params | Tensor) -> Tensor:
        """Give the images of samples: ``images(mcmc.get_samples())``.

        Shapes: (..., C, H, W) real, unchanged; (..., C, H, W, 2) -> (..., C, H, W) complex.
        """
        x = samples if isinstance(samples, Tensor) else samples[self.site]
        return to_image(x, self.posterior.is_complex is True)


def potential_fn(
    posterior: Potential, *, sigma: float | None = None, site: str = "x", offset: float = 0.0
) -> PotentialFunction:
    """The posterior as Pyro's ``HMC(potential_fn=...)`` and ``NUTS(potential_fn=...)`` take it: ``{site: x}`` -> U(x).

    Gradients are the posterior's own, closed forms where there are such; they cannot be differentiated again. Energies
    are summed in float64 and handed over in the dtype of x, because Pyro moves every site to the dtype of the energy.
    ``offset`` is taken off before that: with U of some 1e5 nats in float32, give U at a typical image.

    Complex images are real parameters with a last dimension for the two parts: ``.params(x)`` makes them of images and
    ``.images(samples)`` turns them back. ``sigma`` is the scale of multi-scale energies (None: the finest).

    In use: ``u = potential_fn(posterior)``, ``MCMC(NUTS(potential_fn=u), 1000, initial_params=u.params(x0))``.

    - Prefer NUTS. Pyro's HMC takes trajectories of one fixed length, without jitter, and the default of 2 pi is a full
      period for every direction of unit variance, as all are once the mass matrix is adapted: the chain returns to
      where it was, at high acceptance and without divergences, and its std comes out too small. With HMC, set
      ``trajectory_length`` to about 1.5, a quarter of a period, and compare with another length. In few dimensions
      the adapted step grows to the trajectory's length, and a single leapfrog is left: fix the step size as well.
    - ``jit_compile=True`` is refused: a trace would lose the closed-form gradients.
    - Pyro's processes need a posterior that can be pickled, unless they are forked.

    Shapes: x (C, H, W), or (C, H, W, 2) for complex images -> (). Units: nats.
    Raises: TypeError for what is no potential, or for a score-only prior, which has no value; ValueError for a sigma
        that is not positive.
    """
    check_target("potential_fn", posterior)
    scale = None if sigma is None else positive("potential_fn", "sigma", sigma)
    return PotentialFunction(posterior, scale, site, real_number("potential_fn", "offset", offset))


@dataclass(frozen=True)
class Homogeneous:
    """The normaliser of ``exp(-w U)`` for a U that is homogeneous of some degree about its minimum.

    If ``U(m + t v) = U(m) + t^degree (U(m + v) - U(m))`` in ``dims`` real dimensions, and U is constant in the others,
    then ``log Z(w) = -(dims / degree) log w - w U(m)`` plus a constant. Examples, with d real numbers in an image:

    - a Gaussian prior: degree 2, dims d, minimum its value at the mean (its log determinant, which w multiplies too);
    - total variation, a norm of the gradient without smoothing: degree 1, dims d less one a channel for its mean;
    - a Gaussian likelihood, as a density of the measurements: degree 2, dims the real numbers measured; with
      w = 1 / noise_std^2 and a term built with noise_std = 1 that is the ``noise_std^dims`` which the likelihood drops.
    - a Laplace likelihood: degree 1, dims the real numbers measured; w = 1 / scale of a term built with scale = 1.

    ``of`` finds the numbers where a term has a quadratic form.

    Units: minimum in nats.
    Raises: ValueError if dims or degree is not positive.
    Source: Pereyra, Bioucas-Dias and Figueiredo 2015, proposition 3.1; the minimum is our addition.
    """

    dims: int
    degree: float = 2.0
    minimum: float = 0.0

    def __post_init__(self) -> None:
        count("Homogeneous", "dims", self.dims)
        positive("Homogeneous", "degree", self.degree)
        real_number("Homogeneous", "minimum", self.minimum)

    def __call__(self, weight: Tensor) -> Tensor:
        """Log Z(w) up to a constant, differentiable; the shape of w."""
        return -(self.dims / self.degree) * weight.log() - self.minimum * weight

    @classmethod
    def of(cls, term: Potential, event_shape: tuple[int, ...] | None = None, sigma: Sigma = None) -> "Homogeneous":
        """The normaliser of a Gaussian term: of the image for a prior, of the measurements for a likelihood.

        ``event_shape`` is needed for a prior that takes images of any shape. A likelihood may say a ``degree`` of its
        own: Laplace noise has 1, Gaussian noise 2 around any forward model.

        Raises: ValueError for a term with neither degree nor quadratic form, or a prior that is flat in some directions
            or whose form is matrix-free, so that this cannot be told: give ``dims`` and ``degree`` for those.
        """
        bare = unscaled(term)
        positive_weight = not isinstance(term, Scaled) or term.weight >= 0
        if isinstance(bare, Likelihood) and positive_weight and (degree := getattr(bare, "degree", None)) is not None:
            return cls(_num_measured(bare), degree)
        form = term.quadratic(sigma)
        advice = "give Homogeneous(dims, degree)"
        if form is None:
            raise ValueError(f"Homogeneous: {term.name} has no quadratic form; {advice}")
        if isinstance(bare, Likelihood):
            return cls(_num_measured(bare))
        shape = term.event_shape if event_shape is None else event_shape
        if shape is None:
            raise ValueError(f"Homogeneous: {term.name} takes images of any shape; give event_shape")
        try:
            mode = _mode(form, shape)
        except ValueError as err:
            raise ValueError(f"Homogeneous: {term.name} may be flat in some direction ({err}); {advice}") from err
        return cls(math.prod(shape) * (2 if mode.is_complex() else 1), 2.0, float(term(mode, sigma)))


class PyroModel:
    """A posterior for Pyro models, as ``pyro_model`` makes it: a call samples the image and adds the factors.

    Shapes: the image, and ``init`` for it, (C, H, W); weights are numbers.
    Raises: ValueError for a normaliser of a term that the posterior does not have.
    """

    def __init__(
        self,
        posterior: Potential,
        normalisers: Mapping[str, Normaliser | None],
        site: str,
        sigma: float | None,
        init: Tensor,
        init_std: float,
    ) -> None:
        self.posterior = posterior
        self.terms = dict(posterior.terms) if isinstance(posterior, Sum) else {posterior.name: posterior}
        self.normalisers = dict(normalisers)
        self.site = site
        self.sigma = sigma
        self.init = init
        self.init_std = init_std
        self._site: Any = None
        for name in self.normalisers:
            self._known(name)

    def __call__(self, **weights: Tensor | float) -> Tensor:
        """Add the posterior, its terms multiplied by ``weights``, to the Pyro model that is running; give the image.

        Weights are positive numbers or tensors by the names of terms, broadcasting against the batch of images that
        plates make; a term without one counts as it is.

        Shapes: returns (*batch, C, H, W), complex for a posterior of complex images.
        Raises: ValueError for a weight of no term, or of a term whose normaliser is neither given nor known.
        """
        import pyro

        factors = {name: self.normaliser(name) for name in weights}
        x: Tensor = pyro.sample(self.site, self._flat())
        for name, term in self.terms.items():
            value = differentiable(term, x, self.sigma)
            if name in weights:
                weight = torch.as_tensor(weights[name], dtype=x.dtype, device=x.device)
                value = weight * value
                normaliser = factors[name]
                value = value if normaliser is None else value + normaliser(weight)
            pyro.factor(f"{self.site}_{name}", -value)
        return self.images(x)

    def normaliser(self, name: str) -> Normaliser | None:
        """Log Z(w) of a weighted term: what was given, else ``Homogeneous.of`` the term.

        Raises: ValueError for an unknown name, or where there is none.
        """
        term = self._known(name)
        if name not in self.normalisers:
            try:
                self._check_alone(name)
                self.normalisers[name] = Homogeneous.of(term, tuple(self.init.shape), self.sigma)
            except ValueError as err:
                raise ValueError(
                    f"pyro_model: a weight of {name} needs normalisers={{'{name}': ...}}, log Z as a function of the "
                    f"weight, or None to leave it out ({err})"
                ) from err
        return self.normalisers[name]

    def _flat(self) -> Any:
        """A distribution that says where kernels start and, being masked, has density one everywhere."""
        if self._site is None:
            import pyro.distributions as dist

            start = to_real(self.init)
            self._site = dist.Normal(start, self.init_std).to_event(start.dim()).mask(False)  # type: ignore[no-untyped-call]
        return self._site

    def _check_alone(self, name: str) -> None:
        """Refuse to guess for one of several priors: the normaliser of a product is no product of normalisers."""
        priors = [n for n, t in self.terms.items() if not isinstance(unscaled(t), Likelihood)]
        if name in priors and len(priors) > 1:
            raise ValueError(f"{name} is one of the priors {', '.join(priors)}, which have one normaliser together")

    def images(self, samples: Params | Tensor) -> Tensor:
        """Give the images of samples, which Pyro holds as (..., C, H, W, 2) if they are complex."""
        return to_image(samples if isinstance(samples, Tensor) else samples[self.site], self.init.is_complex())

    def _known(self, name: str) -> Potential:
        if name not in self.terms:
            raise ValueError(f"pyro_model: there is no term {name!r}, expected one of {', '.join(self.terms)}")
        return self.terms[name]


def pyro_model(
    posterior: Potential,
    *,
    normalisers: Mapping[str, Normaliser | None] | None = None,
    site: str = "x",
    sigma: float | None = None,
    init: Tensor | None = None,
    init_std: float = 1.0,
) -> PyroModel:
    """The posterior as a Pyro model of its own, or a part of a larger one with unknown weights and noise levels.

    The image is a sample site with a flat density, every term of the posterior a ``pyro.factor`` named
    ``<site>_<term>``. ``NUTS(pyro_model(posterior))`` samples the posterior. Within a model, call it with tensors that
    multiply its terms; gradients reach them::

        scene = pyro_model(field + likelihoods.Gaussian(y, blur, noise_std=1.0))

        def model():
            noise_std = pyro.sample("noise_std", dist.HalfCauchy(1.0))
            weight = pyro.sample("weight", dist.Gamma(2.0, 2.0))
            return scene(field=weight, gaussian=noise_std**-2)

        MCMC(NUTS(model, init_strategy=init_to_sample), 1000).run()

    A weight changes its term's normalising constant Z(w), which depends on the unknowns and belongs to the density:
    left out, the sampler runs to a weight of zero or a noise level of infinity. For terms with a quadratic form it is
    found (``Homogeneous.of``); for others give ``normalisers={"tv": Homogeneous(dims, degree=1)}``, or any function of
    w that returns log Z(w) up to a constant, or None to leave it out. Several priors have one normaliser together, a
    function of all their weights: leave theirs out and add it by a ``pyro.factor`` of your own. So also for unknowns
    that are no weights, such as the width of a blur: write U(x, unknown) in torch. The scale of Student's t is one::

        x = pyro_model(field, init=torch.zeros(1, 64, 64))()
        data = likelihoods.StudentT(y, blur, scale=1.0).with_scale(scale)
        pyro.factor("data", -data(x) - data.log_normaliser())

    Pyro's strategy ``init_to_sample`` starts the image at ``init`` plus noise of std ``init_std``, its default
    ``init_to_uniform`` between -2 and 2 in every pixel. ``sigma`` is the scale of multi-scale energies.

    Shapes: init (C, H, W), complex for complex images; by default zero, in the posterior's precision.
    Raises: TypeError for what is no potential, or a score-only prior; ValueError for images of unknown shape without
        ``init``, or normalisers of terms that do not exist.
    """
    check_target("pyro_model", posterior)
    scale = None if sigma is None else positive("pyro_model", "sigma", sigma)
    if init is None:
        if posterior.event_shape is None:
            raise ValueError("pyro_model: no term fixes the image's shape; give init, of shape (C, H, W)")
        init = torch.zeros(posterior.event_shape, dtype=image_dtype(posterior), device=device_of(posterior))
    else:
        if init.dim() != EVENT_DIMS:
            raise ValueError(f"pyro_model: init has shape {shape_text(tuple(init.shape))}, expected (C, H, W)")
        posterior.check(init)
        finite("pyro_model", "init", init)
    std = positive("pyro_model", "init_std", init_std)
    return PyroModel(posterior, normalisers or {}, site, scale, init.detach(), std)


def differentiable(potential: Potential, x: Tensor, sigma: Sigma = None, offset: float = 0.0) -> Tensor:
    """U(x) - offset in the dtype of x, with the potential's own gradient under autograd.

    Shapes: x (*batch, C, H, W), or (*batch, C, H, W, 2) for a potential of complex images -> (*batch,).
    Raises: RuntimeError when traced, and when differentiated twice.
    """
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        raise RuntimeError(f"{potential.name}: jit_compile=True would lose its gradients, expected jit_compile=False")
    return cast(Tensor, _Value.apply(x, potential, sigma, offset))  # type: ignore[no-untyped-call]


class _Value(torch.autograd.Function):
    """U with the gradient of ``value_and_grad`` in place of one through its operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, potential: Potential, sigma: Sigma, offset: float) -> Tensor:
        image = to_image(x.detach(), potential.is_complex is True)
        if ctx.needs_input_grad[0]:
            value, grad = potential.value_and_grad(image, sigma)
            ctx.save_for_backward(x, to_real(grad).to(x.dtype))
        else:
            value = potential(image, sigma)
        return (value - offset).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        x, grad = ctx.saved_tensors
        return _Gradient.apply(outputs[0], grad, x), None, None, None  # type: ignore[no-untyped-call]


class _Gradient(torch.autograd.Function):
    """The gradient, where autograd would go on to differentiate it."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, grad: Tensor, x: Tensor) -> Tensor:
        return to_event(output, grad.dim() - output.dim()) * grad

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        raise RuntimeError(
            "potential_fn: its gradient is a closed form that cannot be differentiated again; for second derivatives "
            "call the posterior itself"
        )


def check_target(where: str, posterior: object) -> None:
    """Refuse what has no value.

    Raises: TypeError.
    """
    if not isinstance(posterior, Potential):
        raise TypeError(f"{where}: posterior is a {type(posterior).__name__}, expected a potential")
    if not posterior.has_value:
        raise TypeError(f"{where}: {posterior.name} holds a score-only prior, which has no value; expected energies")


def to_real(x: Tensor) -> Tensor:
    """Complex images as real numbers, the two parts in a last dimension; real ones unchanged."""
    return torch.view_as_real(x) if x.is_complex() else x


def to_image(x: Tensor, is_complex: bool) -> Tensor:
    """Images of Pyro's real numbers: (..., C, H, W, 2) -> (..., C, H, W) if complex."""
    if not is_complex:
        return x
    if x.shape[-1] != 2:
        raise ValueError(f"complex images as real numbers have a last dimension of 2, got {shape_text(tuple(x.shape))}")
    return torch.view_as_complex(x.contiguous())


def image_dtype(posterior: Potential) -> torch.dtype:
    """The precision of the measurements, else of the posterior's arrays; complex for complex images."""
    parts = posterior.terms.values() if isinstance(posterior, Sum) else [posterior]
    measured = [bare.y for t in parts if isinstance(bare := unscaled(t), Likelihood)]
    # Plain numbers are held in double precision, whatever that of the images.
    held = measured or [t for t in _tensors(posterior) if t.dim() > 0 and (t.is_floating_point() or t.is_complex())]
    real = torch.float64 if any(t.dtype.to_real() == torch.float64 for t in held) else torch.float32
    return real.to_complex() if posterior.is_complex is True else real


def device_of(posterior: Potential) -> torch.device:
    """Where the posterior's tensors are."""
    return next((t.device for t in _tensors(posterior)), torch.device("cpu"))


def _tensors(posterior: Potential) -> list[Tensor]:
    return [*posterior.parameters(), *posterior.buffers()]


def _mode(form: Quadratic, shape: tuple[int, ...]) -> Tensor:
    # Conjugate gradients end at some solution even where there are many.
    if isinstance(form.structure, MatrixFree):
        raise ValueError("its form is matrix-free, which does not tell")  # noqa: TRY004
    return form.solve(form.linear.expand(shape))


def _num_measured(likelihood: Likelihood) -> int:
    y = likelihood.y
    sampled = getattr(getattr(likelihood, "operator", None), "sampled", None)
    number = y.numel() if sampled is None else int(sampled.expand(y.shape).sum())
    return number * (2 if y.is_complex() else 1)
