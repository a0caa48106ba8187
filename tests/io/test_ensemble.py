"""Reading ensembles: statistics equal numpy's, and a store that is cut short never gives wrong numbers."""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from ensembles import ensemble_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from potentia.io import Ensemble, EnsembleWriter, StoreError, StoreExistsError, open_ensemble
from potentia.io import _schema as schema
from potentia.io import _tiles as tiles

EVENT = (2, 3, 4)


def stored(images: Tensor) -> np.ndarray:
    """Images as the store keeps them: real and imaginary parts as neighbouring channels, in float64."""
    values = images.numpy()
    if np.iscomplexobj(values):
        values = np.stack([values.real, values.imag], axis=-3).reshape(*values.shape[:-3], -1, *values.shape[-2:])
    return values.astype(np.float64)


def make(path: Path | None, images: Tensor, stop: int | None = None, **options: Any) -> Ensemble:
    return ensemble_of(
        images, path, stop=stop, stats=lambda k: {"lp": float(k), "n_grad": 10 * k}, closing={"sampling_time": 2.0},
        **options,
    )  # fmt: skip


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)) * 2 + 5


@pytest.fixture
def small_blocks() -> Iterator[None]:
    with mock.patch.object(schema, "_CHUNK_BYTES", 2 * 2 * 3 * 4 * 4):  # two draws of EVENT in float32
        yield


@st.composite
def ensembles(draw: st.DrawFn) -> tuple[Tensor, int]:
    shape = [draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 3)), draw(st.integers(1, 4)), 3]
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.complex64, torch.complex128]))
    images = normal(*shape, dtype=dtype, seed=draw(st.integers(0, 999)))
    return images, draw(st.integers(1, shape[1])) * images[0, 0].nbytes


