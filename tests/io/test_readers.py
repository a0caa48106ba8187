"""Readers: values as they were written, and a clear refusal of everything else."""

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from potentia.io import read_array, read_image, scale_to_percentile

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)


def scaled(picture: np.ndarray, top: int) -> np.ndarray:
    """(H, W) or (H, W, 3) integers as (C, H, W) in [-1, 1]."""
    values = picture.astype(np.float64) / top * 2 - 1
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)


class TestPictures:
    @pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF"])
    @pytest.mark.parametrize(("picture", "top"), [(GREY, 255), (RGB, 255), (DEEP, 65535)])
    def test_lossless(self, tmp_path: Path, suffix: str, picture: np.ndarray, top: int) -> None:
        path = tmp_path / f"a{suffix}"
        Image.fromarray(picture).save(path)
        read = read_image(path)
        assert read.dtype == np.float32
        np.testing.assert_allclose(read, scaled(picture, top), atol=2e-7)
        assert read_image(str(path), dtype="float64").dtype == np.float64

    def test_black_and_white_are_exact(self, tmp_path: Path) -> None:
        for top, dtype in ((255, np.uint8), (65535, np.uint16)):
            Image.fromarray(np.array([[0, top]], dtype)).save(tmp_path / "a.png")
            assert read_image(tmp_path / "a.png").tolist() == [[[-1.0, 1.0]]]

    def test_jpeg(self, tmp_path: Path) -> None:
        smooth = np.linspace(0, 255, 64 * 3).reshape(8, 8, 3).astype(np.uint8)
        Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=98, subsampling=0)
        np.testing.assert_allclose(read_image(tmp_path / "a.jpg"), scaled(smooth, 255), atol=0.06)

    def test_palette_and_bilevel(self, tmp_path: Path) -> None:
        palette = Image.fromarray(GREY).convert("RGB").quantize(16)
        palette.save(tmp_path / "p.png")
        expected = scaled(np.asarray(palette.convert("RGB")), 255)
        np.testing.assert_allclose(read_image(tmp_path / "p.png"), expected, atol=2e-7)
        Image.fromarray(GREY > 100).save(tmp_path / "b.png")
        np.testing.assert_array_equal(read_image(tmp_path / "b.png")[0], np.where(GREY > 100, 1.0, -1.0))

    def test_floats_are_kept(self, tmp_path: Path) -> None:
        values = RNG.normal(size=(4, 5)).astype(np.float32) * 100
        Image.fromarray(values).save(tmp_path / "a.tif")
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[0], values)

    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    def test_alpha_is_refused(self, tmp_path: Path, mode: str) -> None:
        Image.fromarray(RGB).convert(mode).save(tmp_path / "a.png")
        with pytest.raises(ValueError, match=f"a.png: picture has mode {mode} .* opaque"):
            read_image(tmp_path / "a.png")

    def test_a_transparent_palette_colour_is_refused(self, tmp_path: Path) -> None:
        Image.fromarray(GREY).quantize(8).save(tmp_path / "a.png", transparency=0)
        with pytest.raises(ValueError, match="transparent in places"):
            read_image(tmp_path / "a.png")

    @pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
    def test_other_colour_spaces_are_refused(self, tmp_path: Path, mode: str) -> None:
        picture = Image.new(mode, (4, 4))
        picture.save(tmp_path / "a.tif")
        with pytest.raises(ValueError, match="expected grey or RGB"):
            read_image(tmp_path / "a.tif")

    def test_32_bit_integers_are_refused(self, tmp_path: Path) -> None:
        Image.fromarray(np.full((4, 4), 10**6, np.int32)).save(tmp_path / "a.tif")
        with pytest.raises(ValueError, match="expected grey or RGB of 8 or 16 bits"):
            read_image(tmp_path / "a.tif")

    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
    @pytest.mark.parametrize("keep", [0, 10, 0.5])
    def test_truncated(self, tmp_path: Path, suffix: str, keep: float) -> None:
        path = tmp_path / f"a{suffix}"
        Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * keep) if keep < 1 else int(keep)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own, of truncated TIFF directories
            with pytest.raises(ValueError, match=rf"a\{suffix}: cannot be read as a picture"):
                read_image(path)


