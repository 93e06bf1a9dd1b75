# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mhd_jax import manifest
from mhd_jax.errors import ConfigError, WorkdirError
from mhd_jax.runtime import checkpoints as checkpoints_lib
from mhd_jax.runtime.checkpoints import Checkpoints

CLIENTS = 8
CLIENT_ROWS = PartitionSpec("clients")


def mesh(clients: int, data: int = 1) -> Mesh:
    if jax.device_count() < clients * data:
        pytest.skip(f"needs {clients * data} devices: set JAX_NUM_CPU_DEVICES=4")
    return jax.make_mesh(
        (clients, data),
        ("clients", "data"),
        axis_types=(AxisType.Auto,) * 2,
        devices=jax.devices()[: clients * data],
    )


def make_state(seed: int = 0, clients: int = 4, data: int = 1) -> dict[str, Any]:
    """Like a run's: stacked parameters and optimiser state, and what is easily lost on the way."""
    random = np.random.default_rng(seed)
    params = {
        "dense": {"kernel": random.normal(size=(CLIENTS, 64, 32)).astype(np.float32)},
        "half": jnp.asarray(random.normal(size=(CLIENTS, 16)), jnp.bfloat16),
        "heads": np.zeros((CLIENTS, 0, 32), np.float32),
    }
    state = {
        "params": params,
        "optimizer": optax.sgd(0.1, momentum=0.9).init(params),
        "odd": np.array([np.nan, -0.0, np.inf, 1e-45] * 2, np.float32),
        "mask": random.integers(2, size=CLIENTS).astype(bool),
        "nothing": None,
        "step": np.int32(seed),
    }
    where = mesh(clients, data)

    def put(leaf: Any) -> jax.Array:
        rows = PartitionSpec("clients") if np.ndim(leaf) else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(where, rows))

    return jax.tree.map(put, state)


def abstract(state: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def assert_same_bits(one: Any, other: Any) -> None:
    assert str(jax.tree.structure(one)) == str(jax.tree.structure(other))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def steps(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


# --- Saving and restoring ------------------------------------------------------------------------


def test_an_empty_directory_has_nothing_to_restore(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.restore_latest(abstract(make_state())) is None
        assert checkpoints.latest_step() is None


def test_the_same_bits_come_back_on_4_2_and_1_devices_and_on_the_data_axis(tmp_path: Path) -> None:
    state = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, state)
    for step, grid in enumerate([(4, 1), (2, 1), (1, 1), (2, 2)], start=8):
        target = abstract(make_state(1, *grid))
        with Checkpoints(tmp_path) as checkpoints:
            restored = checkpoints.restore_latest(target)
            assert restored is not None and restored[0] == step - 1
            assert_same_bits(restored[1], state)
            for leaf, wanted in zip(*map(jax.tree.leaves, (restored[1], target)), strict=True):
                assert leaf.sharding == wanted.sharding
            checkpoints.save(step, restored[1])  # from this number of devices onto the next


def test_the_state_may_be_donated_right_after_saving(tmp_path: Path) -> None:
    state = make_state()
    before = jax.tree.map(np.array, state)

    def change(leaf: jax.Array) -> jax.Array:
        return ~leaf if leaf.dtype == bool else leaf + 1

    update = jax.jit(lambda tree: jax.tree.map(change, tree), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        state = update(update(state))
        restored = checkpoints.restore_latest(abstract(state))
    assert restored is not None
    assert_same_bits(restored[1], before)


def test_saves_and_restores_where_implicit_transfers_are_forbidden(tmp_path: Path) -> None:
    state = make_state()
    with jax.transfer_guard("disallow"), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        assert checkpoints.restore_latest(abstract(state)) is not None


def test_keeps_the_newest(tmp_path: Path) -> None:
    state = make_state()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state)
        checkpoints.wait()
        assert steps(tmp_path) == ["2", "3"] and checkpoints.latest_step() == 3
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(4, state)
    assert steps(tmp_path) == ["4"]


def test_rows_of_padding_may_differ(tmp_path: Path) -> None:
    def make(rows: int, devices: int) -> dict[str, jax.Array]:
        values = np.arange(1.0, 1 + 3 * rows, dtype=np.float32).reshape(rows, 3)
        return {"rows": jax.device_put(values, NamedSharding(mesh(devices), CLIENT_ROWS))}

    def strip(state: Any) -> Any:
        return {"rows": jax.ShapeDtypeStruct((3, 3), state["rows"].dtype)}

    with Checkpoints(tmp_path, strip=strip) as checkpoints:
        checkpoints.save(1, make(4, 4))
        for rows, devices in ((3, 3), (4, 2), (6, 2)):
            restored = checkpoints.restore_latest(abstract(make(rows, devices)))
            assert restored is not None
            found = np.asarray(restored[1]["rows"])
            np.testing.assert_array_equal(found[:3], np.asarray(make(3, 1)["rows"]))
            assert (found[4:] == 0).all()
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(WorkdirError, match="another state"):
        checkpoints.restore_latest(abstract(make(4, 4)))


def test_a_step_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    state = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.save(1, make_state(1))
        restored = checkpoints.restore_latest(abstract(state))
    assert restored is not None
    assert_same_bits(restored[1], state)


def test_keeping_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keep = 0: expected a number of checkpoints >= 1"):
        Checkpoints(tmp_path, keep=0)


def test_orbax_is_quiet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="absl")
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state())
        checkpoints.restore_latest(abstract(make_state()))
    assert caplog.records == []


