"""Augmentation: what it may change and what not, its distributions, and its dependence on the generator alone."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from potentia.training._augment import Augment

EVERYTHING = Augment(
    flip=True, rotate=10, scale=(0.9, 1.1), shift=2, intensity=(0.8, 1.2), gamma=(0.8, 1.2), phase="smooth"
)
SAMPLES = 4000
KOLMOGOROV = 1.95 / math.sqrt(SAMPLES)  # exceeded with probability 0.001


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth_images(number: int = 4, height: int = 24, width: int = 20, channels: int = 1) -> Tensor:
    """Blobs of width 3 pixels, off the centre, that vanish at the border."""
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    blob = torch.exp(-((x - 2) ** 2 / 9 + (y + 3) ** 2 / 12))
    return blob.expand(number, channels, height, width).clone()


def centroid(image: Tensor) -> tuple[float, float]:
    """Of an image (H, W), as x to the right and y down from the centre of the frame."""
    height, width = image.shape
    weight = image.double() / image.double().sum()
    x, y = (torch.arange(n).double() - (n - 1) / 2 for n in (width, height))
    return float((weight.sum(0) * x).sum()), float((weight.sum(1) * y).sum())


def distance_from_uniform(values: Tensor, low: float, high: float) -> float:
    """The Kolmogorov distance between a sample and the uniform distribution."""
    u = np.sort((values.double().numpy() - low) / (high - low))
    assert u[0] >= 0
    assert u[-1] <= 1
    steps = np.arange(len(u) + 1) / len(u)
    return float(max((steps[1:] - u).max(), (u - steps[:-1]).max()))


class TestContract:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
    def test_off_is_the_identity_and_draws_nothing(self, dtype: torch.dtype) -> None:
        x = torch.randn(3, 2, 5, 7, dtype=dtype, generator=generator())
        gen = generator()
        state = gen.get_state()
        assert torch.equal(Augment()(x, gen), x)
        assert torch.equal(Augment.from_spec({})(x, gen), x)
        assert torch.equal(gen.get_state(), state)

    def test_no_strength_is_the_identity(self) -> None:
        x = torch.randn(3, 1, 5, 7, dtype=torch.complex64, generator=generator())
        still = Augment(phase="smooth", phase_amplitude=0)(x, generator())
        ratio = still / x
        torch.testing.assert_close(ratio, ratio[..., :1, :1].expand_as(ratio), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("shape", [(4, 1, 12, 12), (3, 2, 9, 14), (1, 1, 16, 8)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
    def test_shape_type_and_input_are_kept(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        x = torch.randn(shape, dtype=dtype, generator=generator())
        before = x.clone()
        settings = EVERYTHING if dtype.is_complex else Augment(flip=True, rotate=5, shift=1, intensity=(0.5, 2))
        out = settings(x, generator())
        assert (out.shape, out.dtype) == (x.shape, x.dtype)
        assert torch.isfinite(out).all()
        assert torch.equal(x, before)
        assert not torch.equal(out, x)

    def test_the_generator_alone_decides(self) -> None:
        x = smooth_images().to(torch.complex64)
        gen = generator()
        EVERYTHING(x, gen)
        state, shared = gen.get_state(), torch.get_rng_state()
        second = EVERYTHING(x, gen)
        third = EVERYTHING(x, gen)
        gen.set_state(state)
        assert torch.equal(EVERYTHING(x, gen), second)
        assert torch.equal(EVERYTHING(x, gen), third)
        assert not torch.equal(second, third)
        assert torch.equal(torch.get_rng_state(), shared)

    def test_entries_are_changed_each_in_its_own_way(self) -> None:
        x = smooth_images(6).to(torch.complex64)
        out = EVERYTHING(x, generator())
        assert len({tuple(image.flatten().tolist()) for image in out}) == 6
        other = x.clone()
        other[2] *= 3
        changed = (EVERYTHING(other, generator()) != out).flatten(1).any(1)
        assert changed.tolist() == [False, False, True, False, False, False]

    def test_channels_are_changed_alike(self) -> None:
        x = smooth_images(4, channels=3).to(torch.complex64)
        out = EVERYTHING(x, generator())
        torch.testing.assert_close(out[:, 1], out[:, 0])
        torch.testing.assert_close(out[:, 2], out[:, 0])

    def test_settings_are_hashable_and_compare(self) -> None:
        assert hash(Augment(rotate=3)) == hash(Augment(rotate=3.0))
        assert Augment(rotate=3) != Augment(rotate=4)


class TestPlace:
    def test_flip(self) -> None:
        x = torch.randn(SAMPLES, 1, 2, 3, generator=generator())
        out = Augment(flip=True)(x, generator())
        flipped = (out == x.flip(-1)).flatten(1).all(1)
        assert ((out == x).flatten(1).all(1) ^ flipped).all()
        assert abs(float(flipped.double().mean()) - 0.5) < 3.3 * 0.5 / math.sqrt(SAMPLES)

    @pytest.mark.parametrize(("height", "width"), [(24, 24), (24, 32), (33, 24)])
    def test_turns_are_exact_and_about_the_centre(self, height: int, width: int) -> None:
        x = smooth_images(50, height, width)
        start = complex(*centroid(x[0, 0]))
        for image in Augment(rotate=180)(x, generator()):
            assert abs(complex(*centroid(image[0]))) == pytest.approx(abs(start), abs=0.02)
            assert float(image.sum()) == pytest.approx(float(x[0].sum()), rel=0.01)

    def test_turns_and_moves_and_sizes_are_uniform(self) -> None:
        x = smooth_images(SAMPLES)
        start = complex(*centroid(x[0, 0]))
        turned = torch.tensor([complex(*centroid(i[0])) for i in Augment(rotate=20)(x, generator(1))])
        angles = torch.rad2deg(torch.angle(turned / start))
        assert distance_from_uniform(angles, -20.2, 20.2) < KOLMOGOROV + 0.01
        moved = torch.tensor([complex(*centroid(i[0])) for i in Augment(shift=2)(x, generator(2))]) - start
        for part in (moved.real, moved.imag):
            assert distance_from_uniform(part, -2.02, 2.02) < KOLMOGOROV + 0.01
        assert abs(float(torch.corrcoef(torch.stack([moved.real, moved.imag]))[0, 1])) < 3.3 / math.sqrt(SAMPLES)
        sized = Augment(scale=(0.8, 1.25))(x, generator(3)).sum(dim=(1, 2, 3)) / x[0].sum()
        assert distance_from_uniform(sized.sqrt(), 0.795, 1.255) < KOLMOGOROV + 0.02

    def test_a_quarter_turn_moves_pixels_onto_pixels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x = torch.rand(2, 1, 9, 9, generator=generator())
        monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.ones(shape))
        out = Augment(rotate=90)(x, generator())  # by +90 degrees: x to y, which is clockwise where y runs down
        torch.testing.assert_close(out, x.rot90(-1, (-2, -1)), atol=1e-4, rtol=0)
        out = Augment(shift=3)(x, generator())
        torch.testing.assert_close(out[..., 3:, 3:], x[..., :-3, :-3], atol=1e-4, rtol=0)
        assert out[..., :3, :].abs().max() < 1e-4

    @pytest.mark.parametrize("padding", ["background", "border", "reflect"])
    @pytest.mark.parametrize("background", [-1.0, 0.0])
    def test_values_stay_within_the_range_of_the_image(self, padding: str, background: float) -> None:
        x = torch.where(torch.rand(20, 1, 16, 16, generator=generator()) < 0.5, background, 1.0)
        settings = Augment(rotate=30, shift=4, scale=(0.5, 2), padding=padding, background=background)
        out = settings(x, generator())
        assert out.min() >= background
        assert out.max() <= 1

    def test_padding(self) -> None:
        x = torch.full((1, 1, 8, 8), 0.5)
        far = {"scale": (0.25, 0.25)}
        assert Augment(**far, background=-1)(x, generator())[0, 0, 0].unique().tolist() == [-1]
        for padding in ("border", "reflect"):
            out = Augment(**far, padding=padding, background=-1)(x, generator())
            torch.testing.assert_close(out, x)

    def test_complex_images_are_interpolated_part_by_part(self) -> None:
        real, imaginary = torch.rand(2, 3, 1, 8, 9, generator=generator()).unbind(0)
        settings = Augment(rotate=20, shift=1)
        both = settings(torch.complex(real, imaginary), generator())
        torch.testing.assert_close(both.real, settings(real, generator()))
        torch.testing.assert_close(both.imag, settings(imaginary, generator()))
        assert (settings(real.to(torch.complex64), generator()).imag == 0).all()
        shifted = Augment(shift=9, background=-1)(real.to(torch.complex64), generator())
        assert (shifted.imag == 0).all()

    def test_fine_detail_survives(self) -> None:
        """Bicubic at half a pixel keeps 97 % of a wave of four pixels, where bilinear keeps 71 %."""
        wave = torch.cos(torch.arange(64) * (math.pi / 2)).expand(200, 1, 64, 64).contiguous()
        kept = Augment(shift=0.5)(wave, generator())[..., 8:-8, 8:-8].std(dim=(1, 2, 3)) / wave.std()
        assert kept.min() > 0.95


class TestValues:
    def test_gain_is_uniform_and_counted_from_the_background(self) -> None:
        x = torch.full((SAMPLES, 1, 1, 2), 0.5)
        x[..., 1] = -1
        out = Augment(intensity=(0.8, 1.2), background=-1)(x, generator())
        gain = (out[:, 0, 0, 0] + 1) / 1.5
        assert distance_from_uniform(gain, 0.7999, 1.2001) < KOLMOGOROV
        assert (out[..., 1] == -1).all()

    def test_gamma_raises_the_magnitude_and_keeps_sign_and_phase(self) -> None:
        x = torch.tensor([-0.5, 0.0, 0.25, 1.0]).expand(SAMPLES, 1, 1, 4)
        out = Augment(gamma=(0.5, 2))(x, generator())[:, 0, 0]
        assert (out[:, 0] < 0).all()
        assert (out[:, 1] == 0).all()
        assert (out[:, 3] == 1).all()
        power = out[:, 2].log() / math.log(0.25)
        assert distance_from_uniform(power, 0.4999, 2.0001) < KOLMOGOROV
        z = torch.polar(torch.rand(5, 1, 3, 3, generator=generator()), torch.rand(5, 1, 3, 3, generator=generator(1)))
        torch.testing.assert_close(Augment(gamma=(0.5, 2))(z, generator()).angle(), z.angle())


class TestPhase:
    @pytest.mark.parametrize("phase", ["global", "smooth"])
    def test_magnitudes_are_kept(self, phase: str) -> None:
        x = torch.rand(6, 2, 16, 12, generator=generator()).to(torch.complex64)
        torch.testing.assert_close(Augment(phase=phase)(x, generator()).abs(), x.abs(), atol=3e-7, rtol=1e-6)

    @pytest.mark.parametrize("phase", ["global", "smooth"])
    def test_phase_is_uniform_at_every_pixel(self, phase: str) -> None:
        x = torch.ones(SAMPLES, 1, 3, 2, dtype=torch.complex64)
        angles = Augment(phase=phase)(x, generator()).angle().flatten(1)
        for pixel in angles.T:
            assert distance_from_uniform(pixel, -math.pi - 1e-6, math.pi + 1e-6) < KOLMOGOROV
        assert (angles.std(1).max() < 1e-6) == (phase == "global")

    def test_smooth_phase_has_the_amplitude_and_the_cutoff(self) -> None:
        size, amplitude, cutoff = 32, 0.2, 2.0
        x = torch.ones(SAMPLES, 1, size, size // 2, dtype=torch.complex64)
        out = Augment(phase="smooth", phase_amplitude=amplitude, phase_cutoff=cutoff)(x, generator())
        # Waves whose vectors fill a disc of radius f have the correlation J1(2 pi f d) / (pi f d) at a distance d: the
        # squared difference has the mean 2 amplitude^2 (1 - that), looked at beside one another and at J1's first zero.
        far = round(3.8317 / (2 * math.pi * cutoff) * size)
        for distance in (1, far):
            turn = (out[:, 0, distance, 0] / out[:, 0, 0, 0]).angle().double()
            argument = 2 * math.pi * cutoff * distance / size
            correlation = 2 * float(torch.special.bessel_j1(torch.tensor(argument))) / argument
            expected = 2 * amplitude**2 * (1 - correlation)
            squares = turn**2
            assert abs(float(squares.mean()) - expected) < 3.5 * float(squares.std()) / math.sqrt(SAMPLES) + 1e-5

    def test_smooth_phase_is_isotropic(self) -> None:
        x = torch.ones(SAMPLES, 1, 8, 16, dtype=torch.complex64)
        out = Augment(phase="smooth", phase_amplitude=0.3)(x, generator())[:, 0]
        down = (out[:, 4, 0] / out[:, 0, 0]).angle().double() ** 2
        along = (out[:, 0, 4] / out[:, 0, 0]).angle().double() ** 2
        error = math.sqrt(float(down.var() + along.var()) / SAMPLES)
        assert abs(float(down.mean() - along.mean())) < 3.5 * error

    def test_real_images_are_refused(self) -> None:
        with pytest.raises(
            ValueError, match=r"phase is 'global' and images have dtype torch.float32, expected complex"
        ):
            Augment(phase="global")(torch.zeros(1, 1, 2, 2), generator())


class TestSettings:
    def test_from_a_recipe(self) -> None:
        spec: dict[str, Any] = {
            "flip": True, "rotate": 10, "scale": [0.9, 1.1], "shift": 2, "padding": "reflect", "intensity": [1, 1.5],
            "gamma": [0.8, 1.2], "phase": "smooth", "phase_amplitude": 1, "phase_cutoff": 2, "background": 0,
        }  # fmt: skip
        settings = Augment.from_spec(spec)
        assert settings == Augment(True, 10, (0.9, 1.1), 2, "reflect", 0, (1, 1.5), (0.8, 1.2), "smooth", 1, 2)
        assert type(settings.rotate) is float

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ({"turn": 1}, r"\[augment\]: unknown key 'turn', expected background, flip, gamma"),
            ({"flip": 1}, r"\[augment\]: flip is 1, expected true or false"),
            ({"rotate": "10"}, "rotate is '10', expected a finite number"),
            ({"rotate": True}, "rotate is True"),
            ({"rotate": math.nan}, "rotate is nan"),
            ({"rotate": 181}, "rotate is 181, expected 0 or above to 180"),
            ({"shift": -1}, "shift is -1, expected 0 or above"),
            ({"scale": 1.1}, "scale is 1.1, expected two finite numbers"),
            ({"scale": [1.1, 0.9]}, r"scale is \[1.1, 0.9\], expected two finite numbers, the lower one first"),
            ({"scale": [0, 1]}, r"scale is \(0, 1\), expected 0 < low <= high"),
            ({"intensity": [-1, 1]}, "intensity is"),
            ({"gamma": [0.9, 1.1], "background": -1}, "gamma is for magnitudes above 0, but background is -1"),
            ({"padding": "zeros"}, "padding is 'zeros', expected one of 'background', 'border', 'reflect'"),
            ({"phase": "rough"}, "phase is 'rough', expected one of 'none', 'global', 'smooth'"),
            ({"phase_cutoff": 0}, "phase_cutoff is 0, expected above 0"),
            ({"phase_amplitude": -1}, "phase_amplitude is -1"),
            ([], r"\[augment\]: got \[\], expected a table"),
        ],
    )
    def test_refusals(self, spec: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Augment.from_spec(spec)

    def test_refusals_of_the_class(self) -> None:
        with pytest.raises(ValueError, match="padding is 'zeros'"):
            Augment(padding="zeros")
        with pytest.raises(TypeError, match="rotate must be a number"):
            Augment(rotate="1")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"images have shape \(2, 3, 4\), expected \(N, C, H, W\)"):
            Augment()(torch.zeros(2, 3, 4), generator())


class TestTheTestsSee:
    """Planted faults: the statistics above tell them from what is right."""

    def test_a_phase_of_half_the_circle(self) -> None:
        half = torch.rand(SAMPLES, generator=generator()) * math.pi
        assert distance_from_uniform(half, -math.pi, math.pi) > 10 * KOLMOGOROV

    def test_a_turn_in_the_stretched_frame_of_grid_sample(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def stretched(angle: Tensor, _scale: Tensor, _shift: Tensor, height: int, width: int) -> Tensor:
            turn = torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()], -1).reshape(-1, 2, 2)
            theta = torch.cat([turn, torch.zeros(len(angle), 2, 1)], -1)
            return torch.nn.functional.affine_grid(theta, [len(angle), 1, height, width], align_corners=False)

        monkeypatch.setattr("potentia.training._augment._grid", stretched)
        x = smooth_images(50, 24, 32)
        start = abs(complex(*centroid(x[0, 0])))
        found = [abs(complex(*centroid(i[0]))) for i in Augment(rotate=180)(x, generator())]
        assert max(abs(f - start) for f in found) > 0.2
