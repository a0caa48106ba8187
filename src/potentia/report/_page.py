"""The page's text. Whatever comes from a store is somebody else's, and goes in escaped."""

import base64
import hashlib
import html
import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata, resources
from string import Template
from typing import TYPE_CHECKING, Any

from potentia.report._collect import Collected

if TYPE_CHECKING:
    from potentia.inference import Summary
    from potentia.io import Ensemble

_STATISTICS = {"rhat": "R-hat", "ess_bulk": "Bulk ESS", "ess_tail": "Tail ESS", "mcse_mean": "Error of the mean"}
_NONE = "\N{EN DASH}"
_LONGEST = 4000  # characters of a string of the store
_SHOWN_CHAINS = 8
_MOST_CHAINS = 256
_RUN_FIRST = ("sampler", "seed", "num_warmup", "dtype")
_RUN_NEVER = ("posterior", "complex", "event_shape", "num_chains", "num_draws")


def page_text(ensemble: "Ensemble", diagnostics: "Summary", collected: Collected, name: str) -> str:
    """The whole page."""
    style, script = _file("page.css"), _file("numbers.js") + _file("page.js")
    attrs, root = ensemble.attrs, {str(k): v for k, v in ensemble.tree.attrs.items()}
    heading = f"Posterior ensemble: {name}"
    return Template(_file("page.html")).substitute(
        script_hash=_hash(script),
        style_hash=_hash(style),
        script=script,
        style=style,
        version=plain(metadata.version("potentia")),
        title=plain(heading),
        heading=plain(heading),
        lead=_lead(ensemble, root),
        verdict=_verdict(diagnostics),
        diagnostics=_diagnostics(diagnostics, collected),
        posterior=plain(attrs.get("posterior", "The store does not say.")),
        run=_run(ensemble, diagnostics, attrs, root),
        reduced=_reduced(ensemble, diagnostics, collected),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        data=json_text(_header(ensemble, collected)),
        maps="\n".join(_blob(f"map-{k}", shown.coded.text()) for k, shown in enumerate(collected.maps)),
        draws="\n".join(_draws(collected)),
    )


