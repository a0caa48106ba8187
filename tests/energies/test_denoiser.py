"""The energy of a network: one evaluation, one vector-Jacobian product, nothing else touched."""

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from potentia import energies as en

SCALES = (0.01, 10.0)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Net(nn.Module):
    """A small convolutional denoiser with batch statistics and dropout, which count its calls."""

    def __init__(self, dtype: torch.dtype = torch.float64, *, stateful: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1, dtype=dtype)
        self.norm = nn.BatchNorm2d(6, dtype=dtype) if stateful else nn.GroupNorm(2, 6, dtype=dtype)
        self.last = nn.Conv2d(6, 2, 3, padding=1, dtype=dtype)
        self.calls = 0
        self.seen: list[tuple[torch.Size, torch.Size, torch.dtype]] = []
        for k, p in enumerate(self.parameters()):
            p.data = 0.5 * randn(*p.shape, seed=k, dtype=dtype)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append((x.shape, sigma.shape, sigma.dtype))
        h = torch.tanh(self.norm(self.first(x) / (1 + sigma.reshape(-1, 1, 1, 1))))
        return x + self.last(h)


class Recorder(TorchDispatchMode):
    """Notes which gradients each backward convolution was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[list[bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "convolution_backward" in str(func):
            self.masks.append(list(args[-1]))
        return func(*args, **(kwargs or {}))


def calls(u: en.Denoiser) -> dict[str, Any]:
    return {"grad": u.grad, "value_and_grad": u.value_and_grad, "denoise": u.denoise}


@pytest.mark.parametrize("name", ["grad", "value_and_grad", "denoise"])
def test_one_evaluation_and_no_gradients_of_parameters(name: str) -> None:
    net = Net()
    u, x = en.Denoiser(net, SCALES), randn(3, 2, 5, 4)
    with Recorder() as recorder:
        calls(u)[name](x, 0.3)
    assert net.calls == 1
    # Two convolutions, each asked for the gradient of its input alone.
    assert recorder.masks == [[True, False, False]] * 2
    for p in net.parameters():
        assert p.requires_grad
        assert p.grad is None


def test_the_recorder_sees_gradients_of_parameters() -> None:
    """The planted fault: a plain backward pass asks for all three."""
    u, x = en.Denoiser(Net(), SCALES), randn(3, 2, 5, 4).requires_grad_(True)
    with Recorder() as recorder:
        u(x, 0.3).sum().backward()
    assert recorder.masks == [[True, True, True]] * 2


def test_gradient_is_not_that_of_a_network_without_jacobian() -> None:
    u, x = en.Denoiser(Net(), SCALES), randn(3, 2, 5, 4)
    s = torch.full((3,), 0.3, dtype=torch.float64)
    clean = u.psi(x, s).detach()
    naive = (x - clean) / 0.3**2
    assert float((u.grad(x, 0.3) - naive).abs().max()) > 0.1
    assert float((u.denoise(x, 0.3) - clean).abs().max()) > 0.01


def test_what_psi_gets() -> None:
    net = Net()
    u = en.Denoiser(net, SCALES)
    u.grad(randn(2, 3, 2, 5, 4), 0.3)
    u.grad(randn(2, 3, 2, 5, 4), torch.full((2, 3), 0.3, dtype=torch.float32))
    u.grad(randn(2, 5, 4))
    sizes = [torch.Size([n]) for n in (6, 6, 1)]
    assert net.seen == [(torch.Size([*n, 2, 5, 4]), n, torch.float64) for n in sizes]


@pytest.mark.parametrize(("net_dtype", "x_dtype"), [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_psi_keeps_its_precision(net_dtype: torch.dtype, x_dtype: torch.dtype) -> None:
    net = Net(net_dtype)
    u, x = en.Denoiser(net, SCALES), randn(3, 2, 5, 4, dtype=x_dtype)
    sigma = torch.tensor([0.2, 0.3, 0.4])
    value, grad = u.value_and_grad(x, sigma)
    assert net.seen[0][2] == net_dtype
    assert grad.dtype == x_dtype
    assert u.denoise(x, sigma).dtype == x_dtype
    assert value.dtype == torch.float64


@pytest.mark.parametrize("training", [True, False])
def test_modes_flags_and_parameters_stay(training: bool) -> None:
    net = Net(stateful=True).train(training)
    net.last.weight.requires_grad_(False)
    before = [(p, p.detach().clone(), p.requires_grad) for p in net.parameters()]
    u = en.Denoiser(net, SCALES)
    for call in calls(u).values():
        call(randn(3, 2, 5, 4), 0.3)
    assert net.training == training
    assert all(m.training == training for m in net.modules())
    for p, value, flag in before:
        assert torch.equal(p, value)
        assert p.requires_grad == flag


def test_forward_trains_psi() -> None:
    net = Net()
    u, x = en.Denoiser(net, SCALES), randn(3, 2, 5, 4)
    u(x, torch.tensor([0.1, 0.5, 2.0])).mean().backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in net.parameters())
    assert set(dict(u.named_parameters())) == {f"psi.{n}" for n, _ in net.named_parameters()}
    z = x.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(u(z, 0.3).sum(), z, create_graph=True)
    assert g.requires_grad


def test_new_parameters_are_seen_at_once() -> None:
    net = Net()
    u, x = en.Denoiser(net, SCALES), randn(3, 2, 5, 4)
    before = u.grad(x, 0.3)
    with torch.no_grad():
        net.last.weight.mul_(2)
    assert not torch.allclose(u.grad(x, 0.3), before)


def test_gradients_under_no_grad_and_beside_threads() -> None:
    u, x = en.Denoiser(Net(), SCALES), randn(4, 2, 16, 16)
    want = u.grad(x, 0.3)
    with torch.no_grad():
        assert torch.equal(u.grad(x, 0.3), want)
    results: list[Tensor] = []

    def work() -> None:
        results.extend(u.grad(x, 0.3) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(results) == 80
    assert all(torch.allclose(r, want, rtol=1e-12, atol=1e-12) for r in results)
    assert all(p.requires_grad for p in u.parameters())


def detached(x: Tensor, sigma: Tensor) -> Tensor:
    return x.detach() * 0.5


@pytest.mark.parametrize(
    ("psi", "error", "message"),
    [
        (
            lambda x, s: x[:, :1],
            ValueError,
            r"returned torch.float64 of shape \(3, 1, 5, 4\), expected torch.float64 of sh",
        ),
        (lambda x, s: x + 0j, ValueError, r"returned torch.complex128 of shape \(3, 2, 5, 4\), expected torch.float64"),
        (lambda x, s: None, TypeError, "returned NoneType, expected a tensor"),
    ],
)
def test_a_psi_that_returns_something_else_is_refused(psi: Any, error: type[Exception], message: str) -> None:
    u, x = en.Denoiser(psi, SCALES), randn(3, 2, 5, 4)
    for call in (u.forward, *calls(u).values()):
        with pytest.raises(error, match=message):
            call(x, 0.3)


def test_a_psi_that_hides_its_jacobian_is_refused() -> None:
    weight = torch.ones((), requires_grad=True)
    for psi in (detached, torch.no_grad()(lambda x, s: 0.5 * x), lambda x, s: detached(x, s) * weight):
        with pytest.raises(ValueError, match=r"^denoiser: .*expected"):
            en.Denoiser(psi, SCALES).grad(randn(3, 2, 5, 4), 0.3)


@pytest.mark.parametrize("kind", [en.Denoiser, en.ScoreModel])
def test_bad_arguments_are_refused(kind: Any) -> None:
    with pytest.raises(TypeError, match="must be callable, got int"):
        kind(3, SCALES)
    for scales in ((0.0, 1.0), (2.0, 1.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="expected 0 < low <= high"):
            kind(detached, scales)
    with pytest.raises(TypeError, match="scales must be a pair of numbers"):
        kind(detached, 1.0)
    assert kind(detached, SCALES, shape=(2, 5, 4)).event_shape == (2, 5, 4)
    with pytest.raises(ValueError, match=r"sigma is 20, expected 0\.01 to 10"):
        kind(detached, SCALES).denoise(randn(1, 2, 5, 4), 20.0)


def test_a_score_model_is_its_denoiser() -> None:
    truth = en.Gaussian(0.3, 0.5)
    graphs: list[bool] = []

    def mean(x: Tensor, sigma: Tensor) -> Tensor:
        graphs.append(torch.is_grad_enabled() or x.requires_grad)
        assert x.dim() == 4
        assert sigma.shape == x.shape[:1]
        return truth.denoise(x, sigma)

    u = en.ScoreModel(mean, SCALES)
    for dtype in (torch.float32, torch.float64):
        x = randn(2, 3, 1, 5, 4, dtype=dtype).requires_grad_(True)
        for sigma in (None, 0.4, torch.linspace(0.1, 1, 6).reshape(2, 3)):
            s = 0.01 if sigma is None else sigma
            got = u.denoise(x, sigma)
            torch.testing.assert_close(got, truth.denoise(x, s))
            torch.testing.assert_close(u.grad(x, sigma), truth.grad(x, s), rtol=1e-3, atol=2e-3)
            assert not got.requires_grad
            assert not u.grad(x, sigma).requires_grad
            assert got.dtype == dtype
    assert not any(graphs)
    assert not u.has_value
    for call in (u.forward, u.value_and_grad):
        with pytest.raises(TypeError, match=r"^score: a score-only prior has no value"):
            call(x)
    with pytest.raises(ValueError, match=r"score: .* returned .*shape \(1, 1, 2, 4\)"):
        en.ScoreModel(lambda x, s: x[..., :2, :], SCALES).denoise(randn(1, 1, 5, 4))
