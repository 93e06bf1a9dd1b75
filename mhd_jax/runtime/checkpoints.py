# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Checkpoints with Orbax, and what Orbax leaves open: damaged files are noticed and stepped over.

Orbax writes in the background into a temporary directory and renames it when all is there, so a
crash while saving leaves the checkpoints before it as they were. What it does not do: OCDBT keeps
checksums of its index but not of the values, so a flipped bit in an array is restored without a
word (measured with orbax-checkpoint 0.12.8: about 39 of 40 flips), and an array of another dtype
is converted. Hence every checkpoint carries `manifest.json`: the SHA-256 of its files, and the
shape and dtype of its arrays. Process 0 writes it in the temporary directory just before
the rename: a checkpoint and its manifest appear together or not at all.
"""

from __future__ import annotations

import contextlib
import json
import logging as python_logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from mhd_jax import manifest
from mhd_jax.errors import ConfigError, WorkdirError
from mhd_jax.files import absolute, is_remote
from mhd_jax.runtime.processes import anywhere
from mhd_jax.trees import AnyTree
from mhd_jax.wording import brief, first_few

UNREADABLE = ".unreadable"


class Checkpoints:
    """The checkpoints of one run: a directory of numbered steps, the newest `keep`.

    Every method is called by all processes of a run, in the same order. Use as a context manager,
    or call `close`: until then the last save may still be under way.

    >>> import tempfile, jax.numpy as jnp
    >>> state = {"kernel": jnp.arange(3.0)}
    >>> with Checkpoints(tempfile.mkdtemp()) as checkpoints:
    ...     checkpoints.save(10, state)
    ...     step, restored = checkpoints.restore_latest(jax.eval_shape(lambda: state))
    >>> step, restored["kernel"].tolist()
    (10, [0.0, 1.0, 2.0])
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        keep: int = 3,
        strip: Callable[..., object] = lambda state: state,
        read_only: bool = False,
    ) -> None:
        """Opens the directory, creating it, and clears what a crashed save left behind.

        Args:
          directory: where the steps are; local, or any URL that etils.epath can write.
          keep: how many of the newest checkpoints to keep; with less than 2 there is nothing to
            fall back to.
          strip: from a state to its shapes without rows that are only padding. A checkpoint is
            of the same state where these agree; rows beyond them are cut off, or zero.
          read_only: change nothing, as the run may be under way elsewhere.

        Raises:
          ConfigError: `keep` is less than 1.
          WorkdirError: the directory cannot be made or read.
        """
        if keep < 1:
            raise ConfigError("keep", keep, "a number of checkpoints >= 1")
        _quieten_orbax()
        self.directory = absolute(directory)
        self._strip = strip
        self._read_only = read_only
        self._saving: int | None = None
        self._manifest: dict[str, Any] = {}
        with self._explained("could not open the checkpoints"):
            if not read_only:
                self.directory.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self.directory, options=self._options(keep))

    def save(self, step: int, state: object) -> None:
        """Starts writing `state` as checkpoint `step` and returns once it is copied off the device.

        The state may be donated or changed right after. A save still under way is waited for
        first. A step that is there already is left as it is.

        Args:
          step: the number of training steps done.
          state: a tree of jax arrays, sharded in any way.

        Raises:
          WorkdirError: this save, or the one before it, could not be written (disk full, say);
            the checkpoints before it are as they were.
        """
        self.wait()
        if step in self._manager.all_steps():
            logging.info("checkpoint %d is already in %s", step, self.directory)
            return
        self._saving, self._manifest = step, {"leaves": _leaves(self._strip(state))}
        with self._explained(f"could not save step {step}"), jax.transfer_guard("allow"):
            self._check_space(state)
            args = ocp.args.StandardSave(_without_empty(state))
            self._manager.save(step, args=args, force=True)

    def restore_latest(self, abstract_state: AnyTree) -> tuple[int, AnyTree] | None:
        """Restores the newest checkpoint that can be read, going back as far as need be.

        Checkpoints newer than the one restored are moved aside, to `<step>.unreadable`, with a
        warning that says why, so that the run can save those steps again; with `read_only` they
        stay where they are.

        Args:
          abstract_state: the tree to restore, a `jax.ShapeDtypeStruct` with a sharding for every
            leaf. The sharding need not be the saved one: any number of devices will do.

        Returns:
          (step, state), or None when there is no checkpoint at all.

        Raises:
          WorkdirError: there are checkpoints but none can be read, or the newest sound one is of
            other arrays than `abstract_state`; nothing is moved.
        """
        self.wait()
        problems: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            problem, state = self._try_restore(step, abstract_state)
            if problem is None and state is not None:
                if not self._read_only:
                    self._set_aside(problems, restored=step)
                return step, state
            problems[step] = problem or "it is empty"
        if problems:
            tried = "; ".join(f"step {step}: {problem}" for step, problem in problems.items())
            raise WorkdirError(
                f"{self.directory}: none of the checkpoints can be read ({tried}). Nothing was "
                "changed; remove this directory to start over, or use another workdir"
            )
        return None

    def discard_from(self, step: int) -> None:
        """Deletes the checkpoints of `step` and later ones: a run should not resume from them."""
        self.wait()
        for later in [saved for saved in self._manager.all_steps() if saved >= step]:
            with self._explained(f"could not delete step {later}"):
                self._manager.delete(later)

    def latest_step(self) -> int | None:
        """The newest step saved or being saved, or None."""
        return self._manager.latest_step()

    def wait(self) -> None:
        """Waits for the save under way; raises `WorkdirError` if it could not be written."""
        with self._explained(f"could not save step {self._saving}"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the save under way, then stops the background threads; raises as `wait`."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _options(self, keep: int) -> ocp.CheckpointManagerOptions:
        return ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.LatestN(keep),
            cleanup_tmp_directories=not self._read_only,
            read_only=self._read_only,
            create=not self._read_only,
            lightweight_initialize=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
        )

    def _write_manifest(self) -> None:
        """Process 0, in the background: all files are written, the rename comes next."""
        final = self.directory / str(self._saving)
        temporary = final.with_name(final.name + ocp.path.atomicity_types.TMP_DIR_SUFFIX)
        # Object stores have no rename: there Orbax writes in place and marks the end by a file.
        written = temporary if temporary.exists() else final
        contents = self._manifest | {"sha256": manifest.checksums(written)}
        (written / manifest.MANIFEST).write_text(json.dumps(contents, indent=1))

    def _try_restore(self, step: int, abstract_state: AnyTree) -> tuple[str | None, AnyTree | None]:
        """(None, state), or (what is wrong with the checkpoint, None), alike on all processes."""
        directory = self.directory / str(step)
        problem = manifest.damage(directory) if jax.process_index() == 0 else None
        if anywhere(problem is not None):
            return problem or "process 0 found it damaged", None
        self._check_state(step, abstract_state)
        state = None
        try:
            # Not strict: the rows of padding differ with the number of devices.
            args = ocp.args.StandardRestore(_without_empty(abstract_state), strict=False)
            with jax.transfer_guard("allow"):
                state = _with_empty(self._manager.restore(step, args=args), abstract_state)
                jax.block_until_ready(state)
        except Exception as error:  # Orbax raises whatever the broken file led to.
            problem = brief(error)
        if anywhere(problem is not None):
            return problem or "another process could not restore it", None
        return None, state

    def _check_state(self, step: int, abstract_state: object) -> None:
        """Raises when the (sound) checkpoint is of other arrays: going back would not help."""
        directory = self.directory / str(step)
        wanted = self._strip(abstract_state)
        differing = _differences(directory, wanted) if jax.process_index() == 0 else []
        if anywhere(bool(differing)):
            few = first_few(differing, 5, between="; ")
            raise WorkdirError(f"{directory} is of another state: {few}")

    def _check_space(self, state: object) -> None:
        """A full disk is better met before the writing starts: it fails late and in many voices."""
        if is_remote(self.directory):
            return
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self.directory).free
        if anywhere(free < needed):
            raise OSError(
                f"no space left on device: {needed / 1e6:.1f} MB to write, {free / 1e6:.1f} MB free"
            )

    def _set_aside(self, problems: Mapping[int, str], restored: int) -> None:
        for step, problem in problems.items():
            source = self.directory / str(step)
            target = source.with_name(f"{step}{UNREADABLE}")
            logging.warning(
                "%s cannot be read (%s): moved to %s; going on from step %d",
                source, problem, target.name, restored,
            )  # fmt: skip
            with self._explained(f"could not move {source.name} to {target.name}"):
                if jax.process_index() == 0:
                    target.rmtree(missing_ok=True)
                    source.rename(target)
        if problems:
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("mhd_jax.checkpoints.set_aside")
            self._manager.reload()

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turns whatever goes wrong inside into a `WorkdirError` that says what is still there."""
        try:
            yield
        except WorkdirError:
            raise
        except Exception as error:
            raise WorkdirError(f"{self.directory}: {what}: {brief(error)}.{self._left()}") from (
                error
            )

    def _left(self) -> str:
        """After a failed save: frees what it wrote and says which checkpoints remain."""
        manager = getattr(self, "_manager", None)
        if manager is None:
            return ""
        if self._saving is not None and jax.process_index() == 0:
            suffix = ocp.path.atomicity_types.TMP_DIR_SUFFIX
            with contextlib.suppress(OSError):
                (self.directory / f"{self._saving}{suffix}").rmtree(missing_ok=True)
        with contextlib.suppress(Exception):
            manager.reload()
        steps = ", ".join(map(str, manager.all_steps()))
        return f" Checkpoints that remain: {steps}" if steps else " There is no earlier checkpoint"


def _differences(directory: epath.Path, state: object) -> list[str]:
    there, here = manifest.read(directory)["leaves"], _leaves(state)
    return [
        f"{name} is {there.get(name, 'missing')} there and {here.get(name, 'missing')} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]


def _leaves(state: object) -> dict[str, str]:
    """The arrays of a tree by path.

    >>> _leaves({"bias": jax.ShapeDtypeStruct((8, 3), np.float32)})
    {'bias': 'float32[8,3]'}
    """
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        )
        for path, leaf in jax.tree.leaves_with_path(state)
    }


def _without_empty(tree: AnyTree) -> AnyTree:
    """`tree` without its arrays of no elements, which Orbax refuses to save."""
    return jax.tree.map(lambda leaf: leaf if leaf.size else None, tree)


def _with_empty(tree: object, abstract: AnyTree) -> AnyTree:
    """`tree` with the arrays of no elements that `abstract` has put back."""

    def fill(leaf: jax.ShapeDtypeStruct, value: jax.Array | None) -> jax.Array | None:
        return (
            value if leaf.size else jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)
        )

    return jax.tree.map(fill, abstract, tree)


class _OrbaxFilter(python_logging.Filter):
    """Drops what Orbax logs: a diary of dozens of lines a save, and errors that it also raises."""

    def filter(self, record: python_logging.LogRecord) -> bool:
        return "/orbax/" not in record.pathname


_ORBAX_FILTER = _OrbaxFilter()


def _quieten_orbax() -> None:
    logging.get_absl_logger().addFilter(_ORBAX_FILTER)
