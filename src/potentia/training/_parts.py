"""What every source of images shares: sizes, channels, and which images are held out."""

from dataclasses import dataclass

import torch
from torch import Tensor

from potentia._validate import shape_text
from potentia.training._table import Table

LUMA = (0.299, 0.587, 0.114)  # Rec. 601
BY_INDEX = ("fraction", "first", "last", "indices")

Size = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Part:
    """What one source gives.

    Shapes: train (N, C, H, W), validation (M, C, H, W).
    """

    name: str
    train: Tensor
    validation: Tensor
    note: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (C, H, W) of one image."""
        return tuple(self.train.shape[1:])


def held_out(where: str, spec: object, number: int, what: str) -> range:
    """Read which of ``number`` things are held out: a contiguous range of their indices, which may be empty.

    A fraction is taken from the end and is one thing at the least.

    Raises: ValueError for a table that names none or several ways, or more than there are.
    """
    if spec is None:
        return range(0)
    table = Table(where, spec, BY_INDEX)
    if len(table.values) != 1:
        raise ValueError(f"{where}: got {dict(table.values)}, expected one of {', '.join(BY_INDEX)}")
    indices = table.interval("indices", None, number)
    if indices is not None:
        return range(*indices)
    fraction = table.number("fraction", None, least=0, most=1)
    if fraction == 0:
        raise table.fault("fraction", "a number above 0")
    first, last = table.whole("first", None, least=1), table.whole("last", None, least=1)
    wanted = first or last or max(1, round((fraction or 0) * number))
    if wanted > number:
        raise ValueError(f"{where}: {wanted} {what} are to be held out, but there are {number}")
    return range(wanted) if first else range(number - wanted, number)


def split(name: str, images: Tensor, held: range, what: str) -> Part:
    """Divide images by index."""
    mask = torch.zeros(len(images), dtype=torch.bool)
    mask[held.start : held.stop] = True
    kept = f"{what} {held.start} to {held.stop - 1} held out for validation" if held else "none held out"
    note = f"{name}: {len(images)} images of shape {shape_text(tuple(images.shape[1:]))}, {kept}."
    return Part(name, images[~mask], images[mask], note)


def centred(images: Tensor, size: Size | None, background: float) -> Tensor:
    """Crop about the centre what is larger than ``size`` and fill up with ``background`` what is smaller.

    Shapes: images (N, C, H, W); returns (N, C, *size).
    """
    if size is None or tuple(images.shape[-2:]) == size:
        return images
    out = images.new_full((*images.shape[:-2], *size), background)
    (source_y, y), (source_x, x) = (_overlap(n, m) for n, m in zip(images.shape[-2:], size, strict=True))
    out[..., y, x] = images[..., source_y, source_x]
    return out


def _overlap(length: int, wanted: int) -> tuple[slice, slice]:
    """Give where a centred line of ``wanted`` pixels lies in one of ``length``, and the other way round."""
    common = min(length, wanted)
    start, target = (length - common) // 2, (wanted - common) // 2
    return slice(start, start + common), slice(target, target + common)


def with_channels(name: str, images: Tensor, channels: int | None) -> Tensor:
    """Give images 1 channel, by Rec. 601 luma, or 3, by repetition.

    Shapes: images (..., C, H, W).
    Raises: ValueError for other numbers of channels than 1 and 3.
    """
    have = images.shape[-3]
    if channels is None or have == channels:
        return images
    if have == 1 and channels == 3:
        return torch.cat([images] * 3, dim=-3)
    if have == 3 and channels == 1:
        red, green, blue = images.unbind(-3)
        return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).unsqueeze(-3)
    raise ValueError(f"{name}: images have {have} channels, which cannot become {channels}, expected 1 or 3")
