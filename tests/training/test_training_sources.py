"""Sources of training images: values, sizes, what is held out, and a clear refusal of everything else."""

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from potentia.training._sources import Images, read_images

nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")
Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (20, 6, 8), dtype=np.uint8)
RGB = RNG.integers(0, 256, (20, 6, 8, 3), dtype=np.uint8)


def read(base: Path, *sources: dict[str, Any], **data: Any) -> Images:
    spec = {**data, "source": list(sources)}
    before = copy.deepcopy(spec)
    images = read_images(spec, base)
    assert spec == before
    return images


def unit(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float64) / 255 * 2 - 1).float()


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    np.savez(tmp_path / "grey.npz", images=GREY, labels=np.arange(20))
    np.save(tmp_path / "rgb.npy", RGB)
    return tmp_path


class TestArrays:
    def test_grey(self, arrays: Path) -> None:
        images = read(arrays, {"path": "grey.npz:images", "range": [0, 255], "validation": {"fraction": 0.1}})
        assert images.train.shape == (18, 1, 6, 8)
        assert images.train.dtype == torch.float32
        torch.testing.assert_close(images.train[:, 0], unit(GREY[:18]), atol=2e-7, rtol=0)
        torch.testing.assert_close(images.validation[:, 0], unit(GREY[18:]), atol=2e-7, rtol=0)
        assert images.notes == (
            "grey.npz:images: 20 images of shape (1, 6, 8), indices 18 to 19 held out for validation.",
        )

    def test_ends_of_the_range_are_exact(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.array([[[0, 255]]], np.uint8))
        assert read(tmp_path, {"path": "a.npy", "range": [0, 255]}).train.tolist() == [[[[-1.0, 1.0]]]]

    def test_values_are_kept_without_a_range(self, arrays: Path) -> None:
        assert torch.equal(read(arrays, {"path": "grey.npz:images"}).train[:, 0], torch.from_numpy(GREY).float())

    @pytest.mark.parametrize("source", [{}, {"layout": "NHWC"}])
    def test_channels_last(self, arrays: Path, source: dict[str, Any]) -> None:
        images = read(arrays, {"path": "rgb.npy", "range": [0, 255], **source})
        torch.testing.assert_close(images.train, unit(RGB).permute(0, 3, 1, 2), atol=2e-7, rtol=0)

    def test_channels_first(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", RGB.transpose(0, 3, 1, 2))
        with pytest.raises(ValueError, match=r"\(a.npy\): array has shape \(20, 3, 6, 8\), expected layout"):
            read(tmp_path, {"path": "a.npy"})
        assert read(tmp_path, {"path": "a.npy", "layout": "NCHW"}).train.shape == (20, 3, 6, 8)

    def test_an_array_that_could_be_both_needs_a_layout(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.zeros((2, 3, 5, 3)))
        with pytest.raises(ValueError, match="expected layout = 'NHWC' or 'NCHW'"):
            read(tmp_path, {"path": "a.npy"})

    @pytest.mark.parametrize(
        ("channels", "path", "expected"),
        [
            (1, "rgb.npy", unit(RGB) @ torch.tensor([0.299, 0.587, 0.114])),
            (3, "rgb.npy", unit(RGB)),
            (3, "grey.npz:images", unit(GREY)[..., None].expand(-1, -1, -1, 3)),
        ],
    )
    def test_channels_are_converted(self, arrays: Path, channels: int, path: str, expected: torch.Tensor) -> None:
        images = read(arrays, {"path": path, "range": [0, 255], "channels": channels}).train
        assert images.shape == (20, channels, 6, 8)
        expected = expected[:, None] if channels == 1 else expected.permute(0, 3, 1, 2)
        torch.testing.assert_close(images, expected, atol=1e-6, rtol=0)

    def test_cropped_and_filled_about_the_centre(self, arrays: Path) -> None:
        images = read(arrays, {"path": "grey.npz:images", "range": [0, 255]}, size=[8, 5]).train
        assert images.shape == (20, 1, 8, 5)
        torch.testing.assert_close(images[:, 0, 1:7], unit(GREY)[..., 1:6], atol=2e-7, rtol=0)
        assert (images[:, :, [0, 7]] == -1).all()
        assert (read(arrays, {"path": "grey.npz:images"}, size=[8, 8]).train[:, :, 0] == 0).all()
        assert (read(arrays, {"path": "grey.npz:images", "background": 7}, size=[8, 8]).train[:, :, 0] == 7).all()

    def test_complex(self, tmp_path: Path) -> None:
        np.save(tmp_path / "c.npy", np.full((2, 3, 3), 1 + 2j))
        np.save(tmp_path / "r.npy", np.ones((2, 3, 3)))
        images = read(tmp_path, {"path": "c.npy"}, {"path": "r.npy"}, complex=True).train
        assert images.dtype == torch.complex64
        assert images[:, 0, 0, 0].tolist() == [1 + 2j, 1 + 2j, 1, 1]
        with pytest.raises(ValueError, match=r"c.npy holds complex numbers, expected complex = true"):
            read(tmp_path, {"path": "c.npy"})


class TestHeldOut:
    @pytest.mark.parametrize(
        ("validation", "held"),
        [
            ({"fraction": 0.25}, range(15, 20)),
            ({"fraction": 0.001}, range(19, 20)),
            ({"last": 3}, range(17, 20)),
            ({"first": 3}, range(3)),
            ({"indices": [4, 7]}, range(4, 7)),
        ],
    )
    def test_by_index(self, arrays: Path, validation: dict[str, Any], held: range) -> None:
        images = read(arrays, {"path": "grey.npz:images", "validation": validation})
        assert torch.equal(images.validation[:, 0], torch.from_numpy(GREY[held.start : held.stop]).float())
        kept = [i for i in range(20) if i not in held]
        assert torch.equal(images.train[:, 0], torch.from_numpy(GREY[kept]).float())

    def test_nothing_is_held_out_unless_asked(self, arrays: Path) -> None:
        assert read(arrays, {"path": "grey.npz:images"}).validation.shape == (0, 1, 6, 8)

    def test_one_source_may_be_for_validation_alone(self, arrays: Path) -> None:
        images = read(arrays, {"path": "grey.npz:images"}, {"path": "grey.npz:images", "validation": {"fraction": 1}})
        assert torch.equal(images.train, images.validation)
        with pytest.raises(ValueError, match="every image is held out"):
            read(arrays, {"path": "grey.npz:images", "validation": {"fraction": 1.0}})

    @pytest.mark.parametrize(
        ("validation", "message"),
        [
            ({}, "expected one of fraction, first, last, indices"),
            ({"first": 1, "last": 1}, "expected one of"),
            ({"random": 0.1}, "unknown key 'random', expected first, fraction, indices, last"),
            ({"fraction": 0}, "fraction is 0, expected a number above 0"),
            ({"fraction": 1.5}, "fraction is 1.5, expected a finite number from 0 to 1"),
            ({"last": 21}, "21 images are to be held out, but there are 20"),
            ({"first": 0}, "first is 0, expected an integer of at least 1"),
            ({"last": True}, "last is True"),
            ({"indices": [5, 5]}, r"indices is \[5, 5\], expected a half-open range within \[0, 20\]"),
            ({"indices": [5, 21]}, "half-open range"),
            (0.1, "got 0.1, expected a table"),
        ],
    )
    def test_refusals(self, arrays: Path, validation: Any, message: str) -> None:
        with pytest.raises(ValueError, match=rf"\[data\] source 0 \(grey.npz:images\) validation: .*{message}"):
            read(arrays, {"path": "grey.npz:images", "validation": validation})


class TestPictures:
    def folder(self, base: Path, pictures: np.ndarray, names: str = "b{:02}.png") -> Path:
        (base / "photos").mkdir(exist_ok=True)
        for i, picture in enumerate(pictures):
            Image.fromarray(picture).save(base / "photos" / names.format(i))
        return base

    def test_folder(self, tmp_path: Path) -> None:
        self.folder(tmp_path, GREY)
        self.folder(tmp_path, RGB[:1], "a{}.png")
        (tmp_path / "photos" / "LICENSE").touch()
        (tmp_path / "photos" / ".hidden.png").touch()
        images = read(tmp_path, {"path": "photos", "channels": 1, "validation": {"last": 2}})
        torch.testing.assert_close(images.validation[:, 0], unit(GREY[18:]), atol=2e-7, rtol=0)
        torch.testing.assert_close(images.train[1:, 0], unit(GREY[:18]), atol=2e-7, rtol=0)
        assert images.notes[0].endswith(
            "files 19 to 20 held out for validation. 1 files of other kinds were passed over."
        )

    def test_unlike_pictures(self, tmp_path: Path) -> None:
        self.folder(tmp_path, GREY)
        self.folder(tmp_path, RGB[:1], "c.png")
        with pytest.raises(
            ValueError, match=r"c.png: picture has shape \(3, 6, 8\), expected \(1, 6, 8\) of the first"
        ):
            read(tmp_path, {"path": "photos"})
        self.folder(tmp_path, GREY[:1, :4], "c.png")
        with pytest.raises(ValueError, match=r"c.png: picture has size \(4, 8\), expected at least \(5, 5\)"):
            read(tmp_path, {"path": "photos"}, size=[5, 5])
        assert read(tmp_path, {"path": "photos", "fit": "resize"}, size=[5, 5]).train.shape == (21, 1, 5, 5)

    def test_crop(self, tmp_path: Path) -> None:
        images = read(self.folder(tmp_path, GREY), {"path": "photos/"}, size=[4, 4]).train
        torch.testing.assert_close(images[:, 0], unit(GREY[:, 1:5, 2:6]), atol=2e-7, rtol=0)

    def test_resize_keeps_proportions_and_means(self, tmp_path: Path) -> None:
        ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (32, 1))
        images = read(self.folder(tmp_path, ramp[None]), {"path": "photos", "fit": "resize"}, size=[8, 8]).train
        # 32 x 64 -> 8 x 16 -> the middle 8 x 8: pixels 16 to 47 by fours, whose means are theirs in the ramp
        expected = unit(ramp[0, 16:48].reshape(8, 4).mean(1))
        torch.testing.assert_close(images[0, 0, 0], expected, atol=1e-5, rtol=0)

    def test_mosaic(self, tmp_path: Path) -> None:
        tiled = RGB.reshape(4, 5, 6, 8, 3).swapaxes(1, 2).reshape(24, 40, 3)
        Image.fromarray(tiled).save(tmp_path / "m.png")
        source = {"path": "m.png", "mosaic": {"tile": [6, 8], "columns": 5, "count": 18}, "validation": {"last": 8}}
        images = read(tmp_path, source)
        torch.testing.assert_close(images.train, unit(RGB[:10]).permute(0, 3, 1, 2), atol=2e-7, rtol=0)
        torch.testing.assert_close(images.validation, unit(RGB[10:18]).permute(0, 3, 1, 2), atol=2e-7, rtol=0)
        for wrong, message in (
            ({"tile": [7, 8]}, r"picture has size \(24, 40\), expected whole tiles 7x8"),
            ({"tile": [6, 8], "columns": 4}, "columns is 4, expected 5"),
            ({"tile": [6, 8], "count": 21}, "count is 21, expected at most 20"),
            ({}, "tile is missing"),
            ({"tile": 6}, "tile is 6, expected two integers"),
        ):
            with pytest.raises(ValueError, match=f"source 0 \\(m.png\\) mosaic: {message}"):
                read(tmp_path, {"path": "m.png", "mosaic": wrong})

    def test_one_picture(self, tmp_path: Path) -> None:
        Image.fromarray(GREY[0]).save(tmp_path / "a.png")
        assert read(tmp_path, {"path": "a.png"}, size=[6, 6]).train.shape == (1, 1, 6, 6)


