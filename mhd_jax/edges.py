# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Who reads whom, as arrays whose size follows the edges rather than the pairs of clients.

A graph is written in one of three forms, whichever is smallest: the candidates that each client
reads, the few that it does not read, or a mask over all pairs. The form is a property of the run,
so that graphs that change keep their shapes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

NOBODY = -1
"""Fills the rows of lists that are shorter than the longest."""

FEW = 2
"""Candidates left out of a dense graph, up to which "all but" is cheaper than a mask."""

UNROLLED = 16
"""Columns of lists up to which loops over them are written out, so that the compiler fuses them."""

_Carry = TypeVar("_Carry")


@dataclasses.dataclass(frozen=True)
class Form:
    """How a run writes down who reads whom.

    Attributes:
      kind: "lists" of the candidates read, "all_but" lists of those not read, or "pairs", a mask.
      width: entries a client: the longest list of the run, or all candidates.
      candidates: N, what there is to read: every client, or every snapshot of every client.
    """

    kind: Literal["lists", "all_but", "pairs"]
    width: int
    candidates: int

    def describe(self, screened: bool = False) -> str:
        """A few words for people; `screened` teachers are those whom a client hears."""
        heard = ", as far as they are heard" if screened else ""
        if self.kind == "lists":
            return f"up to {self.width:,} a client{heard}"
        return f"any of {self.candidates:,} candidates{heard}"


@dataclasses.dataclass(frozen=True)
class Extent:
    """How many candidates clients read at any time of a run.

    Attributes:
      most: by any client.
      least: by any client that reads anybody.
      candidates: N.
    """

    most: int
    least: int
    candidates: int


def choose_form(extents: Sequence[Extent]) -> Form:
    """The form in which all the given graphs take least work.

    >>> choose_form([Extent(4, 4, 512)]), choose_form([Extent(7, 7, 8)]).kind
    (Form(kind='lists', width=4, candidates=512), 'all_but')
    """
    (candidates,) = {extent.candidates for extent in extents}
    most = max(extent.most for extent in extents)
    unread = max(extent.candidates - extent.least for extent in extents)
    if 2 * most <= candidates:
        return Form("lists", max(most, 1), candidates)
    if unread <= FEW:
        return Form("all_but", max(unread, 1), candidates)
    return Form("pairs", candidates, candidates)


class Edges(struct.PyTreeNode):
    """Who reads whom, in the form of the run; k students, N candidates, maybe leading axes.

    Attributes:
      ids: candidates in ascending order, padded with `NOBODY`, int32 [..., k, width]; where the
        form is "pairs" a mask, bool [..., k, N]. An array of the host or of the devices.
      count: candidates read by each student, int32 [..., k].
      form: which of the three.
    """

    ids: Any
    count: Any
    form: Form = struct.field(pytree_node=False)

    @property
    def connected(self) -> Bool[Array, "*n k"]:
        """Which students read anybody."""
        return self.count > 0

    def mask(self) -> Bool[Array, "*n k N"]:
        """The same as a mask over all pairs."""
        if self.form.kind == "pairs":
            return self.ids
        columns = np.arange(self.form.candidates)
        held = (self.ids[..., None] == columns).any(axis=-2)
        return held if self.form.kind == "lists" else ~held & self.connected[..., None]

    def including(self, own: Int[Array, " k"]) -> Edges:
        """With candidate `own[i]` for every student i that reads anybody."""
        if self.form.kind == "pairs":
            columns = jnp.arange(self.form.candidates)
            mask = self.ids | (columns == own[:, None]) & self.connected[:, None]
            return Edges(mask, mask.sum(axis=1), self.form)
        count = self.count + self.connected
        if self.form.kind == "all_but":
            ids = jnp.where(self.ids == own[:, None], NOBODY, self.ids)
            return Edges(ids, count, self.form)
        column = jnp.where(self.connected, own, NOBODY).astype(self.ids.dtype)
        ids = jnp.sort(jnp.concatenate([self.ids, column[:, None]], axis=1), axis=1)
        return Edges(ids, count, dataclasses.replace(self.form, width=self.form.width + 1))

    def behind(self, students: int) -> Edges:
        """The same when `students` candidates whom nobody reads yet join in front of all others."""
        candidates = self.form.candidates + students
        if self.form.kind == "lists":
            ids = jnp.where(self.ids == NOBODY, NOBODY, self.ids + students)
            return Edges(ids, self.count, dataclasses.replace(self.form, candidates=candidates))
        mask = jnp.pad(self.mask(), ((0, 0), (students, 0)))
        return Edges(mask, self.count, Form("pairs", candidates, candidates))

    def mean(self, values: Float[Array, "M ..."], first: int = 0) -> Float[Array, "k ..."]:
        """The part of candidates first..first + M - 1 in the mean over the candidates read.

        0 for a student that reads nobody. The largest array built is as large as the result.
        """
        scale = 1.0 / jnp.maximum(self.count, 1).astype(values.dtype)
        stop = first + len(values)
        if self.form.kind == "pairs":
            return jnp.tensordot(self.ids[:, first:stop] * scale[:, None], values, 1)
        shape = (-1,) + (1,) * (values.ndim - 1)

        def add(column: int | Array, total: Array) -> Array:
            ids = _column(self.ids, column)
            inside = ((ids >= first) & (ids < stop)).reshape(shape)
            return total + jnp.where(inside, values[jnp.clip(ids - first, 0, len(values) - 1)], 0)

        start = jnp.zeros((len(self.count), *values.shape[1:]), values.dtype)
        total = over_columns(self.ids.shape[1], add, start)
        if self.form.kind == "all_but":
            total = jnp.where(self.connected.reshape(shape), values.sum(axis=0) - total, 0)
        return total * scale.reshape(shape)


