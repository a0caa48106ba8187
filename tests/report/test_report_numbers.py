"""What a report keeps of an ensemble: codes, the plan of what fits, and the file."""

import base64
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import ensembles
import numpy as np
import pytest
import torch
from ensembles import normal
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import potentia as pt
from potentia.io import Ensemble
from potentia.report import write_report
from potentia.report._collect import collect
from potentia.report._encode import Bits, base64_size, base64_text, encode
from potentia.report._plan import every, every_of, make_plan


def ensemble_of(images: torch.Tensor, path: Path | None = None, lp: bool = True, **more: Any) -> Ensemble:
    def stats(k: int) -> dict[str, float]:
        return {"lp": -float(k) if lp else math.nan, "acceptance_rate": 0.7, "n_grad": 10 * k + 10}

    return ensembles.ensemble_of(images, path, stats=stats, closing={"sampling_time": 2.5}, **more)


@given(
    hnp.arrays(
        np.float64,
        hnp.array_shapes(min_dims=2, max_dims=3, max_side=6),
        elements=st.floats(-1e300, 1e300) | st.just(math.nan) | st.just(math.inf),
    ),
    st.sampled_from([8, 16]),
)
def test_codes_are_within_half_a_step(values: np.ndarray[Any, Any], bits: Bits) -> None:
    coded = encode(values, bits)
    back = coded.decoded()
    assert coded.bits == bits
    assert np.array_equal(np.isnan(back), np.isnan(values))
    assert np.array_equal(np.isposinf(back), np.isposinf(values))
    for k in range(len(values)):
        known = np.isfinite(values[k])
        scale = np.abs(values[k][known]).max(initial=0)
        assert np.all(np.abs(back[k][known] - values[k][known]) <= 0.5 * coded.step[k] * (1 + 1e-9) + 1e-12 * scale)


@given(hnp.arrays(np.float64, (2, 5), elements=st.floats(1e-3, 1e6)))
def test_logarithmic_codes_are_relatively_close(values: np.ndarray[Any, Any]) -> None:
    coded = encode(values, 16, log=True)
    error = np.abs(np.log(coded.decoded() / values))
    assert np.all(error <= 0.5 * coded.step[:, None] + 1e-9)


def test_what_has_no_logarithm_and_minus_infinity_are_nan() -> None:
    back = encode(np.array([[0.0, -1.0, 1.0, math.inf]]), 16, log=True).decoded()
    assert np.isnan(back[0, :2]).all()
    assert back[0, 2] == 1.0
    assert back[0, 3] == math.inf
    assert np.isnan(encode(np.array([[-math.inf, 1.0]]), 8).decoded()[0, 0])


@given(st.integers(1, 300), st.integers(1, 300))
def test_indices_are_evenly_spaced_and_within(size: int, most: int) -> None:
    chosen = every_of(size, most)
    assert 1 <= len(chosen) <= most
    assert chosen[-1] == size - 1
    assert chosen[0] >= 0
    assert len(set(np.diff(chosen))) <= 1
    spread = every(size, most)
    assert spread[0] >= 0
    assert spread[-1] < size
    assert len(spread) == len(set(spread.tolist())) >= 1


