"""Collections of ensembles: what the index says, what is read off the stores, and views over all items."""

import json
import os
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from potentia.io import EnsembleWriter, StoreError, StoreExistsError
from potentia.io import _schema as schema
from potentia.io._collection import (
    INDEX,
    CollectionWriter,
    check_names,
    described,
    held,
    item_path,
    open_collection,
)
from potentia.io._location import Location

SHAPE = (2, 4, 3)


def write(
    root: Path, name: str, draws: int = 5, of: int = 5, shape: tuple[int, int, int] = SHAPE, is_complex: bool = False
) -> np.ndarray[Any, Any]:
    """A store of random images, of which some were drawn."""
    g = torch.Generator().manual_seed(sum(name.encode()))
    writer = EnsembleWriter.create(
        item_path(Location.of(root), name), num_chains=2, num_draws=of, event_shape=shape, is_complex=is_complex
    )
    images = torch.randn(draws, 2, *shape, generator=g, dtype=torch.complex64 if is_complex else torch.float32)
    for image in images:
        writer.append(image, {})
        writer.commit()
    writer.stop()
    return images.transpose(0, 1).numpy()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "_CHUNK_BYTES", 1)


def begun(root: Path, *names: str, **record: object) -> CollectionWriter:
    return CollectionWriter.create(root, names, record)


def test_states_are_read_off_the_stores_and_the_index(tmp_path: Path) -> None:
    root = tmp_path / "root"
    writer = begun(root, "done", "told", "half", "empty", "bad", "half bad", "todo", seed=3)
    write(root, "done")
    write(root, "told")
    write(root, "half", draws=3)
    write(root, "empty", draws=0)
    write(root, "half bad", draws=2)
    writer.finish("told", {**described(open_collection(root)["told"]), "concerns": ["R-hat is 2"]})
    writer.fail("bad", "no such file", "Traceback ...")
    writer.fail("half bad", "the disk is full")
    writer.save()
    collection = open_collection(root)
    assert {name: (item.state, item.num_draws) for name, item in collection.states.items()} == {
        "done": ("complete", 5),
        "told": ("complete", 5),
        "half": ("partial", 3),
        "empty": ("partial", 0),
        "bad": ("failed", 0),
        "half bad": ("failed", 2),
        "todo": ("pending", 0),
    }
    assert collection.complete == ("done", "told")
    assert collection.partial == ("half", "empty")
    assert collection.failed == {"bad": "no such file", "half bad": "the disk is full"}
    assert collection.states["told"].concerns == ("R-hat is 2",)
    assert collection.states["bad"].traceback == "Traceback ..."
    assert collection.attrs == {"seed": 3}
    assert repr(collection) == f"Collection(7 items: 2 complete, 2 partial, 2 failed, 1 pending, {root})"
    assert list(collection) == list(collection.names) == list(collection.states)
    assert len(collection) == 7
    assert "half" in collection
    assert "other" not in collection


def test_what_the_index_calls_complete_and_is_gone_is_pending(tmp_path: Path) -> None:
    writer = begun(tmp_path / "root", "a")
    write(tmp_path / "root", "a")
    writer.finish("a", described(open_collection(tmp_path / "root")["a"]))
    writer.save()
    (tmp_path / "root" / "a.zarr").rename(tmp_path / "elsewhere")
    assert open_collection(tmp_path / "root").states["a"].state == "pending"


def test_items_open_by_name(tmp_path: Path) -> None:
    root = tmp_path / "root"
    begun(root, "half", "empty", "todo")
    images = write(root, "half", draws=3)
    write(root, "empty", draws=0)
    collection = open_collection(root)
    assert np.array_equal(collection["half"].samples(), images)
    with pytest.raises(KeyError, match="there is no item 'other', expected one of half, empty, todo"):
        collection["other"]
    with pytest.raises(StoreError, match="item todo has no ensemble: it was not begun"):
        collection["todo"]
    with pytest.raises(StoreError, match="no draw has been committed"):
        collection["empty"]


