"""What comes with the package: whole, a gradient field, and as good as its own header says."""

import pytest
import torch

from potentia import energies
from potentia.testing import check_energy, check_multiscale
from potentia.training._recipe import read_recipe, shipped_recipes

SHIPPED = energies.shipped()
MOST_BYTES = 8_000_000


def test_every_recipe_of_a_shipped_energy_is_shipped_too() -> None:
    assert set(SHIPPED) <= set(shipped_recipes())


@pytest.mark.parametrize("name", SHIPPED)
def test_the_header_says_what_it_is(name: str) -> None:
    info = energies.read_card(name).info
    assert info["name"] == name
    assert {"description", "data", "licence", "images", "sources", "training", "metrics", "code_version"} <= set(info)
    recipe = read_recipe(name)
    assert recipe.energy is not None
    assert info["training"] == recipe.energy.as_dict(), "the weights are not those of the recipe beside them"
    energy = energies.load(name)
    assert energy.scales == recipe.scales
    tensors = sum(t.numel() * t.element_size() for t in energy.state_dict().values())
    assert tensors < MOST_BYTES


@pytest.mark.parametrize("name", SHIPPED)
def test_the_gradient_field_is_conservative(name: str) -> None:
    """Symmetry of the Jacobian in double precision, on small images: the networks take any size."""
    channels = energies.read_card(name).info["images"]["shape"][0]
    dtype = torch.complex64 if energies.read_card(name).info["images"]["complex"] else torch.float32
    x = 0.5 * torch.randn(2, channels, 8, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))
    energy = energies.load(name)
    check_energy(energy, x, 0.3)
    check_multiscale(energy, x, 0.3)


@pytest.mark.parametrize("name", SHIPPED)
def test_it_denoises_as_its_teacher(name: str) -> None:
    metrics = energies.read_card(name).info["metrics"]
    assert metrics["asymmetry"] < 1e-10
    for sigma, value in metrics["psnr"].items():
        assert value > metrics["teacher_psnr"][sigma] - 0.2, sigma
