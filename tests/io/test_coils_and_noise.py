"""Coils mixed, compressed and calibrated; noise made white and estimated: against closed forms and known truths."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scan_files import complex_normal, ellipse, smooth_maps

from potentia.io import (
    Scan,
    centre_crop,
    compress_coils,
    espirit_maps,
    estimate_noise_std,
    mix_coils,
    noise_covariance,
    noise_samples,
    prewhiten,
    read_image,
    remove_oversampling,
    sampling_mask,
    scale_kspace,
    whitening_matrix,
)
from potentia.io._kspace import centred_fft, centred_ifft
from potentia.likelihoods import Fourier

SHAPE = (64, 48)
FACTOR = np.linalg.qr(complex_normal((4, 4), seed=9).astype("c16"))[0] * np.array([0.1, 1.0, 3.0, 0.5])


def correlated(samples: int, seed: int = 0) -> np.ndarray:
    """Noise of four coils whose covariance per part is FACTOR FACTOR^H."""
    return (FACTOR @ complex_normal((4, samples), seed)).astype(np.complex64)


def unit(maps: np.ndarray) -> np.ndarray:
    return maps / np.maximum(np.sqrt((np.abs(maps) ** 2).sum(0)), 1e-12)


def errors(maps: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Distance of unit vectors of coils at each pixel, up to their phase."""
    inner = (truth.conj() * maps).sum(0)
    return np.sqrt((np.abs(maps - truth * inner / np.maximum(np.abs(inner), 1e-12)) ** 2).sum(0))


