"""What a potential gets for free from its base class: gradients, names, refusals, operators, the printed tree."""

import copy
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import potentia as pt
from potentia import energies
from potentia._algebra import Scaled
from potentia._potential import Potential, ScoreOnly, Sigma
from potentia._tensor import sum_event

SHAPE = (1, 4, 3)


def image(*batch: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*batch, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Quartic(Potential):
    """Only what must be given: the value."""

    default_name: ClassVar[str] = "quartic"

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        self.check(x)
        return sum_event(x.abs().pow(4)) / 4


class Shrinking(ScoreOnly):
    @property
    def scales(self) -> tuple[float, float]:
        return 0.1, 10.0

    def denoise(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return x / (1 + self.sigma_of(x, sigma) ** 2)


def test_gradient_comes_from_autograd() -> None:
    x = image(2, 3)
    value, grad = Quartic().value_and_grad(x)
    torch.testing.assert_close(grad, x**3)
    torch.testing.assert_close(value, sum_event(x**4) / 4)
    assert value.shape == (2, 3)


def test_gradient_of_complex_images_is_the_real_part_plus_i_times_the_imaginary() -> None:
    x = torch.complex(image(2), image(2, seed=1))
    torch.testing.assert_close(Quartic().grad(x), x.abs().square() * x)


def test_the_callers_tensor_is_left_alone_and_no_graph_remains() -> None:
    x = image(2).requires_grad_(True)
    value, grad = Quartic().value_and_grad(x)
    assert x.grad is None
    assert not value.requires_grad
    assert not grad.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(Quartic().grad(x), grad)


def test_a_name_is_an_identifier_and_a_copy_shares_tensors() -> None:
    p = energies.Gaussian(torch.zeros(SHAPE), 1.0)
    q = p.named("prior")
    assert (p.name, q.name) == ("gaussian", "prior")
    assert q.mean is p.mean
    with pytest.raises(ValueError, match=r"gaussian: a name must be an identifier, got 'two words'"):
        p.named("two words")


def test_a_copy_under_another_name_has_registries_of_its_own() -> None:
    p = energies.Gaussian(torch.zeros(SHAPE), 1.0)
    q = p.named("prior")
    q.register_buffer("more", torch.ones(1))
    assert "more" not in dict(p.named_buffers())


def test_images_of_another_shape_or_field_are_refused() -> None:
    p = energies.Gaussian(torch.zeros(SHAPE), 1.0)
    with pytest.raises(ValueError, match=r"gaussian: x has shape \(1, 4, 4\), expected \(\*batch, 1, 4, 3\)"):
        p(torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match=r"gaussian: x has dtype torch.complex64, expected a real one"):
        p(torch.zeros(SHAPE, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"quartic: x has shape \(4, 3\), expected \(\*batch, C, H, W\)"):
        Quartic()(torch.zeros(4, 3))


@pytest.mark.parametrize("other", [1, 0.5, "tv", None, torch.zeros(3)])
def test_only_potentials_add(other: object) -> None:
    with pytest.raises(TypeError):
        Quartic() + other  # type: ignore[operator]
    with pytest.raises(TypeError):
        Quartic() - other  # type: ignore[operator]


@pytest.mark.parametrize("weight", ["2", None, 1j, True, torch.ones(2), Quartic()])
def test_only_real_numbers_scale(weight: object) -> None:
    with pytest.raises(TypeError):
        Quartic() * weight  # type: ignore[operator]
    with pytest.raises(TypeError):
        Quartic() / weight  # type: ignore[operator]


@pytest.mark.parametrize("weight", [2, 2.0, np.float32(2.0), np.int64(2), torch.tensor(2.0)])
def test_numbers_of_every_kind_scale_from_either_side(weight: object) -> None:
    x = image(2)
    for scaled in (Quartic() * weight, weight * Quartic()):  # type: ignore[operator]
        assert isinstance(scaled, Scaled)
        torch.testing.assert_close(scaled(x), 2 * Quartic()(x))
    torch.testing.assert_close((Quartic() / weight)(x), Quartic()(x) / 2)  # type: ignore[operator]


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_are_finite(weight: float) -> None:
    with pytest.raises(ValueError, match="quartic: the weight must be finite"):
        weight * Quartic()


def test_division_by_zero_names_the_potential() -> None:
    with pytest.raises(ZeroDivisionError, match="quartic"):
        Quartic() / 0


def test_multiples_collapse_and_keep_the_name() -> None:
    once = 3.0 * (2.0 * Quartic())
    assert isinstance(once, Scaled)
    assert once.weight == 6.0
    assert isinstance(once.term, Quartic)
    assert once.name == "quartic"
    assert (3.0 * (2.0 * Quartic()).named("mine")).name == "mine"


def test_score_only_priors_have_gradients_but_refuse_values() -> None:
    p, x = Shrinking(), image(2)
    assert not p.has_value
    torch.testing.assert_close(p.grad(x, 2.0), x / 5)
    for call in (p.forward, p.value_and_grad):
        with pytest.raises(TypeError, match="score: a score-only prior has no value"):
            call(x, 2.0)
    assert not (p + Quartic()).has_value
    with pytest.raises(TypeError, match="no value"):
        (p + Quartic())(x, 2.0)
    torch.testing.assert_close((p + Quartic()).grad(x, 2.0), x / 5 + x**3)


def test_sigma_is_a_number_within_the_scales_or_one_per_entry() -> None:
    p, x = Shrinking(), image(2, 3)
    assert p.sigma_of(x, None) == 0.1
    each = torch.tensor([[0.1, 1.0, 10.0]] * 2)
    spread = p.sigma_of(x, each)
    assert isinstance(spread, Tensor)
    assert spread.shape == (2, 3, 1, 1, 1)
    assert spread.dtype == x.dtype
    for bad in (0.05, 11.0, float("nan"), -1.0, torch.tensor([[0.1, 1.0, 11.0]] * 2)):
        with pytest.raises(ValueError, match=r"score: sigma is .*expected 0.1 to 10"):
            p.grad(x, bad)
    with pytest.raises(ValueError, match=r"score: sigma has shape \(3,\), expected a number or \(2, 3\)"):
        p.grad(x, torch.ones(3))


def test_a_schedule_in_single_precision_may_miss_the_end_by_a_rounding() -> None:
    p, x = Shrinking(), image(2)
    p.grad(x, float(torch.tensor(0.1, dtype=torch.float32)) * (1 - 1e-7))
    p.grad(x, 10.0 * (1 + 1e-7))


def test_an_energy_without_scales_does_not_denoise() -> None:
    with pytest.raises(ValueError, match="tv: has no noise scales"):
        energies.TotalVariation().denoise(image(), 0.5)


def test_a_multiple_of_an_energy_does_not_pretend_to_denoise() -> None:
    assert not hasattr(0.5 * Shrinking(), "denoise")


def test_the_tree_shows_terms_weights_scales_and_shapes() -> None:
    text = repr(energies.Gaussian(torch.zeros(SHAPE), 2.0) + 0.5 * Quartic() + Shrinking())
    lines = text.splitlines()
    assert lines[0] == "Sum of 3 terms"
    assert lines[1].startswith("├─ gaussian: Gaussian(std=2, (1, 4, 3), real, scales 0 to inf")
    assert lines[2] == "├─ quartic: 0.5 * Quartic()"
    assert lines[3] == "└─ score: Shrinking(scales 0.1 to 10)"


def test_abstract_classes_cannot_be_made() -> None:
    for cls in (pt.Potential, pt.Energy, pt.Likelihood, pt.ScoreOnly):
        with pytest.raises(TypeError, match="abstract"):
            cls()  # type: ignore[abstract]


def test_deep_copies_are_independent() -> None:
    p = energies.Gaussian(torch.zeros(SHAPE), 1.0) + Quartic()
    q = copy.deepcopy(p).to(torch.float64)
    assert next(p.buffers()).dtype == torch.float32
    assert list(q.terms) == list(p.terms)
