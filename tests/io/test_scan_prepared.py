"""From what a file holds to white noise and coil maps, by one method: ``Scan.prepared``."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_files import complex_normal, ellipse, smooth_maps

from potentia import likelihoods
from potentia.io import Scan, mix_coils, noise_covariance
from potentia.io._kspace import centred_fft

SHAPE = (48, 40)
COILS = 4
MIXING = 0.3 * (np.eye(COILS) + 0.4 * complex_normal((COILS, COILS), seed=5)).astype("c8")


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Correlated noise (..., coils, *shape[1:])."""
    return mix_coils(MIXING, complex_normal(shape, seed))


def scan_of(kspace: np.ndarray, counts: np.ndarray | None = None, **fields: Any) -> Scan:
    counts = np.ones((len(kspace), *kspace.shape[-2:]), np.uint16) if counts is None else counts
    return Scan(kspace.astype(np.complex64), counts, "scan.h5", **fields)


def bound(samples: int) -> float:
    """Five times the error of the covariance of white noise, and of its being whitened by an estimate of as many."""
    return 5 * math.sqrt(2) / math.sqrt(samples)


class TestBorder:
    def test_it_stands_in_for_a_noise_scan(self) -> None:
        scan = scan_of(noise(1, COILS, 96, 80))
        white = scan.prewhitened(border=0.2)
        assert white.noise is None
        # All of k-space, though a fifth of it has whitened it.
        samples = white.kspace[0].reshape(COILS, -1)
        np.testing.assert_allclose(noise_covariance(samples), np.eye(COILS), atol=bound(96 * 80 // 5))

    def test_samples_are_taken_at_the_level_of_one_measurement(self) -> None:
        """The planted fault: averages of four whiten to a std of two if they are taken for single measurements."""
        counts = np.full((1, 96, 80), 4, np.uint16)
        scan = scan_of(noise(1, COILS, 96, 80) / 2, counts)
        white = scan.prewhitened(border=0.2)
        level = (white.kspace / white.noise_std[:, None])[0].reshape(COILS, -1)
        np.testing.assert_allclose(noise_covariance(level), np.eye(COILS), atol=bound(96 * 80 // 5))
        naive = scan_of(scan.kspace).prewhitened(border=0.2)
        np.testing.assert_allclose(naive.kspace, 2 * white.kspace, rtol=1e-4)

    def test_all_slices_give_samples_and_neither_padding_nor_the_middle_does(self) -> None:
        kspace = noise(3, COILS, 40, 40)
        kspace[:, :, 14:27, 14:27] = 1e6  # signal
        kspace[:, :, :2] = 0  # padding that counts as measured
        whole = scan_of(kspace).prewhitened(border=1.0)
        outside = whole.kspace[..., 28:, :].swapaxes(0, 1).reshape(COILS, -1)
        np.testing.assert_allclose(noise_covariance(outside), np.eye(COILS), atol=bound(1000))

    def test_small_scans_take_ten_samples_a_coil(self) -> None:
        scan = scan_of(noise(1, COILS, 12, 12))  # of which 5 % are 8
        assert np.isfinite(scan.prewhitened().kspace).all()
        with pytest.raises(ValueError, match=r"scan\.h5: has no noise scan, and 27 samples outside the middle half"):
            scan_of(noise(1, COILS, 6, 6)).prewhitened()

    def test_refusals(self) -> None:
        kspace = noise(1, COILS, 32, 32)
        middle = np.zeros_like(kspace)
        middle[..., 12:20, 12:20] = kspace[..., 12:20, 12:20]
        with pytest.raises(ValueError, match=r"0 samples outside .*, expected 10 for each of 4 coils: give the std"):
            scan_of(middle).prewhitened()
        for border in (0.0, 1.1, math.nan):
            with pytest.raises(ValueError, match=r"border is .*, expected a share"):
                scan_of(kspace).prewhitened(border=border)
        kspace[:, 2] = 0
        with pytest.raises(ValueError, match=r"scan\.h5: coil 2 is zero everywhere"):
            scan_of(kspace).prewhitened()


class TestPrepared:
    pytest.importorskip("sigpy.mri.app", reason="sigpy is not installed")

    def signal(self, slices: int = 1) -> np.ndarray:
        clean = centred_fft(smooth_maps(COILS, SHAPE) * 300 * ellipse(SHAPE))
        return clean + noise(slices, COILS, *SHAPE)

    def test_step_by_step_is_the_same(self) -> None:
        scan = scan_of(self.signal(2), noise=mix_coils(MIXING, complex_normal((COILS, 4096), 3), axis=0))
        ready = scan.prepared()
        by_hand = scan.prewhitened().calibrated()
        np.testing.assert_array_equal(ready.kspace, by_hand.kspace)
        assert ready.coil_maps is not None
        np.testing.assert_array_equal(ready.coil_maps, by_hand.coil_maps)
        assert ready.coil_maps.shape == ready.kspace.shape

    def test_oversampling_goes_where_lines_are_whole(self) -> None:
        wide = np.zeros((COILS, 48, 80), np.complex64)
        wide[..., 20:60] = smooth_maps(COILS, SHAPE) * 300 * ellipse(SHAPE)
        kspace = (centred_fft(wide) + mix_coils(MIXING, complex_normal(wide.shape)))[None]
        assert scan_of(kspace, recon_shape=SHAPE).prepared().kspace.shape[-2:] == SHAPE
        counts = np.ones((1, 48, 80), np.uint16)
        counts[..., :9] = 0  # asymmetric echoes
        kept = scan_of(kspace * counts[:, None], counts, recon_shape=SHAPE).prepared()
        assert kept.kspace.shape[-2:] == (48, 80)

    def test_the_likelihood_of_the_truth_is_that_of_noise(self) -> None:
        """Maps of the file go with whitened k-space: chi-square of the true image is that of its residual."""
        maps, image = smooth_maps(COILS, SHAPE)[None], 300 * ellipse(SHAPE)
        counts = np.ones((1, *SHAPE), np.uint16)
        counts[:, ::2] = 3
        kspace = centred_fft(maps * image) + noise(1, COILS, *SHAPE) / np.sqrt(counts)[:, None]
        scans = mix_coils(MIXING, complex_normal((COILS, 20_000), 3), axis=0)
        ready = scan_of(kspace, counts, noise=scans, coil_maps=maps).prepared(num_coils=3)
        assert ready.coil_maps is not None
        operator = likelihoods.Sense(ready.coil_maps[0], ready.mask[0].astype(np.float32))
        term = likelihoods.Gaussian(torch.from_numpy(ready.kspace[0]), operator, torch.from_numpy(ready.noise_std[0]))
        parts = 2 * 3 * SHAPE[0] * SHAPE[1]
        chi2 = 2 * float(term(torch.from_numpy(image)[None]))
        assert abs(chi2 / parts - 1) < 5 * math.sqrt(2 / parts) + 5 * math.sqrt(2 / 40_000)

    def test_a_known_level_replaces_whitening(self) -> None:
        scan = scan_of(self.signal(), coil_maps=smooth_maps(COILS, SHAPE)[None])
        ready = scan.prepared(noise_std=0.5)
        np.testing.assert_allclose(ready.kspace, 2 * scan.kspace, rtol=1e-6)
        assert scan.coil_maps is not None
        assert ready.coil_maps is not None
        np.testing.assert_allclose(ready.coil_maps, 2 * scan.coil_maps, rtol=1e-6)
        for wrong in (0.0, -1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match=r"scan\.h5: noise_std is .*, expected a number above 0"):
                scan.prepared(noise_std=wrong)

    def test_maps_without_a_calibration_region(self) -> None:
        kspace = self.signal(2)
        kspace[1, :, ::2] = 0
        counts = (kspace != 0).any(axis=1).astype(np.uint16)
        with pytest.raises(ValueError, match=r"scan\.h5, slice 1 of 2: espirit_maps: the largest square .* has side 0"):
            scan_of(kspace, counts).prepared()
        apart = np.zeros_like(kspace)
        apart[:, :, 12:36, 8:32] = self.signal(2)[:, :, 12:36, 8:32]
        assert scan_of(kspace, counts, calibration=apart).prepared().coil_maps is not None

    def test_one_coil_has_maps_of_one(self) -> None:
        ready = scan_of(self.signal()[:, :1]).prepared()
        assert ready.coil_maps is not None
        np.testing.assert_array_equal(ready.coil_maps, 1)


@settings(max_examples=20)
@given(
    slices=st.integers(1, 2),
    coils=st.integers(1, 3),
    tall=st.integers(9, 15),
    wide=st.integers(9, 15),
    scale=st.sampled_from([1e-15, 1.0, 1e15]),
    lines=st.integers(1, 15),
    dtype=st.sampled_from([np.complex64, np.complex128]),
)
def test_any_small_scan_is_made_ready_or_refused_in_words(
    slices: int, coils: int, tall: int, wide: int, scale: float, lines: int, dtype: type
) -> None:
    kspace = (complex_normal((slices, coils, tall, wide), seed=lines) * scale).astype(dtype)
    kspace[..., lines:, :] = 0
    counts = (kspace != 0).any(axis=1).astype(np.uint16)
    maps = np.ones((slices, coils, tall, wide), np.complex64)
    scan = Scan(kspace.astype(np.complex64), counts, "scan", coil_maps=maps)
    try:
        ready = scan.prepared()
    except ValueError as err:
        assert str(err).startswith("scan: ")  # noqa: PT017
        return
    assert ready.coil_maps is not None
    operator = likelihoods.Sense(ready.coil_maps[0], ready.mask[0].astype(np.float32))
    term = likelihoods.Gaussian(torch.from_numpy(ready.kspace[0]), operator, 1.0)
    value, grad = term.value_and_grad(torch.zeros(1, tall, wide, dtype=torch.complex64))
    assert bool(torch.isfinite(value))
    assert bool(torch.isfinite(grad.abs()).all())
    # White whatever the unit was: as many units as there are samples, up to signal that there is none of.
    level = float(np.square(np.abs(ready.kspace)).sum()) / (2 * coils * counts.sum())
    assert 0.3 < level < 3
