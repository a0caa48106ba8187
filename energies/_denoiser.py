"""The energy of a denoising network, and the score of one."""

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from potentia._potential import Energy, Pullback, Scales, ScoreOnly, Sigma, pulled_back
from potentia._tensor import inner, squared_norm
from potentia._validate import shape_text
from potentia.energies._lean import lean
from potentia.energies._shared import Event, event_or_none, flatten_batch, scale_range, sigma_per_image, wide

Net = Callable[[Tensor, Tensor], Tensor]
Form = Literal["residual", "inner-product", "scalar"]


class Denoiser(Energy):
    """The multi-scale energy of a network psi, in one of three forms.

    - ``"residual"``: U_s(x) = ||x - psi(x, s)||^2 / (2 s^2), where psi takes an image to an image (Chand and Jacob
    2026).
    - ``"inner-product"``: U_s(x) = <x, x - psi(x, s)> / (2 s^2), likewise (Du et al. 2023, Thornton et al. 2025); its
      values have no lower bound. Its gradient is (x - (psi + J^T x) / 2) / s^2, J the Jacobian of psi, so that a psi
      which is a denoiser with <x, psi> homogeneous of degree two starts where it is to end.
    - ``"scalar"``: U_s(x) = psi(x, s), where psi takes images to one number each (Du et al. 2023); ``EDMPotential``.

    ``psi`` is any callable, a module or a function; it gets images (N, C, H, W) and scales (N,), both in the precision
    of its parameters where it has some, else in that of x, and must treat the images one by one. ``offset``, a
    callable of scales (N,) to (N,) nats an entry of the image, makes values comparable across scales and leaves
    gradients alone. ``grad``, ``value_and_grad`` and ``denoise`` cost one evaluation of psi and one vector-Jacobian
    product, with respect to the images alone: no gradients of parameters are computed, nothing of psi is changed, its
    training mode included. ``forward`` is differentiable in x, in sigma and in psi's parameters, for training.

    Shapes: x (*batch, C, H, W); returns (*batch,). ``shape`` says which (C, H, W) it takes; None: any that psi takes.
    Units: x, psi and sigma share the image's unit; U is in nats.
    Raises: TypeError if psi is not callable; ValueError for another form, if scales are not 0 < low <= high, if psi
        returns another shape, or if its output is not connected to its input, so that the gradient would be wrong.
    Source: Chand and Jacob 2026.
    """

    default_name: ClassVar[str] = "denoiser"
    psi: Net
    offset: Callable[[Tensor], Tensor] | None

    def __init__(
        self,
        psi: Net,
        scales: Scales,
        *,
        form: Form = "residual",
        offset: Callable[[Tensor], Tensor] | None = None,
        shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.psi = _callable(self.name, "psi", psi)
        self._scales = scale_range(self.name, scales)
        self._event = event_or_none(self.name, shape)
        if form not in get_args(Form):
            raise ValueError(f"{self.name}: form is {form!r}, expected one of {', '.join(get_args(Form))}")
        self.form: Form = form
        if not (offset is None or callable(offset)):
            raise TypeError(f"{self.name}: offset must be callable, got {type(offset).__name__}")
        self.offset = offset

    @property
    def event_shape(self) -> Event | None:
        return self._event

    @property
    def scales(self) -> Scales:
        return self._scales

    def extra_repr(self) -> str:
        return f"psi={label(self.psi)}" + ("" if self.form == "residual" else f", form={self.form}")

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        self.check(x)
        s = self.sigma_of(x, sigma)
        return self._value(x, self._evaluate(x, s), s)

    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        """(x - D) / s^2, without rounding the difference twice."""
        s, step, _ = self._step(x, sigma)
        return step / s**2

    def value_and_grad(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        s, step, p = self._step(x, sigma)
        # An offset has parameters of its own.
        return self._value(x.detach(), p, s).detach(), step / s**2

    def denoise(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        """Tweedie: x - s^2 grad U_s(x); of the form "residual" psi + J^T (x - psi)."""
        return x.detach() - self._step(x, sigma)[1]

    def _evaluate(self, x: Tensor, s: float | Tensor) -> Tensor:
        return evaluate(self.name, self.psi, x, s, scalar=self.form == "scalar")

    def _value(self, x: Tensor, p: Tensor, s: float | Tensor) -> Tensor:
        per_image = s.reshape(s.shape[:-3]) if isinstance(s, Tensor) else s
        if self.form == "residual":
            value = squared_norm(x - p.to(x.dtype)) / (2 * per_image**2)
        elif self.form == "inner-product":
            value = inner(x, x - p.to(x.dtype)) / (2 * per_image**2)
        else:
            value = wide(p)
        if self.offset is None:
            return value
        entries = x.shape[-3:].numel() * (2 if x.is_complex() else 1)
        return value + entries * self.offset(sigma_per_image(x, s)).reshape(value.shape)

    def _step(self, x: Tensor, sigma: Sigma) -> tuple[float | Tensor, Tensor, Tensor]:
        """The scale, s^2 grad U_s and psi, detached."""
        self.check(x)
        s = self.sigma_of(x, sigma.detach() if isinstance(sigma, Tensor) else sigma)
        z = x.detach().requires_grad_(True)
        with torch.enable_grad(), lean(self.psi):
            p = self._evaluate(z, s)
        if not p.requires_grad:
            raise ValueError(
                f"{self.name}: {label(self.psi)} detaches its output from its input, expected a differentiable one"
            )
        x, held = z.detach(), p.detach()
        against = {
            "residual": lambda: x - held.to(x.dtype),
            "inner-product": lambda: x,
            "scalar": lambda: held.new_ones(()),
        }
        cotangent = against[self.form]().to(p.dtype).expand(p.shape)
        # x is the only input asked for, so that autograd skips the branches that lead to parameters.
        (pulled,) = torch.autograd.grad(p, z, cotangent, allow_unused=True)
        if pulled is None:
            raise ValueError(
                f"{self.name}: {label(self.psi)} does not depend on its input differentiably, expected that it does"
            )
        if self.form == "residual":
            step = cotangent.to(x.dtype) - pulled
        elif self.form == "inner-product":
            step = x - (held.to(x.dtype) + pulled) / 2
        else:
            step = s**2 * pulled
        return s, step, held


class ScoreModel(ScoreOnly):
    """A multi-scale prior known by a denoiser D(x, s) alone, as diffusion models are: scores, but no values.

    ``denoiser`` is any callable, a module or a function, that takes noisy images (N, C, H, W) and scales (N,), both in
    the precision of its parameters where it has some, else in that of x, to clean images. It is evaluated without a
    graph.

    Shapes: x (*batch, C, H, W). ``shape`` says which (C, H, W) it takes; None: any that the denoiser takes.
    Units: x and sigma share the image's unit.
    Raises: TypeError if the denoiser is not callable; ValueError if scales are not 0 < low <= high, or if it returns
        another shape.
    """

    default_name: ClassVar[str] = "score"
    denoiser: Net

    def __init__(self, denoiser: Net, scales: Scales, *, shape: Sequence[int] | None = None) -> None:
        super().__init__()
        self.denoiser = _callable(self.name, "denoiser", denoiser)
        self._scales = scale_range(self.name, scales)
        self._event = event_or_none(self.name, shape)

    @property
    def event_shape(self) -> Event | None:
        return self._event

    @property
    def scales(self) -> Scales:
        return self._scales

    def extra_repr(self) -> str:
        return f"denoiser={label(self.denoiser)}"

    @torch.no_grad()
    def denoise(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        """D(x, s)."""
        self.check(x)
        return evaluate(self.name, self.denoiser, x.detach(), self.sigma_of(x, sigma)).to(x.dtype)

    def denoise_with_vjp(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Pullback]:
        """D and ``v -> J^T v``, from the graph of the denoiser.

        Raises: TypeError if the denoiser detaches its output from its input.
        """
        self.check(x)
        z = x.detach().requires_grad_(True)
        with torch.enable_grad():
            clean = evaluate(self.name, self.denoiser, z, self.sigma_of(x, sigma)).to(x.dtype)
        return pulled_back(self.name, clean, z)

    @torch.no_grad()
    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        """(x - D(x, s)) / s^2."""
        return super().grad(x, sigma)


def evaluate(where: str, net: Net, x: Tensor, s: float | Tensor, *, scalar: bool = False) -> Tensor:
    """Call a network on a flattened batch.

    Shapes: x (*batch, C, H, W) -> the same, or (*batch,) if ``scalar``.
    Raises: ValueError if it returns something of another shape or field.
    """
    batch = flatten_batch(x)
    precision = _precision(net, x)
    z = batch.to(precision.to_complex() if x.is_complex() else precision)
    out = net(z, sigma_per_image(z, s.to(precision) if isinstance(s, Tensor) else s))
    if not isinstance(out, Tensor):
        raise TypeError(f"{where}: {label(net)} returned {type(out).__name__}, expected a tensor")
    if scalar:
        if out.shape != z.shape[:1] or out.is_complex():
            raise ValueError(
                f"{where}: {label(net)} returned {out.dtype} of shape {shape_text(tuple(out.shape))}, "
                f"expected one real number an image, {shape_text(tuple(z.shape[:1]))}"
            )
        return out.reshape(x.shape[:-3])
    if out.shape != z.shape or out.is_complex() != z.is_complex():
        raise ValueError(
            f"{where}: {label(net)} returned {out.dtype} of shape {shape_text(tuple(out.shape))}, "
            f"expected {z.dtype} of shape {shape_text(tuple(z.shape))}, like its input"
        )
    return out.reshape(x.shape)


def _precision(net: Net, x: Tensor) -> torch.dtype:
    """Single or double as the network's parameters are; that of x for a network without such parameters."""
    if isinstance(net, nn.Module):
        for p in net.parameters():
            if p.dtype.to_real() in (torch.float32, torch.float64):
                return p.dtype.to_real()
    return x.real.dtype


def _callable(where: str, what: str, net: Net) -> Net:
    if not callable(net):
        raise TypeError(f"{where}: {what} must be callable, got {type(net).__name__}")
    return net


def label(fn: object) -> str:
    """What to call a function or a module in a message."""
    return str(getattr(fn, "__qualname__", type(fn).__name__))
