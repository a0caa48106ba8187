"""Training proves itself on a mixture in the plane, whose smoothed scores are known in closed form."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potentia import energies
from potentia._potential import Energy
from potentia.energies._denoiser import Form
from potentia.training import Denoising, Distillation, LogUniform, Objective, ScoreMatching, Settings, fit
from potentia.training._evaluate import noisy_images

SCALES = (0.2, 4.0)
SIGMA_DATA = 0.9
CHECKED = (0.3, 0.5, 1.0, 3.0)
WEIGHTS = [0.5, 0.3, 0.2]
MEANS = [[1.0, 0.4], [-0.8, 0.6], [0.1, -1.0]]
VARIANCES = [[0.15, 0.3], [0.35, 0.15], [0.2, 0.2]]
WAVES = 2.0 ** torch.arange(-2, 3)


class Perceptron(nn.Module):
    """A smooth network of points in the plane, as images of two channels and one pixel."""

    def __init__(self, outputs: int = 2, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2 + 2 * len(WAVES), width), nn.Linear(width, width)])
        self.last = nn.Linear(width, outputs)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        angles = c_noise[:, None] * WAVES
        h = torch.cat([x.flatten(1), angles.cos(), angles.sin()], dim=1)
        for layer in self.layers:
            h = F.silu(layer(h))
        out: Tensor = self.last(h)
        return out[..., None, None]


def mixture() -> energies.GaussianMixture:
    means = torch.tensor(MEANS)[..., None, None]
    variances = torch.tensor(VARIANCES)[..., None, None]
    return energies.GaussianMixture(torch.tensor(WEIGHTS), means, variances=variances)


def draw(number: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    which = torch.multinomial(torch.tensor(WEIGHTS), number, replacement=True, generator=generator)
    stds = torch.tensor(VARIANCES).sqrt()[which]
    centres = torch.tensor(MEANS)[which]
    return (centres + stds * torch.randn(number, 2, generator=generator))[..., None, None]


def psi(form: Form, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    if form == "scalar":
        return energies.EDMPotential(Perceptron(outputs=1), SIGMA_DATA)
    return energies.EDM(Perceptron(), SIGMA_DATA)


def trained(objective: Objective, folder: Path, steps: int, batch: int = 1024) -> Any:
    settings = Settings(steps=steps, batch=batch, learning_rate=1e-2, warmup=20, ema=0.98, noise=LogUniform(*SCALES))
    return fit(objective, draw(50_000, seed=0), settings, folder=folder, progress=False).network


def gradient_errors(energy: Energy) -> dict[float, float]:
    """||grad U - exact|| / ||exact|| over 2,000 noisy points of each scale."""
    exact, points = mixture(), draw(2000, seed=1)
    found = {}
    for s in CHECKED:
        x = noisy_images(points, s)
        wanted = exact.grad(x, s)
        found[s] = float(((energy.grad(x, s) - wanted).square().sum() / wanted.square().sum()).sqrt())
    return found


@pytest.mark.parametrize("form", get_args(Form))
def test_a_distilled_energy_has_the_exact_gradient(form: Form, tmp_path: Path) -> None:
    energy = energies.Denoiser(psi(form, seed=0), SCALES, form=form)  # type: ignore[arg-type]
    before = gradient_errors(energy)
    objective = Distillation(energy, mixture().denoise, SIGMA_DATA)
    after = gradient_errors(trained(objective, tmp_path, steps=1000, batch=512))
    assert max(after.values()) < 0.05, after
    assert before[0.3] > 0.3, "the untrained network is already good: the test proves nothing"


def test_a_teacher_of_other_scales_is_seen(tmp_path: Path) -> None:
    exact = mixture()
    energy = energies.Denoiser(psi("residual", seed=0), SCALES)  # type: ignore[arg-type]
    wrong = Distillation(energy, lambda x, s: exact.denoise(x, 1.1 * s), SIGMA_DATA)
    assert max(gradient_errors(trained(wrong, tmp_path, steps=1000, batch=512)).values()) > 0.07


def test_from_data_to_teacher_to_energy(tmp_path: Path) -> None:
    teacher = trained(Denoising(psi("residual", seed=0), SIGMA_DATA), tmp_path / "teacher", steps=1200, batch=4096)
    taught = gradient_errors(energies.ScoreModel(teacher, SCALES))  # type: ignore[arg-type]
    energy = energies.Denoiser(psi("residual", seed=1), SCALES)  # type: ignore[arg-type]
    energy.psi.load_state_dict(teacher.state_dict())  # type: ignore[attr-defined]
    undistilled = gradient_errors(energy)
    distilled = gradient_errors(trained(Distillation(energy, teacher, SIGMA_DATA), tmp_path / "energy", steps=300))
    # A quarter of the teacher's steps; what the teacher's finite training leaves open the energy cannot know.
    assert max(taught.values()) < 0.1, taught
    assert all(distilled[s] < taught[s] + 0.02 for s in CHECKED), (taught, distilled)
    assert all(undistilled[s] > 3 * distilled[s] for s in CHECKED), (undistilled, distilled)


def test_without_a_teacher_and_comparable_across_scales(tmp_path: Path) -> None:
    offset = energies.ScaleOffset(*SCALES, degree=4)
    energy = energies.Denoiser(psi("residual", seed=0), SCALES, offset=offset)  # type: ignore[arg-type]
    objective = ScoreMatching(energy, SIGMA_DATA, consistency=0.1)
    net = trained(objective, tmp_path, steps=1000)
    assert isinstance(net, energies.Denoiser)
    errors = gradient_errors(net)
    assert all(errors[s] < 0.1 for s in (0.5, 1.0, 3.0)), errors
    net.requires_grad_(False)
    exact, points = mixture(), draw(500, seed=3)
    for low, high in ((0.3, 0.5), (0.5, 1.0), (1.0, 3.0)):
        x = noisy_images(points, low)
        wanted = exact(x, low) - exact(x, high)
        # The exact differences vary by 0.26 to 0.8 nats from point to point.
        assert float((net(x, low) - net(x, high) - wanted).square().mean().sqrt()) < 0.12
        without = energies.Denoiser(net.psi, SCALES)
        assert float((without(x, low) - without(x, high) - wanted).mean().abs()) > 0.3
