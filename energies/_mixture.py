"""The Gaussian mixture."""

import math
from typing import ClassVar, Self, cast

import torch
from torch import Tensor

from potentia._potential import Energy, Pullback, Scales, Sigma
from potentia._tensor import EVENT_DIMS
from potentia._validate import count, positive, same_shape, shape_text, tensor
from potentia.energies._covariance import Solved, covariances_of
from potentia.energies._mixture_fit import Kind, fit_mixture
from potentia.energies._shared import Event, flatten_batch, positive_entries, refuse_singular, wide


class GaussianMixture(Energy):
    """A mixture of K Gaussians over whole images, exact and normalised at every scale.

    U_s(x) = -log sum_k weights_k N(x; mean_k, Σ_k + s^2 I), for real images, computed in double precision. Σ_k is given
    as exactly one of

    - ``variances`` (K,) or (K, C, H, W): independent pixels;
    - ``covariances`` (K, d, d), d = C H W: anything; diagonalised once, after which a scale costs d^2 products;
    - ``factors`` (K, d, r) with ``variances`` (K,) or (K, C, H, W): factors factors^T + variances on the diagonal, at
      d r products a scale.

    Shapes: weights (K,), summing to 1; means (K, C, H, W).
    Units: means and factors in the image's unit, variances in its square; U is in nats.
    Raises: ValueError if weights are not positive or do not sum to 1, if covariances are not symmetric and positive
        semi-definite, if shapes clash or an entry is not finite. Degenerate components are taken, but then scale zero
        is refused whenever it is asked for.
    """

    default_name: ClassVar[str] = "mixture"
    weights: Tensor
    means: Tensor

    def __init__(
        self,
        weights: Tensor,
        means: Tensor,
        *,
        variances: Tensor | None = None,
        covariances: Tensor | None = None,
        factors: Tensor | None = None,
    ) -> None:
        super().__init__()
        m = tensor(self.name, "means", means)
        if m.dim() != 1 + EVENT_DIMS or m.is_complex():
            got = f"shape {shape_text(tuple(m.shape))} and dtype {m.dtype}"
            raise ValueError(f"{self.name}: means have {got}, expected (K, C, H, W), real")
        w = tensor(self.name, "weights", weights).to(m)
        same_shape(self.name, "weights", tuple(w.shape), (m.shape[0],))
        positive_entries(self.name, "weights", w)
        if abs(float(w.sum()) - 1) > 1e-3:
            raise ValueError(f"{self.name}: weights sum to {float(w.sum()):g}, expected 1")
        self.register_buffer("weights", w / w.sum())
        self.register_buffer("means", m)
        self.covariances = covariances_of(self.name, m, variances, covariances, factors)
        self._singular = self.covariances.least() <= 0

    @property
    def event_shape(self) -> Event:
        return tuple(self.means.shape[1:])

    @property
    def is_complex(self) -> bool:
        return False

    @property
    def scales(self) -> Scales:
        """All of them: from 0 to infinity."""
        return 0.0, math.inf

    @property
    def num_components(self) -> int:
        """K."""
        return self.means.shape[0]

    def extra_repr(self) -> str:
        return f"{self.num_components} components, {self.covariances.kind}"

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        logs, _ = self._log_terms(x, self._scale(x, sigma))
        return -logs.logsumexp(-1).reshape(x.shape[:-EVENT_DIMS])

    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        """Components' gradients (Σ_k + s^2 I)^-1 (x - mean_k), averaged by their responsibilities."""
        return self.value_and_grad(x, sigma)[1]

    @torch.no_grad()
    def value_and_grad(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        logs, product = self._log_terms(x, self._scale(x, sigma))
        return -logs.logsumexp(-1).reshape(x.shape[:-EVENT_DIMS]), _average(logs, product).reshape(x.shape).to(x.dtype)

    @torch.no_grad()
    def denoise(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        """Posterior mean of a clean image, x - s^2 grad U_s(x), in double precision throughout."""
        s = self._scale(x, sigma)
        logs, product = self._log_terms(x, s)
        clean = wide(flatten_batch(x)).flatten(1) - s.square()[:, None] * _average(logs, product)
        return clean.reshape(x.shape).to(x.dtype)

    @torch.no_grad()
    def denoise_with_vjp(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Pullback]:
        """The denoiser and ``v -> J v`` in closed form.

        J = I - s^2 H with the Hessian H = sum_k r_k (P_k - p_k p_k^T) + g g^T, where r_k are the responsibilities,
        P_k = (Σ_k + s^2 I)^-1, p_k = P_k (x - mean_k) and g = sum_k r_k p_k.
        """
        s = self._scale(x, sigma)
        logs, product = self._log_terms(x, s)
        share = logs.softmax(-1)
        grad = torch.einsum("nk,nkd->nd", share, product)
        noise = s.square()[:, None]

        @torch.no_grad()
        def pull(v: Tensor) -> Tensor:
            flat = wide(flatten_batch(v)).flatten(1)
            each, _ = self.covariances(flat[:, None].expand(-1, self.num_components, -1), s.square())
            along = torch.einsum("nkd,nd->nk", product, flat)
            curved = torch.einsum("nk,nkd->nd", share, each) - torch.einsum("nk,nkd->nd", share * along, product)
            curved = curved + grad * (grad * flat).sum(-1, keepdim=True)
            return (flat - noise * curved).reshape(v.shape).to(v.dtype)

        clean = wide(flatten_batch(x)).flatten(1) - noise * grad
        return clean.reshape(x.shape).to(x.dtype), pull

    @torch.no_grad()
    def responsibilities(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        """Probabilities of the components given x.

        Shapes: x (*batch, C, H, W) -> (*batch, K).
        """
        logs, _ = self._log_terms(x, self._scale(x, sigma))
        return logs.softmax(-1).reshape(*x.shape[:-EVENT_DIMS], -1)

    def sample(self, generator: torch.Generator, num: int, sigma: float = 0.0) -> Tensor:
        """Draw ``num`` images, smoothed by N(0, sigma^2 I).

        Shapes: returns (num, C, H, W).
        """
        n = count(self.name, "num", num)
        s = 0.0 if sigma == 0 else positive(self.name, "sigma", sigma)
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = self.covariances.draw(component, s**2, generator)
        return self.means[component] + noise.reshape(n, *self.event_shape)

    @classmethod
    def fit(
        cls,
        images: Tensor,
        num_components: int,
        *,
        kind: Kind = "low-rank",
        rank: int = 8,
        seed: int = 0,
        floor: float = 1e-4,
        num_iterations: int = 10,
    ) -> Self:
        """Fit a mixture to images by expectation maximisation; the same seed gives the same mixture.

        "full" and "diagonal" are scikit-learn's ``GaussianMixture`` with those covariances. "low-rank" is a mixture of
        probabilistic principal components: scikit-learn's full-covariance mixture on the first ``rank`` principal
        components gives the first responsibilities, from which ``num_iterations`` rounds of exact EM in the space of
        images follow (fewer where the likelihood stops rising). Each round takes a component's weight and mean from the
        responsibilities, its factors from the ``rank`` leading eigenvectors of its weighted covariance, and its
        variance from the average of the other eigenvalues.

        ``floor`` times the average variance of a pixel is added to the diagonal ("full" and "diagonal") or bounds
        the variances from below ("low-rank").

        Shapes: images (N, C, H, W), real.
        Raises: ValueError for images of another shape or fewer than components; ImportError without scikit-learn.
        Source: Tipping and Bishop 1999; McLachlan and Peel 2000.
        """
        fitted = fit_mixture(
            images, num_components, kind, rank, seed, floor, num_iterations, lambda parts: cls(**parts)._expectation
        )
        return cls(**fitted)

    @torch.no_grad()
    def _expectation(self, x: Tensor) -> tuple[Tensor, float]:
        """Responsibilities (N, K) and the total log likelihood."""
        logs, _ = self._log_terms(x, self._scale(x, None))
        return logs.softmax(-1), float(logs.logsumexp(-1).sum())

    def _scale(self, x: Tensor, sigma: Sigma) -> Tensor:
        """The scale of each image, or the one that all share: (N,) or (1,), double."""
        self.check(x)
        s = self.sigma_of(x, sigma)
        if self._singular:
            refuse_singular(self.name, "a component", s)
        return torch.as_tensor(s, dtype=wide(x.new_empty(0)).dtype, device=x.device).reshape(-1)

    def _log_terms(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Log densities of the weighted components, (N, K), and (Σ_k + s^2 I)^-1 (x - mean_k), (N, K, d)."""
        off = wide(flatten_batch(x)).flatten(1)[:, None] - wide(self.means).flatten(1)
        product, logdet = cast(Solved, self.covariances(off, s.square()))
        misfit = (off * product).sum(-1)
        constant = off.shape[-1] * math.log(2 * math.pi)
        return wide(self.weights).log() - 0.5 * (misfit + logdet + constant), product


def _average(logs: Tensor, product: Tensor) -> Tensor:
    return torch.einsum("nk,nkd->nd", logs.softmax(-1), product)
