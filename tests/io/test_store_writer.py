"""The writer: what was appended is read back, a killed run is taken up, and nothing is deleted by mistake."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from potentia.io import EnsembleWriter, StoreError, StoreExistsError, check_target, open_ensemble
from potentia.io import _schema as schema
from potentia.io._sink import Sink

STATE_BYTES = 64


def draw_images(chains: int, draws: int, event: tuple[int, int, int], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Images (draw, chain, C, H, W) whose every entry differs."""
    return torch.randn(draws, chains, *event, dtype=dtype, generator=torch.Generator().manual_seed(seed)) * 3 + 1


def new_writer(path: Any, images: Tensor, **options: Any) -> EnsembleWriter:
    draws, chains, *event = images.shape
    name = "float64" if images.dtype in (torch.float64, torch.complex128) else "float32"
    return EnsembleWriter.create(
        path, num_chains=chains, num_draws=draws, event_shape=event, is_complex=images.is_complex(), dtype=name,
        state_bytes=STATE_BYTES, **options,
    )  # fmt: skip


def feed(writer: EnsembleWriter, images: Tensor, first: int = 0, stop: int | None = None) -> None:
    """Append draws as ``sample`` does; the state is the number of the last draw."""
    for k in range(first, len(images) if stop is None else stop):
        lp = np.full(images.shape[1], float(k))
        writer.append(images[k].clone(), {"lp": lp, "n_grad": k, "diverging": k % 2 == 1})
        lp.fill(7.0)  # of statistics the writer must have taken a copy
        if writer.ready_to_commit:
            writer.commit(f"after draw {k}".encode())
    writer.flush()


@st.composite
def runs(draw: st.DrawFn) -> dict[str, Any]:
    event = draw(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5)))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.complex64, torch.complex128]))
    chains, draws = draw(st.integers(1, 3)), draw(st.integers(1, 7))
    seed = draw(st.integers(0, 1000))
    images = draw_images(chains, draws, event, dtype, seed)
    return {"images": images, "limit": draw(st.integers(1, draws + 1)) * images[0, 0].nbytes}


@pytest.fixture
def small_blocks() -> Iterator[None]:
    with mock.patch.object(schema, "_CHUNK_BYTES", 2 * 4 * 2 * 3 * 4):  # two draws of (2, 3, 4) in float32
        yield


@given(run=runs(), in_memory=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_appended_is_read_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, run: dict[str, Any], in_memory: bool
) -> None:
    images = run["images"]
    path = None if in_memory else tmp_path_factory.mktemp("store") / "a.zarr"
    with mock.patch.object(schema, "_CHUNK_BYTES", run["limit"]):
        writer = new_writer(path, images)
        feed(writer, images)
        assert writer.num_committed == len(images)
        closed = writer.close(sampling_time=1.5)
    for ensemble in [closed] if path is None else [closed, open_ensemble(path)]:
        read = ensemble.samples()
        assert read.dtype == images.dtype
        assert torch.equal(read, images.transpose(0, 1))
        stats = ensemble.tree["sample_stats"]
        want = np.broadcast_to(np.arange(len(images)), (images.shape[1], len(images)))
        np.testing.assert_array_equal(stats["lp"], want)
        np.testing.assert_array_equal(stats["n_grad"], want)
        np.testing.assert_array_equal(stats["diverging"], want % 2 == 1)
        assert bool(np.isnan(stats["sigma"]).all()), "a statistic that was not given passes for one that was"
        assert ensemble.tree.attrs["sampling_time"] == 1.5


