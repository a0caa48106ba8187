"""Pictures of an ensemble."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from potentia.io._ensemble import Ensemble


Panel = tuple[str, "np.ndarray[Any, Any]"]
MAPS = ("std", "error")


def plot_ensemble(ensemble: "Ensemble", truth: Any, data: Any, num_samples: int) -> "Figure":
    """Draw images on one grey scale, and to their right the std above the error on another.

    Raises: ImportError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as err:
        raise ImportError(
            "plot: matplotlib is missing, expected it for pictures: pip install 'potentia[plot]'"
        ) from err
    panels = _panels(ensemble, truth, data, num_samples)
    maps = [panel for panel in panels if panel[0] in MAPS]
    images = [panel for panel in panels if panel[0] not in MAPS]
    rows = 2 if len(images) > 3 or len(maps) > 1 else 1
    across = -(-len(images) // rows)
    columns = across + bool(maps)
    height, width = ensemble.event_shape[-2:]
    size = (2.9 * columns + 0.9, 3.1 * rows * min(1.6, max(0.6, height / width)) + 0.2)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    _draw(figure, axes[:, :across].ravel(), images, "gray", _limits(images), "left")
    if maps:
        top = max(float(np.quantile(picture, 0.999)) for _, picture in maps)
        _draw(figure, axes[:, -1], maps, "magma", (0.0, top), "right")
    return figure


def _limits(images: list[Panel]) -> tuple[float, float]:
    low = min(float(picture.min()) for _, picture in images)
    high = max(float(np.quantile(picture, 0.999)) for _, picture in images)
    return low, high if high > low else low + 1.0


def _draw(
    figure: "Figure", axes: Any, panels: list[Panel], colours: str, limits: tuple[float, float], side: str
) -> None:
    low, high = limits
    drawn = None
    for axis, (name, picture) in zip(axes, panels, strict=False):
        if picture.ndim == 3:
            axis.imshow(np.clip((picture - low) / (high - low), 0, 1))
        else:
            drawn = axis.imshow(picture, vmin=low, vmax=high, cmap=colours)
        axis.set_title(name)
    if drawn is not None:
        figure.colorbar(drawn, ax=list(axes), location=side, shrink=0.9, aspect=30, pad=0.02)


def _panels(ensemble: "Ensemble", truth: Any, data: Any, num_samples: int) -> list[Panel]:
    total = ensemble.num_chains * ensemble.num_draws
    mean = ensemble._as_sampled(ensemble.mean().values)
    truth = _stored(ensemble, "truth") if truth is None else truth
    data = _stored(ensemble, "zero_filled") if data is None else data
    panels = [("truth", truth), ("data", data), ("mean", mean)]
    pictures = [(name, _picture(image)) for name, image in panels if _fits(image, ensemble)]
    if total > 1:
        spread = ensemble._as_sampled(ensemble.std().values)
        pictures.append(("std", _flat(spread.abs())))  # of a complex image: the spread of both parts together
    if _fits(truth, ensemble):
        error = _picture_tensor(mean) - _picture_tensor(_tensor(truth))
        pictures.append(("error", _flat(error.abs())))
    for k in range(min(num_samples, total)):
        chain, draw = divmod(k, ensemble.num_draws)
        stored = np.array(ensemble.image.isel(chain=chain, draw=draw).values)
        pictures.append((f"sample {k + 1}", _picture(ensemble._as_sampled(stored))))
    return pictures


def _stored(ensemble: "Ensemble", name: str) -> Tensor | None:
    held = ensemble._stored_constant(name)
    if held is None or held.shape != ensemble._layout.stored_shape:
        return None
    return ensemble._as_sampled(held)


def _tensor(image: Any) -> Tensor:
    return image.detach().cpu() if isinstance(image, Tensor) else torch.as_tensor(np.asarray(image))


def _fits(image: Any, ensemble: "Ensemble") -> bool:
    return image is not None and tuple(_tensor(image).shape[-2:]) == ensemble.event_shape[-2:]


def _picture_tensor(image: Tensor) -> Tensor:
    return image.abs() if image.is_complex() else image


def _flat(image: Tensor) -> "np.ndarray[Any, Any]":
    """Mean over channels: (C, H, W) -> (H, W)."""
    return image.mean(dim=0).double().numpy()


def _picture(image: Any) -> "np.ndarray[Any, Any]":
    """(C, H, W) -> (H, W), or (H, W, 3) for three real channels."""
    real = _picture_tensor(_tensor(image)).double()
    return np.moveaxis(real.numpy(), 0, -1) if real.shape[0] == 3 else _flat(real)
