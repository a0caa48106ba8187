"""What a report shows, read from an ensemble once, chunk by chunk."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from potentia.report._encode import Coded, base64_text, encode
from potentia.report._plan import Plan, make_plan

if TYPE_CHECKING:
    from potentia.inference import Summary
    from potentia.io import Ensemble

_TILE_BYTES = 64 * 2**20
_SUMS = ("mean", "m2", "count")
_MOST_EXTRA = 4  # stored images beside mean, std, MAP and truth
LABELS = {"mean": "Mean", "std": "Std", "map": "MAP", "mmse": "MMSE", "truth": "Truth", "zero_filled": "Zero-filled"}


@dataclass(frozen=True)
class StoredMap:
    """One map of the page: its key, its label, what it is of (``image``, ``spread``, ``rhat``, ``ess``), and codes."""

    key: str
    label: str
    kind: str
    coded: Coded


@dataclass(frozen=True)
class Collected:
    """Everything of an ensemble that a page holds in numbers.

    - ``maps``: (channel, y, x) each. ``samples``: of (chain, draw) the codes of one image (channel, y, x).
    - ``traces``: (channel, y, x) groups of codes (chain, draw).
    - ``per_chain``: of each chain ``acceptance_rate``, ``diverging``, ``step_size`` and ``lp``, None where not known.
    - ``lp``: the log posterior (chain, draw) of the traces' draws; None where it is not known.
    - ``notes``: what was left out, in sentences.
    """

    plan: Plan
    maps: tuple[StoredMap, ...]
    samples: dict[tuple[int, int], str]
    sample_code: dict[str, Any]
    traces: str
    trace_code: dict[str, Any]
    per_chain: list[dict[str, float | None]]
    lp: list[list[float]] | None
    notes: tuple[str, ...]


def collect(ensemble: "Ensemble", diagnostics: "Summary", limit: int) -> Collected:
    """Read what goes into a page of at most ``limit`` bytes of base64.

    Raises: StoreError for a damaged store.
    """
    found, notes = _maps(ensemble, diagnostics)
    channels, height, width = ensemble.image.shape[2:]
    plan = make_plan(ensemble.num_chains, ensemble.num_draws, channels, height, width, len(found), limit)
    maps = tuple(
        StoredMap(key, label, kind, encode(_at(values, plan.rows, plan.columns), 16, log=kind in ("rhat", "ess")))
        for key, label, kind, values in found
    )
    whole, draws = _read(ensemble, plan)
    code = _shared_range(whole, plan)
    samples = {
        place: Coded(_as_codes(image, code), code.low, code.step, False).text() for place, image in whole.items()
    }
    flat = draws.reshape(-1, *draws.shape[-2:])
    traced = encode(flat, plan.trace_bits)
    header = {"bits": traced.bits, "low": _f4(traced.low), "step": _f4(traced.step)}
    stats = ensemble.tree["sample_stats"].to_dataset()
    lp = np.asarray(stats["lp"].values, dtype=np.float64)[:, plan.trace_draws]
    return Collected(
        plan,
        maps,
        samples,
        code.header(),
        traced.text(),
        header,
        _per_chain(stats),
        lp.tolist() if bool(np.isfinite(lp).all()) else None,
        tuple(notes),
    )


def _f4(values: NDArray[np.float64]) -> str:
    return base64_text(values.astype("<f4"))


def _maps(ensemble: "Ensemble", diagnostics: "Summary") -> tuple[list[tuple[str, str, str, NDArray[Any]]], list[str]]:
    """Maps of (key, label, kind, values), in the order in which they are shown."""
    total = ensemble.num_chains * ensemble.num_draws
    found: list[tuple[str, str, str, NDArray[Any]]] = [("mean", "Mean", "image", ensemble.mean().values)]
    if total > 1:
        found.append(("std", "Std", "spread", ensemble.std().values))
    stored, notes = stored_images(ensemble)
    found += [(key, LABELS.get(key, key), "image", values) for key, values in stored.items()]
    pixels = diagnostics.pixels
    if pixels["rhat"].shape == ensemble.image.shape[2:]:
        for key, label, kind in (("rhat", "R-hat", "rhat"), ("ess_bulk", "Bulk ESS", "ess")):
            values = pixels[key].values
            if not np.isnan(values).all():
                found.append((key, label, kind, values))
    return found, notes


def stored_images(ensemble: "Ensemble") -> tuple[dict[str, NDArray[Any]], list[str]]:
    """The single images that a store keeps, (channel, y, x) each, by name; and sentences on those not shown."""
    held: dict[str, NDArray[Any]] = {}
    notes = []
    shape = ensemble.image.shape[2:]
    summaries, constants = ensemble.tree["posterior_summary"], ensemble.tree["constant_data"]
    names = sorted(str(n) for n in summaries.data_vars if n not in _SUMS)
    names.sort(key=lambda n: n != "map")
    for name in names:
        values = np.asarray(summaries[name].values)
        if values.shape == shape and values.dtype.kind == "f" and len(held) < _MOST_EXTRA:
            held[name] = values
        else:
            notes.append(f"posterior_summary/{name} is not shown: {_why(values, shape)}.")
    for name in ("truth", "zero_filled"):
        if name not in constants.data_vars or name in held:
            continue
        variable = constants[name]
        known = _as_channels(np.asarray(variable.values), "part" in variable.dims, ensemble)
        if known is None:
            notes.append(f"constant_data/{name} is not shown: {_why(np.asarray(variable.values), shape)}.")
        else:
            held[name] = known
    return held, notes


def _why(values: NDArray[Any], shape: tuple[int, ...]) -> str:
    if values.shape == shape:
        return f"at most {_MOST_EXTRA} images are"
    return f"it has shape {values.shape}, the images {shape}"


def _as_channels(values: NDArray[Any], is_complex: bool, ensemble: "Ensemble") -> NDArray[Any] | None:
    """An image as the ensemble stores its own, (channel, y, x), or None if it is of another shape or field."""
    if values.dtype.kind not in "biuf":
        return None
    parts = values if is_complex else values[None]
    event = ensemble.event_shape
    if parts.shape[1:] != event and (1, *parts.shape[1:]) == event:
        parts = parts[:, None]
    if parts.shape[1:] != event or (is_complex and not ensemble.is_complex):
        return None
    if ensemble.is_complex and not is_complex:
        parts = np.concatenate([parts, np.zeros_like(parts)])
    return np.moveaxis(parts, 0, 1).reshape(-1, *event[1:]).astype(np.float64)


def _at(values: NDArray[Any], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[Any]:
    return values[..., rows[:, None], columns[None, :]]


def _read(ensemble: "Ensemble", plan: Plan) -> tuple[dict[tuple[int, int], NDArray[Any]], NDArray[Any]]:
    """Whole images by (chain, draw), and draws of single pixels (channel, y, x, chain, draw)."""
    image = ensemble.image
    chains, num_draws, channels = image.shape[:3]
    block = max(1, _TILE_BYTES // max(1, image[0, 0].size * image.dtype.itemsize))
    shape = (channels, len(plan.trace_rows), len(plan.trace_columns), chains, len(plan.trace_draws))
    traces = np.empty(shape, np.float32 if plan.trace_bits == 8 else np.float64)
    whole = {}
    for chain in range(chains):
        wanted = plan.sample_draws if chain in plan.sample_chains else plan.sample_draws[:0]
        for start in range(0, num_draws, block):
            stop = min(start + block, num_draws)
            images = np.asarray(image[chain, start:stop].values)
            for draw in wanted[(wanted >= start) & (wanted < stop)]:
                whole[chain, int(draw)] = _at(images[draw - start], plan.rows, plan.columns).copy()
            kept = (plan.trace_draws >= start) & (plan.trace_draws < stop)
            some = images[plan.trace_draws[kept] - start]
            traces[..., chain, kept] = np.moveaxis(_at(some, plan.trace_rows, plan.trace_columns), 0, -1)
    return whole, traces


def _shared_range(whole: dict[tuple[int, int], NDArray[Any]], plan: Plan) -> Coded:
    """Codes of the extremes of all samples together, channel by channel, whose limits hold for each of them."""
    extremes = []
    for image in whole.values():
        finite = np.where(np.isfinite(image), image, np.nan)
        for of in (np.fmin, np.fmax):
            extremes.append(of.reduce(finite.reshape(len(finite), -1), axis=1))
    return encode(np.stack(extremes, axis=1), plan.sample_bits)


def _as_codes(image: NDArray[Any], code: Coded) -> NDArray[Any]:
    most = np.iinfo(code.codes.dtype).max
    step = np.where(code.step > 0, code.step, 1.0)[:, None, None]
    scaled = np.rint((image.astype(np.float64) - code.low[:, None, None]) / step)
    codes = np.where(np.isfinite(scaled), np.clip(scaled, 0, most - 2), most)
    return codes.astype(code.codes.dtype)


def _per_chain(stats: Any) -> list[dict[str, float | None]]:
    """Means of the statistics of each chain; the number of diverging draws."""
    table = []
    for chain in range(stats.sizes["chain"]):
        row: dict[str, float | None] = {}
        for name in ("acceptance_rate", "step_size", "lp"):
            value = float(np.asarray(stats[name].values[chain], dtype=np.float64).mean())
            row[name] = value if np.isfinite(value) else None
        row["diverging"] = float(np.asarray(stats["diverging"].values[chain]).sum())
        table.append(row)
    return table
