"""Every linear physics of deepinv that can be made offline, as an operator; some that are not linear, as models."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from potentia import likelihoods
from potentia.testing import check_forward_model, check_operator

deepinv = pytest.importorskip("deepinv", reason="deepinv is not installed: its physics cannot be adapted")
physics = deepinv.physics
# deepinv deprecates arguments and warns of its defaults while it makes physics; what is tested comes after.
pytestmark = pytest.mark.filterwarnings("ignore")

Make = Callable[[], Any]
PLANE = (12, 8)
IMAGE, COLOUR = (1, *PLANE), (3, *PLANE)


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def coils(count: int = 3) -> torch.Tensor:
    return torch.complex(rand(1, count, *PLANE), rand(1, count, *PLANE, seed=1))


def mask(*shape: int) -> torch.Tensor:
    return (rand(*shape) < 0.6).float()


def kernel(*shape: int) -> torch.Tensor:
    return rand(*shape) + 0.1


def blur(padding: str, **options: Any) -> Make:
    return lambda: physics.Blur(filter=kernel(1, 1, 3, 4), padding=padding, **options)


def down(padding: str) -> Make:
    return lambda: physics.Downsampling(img_size=IMAGE, filter=kernel(1, 1, 3, 3), factor=2, padding=padding)


def up(padding: str) -> Make:
    return lambda: physics.Upsampling(img_size=(1, 24, 16), filter=kernel(1, 1, 4, 4), factor=2, padding=padding)


def tomography(**options: Any) -> Make:
    return lambda: physics.Tomography(angles=7, img_width=12, **options)


def varying(padding: str) -> Make:
    return lambda: physics.SpaceVaryingBlur(
        filters=kernel(1, 1, 2, 3, 3), multipliers=rand(1, 1, 2, *PLANE), padding=padding
    )


def ultrasound() -> Any:
    return physics.UltrasoundPlaneWave(
        PLANE,
        angles=torch.tensor([-0.1, 0.0, 0.1]),
        element_positions=torch.stack([torch.linspace(-5e-3, 5e-3, 6), torch.zeros(6)], 1),
        n_samples=64,
        sampling_frequency=4e6,
        pixel_size=(1e-3, 1e-3),
    )


def radio() -> Any:
    return physics.RadioInterferometry(img_size=PLANE, samples_loc=(rand(2, 30) - 0.5) * 2 * math.pi)


def born() -> Any:
    n, points = 8, 5
    axis = torch.linspace(-0.5, 0.5, n)
    y, x = (t.flatten() for t in torch.meshgrid(axis, axis, indexing="ij"))
    angle = torch.linspace(0, 2 * math.pi, points + 1)[:-1]
    ring = 2 * torch.stack([angle.cos(), angle.sin()])[:, None].expand(2, 3, points)
    field = torch.complex(rand(1, 3, n, n), rand(1, 3, n, n, seed=1))
    return physics.scattering.BornOperator(field, ring, x, y, 6.0, 1 / n**2, n)


def pet() -> Any:
    pytest.importorskip("parallelproj", reason="parallelproj is not installed: it projects for PET")
    return physics.PET((1, 8, 8))


def astra() -> Any:
    if not torch.cuda.is_available():
        pytest.skip("TomographyWithAstra needs a CUDA device")
    pytest.importorskip("astra", reason="astra-toolbox is not installed")
    return physics.TomographyWithAstra(img_size=(12, 12), angles=7)


def cassi(mode: str) -> Make:
    return lambda: physics.CompressiveSpectralImaging((4, *PLANE), mode=mode, rng=rng())


def camera(**options: Any) -> Make:
    return lambda: physics.SinglePixelCamera(20, (1, 8, 8), rng=rng(), **options)


def tiled() -> Any:
    return physics.TiledSpaceVaryingBlur(kernel(1, 1, 9, 3, 3), (8, 8), (4, 4))


def virtual() -> Any:
    shift = {"x_shift": torch.tensor([1]), "y_shift": torch.tensor([2])}
    return physics.VirtualLinearPhysics(physics=blur("circular")(), transform=deepinv.transform.Shift(), g_params=shift)


def moved() -> Any:
    return physics.LinearPhysics(A=lambda x: x.roll(1, -1), A_adjoint=lambda y: y.roll(-1, -1))


COMPLEX, AUTOGRAD = {"complex_images": True}, {"adjoint": "autograd"}
PADDINGS = ("circular", "reflect", "replicate", "constant")

# Name, what makes it, the shape of our images, options of the adapter. Those with "autograd" have an A_adjoint that is
# none in deepinv 0.5.0.
LINEAR: list[tuple[str, Make, tuple[int, ...], dict[str, Any]]] = [
    ("Denoising", physics.Denoising, COLOUR, {}),
    ("Inpainting", lambda: physics.Inpainting(COLOUR, mask=mask(*COLOUR)), COLOUR, {}),
    ("Demosaicing", lambda: physics.Demosaicing(COLOUR), COLOUR, {}),
    *[(f"Blur {p}", blur(p), IMAGE, {}) for p in ("valid", *PADDINGS)],
    *[(f"Blur {p}, by FFT", blur(p, use_fft=True), IMAGE, {}) for p in ("valid", "circular")],
    ("BlurFFT", lambda: physics.BlurFFT(COLOUR, filter=kernel(1, 1, 3, 3)), COLOUR, {}),
    *[(f"Downsampling {p}", down(p), IMAGE, {}) for p in ("valid", *PADDINGS)],
    *[(f"Upsampling {p}", up(p), IMAGE, {}) for p in PADDINGS],
    ("DownsamplingMatlab", lambda: physics.DownsamplingMatlab(factor=2), IMAGE, {}),
    *[(f"SpaceVaryingBlur {p}", varying(p), IMAGE, {}) for p in ("valid", "circular", "reflect", "constant")],
    ("TiledSpaceVaryingBlur", tiled, (1, 16, 16), {}),
    ("CompressiveSpectralImaging ss", cassi("ss"), (4, *PLANE), AUTOGRAD),
    ("CompressiveSpectralImaging sd", cassi("sd"), (4, *PLANE), AUTOGRAD),
    ("CompressedSensing", lambda: physics.CompressedSensing(40, COLOUR, rng=rng()), COLOUR, {}),
    ("CompressedSensing, channelwise", lambda: physics.CompressedSensing(20, COLOUR, True, rng=rng()), COLOUR, {}),
    ("StructuredRandom", lambda: physics.StructuredRandom(IMAGE, IMAGE, rng=rng()), IMAGE, {}),
    ("SinglePixelCamera", camera(), (1, 8, 8), {}),
    ("SinglePixelCamera, not fast", camera(fast=False), (1, 8, 8), {}),
    ("Decolorize", physics.Decolorize, COLOUR, {}),
    ("HyperSpectralUnmixing", lambda: physics.HyperSpectralUnmixing(rand(3, 5), E=3, C=5), (3, *PLANE), {}),
    ("Pansharpen", lambda: physics.Pansharpen((3, 16, 12), factor=4), (3, 16, 12), {}),
    ("MRI", lambda: physics.MRI(mask=mask(*PLANE), img_size=PLANE), IMAGE, {}),
    ("MultiCoilMRI", lambda: physics.MultiCoilMRI(mask(*PLANE), coils(), PLANE), IMAGE, {}),
    ("DynamicMRI", lambda: physics.DynamicMRI(mask=mask(4, *PLANE), img_size=PLANE), (4, *PLANE), {}),
    ("SequentialMRI", lambda: physics.SequentialMRI(mask=mask(4, *PLANE), img_size=PLANE), IMAGE, AUTOGRAD),
    ("RadioInterferometry", radio, IMAGE, {}),
    ("Tomography", tomography(), (1, 12, 12), {}),
    ("Tomography, circle", tomography(circle=True), (1, 12, 12), {}),
    ("Tomography, fan beam", tomography(fan_beam=True), (1, 12, 12), {}),
    ("TomographyWithAstra", astra, (1, 12, 12), {}),
    ("UltrasoundPlaneWave", ultrasound, IMAGE, {}),
    ("PET", pet, (1, 8, 8), {}),
    ("BornOperator", born, (1, 8, 8), COMPLEX),
    ("BornOperator, real images", born, (1, 8, 8), {}),
    ("PtychographyLinearOperator", lambda: physics.PtychographyLinearOperator((1, 16, 16)), (1, 16, 16), COMPLEX),
    ("StackedLinearPhysics", lambda: physics.stack(blur("circular")(), down("circular")()), IMAGE, {}),
    ("ComposedLinearPhysics", lambda: down("circular")() * blur("circular")(), IMAGE, {}),
    ("LinearPhysicsMultiScaler", lambda: physics.LinearPhysicsMultiScaler(blur("circular")(), IMAGE), IMAGE, {}),
    ("PhysicsCropper", lambda: physics.PhysicsCropper(blur("circular")(), (2, 2)), (1, 14, 10), {}),
    ("VirtualLinearPhysics", virtual, IMAGE, AUTOGRAD),
    ("LinearPhysics", moved, IMAGE, {}),
    ("LinearPhysics, no adjoint", lambda: physics.LinearPhysics(A=lambda x: x[..., ::2], img_size=IMAGE), IMAGE, {}),
]


@pytest.mark.parametrize(("make", "shape", "options"), [e[1:] for e in LINEAR], ids=[e[0] for e in LINEAR])
def test_linear_physics_keep_the_contract_of_operators(make: Make, shape: tuple[int, ...], options: dict) -> None:
    adapted = likelihoods.from_deepinv(make(), shape, **options)
    assert isinstance(adapted, likelihoods.Operator)
    single = torch.complex64 if adapted.layout.complex_images else torch.float32
    check_operator(adapted, shape, single)
    if not options.get("adjoint"):
        check_operator(likelihoods.from_deepinv(make(), shape, adjoint="autograd", **options), shape, single)


def test_nonuniform_transforms_which_cannot_be_copied() -> None:
    pytest.importorskip("mrinufft", reason="mri-nufft is not installed: it transforms for NonCartesianMRI")
    # The dot test at construction is the check of its adjoint.
    made = physics.NonCartesianMRI(img_size=PLANE, num_shots=4, num_samples_per_shot=10)
    adapted = likelihoods.from_deepinv(made, IMAGE)
    assert isinstance(adapted, likelihoods.Operator)
    x = torch.complex(rand(3, *IMAGE), rand(3, *IMAGE, seed=1))
    together = adapted(x)
    assert together.is_complex()
    for one, alone in zip(together, x, strict=True):
        assert torch.allclose(one, adapted(alone), atol=1e-5)


def every_class() -> set[str]:
    """Public linear physics of deepinv."""
    kinds = {name: thing for name, thing in vars(physics).items() if isinstance(thing, type)}
    return {name for name, kind in kinds.items() if issubclass(kind, physics.LinearPhysics)}


# Bases without an A of their own, and those that others stand for: the multi-scale variants of blur and inpainting.
ABSTRACT = {"DecomposablePhysics", "BlurFFTMultiScaler", "BlurMultiScaler", "InpaintingMultiScaler", "NonCartesianMRI"}


def test_every_linear_physics_is_among_them() -> None:
    named = {name.split(",")[0].split(" ")[0] for name, *_ in LINEAR}
    assert every_class() - ABSTRACT - named == set()


def lidar() -> Any:
    return physics.SinglePhotonLidar(sigma=2.0, bins=16)


def phases() -> Any:
    return physics.RandomPhaseRetrieval(30, IMAGE, rng=rng())


MODELS: list[tuple[str, Make, tuple[int, ...], dict[str, Any], float]] = [
    ("SinglePhotonLidar", lidar, (3, 4, 5), {}, 8.0),
    ("RandomPhaseRetrieval", phases, IMAGE, COMPLEX, 0.0),
    ("PhaseRetrieval", lambda: physics.PhaseRetrieval(blur("circular")()), IMAGE, {}, 0.0),
    ("Ptychography", lambda: physics.Ptychography((1, 16, 16)), (1, 16, 16), COMPLEX, 0.0),
    ("ComposedPhysics", lambda: phases() * physics.Denoising(), IMAGE, COMPLEX, 0.0),
]


@pytest.mark.parametrize(("make", "shape", "options", "at"), [e[1:] for e in MODELS], ids=[e[0] for e in MODELS])
def test_other_physics_keep_the_contract_of_forward_models(
    make: Make, shape: tuple[int, ...], options: dict, at: float
) -> None:
    adapted = likelihoods.from_deepinv(make(), shape, **options)
    assert not isinstance(adapted, likelihoods.Operator)
    check_forward_model(adapted, shape, at=torch.full(shape, at))


def test_complex_images_stand_for_two_channels() -> None:
    maps, m = coils(), mask(*PLANE)
    adapted = likelihoods.from_deepinv(physics.MultiCoilMRI(m, maps, PLANE), IMAGE)
    ours = likelihoods.Sense(maps[0], m)
    x = torch.complex(rand(2, *IMAGE), rand(2, *IMAGE, seed=1))
    assert torch.allclose(adapted(x), ours(x), atol=1e-5)
    assert torch.allclose(adapted.adjoint(ours(x)), ours.adjoint(ours(x)), atol=1e-5)
    assert adapted.complex_input(True)
    with pytest.raises(ValueError, match="MRI takes complex images, got complex_images=False"):
        likelihoods.from_deepinv(physics.MRI(mask=m, img_size=PLANE), IMAGE, complex_images=False)


def test_lists_of_measurements_become_one_vector() -> None:
    first, second = blur("circular")(), down("circular")()
    x = rand(2, *IMAGE)
    got = likelihoods.from_deepinv(physics.stack(first, second), IMAGE)(x)
    assert torch.allclose(got, torch.cat([first.A(x).flatten(1), second.A(x).flatten(1)], 1))


def test_a_likelihood_on_a_physics() -> None:
    adapted = likelihoods.from_deepinv(blur("circular")(), IMAGE)
    y = adapted(rand(*IMAGE))
    energy = likelihoods.Gaussian(y, adapted, 0.1)
    x = rand(2, *IMAGE, seed=3)
    z = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(energy(z).sum(), z)
    assert torch.allclose(energy.grad(x), expected.float(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("fault", ["scaled", "moved the wrong way", "approximate"])
def test_what_is_no_adjoint_is_refused(fault: str) -> None:
    def move(t: torch.Tensor) -> torch.Tensor:
        return t.roll(1, -1)

    wrong = {
        "scaled": lambda: physics.LinearPhysics(A=lambda x: 2 * x, A_adjoint=lambda y: 2.01 * y),
        "moved the wrong way": lambda: physics.LinearPhysics(A=move, A_adjoint=move),
        "approximate": tomography(adjoint_via_backprop=False),
    }[fault]
    shape = (1, 12, 12)
    with pytest.raises(
        ValueError, match=r"from_deepinv: \w+: its adjoint is none: .* differ by .* or adjoint='autograd'"
    ):
        likelihoods.from_deepinv(wrong(), shape)
    if fault != "approximate":
        check_operator(likelihoods.from_deepinv(wrong(), shape, adjoint="autograd"), shape, torch.float32)


def test_what_cannot_be_adapted_is_refused() -> None:
    with pytest.raises(TypeError, match="from_deepinv: expected a physics with a method A, got int"):
        likelihoods.from_deepinv(3, IMAGE)
    with pytest.raises(ValueError, match=r"from_deepinv: shape is \(12, 8\), expected \(C, H, W\)"):
        likelihoods.from_deepinv(moved(), PLANE)
    with pytest.raises(ValueError, match=r"does not take images of shape \(1, 1, 5, 5\)"):
        likelihoods.from_deepinv(physics.CompressedSensing(40, COLOUR, rng=rng()), (1, 5, 5))
    with pytest.raises(ValueError, match="adjoint is 'guessed', expected 'given' or 'autograd'"):
        likelihoods.from_deepinv(moved(), IMAGE, adjoint="guessed")
