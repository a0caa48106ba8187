"""Single images that a store keeps beside the draws, such as the MAP."""

from typing import Any

import numpy as np
from torch import Tensor

from potentia.io._location import Location
from potentia.io._schema import Layout, add_array, find_group

RESERVED = ("mean", "m2", "count", "chain", "channel", "y", "x")  # the running sums, and dimensions


def write_summary(location: Location, layout: Layout, name: str, image: Tensor) -> None:
    """Store one image, such as the MAP, beside the running sums.

    Shapes: image (C, H, W).
    Raises: ValueError for another shape or field, or a name that is taken by the running sums or a dimension.
    """
    if not name.isidentifier() or name in RESERVED:
        raise ValueError(
            f"set_summary: {name!r} cannot name an image, expected an identifier other than {', '.join(RESERVED)}"
        )
    if tuple(image.shape) != layout.event_shape or image.is_complex() != layout.is_complex:
        raise ValueError(
            f"{name}: image has shape {tuple(image.shape)} and dtype {image.dtype}, expected {layout.event_shape}"
        )
    with location.together(f"{name} of the ensemble") as root:
        group = find_group(root, "posterior_summary", location)
        if name in group:
            del group[name]
        array = add_array(
            group, name, layout.stored_shape, layout.stored_shape, layout.dtype, ("channel", "y", "x"), np.nan
        )
        array[...] = as_stored(image)


def as_stored(image: Tensor) -> "np.ndarray[Any, Any]":
    """Split complex channels into real ones, as the store keeps them: (..., C, H, W) -> (..., 2 C or C, H, W)."""
    values = image.detach().cpu()
    if not values.is_complex():
        return np.asarray(values.numpy())
    parts = np.stack([values.real.numpy(), values.imag.numpy()], axis=-3)
    return parts.reshape(*values.shape[:-3], 2 * values.shape[-3], *values.shape[-2:])
