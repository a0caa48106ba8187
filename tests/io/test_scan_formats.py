"""Scans read back from fastMRI, ISMRMRD, BART and numpy files: every sample where it belongs, and nothing else."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scan_files import (
    acquisition,
    complex_normal,
    header,
    letter,
    lines_of,
    noise_lines,
    write_fastmri,
    write_ismrmrd,
)

from potentia.io import Scan, centre_crop, read_cfl, read_scan, write_cfl
from potentia.io._kspace import centred_fft, centred_ifft

KSPACE = complex_normal((2, 3, 12, 16))


class TestFastMRI:
    def test_a_multi_coil_file(self, tmp_path: Path) -> None:
        pytest.importorskip("h5py")
        reference = np.abs(complex_normal((2, 8, 8)))
        xml = header((16, 12), fov=(300.0, 160.0, 4.0), recon=(8, 20))
        path = write_fastmri(tmp_path / "a.h5", KSPACE, xml=xml, reference=reference)
        scan = read_scan(path)
        np.testing.assert_array_equal(scan.kspace, KSPACE)
        assert scan.kspace.dtype == np.complex64
        assert scan.reference is not None
        np.testing.assert_array_equal(scan.reference, reference)
        assert scan.mask.shape == (2, 12, 16)
        assert scan.mask.all()
        assert (scan.noise, scan.coil_maps, scan.affine) == (None, None, None)
        # x of the header runs along the lines, axis -2; what the image lacks in width cannot be cropped to.
        assert scan.field_of_view == (4.0, 300.0, 160.0)
        assert scan.voxel_size == (4.0, 25.0, 10.0)
        assert scan.recon_shape == (8, 16)
        assert scan.readout_axis == -2
        assert scan.header["max"] == "0.5"
        assert scan.header["experimentalConditions.H1resonanceFrequency_Hz"] == "63500000"
        assert scan.source == str(path)

    def test_a_single_coil_file_and_one_slice(self, tmp_path: Path) -> None:
        pytest.importorskip("h5py")
        path = write_fastmri(tmp_path / "a.h5", KSPACE[:, 0], reference=np.abs(KSPACE[:, 0]), name="esc")
        scan = read_scan(path, index=1)
        np.testing.assert_array_equal(scan.kspace, KSPACE[1:, :1])
        assert scan.reference is not None
        np.testing.assert_array_equal(scan.reference, np.abs(KSPACE[1:, 0]))
        assert (scan.field_of_view, scan.recon_shape) == (None, None)
        for index in (-1, 2):
            with pytest.raises(ValueError, match=rf"a\.h5: slice index is {index}, expected 0 to 1"):
                read_scan(path, index=index)

    def test_lines_of_zeros_were_not_measured(self, tmp_path: Path) -> None:
        pytest.importorskip("h5py")
        kspace = KSPACE.copy()
        kspace[..., [0, 5, 15]] = 0
        kspace[0, :, 3, 7] = 0  # a sample that is zero by chance is measured nevertheless
        given = np.ones(16, np.float32)
        given[5] = 0
        scan = read_scan(write_fastmri(tmp_path / "a.h5", kspace, mask=given))
        expected = np.isin(np.arange(16), [0, 5, 15], invert=True)
        np.testing.assert_array_equal(scan.mask, np.broadcast_to(expected, (2, 12, 16)))

    def test_a_mask_that_disagrees_is_refused(self, tmp_path: Path) -> None:
        pytest.importorskip("h5py")
        write_fastmri(tmp_path / "a.h5", KSPACE, mask=np.arange(16) > 2)
        with pytest.raises(ValueError, match=r"a\.h5: kspace is not zero in 3 lines that mask says"):
            read_scan(tmp_path / "a.h5")
        write_fastmri(tmp_path / "b.h5", KSPACE, mask=np.ones(12, bool))
        with pytest.raises(ValueError, match=r"b\.h5: mask has shape \(12,\), expected \(16,\)"):
            read_scan(tmp_path / "b.h5")

    def test_other_contents_are_refused(self, tmp_path: Path) -> None:
        h5py = pytest.importorskip("h5py")
        write_fastmri(tmp_path / "real.h5", np.ones((2, 3, 4)))
        with pytest.raises(
            ValueError, match=r"real\.h5: kspace has shape \(2, 3, 4\) and dtype float64, expected comp"
        ):
            read_scan(tmp_path / "real.h5")
        with h5py.File(tmp_path / "other.h5", "w") as file:
            file["images"] = np.ones(3)
        with pytest.raises(ValueError, match=r"other\.h5: holds images, expected kspace \(fastMRI\) or one group"):
            read_scan(tmp_path / "other.h5")
        write_fastmri(tmp_path / "a.h5", KSPACE)
        with pytest.raises(ValueError, match=r"select is {'set': 1}, expected none for a fastMRI file"):
            read_scan(tmp_path / "a.h5", select={"set": 1})


@pytest.fixture
def mrd(tmp_path: Path) -> Any:
    """Writes lines to a file and reads them."""
    pytest.importorskip("ismrmrd")

    def written(lines: list[Any], xml: str = header((12, 16)), **options: Any) -> Scan:
        return read_scan(write_ismrmrd(tmp_path / "a.h5", lines, xml), **options)

    return written


class TestISMRMRD:
    def test_lines_in_any_order_with_a_noise_scan(self, mrd: Any) -> None:
        noise = complex_normal((3, 200), seed=1)
        lines = lines_of(KSPACE)
        lines = noise_lines(noise) + [lines[at] for at in np.random.default_rng(0).permutation(len(lines))]
        scan = mrd(lines)
        np.testing.assert_array_equal(scan.kspace, KSPACE)
        np.testing.assert_array_equal(scan.noise, noise)
        assert (scan.counts == 1).all()
        assert scan.field_of_view == (5.0, 200.0, 400.0)
        assert scan.readout_axis == -1
        assert scan.calibration is None
        np.testing.assert_array_equal(mrd(lines, index=1).kspace, KSPACE[1:])
        np.testing.assert_array_equal(mrd(lines, select={"slice": 1}).kspace, KSPACE[1:])

    def test_averages_are_averaged_and_counted(self, mrd: Any) -> None:
        second = complex_normal(KSPACE.shape, seed=2)
        lines = lines_of(KSPACE) + lines_of(second, rows=[4, 5], idx_average=1)
        scan = mrd(lines)
        expected = KSPACE.copy()
        expected[:, :, 4:6] = (KSPACE[:, :, 4:6] + second[:, :, 4:6]) / 2
        np.testing.assert_allclose(scan.kspace, expected, rtol=1e-6)
        assert scan.counts[:, 4:6].tolist() == np.full((2, 2, 16), 2).tolist()
        assert scan.counts.sum() == 2 * 14 * 16
        np.testing.assert_array_equal(mrd(lines, select={"average": 0}).kspace, KSPACE)

    def test_undersampling_partial_fourier_and_the_centre_of_the_steps(self, mrd: Any) -> None:
        """Steps 0 to 6 whose centre is 2 stand in rows 4 to 10 of 12."""
        scan = mrd(lines_of(KSPACE, rows=range(0, 7, 2)), header((12, 16), centre=2))
        expected = np.zeros_like(KSPACE)
        expected[:, :, [4, 6, 8, 10]] = KSPACE[:, :, [0, 2, 4, 6]]
        np.testing.assert_array_equal(scan.kspace, expected)
        np.testing.assert_array_equal(scan.mask, (expected != 0).any(1))

    def test_an_asymmetric_echo_with_discarded_samples(self, mrd: Any) -> None:
        """11 samples, the echo in the fifth of them; two before and one after are to be left out."""
        cut = np.concatenate([np.full((2, 3, 12, 2), 9), KSPACE[..., 5:], np.full((2, 3, 12, 1), 9)], axis=-1)
        lines = lines_of(cut, center_sample=8 - 5 + 2, discard_pre=2, discard_post=1)
        scan = mrd(lines)
        assert (scan.kspace[..., :5] == 0).all()
        np.testing.assert_array_equal(scan.kspace[..., 5:], KSPACE[..., 5:])
        np.testing.assert_array_equal(scan.mask[0, 0], np.arange(16) >= 5)
        with pytest.raises(ValueError, match="lines are measured in part"):
            mrd(lines, header((12, 16), recon_fov=(200.0, 200.0))).without_oversampling()

    def test_reversed_lines(self, mrd: Any) -> None:
        ismrmrd = pytest.importorskip("ismrmrd")
        there, back = lines_of(KSPACE, rows=range(0, 12, 2)), lines_of(KSPACE, rows=range(1, 12, 2))
        back = lines_of(KSPACE[..., ::-1], rows=range(1, 12, 2), center_sample=16 - 1 - 8)
        for line in back:
            line.set_flag(ismrmrd.ACQ_IS_REVERSE)
        np.testing.assert_array_equal(mrd(there + back).kspace, KSPACE)

    def test_oversampling(self, mrd: Any) -> None:
        """An object within half the field of view: the image of what is left is the middle of the image."""
        image = np.zeros((2, 3, 12, 32), np.complex64)
        image[..., 8:24] = KSPACE
        xml = header((12, 32), fov=(400.0, 200.0, 5.0), recon=(16, 12), recon_fov=(200.0, 200.0))
        whole = mrd(noise_lines(complex_normal((3, 64))) + lines_of(centred_fft(image)), xml)
        assert whole.recon_shape == (12, 16)
        scan = whole.without_oversampling()
        np.testing.assert_allclose(centred_ifft(scan.kspace), KSPACE, atol=1e-6)
        assert scan.counts.shape == (2, 12, 16)
        assert whole.field_of_view == (5.0, 200.0, 400.0)
        assert scan.field_of_view == (5.0, 200.0, 200.0)
        assert scan.voxel_size == whole.voxel_size
        # The same place in both: pixel 3 is what was pixel 11.
        np.testing.assert_allclose(scan.affine @ [1, 2, 3, 1], whole.affine @ [1, 2, 11, 1])
        assert scan.without_oversampling() is scan

    def test_the_noise_scan_comes_to_the_level_of_the_lines(self, mrd: Any) -> None:
        """Four times the dwell time halves the noise's std; the receiver passes 0.64 of its bandwidth."""
        noise = complex_normal((3, 64), seed=1)
        lines = noise_lines(noise, sample_time_us=20.0) + lines_of(KSPACE, sample_time_us=5.0)
        scan = mrd(lines, header((12, 16), bandwidth=0.64))
        np.testing.assert_allclose(scan.noise, noise * (2 / 0.8), rtol=1e-6)
        assert float(scan.header["noise_scale"]) == pytest.approx(2.5)
        np.testing.assert_array_equal(mrd(noise_lines(noise, sample_time_us=0.0) + lines_of(KSPACE)).noise, noise)

    def test_calibration_lines(self, mrd: Any) -> None:
        ismrmrd = pytest.importorskip("ismrmrd")
        alone = lines_of(KSPACE, rows=[5, 7], flags=[ismrmrd.ACQ_IS_PARALLEL_CALIBRATION])
        both = lines_of(KSPACE, rows=[6], flags=[ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING])
        lines = lines_of(KSPACE, rows=[0, 2, 4, 8, 10]) + alone + both
        merged = mrd(lines, header((12, 16), calibration="embedded"))
        assert merged.mask[0, :, 0].tolist() == [row in (0, 2, 4, 5, 6, 7, 8, 10) for row in range(12)]
        assert merged.calibration is None
        apart = mrd(lines, header((12, 16), calibration="separate"))
        assert apart.mask[0, :, 0].tolist() == [row in (0, 2, 4, 6, 8, 10) for row in range(12)]
        expected = np.zeros_like(KSPACE)
        expected[:, :, [5, 7]] = KSPACE[:, :, [5, 7]]
        np.testing.assert_array_equal(apart.calibration, expected)

    def test_other_lines_are_left_out_and_counted(self, mrd: Any) -> None:
        ismrmrd = pytest.importorskip("ismrmrd")
        odd = [
            acquisition(np.full((3, 16), 9), flags=[flag])
            for flag in (ismrmrd.ACQ_IS_NAVIGATION_DATA, ismrmrd.ACQ_IS_PHASECORR_DATA, ismrmrd.ACQ_IS_DUMMYSCAN_DATA)
        ]
        scan = mrd(odd + lines_of(KSPACE))
        np.testing.assert_array_equal(scan.kspace, KSPACE)
        assert scan.header["skipped"] == "3"
        with pytest.raises(ValueError, match=r"has no imaging lines with \{\}, 3 lines of other kinds"):
            mrd(odd)

    @pytest.mark.parametrize("counter", ["contrast", "phase", "repetition", "set"])
    def test_one_of_several_is_to_be_selected(self, mrd: Any, counter: str) -> None:
        second = complex_normal(KSPACE.shape, seed=2)
        lines = lines_of(KSPACE) + lines_of(second, **{f"idx_{counter}": 1})
        with pytest.raises(ValueError, match=rf"holds {counter} \[0, 1\], expected one, as by select="):
            mrd(lines)
        np.testing.assert_array_equal(mrd(lines, select={counter: 1}).kspace, second)
        with pytest.raises(ValueError, match=rf"has no imaging lines with {{'{counter}': 2}}"):
            mrd(lines, select={counter: 2})

    def test_refusals(self, mrd: Any) -> None:
        with pytest.raises(ValueError, match="select has echo, expected average, slice, contrast"):
            mrd(lines_of(KSPACE), select={"echo": 1})
        with pytest.raises(ValueError, match="trajectory is 'radial', expected 'cartesian'"):
            mrd(lines_of(KSPACE), header((12, 16), trajectory="radial"))
        with pytest.raises(ValueError, match="three dimensions, 2 partitions"):
            mrd(lines_of(KSPACE) + lines_of(KSPACE, idx_kspace_encode_step_2=1))
        with pytest.raises(ValueError, match=r"lines have \[2, 3\] coils"):
            mrd(lines_of(KSPACE) + lines_of(KSPACE[:, :2]))
        with pytest.raises(ValueError, match=r"noise scan has \[2\] coils, the imaging lines 3"):
            mrd(noise_lines(complex_normal((2, 64))) + lines_of(KSPACE))
        with pytest.raises(ValueError, match="several encoded spaces"):
            mrd(lines_of(KSPACE) + lines_of(KSPACE, encoding_space_ref=1))
        line = acquisition(np.ones((3, 16)), trajectory=np.ones((16, 2), np.float32))
        with pytest.raises(ValueError, match="lines carry trajectories"):
            mrd([line])

    @pytest.mark.parametrize(
        "head", [{"center_sample": 0}, {"idx_kspace_encode_step_1": 12}, {"center_sample": 9, "scan_counter": 7}]
    )
    def test_lines_that_do_not_fit_are_refused(self, mrd: Any, head: dict[str, int]) -> None:
        line = acquisition(np.ones((3, 16)), **head)
        with pytest.raises(
            ValueError, match=rf"line {head.get('scan_counter', 0)}, encoding step .* within the encoded"
        ):
            mrd([line])

    def test_a_forged_size_is_refused_before_memory_is_taken(self, mrd: Any) -> None:
        with pytest.raises(ValueError, match=r"makes k-space \(2, 3, 60000, 60000\), which 1152 samples cannot fill"):
            mrd(lines_of(KSPACE), header((60000, 60000)))