class TestArrays:
    @given(
        array=hnp.arrays(
            st.sampled_from(["f4", "f8", "c8", "c16", "i2", "u1", "?"]),
            hnp.array_shapes(min_dims=1, max_dims=4, max_side=4),
            elements={"allow_nan": False, "allow_infinity": False},
        )
    )
    def test_values_and_dtype_are_kept(self, tmp_path_factory: pytest.TempPathFactory, array: np.ndarray) -> None:
        folder = tmp_path_factory.mktemp("arrays")
        np.save(folder / "a.npy", array)
        np.savez(folder / "one.npz", a=array)
        np.savez_compressed(folder / "two.npz", a=array, b=array[:1])
        for path in (folder / "a.npy", folder / "one.npz", f"{folder}/two.npz:a"):
            read = read_array(path)
            assert read.dtype == array.dtype
            np.testing.assert_array_equal(read, array)
        np.testing.assert_array_equal(read_array(f"{folder}/two.npz:b"), array[:1])

    def test_images(self, tmp_path: Path) -> None:
        values = RNG.normal(size=(3, 4))
        np.save(tmp_path / "a.npy", values)
        read = read_image(tmp_path / "a.npy")
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, values[None].astype(np.float32))
        np.save(tmp_path / "c.npy", values + 1j)
        assert read_image(tmp_path / "c.npy").dtype == np.complex64
        assert read_image(tmp_path / "c.npy", dtype="float64").dtype == np.complex128
        np.save(tmp_path / "four.npy", np.zeros((1, 1, 2, 2)))
        with pytest.raises(ValueError, match=r"image has shape \(1, 1, 2, 2\), expected \(H, W\) or \(C, H, W\)"):
            read_image(tmp_path / "four.npy")

    def test_the_name_within_an_archive(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", maps=np.ones(2), mask=np.ones(3))
        with pytest.raises(ValueError, match=r"holds 2 arrays \(maps, mask\), expected FILE\.npz:NAME"):
            read_array(tmp_path / "a.npz")
        with pytest.raises(ValueError, match="has no array 'coils', expected one of maps, mask"):
            read_array(f"{tmp_path}/a.npz:coils")
        np.savez(tmp_path / "none.npz")
        with pytest.raises(ValueError, match="holds 0 arrays"):
            read_array(tmp_path / "none.npz")

    @pytest.mark.parametrize("kind", ["npy", "npz", "bare pickle"])
    def test_pickles_are_refused_and_nothing_is_executed(self, tmp_path: Path, kind: str) -> None:
        mark = tmp_path / "executed"
        content = np.array([_Touch(mark)], dtype=object)
        path = tmp_path / ("a.npz" if kind == "npz" else "a.npy")
        if kind == "npy":
            np.save(path, content, allow_pickle=True)
        elif kind == "npz":
            np.savez(path, a=content)
        else:
            path.write_bytes(pickle.dumps(_Touch(mark)))
        for read in (read_array, read_image):
            with pytest.raises(ValueError, match="cannot be read as an array without pickles"):
                read(path)
        assert not mark.exists()

    @pytest.mark.parametrize("name", ["a.npy", "a.npz", "z.npz"])
    @pytest.mark.parametrize("keep", [0, 3, 20, 0.5, 0.95])
    def test_truncated(self, tmp_path: Path, name: str, keep: float) -> None:
        values = RNG.normal(size=(40, 40))
        save: Callable[..., None] = {"a.npy": np.save, "a.npz": np.savez, "z.npz": np.savez_compressed}[name]
        save(tmp_path / name, values)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: int(len(whole) * keep) if keep < 1 else int(keep)])
        with pytest.raises(ValueError, match=rf"{name}: cannot be read"):
            read_array(tmp_path / name)

    def test_damaged_compressed_data(self, tmp_path: Path) -> None:
        np.savez_compressed(tmp_path / "a.npz", a=np.arange(4000.0))
        raw = bytearray((tmp_path / "a.npz").read_bytes())
        raw[200:260] = b"\xff" * 60
        (tmp_path / "a.npz").write_bytes(raw)
        with pytest.raises(ValueError, match=r"a\.npz: cannot be read"):
            read_array(tmp_path / "a.npz")

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.array([1.0, np.nan, np.inf]), "has 2 NaN or infinite of 3 entries"),
            (np.array([1 + 1j * np.inf]), "has 1 NaN or infinite"),
            (np.zeros((0, 3)), r"is empty, shape \(0, 3\)"),
            (np.array(["text"]), "dtype <U4, expected numbers"),
            (np.zeros(2, dtype=[("a", "f4")]), "expected numbers"),
        ],
    )
    def test_content_is_checked(self, tmp_path: Path, array: np.ndarray, message: str) -> None:
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(ValueError, match=rf"a\.npy: .*{message}"):
            read_array(tmp_path / "a.npy")

    def test_what_overflows_is_refused(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.full((2, 2), 1e300))
        with pytest.raises(ValueError, match="has 4 NaN or infinite"):
            read_image(tmp_path / "a.npy")


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