@given(drawn=ensembles(), q=st.lists(st.floats(0, 1), min_size=1, max_size=3), level=st.floats(0.05, 0.95))
def test_statistics_equal_those_of_numpy(drawn: tuple[Tensor, int], q: list[float], level: float) -> None:
    images, limit = drawn
    with mock.patch.object(schema, "_CHUNK_BYTES", limit), mock.patch.object(tiles, "TILE_BYTES", 300):
        ensemble = make(None, images)
        values = stored(images)
        pooled = values.reshape(-1, *values.shape[2:])
        single = images.dtype in (torch.float32, torch.complex64)
        tolerance = {"rtol": 1e-6 if single else 1e-12, "atol": 1e-6 if single else 1e-12}
        np.testing.assert_allclose(ensemble.mean(), pooled.mean(axis=0), rtol=1e-12)
        assert ensemble.mean().dims == ("channel", "y", "x")
        if len(pooled) > 1:
            np.testing.assert_allclose(ensemble.std(), pooled.std(axis=0, ddof=1), rtol=1e-9)
        else:
            with pytest.raises(ValueError, match="the ensemble has 1 samples, expected more than 1"):
                ensemble.std()
        np.testing.assert_allclose(ensemble.std(ddof=0), pooled.std(axis=0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(ensemble.quantile(q), np.quantile(pooled, q, axis=0), **tolerance)
        np.testing.assert_allclose(ensemble.quantile(q[0]), np.quantile(pooled, q[0], axis=0), **tolerance)
        interval = ensemble.interval(level)
        tails = np.quantile(pooled, [(1 - level) / 2, 1 - (1 - level) / 2], axis=0, method="weibull")
        np.testing.assert_allclose(interval, tails, **tolerance)
        assert list(interval["bound"].values) == ["lower", "upper"]
        truth = normal(*images.shape[2:], dtype=images.dtype, seed=5)
        inside = (interval.values[0] <= stored(truth)) & (stored(truth) <= interval.values[1])
        assert ensemble.coverage(truth, level) == inside.mean()
        assert ensemble.coverage(stored(truth), level) == inside.mean()
        mask = np.zeros(images.shape[-2:], bool)
        mask[0, 1] = True
        assert ensemble.coverage(truth, level, mask=mask) == inside[:, 0, 1].mean()


def test_moments_are_stable_far_from_zero() -> None:
    images = normal(2, 50, 1, 2, 2, dtype=torch.float64) + 1e8
    values = images.numpy().reshape(100, 1, 2, 2)
    np.testing.assert_allclose(make(None, images).std(), values.std(axis=0, ddof=1), rtol=1e-6)


def test_an_ensemble_tells_what_it_is(tmp_path: Path) -> None:
    ensemble = make(tmp_path / "a.zarr", normal(2, 3, 1, 3, 4, dtype=torch.complex64), attrs={"seed": 4})
    assert (ensemble.num_chains, ensemble.num_draws, ensemble.is_complex) == (2, 3, True)
    assert ensemble.event_shape == (1, 3, 4)
    assert ensemble.attrs["seed"] == 4
    assert ensemble.path == str(tmp_path / "a.zarr")
    assert repr(ensemble) == f"Ensemble(2 chains, 3 draws, complex (1, 3, 4), {tmp_path / 'a.zarr'})"
    told = ensemble.summary()
    assert told["gradient evaluations a chain"] == 20
    assert told["samples"] == "2 chains of 3 draws (of 3)"
    assert told["sampling time"] == "2.0 s"


def test_what_is_read_shares_no_memory_with_the_store() -> None:
    images = normal(2, 3, *EVENT)
    truth = normal(*EVENT)
    ensemble = make(None, images, constant={"truth": truth})
    ensemble.set_summary("map", truth)
    kept = truth.clone()
    ensemble.samples().zero_()
    truth.zero_()
    assert torch.equal(ensemble.samples(), images)
    for group, name in (("constant_data", "truth"), ("posterior_summary", "map")):
        np.testing.assert_array_equal(ensemble.tree[group][name], kept)


@pytest.mark.parametrize("q", [-0.1, 1.1, float("nan"), [0.5, 2.0]])
def test_quantiles_outside_the_unit_interval_are_refused(q: Any) -> None:
    with pytest.raises(ValueError, match="expected numbers between 0 and 1"):
        make(None, normal(1, 2, *EVENT)).quantile(q)


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0, float("nan")])
def test_levels_outside_the_unit_interval_are_refused(level: float) -> None:
    with pytest.raises(ValueError, match="expected a number between 0 and 1"):
        make(None, normal(1, 2, *EVENT)).interval(level)


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        (normal(1, 3, 4), r"truth has shape \(1, 3, 4\)"),
        (normal(*EVENT).cfloat(), "expected real"),
        (normal(*EVENT) * float("nan"), "NaN"),
    ],
)
def test_a_truth_that_does_not_fit_is_refused(truth: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(None, normal(1, 2, *EVENT)).coverage(truth)


def test_a_mask_must_leave_something() -> None:
    with pytest.raises(ValueError, match="mask leaves no pixel"):
        make(None, normal(1, 2, *EVENT)).coverage(normal(*EVENT), mask=torch.zeros(3, 4))


class TestOtherReaders:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
    def test_xarray(self, tmp_path: Path, dtype: torch.dtype, small_blocks: None) -> None:
        images = normal(2, 4, *EVENT, dtype=dtype)
        make(tmp_path / "a.zarr", images, observed={"y": images[0, 0]})
        with xr.open_datatree(tmp_path / "a.zarr", engine="zarr", consolidated=False) as tree:
            image = tree["posterior"]["image"]
            assert image.dims == ("chain", "draw", "channel", "y", "x")
            np.testing.assert_array_equal(image, stored(images).astype(np.float32))
            assert tree["sample_stats"]["lp"].dims == ("chain", "draw")
            assert tree.attrs["inference_library"] == "potentia"
            names = ["re0", "im0", "re1", "im1"] if dtype.is_complex else ["0", "1"]
            assert list(image["channel"].values) == names

    def test_the_tree_is_cut_to_the_committed_draws(self, tmp_path: Path, small_blocks: None) -> None:
        images = normal(2, 6, *EVENT)
        ensemble = make(tmp_path / "a.zarr", images, stop=4)
        assert ensemble.num_draws == 4
        assert ensemble.image.shape == (2, 4, *EVENT)
        assert ensemble.tree["sample_stats"]["lp"].shape == (2, 4)
        np.testing.assert_array_equal(ensemble.image, images[:, :4])

    def test_arviz(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ArviZ announces its next major version on import
            az = pytest.importorskip("arviz")
        images = normal(4, 30, 1, 2, 2)
        data = az.from_datatree(make(None, images).tree)
        rhat = az.rhat(data)["image"]
        assert rhat.shape == (1, 2, 2)
        expected = az.rhat(az.convert_to_dataset(images[:, :, 0, 1, 1].numpy()))["x"]
        assert float(rhat[0, 1, 1]) == pytest.approx(float(expected))


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-4])


