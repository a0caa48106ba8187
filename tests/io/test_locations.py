"""Where stores lie: each place takes a run, gives back the same ensemble, and shows nothing that is half made."""

import functools
import http.server
import os
import pickle
import shutil
import subprocess
import sys
import threading
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from s3_server import s3_server
from torch import Tensor
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

import potentia as pt
from potentia import energies, inference
from potentia.io import EnsembleWriter, StoreError, StoreExistsError, open_ensemble
from potentia.io import _remote as remote
from potentia.io import _schema as schema
from potentia.io._checked import CheckedStore
from potentia.io._create import create_at
from potentia.io._location import Location

EVENT = (2, 3, 4)
BUCKET = "ensembles"


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


IMAGES = normal(2, 4, *EVENT)  # chain, draw, then the event


@pytest.fixture(autouse=True)
def small_blocks() -> Iterator[None]:
    with mock.patch.object(schema, "_CHUNK_BYTES", 2 * 4 * 2 * 3 * 4):  # two draws
        yield


def begin(path: Any, *, stop: int = 4, **options: Any) -> EnsembleWriter:
    writer = EnsembleWriter.create(
        path, num_chains=2, num_draws=4, event_shape=EVENT, attrs={"seed": 3}, constant={"truth": normal(*EVENT)},
        state_bytes=32, queue_blocks=1, **options,
    )  # fmt: skip
    go_on(writer, 0, stop)
    return writer