class TestKspace:
    @given(height=st.integers(1, 9), width=st.integers(1, 9))
    def test_the_transform_is_that_of_the_likelihoods(self, height: int, width: int) -> None:
        image = complex_normal((1, height, width))
        theirs = Fourier()(torch.from_numpy(image)).numpy()
        np.testing.assert_allclose(centred_fft(image), theirs, atol=2e-6)
        np.testing.assert_allclose(centred_ifft(centred_fft(image)), image, atol=2e-6)

    @given(old=st.integers(1, 12), new=st.integers(1, 12))
    def test_a_crop_keeps_the_origin(self, old: int, new: int) -> None:
        array = np.arange(old) - old // 2
        if new > old:
            with pytest.raises(ValueError, match="expected lengths of 1 to those"):
                centre_crop(array, (new,))
        else:
            assert centre_crop(array, (new,)).tolist() == list(range(-(new // 2), new - new // 2))

    def test_a_crop_of_kspace_scales_the_image(self) -> None:
        kspace = centred_fft(np.full((1, 8, 6), 3, np.complex64))
        np.testing.assert_allclose(centred_ifft(centre_crop(kspace, (4, 3))), 3 * 2, atol=1e-6)
        for shape in ((), (0, 3), (9, 3), (1, 1, 8, 6)):
            with pytest.raises(ValueError, match="centre_crop: shape is"):
                centre_crop(kspace, shape)

    @pytest.mark.parametrize("axis", [-1, -2])
    def test_oversampling_leaves_white_noise_white(self, axis: int) -> None:
        noise = complex_normal((2, 256, 256), std=0.5)
        less = remove_oversampling(noise, 96, axis)
        assert less.shape == ((2, 256, 96) if axis == -1 else (2, 96, 256))
        # The std of a std estimated from n values is 1 / sqrt(2 n) of it.
        assert less.real.std() == pytest.approx(0.5, rel=5 / math.sqrt(2 * less.size))
        for shift in ((0, 1), (1, 0)):
            other = np.roll(less, shift, axis=(-2, -1))
            assert abs((less * other.conj()).mean()) < 5 * 2 * 0.25 / math.sqrt(less.size)

    def test_oversampling_of_partial_lines_is_refused(self) -> None:
        kspace = complex_normal((2, 8, 8))
        kspace[:, 3] = 0  # a line that was not measured is no obstacle
        assert (remove_oversampling(kspace, 4)[:, 3] == 0).all()
        kspace[:, 5, :2] = 0
        with pytest.raises(ValueError, match="1 of 7 lines are sampled in part"):
            remove_oversampling(kspace, 4)
        for size, axis in ((0, -1), (9, -1), (4, -3)):
            with pytest.raises(ValueError, match=r"remove_oversampling: (size|axis) is"):
                remove_oversampling(kspace, size, axis)

    def test_masks(self) -> None:
        kspace = complex_normal((2, 3, 6, 8))
        kspace[..., [1, 5]] = 0
        kspace[0, 1] = 0  # one silent coil of three
        expected = np.isin(np.arange(8), [1, 5], invert=True)
        assert (sampling_mask(kspace) == expected).all()
        assert sampling_mask(kspace, readout_axis=-2).tolist() == [expected.tolist()] * 2
        with pytest.raises(ValueError, match="12 of 12 lines along axis -1 are sampled in part"):
            sampling_mask(kspace, readout_axis=-1)
        with pytest.raises(ValueError, match="readout_axis is 0, expected -1, -2 or None"):
            sampling_mask(kspace, readout_axis=0)
        with pytest.raises(ValueError, match=r"kspace has shape \(6, 8\)"):
            sampling_mask(kspace[0, 0])
        with pytest.raises(ValueError, match="has 3 NaN or infinite"):
            sampling_mask(np.full((3, 1, 1), math.nan))
        with pytest.raises(ValueError, match="dtype bool"):
            sampling_mask(np.ones((3, 1, 1), bool))

    def test_scale(self) -> None:
        image = 7 * ellipse(SHAPE)[None]
        scaled, factor = scale_kspace(centred_fft(image), 100)
        assert factor == pytest.approx(np.abs(image).max(), rel=1e-5)
        assert scaled.dtype == np.complex64
        np.testing.assert_allclose(np.abs(centred_ifft(scaled)).max(), 1, rtol=1e-5)
        with pytest.raises(ValueError, match="percentile is 0"):
            scale_kspace(scaled, 0)
        with pytest.raises(ValueError, match="percentile of the image is 0"):
            scale_kspace(scaled * 0)


class TestNoise:
    def test_whitening_undoes_the_covariance(self) -> None:
        """In closed form: W (FACTOR FACTOR^H) W^H = I, per part."""
        psi = FACTOR @ FACTOR.conj().T
        matrix = whitening_matrix(psi)
        np.testing.assert_allclose(matrix @ psi @ matrix.conj().T, np.eye(4), atol=1e-5)
        assert (np.triu(matrix, 1) == 0).all()
        assert (matrix.diagonal().real > 0).all()

    def test_measured_noise_comes_to_one_per_part(self) -> None:
        samples = 40_000
        covariance = noise_covariance(correlated(samples))
        fresh = correlated(samples, seed=1).reshape(1, 4, 200, 200)
        white, matrix = prewhiten(fresh, covariance)
        np.testing.assert_array_equal(white, mix_coils(matrix, fresh))
        # Both the matrix and the check have the error of a variance over 2 n numbers, 1 / sqrt(n).
        bound = 5 * math.sqrt(2) / math.sqrt(samples)
        np.testing.assert_allclose(noise_covariance(white[0].reshape(4, -1)), np.eye(4), atol=bound)
        for part in (white.real, white.imag):
            np.testing.assert_allclose(part.std(axis=(0, 2, 3)), 1, atol=bound)

    def test_the_units_are_per_part(self) -> None:
        """The planted fault: E[n n^H] without the half is off by a factor of two, far outside the bound."""
        noise = complex_normal((2, 10_000), std=3.0)
        assert noise_covariance(noise)[0, 0].real == pytest.approx(9, rel=5 / 100)
        assert (noise @ noise.conj().T / 10_000)[0, 0].real > 15

    def test_refusals(self) -> None:
        for noise in (np.ones(3), np.ones((3, 4)), complex_normal((3, 2))):
            with pytest.raises(ValueError, match="noise_covariance: noise has shape"):
                noise_covariance(noise)
        with pytest.raises(ValueError, match="noise has 6 NaN"):
            noise_covariance(complex_normal((2, 3)) * math.nan)
        for psi in (np.ones((2, 3)), np.ones((0, 0))):
            with pytest.raises(ValueError, match="covariance has shape"):
                whitening_matrix(psi)
        with pytest.raises(ValueError, match="not Hermitian"):
            whitening_matrix(np.array([[1, 1], [0, 1]]))
        silent = complex_normal((3, 50)) * np.array([[1], [0], [1]])
        doubled = np.concatenate([complex_normal((2, 50)), complex_normal((2, 50))[:1]])
        for noise in (silent, doubled):
            with pytest.raises(ValueError, match="not positive definite, expected noise in every coil"):
                whitening_matrix(noise_covariance(noise))
        with pytest.raises(ValueError, match=r"matrix has shape \(4, 4\), expected \(new, 3\)"):
            prewhiten(complex_normal((3, 4, 4)), np.eye(4))

    @pytest.mark.parametrize("source", ["border", "background"])
    def test_the_level_of_pure_noise(self, source: str) -> None:
        std = np.array([0.2, 1.0, 5.0])
        kspace = complex_normal((3, 128, 128)) * std[:, None, None]
        found = estimate_noise_std(kspace, source=source)
        # The median of n Rayleigh values has the relative std 1 / (sqrt(n) 2 ln 2).
        count = noise_samples(kspace, source=source).shape[1]
        assert abs(count / 128**2 - 0.1) < 0.02
        np.testing.assert_allclose(found, std, rtol=5 / (math.sqrt(count) * 2 * math.log(2)))

    @pytest.mark.parametrize(("source", "worst"), [("border", 1.15), ("background", 1.05)])
    def test_the_level_beside_an_object(self, source: str, worst: float) -> None:
        """An object with the noise at 1 % of its brightest pixel: too high, never too low, by no more than stated."""
        image = smooth_maps(6, (160, 128)) * ellipse((160, 128))
        kspace = centred_fft(image) + complex_normal(image.shape, std=0.01)
        ratio = estimate_noise_std(kspace, source=source) / 0.01
        count = noise_samples(kspace, source=source).shape[1]
        assert (ratio > 1 - 5 / (math.sqrt(count) * 2 * math.log(2))).all()
        assert (ratio < worst).all()

    def test_the_border_of_an_undersampled_scan(self) -> None:
        mask = np.random.default_rng(0).random((160, 128)) < 0.3
        image = smooth_maps(6, (160, 128)) * ellipse((160, 128))
        kspace = (centred_fft(image) + complex_normal(image.shape, std=0.01)) * mask
        np.testing.assert_allclose(estimate_noise_std(kspace, fraction=0.2) / 0.01, 1, atol=0.15)
        assert noise_samples(kspace, fraction=0.2).all()
        with pytest.raises(ValueError, match=r"is sampled, the background asks for all"):
            estimate_noise_std(kspace, source="background")

    def test_noise_samples_refusals(self) -> None:
        kspace = complex_normal((2, 8, 8))
        for options in ({"source": "corner"}, {"fraction": 0.0}, {"fraction": 1.1}):
            with pytest.raises(ValueError, match="noise_samples: got source"):
                noise_samples(kspace, **options)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"expected \(coils, ky, kx\)"):
            noise_samples(kspace[None])


class TestCompression:
    def test_few_directions_are_kept_in_full(self) -> None:
        """Eight coils that mix three signals: three virtual coils hold everything."""
        mixing = complex_normal((8, 3), seed=1)
        kspace = mix_coils(mixing, complex_normal((2, 3, 10, 12)))
        for options in ({"num_coils": 3}, {"energy": 1.0}, {"energy": 1 - 1e-9}):
            few, matrix = compress_coils(kspace, **options)  # type: ignore[arg-type]
            assert few.shape == (2, 3, 10, 12)
            np.testing.assert_allclose(matrix @ matrix.conj().T, np.eye(3), atol=1e-5)
            np.testing.assert_allclose(mix_coils(matrix.conj().T, few), kspace, atol=1e-4)

    @given(energy=st.floats(0.01, 1.0), seed=st.integers(0, 99))
    def test_the_energy_is_reached_by_the_fewest(self, energy: float, seed: int) -> None:
        scales = np.geomspace(1, 0.05, 6)[:, None, None]
        kspace = complex_normal((6, 5, 5), seed) * scales
        few, _ = compress_coils(kspace, energy=energy)
        values = np.linalg.svd(kspace.reshape(6, -1), compute_uv=False) ** 2
        share = np.cumsum(values) / values.sum()
        kept = len(few)
        assert share[kept - 1] >= energy - 1e-5
        assert kept == 1 or share[kept - 2] < energy + 1e-5
        assert (np.abs(few) ** 2).sum() == pytest.approx(values[:kept].sum(), rel=1e-4)

    def test_everything_of_a_scan_is_mixed_alike(self) -> None:
        maps = smooth_maps(4, SHAPE)[None]
        image = ellipse(SHAPE)
        noise = correlated(5000)
        kspace = centred_fft(maps * image)
        scan = Scan(kspace, np.ones((1, *SHAPE), np.uint16), "a", noise, maps, kspace)
        white = scan.prewhitened()
        assert white.noise is not None
        assert white.coil_maps is not None
        np.testing.assert_allclose(noise_covariance(white.noise), np.eye(4), atol=1e-5)
        np.testing.assert_allclose(centred_fft(white.coil_maps * image), white.kspace, atol=1e-4)
        np.testing.assert_array_equal(white.calibration, white.kspace)
        few = white.mix_coils(compress_coils(white.kspace, num_coils=2)[1])
        assert few.kspace.shape == (1, 2, *SHAPE)
        assert few.noise is not None
        np.testing.assert_allclose(noise_covariance(few.noise), np.eye(2), atol=1e-5)

    def test_refusals(self) -> None:
        kspace = complex_normal((3, 4, 4))
        for options in ({}, {"num_coils": 2, "energy": 0.5}):
            with pytest.raises(ValueError, match="expected one of them"):
                compress_coils(kspace, **options)  # type: ignore[arg-type]
        for count in (0, 4):
            with pytest.raises(ValueError, match=f"num_coils is {count}, expected 1 to 3"):
                compress_coils(kspace, num_coils=count)
        for energy in (0.0, 1.1, math.nan):
            with pytest.raises(ValueError, match="expected a share in"):
                compress_coils(kspace, energy=energy)
        with pytest.raises(ValueError, match="is zero everywhere"):
            compress_coils(kspace * 0, num_coils=1)

    def test_a_scan_says_what_it_lacks(self) -> None:
        scan = Scan(complex_normal((1, 3, 4, 4)), np.ones((1, 4, 4), int), "a.h5")
        with pytest.raises(ValueError, match=r"a\.h5: has no noise scan, and 15 samples outside the middle half"):
            scan.prewhitened()
        with pytest.raises(ValueError, match=r"a\.h5: does not say the shape of its image"):
            scan.without_oversampling()
        assert scan.voxel_size is None
        for shape in ((3, 4, 4), (1, 0, 4, 4)):
            with pytest.raises(ValueError, match="expected \\(slices, coils, ky, kx\\), none empty"):
                Scan(np.zeros(shape, np.complex64), np.ones((1, 4, 4), int), "a")
        with pytest.raises(ValueError, match="kspace has 48 NaN or infinite of 48"):
            Scan(np.full((1, 3, 4, 4), math.inf, np.complex64), np.ones((1, 4, 4), int), "a")


class TestESPIRiT:
    pytest.importorskip("sigpy.mri.app", reason="sigpy is not installed")

    def test_known_maps_are_found(self, capfd: pytest.CaptureFixture[str]) -> None:
        truth, image = smooth_maps(6, SHAPE), ellipse(SHAPE)
        kspace = centred_fft(truth * image)
        maps = espirit_maps(kspace, crop=0.0)
        assert (maps.dtype, maps.shape) == (np.complex64, (6, *SHAPE))
        inside = np.abs(image) > 0.3
        assert np.sqrt((errors(maps, truth)[inside] ** 2).mean()) < 0.01
        np.testing.assert_allclose(np.sqrt((np.abs(maps) ** 2).sum(0)), 1, atol=1e-5)
        assert capfd.readouterr() == ("", "")
        # Flipped maps, as by another sign of the transform, are far off.
        assert np.sqrt((errors(maps[:, ::-1, ::-1], truth)[inside] ** 2).mean()) > 0.3

    def test_what_is_cropped_is_without_an_object(self) -> None:
        image = ellipse(SHAPE)
        noisy = centred_fft(smooth_maps(6, SHAPE) * image) + complex_normal((6, *SHAPE), std=0.005)
        whole, kept = espirit_maps(noisy, crop=0.0), espirit_maps(noisy, crop=0.95)
        left = (kept != 0).any(0)
        np.testing.assert_array_equal(kept, whole * left)
        assert left[np.abs(image) > 0.5].mean() > 0.99
        far = np.hypot(*np.meshgrid(np.linspace(-1, 1, 48), np.linspace(-1, 1, 64))) > 1.15
        assert left[far].mean() < 0.5
        assert (espirit_maps(noisy, crop=0.99) != 0).any(0).sum() < left.sum()

    def test_maps_and_image_explain_the_data(self) -> None:
        truth, image = smooth_maps(6, SHAPE), ellipse(SHAPE)
        maps = espirit_maps(centred_fft(truth * image), crop=0.0)
        combined = (maps.conj() * truth * image).sum(0)
        assert np.linalg.norm(maps * combined - truth * image) < 0.01 * np.linalg.norm(truth * image)

    def test_the_result_does_not_depend_on_the_scale_or_the_run(self) -> None:
        kspace = centred_fft(smooth_maps(4, SHAPE) * ellipse(SHAPE))
        maps = espirit_maps(kspace)
        np.testing.assert_array_equal(espirit_maps(kspace.copy()), maps)
        np.testing.assert_allclose(espirit_maps(kspace * 1024), maps, atol=1e-4)

    def test_no_global_state_is_touched(self) -> None:
        np.random.seed(3)
        before = np.random.get_state()[1].tolist()
        espirit_maps(centred_fft(smooth_maps(4, SHAPE) * ellipse(SHAPE)), calib_width=16)
        assert np.random.get_state()[1].tolist() == before

    def test_the_calibration_region_is_what_was_sampled(self) -> None:
        kspace = centred_fft(smooth_maps(4, SHAPE) * ellipse(SHAPE))
        mask = np.zeros(SHAPE, bool)
        mask[::3] = mask[32 - 8 : 32 + 8] = True
        kspace *= mask
        np.testing.assert_array_equal(espirit_maps(kspace), espirit_maps(kspace, calib_width=16))
        for width in (17, 6):
            with pytest.raises(ValueError, match=rf"calib_width is {width}, expected above .* 6, and at most 16"):
                espirit_maps(kspace, calib_width=width)
        kspace[:, 30:35, 22:27] = np.eye(5)[2] * np.eye(5)[2][:, None]
        with pytest.raises(
            ValueError, match=r"sampled in full has side 1, expected above .* 6: give calibration lines"
        ):
            espirit_maps(kspace)

    def test_refusals(self) -> None:
        kspace = complex_normal((3, 32, 32))
        with pytest.raises(ValueError, match=r"expected \(coils, ky, kx\) of one slice"):
            espirit_maps(kspace[None])
        kspace[1] = 0
        with pytest.raises(ValueError, match="coil 1 has no signal"):
            espirit_maps(kspace)
        for options in ({"crop": 1.0}, {"threshold": 0.0}, {"num_iter": 0}, {"kernel_width": 0}):
            with pytest.raises(ValueError, match="espirit_maps: got crop"):
                espirit_maps(complex_normal((3, 32, 32)), **options)  # type: ignore[arg-type]

    def test_sigpy_is_imported_only_for_this(self) -> None:
        code = "import sys, potentia.io; assert not {'sigpy', 'numba', 'h5py', 'ismrmrd', 'pydicom'} & set(sys.modules)"
        subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_measured_maps_of_sixteen_coils(shared_data: Path) -> None:
    """Calibration on an image through measured maps gives the maps back, to their detail beyond the kernels."""
    pytest.importorskip("sigpy.mri.app")
    with np.load(shared_data / "mri" / "coilmaps16_96.npz") as held:
        truth, mask = held["maps"], held["mask"]
    y, x = np.meshgrid(np.arange(96) - 48, np.arange(96) - 40, indexing="ij")
    image = np.exp(-(y**2 + x**2) / 1800) * (1 + 0.3 * np.cos(x / 7))
    maps = espirit_maps(centred_fft(truth * image))
    kept = (maps != 0).any(0)
    assert kept[mask].mean() > 0.99
    error = errors(maps, unit(truth))[mask & kept]
    assert np.sqrt((error**2).mean()) < 0.02
    assert error.max() < 0.1


def test_a_measured_brain(shared_data: Path) -> None:
    """Its maps explain the calibration square up to its blur and noise, and the border of k-space is mostly noise."""
    pytest.importorskip("sigpy.mri.app")
    kspace = np.load(shared_data / "mri" / "brain_8coil_ksp_230x180.npy")
    assert sampling_mask(kspace).mean() == pytest.approx(0.124, abs=1e-3)
    maps = espirit_maps(kspace)
    square = np.zeros_like(kspace)
    square[:, 103:127, 78:102] = kspace[:, 103:127, 78:102]
    images = centred_ifft(square)
    kept = (maps != 0).any(0)

    def residual(maps: np.ndarray) -> float:
        left = images - maps * (maps.conj() * images).sum(0)
        return float(np.linalg.norm(left[:, kept]) / np.linalg.norm(images[:, kept]))

    assert residual(maps) < 0.06
    assert residual(maps[::-1]) > 0.5  # the planted fault: coils in another order
    std = estimate_noise_std(kspace)
    assert (std > 0.009).all()
    assert (std < 0.016).all()


def test_a_measured_noise_scan(shared_data: Path) -> None:
    """Half of a noise scan whitens the other half, and its level is what the corners of the phantom's image show."""
    with np.load(shared_data / "mri" / "signal_noise_16ch.npz") as held:
        signal, noise = (held[key].transpose(2, 0, 1) for key in ("signal", "noise"))
    halves = noise[:, ::2].reshape(16, -1), noise[:, 1::2].reshape(16, -1)
    matrix = whitening_matrix(noise_covariance(halves[0]))
    white = noise_covariance(mix_coils(matrix, halves[1], axis=0))
    np.testing.assert_allclose(white, np.eye(16), atol=5 * math.sqrt(2 / halves[0].shape[1]))
    np.testing.assert_allclose(
        estimate_noise_std(signal, source="background", fraction=0.02),
        np.sqrt(noise_covariance(noise.reshape(16, -1)).diagonal().real),
        rtol=0.5,
    )


@pytest.mark.parametrize(("level", "most"), [(0.005, 1.8), (0.01, 1.3), (0.02, 1.1)])
def test_the_level_beside_a_brain(shared_data: Path, level: float, most: float) -> None:
    """At 1 mm a brain's detail reaches the border of k-space: the fainter the noise, the more too high the estimate."""
    volume = read_image(shared_data / "brain" / "colin27_t1.nii.gz", index=90)[0]
    brain = np.pad(volume / volume.max(), ((25, 24), (14, 9)))
    image = smooth_maps(8, brain.shape) * brain
    kspace = centred_fft(image) + complex_normal(image.shape, std=level)
    border = estimate_noise_std(kspace) / level
    assert (border > 1).all()
    assert (border < most).all()
    np.testing.assert_allclose(estimate_noise_std(kspace, source="background") / level, 1, atol=0.05)
