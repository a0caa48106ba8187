"""A dtype names the precision: real buffers stay real and complex ones complex, in potentials and operators alike."""

import copy

import pytest
import torch
from torch import nn

from potentia import energies, likelihoods
from potentia._module import Module

SHAPE = (1, 4, 3)


class Holder(Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("real", torch.ones(2))
        self.register_buffer("field", torch.full((2,), 1 + 2j))
        self.register_buffer("index", torch.arange(2))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("nothing", None)
        self.weight = nn.Parameter(torch.ones(2))


def dtypes(module: nn.Module) -> dict[str, torch.dtype]:
    return {k: t.dtype for k, t in [*module.named_buffers(), *module.named_parameters()]}


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_a_dtype_real_or_complex_names_the_precision(dtype: torch.dtype) -> None:
    m = Holder()
    assert m.to(dtype) is m
    assert dtypes(m) == {
        "real": torch.float64,
        "field": torch.complex128,
        "index": torch.int64,
        "flags": torch.bool,
        "weight": torch.float64,
    }
    assert torch.equal(m.field, torch.full((2,), 1 + 2j, dtype=torch.complex128))


def test_double_and_float_go_there_and_back() -> None:
    m = Holder()
    before = copy.deepcopy(m)
    assert m.double() is m
    assert m.field.dtype == torch.complex128
    assert m.float() is m
    assert dtypes(m) == dtypes(before)
    assert torch.equal(m.field, before.field)


def test_a_device_alone_changes_no_dtype() -> None:
    m = Holder()
    assert dtypes(m.to("cpu")) == dtypes(Holder())
    assert dtypes(m.to(torch.device("cpu"), torch.float64))["field"] == torch.complex128


def test_a_tensor_to_follow_sets_the_precision() -> None:
    assert dtypes(Holder().to(torch.zeros(1, dtype=torch.float64)))["field"] == torch.complex128


def test_parameters_stay_parameters_and_trainable() -> None:
    m = Holder().to(torch.float64)
    assert isinstance(m.weight, nn.Parameter)
    assert m.weight.requires_grad


def test_imaginary_parts_survive_in_potentials_and_operators() -> None:
    g = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 4, 3, generator=g, dtype=torch.complex64)
    prior = energies.Gaussian(torch.randn(SHAPE, generator=g, dtype=torch.complex64), 0.5)
    sense = likelihoods.Sense(maps)
    data = likelihoods.Gaussian(sense(torch.randn(SHAPE, generator=g, dtype=torch.complex64)), sense, 0.1)
    x = torch.randn(2, *SHAPE, generator=g, dtype=torch.complex64)
    posterior = prior + data
    want = posterior.grad(x)
    posterior = copy.deepcopy(posterior).to(torch.float64)
    assert posterior.grad(x.to(torch.complex128)).dtype == torch.complex128
    error = (posterior.grad(x.to(torch.complex128)) - want).abs().max() / want.abs().max()
    # Sums of two dozen terms in single precision.
    assert float(error) < 1e-5
    assert torch.equal(posterior.terms["gaussian"].mean.imag, prior.mean.imag.double())


def test_a_form_made_before_a_move_is_not_kept() -> None:
    g = torch.Generator().manual_seed(0)
    data = likelihoods.Gaussian(torch.randn(SHAPE, generator=g), likelihoods.GaussianBlur(0.8, SHAPE), 0.1)
    assert data.quadratic().structure.apply(torch.zeros(SHAPE)).dtype == torch.float32
    wide = copy.deepcopy(data).to(torch.float64)
    assert wide.quadratic().structure.apply(torch.zeros(SHAPE, dtype=torch.float64)).dtype == torch.float64
    assert wide.quadratic().linear.dtype == torch.float64


def test_a_state_dict_goes_round() -> None:
    a, b = Holder(), Holder()
    with torch.no_grad():
        a.field.mul_(1j)
    b.load_state_dict(a.state_dict())
    assert torch.equal(a.field, b.field)