@pytest.mark.parametrize("in_index", [True, False])
@pytest.mark.parametrize("is_complex", [True, False])
def test_views_over_all_items_agree_with_numpy(in_index: bool, is_complex: bool, tmp_path: Path) -> None:
    root = tmp_path / "root"
    writer = begun(root, "b", "half", "a")
    images = {name: write(root, name, is_complex=is_complex) for name in ("b", "a")}
    images["half"] = write(root, "half", draws=2, is_complex=is_complex)
    if in_index:
        for name in ("a", "b"):
            writer.finish(name, described(open_collection(root)[name]))
        writer.save()
    collection = open_collection(root)
    stored = {name: as_stored(x) for name, x in images.items()}
    for view, wanted in (
        (collection.mean(), np.stack([stored[n].mean((0, 1)) for n in "ba"])),
        (collection.std(), np.stack([stored[n].std((0, 1), ddof=1) for n in "ba"])),
    ):
        assert view.dims == ("item", "channel", "y", "x")
        assert view.coords["item"].values.tolist() == ["b", "a"]
        assert view.coords["channel"].values.tolist() == (["re0", "im0", "re1", "im1"] if is_complex else ["0", "1"])
        assert view.chunks is not None
        assert view.chunks[0] == (1, 1)
        assert np.allclose(view.values, wanted, atol=1e-6)
    assert np.allclose(collection.mean().sel(item="a"), stored["a"].mean((0, 1)), atol=1e-6)
    assert np.allclose(collection.mean(["half"])[0], stored["half"].mean((0, 1)), atol=1e-6)
    image = collection.image()
    assert image.dims == ("item", "chain", "draw", "channel", "y", "x")
    assert image.chunks is not None
    assert np.array_equal(image.values, np.stack([stored["b"], stored["a"]]))
    assert np.array_equal(image.sel(item="a", chain=1, draw=[4, 0])[1], stored["a"][1, 0])


