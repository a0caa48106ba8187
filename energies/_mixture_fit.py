"""Expectation maximisation for mixtures of Gaussians."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from potentia._validate import count, positive, shape_text, tensor
from potentia.energies._shared import optional, wide

Kind = Literal["low-rank", "diagonal", "full"]
Parts = dict[str, Tensor]
Expectation = Callable[[Tensor], tuple[Tensor, float]]

NEGLIGIBLE = 1e-9


def fit_mixture(
    images: Tensor,
    num_components: int,
    kind: Kind,
    rank: int,
    seed: int,
    floor: float,
    num_iterations: int,
    expectation_of: Callable[[Parts], Expectation],
) -> Parts:
    """Give the constructor's arguments of a mixture fitted to images; see ``GaussianMixture.fit``.

    Raises: ValueError for images of a wrong shape, too few of them, or an unknown kind.
    """
    where = "mixture: fit"
    data = tensor(where, "images", images)
    k, q = count(where, "num_components", num_components), count(where, "rank", rank)
    count(where, "num_iterations", num_iterations, least=0)
    if data.dim() != 4 or data.is_complex():
        got = f"shape {shape_text(tuple(data.shape))} and dtype {data.dtype}"
        raise ValueError(f"{where}: images have {got}, expected (N, C, H, W), real")
    n, event, d = data.shape[0], data.shape[1:], data[0].numel()
    if n < max(2, k):
        raise ValueError(f"{where}: got {n} images, expected at least {max(2, k)}")
    if kind not in ("low-rank", "diagonal", "full"):
        raise ValueError(f"{where}: kind is {kind!r}, expected 'low-rank', 'diagonal' or 'full'")
    x = wide(data).cpu().flatten(1)
    spread = float(x.var(0, correction=0).mean())
    least = max(positive(where, "floor", floor) * spread, torch.finfo(torch.float32).tiny)
    if kind == "low-rank":
        parts = _low_rank(x, event, k, min(q, n - 1, max(d - 1, 1)), seed, least, num_iterations, expectation_of)
    else:
        parts = _sklearn_mixture(x, event, k, kind, seed, least)
    return {name: t.to(data) for name, t in parts.items()}


def _sklearn(x: Any, k: int, covariance_type: str, seed: int, floor: float) -> Any:
    mixture = optional("sklearn.mixture", "fit", "GaussianMixture.fit").GaussianMixture
    return mixture(k, covariance_type=covariance_type, random_state=seed, reg_covar=floor, max_iter=200).fit(x)


def _sklearn_mixture(x: Tensor, event: torch.Size, k: int, kind: Kind, seed: int, floor: float) -> Parts:
    model = _sklearn(x.numpy(), k, "full" if kind == "full" else "diag", seed, floor)
    spread = torch.as_tensor(model.covariances_)
    means = torch.as_tensor(model.means_).reshape(k, *event)
    parts = {"weights": torch.as_tensor(model.weights_), "means": means}
    return {**parts, "covariances": spread} if kind == "full" else {**parts, "variances": spread.reshape(k, *event)}


def _low_rank(
    x: Tensor,
    event: torch.Size,
    k: int,
    rank: int,
    seed: int,
    floor: float,
    num_iterations: int,
    expectation_of: Callable[[Parts], Expectation],
) -> Parts:
    values, vectors = _leading(x - x.mean(0), rank)
    scores = ((x - x.mean(0)) @ vectors).numpy()
    model = _sklearn(scores, k, "full", seed, max(floor, 1e-6 * float(values.mean()) / x.shape[0]))
    parts = _maximise(x, torch.as_tensor(model.predict_proba(scores)), event, rank, floor)
    last = -float("inf")
    for _ in range(num_iterations):
        responsibilities, likelihood = expectation_of(parts)(x.reshape(-1, *event))
        if likelihood - last < 1e-6 * abs(likelihood):
            break
        last = likelihood
        parts = _maximise(x, responsibilities, event, rank, floor)
    return parts


def _maximise(x: Tensor, responsibilities: Tensor, event: torch.Size, rank: int, floor: float) -> Parts:
    """One M step of a mixture of probabilistic principal components (Tipping and Bishop 1999, appendix C)."""
    mass = responsibilities.sum(0).clamp(min=NEGLIGIBLE)
    means = (responsibilities.T @ x) / mass[:, None]
    factors, variances = [], []
    for share, mean, weight in zip(responsibilities.T, means, mass, strict=True):
        near = share > NEGLIGIBLE
        rows = (share[near] / weight).sqrt()[:, None] * (x[near] - mean)
        values, vectors = _leading(rows, rank)
        left = (rows.square().sum() - values.sum()).clamp(min=0)
        variance = torch.clamp(left / (x.shape[1] - rank), min=floor)
        factors.append(vectors * (values - variance).clamp(min=0).sqrt())
        variances.append(variance)
    return {
        "weights": mass / mass.sum(),
        "means": means.reshape(-1, *event),
        "factors": torch.stack(factors),
        "variances": torch.stack(variances),
    }


def _leading(rows: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The ``rank`` greatest eigenvalues of rows^T rows and their eigenvectors, padded by zeros where there are fewer.

    Shapes: rows (n, d) -> (rank,), (d, rank).
    """
    n, d = rows.shape
    if n < d:
        values, vectors = torch.linalg.eigh(rows @ rows.T)
        keep = values > 1e-12 * values.max().clamp(min=torch.finfo(values.dtype).tiny) if n else values > 0
        values, vectors = values[keep], rows.T @ (vectors[:, keep] / values[keep].sqrt())
    else:
        values, vectors = torch.linalg.eigh(rows.T @ rows)
    values, vectors = values.flip(0)[:rank].clamp(min=0), vectors.flip(1)[:, :rank]
    short = rank - len(values)
    return torch.nn.functional.pad(values, (0, short)), torch.nn.functional.pad(vectors, (0, short))
