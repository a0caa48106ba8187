"""A user's own energy."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor

from potentia._potential import Energy, Scales, Sigma
from potentia._tensor import EVENT_DIMS
from potentia._validate import shape_text
from potentia.energies._denoiser import label
from potentia.energies._shared import Event, event_or_none, scale_range, wide


class Function(Energy):
    """U(x) = fn(x), or with scales U_s(x) = fn(x, s); gradients come from autograd.

    ``fn`` gets x as it came and sigma as it came, a float or a tensor (*batch,), or the finest scale for None. Leave
    batch entries independent of one another: sum over the last three dimensions.

    Shapes: x (*batch, C, H, W); fn returns (*batch,), real. ``shape`` says which (C, H, W) it takes; None: any.
    Units: fn returns nats.
    Raises: TypeError if fn is not callable or returns no tensor; ValueError if it returns another shape, a complex or
        an integer dtype, if scales are not 0 < low <= high, or sigma is outside of them.
    """

    default_name: ClassVar[str] = "function"
    fn: Callable[..., Tensor]

    def __init__(
        self, fn: Callable[..., Tensor], scales: Scales | None = None, *, shape: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        if not callable(fn):
            raise TypeError(f"{self.name}: fn must be callable, got {type(fn).__name__}")
        self.fn = fn
        self._scales = None if scales is None else scale_range(self.name, scales)
        self._event = event_or_none(self.name, shape)

    @property
    def event_shape(self) -> Event | None:
        return self._event

    @property
    def scales(self) -> Scales | None:
        return self._scales

    def extra_repr(self) -> str:
        return label(self.fn)

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        self.check(x)
        if self._scales is None:
            return self._checked(self.fn(x), x)
        self.sigma_of(x, sigma)
        return self._checked(self.fn(x, self._scales[0] if sigma is None else sigma), x)

    def _checked(self, value: Any, x: Tensor) -> Tensor:
        want = tuple(x.shape[:-EVENT_DIMS])
        if not isinstance(value, Tensor):
            raise TypeError(f"{self.name}: {label(self.fn)} returned {type(value).__name__}, expected a tensor")
        if tuple(value.shape) != want:
            raise ValueError(
                f"{self.name}: {label(self.fn)} returned shape {shape_text(tuple(value.shape))}, expected "
                f"{shape_text(want)}, one value per batch entry"
            )
        if not value.is_floating_point():
            raise ValueError(f"{self.name}: {label(self.fn)} returned dtype {value.dtype}, expected a real float")
        return wide(value)
