"""Pictures of an ensemble."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from potentia.io._ensemble import Ensemble


def plot_ensemble(ensemble: "Ensemble", truth: Any, data: Any, num_samples: int) -> "Figure":
    """Draw one row of panels a channel group: images share a grey scale, std and error share another.

    Raises: ImportError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as err:
        raise ImportError(
            "plot: matplotlib is missing, expected it for pictures: pip install 'potentia[plot]'"
        ) from err
    panels = _panels(ensemble, truth, data, num_samples)
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    height, width = ensemble.event_shape[-2:]
    figure = Figure(
        figsize=(3.3 * columns, 3.3 * rows * min(1.6, max(0.6, height / width)) + 0.5), layout="constrained"
    )
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    shown = [p for name, p in panels if name not in ("std", "error")]
    low, high = min(float(p.min()) for p in shown), max(float(np.quantile(p, 0.999)) for p in shown)
    high = high if high > low else low + 1.0
    spread = max((float(np.quantile(p, 0.999)) for name, p in panels if name in ("std", "error")), default=1.0)
    for axis, (name, picture) in zip(axes, panels, strict=False):
        uncertain = name in ("std", "error")
        limits = (
            {"vmin": 0.0, "vmax": spread, "cmap": "magma"} if uncertain else {"vmin": low, "vmax": high, "cmap": "gray"}
        )
        if picture.ndim == 3:
            drawn = axis.imshow(np.clip((picture - low) / (high - low), 0, 1))
        else:
            drawn = axis.imshow(picture, **limits)
            if uncertain or name == "mean":  # the other images share the mean's scale
                figure.colorbar(drawn, ax=axis, fraction=0.046, pad=0.03)
        axis.set_title(name)
        axis.set_axis_off()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    return figure


def _panels(ensemble: "Ensemble", truth: Any, data: Any, num_samples: int) -> list[tuple[str, "np.ndarray[Any, Any]"]]:
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