HEAD = np.zeros((6, 8, 10), np.float32)  # right, anterior, superior
HEAD[1:5, 1:7, 2:9] = np.arange(1, 4 * 6 * 7 + 1).reshape(4, 6, 7)


def save_volume(path: Path, values: np.ndarray = HEAD, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)


class TestVolumes:
    def test_upright_slices(self, tmp_path: Path) -> None:
        save_volume(tmp_path / "a.nii.gz")
        images = read(tmp_path, {"path": "a.nii.gz"})
        assert images.train.shape == (7, 1, 8, 6)
        expected = np.stack([HEAD[:, ::-1, k].T for k in range(2, 9)])
        np.testing.assert_array_equal(images.train[:, 0], expected)
        assert images.notes == (
            "a.nii.gz: 1 volume, 7 slices of shape (1, 8, 6) to train on, 0 held out for validation, "
            "3 almost empty ones dropped.",
        )

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_storage_order_does_not_matter_when_upright(self, tmp_path: Path, axis: int) -> None:
        save_volume(tmp_path / "a.nii")
        turned = np.diag([1.0, 1.0, 1.0, 1.0])[:, [2, 0, 1, 3]]
        turned[:, 0] *= -1
        save_volume(tmp_path / "b.nii", np.ascontiguousarray(HEAD.transpose(2, 0, 1)[::-1]), turned)
        first, second = (read(tmp_path, {"path": p, "slice_axis": axis}).train for p in ("a.nii", "b.nii"))
        assert torch.equal(first, second)
        stored = read(tmp_path, {"path": "b.nii", "slice_axis": 0, "orient": "stored"}).train
        np.testing.assert_array_equal(stored[:, 0], HEAD.transpose(2, 0, 1)[::-1][1:8])

    def test_percentile_and_clip(self, tmp_path: Path) -> None:
        save_volume(tmp_path / "a.nii")
        scale = np.percentile(HEAD[HEAD > 0], 90)
        images = read(tmp_path, {"path": "a.nii", "percentile": 90}).train
        np.testing.assert_allclose(images[:, 0].movedim(0, -1).flip(0), HEAD[..., 2:9].transpose(1, 0, 2) / scale, 1e-6)
        clipped = read(tmp_path, {"path": "a.nii", "percentile": 90, "clip": 1}).train
        assert torch.equal(clipped, images.clamp(max=1))
        save_volume(tmp_path / "b.nii", HEAD * 17)
        torch.testing.assert_close(read(tmp_path, {"path": "b.nii", "percentile": 90}).train, images)

    def test_spacing_averages_blocks(self, tmp_path: Path) -> None:
        save_volume(tmp_path / "a.nii", HEAD, np.diag([1, 0.5, 3, 1]))
        images = read(tmp_path, {"path": "a.nii", "spacing": 2.0}).train[:, 0]
        blocks = HEAD[:, ::-1, 2:9].reshape(3, 2, 2, 4, 7).mean((1, 3))
        np.testing.assert_allclose(images, blocks.transpose(2, 1, 0), rtol=1e-5)

    @pytest.mark.parametrize("spacing", [0.7, 1.0, 1.3, 2.0, 2.6])
    def test_spacing_keeps_position_and_integral(self, tmp_path: Path, spacing: float) -> None:
        blob = np.zeros((40, 50, 2), np.float32)
        x, y = np.meshgrid(np.arange(40), np.arange(50), indexing="ij")
        blob[..., 0] = np.exp(-((x - 17) ** 2 + (y - 30) ** 2) / 18)
        blob[..., 1] = blob[..., 0]
        save_volume(tmp_path / "a.nii", blob)
        image = read(tmp_path, {"path": "a.nii", "spacing": spacing}).train[0, 0].double()
        total = image.sum()
        assert float(total) * spacing**2 == pytest.approx(blob[..., 0].sum(), rel=2e-3)
        rows, columns = (torch.arange(n).double() * spacing + spacing / 2 for n in image.shape)
        assert float(image.sum(0) @ columns / total) == pytest.approx(17.5, abs=0.01)
        assert float(image.sum(1) @ rows / total) == pytest.approx(50 - 30.5, abs=0.01)

    def test_size_and_background(self, tmp_path: Path) -> None:
        save_volume(tmp_path / "a.nii", HEAD - 1)
        images = read(tmp_path, {"path": "a.nii", "background": -1, "percentile": 100}, size=[10, 4]).train
        assert images.shape == (7, 1, 10, 4)
        assert images[:, :, [0, 9]].unique().tolist() == pytest.approx([-1 / 167])

    @pytest.mark.parametrize(
        ("source", "train", "validation"),
        [
            ({"slices": [3, 8]}, [3, 4, 5, 6, 7], []),
            ({"validation": {"slices": [4, 6]}}, [2, 3, 6, 7, 8], [4, 5]),
            ({"validation": {"slices": [4, 6], "gap": 1}}, [2, 7, 8], [4, 5]),
            ({"validation": {"slices": [0, 3], "gap": 2}}, [5, 6, 7, 8], [2]),
            ({"slices": [3, 8], "validation": {"slices": [6, 8], "gap": 2}}, [3], [6, 7]),
            ({"validation": {"slices": [0, 2]}}, [2, 3, 4, 5, 6, 7, 8], []),
        ],
    )
    def test_slices_held_out(
        self, tmp_path: Path, source: dict[str, Any], train: list[int], validation: list[int]
    ) -> None:
        save_volume(tmp_path / "a.nii")
        images = read(tmp_path, {"path": "a.nii", **source})
        for part, expected in ((images.train, train), (images.validation, validation)):
            np.testing.assert_array_equal(part[:, 0], HEAD[:, ::-1].transpose(2, 1, 0)[expected])

    def test_a_whole_volume_held_out(self, tmp_path: Path) -> None:
        save_volume(tmp_path / "a.nii")
        images = read(tmp_path, {"path": "a.nii"}, {"path": "a.nii", "validation": {"volume": True}}, complex=True)
        assert images.train.shape == images.validation.shape == (7, 1, 8, 6)
        assert images.train.dtype == torch.complex64
        assert (images.train.imag == 0).all()
        assert "7 held out for validation (1 whole)" in images.notes[1]

    def test_folder(self, tmp_path: Path) -> None:
        for i in range(4):
            save_volume(tmp_path / "heads" / f"{i}.nii.gz", HEAD * (i + 1))
        images = read(tmp_path, {"path": "heads", "validation": {"fraction": 0.01}})
        assert images.train.shape == (21, 1, 8, 6)
        np.testing.assert_array_equal(images.validation[0, 0], 4 * HEAD[:, ::-1, 2].T)
        assert "4 volumes, 21 slices" in images.notes[0]
        images = read(tmp_path, {"path": "heads", "validation": {"slices": [4, 6]}})
        assert (len(images.train), len(images.validation)) == (20, 8)
        images = read(tmp_path, {"path": "heads", "percentile": 99, "validation": {"indices": [1, 3]}})
        torch.testing.assert_close(images.validation[:7], images.train[:7])
        assert len(images.train) == len(images.validation) == 14

    def test_folders_of_both_kinds_or_none(self, tmp_path: Path) -> None:
        (tmp_path / "heads").mkdir()
        with pytest.raises(ValueError, match="folder holds 0 pictures and 0 volumes, expected one kind or the other"):
            read(tmp_path, {"path": "heads"})
        save_volume(tmp_path / "heads" / "a.nii.gz")
        Image.fromarray(GREY[0]).save(tmp_path / "heads" / "a.png")
        with pytest.raises(ValueError, match="1 pictures and 1 volumes"):
            read(tmp_path, {"path": "heads"})

    def test_volumes_of_other_sizes(self, tmp_path: Path) -> None:
        save_volume(tmp_path / "heads" / "a.nii")
        save_volume(tmp_path / "heads" / "b.nii", HEAD[:, :7])
        with pytest.raises(ValueError, match=r"shapes \(1, 7, 6\), \(1, 8, 6\), expected one: set size"):
            read(tmp_path, {"path": "heads"})
        assert read(tmp_path, {"path": "heads"}, size=[8, 8]).train.shape == (14, 1, 8, 8)

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ({"validation": {"fraction": 0.1}}, "slices of one volume are too alike for a share"),
            ({"validation": {"last": 3}}, "too alike"),
            ({"validation": 3}, "got 3, expected"),
            ({"validation": {"volume": False}}, "expected volume = true alone"),
            ({"validation": {"volume": True, "gap": 1}}, "expected volume = true alone"),
            ({"validation": {"gap": 1}}, "slices is missing"),
            ({"validation": {"slices": [4, 6], "fraction": 1}}, "unknown key 'fraction'"),
            ({"validation": {"slices": []}}, "slices is \\[\\], expected two integers"),
            ({"slices": [3, 8], "validation": {"slices": [2, 5]}}, r"range within the slices used, \[3, 8\)"),
            ({"slices": [3, 11]}, r"slices is \[3, 11\], expected a half-open range within \[0, 10\]"),
            ({"slices": [0, 2]}, "slices 0 to 1 hold signal in 0 of their pixels at most"),
            ({"slice_axis": 3}, "slice_axis is 3, expected 0, 1 or 2"),
            ({"percentile": 101}, "percentile is 101, expected a finite number from 0 to 100"),
            ({"percentile": 0}, "percentile is 0, expected a number above 0"),
            ({"spacing": 0.0}, "spacing is 0.0"),
            ({"clip": "1"}, "clip is '1'"),
            ({"orient": "RAS"}, "orient is 'RAS', expected one of 'upright', 'stored'"),
            ({"range": [0, 1]}, "unknown key 'range'"),
        ],
    )
    def test_refusals(self, tmp_path: Path, source: dict[str, Any], message: str) -> None:
        save_volume(tmp_path / "a.nii")
        with pytest.raises(ValueError, match=rf"a.nii.*: .*{message}"):
            read(tmp_path, {"path": "a.nii", **source})

    def test_files_that_cannot_be_used(self, tmp_path: Path) -> None:
        (tmp_path / "a.nii").write_bytes(b"no volume")
        with pytest.raises(ValueError, match=r"a.nii: cannot be read as NIfTI"):
            read(tmp_path, {"path": "a.nii"})
        save_volume(tmp_path / "a.nii", np.ones((2, 3, 4, 5), np.float32))
        with pytest.raises(ValueError, match=r"a.nii: volume has shape \(2, 3, 4, 5\)"):
            read(tmp_path, {"path": "a.nii"})
        save_volume(tmp_path / "a.nii", np.full((2, 3, 4), np.nan, np.float32))
        with pytest.raises(ValueError, match=r"a.nii: has 24 NaN or infinite of 24 voxels"):
            read(tmp_path, {"path": "a.nii"})
        save_volume(tmp_path / "a.nii", np.zeros((2, 3, 4), np.float32))
        with pytest.raises(ValueError, match=r"a.nii: the 99th percentile is 0"):
            read(tmp_path, {"path": "a.nii", "percentile": 99})

    @pytest.mark.parametrize(("module", "path"), [("nibabel", "a.nii"), ("nilearn.datasets", "nilearn:mni152_t1")])
    def test_a_missing_package_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, path: str
    ) -> None:
        save_volume(tmp_path / "a.nii")
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=rf"{module.split('.')[0]} is missing, expected it.*pip install"):
            read(tmp_path, {"path": path})

    def test_unknown_template(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="nilearn:oasis: there is no such template, expected nilearn:mni152_t1"):
            read(tmp_path, {"path": "nilearn:oasis"})