@given(run=runs(), data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_resume_gives_the_state_and_what_follows_is_as_if_uninterrupted(
    tmp_path_factory: pytest.TempPathFactory, run: dict[str, Any], data: st.DataObject
) -> None:
    images = run["images"]
    path = tmp_path_factory.mktemp("store") / "a.zarr"
    with mock.patch.object(schema, "_CHUNK_BYTES", run["limit"]):
        writer = new_writer(path, images, attrs={"seed": 3})
        killed = data.draw(st.integers(0, len(images)))
        feed(writer, images, stop=killed)
        committed = writer.num_committed
        del writer
    taken_up, state = EnsembleWriter.resume(path, expect={"seed": 3})
    assert taken_up.num_committed == committed
    assert state == (f"after draw {committed - 1}".encode() if committed else b"")
    feed(taken_up, images, first=committed)
    ensemble = taken_up.close()
    assert torch.equal(ensemble.samples(), images.transpose(0, 1))
    stored = zarr.open_group(path, mode="r")
    pixels = np.asarray(stored["posterior/image"][:]).astype(np.float64)
    assert stored["posterior_summary/count"][:].tolist() == [len(images)] * images.shape[1]
    np.testing.assert_allclose(stored["posterior_summary/mean"][:], pixels.mean(axis=1), rtol=1e-12, atol=1e-12)
    m2 = np.square(pixels - pixels.mean(axis=1, keepdims=True)).sum(axis=1)
    np.testing.assert_allclose(stored["posterior_summary/m2"][:], m2, rtol=1e-9, atol=1e-12)


def test_a_block_closed_early_is_completed_on_resume(tmp_path: Path, small_blocks: None) -> None:
    images = draw_images(2, 5, (2, 3, 4), torch.float32)
    writer = new_writer(tmp_path / "a.zarr", images)
    feed(writer, images, stop=3)
    assert writer.close().num_draws == 3
    assert torch.equal(open_ensemble(tmp_path / "a.zarr").samples(), images[:3].transpose(0, 1))
    writer, _ = EnsembleWriter.resume(tmp_path / "a.zarr")
    assert writer.num_committed == 3
    feed(writer, images, first=3)
    assert torch.equal(writer.close().samples(), images.transpose(0, 1))


@pytest.mark.parametrize(
    "stop_before", ["sample_stats/lp", "writer/state", "writer/n_committed", "posterior_summary/m2"]
)
@pytest.mark.parametrize("at_the_end", [False, True])
def test_a_kill_within_a_commit_loses_nothing_that_was_counted(
    tmp_path: Path, small_blocks: None, stop_before: str, at_the_end: bool
) -> None:
    images = draw_images(2, 4, (2, 3, 4), torch.float32)
    path = tmp_path / "a.zarr"
    writer = new_writer(path, images)
    begun = 2 if at_the_end else 0
    feed(writer, images, stop=begun)
    whole = Sink.array
    states = iter([True])  # the size of the state is asked for first

    def dying(self: Sink, name: str) -> Any:
        if name == stop_before and not (name == "writer/state" and next(states, False)):
            raise KeyboardInterrupt
        return whole(self, name)

    died = False
    with mock.patch.object(Sink, "array", dying):
        try:
            for k in range(begun, begun + 2):
                writer.append(images[k], {})
            writer.commit(f"after draw {begun + 1}".encode())
            writer.flush()
        except KeyboardInterrupt:
            died = True
    assert died or (stop_before == "posterior_summary/m2" and not at_the_end)
    if begun:
        readable = open_ensemble(path)
        n = readable.num_draws
        assert torch.equal(readable.samples(), images[:n].transpose(0, 1))
        np.testing.assert_allclose(readable.mean(), images[:n].double().mean(dim=(0, 1)), rtol=1e-12)
    taken_up, state = EnsembleWriter.resume(path)
    assert state == (f"after draw {taken_up.num_committed - 1}".encode() if taken_up.num_committed else b"")
    feed(taken_up, images, first=taken_up.num_committed)
    ensemble = taken_up.close()
    assert ensemble.num_draws == 4, "draws whose state was saved are lost"
    assert torch.equal(ensemble.samples(), images.transpose(0, 1))
    np.testing.assert_allclose(ensemble.mean(), images.double().mean(dim=(0, 1)), rtol=1e-12)


def test_damaged_state_is_refused(tmp_path: Path, small_blocks: None) -> None:
    images = draw_images(1, 4, (2, 3, 4), torch.float32)
    path = tmp_path / "a.zarr"
    feed(new_writer(path, images), images, stop=2)
    file = path / "writer" / "state" / "c.0.0"
    whole = file.read_bytes()
    for damaged in (whole[:17] + bytes([whole[17] ^ 1]) + whole[18:], whole[:20], b""):
        file.write_bytes(damaged)
        with pytest.raises(StoreError, match=r"a\.zarr: .*(damaged|cut short)"):
            EnsembleWriter.resume(path)
    file.write_bytes(whole)
    assert EnsembleWriter.resume(path)[1] == b"after draw 1"


def test_damaged_draws_are_not_resumed(tmp_path: Path, small_blocks: None) -> None:
    images = draw_images(1, 4, (2, 3, 4), torch.float32)
    path = tmp_path / "a.zarr"
    feed(new_writer(path, images), images, stop=2)
    (path / "posterior" / "image" / "c.0.0.0.0.0").unlink()
    with pytest.raises(StoreError, match=r"cut short: chunk c\.0\.0\.0\.0\.0 of posterior/image has 0 bytes"):
        EnsembleWriter.resume(path)


def test_a_run_that_differs_is_refused_naming_what(tmp_path: Path) -> None:
    images = draw_images(1, 2, (1, 2, 2), torch.float32)
    new_writer(tmp_path / "a.zarr", images, attrs={"seed": 0, "sampler": "ALPS", "shape": (1, 2)})
    with pytest.raises(StoreError, match=r"seed of the stored run is 0, this run has 1"):
        EnsembleWriter.resume(tmp_path / "a.zarr", expect={"sampler": "ALPS", "seed": 1})
    run = {"seed": 0, "sampler": "ALPS", "shape": (1, 2)}  # a tuple is what JSON makes of it
    with pytest.raises(StoreError, match="rule of the stored run is None, this run has 'euler'"):
        EnsembleWriter.resume(tmp_path / "a.zarr", expect={**run, "rule": "euler"})
    with pytest.raises(StoreError, match="sampler of the stored run is 'ALPS', this run has None"):
        EnsembleWriter.resume(tmp_path / "a.zarr", expect={"seed": 0, "shape": (1, 2)})
    EnsembleWriter.resume(tmp_path / "a.zarr", expect=run)


def test_orphans_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    images = draw_images(1, 2, (1, 2, 2), torch.float32)
    new_writer(tmp_path / "a.zarr", images)
    orphan = tmp_path / "a.zarr" / "posterior" / "image" / "c.0.0.0.0.0.4f.partial"
    orphan.write_bytes(b"half")
    EnsembleWriter.resume(tmp_path / "a.zarr")
    assert not orphan.exists()


class TestPlace:
    images = draw_images(1, 2, (1, 2, 2), torch.float32)

    def test_a_store_is_replaced_only_when_asked(self, tmp_path: Path) -> None:
        path = tmp_path / "a.zarr"
        feed(new_writer(path, self.images), self.images)
        for refuse in (lambda: check_target(path), lambda: new_writer(path, self.images)):
            with pytest.raises(StoreExistsError, match="overwrite=True"):
                refuse()
        assert open_ensemble(path).num_draws == 2
        check_target(path, overwrite=True)
        other = draw_images(1, 2, (1, 2, 2), torch.float32, seed=1)
        writer = new_writer(path, other, overwrite=True)
        feed(writer, other)
        assert torch.equal(writer.close().samples(), other.transpose(0, 1))
        assert os.listdir(tmp_path) == ["a.zarr"]

    def test_overwrite_never_deletes_what_is_no_store(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "thesis.txt").write_text("years of work")
        (tmp_path / "empty").mkdir()
        (tmp_path / "file").write_text("years of work")
        for name in ("folder", "empty", "file"):
            for refuse in (
                lambda name=name: check_target(tmp_path / name, overwrite=True),
                lambda name=name: new_writer(tmp_path / name, self.images, overwrite=True),
            ):
                with pytest.raises(StoreExistsError, match="never deletes"):
                    refuse()
        assert (tmp_path / "folder" / "thesis.txt").read_text() == "years of work"
        assert (tmp_path / "file").read_text() == "years of work"
        assert sorted(os.listdir(tmp_path)) == ["empty", "file", "folder"]

    @pytest.mark.parametrize("existing", [False, True])
    @pytest.mark.parametrize("failing", ["build", "add_data"])
    def test_a_failed_creation_leaves_nothing_behind(self, tmp_path: Path, existing: bool, failing: str) -> None:
        if existing:
            feed(new_writer(tmp_path / "a.zarr", self.images), self.images)
        with (
            mock.patch(f"potentia.io._writer.{failing}", side_effect=OSError(28, "No space left on device")),
            pytest.raises(StoreError, match="No space left"),
        ):
            new_writer(tmp_path / "a.zarr", self.images, overwrite=existing)
        assert os.listdir(tmp_path) == (["a.zarr"] if existing else [])
        if existing:
            assert torch.equal(open_ensemble(tmp_path / "a.zarr").samples(), self.images.transpose(0, 1))

    def test_data_that_cannot_be_stored_leave_nothing_behind(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="dtype"):
            new_writer(tmp_path / "a.zarr", self.images, constant={"truth": np.array(["text"])})
        with pytest.raises(ValueError, match="JSON"):
            new_writer(tmp_path / "a.zarr", self.images, attrs={"loss": float("nan")})
        assert os.listdir(tmp_path) == []

    def test_the_parent_must_be_there_and_writable(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="does not exist"):
            check_target(tmp_path / "no" / "a.zarr")
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        if os.access(locked, os.W_OK):
            pytest.skip("this user may write everywhere")
        for refuse in (check_target, lambda path: new_writer(path, self.images)):
            with pytest.raises(StoreError, match="not writable"):
                refuse(locked / "a.zarr")

    def test_a_file_prefix_is_a_path(self, tmp_path: Path) -> None:
        feed(new_writer(f"file://{tmp_path}/a.zarr", self.images), self.images)
        assert torch.equal(open_ensemble(tmp_path / "a.zarr").samples(), self.images.transpose(0, 1))
        with pytest.raises(StoreError, match="path of a store is empty"):
            check_target("")

    def test_urls_pass_to_fsspec(self) -> None:
        pytest.importorskip("fsspec")
        url = "memory://potentia-test/a.zarr"
        feed(new_writer(url, self.images), self.images)
        assert torch.equal(open_ensemble(url).samples(), self.images.transpose(0, 1))
        with pytest.raises(StoreExistsError):
            new_writer(url, self.images)
        new_writer(url, self.images, overwrite=True)
        with pytest.raises(StoreError, match="no draw has been committed"):
            open_ensemble(url)


@pytest.mark.skipif(os.name == "nt", reason="folders cannot be synced there")
class TestCreationThatLasts:
    images = draw_images(1, 2, (1, 2, 2), torch.float32)

    @pytest.mark.parametrize("existing", [False, True])
    def test_a_new_store_is_on_the_disk_before_it_has_its_name(
        self, tmp_path: Path, existing: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "a.zarr"
        if existing:
            feed(new_writer(path, self.images), self.images)
        events: list[object] = []
        fsync, rename = os.fsync, Path.rename

        def synced(handle: int) -> None:
            events.append(os.fstat(handle).st_ino)
            fsync(handle)

        def renamed(self: Path, target: Path) -> Path:
            events.append(Path(target).name)
            return rename(self, target)

        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(Path, "rename", renamed)
        writer = new_writer(path, self.images, durability="power", overwrite=existing)
        writer.stop()
        named = events.index("a.zarr")
        everything = {p.stat().st_ino for p in [path, *path.rglob("*")]}
        assert len(everything) > 60
        assert everything <= set(events[:named])
        assert events[named + 1 :] == [tmp_path.stat().st_ino]

    def test_whoever_does_not_ask_does_not_wait(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=AssertionError("nobody asked for this")))
        feed(new_writer(tmp_path / "a.zarr", self.images), self.images)


class TestAppend:
    images = draw_images(2, 4, (2, 3, 4), torch.float32)

    @pytest.mark.parametrize(
        "bad",
        [torch.zeros(2, 2, 3, 5), torch.zeros(1, 2, 3, 4), torch.zeros(2, 3, 4), torch.zeros(2, 2, 3, 4).cfloat()],
    )
    def test_another_shape_or_field_is_refused(self, bad: Tensor) -> None:
        with pytest.raises(ValueError, match=r"images have shape .* expected \(2, 2, 3, 4\), real"):
            new_writer(None, self.images).append(bad, {})

    def test_statistics_are_checked(self) -> None:
        writer = new_writer(None, self.images)
        with pytest.raises(ValueError, match="'energy' is no sample statistic, expected one of lp"):
            writer.append(self.images[0], {"energy": 1.0})
        with pytest.raises(ValueError, match=r"lp has shape \(3,\), expected a number or \(2,\)"):
            writer.append(self.images[0], {"lp": torch.zeros(3)})
        feed(writer, self.images)  # what was refused was not staged
        assert torch.equal(writer.close().samples(), self.images.transpose(0, 1))

    def test_a_full_block_must_be_committed(self, small_blocks: None) -> None:
        writer = new_writer(None, self.images)
        for k in (0, 1):
            writer.append(self.images[k], {})
        assert writer.block == 2
        assert writer.ready_to_commit
        with pytest.raises(ValueError, match="expected commit first"):
            writer.append(self.images[2], {})
        writer.commit()
        feed(writer, self.images, first=2)
        with pytest.raises(ValueError, match="after the last draw"):
            writer.append(self.images[0], {})

    @pytest.mark.parametrize("queue_blocks", [2, 3, 4])
    def test_a_draw_waits_for_room(self, tmp_path: Path, small_blocks: None, queue_blocks: int) -> None:
        images = draw_images(2, 20, (2, 3, 4), torch.float32)
        writer = new_writer(tmp_path / "a.zarr", images, queue_blocks=queue_blocks)
        gate, write = threading.Event(), Sink.write

        def held_up(self: Sink, state: bytes) -> None:
            gate.wait()
            write(self, state)

        with mock.patch.object(Sink, "write", held_up):
            feeding = threading.Thread(target=feed, args=(writer, images))
            feeding.start()
            feeding.join(0.3)
            # One block is with the thread, and the others wait for it.
            assert writer.num_appended == 2 * queue_blocks
            assert feeding.is_alive()
            gate.set()
            feeding.join()
        assert torch.equal(writer.close().samples(), images.transpose(0, 1))

    @pytest.mark.parametrize("queue_blocks", [1, 3])
    @pytest.mark.parametrize("then", ["append", "commit", "finish"])
    def test_images_that_are_changed_afterwards_are_refused(self, tmp_path: Path, queue_blocks: int, then: str) -> None:
        writer = new_writer(tmp_path / "a.zarr", self.images, queue_blocks=queue_blocks)
        images = self.images[0].clone()
        writer.append(images, {})
        images += 1
        call = {"append": lambda: writer.append(images, {}), "commit": writer.commit, "finish": writer.finish}[then]
        with pytest.raises(RuntimeError, match="images were changed in place after they were appended"):
            call()
        writer.stop()

    def test_images_of_an_earlier_draw_that_are_changed_are_refused(self, tmp_path: Path, small_blocks: None) -> None:
        """Two tensors in turn: the writer, which is behind, finds what it was to copy changed."""
        writer = new_writer(tmp_path / "a.zarr", self.images)
        gate, add = threading.Event(), Sink.add

        def held_up(self: Sink, draw: Any) -> None:
            gate.wait()
            add(self, draw)

        first, second = self.images[0].clone(), self.images[1].clone()
        with mock.patch.object(Sink, "add", held_up):
            writer.append(first, {})
            writer.append(second, {})
            first += 1
            writer.commit()
            gate.set()  # only now: commit would tell of what was found before it
            with pytest.raises(RuntimeError, match="images were changed in place"):
                writer.flush()
        with pytest.raises(StoreError, match="no draw has been committed"):
            open_ensemble(tmp_path / "a.zarr")
        writer.stop()

    def test_what_would_keep_more_alive_or_counts_no_changes_is_copied(self, tmp_path: Path) -> None:
        writer = new_writer(tmp_path / "a.zarr", self.images)
        replicas = torch.stack([self.images[0], torch.zeros_like(self.images[0])])
        with torch.inference_mode():
            inferred = self.images[1] * 1
        writer.append(replicas[0], {})
        writer.append(inferred, {})
        replicas.zero_()
        with torch.inference_mode():
            inferred.zero_()
        writer.append(self.images[2].clone().requires_grad_(True), {})
        writer.append(self.images[3].mT.contiguous().mT, {})
        assert torch.equal(writer.close().samples(), self.images.transpose(0, 1))

    def test_a_state_too_large_is_refused_and_the_block_kept(self, small_blocks: None) -> None:
        writer = new_writer(None, self.images)
        for k in (0, 1):
            writer.append(self.images[k], {})
        with pytest.raises(ValueError, match=f"state has 65 bytes, expected at most {STATE_BYTES}"):
            writer.commit(b"x" * (STATE_BYTES + 1))
        assert writer.num_committed == 0
        writer.commit(b"x" * STATE_BYTES)
        writer.flush()
        assert writer.num_committed == 2

    def test_a_full_disk_ends_with_an_openable_store(self, tmp_path: Path, small_blocks: None) -> None:
        writer = new_writer(tmp_path / "a.zarr", self.images)
        feed(writer, self.images, stop=2)
        for k in (2, 3):
            writer.append(self.images[k], {})
        full = OSError(28, "No space left on device")
        with (
            mock.patch("zarr.storage._local._put", side_effect=full),
            pytest.raises(
                StoreError, match=r"a\.zarr: a block of draws cannot be written .*No space.* 2 draws are kept"
            ),
        ):
            writer.finish()
        assert torch.equal(open_ensemble(tmp_path / "a.zarr").samples(), self.images[:2].transpose(0, 1))
        for refuse in (writer.commit, writer.close, lambda: writer.append(self.images[2], {})):
            with pytest.raises(StoreError, match="No space left"):
                refuse()
        writer, _ = EnsembleWriter.resume(tmp_path / "a.zarr")  # there is room again
        feed(writer, self.images, first=2)
        ensemble = writer.close()
        assert torch.equal(ensemble.samples(), self.images.transpose(0, 1))
        np.testing.assert_allclose(ensemble.mean(), self.images.double().mean(dim=(0, 1)), rtol=1e-12)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"num_chains": 0}, "num_chains must be an integer of at least 1, got 0"),
            ({"num_draws": 2.0}, "num_draws must be an integer"),
            ({"event_shape": (3, 4)}, r"event_shape must be \(C, H, W\)"),
            ({"event_shape": (1, 0, 4)}, r"event_shape must be \(C, H, W\)"),
            ({"dtype": "float16"}, "dtype must be float32 or float64, got float16"),
            ({"dtype": torch.complex64}, "dtype must be float32 or float64|not understood|Cannot interpret"),
        ],
    )
    def test_sizes_are_checked(self, change: dict[str, Any], message: str) -> None:
        sizes: dict[str, Any] = {"num_chains": 1, "num_draws": 1, "event_shape": (1, 2, 2)}
        with pytest.raises(ValueError, match=message):
            EnsembleWriter.create(None, **(sizes | change))