def _garbage(file: Path) -> None:
    file.write_text('{"zarr_format": 3, "node_type": "arr')


def _edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    told = json.loads(file.read_text())
    change(told)
    file.write_text(json.dumps(told))


IMAGE = "posterior/image"
CHUNK = "c.1.1.0.0.0"
FAULTS: dict[str, Callable[[Path], object]] = {
    "chunk truncated": lambda s: _truncate(s / IMAGE / CHUNK),
    "chunk removed": lambda s: (s / IMAGE / CHUNK).unlink(),
    "chunk emptied": lambda s: (s / IMAGE / CHUNK).write_bytes(b""),
    "statistics truncated": lambda s: _truncate(s / "sample_stats/lp/c.0.1"),
    "statistics removed": lambda s: (s / "sample_stats/n_grad/c.0.0").unlink(),
    "mean truncated": lambda s: _truncate(s / "posterior_summary/mean/c.1.0.0.0"),
    "mean removed": lambda s: (s / "posterior_summary/mean/c.1.0.0.0").unlink(),
    "squares removed": lambda s: (s / "posterior_summary/m2/c.0.0.0.0").unlink(),
    "truth removed": lambda s: (s / "constant_data/truth/c.0.0.0").unlink(),
    "channel names removed": lambda s: (s / "posterior/channel/c.0").unlink(),
    **{
        f"{what} of {name}": lambda s, name=name, fault=fault: fault(s / name / "zarr.json")
        for what, fault in (("no zarr.json", Path.unlink), ("garbage as zarr.json", _garbage))
        for name in (
            IMAGE, "posterior/draw", "sample_stats/lp", "posterior_summary/mean", "posterior_summary/count",
            "writer/n_committed", "writer/state",
        )
    },
    "group removed": lambda s: shutil.rmtree(s / "sample_stats"),
    "garbage as root": lambda s: _garbage(s / "zarr.json"),
    "no root": lambda s: (s / "zarr.json").unlink(),
    "count truncated": lambda s: _truncate(s / "writer/n_committed/c.0"),
    "count removed": lambda s: (s / "writer/n_committed/c.0").unlink(),
    "count too large": lambda s: (s / "writer/n_committed/c.0").write_bytes((99).to_bytes(8, "little")),
    "count below zero": lambda s: (s / "writer/n_committed/c.0").write_bytes(b"\xff" * 8),
    "other version": lambda s: _edit(s / "zarr.json", lambda t: t["attributes"]["potentia"].update(store_version=2)),
    "other image shape": lambda s: _edit(
        s / "zarr.json", lambda t: t["attributes"]["potentia"].update(event_shape=[1, 3, 4])
    ),
    "attributes lost": lambda s: _edit(s / "zarr.json", lambda t: t["attributes"].pop("potentia")),
    "other chunks": lambda s: _edit(
        s / IMAGE / "zarr.json", lambda t: t["chunk_grid"]["configuration"].update(chunk_shape=[1, 2, 2, 3, 1])
    ),
    "fewer chains": lambda s: _edit(s / IMAGE / "zarr.json", lambda t: t.update(shape=[1, 4, 2, 3, 4])),
    "statistics of fewer draws": lambda s: _edit(s / "sample_stats/lp/zarr.json", lambda t: t.update(shape=[2, 3])),
}  # fmt: skip


