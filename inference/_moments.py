"""Moments of a clean image given a noisy one, and given the measurements too.

Given x = clean + s n, a prior's denoiser knows the mean D of the clean image and, through its Jacobian J, the
covariance C = s^2 J. Taken for a Gaussian, clean ~ N(D, C), a likelihood with the quadratic form (Λ, b, c) turns it
into another Gaussian in closed form; everything here follows from that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from potentia._potential import Energy, Potential, Pullback
from potentia._quadratic import Quadratic
from potentia._random import Generators, standard_normal
from potentia._tensor import inner
from potentia.inference._logdet import LogDet
from potentia.inference._precondition import terms

_FLOOR = 1e-5  # of s^2: no variance of a clean image is taken to be less


def split(where: str, posterior: Potential, like: Tensor) -> tuple[Energy, Quadratic]:
    """The multi-scale prior and the quadratic form of all other terms, in the precision of ``like``.

    Raises: TypeError unless there is exactly one multi-scale energy, of weight one, and every other term has a
        quadratic form.
    """
    priors = [t for t in terms(posterior) if t.multiscale_weight != 0]
    if len(priors) != 1 or not isinstance(priors[0], Energy) or priors[0].multiscale_weight != 1:
        got = ", ".join(t.describe() for t in priors) or "none"
        raise TypeError(f"{where}: expected exactly one multi-scale prior, of weight one, got {got}")
    others = [t for t in terms(posterior) if t.multiscale_weight == 0]
    total: Quadratic | None = None
    for term in others:
        form = term.quadratic()
        if form is None:
            raise TypeError(f"{where}: {term.name} has no quadratic form, expected a linear-Gaussian likelihood")
        total = form if total is None else total + form
    if total is None:
        raise TypeError(f"{where}: the posterior has no likelihood, expected prior + likelihood")
    if total.linear.is_complex():
        raise TypeError(f"{where}: expected real images, got complex ones")
    return priors[0], total.to(like.dtype)


@dataclass(frozen=True, eq=False)
class DenoiserCovariance:
    """A precision a I - V diag(f) V^T with orthonormal V: the inverse of c I + V diag(λ - c) V^T, c = 1 / a.

    Shapes: basis (N, k, C, H, W); variances λ (N, k) and rest c (N,), float64, λ >= c.
    """

    basis: Tensor
    variances: Tensor
    rest: Tensor

    def sharpened(self, precision: Tensor | float) -> "DenoiserCovariance":
        """Add ``precision`` I: what is left of the variances once white noise around the image has been seen."""
        return DenoiserCovariance(self.basis, 1 / (1 / self.variances + precision), 1 / (1 / self.rest + precision))

    def at_most(self, variance: float) -> "DenoiserCovariance":
        """Cut all variances to ``variance``."""
        return DenoiserCovariance(self.basis, self.variances.clamp_max(variance), self.rest.clamp_max(variance))

    def apply(self, x: Tensor) -> Tensor:
        """The covariance times x, (N, C, H, W)."""
        return self._scaled(x, self.rest, self.variances)

    def solve(self, x: Tensor) -> Tensor:
        """The precision times x, (N, C, H, W)."""
        return self._scaled(x, 1 / self.rest, 1 / self.variances)

    def root(self, x: Tensor) -> Tensor:
        """The symmetric root of the precision times x, (N, C, H, W)."""
        return self._scaled(x, self.rest.rsqrt(), self.variances.rsqrt())

    def __getitem__(self, index: Tensor) -> "DenoiserCovariance":
        """Those of the images with these indices."""
        return DenoiserCovariance(self.basis[index], self.variances[index], self.rest[index])

    def _scaled(self, x: Tensor, rest: Tensor, along: Tensor) -> Tensor:
        parts = torch.einsum("nkchw,nchw->nk", self.basis.conj(), x)
        inside = torch.einsum("nk,nkchw->nchw", parts * (along - rest[:, None]).to(x.dtype), self.basis)
        return rest.to(x.dtype)[:, None, None, None] * x + inside


class Gauss(NamedTuple):
    """A guess of the clean image as a Gaussian: mean (N, C, H, W) and covariance."""

    mean: Tensor
    covariance: DenoiserCovariance


class Conditioned:
    """N(mean, C) times a likelihood with a quadratic form: a Gaussian again, with precision C^-1 + Λ.

    ``log_evidence`` is the log of the product's integral: the likelihood of the data under the guess, with the
    constants that the likelihood itself has.

    Shapes: mean (N, C, H, W); log_evidence (N,), float64.
    """

    def __init__(self, guess: Gauss, form: Quadratic, logdet: LogDet) -> None:
        self.guess = guess
        self.form = form
        c = guess.covariance
        self._shift = (1 / c.rest).to(guess.mean.dtype)[:, None, None, None]
        structure = form.structure
        self._solved = structure.solve(c.basis, self._shift[:, None])  # S V, S = (Λ + a I)^-1
        fall = (1 / c.rest[:, None] - 1 / c.variances).clamp_min(0.0)
        self._fall = fall.sqrt()
        seen = torch.einsum("nkchw,nlchw->nkl", c.basis.conj(), structure.apply(self._solved)).real.double()
        seen = 0.5 * (seen + seen.mT)
        # I - F^1/2 V^T S V F^1/2 without the cancellation, for c I - S = c Λ S.
        inner_matrix = torch.diag_embed(c.rest[:, None] / c.variances) + c.rest[:, None, None] * (
            self._fall[:, :, None] * seen * self._fall[:, None, :]
        )
        self._root = torch.linalg.cholesky(inner_matrix)
        slope = form.linear - structure.apply(guess.mean)
        self._move = self.solve(slope)
        self.mean = guess.mean + self._move
        # log det(I + C Λ), by the determinant lemma around the isotropic part.
        logs = (c.variances / c.rest[:, None]).log().sum(1)
        logs = logs + logdet(1 / c.rest) + guess.mean[0].numel() * c.rest.log()
        logs = logs + 2 * torch.diagonal(self._root, dim1=-2, dim2=-1).log().sum(-1)
        self.log_evidence = -form.value(guess.mean) + 0.5 * inner(slope, self._move) - 0.5 * logs

    def solve(self, rhs: Tensor) -> Tensor:
        """The covariance (C^-1 + Λ)^-1 times rhs, (N, C, H, W)."""
        first = self.form.structure.solve(rhs, self._shift)
        along = torch.einsum("nkchw,nchw->nk", self._solved.conj(), rhs).real.double() * self._fall
        inside = torch.cholesky_solve(along[..., None], self._root)[..., 0] * self._fall
        return first + torch.einsum("nk,nkchw->nchw", inside.to(rhs.real.dtype), self._solved)

    def draw(self, generator: Generators) -> Tensor:
        """A draw each, by perturb and solve: (N, C, H, W)."""
        mean = self.mean
        rhs = self.form.structure.noise(generator, mean.shape, dtype=mean.dtype)
        white = standard_normal(mean.shape, generator, dtype=mean.dtype, device=mean.device)
        return mean + self.solve(rhs + self.guess.covariance.root(white))


def low_rank(pull: Pullback, sigma: float, basis: Tensor, probe: Tensor) -> tuple[DenoiserCovariance, Tensor]:
    """The denoiser's covariance s^2 J as low rank plus isotropic, and the basis to begin with at the next scale.

    One round of subspace iteration from ``basis`` with Rayleigh-Ritz values; what is left of the trace, told by
    ``probe``, is spread evenly. Costs k + 1 vector-Jacobian products. J is made symmetric and its negative part is cut.

    Shapes: basis (N, k, C, H, W), orthonormal; probe (C, H, W), of entries 1 and -1.
    Source: Halko, Martinsson and Tropp 2011 (Rayleigh-Ritz); Hutchinson 1990 (trace).
    """
    n, k = basis.shape[:2]
    images = torch.stack([pull(basis[:, j]) for j in range(k)], dim=1)
    small = torch.einsum("nkchw,nlchw->nkl", basis.conj(), images).double()
    values, rotate = torch.linalg.eigh(0.5 * (small + small.mT))
    turned = torch.einsum("nkl,nkchw->nlchw", rotate.to(basis.dtype), basis)
    pushed = torch.einsum("nkl,nkchw->nlchw", rotate.to(basis.dtype), images)
    z = probe.to(basis.dtype).expand(n, *probe.shape)
    z = z - torch.einsum("nk,nkchw->nchw", torch.einsum("nkchw,nchw->nk", turned, z), turned)
    size = inner(z, z)
    # A probe may lie within the basis where that leaves hardly a direction: then the least value there is serves.
    seen = size > 1e-6 * probe.numel()
    rest = torch.where(seen, inner(z, pull(z)) / torch.where(seen, size, 1.0), values[:, 0].clamp_min(0.0))
    s2 = sigma**2
    floor = _FLOOR * s2
    c = (s2 * rest).clamp_min(floor)
    # Directions of less variance than the rest join it.
    variances = torch.maximum(s2 * values, c[:, None])
    return DenoiserCovariance(turned, variances, c), orthonormal(pushed)


def first_basis(pull: Pullback, shape: Sequence[int], rank: int, rounds: int, like: Tensor) -> Tensor:
    """Leading directions of a denoiser's Jacobian, by subspace iteration from fixed random ones.

    Costs ``rank * rounds`` vector-Jacobian products. Shapes: ``shape`` (N, C, H, W); returns (N, k, C, H, W).
    """
    generator = torch.Generator().manual_seed(rank)
    start = torch.randn(1, rank, *shape[1:], generator=generator).to(like)
    basis = orthonormal(start).expand(shape[0], -1, -1, -1, -1)
    for _ in range(rounds):
        basis = orthonormal(torch.stack([pull(basis[:, j]) for j in range(rank)], dim=1))
    return basis


def fixed_probe(shape: Sequence[int], like: Tensor) -> Tensor:
    """Entries 1 and -1, the same at every call: (C, H, W)."""
    signs = torch.randint(2, tuple(shape), generator=torch.Generator().manual_seed(1))
    return (2 * signs - 1).to(like)


def orthonormal(vectors: Tensor) -> Tensor:
    """Orthonormal vectors that span the same: (N, k, C, H, W)."""
    q: Tensor = torch.linalg.qr(vectors.flatten(2).double().mT)[0]
    return q.mT.reshape(vectors.shape).to(vectors.dtype)
