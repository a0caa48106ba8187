"""The covariances of a mixture's components, by structure: diagonal, full, low rank plus diagonal.

Each gives, for any noise variance s^2, the products (Σ_k + s^2 I)^-1 v and the log determinants, in double precision.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from potentia._module import Module
from potentia._random import standard_normal
from potentia._validate import same_shape, shape_text, tensor
from potentia.energies._shared import positive_entries, wide


class Solved(NamedTuple):
    """(Σ_k + s^2 I)^-1 v and log det(Σ_k + s^2 I).

    Shapes: product (N, K, d); logdet (N, K) or (1, K).
    """

    product: Tensor
    logdet: Tensor


class Covariances(Module, ABC):
    """K covariances of vectors of length d."""

    kind: str

    @abstractmethod
    def forward(self, v: Tensor, s2: Tensor) -> Solved:
        """Solve for every component.

        Shapes: v (N, K, d), double; s2 (N,) or (1,), double.
        """

    @abstractmethod
    def draw(self, component: Tensor, s2: float, generator: torch.Generator) -> Tensor:
        """Draw from N(0, Σ_k + s^2 I), one for each entry of ``component``: (n,) -> (n, d)."""

    @abstractmethod
    def least(self) -> float:
        """The least eigenvalue, or a lower bound of it that is zero only if the eigenvalue is."""


class DiagonalCovariances(Covariances):
    """Variances of independent pixels.

    Shapes: variances (K, d), or (K, 1) for equal ones.
    """

    kind = "diagonal"
    variances: Tensor

    def __init__(self, variances: Tensor, length: int) -> None:
        super().__init__()
        self.length = length
        self.register_buffer("variances", variances)

    def forward(self, v: Tensor, s2: Tensor) -> Solved:
        total = wide(self.variances) + s2[:, None, None]
        logs = total.log()
        return Solved(v / total, logs.expand(*logs.shape[:-1], self.length).sum(-1))

    def draw(self, component: Tensor, s2: float, generator: torch.Generator) -> Tensor:
        std = (self.variances[component] + s2).sqrt()
        return std * standard_normal((len(component), self.length), generator, dtype=std.dtype, device=std.device)

    def least(self) -> float:
        return float(self.variances.min())


class FullCovariances(Covariances):
    """Any covariances, each diagonalised once, so that a scale costs two products with d x d matrices.

    Shapes: covariances (K, d, d).
    """

    kind = "full"
    eigenvalues: Tensor
    eigenvectors: Tensor

    def __init__(self, where: str, covariances: Tensor) -> None:
        super().__init__()
        c = wide(covariances)
        scale = c.abs().amax((-2, -1))
        if bool(((c - c.mT).abs().amax((-2, -1)) > 1e-5 * scale).any()):
            raise ValueError(f"{where}: covariances must be symmetric")
        values, vectors = torch.linalg.eigh(0.5 * (c + c.mT))
        if bool((values[:, 0] < -1e-6 * scale).any()):
            raise ValueError(
                f"{where}: covariances must be positive semi-definite, got the eigenvalue {float(values.min()):.3g}"
            )
        # Below this, what eigh returns is rounding.
        values = torch.where(values > 1e-14 * scale[:, None], values, 0.0)
        self.register_buffer("eigenvalues", values.to(covariances.dtype))
        self.register_buffer("eigenvectors", vectors.to(covariances.dtype))

    def forward(self, v: Tensor, s2: Tensor) -> Solved:
        basis = wide(self.eigenvectors)
        total = wide(self.eigenvalues) + s2[:, None, None]
        rotated = (v.transpose(0, 1) @ basis).transpose(0, 1) / total
        return Solved((rotated.transpose(0, 1) @ basis.mT).transpose(0, 1), total.log().sum(-1))

    def draw(self, component: Tensor, s2: float, generator: torch.Generator) -> Tensor:
        std = (self.eigenvalues + s2).sqrt()[component]
        z = std * standard_normal(tuple(std.shape), generator, dtype=std.dtype, device=std.device)
        out = torch.empty_like(z)
        for k, vectors in enumerate(self.eigenvectors):
            here = component == k
            out[here] = z[here] @ vectors.T
        return out

    def least(self) -> float:
        return float(self.eigenvalues.min())


class LowRankCovariances(Covariances):
    """Σ_k = factors_k factors_k^T + variances_k I, in the eigenbasis of its factors.

    Shapes: factors (K, d, r); variances (K,).
    """

    kind = "low-rank"
    basis: Tensor
    eigenvalues: Tensor
    variances: Tensor

    def __init__(self, factors: Tensor, variances: Tensor) -> None:
        super().__init__()
        u, singular, _ = torch.linalg.svd(wide(factors), full_matrices=False)
        self.register_buffer("basis", u.to(factors.dtype).contiguous())
        self.register_buffer("eigenvalues", singular.square().to(factors.dtype))
        self.register_buffer("variances", variances)

    def forward(self, v: Tensor, s2: Tensor) -> Solved:
        basis, extra = wide(self.basis), wide(self.eigenvalues)
        noise = (wide(self.variances) + s2[:, None])[..., None]
        projected = v.transpose(0, 1) @ basis
        explained = (projected.transpose(0, 1) * (extra / (extra + noise))).transpose(0, 1) @ basis.mT
        logdet = v.shape[-1] * noise[..., 0].log() + torch.log1p(extra / noise).sum(-1)
        return Solved((v - explained.transpose(0, 1)) / noise, logdet)

    def draw(self, component: Tensor, s2: float, generator: torch.Generator) -> Tensor:
        factors = self.basis * self.eigenvalues.sqrt()[:, None, :]
        return _draw_factored(factors, self.variances[:, None] + s2, component, generator)

    def least(self) -> float:
        return float(self.variances.min())


class FactorCovariances(Covariances):
    """Σ_k = factors_k factors_k^T + diag(variances_k), inverted by Woodbury's identity at each scale.

    Shapes: factors (K, d, r); variances (K, d).
    """

    kind = "low-rank"
    factors: Tensor
    variances: Tensor

    def __init__(self, factors: Tensor, variances: Tensor) -> None:
        super().__init__()
        self.register_buffer("factors", factors)
        self.register_buffer("variances", variances)

    def forward(self, v: Tensor, s2: Tensor) -> Solved:
        if len(s2) == 1:
            return self._solve(v, s2)
        # The r x r systems depend on the scale alone: one set of them for each scale that occurs.
        product, logdet = torch.empty_like(v), v.new_empty(v.shape[:2])
        for value in sorted(set(s2.tolist())):
            here = s2 == value
            product[here], logdet[here] = self._solve(v[here], s2.new_tensor([value]))
        return Solved(product, logdet)

    def _solve(self, v: Tensor, s2: Tensor) -> Solved:
        factors = wide(self.factors)
        noise = wide(self.variances) + s2
        scaled = factors / noise[..., None]
        inner = torch.eye(factors.shape[-1], dtype=v.dtype, device=v.device) + factors.mT @ scaled
        root = torch.linalg.cholesky(inner)
        projected = v.transpose(0, 1) @ scaled
        solved = torch.cholesky_solve(projected.mT, root).mT @ scaled.mT
        logdet = noise.log().sum(-1) + 2 * torch.diagonal(root, dim1=-2, dim2=-1).log().sum(-1)
        return Solved(v / noise - solved.transpose(0, 1), logdet[None])

    def draw(self, component: Tensor, s2: float, generator: torch.Generator) -> Tensor:
        return _draw_factored(self.factors, self.variances + s2, component, generator)

    def least(self) -> float:
        return float(self.variances.min())


def _draw_factored(factors: Tensor, variances: Tensor, component: Tensor, generator: torch.Generator) -> Tensor:
    n, (d, rank) = len(component), factors.shape[1:]
    z = standard_normal((n, d + rank), generator, dtype=factors.dtype, device=factors.device)
    out = variances.sqrt()[component] * z[:, :d]
    for k, factor in enumerate(factors):
        here = component == k
        out[here] += z[here, d:] @ factor.T
    return out


def covariances_of(
    where: str, means: Tensor, variances: Tensor | None, covariances: Tensor | None, factors: Tensor | None
) -> Covariances:
    """Build the structure that a mixture's arguments describe.

    Shapes: means (K, C, H, W); the others as in ``GaussianMixture``.
    Raises: ValueError unless exactly one structure is given, of shapes that fit.
    """
    k, d = means.shape[0], means[0].numel()
    given = [
        n for n, a in (("variances", variances), ("covariances", covariances), ("factors", factors)) if a is not None
    ]
    if given not in (["variances"], ["covariances"], ["variances", "factors"]):
        raise ValueError(
            f"{where}: got {' and '.join(given) or 'no covariances'}, "
            "expected variances, covariances, or factors and variances"
        )
    if covariances is not None:
        c = tensor(where, "covariances", covariances)
        same_shape(where, "covariances", tuple(c.shape), (k, d, d))
        return FullCovariances(where, c.to(means))
    v = tensor(where, "variances", variances)
    positive_entries(where, "variances", v, zero=True)
    if tuple(v.shape) not in ((k,), tuple(means.shape)):
        raise ValueError(
            f"{where}: variances have shape {shape_text(tuple(v.shape))}, "
            f"expected ({k},) or {shape_text(tuple(means.shape))}"
        )
    v = v.to(means)
    if factors is None:
        return DiagonalCovariances(v.reshape(k, -1), d)
    f = tensor(where, "factors", factors)
    if f.dim() != 3 or tuple(f.shape[:2]) != (k, d):
        raise ValueError(f"{where}: factors have shape {shape_text(tuple(f.shape))}, expected ({k}, {d}, rank)")
    return LowRankCovariances(f.to(means), v) if v.dim() == 1 else FactorCovariances(f.to(means), v.reshape(k, d))