def from_pairs(mask: Bool[Array, "k N"]) -> Edges:
    """Who reads whom as a mask over all pairs."""
    return Edges(mask, mask.sum(axis=1), Form("pairs", mask.shape[1], mask.shape[1]))


def over_columns(width: int, body: Callable[[Any, _Carry], _Carry], start: _Carry) -> _Carry:
    """`fori_loop` over the columns of lists, written out where they are few."""
    if width > UNROLLED:
        return jax.lax.fori_loop(0, width, body, start)
    carry = start
    for column in range(width):
        carry = body(column, carry)
    return carry


def _column(ids: Int[Array, "k w"], column: int | Array) -> Int[Array, " k"]:
    return jax.lax.dynamic_index_in_dim(ids, column, axis=1, keepdims=False)


# --- On the host ----------------------------------------------------------------------------------


def to_lists(mask: Bool[np.ndarray, "K N"], width: int | None = None) -> Int[np.ndarray, "K w"]:
    """The candidates of each row in ascending order, padded with `NOBODY`.

    Args:
      mask: one row a client.
      width: of the lists; None for the longest.

    Raises:
      ValueError: a row has more.

    >>> to_lists(np.array([[0, 1, 1], [0, 0, 0], [1, 0, 0]], bool)).tolist()
    [[1, 2], [-1, -1], [0, -1]]
    """
    row, column = np.nonzero(mask)
    length = np.bincount(row, minlength=len(mask))
    longest = int(length.max(initial=0))
    width = longest if width is None else width
    if longest > width:
        raise ValueError(f"{longest} entries do not fit into lists of {width}")
    ids = np.full((len(mask), width), NOBODY, np.int32)
    ids[row, np.arange(len(row)) - (np.cumsum(length) - length)[row]] = column
    return ids


def to_mask(ids: Int[np.ndarray, "K w"], candidates: int) -> Bool[np.ndarray, "K N"]:
    """The mask of lists: `to_lists`, the other way."""
    mask = np.zeros((len(ids), candidates + 1), bool)
    np.put_along_axis(mask, ids, True, axis=1)  # NOBODY is the column that is cut off
    return mask[:, :-1]


def from_mask(mask: Bool[np.ndarray, "K N"], form: Form) -> Edges:
    """One graph in the form of the run.

    Raises:
      ValueError: the form is too narrow for this graph.
    """
    mask = np.asarray(mask, bool)
    count = mask.sum(axis=1).astype(np.int32)
    if form.kind == "pairs":
        return Edges(mask, count, form)
    listed = mask if form.kind == "lists" else ~mask & (count > 0)[:, None]
    return Edges(to_lists(listed, form.width), count, form)


def from_lists(ids: Int[np.ndarray, "K w"], form: Form) -> Edges:
    """One graph from the candidates of every client, in any order, `NOBODY` for none."""
    if form.kind != "lists":
        return from_mask(to_mask(ids, form.candidates), form)
    ordered = np.sort(np.where(ids == NOBODY, form.candidates, ids), axis=1)
    ordered = np.where(ordered == form.candidates, NOBODY, ordered)[:, : form.width]
    out = np.full((len(ids), form.width), NOBODY, np.int32)
    out[:, : ordered.shape[1]] = ordered
    return Edges(out, (ids != NOBODY).sum(axis=1).astype(np.int32), form)


def stack(graphs: Sequence[Edges], axis: int = 0) -> Edges:
    """Graphs of one form along a new axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis=axis), *graphs)


def repeat(graph: Edges, times: int) -> Edges:
    """One graph `times` times along a new first axis; read-only."""
    return jax.tree.map(lambda leaf: np.broadcast_to(leaf, (times, *leaf.shape)), graph)