class TestRefusals:
    @pytest.mark.parametrize("path", ["none.npz:images", "none.npy", "photos/", "a.nii.gz", "a.png"])
    def test_missing(self, tmp_path: Path, path: str) -> None:
        with pytest.raises(FileNotFoundError, match="there is no such file"):
            read(tmp_path, {"path": path, "layout": "NHW"} if ".npz:" in path else {"path": path})

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ({"path": "grey.npz:images", "Range": [0, 1]}, "unknown key 'Range', expected background, channels"),
            ({"path": "grey.npz:images", "mosaic": {}}, "unknown key 'mosaic'"),
            ({"path": "grey.npz:images", "range": [255, 0]}, r"range is \[255, 0\], expected two finite numbers"),
            ({"path": "grey.npz:images", "range": [1, 1]}, "expected two different numbers"),
            ({"path": "grey.npz:images", "range": [0, 1]}, "values run from 0 to 255, expected range 0 to 1"),
            ({"path": "grey.npz:images", "layout": "HWN"}, "layout is 'HWN', expected one of 'NHW', 'NHWC', 'NCHW'"),
            ({"path": "grey.npz:images", "layout": "NHWC"}, r"array has shape \(20, 6, 8\), expected NHWC"),
            ({"path": "grey.npz:labels"}, r"array has shape \(20,\), expected \(N, H, W\)"),
            ({"path": "grey.npz:images", "channels": 2}, "channels is 2, expected 1 or 3"),
            ({"path": "grey.npz"}, "holds 2 arrays"),
            ({"path": ""}, "expected a table with a path"),
            ({}, "expected a table with a path"),
            ("grey.npz", "expected a table with a path"),
        ],
    )
    def test_sources(self, arrays: Path, source: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            read(arrays, source)

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ({}, r"\[data\]: source is missing"),
            ({"source": []}, "source is \\[\\], expected a list of one table or more"),
            ({"source": {"path": "grey.npz:images"}}, "expected a list"),
            ({"sources": []}, "unknown key 'sources', expected complex, size, source"),
            ({"size": [28], "source": []}, r"size is \[28\], expected two integers of at least 1"),
            ({"size": [28, 0], "source": []}, r"size is \[28, 0\]"),
            ({"complex": 1, "source": []}, "complex is 1, expected true or false"),
            ([], "expected a table"),
        ],
    )
    def test_data(self, arrays: Path, spec: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            read_images(spec, arrays)

    def test_sources_that_disagree(self, arrays: Path) -> None:
        expected = r"rgb.npy has images of shape \(3, 6, 8\), grey.npz:images of \(1, 6, 8\)"
        with pytest.raises(ValueError, match=expected):
            read(arrays, {"path": "grey.npz:images"}, {"path": "rgb.npy"})


def test_reading_is_deterministic_and_independent_of_the_global_generator(arrays: Path) -> None:
    state = torch.get_rng_state()
    first, second = (read(arrays, {"path": "rgb.npy", "validation": {"fraction": 0.3}}) for _ in range(2))
    assert torch.equal(first.train, second.train)
    assert torch.equal(torch.get_rng_state(), state)