class TestPlace:
    @pytest.mark.parametrize("read", [read_array, read_image])
    def test_missing_folder_and_other_kinds(self, tmp_path: Path, read: Callable[[Path], Any]) -> None:
        with pytest.raises(FileNotFoundError, match=r"no\.npy: there is no such file"):
            read(tmp_path / "no.npy")
        with pytest.raises(FileNotFoundError, match="there is no such file"):
            read(Path(f"{tmp_path}/no.npz:a"))
        (tmp_path / "folder.npy").mkdir()
        with pytest.raises(ValueError, match="is a folder, expected a file"):
            read(tmp_path / "folder.npy")
        (tmp_path / "a.txt").write_text("1")
        with pytest.raises(ValueError, match=r"a\.txt: is of a kind that is not read here, expected \.png"):
            read(tmp_path / "a.txt")

    def test_a_picture_is_no_array(self, tmp_path: Path) -> None:
        Image.fromarray(GREY).save(tmp_path / "a.png")
        with pytest.raises(ValueError, match=r"expected \.npy, \.npz$"):
            read_array(tmp_path / "a.png")


class TestVolumes:
    @pytest.fixture
    def volume(self, tmp_path: Path) -> tuple[Path, np.ndarray]:
        nibabel = pytest.importorskip("nibabel")
        values = RNG.normal(size=(4, 5, 6)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii.gz")
        return tmp_path / "a.nii.gz", values

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_a_slice(self, volume: tuple[Path, np.ndarray], axis: int) -> None:
        path, values = volume
        np.testing.assert_array_equal(read_image(path, slice_axis=axis, index=3)[0], np.take(values, 3, axis=axis))

    @pytest.mark.parametrize("index", [None, -1, 6])
    def test_a_bad_index_is_refused(self, volume: tuple[Path, np.ndarray], index: int | None) -> None:
        with pytest.raises(ValueError, match=rf"slice index is {index}, expected 0 to 5 along axis 2"):
            read_image(volume[0], index=index)

    def test_a_bad_axis_is_refused(self, volume: tuple[Path, np.ndarray]) -> None:
        with pytest.raises(ValueError, match="slice axis is 3, expected 0, 1 or 2"):
            read_image(volume[0], slice_axis=3, index=0)

    def test_four_dimensions_and_garbage_are_refused(self, tmp_path: Path) -> None:
        nibabel = pytest.importorskip("nibabel")
        nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2, 2), np.float32), np.eye(4)), tmp_path / "f.nii")
        with pytest.raises(ValueError, match=r"shape \(2, 2, 2, 2\), expected three dimensions"):
            read_image(tmp_path / "f.nii", index=0)
        (tmp_path / "g.nii.gz").write_bytes(b"no volume")
        with pytest.raises(ValueError, match=r"g\.nii\.gz: cannot be read as NIfTI"):
            read_image(tmp_path / "g.nii.gz", index=0)

    def test_truncated(self, volume: tuple[Path, np.ndarray]) -> None:
        path, _ = volume
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(ValueError, match="cannot be read as NIfTI"):
            read_image(path, index=0)


class TestScaling:
    @given(image=hnp.arrays("f4", (1, 4, 4), elements=st.floats(0.5, 100, width=32)), percentile=st.floats(1, 100))
    def test_the_percentile_becomes_one(self, image: np.ndarray, percentile: float) -> None:
        divided, factor = scale_to_percentile(image, percentile)
        assert divided.dtype == np.float32
        assert factor == pytest.approx(np.percentile(image, percentile))
        np.testing.assert_allclose(divided * factor, image, rtol=1e-6)

    def test_complex_and_integers(self) -> None:
        divided, factor = scale_to_percentile(np.array([3 + 4j, 0], np.complex64), 100)
        assert factor == 5
        assert divided.dtype == np.complex64
        np.testing.assert_allclose(divided, [0.6 + 0.8j, 0], rtol=1e-6)
        divided, factor = scale_to_percentile(np.array([1, 2, 4], np.uint8), 75)
        assert factor == 3
        np.testing.assert_allclose(divided, [1 / 3, 2 / 3, 4 / 3])

    def test_refusals(self) -> None:
        for percentile in (0, 101, float("nan")):
            with pytest.raises(ValueError, match="expected a number in"):
                scale_to_percentile(np.ones(3), percentile)
        with pytest.raises(ValueError, match="percentile of the image is 0"):
            scale_to_percentile(np.zeros(3))
        with pytest.raises(ValueError, match="percentile of the image is nan"):
            scale_to_percentile(np.array([1.0, np.nan]))
