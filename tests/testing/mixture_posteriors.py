"""Posteriors of Gaussian mixtures under linear-Gaussian measurements, written out."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from potentia import Sum, energies, likelihoods


class Truth(NamedTuple):
    """Evidence log p(y), and the components' weights, means (K, d) and covariances (K, d, d) given y."""

    log_evidence: float
    weights: Tensor
    means: Tensor
    covariances: Tensor


def written_out(
    weights: Tensor, means: Tensor, covariances: Tensor, matrix: Tensor, y: Tensor, eta: float, sigma: float
) -> Truth:
    """Bayes' rule for N(means, covariances + sigma^2 I) and y = matrix x + eta n; only rows that measure count."""
    d, m = means.shape[1], len(y)
    eye, noise = torch.eye(d).double(), eta**2 * torch.eye(m).double()
    logs, mus, sigmas = [], [], []
    for w, mu, cov in zip(weights, means, covariances, strict=True):
        prior = cov + sigma**2 * eye
        total = matrix @ prior @ matrix.T + noise
        off = y - matrix @ mu
        solved = torch.linalg.solve(total, off)
        logs.append(w.log() - 0.5 * (off @ solved + torch.logdet(total) + m * math.log(2 * math.pi)))
        gain = torch.linalg.solve(total, matrix @ prior).T
        mus.append(mu + gain @ off)
        sigmas.append(prior - gain @ matrix @ prior)
    log = torch.stack(logs)
    return Truth(float(log.logsumexp(0)), log.softmax(0), torch.stack(mus), torch.stack(sigmas))


class Problem(NamedTuple):
    """A posterior and the truth about it at the annealer's last scale."""

    posterior: Sum
    prior: energies.GaussianMixture
    truth: Truth
    sigma: float

    def weights_of(self, x: Tensor) -> Tensor:
        """Probability of each component given y and each image, (n, K): by the posterior's own mixture."""
        flat = x.reshape(len(x), 1, -1).double()
        t = self.truth
        logs = torch.distributions.MultivariateNormal(t.means, t.covariances).log_prob(flat) + t.weights.log()
        return logs.softmax(-1)


def inpainting(
    seed: int = 0, side: int = 4, eta: float = 0.3, sigma: float = 0.05, spread: float = 0.7, widths: tuple = (0.5, 0.2)
) -> Problem:
    """Two components of unlike width; of an image half is measured, in a place where both explain it."""
    g = torch.Generator().manual_seed(seed)
    shape = (1, side, side)
    d = side**2
    means = spread * torch.randn(2, *shape, generator=g, dtype=torch.float64)
    weights = torch.tensor([0.55, 0.45], dtype=torch.float64)
    variances = torch.tensor(widths, dtype=torch.float64).square()
    mask = torch.zeros(side, side)
    mask[:, : side // 2] = 1
    rows = mask.expand(shape).reshape(-1).nonzero()[:, 0]
    clean = means.mean(0) + 0.2 * torch.randn(shape, generator=g, dtype=torch.float64)
    likelihood = likelihoods.Gaussian(
        likelihoods.Mask(mask.double()).measure(clean, eta, g), likelihoods.Mask(mask.double()), eta
    )
    prior = energies.GaussianMixture(weights, means, variances=variances)
    covariances = variances[:, None, None] * torch.eye(d).double()
    truth = written_out(
        weights, means.flatten(1), covariances, torch.eye(d).double()[rows], likelihood.y.reshape(-1)[rows], eta, sigma
    )
    return Problem(prior + likelihood, prior, truth, sigma)