class TestOrientation:
    def test_the_pixels_of_a_phantom_lie_where_its_dots_are(self, mrd: Any) -> None:
        """An oblique slice: index n // 2 is at the position; rows and columns go along the directions."""
        turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
        position = np.array([10.0, -20.0, 30.0])
        image = letter((12, 16))
        kspace = centred_fft(image.astype(np.complex64))[None, None]
        scan = mrd(
            lines_of(kspace, read_dir=turn[0], phase_dir=turn[1], slice_dir=turn[2], position=position),
            header((12, 16), fov=(320.0, 180.0, 5.0)),
        )
        np.testing.assert_allclose(centred_ifft(scan.kspace)[0, 0], image, atol=1e-5)
        mirror = np.array([-1, -1, 1])  # from left and posterior to right and anterior
        np.testing.assert_allclose((scan.affine @ [0, 6, 8, 1])[:3], position * mirror, atol=1e-4)
        for value, (row, column) in {2: (1, 1), 3: (1, 14), 4: (10, 1), 5: (10, 14)}.items():
            assert np.argwhere(np.abs(image - value) < 1e-6).tolist() == [[row, column]]
            place = position + turn[0] * 20 * (column - 8) + turn[1] * 15 * (row - 6)
            np.testing.assert_allclose((scan.affine @ [0, row, column, 1])[:3], place * mirror, atol=1e-3)

    def test_slices_step_by_their_positions(self, mrd: Any) -> None:
        scan = mrd(lines_of(KSPACE))  # 6 mm apart, 5 mm thick
        np.testing.assert_allclose((scan.affine @ [1, 6, 8, 1])[:3], [0, 0, 6], atol=1e-5)

    def test_no_affine_where_the_file_gives_no_frame(self, mrd: Any) -> None:
        assert mrd(lines_of(KSPACE, read_dir=(0, 0, 0))).affine is None
        assert mrd(lines_of(KSPACE, position=(0, 0, 0))).affine is None
        uneven = lines_of(KSPACE) + lines_of(KSPACE[:1], idx_slice=2, position=(0, 0, 20))
        assert mrd(uneven).affine is None
        even = lines_of(KSPACE) + lines_of(KSPACE[:1], idx_slice=2, position=(0, 0, 12))
        assert mrd(even).affine is not None

    def test_an_affine_puts_a_volume_into_nifti(self, mrd: Any, tmp_path: Path) -> None:
        nibabel = pytest.importorskip("nibabel")
        scan = mrd(lines_of(KSPACE))
        volume = np.abs(centred_ifft(scan.kspace)[:, 0])
        nibabel.save(nibabel.Nifti1Image(volume, scan.affine), tmp_path / "a.nii")
        # Axes of (slice, y, x) point to superior, anterior to posterior (LPS's y), and left.
        assert nibabel.aff2axcodes(nibabel.load(tmp_path / "a.nii").affine) == ("S", "P", "L")