@pytest.fixture
def whole(tmp_path: Path, small_blocks: None) -> Path:
    make(tmp_path / "whole.zarr", normal(2, 4, *EVENT), constant={"truth": normal(*EVENT)})
    return tmp_path / "whole.zarr"


class TestDamage:
    @pytest.mark.parametrize("fault", FAULTS)
    def test_a_damaged_store_is_refused(self, whole: Path, tmp_path: Path, fault: str) -> None:
        path = tmp_path / "a.zarr"
        shutil.copytree(whole, path)
        assert open_ensemble(path).num_draws == 4
        FAULTS[fault](path)
        with pytest.raises(StoreError, match=r"a\.zarr: ") as refused:
            open_ensemble(path)
        assert str(refused.value).count("\n") == 0

    def test_damage_after_opening_gives_no_wrong_mean(self, whole: Path, tmp_path: Path) -> None:
        path = tmp_path / "a.zarr"
        shutil.copytree(whole, path)
        ensemble = open_ensemble(path)
        (path / "posterior_summary/mean/c.0.0.0.0").unlink()
        with pytest.raises(StoreError, match="cut short"):
            ensemble.mean()

    def test_what_is_no_store_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "file").write_text("text")
        zarr.open_group(tmp_path / "other.zarr", mode="w").create_array("a", shape=(3,), dtype="f4")
        zarr.create_array(tmp_path / "array.zarr", shape=(3,), dtype="f4")
        for name, message in (
            ("missing", "no such store"),
            ("empty", "no zarr.json"),
            ("file", "no zarr.json"),
            ("other.zarr", "no ensemble store"),
            ("array.zarr", "cannot be opened"),
        ):
            with pytest.raises(StoreError, match=message):
                open_ensemble(tmp_path / name)

    def test_nothing_committed_is_refused(self, tmp_path: Path) -> None:
        EnsembleWriter.create(tmp_path / "a.zarr", num_chains=1, num_draws=2, event_shape=EVENT)
        with pytest.raises(StoreError, match="no draw has been committed yet, expected at least one block of 2"):
            open_ensemble(tmp_path / "a.zarr")

    def test_another_chunk_limit_reads_the_same_store(self, whole: Path) -> None:
        with mock.patch.object(schema, "_CHUNK_BYTES", 2**20):
            assert torch.equal(open_ensemble(whole).samples(), normal(2, 4, *EVENT))


class TestSave:
    @pytest.mark.parametrize("in_memory", [False, True])
    def test_bit_for_bit(self, tmp_path: Path, in_memory: bool, small_blocks: None) -> None:
        images = normal(2, 5, *EVENT)
        images[0, 0, 0, 0, 0] = -0.0
        truth = normal(*EVENT)
        ensemble = make(
            None if in_memory else tmp_path / "a.zarr", images, attrs={"seed": 1}, constant={"truth": truth}
        )
        ensemble.set_summary("map", truth)
        ensemble.save(tmp_path / "b.zarr")
        copied = open_ensemble(tmp_path / "b.zarr")
        assert copied.samples().numpy().tobytes() == images.numpy().tobytes()
        assert copied.attrs == ensemble.attrs
        for node in ensemble.tree.subtree:
            xr.testing.assert_identical(node.to_dataset(), copied.tree[node.path].to_dataset())
        if not in_memory:
            old, new = (
                sorted(p.relative_to(s) for p in s.rglob("*")) for s in (tmp_path / "a.zarr", tmp_path / "b.zarr")
            )
            assert old == new
            for file in (f for f in old if f.name.startswith("c.")):
                assert (tmp_path / "a.zarr" / file).read_bytes() == (tmp_path / "b.zarr" / file).read_bytes(), file

    def test_an_existing_store_is_replaced_only_when_asked(self, tmp_path: Path) -> None:
        first, second = normal(1, 2, *EVENT), normal(1, 2, *EVENT, seed=1)
        make(tmp_path / "a.zarr", first)
        ensemble = make(None, second)
        with pytest.raises(StoreExistsError):
            ensemble.save(tmp_path / "a.zarr")
        assert torch.equal(open_ensemble(tmp_path / "a.zarr").samples(), first)
        ensemble.save(tmp_path / "a.zarr", overwrite=True)
        assert torch.equal(open_ensemble(tmp_path / "a.zarr").samples(), second)

    def test_onto_itself(self, tmp_path: Path) -> None:
        images = normal(1, 2, *EVENT)
        make(tmp_path / "a.zarr", images).save(tmp_path / "a.zarr", overwrite=True)
        assert torch.equal(open_ensemble(tmp_path / "a.zarr").samples(), images)