def plain(value: object) -> str:
    """Text for the page: escaped, of bounded length, and such that UTF-8 can write it."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]} … ({len(text)} characters)"
    return html.escape(text.encode("utf-8", "replace").decode("utf-8"))


def json_text(value: object) -> str:
    """JSON that no part of can end the element that holds it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _file(name: str) -> str:
    return resources.files("potentia.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _blob(name: str, text: str) -> str:
    return f'<script type="text/plain" id="{name}">{text}</script>'


def _draws(collected: Collected) -> Iterable[str]:
    yield _blob("traces", collected.traces)
    yield _blob("traces-low", collected.trace_code["low"])
    yield _blob("traces-step", collected.trace_code["step"])
    for (chain, draw), text in collected.samples.items():
        yield _blob(f"sample-{chain}-{draw}", text)


def _header(ensemble: "Ensemble", collected: Collected) -> dict[str, Any]:
    plan = collected.plan
    return {
        "channels": [str(c) for c in ensemble.image.coords["channel"].values],
        "complex": ensemble.is_complex,
        "rows": plan.rows.tolist(),
        "columns": plan.columns.tolist(),
        "chains": ensemble.num_chains,
        "maps": [
            {"key": shown.key, "label": shown.label, "kind": shown.kind} | shown.coded.header()
            for shown in collected.maps
        ],
        "samples": {"chains": plan.sample_chains.tolist(), "draws": plan.sample_draws.tolist()} | collected.sample_code,
        "traces": {
            "bits": plan.trace_bits,
            "rows": plan.trace_rows.tolist(),
            "columns": plan.trace_columns.tolist(),
            "draws": plan.trace_draws.tolist(),
        },
        "lp": collected.lp,
    }


def _lead(ensemble: "Ensemble", root: Mapping[str, Any]) -> str:
    channels, height, width = ensemble.event_shape
    kind = "complex" if ensemble.is_complex else "real"
    chains = f"{ensemble.num_chains} chain{'s' * (ensemble.num_chains != 1)}"
    draws = f"{ensemble.num_draws} draw{'s' * (ensemble.num_draws != 1)}"
    text = f"{chains} of {draws}, {kind} images of {height} × {width} pixels"
    if channels > 1:
        text += f" in {channels} channels"
    made = str(root.get("created_at", ""))[:16].replace("T", " ")
    return plain(f"{text}, begun {made} UTC." if made else f"{text}.")


def _verdict(found: "Summary") -> str:
    if not found.concerns:
        words = (
            "No concerns about convergence."
            if found.method.rhat
            else "No concerns, but these chains are too few or too short for R-hat."
        )
        return f'<p class="fine">{words} <a href="#diagnostics">Diagnostics</a></p>'
    items = "".join(f"<li>{plain(c.message)}</li>" for c in found.concerns)
    number = len(found.concerns)
    heading = f"{number} concern{'s' * (number != 1)} about convergence"
    return f'<div class="concerns" role="note"><strong class="concern">{heading}</strong><ul>{items}</ul></div>'


def figure(value: float | None, digits: int = 4) -> str:
    """A number of a table; a dash where there is none."""
    return _NONE if value is None or math.isnan(value) else f"{value:.{digits}g}".replace("-", "−").replace("inf", "∞")


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are HTML already."""
    heads = "".join(f'<th scope="col">{h}</th>' if h else "<td></td>" for h in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows
    )
    return (
        f'<div class="scroll" role="region" aria-label="{caption}" tabindex="0"><table><caption>{caption}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _diagnostics(found: "Summary", collected: Collected) -> str:
    rows = []
    for name, label in _STATISTICS.items():
        place = found.where.get(name)
        rows.append(
            (label, figure(found.median[name]), figure(found.worst[name]), _jump(label, place), figure(found.lp[name]))
        )
    shares = [of["mcse_mean"] / of["std"] if of["std"] else math.nan for of in (found.median, found.worst)]
    rows.append(("… beside the std", figure(shares[0]), figure(shares[1]), "", ""))
    head = ("", "Median pixel", "Worst pixel", "at (channel, y, x)", "Log posterior")
    parts = [_table("Convergence and precision", head, rows)]
    parts.append(
        f"<p>Acceptance rate {figure(found.acceptance_rate)}, in the lowest chain {figure(found.lowest_acceptance)}. "
        f"Divergences: {found.divergences}. Chains that never moved: {len(found.stuck_chains)}.</p>"
    )
    if found.notes:
        parts.append("<ul>" + "".join(f"<li>{plain(note)}</li>" for note in found.notes) + "</ul>")
    parts.append("<h3>Log posterior by draw</h3>")
    if collected.lp is None:
        parts.append('<p class="hint">Not known: the posterior has no value, as with priors that are scores only.</p>')
    else:
        parts.append('<div id="lp" class="plot"></div>')
    parts.append(_chains(collected))
    return "\n".join(parts)


def _jump(label: str, place: tuple[str, int, int] | None) -> str:
    if place is None:
        return _NONE
    channel, y, x = place
    where = f"({channel}, {y}, {x})"
    name = plain(f"Show the worst pixel of {label}: {where}")
    return f'<button type="button" data-y="{y}" data-x="{x}" aria-label="{name}">{plain(where)}</button>'


def _chains(collected: Collected) -> str:
    table = collected.per_chain
    rows = [
        (
            str(k),
            *(figure(chain[n]) for n in ("acceptance_rate", "step_size")),
            f"{chain['diverging']:.0f}",
            figure(chain["lp"], 7),
        )
        for k, chain in enumerate(table[:_MOST_CHAINS])
    ]
    head = ("Chain", "Acceptance rate", "Step size", "Divergences", "Log posterior, mean")
    text = _table("Means of each chain", head, rows)
    if len(table) > _MOST_CHAINS:
        text += f'<p class="hint">The first {_MOST_CHAINS} of {len(table)} chains.</p>'
    opened = " open" if len(table) <= _SHOWN_CHAINS else ""
    return f"<details{opened}><summary>Chain by chain</summary>{text}</details>"


def _list(heading: str, rows: Iterable[tuple[str, object]]) -> str:
    entries = "".join(f"<dt>{plain(name)}</dt><dd>{plain(value)}</dd>" for name, value in rows)
    return f"<div><h3>{heading}</h3><dl>{entries}</dl></div>"


def _run(ensemble: "Ensemble", found: "Summary", attrs: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    settings: list[tuple[str, object]] = [("store", ensemble.path)]
    settings += [(key.replace("_", " "), attrs[key]) for key in _RUN_FIRST if key in attrs]
    settings += [
        (key.replace("_", " "), value)
        for key, value in attrs.items()
        if key not in _RUN_FIRST and key not in _RUN_NEVER
    ]
    facts = ensemble.summary()
    covered = "90 % interval holds the truth"
    if covered in facts:
        settings.append((covered, facts[covered]))
    versions = [
        (key.replace("_", " "), root[key])
        for key in sorted(root)
        if key not in ("potentia", "sampling_time", "tuning_steps")
    ]
    versions.append(("report by", f"potentia {metadata.version('potentia')}, Python {platform.python_version()}"))
    return _list("Settings", settings) + _list("Timings", _timings(ensemble, found, root)) + _list("Versions", versions)


def _timings(ensemble: "Ensemble", found: "Summary", root: Mapping[str, Any]) -> list[tuple[str, object]]:
    spent = root.get("sampling_time")
    known = isinstance(spent, int | float) and math.isfinite(spent) and spent > 0
    rows: list[tuple[str, object]] = [
        ("sampling time", f"{spent:.1f} s" if known else "not known: the run has not ended")
    ]
    rows.append(("gradient evaluations a chain", str(found.n_grad)))
    if known:
        assert isinstance(spent, int | float)
        rows.append(("seconds a draw, all chains together", f"{spent / ensemble.num_draws:.4g}"))
        if found.n_grad:
            rate = found.n_grad * ensemble.num_chains / spent
            rows.append(("gradient evaluations a second, all chains together", f"{rate:.4g}"))
    rows.append(("gradient evaluations a draw", f"{found.n_grad / ensemble.num_draws:.4g}"))
    return rows


def _reduced(ensemble: "Ensemble", found: "Summary", collected: Collected) -> str:
    """What was rounded and left out, so that nobody takes the page for the ensemble."""
    plan = collected.plan
    height, width = ensemble.image.shape[-2:]
    chains, draws = ensemble.num_chains, ensemble.num_draws

    def part(some: int, all_: int, what: str) -> str:
        if all_ == 1:
            return f"the only {what.removesuffix('s')}"
        return f"all {all_} {what}" if some == all_ else f"{some} of {all_} {what}"

    lines = [
        f"Maps: {part(len(plan.rows), height, 'rows')} and {part(len(plan.columns), width, 'columns')}, at 16 bits: "
        "each number is within 1/130,000 of the map's range (R-hat and ESS: of the range of their logarithm).",
        f"Draws of single pixels: {part(len(plan.trace_rows), height, 'rows')} and "
        f"{part(len(plan.trace_columns), width, 'columns')}; of each of {chains} chains "
        f"{part(len(plan.trace_draws), draws, 'draws')}; at {plan.trace_bits} bits between the least and the greatest "
        "draw of that pixel.",
        f"Samples: {part(len(plan.sample_chains), chains, 'chains')}, of each "
        f"{part(len(plan.sample_draws), draws, 'draws')}; at {plan.sample_bits} bits between the least and the "
        "greatest number of all of them.",
        "Where it is some of many, they are evenly spaced.",
        "Colour scales run from the 0.1 % to the 99.9 % quantile of what they show; NaN is hatched.",
        *collected.notes,
    ]
    if found.pixels["std"].shape != ensemble.image.shape[2:]:
        lines.append("Diagnostics were computed for some of the pixels only, so that there are no maps of them.")
    return "<ul>" + "".join(f"<li>{plain(line)}</li>" for line in lines) + "</ul>"