class TestLayout:
    """What lies on the disk follows store.md."""

    def test_arrays(self, tmp_path: Path, small_blocks: None) -> None:
        images = draw_images(2, 4, (1, 3, 4), torch.complex64)
        maps = np.ones((2, 3, 4), np.complex64)
        writer = new_writer(tmp_path / "a.zarr", images, observed={"y": images[0]}, constant={"coil_maps": maps})
        feed(writer, images)
        writer.close()
        root = zarr.open_group(tmp_path / "a.zarr", mode="r")
        assert sorted(root) == [
            "constant_data", "observed_data", "posterior", "posterior_summary", "sample_stats", "writer",
        ]  # fmt: skip
        image = root["posterior/image"]
        assert image.chunks == (1, 2, 2, 3, 4)
        assert image.metadata.dimension_names == ("chain", "draw", "channel", "y", "x")
        assert root["posterior_summary/mean"].chunks == (1, 2, 3, 4)
        assert root["writer/n_committed"].chunks == (2,)
        assert list(root["posterior/channel"][:]) == ["re", "im"]
        assert root["constant_data/coil_maps"].shape == (2, 2, 3, 4)
        assert root["constant_data/coil_maps"].metadata.dimension_names[0] == "part"
        arrays = [array for _, array in root.members(max_depth=None) if isinstance(array, zarr.Array)]
        assert len(arrays) > 15
        for array in arrays:
            told = json.loads((tmp_path / "a.zarr" / array.path / "zarr.json").read_text())
            if array.path == "writer/checksums":
                continue
            assert array.shards is None
            assert array.compressors == ()
            assert told["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "."}}
            assert [codec["name"] for codec in told["codecs"]] in (["bytes"], ["vlen-utf8"]), array.path
            assert array.name.split("/")[-1] not in (array.metadata.dimension_names or ()) or array.ndim == 1

    def test_each_block_is_one_chunk_a_chain(self, tmp_path: Path, small_blocks: None) -> None:
        images = draw_images(3, 5, (2, 3, 4), torch.float32)
        writer = new_writer(tmp_path / "a.zarr", images)
        folder = tmp_path / "a.zarr" / "posterior" / "image"
        puts: list[str] = []
        import zarr.storage._local as local

        put = local._put

        def counting(path: Path, *args: Any, **options: Any) -> int:
            puts.append(str(path.relative_to(tmp_path / "a.zarr")))
            return put(path, *args, **options)

        with mock.patch.object(local, "_put", counting):
            feed(writer, images)
        chunks = [f"c.{chain}.{block}.0.0.0" for block in range(3) for chain in range(3)]
        assert [p.removeprefix("posterior/image/") for p in puts if p.startswith("posterior/image")] == chunks
        assert {p.name: p.stat().st_size for p in folder.iterdir() if p.name != "zarr.json"} == dict.fromkeys(
            chunks, 2 * 2 * 3 * 4 * 4
        )
        assert len([p for p in puts if p.startswith("posterior_summary/mean")]) == 3, "sums are written once"

    def test_zeros_are_written_too(self, tmp_path: Path) -> None:
        images = torch.zeros(2, 1, 1, 2, 2)
        writer = new_writer(tmp_path / "a.zarr", images)
        feed(writer, images)
        assert (tmp_path / "a.zarr" / "posterior" / "image" / "c.0.0.0.0.0").stat().st_size == images.nbytes
        assert float(writer.close().std().max()) == 0.0

    @given(draws=st.integers(1, 200), draw_bytes=st.integers(1, 2**26))
    def test_blocks_are_even_and_of_the_right_size(self, draws: int, draw_bytes: int) -> None:
        block = schema._block(draws, draw_bytes)
        blocks = -(-draws // block)
        assert 1 <= block <= draws
        assert block == 1 or block * draw_bytes <= schema._CHUNK_BYTES
        assert blocks * block - draws < blocks, "the last chunk is mostly padding"
        fits = max(1, schema._CHUNK_BYTES // draw_bytes)
        assert blocks == -(-draws // min(draws, fits)), "there are more chunks than necessary"
