"""deepinv's samplers on the posteriors known in closed form, given the exact denoiser.

deepinv's images lie in [0, 1]: an image x of a problem becomes u = x / (2 c) + 1/2, c the largest magnitude among 1,000
exact draws of the prior, so that its clipping hardly ever bites. The map is affine, so that the denoiser in u is exact
as well. Importing this module needs deepinv.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import deepinv as dinv  # noqa: TID253
import numpy as np
import torch
from _closed_form import Problem, isotropic_std
from torch import Tensor

from potentia import likelihoods

FINEST = 0.02  # the scale at which the Langevin samplers ask for the prior's score, as that of ours


class Exact(dinv.models.Denoiser):
    """The exact denoiser of a problem's prior, in deepinv's units."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        draws = problem.prior.sample(torch.Generator().manual_seed(0), 1000)
        self.problem, self.half = problem, float(draws.abs().max())

    def into(self, x: Tensor) -> Tensor:
        return x / (2 * self.half) + 0.5

    def out_of(self, u: Tensor) -> Tensor:
        return (u - 0.5) * 2 * self.half

    def forward(self, u: Tensor, sigma: Any, *_: Any, **__: Any) -> Tensor:
        """E[clean | u] for noise of std sigma, one number for all images; differentiable."""
        s = 2 * self.half * float(torch.as_tensor(sigma).flatten()[0])
        prior, x = self.problem.prior, self.out_of(u.double())
        if torch.is_grad_enabled() or torch._C._functorch.peek_interpreter_stack() is not None:
            clean = _Denoised.apply(x, s, prior, _Held())
        else:
            clean = prior.denoise(x, s)
        return self.into(clean).to(u.dtype)


class _Held:
    """Where the forward pass leaves what the backward pass calls."""

    pull: Callable[[Tensor], Tensor]


class _Denoised(torch.autograd.Function):
    """A denoiser whose vector-Jacobian product is known, in the form that ``torch.func.vjp`` takes too."""

    @staticmethod
    def forward(x: Tensor, sigma: float, prior: Any, held: _Held) -> Tensor:
        clean, held.pull = prior.denoise_with_vjp(x, sigma)
        return clean

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.held = inputs[3]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        return ctx.held.pull(v), None, None, None