def as_stored(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Real and imaginary parts as channels, in double precision."""
    if not np.iscomplexobj(images):
        return images.astype(np.float64)
    parts = np.stack([images.real, images.imag], axis=3)
    return parts.reshape(*parts.shape[:2], -1, *parts.shape[4:]).astype(np.float64)


def test_nothing_is_read_before_it_is_computed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    writer = begun(root, "a")
    write(root, "a")
    writer.finish("a", described(open_collection(root)["a"]))
    writer.save()
    mean = open_collection(root).mean()
    for chunk in (root / "a.zarr" / "posterior" / "image").glob("c.*"):
        chunk.unlink()
    with pytest.raises(StoreError):
        mean.compute()


def test_views_of_items_that_differ_say_how(tmp_path: Path) -> None:
    root = tmp_path / "root"
    begun(root, "a", "b", "c", "todo")
    write(root, "a")
    write(root, "b")
    write(root, "c", shape=(2, 3, 3))
    collection = open_collection(root)
    words = r"items differ in shape \(\(2, 4, 3\): a, b; \(2, 3, 3\): c\), expected one"
    for view in (collection.mean, collection.std):
        with pytest.raises(ValueError, match=words):
            view()
        assert view(["a", "b"]).shape == (2, *SHAPE)
    with pytest.raises(ValueError, match=r"\(2, 5, 2, 4, 3\): a, b; \(2, 5, 2, 3, 3\): c"):
        collection.image()
    with pytest.raises(KeyError, match="there is no item 'z'"):
        collection.mean(["z"])
    with pytest.raises(StoreError, match="todo has no ensemble"):
        collection.std(["a", "todo"])
    with pytest.raises(ValueError, match="no item is named"):
        collection.mean([])
    begun(tmp_path / "new", "a")
    with pytest.raises(ValueError, match="no item is complete"):
        open_collection(tmp_path / "new").mean()


def test_a_cluster_reduces_what_a_collection_holds(tmp_path: Path) -> None:
    root = tmp_path / "root"
    begun(root, "a", "b")
    images = np.stack([write(root, "a"), write(root, "b")])
    collection = open_collection(root)
    with (
        distributed.LocalCluster(
            n_workers=1,
            threads_per_worker=2,
            processes=False,
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        between = client.compute(collection.mean().std("item")).result()
        largest = client.compute(collection.image().max(("chain", "draw"))).result()
        spread = client.compute(collection["a"].dask()["posterior"]["image"].std("draw")).result()
    assert np.allclose(between, images.astype(np.float64).mean((1, 2)).std(0), atol=1e-6)
    assert np.array_equal(largest, images.max((1, 2)))
    assert np.allclose(spread, images[0].std(1), rtol=1e-5)


def test_a_resumed_collection_takes_new_items_and_forgets_failures(tmp_path: Path) -> None:
    root = tmp_path / "root"
    writer = begun(root, "a", "b", seed=1)
    writer.fail("a", "bad")
    writer.fail("b", "bad")
    writer.save()
    CollectionWriter.create(root, ["c", "a"], {"seed": 1}, resume=True)
    again = open_collection(root)
    assert again.names == ("c", "a", "b")
    assert list(again.failed) == ["b"]
    with pytest.raises(StoreError, match="seed of the stored collection is 1, this run has 2"):
        CollectionWriter.create(root, ["c"], {"seed": 2}, resume=True)
    with pytest.raises(StoreError, match="seed of the stored collection is 1, this run has None"):
        CollectionWriter.create(root, ["c"], {}, resume=True)
    assert open_collection(root).names == ("c", "a", "b")


def test_nothing_but_a_collection_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for place in ("mine", "file"):
        with pytest.raises(StoreExistsError, match="that is no collection, which potentia never deletes"):
            CollectionWriter.create(tmp_path / place, ["a"], {}, overwrite=True)
    with pytest.raises(StoreError, match=r"parent folder .* does not exist"):
        begun(tmp_path / "none" / "root", "a")
    begun(tmp_path / "empty", "a")
    write(tmp_path / "empty", "a")
    (tmp_path / "empty" / "thesis.tex").write_text("x")
    with pytest.raises(StoreExistsError, match="a collection exists there already"):
        begun(tmp_path / "empty", "a")
    CollectionWriter.create(tmp_path / "empty", ["b"], {}, overwrite=True)
    left = {p.name for p in (tmp_path / "empty").iterdir()}
    assert left == {INDEX, "thesis.tex"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="cannot be written"):
        begun(tmp_path / "root", "a")


def test_an_index_that_cannot_be_replaced_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = begun(tmp_path / "root", "a")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    writer.fail("a", "bad")
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(StoreError, match=r"cannot be written: .*No space left"):
            writer.save()
    assert open_collection(tmp_path / "root").failed == {}
    assert [p.name for p in (tmp_path / "root").iterdir()] == [INDEX]


@pytest.mark.skipif(os.name == "nt", reason="folders cannot be synced there")
def test_a_durable_index_and_its_folder_reach_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    root = tmp_path / "root"
    CollectionWriter.create(root, ["a"], {}).save()
    assert synced == []
    CollectionWriter.create(root, ["a"], {}, resume=True, durable=True)
    assert synced == [(root / INDEX).stat().st_ino, root.stat().st_ino]
    synced.clear()
    CollectionWriter.create(tmp_path / "new", ["a"], {}, durable=True)
    assert synced[0] == tmp_path.stat().st_ino
    assert synced[1:] == [(tmp_path / "new" / INDEX).stat().st_ino, (tmp_path / "new").stat().st_ino]


def test_a_lock_is_for_one_at_a_time(tmp_path: Path) -> None:
    root = Location.of(tmp_path)
    with held(root, "a", "item a"):
        with pytest.raises(StoreError, match="item a is being written by another run"), held(root, "a", "item a"):
            pass
        with held(root, "b", "item b"):
            pass
    with held(root, "a", "item a"):
        pass


@pytest.mark.parametrize("url", ["memory://scans", "icechunk:///tmp/scans"])
def test_places_that_workers_do_not_share_are_refused(url: str) -> None:
    with pytest.raises(StoreError, match="expected one that all workers reach"):
        begun(Path(url) if "://" not in url else url, "a")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a/b"], "'a/b' cannot name an item"),
        (["a\\b"], "cannot name an item"),
        ([".."], r"'\.\.' cannot name"),
        ([".hidden"], "cannot name"),
        (["__x"], "cannot name"),
        ([""], "'' cannot name"),
        (["a\0"], "cannot name"),
        (["x" * 201], "has 201 bytes, expected a name of at most 200"),
        (["é" * 101], "has 202 bytes"),
        (["a", "A"], "items 'a' and 'A' would share a file"),
    ],
)
def test_names_that_are_no_file_names_are_refused(names: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_names(names)


def test_names_must_be_text() -> None:
    with pytest.raises(TypeError, match="names of items must be text, got 3"):
        check_names([3])  # type: ignore[list-item]


@given(st.text(min_size=1, max_size=12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_every_name_that_is_taken_lies_in_the_folder(name: str) -> None:
    try:
        check_names([name])
    except (ValueError, UnicodeEncodeError):
        return
    assert Path(item_path(Location.of("/data/root"), name)).resolve().parent == Path("/data/root")


def test_what_is_no_collection_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(StoreError, match=r"there is no collection: it has no collection\.json"):
            open_collection(place)
    begun(tmp_path / "root", "a")
    index = tmp_path / "root" / INDEX
    index.write_text(index.read_text().replace('"collection_version": 1', '"collection_version": 2'))
    with pytest.raises(StoreError, match="version 2, expected 1"):
        open_collection(tmp_path / "root")


@pytest.mark.parametrize(
    ("key", "value"),
    [("items", "a"), ("items", ["b"]), ("complete", {"a": {"num_draws": 9}}), ("failed", {"a": {"message": 3}})],
    ids=str,
)
def test_a_changed_index_is_told(key: str, value: object, tmp_path: Path) -> None:
    begun(tmp_path / "root", "a")
    index = tmp_path / "root" / INDEX
    index.write_text(json.dumps({**json.loads(index.read_text()), key: value}))
    with pytest.raises(StoreError, match=r"collection\.json is damaged"):
        open_collection(tmp_path / "root")


@pytest.mark.parametrize("names", [["../../etc"], [3], 3])
def test_an_index_that_points_elsewhere_is_refused(names: object, tmp_path: Path) -> None:
    writer = begun(tmp_path / "root", "a")
    writer._index["items"] = names
    writer.save()
    with pytest.raises(StoreError, match=r"collection\.json is damaged"):
        open_collection(tmp_path / "root")
    with pytest.raises(StoreError, match=r"collection\.json is damaged"):
        CollectionWriter.create(tmp_path / "root", ["a"], {}, overwrite=True)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_flipped_and_cut_bytes_of_the_index_never_escape(tmp_path: Path, data: st.DataObject) -> None:
    root = tmp_path / "root"
    if not root.exists():
        writer = begun(root, "a", "b", seed=1)
        write(root, "a")
        writer.finish("a", described(open_collection(root)["a"]))
        writer.fail("b", "bad", "where")
        writer.save()
        (tmp_path / "whole").write_bytes((root / INDEX).read_bytes())
    raw = bytearray((tmp_path / "whole").read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (root / INDEX).write_bytes(raw[: data.draw(st.integers(len(raw) - 40, len(raw)))])
    try:
        found = open_collection(root)
    except StoreError:
        return
    # What gets by changed nothing but blanks.
    assert found._index == json.loads(json.dumps(found._index)) == _without_checksum(tmp_path / "whole")


def _without_checksum(path: Path) -> dict[str, Any]:
    return {key: value for key, value in json.loads(path.read_text()).items() if key != "checksum"}