@given(
    st.integers(1, 64),
    st.integers(1, 400),
    st.integers(1, 3),
    st.integers(1, 500),
    st.integers(1, 500),
    st.integers(1, 8),
    st.sampled_from([100_000, 1_000_000, 17_000_000]),
)
def test_a_plan_keeps_to_its_limit(
    chains: int, draws: int, channels: int, height: int, width: int, maps: int, limit: int
) -> None:
    plan = make_plan(chains, draws, channels, height, width, maps, limit)
    pixels = len(plan.rows) * len(plan.columns)
    traced = len(plan.trace_rows) * len(plan.trace_columns) * channels
    size = maps * base64_size(2 * channels * pixels)
    size += base64_size(traced * chains * len(plan.trace_draws) * plan.trace_bits // 8) + 2 * base64_size(4 * traced)
    images = len(plan.sample_chains) * len(plan.sample_draws)
    size += images * base64_size(channels * pixels * plan.sample_bits // 8)
    assert size <= 1.1 * limit
    assert min(images, traced, pixels) >= 1
    assert set(plan.trace_rows) <= set(plan.rows)
    assert set(plan.trace_columns) <= set(plan.columns)
    assert plan.rows[-1] < height
    assert plan.trace_draws[-1] == draws - 1


def test_a_small_ensemble_is_kept_whole() -> None:
    plan = make_plan(4, 10, 2, 12, 9, 5, 17_000_000)
    assert (len(plan.rows), len(plan.columns), len(plan.trace_rows), len(plan.trace_columns)) == (12, 9, 12, 9)
    assert (len(plan.sample_chains), len(plan.sample_draws), len(plan.trace_draws)) == (4, 10, 10)
    assert plan.trace_bits == plan.sample_bits == 16


def test_the_size_that_was_promised() -> None:
    """4 chains of 160 draws, 2 x 320 x 320, with six maps: most of the limit is used."""
    plan = make_plan(4, 160, 2, 320, 320, 6, 17_000_000)
    assert (len(plan.rows), len(plan.columns), len(plan.trace_draws)) == (320, 320, 160)
    assert len(plan.trace_rows) * len(plan.trace_columns) >= 50**2
    assert len(plan.sample_chains) * len(plan.sample_draws) >= 20


def decoded_traces(text: str, header: dict[str, Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    codes = np.frombuffer(base64.b64decode(text), f"<u{header['bits'] // 8}").reshape(shape)
    low, step = (np.frombuffer(base64.b64decode(header[k]), "<f4").reshape(*shape[:-2], 1, 1) for k in ("low", "step"))
    return np.asarray(low + codes * step)


@pytest.mark.parametrize("limit", [17_000_000, 100_000])
def test_what_is_kept_is_what_the_ensemble_holds(limit: int) -> None:
    images = normal(3, 20, 1, 24, 17, dtype=torch.complex64)
    ensemble = ensemble_of(images)
    collected = collect(ensemble, pt.summary(ensemble), limit)
    plan = collected.plan
    stored = ensemble.image.values
    chosen = stored[..., plan.trace_rows[:, None], plan.trace_columns[None, :]][:, plan.trace_draws]
    want = np.moveaxis(chosen, (0, 1), (-2, -1))
    back = decoded_traces(collected.traces, collected.trace_code, want.shape)
    step = np.ptp(want, axis=(-2, -1), keepdims=True) / (2**plan.trace_bits - 3)
    assert np.all(np.abs(back - want) <= 0.51 * step + 1e-6)
    # the planted fault: rows for columns
    assert want.shape[1] == want.shape[2] or not np.allclose(back, want[:, ::-1], atol=0.1)
    assert {(int(c), int(d)) for c in plan.sample_chains for d in plan.sample_draws} == set(collected.samples)
    whole = stored[..., plan.rows[:, None], plan.columns[None, :]]
    for (chain, draw), text in collected.samples.items():
        codes = np.frombuffer(base64.b64decode(text), f"<u{plan.sample_bits // 8}").reshape(whole.shape[2:])
        low, step = (np.array(collected.sample_code[k])[:, None, None] for k in ("low", "step"))
        assert np.all(np.abs(low + codes * step - whole[chain, draw]) <= 0.51 * step)
    assert (plan.trace_bits == 16) == (limit == 17_000_000)


def test_base64_text_is_the_bytes() -> None:
    assert base64_text(np.array([1, 2, 3], "<u2")) == "AQACAAMA"
    assert base64_size(6) == 8


def page_data(path: Path) -> dict[str, Any]:
    found = re.search(r'id="report-data">(.*?)</script>', path.read_text(), re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found.group(1))
    return data


def test_the_page_goes_beside_the_store_and_replaces_nothing(tmp_path: Path) -> None:
    ensemble_of(normal(2, 5, 1, 4, 6), tmp_path / "a.zarr")
    before = set(tmp_path.iterdir())
    written = write_report(tmp_path / "a.zarr")
    assert written == tmp_path / "a.zarr.html"
    assert set(tmp_path.iterdir()) - before == {written}, "a temporary file was left behind"
    first = written.read_bytes()
    with pytest.raises(FileExistsError, match="a file exists there already"):
        write_report(tmp_path / "a.zarr")
    assert written.read_bytes() == first
    written.write_text("old")
    assert write_report(tmp_path / "a.zarr", overwrite=True).read_text().startswith("<!DOCTYPE html>")
    assert os.stat(written).st_mode & 0o077 == os.stat(first_file(tmp_path)).st_mode & 0o077


def first_file(folder: Path) -> Path:
    plain = folder / "plain"
    plain.write_text("")
    return plain


def test_a_file_that_comes_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from potentia.report import _page

    ensemble = ensemble_of(normal(2, 5, 1, 4, 6))
    target = tmp_path / "r.html"
    honest = _page.page_text

    def slow(*given: Any) -> str:
        target.write_text("somebody else's")
        return honest(*given)

    monkeypatch.setattr(_page, "page_text", slow)
    with pytest.raises(FileExistsError):
        write_report(ensemble, target)
    assert target.read_text() == "somebody else's"
    assert list(tmp_path.iterdir()) == [target]


def test_a_place_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    ensemble = ensemble_of(normal(2, 5, 1, 4, 6))
    with pytest.raises(ValueError, match="lies in no local folder"):
        write_report(ensemble)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        write_report(ensemble, tmp_path / "no" / "r.html")
    with pytest.raises(FileExistsError, match="a folder is there"):
        write_report(ensemble, tmp_path, overwrite=True)
    with pytest.raises(ValueError, match="max_bytes must be at least 100000"):
        write_report(ensemble, tmp_path / "r.html", max_bytes=5)
    assert list(tmp_path.iterdir()) == []


HOSTILE = '</script><img src=x onerror="alert(1)"><!-- \' & \u2028 \u202e \x00'


def test_strings_of_a_store_are_escaped(tmp_path: Path) -> None:
    attrs = {"posterior": HOSTILE, HOSTILE: HOSTILE, "seed": [HOSTILE]}
    ensemble = ensemble_of(normal(2, 5, 1, 4, 6), tmp_path / "x<b>'\"&.zarr", attrs=attrs)
    text = write_report(ensemble).read_text()
    assert "<img" not in text
    assert 'onerror="' not in text
    assert "<b>" not in text
    # the planted fault: what the page would hold without escaping is what the test looks for
    assert "<img" in text.replace("&lt;", "<")
    assert text.count("<script") == text.count("</script>")
    page_data(tmp_path / (Path(ensemble.path).name + ".html"))


def test_a_surrogate_does_not_stop_the_page() -> None:
    from potentia.report._page import json_text, plain

    assert plain("a\ud800<") == "a?&lt;"
    assert json.loads(json_text(["</script>", "\ud800&"])) == ["</script>", "\ud800&"]
    assert "<" not in json_text("</script>")
    assert plain("x" * 5000).endswith("(5000 characters)")


def test_the_maps_of_a_truth_in_every_form(tmp_path: Path) -> None:
    images = normal(2, 5, 2, 4, 6, dtype=torch.complex64)
    truth = normal(2, 4, 6, seed=1, dtype=torch.complex64)
    ensemble = ensemble_of(images, constant={"truth": truth})
    ensemble.set_summary("map", truth * 2)
    collected = collect(ensemble, pt.summary(ensemble), 10**6)
    maps = {m.key: m for m in collected.maps}
    assert list(maps) == ["mean", "std", "map", "truth", "rhat", "ess_bulk"][: len(maps)]
    want = torch.view_as_real(truth).movedim(-1, 1).reshape(4, 4, 6).numpy()
    assert np.allclose(maps["truth"].coded.decoded(), want, atol=1e-3)
    assert np.allclose(maps["map"].coded.decoded(), 2 * want, atol=1e-3)
    real = ensemble_of(images, constant={"truth": truth.real.numpy()})
    shown = {m.key: m for m in collect(real, pt.summary(real), 10**6).maps}["truth"].coded.decoded()
    assert np.allclose(shown[[0, 2]], truth.real.numpy(), atol=1e-3)
    assert np.abs(shown[[1, 3]]).max() < 1e-6
    other = ensemble_of(normal(2, 5, 1, 4, 6), constant={"truth": np.zeros((3, 3)), "zero_filled": np.zeros((4, 6))})
    found = collect(other, pt.summary(other), 10**6)
    assert {m.key for m in found.maps} & {"truth", "zero_filled"} == {"zero_filled"}
    assert any("constant_data/truth is not shown" in note for note in found.notes)


def test_diagnostics_of_some_pixels_make_no_maps(tmp_path: Path) -> None:
    ensemble = ensemble_of(normal(2, 8, 1, 16, 16))
    path = write_report(ensemble, tmp_path / "r.html", max_pixels=20)
    assert {m["key"] for m in page_data(path)["maps"]} == {"mean", "std"}
    assert "no maps of them" in path.read_text()
    whole = write_report(ensemble, tmp_path / "s.html")
    assert {m["key"] for m in page_data(whole)["maps"]} == {"mean", "std", "rhat", "ess_bulk"}