def physics_of(problem: Problem, exact: Exact) -> tuple[dinv.physics.LinearPhysics, Tensor]:
    """The forward operator and the data in deepinv's units: y / (2 c) + A 1/2, (1, 1, side, side).

    Raises: AssertionError if deepinv's operator is not the problem's.
    """
    operator, side = problem.likelihood.operator, problem.truth.shape[-1]
    noise = dinv.physics.GaussianNoise(problem.noise_std / (2 * exact.half))
    if isinstance(operator, likelihoods.Mask):
        made = dinv.physics.Inpainting(img_size=(1, side, side), mask=operator.mask.double(), noise_model=noise)
    else:
        spot = torch.zeros(1, 1, side, side, dtype=torch.float64)
        spot[..., side // 2, side // 2] = 1.0
        made = dinv.physics.BlurFFT(img_size=(1, side, side), filter=operator(spot), noise_model=noise)
    made = made.double()
    trial = torch.randn(2, 1, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(made.A(trial), operator(trial), rtol=1e-5, atol=1e-5)
    half = torch.full_like(trial[:1], 0.5)
    return made, problem.likelihood.y[None] / (2 * exact.half) + operator(half)


@dataclass(frozen=True)
class DeepInv:
    """One of deepinv's samplers: ``run`` gives images of many chains; ``settings`` stand in the table."""

    name: str
    run: Callable[..., Tensor] = field(repr=False)
    settings: dict[str, Any] = field(default_factory=dict)

    def draw(self, problem: Problem, num: int, seed: int) -> Tensor:
        """One draw of each of ``num`` chains: (num, 1, side, side)."""
        exact = Exact(problem)
        physics, y = physics_of(problem, exact)
        torch.manual_seed(seed)
        np.random.seed(seed)
        u = self.run(exact, physics, y.expand(num, -1, -1, -1).clone(), problem, **self.settings)
        return exact.out_of(u.detach().double())


def langevin(
    exact: Exact, physics: Any, y: Tensor, problem: Problem, *, iterations: int, inner: int, share: float = 0.5
) -> Tensor:
    """ULA for ``inner`` of 1, otherwise SK-ROCK, for so many iterations from the adjoint; the last state.

    The step is ``share`` of the largest that is stable, for the Lipschitz constant of the score, which is known here;
    SK-ROCK's is that of Pereyra, Vargas Mieles and Zygalakis 2020.
    """
    unit, sigma = 2 * exact.half, FINEST / (2 * exact.half)
    isotropic = isotropic_std(problem.name)
    lipschitz = unit**2 * (1 / problem.noise_std**2 + 1 / (isotropic**2 + FINEST**2))
    params = {"alpha": 1.0, "sigma": sigma}
    if inner == 1:
        iterator = dinv.sampling.ULAIterator({**params, "step_size": 2 * share / lipschitz}, clip=None)
    else:
        reach = (inner - 0.5) ** 2 * (2 - 4 / 3 * 0.05) - 1.5
        settings = {**params, "step_size": share * reach / lipschitz, "eta": 0.05, "inner_iter": inner}
        iterator = dinv.sampling.SKRockIterator(settings, clip=None)
    sampler = dinv.sampling.BaseSampling(
        iterator,
        dinv.optim.L2(sigma=problem.noise_std / unit),
        dinv.optim.ScorePrior(exact),
        max_iter=iterations,
        burnin_ratio=1 - 1 / iterations,
        thinning=1,
        history_size=1,
    )
    sampler.sample(y, physics)
    last: Tensor = sampler.get_chain()[-1]["x"]
    return last


def ddrm(exact: Exact, physics: Any, y: Tensor, problem: Problem, **settings: Any) -> Tensor:
    return dinv.sampling.DDRM(exact, **settings)(y, physics)


def diffpir(exact: Exact, physics: Any, y: Tensor, problem: Problem, **settings: Any) -> Tensor:
    sigma = problem.noise_std / (2 * exact.half)
    return dinv.sampling.DiffPIR(exact, dinv.optim.L2(), sigma=sigma, **settings)(y, physics)


def dps(exact: Exact, physics: Any, y: Tensor, problem: Problem, **settings: Any) -> Tensor:
    return dinv.sampling.DPS(exact, minus_one_one=True, **settings)(y, physics)


def guided(exact: Exact, physics: Any, y: Tensor, problem: Problem, *, term: str, steps: int, cg: int) -> Tensor:
    """The reverse process of a variance-preserving SDE, guided by one of deepinv's noisy data terms."""
    fidelity = getattr(dinv.sampling, term)(exact, cg_max_iter=cg)
    double = torch.float64
    model = dinv.sampling.PosteriorDiffusion(
        data_fidelity=fidelity,
        denoiser=exact,
        sde=dinv.sampling.VariancePreservingDiffusion(dtype=double),
        solver=dinv.sampling.DDPMSolver(timesteps=torch.linspace(1, 0, steps, dtype=double)),
        dtype=double,
        minus_one_one=True,
    )
    return model(y, physics)


SAMPLERS = {
    "deepinv ULA": lambda: DeepInv("ULA", langevin, {"iterations": 1000, "inner": 1}),
    "deepinv SK-ROCK": lambda: DeepInv("SKRock", langevin, {"iterations": 100, "inner": 10}),
    "deepinv DDRM": lambda: DeepInv("DDRM", ddrm, {"eta": 1.0, "etab": 1.0}),
    "deepinv DiffPIR": lambda: DeepInv("DiffPIR", diffpir, {"max_iter": 100, "lambda_": 3.0, "zeta": 1.0}),
    "deepinv DPS": lambda: DeepInv("DPS", dps, {"weight": 300.0, "num_steps": 1000}),
    "deepinv PiGDM": lambda: DeepInv(
        "PosteriorDiffusion", guided, {"term": "PiGDMDataFidelity", "steps": 500, "cg": 3}
    ),
    "deepinv moment matching": lambda: DeepInv(
        "PosteriorDiffusion", guided, {"term": "MomentMatchingDataFidelity", "steps": 200, "cg": 10}
    ),
}
