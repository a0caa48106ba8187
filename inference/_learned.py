"""Preconditioners learned in the warm-up, of all chains together.

The estimate minimises the Fisher divergence between the posterior, seen in coordinates that P makes white, and a
standard normal one: P is the geometric mean of the covariance of the draws and of the inverse covariance of the
gradients, P Cov(g) P = Cov(x). On a Gaussian posterior g is linear in x, so that P is exact as soon as there are more
draws than dimensions, before the chains are stationary, where the covariance of the draws alone is noisy still.

Source: Seyboldt, Carlson and Carpenter 2026 (arXiv 2603.18845); Titsias 2023 (arXiv 2305.14442) on gradients.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from potentia._validate import shape_text
from potentia.inference._covariance import Dense, LowRank
from potentia.inference._metric import Metric, metric_of
from potentia.inference._precondition import Preconditioner
from potentia.inference._protocol import ADAPTED

STATISTICS = f"{ADAPTED}statistics_"  # what the warm-up alone needs
FIRST_WINDOW = 16
MOST_DENSE = 4096
_LEAST_ENSEMBLE = 4
_RIDGE = 1e-6
_SHRINK = 0.1
_Memory = Mapping[str, Tensor]


class Kind(StrEnum):
    """What is learned: the diagonal; a diagonal and a few directions; every entry."""

    DIAGONAL = "diagonal"
    LOW_RANK = "low-rank"
    DENSE = "dense"

    @classmethod
    def parse(cls, where: str, kind: "str | Kind") -> "Kind":
        """Return the kind of that name.

        Raises: ValueError that lists the names there are.
        """
        try:
            return cls(kind)
        except ValueError:
            names = ", ".join(map(repr, map(str, cls)))
            raise ValueError(
                f"{where}: preconditioner is {kind!r}, expected a Preconditioner or one of {names}"
            ) from None


@dataclass(frozen=True)
class Learner:
    """Learns P from the draws and gradients of all chains, in windows that double in length.

    A window's end replaces P by what the window alone says, so that what the chains did early on is forgotten.
    "dense" keeps d^2 numbers four times over; "low-rank" the last ``4 rank`` draws and gradients, of which it takes
    ``rank`` directions, those in which P differs most from its diagonal.

    Shapes: draws and gradients (chains, C, H, W); d = C H W.
    """

    where: str
    kind: Kind
    rank: int = 16

    def begin(self, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
        """First guess from the spread of the starting points and their gradients, one without them; no statistics yet.

        Raises: ValueError for images too large for a dense covariance.
        """
        d = x[0].numel()
        if self.kind is Kind.DENSE and d > MOST_DENSE:
            raise ValueError(
                f"{self.where}: a dense preconditioner of images {shape_text(tuple(x.shape[1:]))} has {d}^2 entries, "
                f"expected {MOST_DENSE} pixels at most; 'low-rank' or 'diagonal' take more"
            )
        if len(x) >= _LEAST_ENSEMBLE:
            scale = _scale(*(_wide(t).flatten(1).var(0) for t in (x, grad)))
        else:
            scale = torch.ones(d, dtype=torch.float64, device=x.device)
        return self._product(scale, x) | self.nothing_seen(x)

    def nothing_seen(self, x: Tensor) -> dict[str, Tensor]:
        """Statistics at the beginning of a window."""
        d, kind = x[0].numel(), torch.complex128 if x.is_complex() else torch.float64
        held = {"count": torch.zeros((), dtype=torch.int64), "mean": torch.zeros(2, d, dtype=kind, device=x.device)}
        if self.kind is Kind.DENSE:
            held["square"] = torch.zeros(2, d, d, dtype=kind, device=x.device)
        else:
            held["square"] = torch.zeros(2, d, dtype=torch.float64, device=x.device)
        if self.kind is Kind.LOW_RANK:
            held["recent"] = torch.zeros(2, 4 * self.rank, d, dtype=x.dtype, device=x.device)
        return {STATISTICS + name: t for name, t in held.items()}

    def observe(self, memory: _Memory, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
        """Add one step of all chains to the statistics.

        Source: Chan, Golub and LeVeque 1983, the merging of means and sums of squares.
        """
        rows = torch.stack([_wide(t).flatten(1) for t in (x, grad)])
        count, mean, square = (memory[STATISTICS + name] for name in ("count", "mean", "square"))
        seen, new = int(count), len(x)
        centre = rows.mean(1)
        off, shift = rows - centre[:, None], centre - mean
        weight = seen * new / (seen + new)
        if self.kind is Kind.DENSE:
            square = square + off.mT @ off.conj() + weight * shift[:, :, None] * shift[:, None].conj()
        else:
            square = square + off.abs().square().sum(1) + weight * shift.abs().square()
        out = {"count": count + new, "mean": mean + shift * (new / (seen + new)), "square": square}
        if self.kind is Kind.LOW_RANK:
            recent = memory[STATISTICS + "recent"]
            places = torch.arange(seen, seen + min(new, recent.shape[1]), device=x.device) % recent.shape[1]
            out["recent"] = recent.index_copy(1, places, rows[:, : len(places)].to(recent.dtype))
        return {STATISTICS + name: t for name, t in out.items()}

    def learn(self, memory: _Memory, x: Tensor) -> dict[str, Tensor]:
        """P from the statistics, which are forgotten.

        Where there are fewer draws than dimensions, both covariances are shrunk towards the diagonal's.
        """
        seen, square = int(memory[STATISTICS + "count"]), memory[STATISTICS + "square"]
        if self.kind is Kind.DENSE:
            scale = _scale(*(s.diagonal().real for s in square))
            d = len(scale)
            white = torch.stack([square[0] / torch.outer(scale, scale), square[1] * torch.outer(scale, scale)]) / seen
            p = geometric_mean(white[0], white[1], _RIDGE + _SHRINK * max(0.0, 1 - seen / (2 * d)) * d / seen)
            return self._dense(scale[:, None] * p * scale, x) | self.nothing_seen(x)
        scale = _scale(square[0], square[1])
        product = self._product(scale, x)
        if self.kind is Kind.LOW_RANK:
            product |= self._directions(memory, scale, seen, x)
        return product | self.nothing_seen(x)

    def metric(self, memory: _Memory) -> Metric:
        """The metric of the P that a memory holds."""
        held = {name: memory[ADAPTED + name] for name in ("scale", "vectors", "values") if ADAPTED + name in memory}
        if self.kind is Kind.DENSE:
            dense = Dense(memory[f"{ADAPTED}covariance"], memory[f"{ADAPTED}factor"])
            return metric_of(Preconditioner(dense))
        if self.kind is Kind.LOW_RANK:
            return metric_of(Preconditioner(LowRank(**held)))
        s = held["scale"]
        variance = s.square()
        return Metric(lambda g: variance * g, lambda w: s * w[0], lambda v: v / variance)

    def _product(self, scale: Tensor, x: Tensor) -> dict[str, Tensor]:
        """What the memory keeps of a diagonal P."""
        if self.kind is Kind.DENSE:
            return self._dense(torch.diag(scale.square()), x)
        out = {f"{ADAPTED}scale": scale.to(x.real.dtype).reshape(x.shape[1:])}
        if self.kind is Kind.LOW_RANK:
            rank = min(self.rank, len(scale))
            out[f"{ADAPTED}vectors"] = torch.eye(len(scale), rank, dtype=x.dtype, device=x.device)
            out[f"{ADAPTED}values"] = torch.ones(rank, dtype=x.real.dtype, device=x.device)
        return out

    def _dense(self, covariance: Tensor, x: Tensor) -> dict[str, Tensor]:
        covariance = (covariance + covariance.mH) / 2
        factor = torch.linalg.cholesky(covariance)
        return {f"{ADAPTED}covariance": covariance.to(x.dtype), f"{ADAPTED}factor": factor.to(x.dtype)}

    def _directions(self, memory: _Memory, scale: Tensor, seen: int, x: Tensor) -> dict[str, Tensor]:
        recent = _wide(memory[STATISTICS + "recent"])
        recent = recent[:, : min(seen, recent.shape[1])]
        rows = (recent - recent.mean(1, keepdim=True)) * torch.stack([1 / scale, scale])[:, None]
        n, d = rows.shape[1:]
        basis = _span(rows.flatten(0, 1))
        along = rows @ basis.conj()
        white = along.mT @ along.conj() / n
        ridge = _RIDGE + _SHRINK * max(0.0, 1 - n / (2 * d)) * d / n
        # Most directions are to be left as the diagonal has them: what they have in common goes into its scale.
        centre = torch.linalg.eigvalsh(geometric_mean(white[0], white[1], ridge)).log().median().exp()
        p = geometric_mean(white[0] / centre, white[1] * centre, ridge)
        values, vectors = torch.linalg.eigh(p)
        rank = min(self.rank, d)
        kept = values.log().abs().argsort(descending=True)[:rank]
        found = basis @ vectors[:, kept]
        missing = rank - found.shape[1]
        if missing > 0:  # fewer draws than directions asked for
            found = torch.cat([found, found.new_zeros(d, missing)], dim=1)
        one = torch.ones(max(missing, 0), dtype=values.dtype, device=values.device)
        out = {"vectors": found.to(x.dtype), "values": torch.cat([values[kept], one]).to(x.real.dtype)}
        out["scale"] = (scale * centre.sqrt()).to(x.real.dtype).reshape(x.shape[1:])
        return {ADAPTED + name: t for name, t in out.items()}


def ends_window(steps: int) -> bool:
    """Whether a window ends after so many steps of adaptation: 16, 32, 64, 128 and so on."""
    return steps >= FIRST_WINDOW and (steps & (steps - 1)) == 0


def geometric_mean(draws: Tensor, gradients: Tensor, ridge: float) -> Tensor:
    """The P with ``P G P = X`` for covariances X of draws and G of gradients, each with a ridge added.

    Shapes: (d, d), Hermitian.
    Source: Bhatia 2007, section 4.1: X # G^-1 = L^-H (L^H X L)^(1/2) L^-1 with G = L L^H.
    """
    eye = torch.eye(len(draws), dtype=draws.dtype, device=draws.device)
    lower = torch.linalg.cholesky(gradients + ridge * eye)
    middle = lower.mH @ (draws + ridge * eye) @ lower
    values, vectors = torch.linalg.eigh((middle + middle.mH) / 2)
    half: Tensor = torch.linalg.solve_triangular(lower.mH, vectors * values.clamp_min(0).sqrt().sqrt(), upper=True)
    return half @ half.mH


def _scale(draws: Tensor, gradients: Tensor) -> Tensor:
    """The root of the diagonal P = sqrt(Var(x) / Var(g)); one where either vanishes."""
    ratio = (draws / gradients).sqrt().sqrt()
    return torch.where(torch.isfinite(ratio) & (ratio > 0), ratio, 1.0)


def _span(rows: Tensor) -> Tensor:
    """An orthonormal basis of what the rows span, (d, k)."""
    gram = rows.conj() @ rows.mT
    values, vectors = torch.linalg.eigh(gram)
    kept = values > 1e-10 * values[-1]
    basis: Tensor = rows.mT @ (vectors[:, kept] * values[kept].rsqrt())
    return basis


def _wide(t: Tensor) -> Tensor:
    return t.to(torch.complex128 if t.is_complex() else torch.float64)
