"""Log-determinants of shifted precisions, at as many shifts as one likes for one look at the operator."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor

from potentia._quadratic import Diagonal, Fourier, Structure
from potentia._tensor import inner, squared_norm, to_event
from potentia._validate import Shape, count, shape_text

_MOST_ENTRIES = 2**24  # held at once: Krylov vectors, or nodes times shifts


@dataclass(frozen=True, eq=False)
class LogDet:
    """Log det(Λ + shift I) as a function of the shift: ``sum weights log(nodes + shift)``.

    For structures that a transform diagonalises, and for images of few enough pixels, the nodes are the eigenvalues,
    and it is exact. Otherwise it is stochastic Lanczos quadrature with fixed probes: a deterministic, smooth function
    of the shift whose error ``std_error`` estimates. The probes' error on Λ's circulant approximation, whose
    determinant is known, is taken off (a control variate).

    The determinant is that of Λ as an operator on the images' own field: of complex images every eigenvalue counts
    once, although a Gaussian of them has two parts; ``log_integral`` counts them.

    Shapes: nodes and weights (n,), float64; spread (probes, n), the weights of each probe, or None where it is exact.
    Source: Ubaru, Chen and Saad 2017 (stochastic Lanczos quadrature); Golub and Meurant 2010, chapter 6.
    """

    nodes: Tensor
    weights: Tensor
    spread: Tensor | None
    dimension: int
    is_complex: bool

    @classmethod
    def of(
        cls,
        structure: Structure,
        shape: Shape,
        dtype: torch.dtype,
        *,
        num_probes: int = 32,
        num_steps: int = 64,
        seed: int = 0,
        dense_limit: int = 1024,
        device: torch.device | str | None = None,
    ) -> Self:
        """Look at an operator on images of a shape (C, H, W) and a dtype, real or complex.

        ``num_probes``, ``num_steps`` (of Lanczos) and ``seed`` matter for matrix-free operators of more than
        ``dense_limit`` pixels; those of fewer are written out as a matrix and diagonalised. ``device`` is where such an
        operator computes, by default where its approximation lives.

        Raises: ValueError for a shape that is no image's, or numbers out of range.
        """
        event = tuple(shape)
        if len(event) != 3:
            raise ValueError(f"LogDet: shape is {shape_text(event)}, expected (C, H, W)")
        d = math.prod(event)
        make = partial(cls, dimension=d, is_complex=dtype.is_complex)
        if isinstance(structure, Diagonal):
            return make(*_merged(structure.precision.double().expand(event)), spread=None)
        if isinstance(structure, Fourier):
            return make(*_merged(_eigenvalues(structure, event, dtype)), spread=None)
        probes = count("LogDet", "num_probes", num_probes)
        steps = min(count("LogDet", "num_steps", num_steps), d)
        near = structure.circulant()
        place = torch.device(device or ("cpu" if near is None else near.spectrum.device))
        if d <= dense_limit:
            return make(*_merged(_dense(structure, event, dtype, place)), spread=None)
        generator = torch.Generator().manual_seed(seed)
        z = _signs((probes, *event), generator, dtype).to(place)
        chunk = max(1, _MOST_ENTRIES // (steps * d))
        parts = [_lanczos(structure, z[i : i + chunk], steps) for i in range(0, probes, chunk)]
        nodes, weights = (torch.cat([p[k] for p in parts]) for k in (0, 1))
        # Probe j has weights at its own nodes alone.
        spread = torch.block_diag(*(weights * d)).to(place)
        if near is not None:
            known = _eigenvalues(near, event, dtype).reshape(-1).to(place)
            spread = torch.cat([spread, 1 - _power(z)], dim=1)
            return make(torch.cat([nodes.reshape(-1), known]), spread.mean(0), spread=spread)
        return make(nodes.reshape(-1), spread.mean(0), spread=spread)

    def __call__(self, shift: Tensor | float) -> Tensor:
        """Log det(Λ + shift I) for shifts of zero or more, (...) -> (...), float64; minus infinity if singular."""
        return self._sum(self.weights[None], shift)[0]

    def std_error(self, shift: Tensor | float) -> Tensor:
        """Standard error over the probes, zero where the log-determinant is exact: (...) -> (...), float64.

        The error of a quadrature with too few steps is not in it.
        """
        if self.spread is None:
            return torch.zeros_like(self(shift))
        probes = len(self.spread)
        if probes == 1:
            return torch.full_like(self(shift), math.nan)
        return self._sum(self.spread, shift).std(0) / math.sqrt(probes)

    def log_integral(self, shift: Tensor | float) -> Tensor:
        """Log of the integral of exp(-<x, (Λ + shift I) x> / 2) over all images: (...) -> (...), float64."""
        parts = 2 if self.is_complex else 1
        return 0.5 * parts * (self.dimension * math.log(2 * math.pi) - self(shift))

    def _sum(self, weights: Tensor, shift: Tensor | float) -> Tensor:
        """Weighted sums of the logarithms: weights (k, n), shift (...) -> (k, ...)."""
        s = torch.as_tensor(shift, dtype=torch.float64, device=self.nodes.device)
        sums = []
        for part in s.reshape(-1).split(max(1, _MOST_ENTRIES // len(self.nodes))):
            total = self.nodes + part[:, None]
            zero = total == 0
            logs = torch.where(zero, 0.0, torch.where(zero, 1.0, total).log())
            # A node without weight is none, even where its logarithm is infinite.
            singular = (weights != 0).double() @ zero.double().mT > 0
            sums.append(torch.where(singular, -math.inf, weights @ logs.mT))
        return torch.cat(sums, dim=1).reshape(len(weights), *s.shape)


def _merged(eigenvalues: Tensor) -> tuple[Tensor, Tensor]:
    """The different eigenvalues, and how often each occurs; rounding below zero is taken off."""
    nodes, copies = eigenvalues.reshape(-1).clamp_min(0.0).unique(return_counts=True)
    return nodes, copies.double()


def _eigenvalues(structure: Fourier, event: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The spectrum at every frequency; of one for real images, the half that is read, and its mirror image."""
    spectrum = structure.spectrum.double().expand(tuple(event))
    if dtype.is_complex:
        return spectrum
    height, width = event[-2:]
    half = width // 2 + 1
    rows = (-torch.arange(height)) % height
    rest = spectrum[..., rows.to(spectrum.device), :][..., 1 : width - half + 1].flip(-1)
    return torch.cat([spectrum[..., :half], rest], dim=-1)


