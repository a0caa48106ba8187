"""The recipes' tables [data] on the data that stand beside the project."""

import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from potentia.training._sources import Images, read_images

BRAIN = """
size = [112, 96]
complex = true
[[source]]
path = "brain/colin27_t1.nii.gz"
percentile = 99
spacing = 2.0
validation = { slices = [70, 90], gap = 10 }
[[source]]
path = "brain/cit168_t1.nii.gz"
percentile = 99
spacing = 2.0
"""


def read(text: str, base: Path) -> Images:
    pytest.importorskip("nibabel", reason="nibabel is not installed")
    pytest.importorskip("PIL", reason="Pillow is not installed")
    return read_images(tomllib.loads(text), base)


def test_digits(shared_data: Path) -> None:
    text = '[[source]]\npath = "digits/mnist10k.npz:images"\nrange = [0, 255]\nvalidation = { fraction = 0.05 }'
    images = read(text, shared_data)
    assert images.train.shape == (9500, 1, 28, 28)
    assert images.validation.shape == (500, 1, 28, 28)
    assert (images.train.min(), images.train.max()) == (-1, 1)


def test_faces(shared_data: Path) -> None:
    images = read(
        """
        [[source]]
        path = "faces/sfhq_aligned_479x64.npz:images"
        range = [0, 255]
        validation = { last = 24 }
        [[source]]
        path = "faces/sfhq_t2i_1586x64_mosaic.jpg"
        mosaic = { tile = [64, 64], columns = 40, count = 1586 }
        validation = { last = 80 }
        """,
        shared_data,
    )
    assert images.train.shape == (455 + 1506, 3, 64, 64)
    assert images.validation.shape == (104, 3, 64, 64)
    assert images.train.std(dim=(1, 2, 3)).min() > 0.02  # none is a padding tile of one colour


def test_brains_fit_the_frame_and_look_alike(shared_data: Path) -> None:
    images = read(BRAIN, shared_data)
    assert images.validation.shape == (20, 1, 112, 96)
    assert (images.train.imag == 0).all()
    heads = torch.cat([images.train, images.validation]).real
    edge = torch.cat([heads[..., [0, -1], :].flatten(), heads[..., :, [0, -1]].flatten()])
    assert edge.max() < 0.02
    assert 0.95 < torch.quantile(heads[heads > 0.02][::7], 0.95) < 0.99


def test_the_template_of_nilearn(shared_data: Path) -> None:
    pytest.importorskip("nilearn", reason="nilearn is not installed")
    text = BRAIN + '[[source]]\npath = "nilearn:mni152_t1"\npercentile = 99\nspacing = 2.0\nvalidation={volume = true}'
    images = read(text, shared_data)
    assert len(images.validation) - 20 > 130
    means = [part.abs().sum(0)[0] for part in (images.train, images.validation[20:])]
    # aligned heads: the mean slices correlate, and do not once one of them is upside down
    upright, turned = (np.corrcoef(means[0].flatten(), m.flatten())[0, 1] for m in (means[1], means[1].flip(0)))
    assert upright > 0.97
    assert turned < 0.95