class TestSummary:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
    def test_an_image_is_kept(self, tmp_path: Path, dtype: torch.dtype) -> None:
        ensemble = make(tmp_path / "a.zarr", normal(1, 2, *EVENT, dtype=dtype))
        for seed in (1, 2):  # a second one replaces the first
            image = normal(*EVENT, dtype=dtype, seed=seed)
            ensemble.set_summary("map", image)
            for opened in (ensemble, open_ensemble(tmp_path / "a.zarr")):
                np.testing.assert_array_equal(opened.tree["posterior_summary"]["map"], stored(image))

    @pytest.mark.parametrize("image", [normal(1, 3, 4), normal(*EVENT).cfloat()])
    def test_another_shape_or_field_is_refused(self, image: Tensor) -> None:
        with pytest.raises(ValueError, match=r"map: image has shape .* expected \(2, 3, 4\)"):
            make(None, normal(1, 2, *EVENT)).set_summary("map", image)

    @pytest.mark.parametrize("name", ["mean", "m2", "count", "chain", "channel", "x", "a b", "a/b", "../mean", ""])
    def test_the_running_sums_cannot_be_overwritten(self, name: str) -> None:
        images = normal(1, 2, *EVENT)
        ensemble = make(None, images)
        with pytest.raises(ValueError, match="cannot name an image"):
            ensemble.set_summary(name, images[0, 0])
        np.testing.assert_allclose(ensemble.mean(), images.double().mean(dim=(0, 1)), rtol=1e-12)


class TestPlot:
    @pytest.mark.parametrize(("channels", "dtype"), [(1, torch.float32), (3, torch.float32), (1, torch.complex64)])
    def test_panels(self, tmp_path: Path, channels: int, dtype: torch.dtype) -> None:
        images, truth = normal(2, 3, channels, 8, 12, dtype=dtype), normal(channels, 8, 12, dtype=dtype, seed=1)
        ensemble = make(None, images, constant={"truth": truth, "zero_filled": truth})
        figure = ensemble.plot(tmp_path / "a.png", num_samples=2)
        titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
        assert titles == ["truth", "data", "mean", "std", "sample 1", "sample 2", "error"], (
            "the last column has the maps"
        )
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
        from PIL import Image

        with Image.open(tmp_path / "a.png") as picture:
            assert min(picture.size) > 200
        shown = {axis.get_title(): axis.images[0].get_array() for axis in figure.axes if axis.get_title()}
        spread = images.reshape(6, channels, 8, 12).std(dim=0)  # of complex images: of both parts together
        np.testing.assert_allclose(shown["std"], spread.mean(dim=0), rtol=1e-5)
        mean = images.mean(dim=(0, 1))
        error = (mean.abs() - truth.abs()).abs() if dtype.is_complex else (mean - truth).abs()
        np.testing.assert_allclose(shown["error"], error.mean(dim=0), rtol=1e-4, atol=1e-6)

    def test_panels_without_content_are_left_out(self) -> None:
        figure = make(None, normal(1, 1, 2, 4, 4)).plot()
        assert [axis.get_title() for axis in figure.axes if axis.get_title()] == ["mean", "sample 1"]

    def test_what_is_given_is_shown(self) -> None:
        truth = normal(1, 4, 4)
        figure = make(None, normal(1, 2, 1, 4, 4)).plot(truth=truth, num_samples=0)
        assert [axis.get_title() for axis in figure.axes if axis.get_title()] == ["truth", "std", "mean", "error"]

    def test_constant_images(self) -> None:
        make(None, torch.ones(1, 2, 3, 4, 4)).plot()