def _dense(structure: Structure, event: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """All eigenvalues, from the matrix of the operator."""
    d = math.prod(event)
    basis = torch.eye(d, dtype=dtype, device=device).reshape(d, *event)
    matrix = structure.apply(basis).reshape(d, d).to(torch.complex128 if dtype.is_complex else torch.float64)
    values: Tensor = torch.linalg.eigvalsh(0.5 * (matrix + matrix.mH))
    return values


def _signs(shape: Sequence[int], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Independent signs, or for complex images powers of i: of all probes, those of least variance."""
    which = torch.randint(4 if dtype.is_complex else 2, tuple(shape), generator=generator)
    signs = torch.tensor([1, -1, 1j, -1j] if dtype.is_complex else [1, -1], dtype=dtype)
    return signs[which]


def _power(z: Tensor) -> Tensor:
    """Power of each probe at each frequency, one on average: (probes, C, H, W) -> (probes, C H W), float64."""
    wide = z.to(torch.complex128)
    spectrum: Tensor = torch.fft.fft2(wide, norm="ortho")
    return (spectrum.real.square() + spectrum.imag.square()).flatten(1)


def _lanczos(structure: Structure, z: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Gauss quadrature for the measure that each probe sees: nodes and weights, both (probes, steps), float64.

    Vectors are orthogonalised twice against all before them: without that, converged eigenvalues come back.
    """
    n = len(z)
    real = z.real.dtype
    basis = [z * to_event(squared_norm(z).rsqrt().to(real))]
    diagonal, off = z.new_zeros(n, steps, dtype=torch.float64), z.new_zeros(n, steps, dtype=torch.float64)
    largest = torch.zeros(n, dtype=torch.float64, device=z.device)
    for k in range(steps):
        w = structure.apply(basis[k])
        diagonal[:, k] = inner(basis[k], w)
        if k + 1 == steps:
            break
        held = torch.stack(basis, dim=1).flatten(2)
        flat = w.flatten(1)
        for _ in range(2):
            along = torch.einsum("nkd,nd->nk", held.conj(), flat)
            flat = flat - torch.einsum("nk,nkd->nd", along, held)
        w = flat.reshape(w.shape)
        size = squared_norm(w).sqrt()
        largest = torch.maximum(largest, torch.maximum(diagonal[:, k].abs(), size))
        # What is left is rounding: the measure is exhausted, and the nodes that follow have no weight.
        size = torch.where(size > 10 * torch.finfo(z.dtype).eps * largest, size, 0.0)
        off[:, k] = size
        basis.append(w * to_event(torch.where(size > 0, 1 / size, 0.0).to(real)))
    matrix = torch.diag_embed(diagonal)
    for k in range(steps - 1):
        matrix[:, k, k + 1] = matrix[:, k + 1, k] = off[:, k]
    nodes, vectors = torch.linalg.eigh(matrix)
    weights = vectors[:, 0].square()
    return nodes.clamp_min(0.0), torch.where(weights > 1e-20, weights, 0.0)
