"""How a check fails: one sentence that names the class, the identity, what it got and what it expected."""

from typing import NoReturn

import torch
from torch import Tensor

from potentia._validate import shape_text

Size = float | Tensor


def subject(thing: object) -> str:
    """What to call the thing under test: its class, and its name if it has another."""
    kind = type(thing).__name__
    name = getattr(thing, "name", None)
    return kind if not isinstance(name, str) or name.lower() == kind.lower() else f"{kind} {name!r}"


def fail(where: str, identity: str, got: object, expected: object) -> NoReturn:
    """Raise the AssertionError of a check."""
    raise AssertionError(f"{where}: {identity}: got {got}, expected {expected}")


def require(holds: bool, where: str, identity: str, got: object, expected: object) -> None:
    """Fail unless a condition holds.

    Raises: AssertionError.
    """
    if not holds:
        fail(where, identity, got, expected)


def require_close(where: str, identity: str, got: Tensor, expected: Tensor, within: Size) -> None:
    """Fail unless two tensors have one shape and differ by no more than a bound in any entry.

    Shapes: ``within`` a number or broadcasting against the tensors.
    Raises: AssertionError with the worst entry.
    """
    if got.shape != expected.shape:
        fail(where, identity, f"shape {shape_text(tuple(got.shape))}", f"shape {shape_text(tuple(expected.shape))}")
    if got.is_complex() != expected.is_complex():
        fail(where, identity, got.dtype, expected.dtype)
    if got.numel() == 0:
        return
    precision = torch.complex128 if got.is_complex() else torch.float64
    a, b = got.detach().to(precision), expected.detach().to(precision)
    bound = torch.as_tensor(within, dtype=torch.float64, device=a.device).detach().expand(a.shape)
    # NaN compares false, so that it fails.
    excess = torch.where((a - b).abs() <= bound, 0.0, (a - b).abs() / bound.clamp_min(1e-300)).nan_to_num(torch.inf)
    if bool((excess > 0).any()):
        k = int(excess.argmax())
        value, want = a.reshape(-1)[k].item(), b.reshape(-1)[k].item()
        fail(where, identity, f"{value:.10g}", f"{want:.10g} within {float(bound.reshape(-1)[k]):.2g}")


def require_refusal(where: str, identity: str, error: type[Exception], call: object, *args: object) -> None:
    """Fail unless a call raises an error of this kind.

    Raises: AssertionError that says what came instead.
    """
    expected = f"a {error.__name__}"
    try:
        call(*args)  # type: ignore[operator]
    except error:
        return
    except Exception as err:
        # A check answers in one way only, whatever the class under test does.
        raise AssertionError(f"{where}: {identity}: got {type(err).__name__} ({err}), expected {expected}") from err
    fail(where, identity, "an answer", expected)