def go_on(writer: EnsembleWriter, first: int, stop: int = 4) -> None:
    for k in range(first, stop):
        writer.append(IMAGES[:, k], {"lp": float(k)})
        if writer.ready_to_commit:
            writer.commit(f"after draw {k}".encode())


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    pytest.importorskip("obstore", reason="obstore, the extra 'cloud', is not installed")
    pytest.importorskip("moto.server", reason="moto, a server for tests, is not installed")
    with s3_server(BUCKET) as environment:
        yield environment


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A path of the kind that the test is parametrised with, for a store that is not there yet."""
    kind = request.param
    if kind == "s3":
        for name, value in request.getfixturevalue("s3").items():
            monkeypatch.setenv(name, value)
        return f"s3://{BUCKET}/{tmp_path.name}/run"
    return {"folder": str(tmp_path / "a.zarr"), "file": f"file://{tmp_path}/a.zarr", "memory": f"memory://{tmp_path}"}[
        kind
    ]


EVERYWHERE = pytest.mark.parametrize("place", ["folder", "file", "memory", "s3"], indirect=True)


def keys(path: str) -> list[str]:
    async def listed() -> list[str]:
        return sorted([key async for key in Location.of(path).inner(writable=True).list()])

    return sync(listed())


@EVERYWHERE
def test_replacing_a_rechunked_store_leaves_none_of_it(place: str, tmp_path: Path) -> None:
    begin(place).close().finalize(rechunk=True)
    assert any(key.startswith("posterior_by_pixel") for key in keys(place))
    copy = open_ensemble(place).save(tmp_path / "copy.zarr")  # chunk by chunk, the second copy too
    assert torch.equal(copy.samples(), IMAGES)
    np.testing.assert_array_equal(copy.quantile(0.5), open_ensemble(place).quantile(0.5))
    begin(place, overwrite=True)
    assert not any(key.startswith("posterior_by_pixel") for key in keys(place))


@EVERYWHERE
def test_a_run_is_written_read_and_not_replaced_unasked(place: str) -> None:
    ensemble = begin(place).close(sampling_time=1.5)
    for opened in (ensemble, open_ensemble(place)):
        assert torch.equal(opened.samples(), IMAGES)
        np.testing.assert_array_equal(opened.image, IMAGES)
        np.testing.assert_allclose(opened.mean(), IMAGES.double().mean(dim=(0, 1)), rtol=1e-12)
        np.testing.assert_array_equal(opened.tree["sample_stats"]["lp"], [[0, 1, 2, 3]] * 2)
        assert opened.tree.attrs["sampling_time"] == 1.5
    ensemble.set_summary("map", normal(*EVENT, seed=1))
    np.testing.assert_array_equal(open_ensemble(place).tree["posterior_summary"]["map"], normal(*EVENT, seed=1))
    with pytest.raises(StoreExistsError, match="overwrite=True"):
        begin(place)
    assert torch.equal(open_ensemble(place).samples(), IMAGES)
    begin(place, stop=2, overwrite=True)
    assert open_ensemble(place).num_draws == 2, "the old store shines through the new one"
    assert "map" not in open_ensemble(place).tree["posterior_summary"]


@EVERYWHERE
def test_an_interrupted_run_is_taken_up(place: str) -> None:
    begin(place, stop=3)  # the third draw was never committed
    assert torch.equal(open_ensemble(place).samples(), IMAGES[:, :2])
    writer, state = EnsembleWriter.resume(place, expect={"seed": 3}, queue_blocks=1)
    assert (writer.num_committed, state) == (2, b"after draw 1")
    go_on(writer, 2)
    assert torch.equal(writer.close().samples(), IMAGES)
    with pytest.raises(StoreError, match="seed of the stored run is 3"):
        EnsembleWriter.resume(place, expect={"seed": 4})


@EVERYWHERE
def test_sample_goes_on_where_it_was_interrupted(place: str) -> None:
    posterior = energies.Gaussian(torch.zeros(EVENT), 1.0)
    run = functools.partial(
        pt.sample, posterior, inference.Langevin(0.1), num_chains=2, num_draws=4, num_warmup=2, seed=7, progress=False
    )
    append, calls = EnsembleWriter.append, []

    def failing(self: EnsembleWriter, *args: Any) -> None:
        calls.append(args)
        if len(calls) == 4:
            raise RuntimeError("the machine goes down")
        append(self, *args)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", inference.DiagnosticWarning)  # four draws
        whole = run()
        with mock.patch.object(EnsembleWriter, "append", failing), pytest.raises(RuntimeError, match="goes down"):
            run(store=place)
        assert torch.equal(open_ensemble(place).samples(), whole.samples()[:, :2])
        assert torch.equal(run(store=place, resume=True).samples(), whole.samples())


@EVERYWHERE
@pytest.mark.parametrize("existing", [False, True])
def test_a_creation_that_fails_leaves_nothing_that_opens(place: str, existing: bool) -> None:
    if existing and not place.startswith("s3"):  # a bucket has no renaming: there the old store goes first
        begin(place)

    def build(root: zarr.Group) -> None:
        schema.build(root, schema.Layout.checked(1, 2, EVENT, False, "float32"), 8)
        raise OSError(28, "No space left on device")

    location = Location.of(place)
    # in memory nothing is full: the error is the caller's own
    with pytest.raises(OSError if place.startswith("memory") else StoreError, match="No space left"):
        create_at(location, build, overwrite=existing)
    if existing and not place.startswith("s3"):
        assert torch.equal(open_ensemble(place).samples(), IMAGES)
        return
    with pytest.raises(StoreError, match="there is no such store"):
        open_ensemble(place)
    # What is left of it, in a bucket, is in nobody's way.
    assert torch.equal(begin(place).close().samples(), IMAGES)


@pytest.mark.parametrize("place", ["s3"], indirect=True)
class TestBucket:
    def test_the_root_comes_last(self, place: str) -> None:
        written: list[str] = []
        put = CheckedStore._put

        async def noted(self: CheckedStore, key: str, value: Any) -> None:
            written.append(key)
            await put(self, key, value)

        with mock.patch.object(CheckedStore, "_put", noted):
            create_at(
                Location.of(place),
                lambda root: schema.build(root, schema.Layout.checked(1, 2, EVENT, False, "float32"), 8),
                overwrite=False,
            )
        assert written[-2:] == ["writer/zarr.json", "zarr.json"]
        assert written.count("zarr.json") == 1

    def test_other_objects_are_never_deleted(self, place: str) -> None:
        inner = Location.of(place).inner(writable=True)
        sync(inner.set("thesis.txt", default_buffer_prototype().buffer.from_bytes(b"years of work")))
        for overwrite in (False, True):
            with pytest.raises(StoreExistsError, match=r"thesis\.txt is there, and no store, which potentia never del"):
                begin(place, overwrite=overwrite)
        assert keys(place) == ["thesis.txt"]

    def test_overwriting_spares_what_lies_beside(self, place: str) -> None:
        begin(place)
        inner = Location.of(place).inner(writable=True)
        for key in ("notes.txt", "posterior2/a"):
            sync(inner.set(key, default_buffer_prototype().buffer.from_bytes(b"years of work")))
        begin(place, overwrite=True)
        assert {"notes.txt", "posterior2/a"} <= set(keys(place))

    def test_a_damaged_object_is_refused(self, place: str) -> None:
        begin(place).close()
        inner = Location.of(place).inner(writable=True)
        key = "posterior/image/c.1.1.0.0.0"
        raw = bytearray(sync(inner.get(key, default_buffer_prototype())).to_bytes())
        raw[5] ^= 1
        sync(inner.set(key, default_buffer_prototype().buffer.from_bytes(bytes(raw))))
        ensemble = open_ensemble(place)
        with pytest.raises(StoreError, match=r"run: posterior/image/c\.1\.1\.0\.0\.0 is damaged"):
            ensemble.samples()
        sync(inner.delete(key))
        with pytest.raises(StoreError, match="is missing"):
            ensemble.samples()

    def test_no_bucket_no_store_and_no_server(self, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for path in (place, "s3://no-such-bucket/run"):
            with pytest.raises(StoreError, match=f"{path}: there is no such store"):
                open_ensemble(path)
        with pytest.raises(StoreError, match=r"s3://no-such-bucket/run: .*cannot be written"):
            begin("s3://no-such-bucket/run")
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # the port of discard, where nobody listens
        with (
            mock.patch.object(remote, "_RETRIES", {"max_retries": 0}),
            pytest.raises(StoreError, match="cannot be read"),
        ):
            open_ensemble(place)


class TestZip:
    def test_a_packed_ensemble_is_read_like_its_folder(self, tmp_path: Path) -> None:
        folder = begin(tmp_path / "run").close()
        packed = folder.save(tmp_path / "run.zip")
        assert zipfile.is_zipfile(tmp_path / "run.zip")
        for opened in (packed, open_ensemble(tmp_path / "run.zip"), open_ensemble(f"file://{tmp_path}/run.zip")):
            assert torch.equal(opened.samples(), IMAGES)
            np.testing.assert_array_equal(opened.mean(), folder.mean())
            np.testing.assert_array_equal(opened.quantile([0.1, 0.6]), folder.quantile([0.1, 0.6]))
            assert opened.coverage(normal(*EVENT)) == folder.coverage(normal(*EVENT))
            for node in folder.tree.subtree:
                if node.path != "/writer":
                    xr.testing.assert_identical(node.to_dataset(), opened.tree[node.path].to_dataset())
        assert sorted(os.listdir(tmp_path)) == ["run", "run.zip"]
        # and it goes back to a folder on which a run can go on
        unpacked = open_ensemble(tmp_path / "run.zip").save(tmp_path / "again")
        assert torch.equal(unpacked.samples(), IMAGES)
        with pytest.raises(StoreExistsError):
            folder.save(tmp_path / "run.zip")
        open_ensemble(tmp_path / "run.zip").save(tmp_path / "run.zip", overwrite=True)
        assert torch.equal(open_ensemble(tmp_path / "run.zip").samples(), IMAGES)

    def test_half_a_run_is_packed_unpacked_and_taken_up(self, tmp_path: Path) -> None:
        begin(tmp_path / "run", stop=2)
        open_ensemble(tmp_path / "run").save(tmp_path / "run.zip").save(tmp_path / "again")
        writer, state = EnsembleWriter.resume(tmp_path / "again", queue_blocks=1)
        assert state == b"after draw 1"
        go_on(writer, 2)
        assert torch.equal(writer.close().samples(), IMAGES)

    def test_draws_are_not_written_into_an_archive(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match=r'run\.zip: a zip archive can only be read.*Ensemble\.save\("run\.zip"\)'):
            begin(tmp_path / "run.zip")
        begin(tmp_path / "run").close().save(tmp_path / "run.zip")
        for refuse in (
            lambda: begin(tmp_path / "run.zip", overwrite=True),
            lambda: EnsembleWriter.resume(tmp_path / "run.zip"),
            lambda: open_ensemble(tmp_path / "run.zip").set_summary("map", normal(*EVENT)),
        ):
            with pytest.raises(StoreError, match="can only be read"):
                refuse()
        assert os.listdir(tmp_path).count("run.zip") == 1

    def test_a_folder_may_be_called_zip(self, tmp_path: Path) -> None:
        begin(tmp_path / "run").close()
        shutil.move(tmp_path / "run", tmp_path / "odd.zip")
        assert torch.equal(open_ensemble(tmp_path / "odd.zip").samples(), IMAGES)

    @pytest.mark.parametrize("cut", [0, 10, 0.5, -1])
    def test_a_damaged_archive_is_refused(self, tmp_path: Path, cut: float) -> None:
        begin(tmp_path / "run").close().save(tmp_path / "run.zip")
        size = (tmp_path / "run.zip").stat().st_size
        os.truncate(tmp_path / "run.zip", int(size * cut if 0 < cut < 1 else cut % size))
        with pytest.raises(StoreError, match=r"run\.zip: cannot be opened as a zip archive"):
            open_ensemble(tmp_path / "run.zip")

    def test_there_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="there is no such store, expected a zip archive"):
            open_ensemble(tmp_path / "run.zip")
        begin(tmp_path / "run")
        with pytest.raises(StoreError, match="parent folder"):
            open_ensemble(tmp_path / "run").save(tmp_path / "no" / "run.zip")


class TestWebServer:
    @pytest.fixture
    def served(self, tmp_path: Path) -> Iterator[str]:
        pytest.importorskip("obstore", reason="obstore, the extra 'cloud', is not installed")

        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

        handler = functools.partial(Quiet, directory=str(tmp_path))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        server.server_close()
        thread.join()

    def test_a_plain_web_server_is_enough(self, tmp_path: Path, served: str) -> None:
        folder = begin(tmp_path / "run").close()
        ensemble = open_ensemble(f"{served}/run/")
        assert torch.equal(ensemble.samples(), IMAGES)
        for node in folder.tree.subtree:  # though it lists nothing
            xr.testing.assert_identical(node.to_dataset(), ensemble.tree[node.path].to_dataset())
        with pytest.raises(StoreError, match="web servers can only be read"):
            ensemble.set_summary("map", normal(*EVENT))
        with pytest.raises(StoreError, match="web servers can only be read"):
            begin(f"{served}/other")
        with pytest.raises(StoreError, match="there is no such store"):
            open_ensemble(f"{served}/other")


class TestMemory:
    def test_the_name_is_shared_within_the_process_only(self, tmp_path: Path) -> None:
        url = f"memory://{tmp_path}/shared"
        begin(url)
        assert torch.equal(open_ensemble(url).samples(), IMAGES)
        with pytest.raises(StoreError, match="no such store in this process"):
            open_ensemble(f"memory://{tmp_path}/other")
        code = f"from potentia.io import open_ensemble\nopen_ensemble({url!r})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "no such store in this process" in done.stderr


class TestIcechunk:
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        pytest.importorskip("icechunk", reason="icechunk, the extra 'icechunk', is not installed")
        return f"icechunk://{tmp_path}/repo"

    def test_each_block_is_a_commit_of_the_repository(self, url: str) -> None:
        import icechunk

        writer = begin(url, stop=2)
        assert torch.equal(open_ensemble(url).samples(), IMAGES[:, :2])
        go_on(writer, 2)
        ensemble = writer.close()
        assert torch.equal(ensemble.samples(), IMAGES)
        np.testing.assert_allclose(ensemble.mean(), IMAGES.double().mean(dim=(0, 1)), rtol=1e-12)
        storage = icechunk.local_filesystem_storage(url.removeprefix("icechunk://"))
        history = [c.message for c in icechunk.Repository.open(storage).ancestry(branch="main")][::-1]
        assert history[1:4] == ["an empty ensemble", "draw 2", "draw 4"]

    def test_what_was_not_committed_is_gone_and_the_run_is_taken_up(self, url: str) -> None:
        writer = begin(url, stop=2)
        with mock.patch.object(Location, "commit", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            go_on(writer, 2)  # killed before the commit, all else written
        assert torch.equal(open_ensemble(url).samples(), IMAGES[:, :2])
        taken_up, state = EnsembleWriter.resume(url, expect={"seed": 3}, queue_blocks=1)
        assert (taken_up.num_committed, state) == (2, b"after draw 1")
        go_on(taken_up, 2)
        assert torch.equal(taken_up.close().samples(), IMAGES)

    def test_a_second_committer_is_refused(self, url: str) -> None:
        begin(url, stop=0)
        first, second = (EnsembleWriter.resume(url, queue_blocks=1)[0] for _ in range(2))
        go_on(first, 0, 2)
        with pytest.raises(StoreError, match=r"repo: the repository does not take the commit 'draw 2'"):
            go_on(second, 0, 2)
        assert torch.equal(open_ensemble(url).samples(), IMAGES[:, :2])

    def test_there_is_none_or_it_is_taken(self, url: str) -> None:
        with pytest.raises(StoreError, match="there is no such store, expected an icechunk repository"):
            open_ensemble(url)
        with pytest.raises(StoreError, match=r"unknown kind of icechunk store"):
            open_ensemble("icechunk+ftp://a/b")
        begin(url)
        with pytest.raises(StoreExistsError):
            begin(url)
        begin(url, stop=2, overwrite=True)
        assert open_ensemble(url).num_draws == 2


@pytest.mark.parametrize(
    ("path", "extra"), [("s3://b/a", "cloud"), ("http://localhost/a", "cloud"), ("icechunk:///a", "icechunk")]
)
def test_a_missing_package_is_named(path: str, extra: str) -> None:
    name = "obstore" if extra == "cloud" else extra
    with mock.patch.dict(sys.modules, {name: None}), pytest.raises(StoreError, match=rf"potentia\[{extra}\]"):
        open_ensemble(path)


@pytest.mark.parametrize("path", ["ftp://host/a", "sftp://host/a", "nonsense://a"])
def test_unknown_schemes_are_refused(path: str) -> None:
    for refuse in (open_ensemble, begin):
        with pytest.raises(StoreError, match="unknown scheme"):
            refuse(path)


@EVERYWHERE
def test_the_tree_goes_to_other_processes(place: str) -> None:
    if place.startswith("memory"):
        pytest.skip("memory is not shared with other processes")
    begin(place).close()
    tree = pickle.loads(pickle.dumps(open_ensemble(place).tree))
    np.testing.assert_array_equal(tree["posterior"]["image"], IMAGES)


class TestArviz:
    @pytest.fixture
    def az(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ArviZ announces its next major version on import
            return pytest.importorskip("arviz")

    @EVERYWHERE
    def test_the_tree(self, place: str, az: Any) -> None:
        data = az.from_datatree(begin(place).close().tree)
        np.testing.assert_array_equal(data["posterior"]["image"], IMAGES)
        assert az.rhat(data)["image"].shape == EVENT

    def test_the_store(self, tmp_path: Path, az: Any) -> None:
        if int(az.__version__.partition(".")[0]) < 1:
            pytest.skip(f"ArviZ {az.__version__} reads zarr 2 alone, expected 1 or later")
        begin(tmp_path / "a.zarr").close()
        data = az.from_zarr(tmp_path / "a.zarr")
        np.testing.assert_array_equal(data["posterior"]["image"], IMAGES)