class TestBART:
    @pytest.mark.parametrize("name", ["a", "a.cfl", "a.hdr", "two.dots"])
    def test_round_trip(self, tmp_path: Path, name: str) -> None:
        write_cfl(tmp_path / name, KSPACE)
        np.testing.assert_array_equal(read_cfl(tmp_path / name), KSPACE)

    def test_the_bytes_are_barts(self, tmp_path: Path) -> None:
        """Readout is dimension 0, phase encoding 1, coils 3, and the first dimension is the fastest."""
        write_cfl(tmp_path / "a", KSPACE[0])
        assert (tmp_path / "a.hdr").read_text().splitlines()[:2] == ["# Dimensions", "16 12 1 3" + 12 * " 1"]
        flat = np.fromfile(tmp_path / "a.cfl", np.complex64)
        dims = flat.reshape((16, 12, 1, 3), order="F")
        assert dims[5, 7, 0, 2] == KSPACE[0, 2, 7, 5]
        (tmp_path / "a.hdr").write_text("# Dimensions\n16 12 1 3\n# Command\nphantom -k a\n")
        np.testing.assert_array_equal(read_scan(tmp_path / "a.cfl").kspace, KSPACE[:1])

    def test_damaged_pairs(self, tmp_path: Path) -> None:
        write_cfl(tmp_path / "a", KSPACE)
        data, text = (tmp_path / "a.cfl").read_bytes(), (tmp_path / "a.hdr").read_text()
        (tmp_path / "a.cfl").write_bytes(data[:-8])
        with pytest.raises(ValueError, match=r"a\.cfl: has 9208 bytes, expected 9216 for the dimensions in a\.hdr"):
            read_scan(tmp_path / "a.cfl")
        (tmp_path / "a.cfl").write_bytes(data)
        for bad in ("", "# Dimensions", "# Dimensions\n", "# Dimensions\n-1 2", "16 12", "# Dimensions\n" + "1 " * 17):
            (tmp_path / "a.hdr").write_text(bad)
            with pytest.raises(ValueError, match=r"a\.hdr: is no header of BART"):
                read_scan(tmp_path / "a.cfl")
        (tmp_path / "a.hdr").write_text(f"# Dimensions\n{' '.join(['999999999'] * 16)}\n")
        with pytest.raises(ValueError, match="has dimensions 2: 999999999, 4: "):
            read_scan(tmp_path / "a.cfl")
        (tmp_path / "a.hdr").write_text(text.replace("16 12 1", "16 6 2"))
        with pytest.raises(ValueError, match="has dimensions 2: 2, expected none but 0, 1, 3 and 13"):
            read_scan(tmp_path / "a.cfl")
        (tmp_path / "a.hdr").unlink()
        with pytest.raises(FileNotFoundError, match=r"a\.hdr: there is no such file, expected a\.cfl and a\.hdr"):
            read_cfl(tmp_path / "a")

    def test_other_shapes_are_not_written(self, tmp_path: Path) -> None:
        for array in (np.ones((2, 2)), np.ones((0, 2, 2)), np.array([[["a"]]])):
            with pytest.raises(ValueError, match="write_cfl: array has shape"):
                write_cfl(tmp_path / "a", array)