# --- Damage --------------------------------------------------------------------------------------


def largest_file(step: Path) -> Path:
    return max((path for path in step.rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)


def flip_a_bit(step: Path) -> None:
    path = largest_file(step)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)


def truncate(step: Path) -> None:
    os.truncate(largest_file(step), largest_file(step).stat().st_size // 2)


def empty(step: Path) -> None:
    os.truncate(largest_file(step), 0)


def delete(step: Path) -> None:
    largest_file(step).unlink()


def delete_all(step: Path) -> None:
    shutil.rmtree(step / "default")


def spoil_manifest(step: Path) -> None:
    (step / "manifest.json").write_text("{")


def delete_manifest(step: Path) -> None:
    (step / "manifest.json").unlink()


def empty_manifest(step: Path) -> None:
    (step / "manifest.json").write_text('{"sha256": [], "metrics": 3}')


def spoil_step_metadata(step: Path) -> None:
    (step / "_CHECKPOINT_METADATA").write_bytes(b"\xff\0 garbage")
    flip_a_bit(step)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with checkpoints 1, 2 and 3, of the states of these seeds."""
    directory = tmp_path_factory.mktemp("saved")
    with Checkpoints(directory) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, make_state(step))
    return directory


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip_a_bit, "default/ocdbt.process_0/d/.* is not what was written"),
        (truncate, "default/ocdbt.process_0/d/.* is not what was written"),
        (empty, "default/ocdbt.process_0/d/.* is not what was written"),
        (delete, "default/ocdbt.process_0/d/.* is missing"),
        (delete_all, "default/.* is missing"),
        (spoil_manifest, "manifest.json: JSONDecodeError"),
        (delete_manifest, "manifest.json: FileNotFoundError"),
        (empty_manifest, "manifest.json: AttributeError"),
        (spoil_step_metadata, "default/ocdbt.process_0/d/.* is not what was written"),
    ],
)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(
    copy: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], reason: str
) -> None:
    damage(copy / "3")
    target = abstract(make_state())
    with Checkpoints(copy) as checkpoints:
        restored = checkpoints.restore_latest(target)
        assert restored is not None and restored[0] == checkpoints.latest_step() == 2
        assert_same_bits(restored[1], make_state(2))
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert record.getMessage().startswith(f"{copy / '3'} cannot be read (")
        assert re.search(reason, record.getMessage()), record.getMessage()
        assert steps(copy) == ["1", "2", "3.unreadable"]
        checkpoints.save(3, make_state(3))  # the damaged one is not in the way
        again = checkpoints.restore_latest(target)
        assert again is not None and again[0] == 3
        assert_same_bits(again[1], make_state(3))


def test_a_reader_of_a_run_under_way_changes_nothing(copy: Path) -> None:
    truncate(copy / "3")
    (copy / "4.orbax-checkpoint-tmp").mkdir()  # a save under way elsewhere
    before = sorted(path.name for path in copy.iterdir())
    with Checkpoints(copy, read_only=True) as checkpoints:
        restored = checkpoints.restore_latest(abstract(make_state()))
    assert restored is not None and restored[0] == 2
    assert_same_bits(restored[1], make_state(2))
    assert sorted(path.name for path in copy.iterdir()) == before


def test_what_should_not_be_gone_on_from_is_deleted(copy: Path) -> None:
    with Checkpoints(copy) as checkpoints:
        checkpoints.discard_from(2)
        assert checkpoints.latest_step() == 1
    assert steps(copy) == ["1"]


def test_goes_back_as_far_as_need_be(copy: Path) -> None:
    truncate(copy / "3")
    delete(copy / "2")
    with Checkpoints(copy) as checkpoints:
        restored = checkpoints.restore_latest(abstract(make_state()))
    assert restored is not None and restored[0] == 1
    assert steps(copy) == ["1", "2.unreadable", "3.unreadable"]


def test_nothing_readable_is_an_error_and_nothing_is_moved(copy: Path) -> None:
    truncate(copy / "3")
    delete(copy / "2")
    spoil_manifest(copy / "1")
    with Checkpoints(copy) as checkpoints:
        with pytest.raises(WorkdirError) as error:
            checkpoints.restore_latest(abstract(make_state()))
    message = str(error.value)
    assert message.startswith(f"{copy}: none of the checkpoints can be read (step 3: default/")
    assert "is not what was written; step 2: default/" in message
    assert "is missing; step 1: manifest.json: JSONDecodeError" in message
    assert steps(copy) == ["1", "2", "3"]


def test_another_state_than_the_saved_one_is_an_error(copy: Path) -> None:
    other = make_state()
    other["mask"] = jnp.ones(CLIENTS + 1, bool)
    other["odd"] = other["odd"].astype(jnp.bfloat16)
    other["extra"] = other.pop("step")
    truncate(copy / "3")
    with Checkpoints(copy) as checkpoints:
        with pytest.raises(WorkdirError) as error:
            checkpoints.restore_latest(abstract(other))
    assert str(error.value) == (
        f"{copy / '2'} is of another state: extra is missing there and int32[] here; mask is "
        "bool[8] there and bool[9] here; odd is float32[8] there and bfloat16[8] here; "
        "step is int32[] there and missing here"
    )
    assert steps(copy) == ["1", "2", "3"]


def test_a_flipped_bit_in_any_file_that_is_read_is_noticed(copy: Path) -> None:
    step = epath.Path(copy / "3")
    names = json.loads((step / "manifest.json").read_text())["sha256"]
    assert len(names) > 10
    for name in names:
        path = copy / "3" / name
        good = path.read_bytes()
        path.write_bytes(bytes([good[0] ^ 1]) + good[1:])
        assert manifest.damage(step) == f"{name} is not what was written"
        path.write_bytes(good)
    assert manifest.damage(step) is None


# --- Crashes -------------------------------------------------------------------------------------


SAVER = """
    import itertools, sys, time
    import jax, jax.numpy as jnp
    from mhd_jax.runtime.checkpoints import Checkpoints

    write = Checkpoints._write_manifest
    def write_and_stop(self):
        write(self)
        if self._saving == 3:
            print("here", flush=True)
            time.sleep(60)
    Checkpoints._write_manifest = write_and_stop
    checkpoints = Checkpoints(sys.argv[1])
    for step in itertools.count(1):
        checkpoints.save(step, {"step": jnp.full((200, 500), step, jnp.int32)})
    """


def test_killed_while_saving_leaves_a_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    """Before the rename; whole runs are killed at other moments elsewhere."""
    run = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SAVER), tmp_path],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )
    assert run.stdout is not None and run.stdout.readline() == b"here\n"
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert steps(tmp_path) == ["1", "2", "3.orbax-checkpoint-tmp"]
    where = NamedSharding(mesh(4), PartitionSpec("clients"))
    target = {"step": jax.ShapeDtypeStruct((200, 500), jnp.int32, sharding=where)}
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore_latest(target)
        assert restored is not None
        step, state = restored
        assert step == 2 and (np.asarray(state["step"]) == step).all()
        checkpoints.save(step + 1, state)
    assert steps(tmp_path)[-1] == "3" and all(name.isdigit() for name in steps(tmp_path))


# --- Places that cannot be written ---------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root and the right to mount")
    yield disk
    subprocess.run(["umount", disk], check=True)


# TensorStore answers each of its failed writes to an event loop that Orbax has closed by then.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("seen_before", [True, False])
def test_a_full_disk_is_an_error_and_the_checkpoints_stay(
    small_disk: Path, seen_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make_state()
    directory = small_disk / "checkpoints"
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
        filler = small_disk / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 60_000))
        if not seen_before:  # someone else fills it while we write
            monkeypatch.setattr(checkpoints_lib.Checkpoints, "_check_space", lambda *_: None)
        with pytest.raises(WorkdirError, match="could not save step 2: .*[nN]o space left") as full:
            checkpoints.save(2, state)
            checkpoints.wait()
        assert str(full.value).startswith(f"{directory}: could not save step 2: ")
        assert str(full.value).endswith("Checkpoints that remain: 1")
        restored = checkpoints.restore_latest(abstract(state))
        assert restored is not None and restored[0] == 1
        assert_same_bits(restored[1], state)
        filler.unlink()
        checkpoints.save(2, state)  # once there is space, saving goes on
    assert steps(directory) == ["1", "2"]


def test_a_failed_save_is_told_at_the_latest_on_closing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(directory: epath.Path) -> dict[str, str]:
        raise OSError(5, "Input/output error")

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state())
    checkpoints.wait()
    monkeypatch.setattr(manifest, "checksums", fail)
    checkpoints.save(2, make_state())
    with pytest.raises(WorkdirError, match="save step 2: OSError: .*output error. Checkp.* 1$"):
        checkpoints.close()
    assert steps(tmp_path) == ["1"]


@pytest.mark.parametrize("path", ["/proc/checkpoints", "/dev/null/checkpoints"])
def test_unwritable_places_are_refused(path: str) -> None:
    with pytest.raises(WorkdirError, match=f"{path}: could not open the checkpoints: "):
        Checkpoints(path)


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("not a directory")
    with pytest.raises(WorkdirError, match="could not open the checkpoints: FileExistsError"):
        Checkpoints(tmp_path / "checkpoints")


# --- Several processes ---------------------------------------------------------------------------


WORKER = """
    import sys
    import jax, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec
    from mhd_jax.runtime.checkpoints import Checkpoints

    directory, port, process = sys.argv[1:]
    jax.distributed.initialize(f"localhost:{port}", 2, int(process))
    mesh = jax.make_mesh((4, 1), ("clients", "data"), axis_types=(AxisType.Auto,) * 2)
    rows = NamedSharding(mesh, PartitionSpec("clients"))
    values = np.arange(8 * 3000, dtype=np.float32).reshape(8, 3000)
    make = lambda step: {"rows": jax.make_array_from_callback(
        values.shape, rows, lambda index: (values + step)[index])}
    target = {"rows": jax.ShapeDtypeStruct(values.shape, np.float32, sharding=rows)}
    with Checkpoints(directory) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make(step))
        checkpoints.wait()
        if process == "0":
            files = [path for path in checkpoints.directory.glob("2/default/*/d/*")]
            file = max(files, key=lambda path: path.stat().length)
            file.write_bytes(file.read_bytes()[:-1])
        step, state = checkpoints.restore_latest(target)
        assert step == 1, step
        for shard in state["rows"].addressable_shards:
            np.testing.assert_array_equal(shard.data, (values + 1)[shard.index])
        checkpoints.save(2, make(2))
        step, state = checkpoints.restore_latest(target)
        assert step == 2, step
    jax.distributed.shutdown()
    print("done")
    """


def test_two_processes_save_together_and_fall_back_together(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-c", textwrap.dedent(WORKER), str(tmp_path), port]
    workers = [
        subprocess.Popen(
            [*command, str(process)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "2"},
        )
        for process in range(2)
    ]
    try:
        said = [worker.communicate(timeout=90) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    for out, err in said:
        assert out.endswith("done\n"), err
    assert steps(tmp_path) == ["1", "2", "2.unreadable"]
    # What two processes wrote, one reads.
    target = {"rows": jax.ShapeDtypeStruct((8, 3000), np.float32, sharding=NamedSharding(
        mesh(2), PartitionSpec("clients")))}  # fmt: skip
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore_latest(target)
    assert restored is not None and restored[0] == 2
    np.testing.assert_array_equal(restored[1]["rows"][7, -1], 8 * 3000 - 1 + 2)
