"""The common base of potentials and operators: a torch module that keeps complex buffers complex."""

from typing import Any, Self

import torch
from torch import Tensor, nn


class Module(nn.Module):
    """A torch module whose dtype moves real and complex buffers together.

    ``nn.Module.to(torch.float64)`` casts complex buffers to real ones and drops their imaginary parts. Here a
    dtype, real or complex, names the *precision*: real buffers become ``float64`` and complex ones ``complex128``.
    Like every torch module's, ``to`` works in place and returns the module.
    """

    def to(self, *args: Any, **kwargs: Any) -> Self:
        parse = torch._C._nn._parse_to  # pyright: ignore[reportAttributeAccessIssue]  # torch's stubs lack it
        device, dtype, non_blocking, memory_format = parse(*args, **kwargs)

        def convert(t: Tensor) -> Tensor:
            target = None
            if dtype is not None and (t.is_floating_point() or t.is_complex()):
                target = dtype.to_complex() if t.is_complex() else dtype.to_real()
            layout = memory_format if memory_format is not None and t.dim() in (4, 5) else torch.preserve_format
            return t.to(device, target, non_blocking, memory_format=layout)

        self._apply(convert)  # type: ignore[no-untyped-call]
        return self

    def double(self) -> Self:
        return self.to(torch.float64)

    def float(self) -> Self:
        return self.to(torch.float32)

    def _shallow_copy(self) -> Self:
        """Give a module with its own registries of buffers, parameters and children, but the same tensors."""
        new = object.__new__(type(self))
        new.__dict__ = {key: value.copy() if isinstance(value, dict) else value for key, value in self.__dict__.items()}
        return new
