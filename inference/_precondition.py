"""Preconditioners: the covariance that a Langevin step takes its drift and its noise from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from potentia._algebra import Scaled, Sum, unscaled
from potentia._potential import Potential, Sigma
from potentia._quadratic import Diagonal, Quadratic, Structure
from potentia._random import Generators
from potentia._tensor import EVENT_DIMS
from potentia._validate import shape_text


@runtime_checkable
class GaussNewton(Protocol):
    """A potential with a quadratic form about every image, though it has none for all of them."""

    def gauss_newton(self, x: Tensor) -> Quadratic:
        """The form about x, (C, H, W)."""
        ...


@dataclass(frozen=True, eq=False)
class Preconditioner:
    """P = (structure + shift I)^-1.

    Shapes: images (*batch, C, H, W). Units: structure and shift in nats per squared image unit.
    Raises: ValueError, when solved with, if structure + shift I is singular.
    """

    structure: Structure
    shift: float = 0.0

    @classmethod
    def identity(cls) -> "Preconditioner":
        """P = I."""
        return cls(Diagonal(torch.zeros(1, 1, 1)), 1.0)

    @classmethod
    def annealed(cls, posterior: Potential, sigma: float) -> "Preconditioner":
        """P = (Λ + w I / sigma^2)^-1: Λ of all single-scale terms with a quadratic form, w the multi-scale weight.

        A posterior without multi-scale terms counts w = 1.
        Source: Chand and Jacob 2026, the preconditioner of ALPS.
        """
        forms = [f for t in terms(posterior) if t.multiscale_weight == 0 and (f := t.quadratic(sigma)) is not None]
        weight = posterior.multiscale_weight
        return cls(_total(forms), (weight if weight > 0 else 1.0) / sigma**2)

    @classmethod
    def of(cls, posterior: Potential, sigma: Sigma = None, curvature: float | None = None) -> "Preconditioner":
        """P = (Λ + curvature I)^-1, Λ the sum of every quadratic form among the terms, multi-scale ones at sigma.

        ``curvature`` stands for what has no quadratic form. By default it is the weight of multi-scale terms
        over sigma^2, zero where nothing is left, and without any form at all one.
        """
        return cls._of(posterior, None, sigma, curvature)

    @classmethod
    def gauss_newton(
        cls, posterior: Potential, at: Tensor, sigma: Sigma = None, curvature: float | None = None
    ) -> "Preconditioner":
        """P = (Λ + curvature I)^-1 as ``of``, with the Gauss-Newton forms about an image in place of those that miss.

        What Langevin, MALA and HMC want as their ``preconditioner`` for noise that is not Gaussian and forward models
        that are not linear. ``at`` should be a typical image of the posterior, such as its mode: far from it, the
        curvature is another, which makes samplers slow but not wrong.

        Shapes: at (C, H, W). Raises: ValueError for another shape or field.
        """
        if at.dim() != EVENT_DIMS:
            raise ValueError(f"Preconditioner: at has shape {shape_text(tuple(at.shape))}, expected (C, H, W)")
        posterior.check(at)
        return cls._of(posterior, at.detach(), sigma, curvature)

    @classmethod
    def _of(cls, posterior: Potential, at: Tensor | None, sigma: Sigma, curvature: float | None) -> "Preconditioner":
        forms: list[Quadratic] = []
        left = 0.0
        for term in terms(posterior):
            form = _form(term, at, sigma)
            if form is not None:
                forms.append(form)
            elif term.multiscale_weight > 0 and isinstance(sigma, float) and sigma > 0:
                left += term.multiscale_weight / sigma**2
        if curvature is None:
            curvature = left if forms else 1.0
        return cls(_total(forms), float(curvature))

    def solve(self, rhs: Tensor) -> Tensor:
        """P rhs."""
        return self.structure.solve(rhs, self.shift)

    def white(self, generator: Generators, shape: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The random numbers behind one draw from N(0, P), which hold at any shift."""
        return self.structure.white(generator, shape, dtype=dtype)

    def perturb(self, white: tuple[Tensor, ...]) -> Tensor:
        """P^-1 times the draw that these random numbers stand for."""
        return self.structure.perturb(white, self.shift)

    def draw(self, generator: Generators, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A draw from N(0, P)."""
        return self.structure.draw(generator, shape, self.shift, dtype=dtype)

    def adapted(self, like: Tensor, tolerance: float | None = None) -> "Preconditioner":
        """Move to the precision and device of ``like``, and set the relative residual of its solver."""
        structure = self.structure.to(like.dtype)
        if isinstance(structure, Diagonal) and structure.precision.device != like.device:
            structure = Diagonal(structure.precision.to(like.device))
        return replace(self, structure=structure if tolerance is None else structure.with_tolerance(tolerance))


def terms(posterior: Potential) -> list[Potential]:
    """The terms of a sum, or the potential itself."""
    return list(posterior.terms.values()) if isinstance(posterior, Sum) else [posterior]


def _form(term: Potential, at: Tensor | None, sigma: Sigma) -> Quadratic | None:
    """The exact form of a term, else the one about ``at`` if it has one; a term of negative weight has none."""
    form = term.quadratic(sigma)
    bare, weight = unscaled(term), term.weight if isinstance(term, Scaled) else 1.0
    if form is not None or at is None or weight < 0 or not isinstance(bare, GaussNewton):
        return form
    return bare.gauss_newton(at) * weight


def _total(forms: Sequence[Quadratic]) -> Structure:
    if not forms:
        return Diagonal(torch.zeros(1, 1, 1))
    total = forms[0].structure
    for form in forms[1:]:
        total = total + form.structure
    return total


def linear_term(posterior: Potential, sigma: Sigma, like: Tensor, *, multiscale: bool) -> Tensor:
    """Sum of b over the terms with a quadratic form, multi-scale ones among them or not, in the shape of ``like``."""
    total = torch.zeros_like(like)
    for term in terms(posterior):
        form = term.quadratic(sigma) if multiscale or term.multiscale_weight == 0 else None
        if form is not None:
            total = total + form.linear.to(like.dtype)
    return total