class TestNumpy:
    @pytest.mark.parametrize("kspace", [KSPACE, KSPACE[0], KSPACE[0, 0]])
    def test_axes_are_added_in_front(self, tmp_path: Path, kspace: np.ndarray) -> None:
        np.save(tmp_path / "a.npy", kspace)
        scan = read_scan(tmp_path / "a.npy")
        np.testing.assert_array_equal(
            scan.kspace, kspace.reshape(-1 if kspace.ndim == 4 else 1, *scan.kspace.shape[1:])
        )
        assert scan.kspace.shape[1:] == (3 if kspace.ndim > 2 else 1, 12, 16)

    def test_all_parts(self, tmp_path: Path) -> None:
        mask = np.random.default_rng(0).random((12, 16)) < 0.4
        kspace, noise = KSPACE * mask, complex_normal((3, 50), seed=1)
        kspace[0, :, mask] = np.where(np.arange(mask.sum())[:, None] == 0, 0, kspace[0][:, mask].T)
        np.savez(tmp_path / "a.npz", kspace=kspace, mask=mask, noise=noise, coil_maps=KSPACE, calibration=KSPACE, t=1)
        scan = read_scan(tmp_path / "a.npz")
        np.testing.assert_array_equal(scan.kspace, kspace)
        np.testing.assert_array_equal(scan.mask, np.stack([mask, mask]))  # also where the first sample is zero
        for part, expected in ((scan.noise, noise), (scan.coil_maps, KSPACE), (scan.calibration, KSPACE)):
            np.testing.assert_array_equal(part, expected)
        one = read_scan(tmp_path / "a.npz", index=1)
        for part, expected in ((one.noise, noise), (one.coil_maps, KSPACE[1:]), (one.calibration, KSPACE[1:])):
            np.testing.assert_array_equal(part, expected)

    def test_refusals(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", data=KSPACE, x=1)
        with pytest.raises(ValueError, match=r"a\.npz: holds data, x, expected kspace"):
            read_scan(tmp_path / "a.npz")
        np.savez(tmp_path / "b.npz", kspace=KSPACE, mask=np.arange(16) > np.ones((12, 1)))
        with pytest.raises(
            ValueError, match=r"b\.npz: kspace is not zero at 48 positions that mask says were not meas"
        ):
            read_scan(tmp_path / "b.npz")
        for key, shape in (("mask", (12, 15)), ("noise", (2, 9)), ("coil_maps", (3, 12, 15)), ("calibration", (1, 16))):
            np.savez(tmp_path / "c.npz", kspace=KSPACE, **{key: np.ones(shape)})
            with pytest.raises(ValueError, match=rf"c\.npz: (counts|{key}) has shape .* expected .* beside kspace"):
                read_scan(tmp_path / "c.npz")
        np.save(tmp_path / "d.npy", KSPACE[0, 0, 0])
        with pytest.raises(ValueError, match=r"d\.npy: kspace has shape \(16,\), expected 2 to 4 dimensions"):
            read_scan(tmp_path / "d.npy")
        with pytest.raises(ValueError, match=r"select is {'set': 0}, expected none but for ISMRMRD"):
            read_scan(tmp_path / "d.npy", select={"set": 0})
        np.save(tmp_path / "e.npy", KSPACE.astype("c16") * math.nan)
        with pytest.raises(ValueError, match=r"e\.npy: has 1152 NaN or infinite"):
            read_scan(tmp_path / "e.npy")
        (tmp_path / "f.dat").touch()
        with pytest.raises(ValueError, match=r"f\.dat: is of a kind that is not read here, expected \.h5, .*\.npz"):
            read_scan(tmp_path / "f.dat")
        with pytest.raises(FileNotFoundError, match="there is no such file"):
            read_scan(tmp_path / "g.h5")


@pytest.mark.shared_data
def test_a_measured_scan_through_every_format(shared_data: Path, tmp_path: Path) -> None:
    """8 coils of an undersampled brain: each file gives back the samples, bit by bit, and where they were taken."""
    pytest.importorskip("ismrmrd")
    kspace = np.load(shared_data / "mri" / "brain_8coil_ksp_230x180.npy")
    mask = (kspace != 0).any(axis=0)
    np.save(tmp_path / "a.npy", kspace)
    write_cfl(tmp_path / "b", kspace)
    write_fastmri(tmp_path / "c.h5", kspace[None], xml=header((180, 230)))
    ismrmrd_lines = lines_of(kspace[None])
    write_ismrmrd(tmp_path / "d.h5", ismrmrd_lines, header((230, 180)))
    for name in ("a.npy", "b.cfl", "c.h5", "d.h5"):
        scan = read_scan(tmp_path / name)
        np.testing.assert_array_equal(scan.kspace[0], kspace)
        if name in ("a.npy", "b.cfl"):  # the others say what was measured line by line
            np.testing.assert_array_equal(scan.mask[0], mask)


@pytest.mark.shared_data
def test_a_measured_phantom_with_its_noise_scan(shared_data: Path, tmp_path: Path) -> None:
    """A fully sampled phantom of 16 coils, oversampled on its way to a file, and a noise scan of another dwell time."""
    pytest.importorskip("ismrmrd")
    with np.load(shared_data / "mri" / "signal_noise_16ch.npz") as held:
        signal, noise = (held[key].transpose(2, 0, 1) for key in ("signal", "noise"))
    wide = np.zeros((1, 16, 96, 192), np.complex64)
    wide[..., 48:144] = centred_ifft(signal)
    lines = noise_lines(noise.reshape(16, -1)[:, :9600], samples=96, sample_time_us=20.0) + lines_of(centred_fft(wide))
    path = write_ismrmrd(tmp_path / "a.h5", lines, header((96, 192), recon=(96, 96), recon_fov=(200.0, 200.0)))
    scan = read_scan(path).without_oversampling()
    assert scan.noise is not None
    np.testing.assert_array_equal(scan.noise, 2 * noise.reshape(16, -1)[:, :9600])
    assert np.abs(scan.kspace[0] - signal).max() < 1e-6 * np.abs(signal).max()
    np.testing.assert_array_equal(centre_crop(scan.kspace, (96, 96)), scan.kspace)
