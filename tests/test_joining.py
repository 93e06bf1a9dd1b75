# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Given weights to start from, and a client that joins a finished run."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from flax import nnx

import mhd_jax
from mhd_jax import api, methods, train, weights
from mhd_jax import experiment as experiment_lib
from mhd_jax.api import joining
from mhd_jax.data.sources import silos
from mhd_jax.errors import ConfigError, WorkdirError
from mhd_jax.experiment import traffic
from mhd_jax.reporting import terminal
from mhd_jax.results import head_rows
from tests import small

NAMES = ("north", "south", "east")
F, C = 5, 3
SETTINGS: dict[str, Any] = {
    "data__name": "silos", "partition__name": "by_key", "clients__num": 3,
    "isolated_baseline": True, "train__steps": 60, "train__log_every": 60, "train__eval_every": 60,
    "train__checkpoint_every": 60,
    "optimizer__learning_rate": 0.01, "data__public_batch_size": 24,
}  # fmt: skip


def table(rows: int, seed: int, classes: tuple[int, ...] = (0, 1, 2)) -> Any:
    draw = np.random.default_rng(seed)
    labels = draw.permutation(np.resize(classes, rows))
    noise = draw.normal(size=(rows, F))
    noise[:, :C] += 4 * np.eye(C)[labels]
    return noise, labels


@pytest.fixture(scope="module", autouse=True)
def pieces(pieces: None) -> Iterator[None]:
    """The data set of the run, and no reports, which nobody looks at."""
    report, train._report = train._report, lambda *_: None
    clients = {name: table(40, seed, (seed, (seed + 1) % 3)) for seed, name in enumerate(NAMES)}
    source = mhd_jax.from_clients(
        clients, public=table(48, 7)[0], test=table(60, 8), name="silos",
        client_test={name: table(9, 20) for name in NAMES},
    )  # fmt: skip
    api.pieces.use(small.config(), {"source": source})
    yield
    train._report = report


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, pieces: None) -> mhd_jax.Run:
    """A finished run of three clients."""
    workdir = tmp_path_factory.mktemp("joining") / "run"
    train.train_and_evaluate(small.config(**SETTINGS), workdir, with_report=False)
    return mhd_jax.Run.load(workdir)


@pytest.fixture(scope="module")
def joined(run: mhd_jax.Run, tmp_path_factory: pytest.TempPathFactory) -> mhd_jax.Run:
    workdir = tmp_path_factory.mktemp("joined") / "run"
    return mhd_jax.join(run, table(30, 30, (0,)), workdir, name="west", test=table(12, 31))


# --- A client that comes later --------------------------------------------------------------------


def test_no_bit_of_the_others_changes(run: mhd_jax.Run, joined: mhd_jax.Run) -> None:
    for before, after in zip(run.clients, joined.clients, strict=False):
        jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    np.testing.assert_array_equal(
        run.summary.shared_accuracy, joined.summary.shared_accuracy[: len(NAMES)]
    )
    assert run.summary.own_test_accuracy is not None
    assert joined.summary.own_test_accuracy is not None
    np.testing.assert_array_equal(
        run.summary.own_test_accuracy, joined.summary.own_test_accuracy[: len(NAMES)]
    )


def test_the_new_client_learns_what_the_others_know(joined: mhd_jax.Run) -> None:
    assert tuple(joined.summary.client_names) == (*NAMES, "west")
    baseline = joined.summary.isolated_baseline
    assert baseline is not None
    alone = baseline.shared_accuracy[-1, 0]  # knows the one class that it has
    new = joined.clients[-1]
    assert new.peers == [0, 1, 2] and new.samples.tolist() == [30, 0, 0]
    assert alone < 0.5 < new.shared_accuracy[-1]
    assert np.isfinite(joined.summary.own_test_accuracy[-1]).all()


def test_tables_and_means_are_of_the_new_client_alone(joined: mhd_jax.Run) -> None:
    """The others' isolated baseline is what they came with, so that it says nothing of them."""
    summary = joined.summary
    assert summary.frozen == len(NAMES) and summary.counted.tolist() == [False] * 3 + [True]
    *heads, isolated = head_rows(summary)
    assert [row.shared.mean for row in heads] == summary.shared_accuracy[-1].tolist()
    assert summary.isolated_baseline is not None
    assert isolated.shared.mean == summary.isolated_baseline.shared_accuracy[-1, 0]
    assert "over 1 client that learns" in terminal.final_table(summary)
    last = joined.records[-1]
    assert last["last_head_accuracy"] == [last["shared_accuracy"][-1][-1]]


def test_somebody_joins_clients_who_took_turns(run: mhd_jax.Run, tmp_path: Path) -> None:
    few = {"clients__active": 0.7, "train__steps": 2, "train__log_every": 2, "heads__aux": 1,
           "train__eval_every": 2, "train__checkpoint_every": 2, "train__steps_per_call": 1,
           "isolated_baseline": False}  # fmt: skip
    train.train_and_evaluate(
        small.config(**{**SETTINGS, **few}), tmp_path / "few", with_report=False
    )
    found = mhd_jax.join(
        mhd_jax.Run.load(tmp_path / "few"), table(30, 30, (0,)), tmp_path / "joined", name="west"
    )
    assert tuple(found.summary.client_names) == (*NAMES, "west")


def test_clients_who_divided_the_samples_anew_get_nobodys_tests(tmp_path: Path) -> None:
    few = {"partition__name": "iid", "clients__num": 2, "isolated_baseline": False,
           "train__steps": 4, "train__log_every": 4, "train__eval_every": 4,
           "train__checkpoint_every": 4}  # fmt: skip
    train.train_and_evaluate(
        small.config(**{**SETTINGS, **few}), tmp_path / "iid", with_report=False
    )
    run = mhd_jax.Run.load(tmp_path / "iid")
    silos = joining._source(run, "west", table(30, 30), table(7, 31)).silos
    assert silos is not None and silos.names == ("0", "1", "west")
    assert np.bincount(silos.test_owner).tolist() == [0, 0, 7]


def test_data_and_normalisation_are_the_runs(run: mhd_jax.Run, joined: mhd_jax.Run) -> None:
    np.testing.assert_array_equal(run.summary.normalization, joined.summary.normalization)
    histograms = (found.summary.label_histogram[: len(NAMES)] for found in (run, joined))
    np.testing.assert_array_equal(*histograms)


def test_a_finished_one_is_found_again(run: mhd_jax.Run, joined: mhd_jax.Run) -> None:
    again = mhd_jax.join(run, table(30, 30, (0,)), joined.workdir, name="west", test=table(12, 31))
    assert again.summary == joined.summary


@pytest.mark.parametrize(
    ("samples", "changes", "said"),
    [
        (table(9, 1), {"name": "south"}, "clients = 'south': expected a name of its own"),
        (table(1, 1), {}, "clients = 'new': expected at least 2 samples"),
        (
            (np.zeros((4, 3)), np.zeros(4, int)),
            {},
            r"samples of shape \(5,\) as client 'of the run",
        ),
        ((np.zeros((4, F)), np.full(4, 3)), {}, "labels from 0 to 2, .* but row 0 has 3"),
        ((np.full((4, F), np.nan), np.zeros(4, int)), {}, "4 of 4 rows have NaN or inf"),
        (table(9, 1), {"test": (np.zeros((4, F)),)}, "client_test = 'new': expected a pair"),
        (table(9, 1), {"peers": ["suoth"]}, "peers = 'suoth': .* did you mean 'south'"),
        (table(9, 1), {"peers": [3]}, "peers = 3: expected an index below 3"),
        (table(9, 1), {"peers": [0, None]}, "peers = None: expected an index below 3"),
        (table(9, 1), {"peers": [1.5]}, "peers = 1.5: expected an index below 3"),
        (table(9, 1), {"peers": 0}, "peers = 0: expected a sequence of clients, by index or name"),
        (table(9, 1), {"peers": "south"}, "peers = 'south': expected a sequence of clients"),
        (table(9, 1), {"config": {"heads.aux": 1}}, r"kernel is \(8, 3, 3\) there and \(8, 2, 3\)"),
        (table(9, 1), {"config": {"method": "fedavg"}}, "clients.frozen = 3: expected 0: fedavg"),
        (table(9, 1), {"config": {"train.steps": 9, "num_seeds": 2}}, "num_seeds = 2: expected 1,"),
        (table(9, 1), {"config": {"exchange.mode": "stale"}}, "mode = 'stale': expected 'fresh',"),
        (table(9, 1), {"config": {"graph.every": 3}}, "graph.every = 3: expected 0, as whenever"),
        (table(9, 1), {"config": {"clients.num": 3}}, "clients.num = 3: expected 4, as whenever"),
        (
            table(9, 1),
            {"config": {"model.init_from": "runs/1"}},
            "init_from = 'runs/1': expected ''",
        ),
        (
            table(9, 1),
            {"config": {"graph.name": "cycle"}},
            "'cycle': expected the argument 'peers'",
        ),
        (
            table(9, 1),
            {"config": {"model.name": "cnn"}, "model": "mlp_small"},
            "model.name = 'cnn': expected the argument 'model'",
        ),
    ],
)
def test_what_cannot_join_is_named(
    run: mhd_jax.Run, samples: Any, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        mhd_jax.join(run, samples, **changes)


def test_a_path_is_no_run_to_join(run: mhd_jax.Run) -> None:
    with pytest.raises(ConfigError, match="run = .*expected a Run, from fit or from Run.load"):
        mhd_jax.join(str(run.workdir), table(9, 1))  # type: ignore[arg-type]


def test_the_name_of_a_new_client_is_text() -> None:
    known = mhd_jax.from_arrays("known", table(9, 1), table(9, 2))
    assert silos.with_client(known, [np.arange(9)], ("a",), 7, table(9, 3)).silos.names == (
        "a",
        "7",
    )


def test_the_columns_of_a_new_client_are_the_runs() -> None:
    pandas = pytest.importorskip("pandas")

    def frame(columns: str) -> Any:
        samples, labels = table(9, 1)
        return pandas.DataFrame(samples, columns=list("abcde"))[list(columns)], labels

    known = mhd_jax.from_arrays("known", frame("abcde"), table(9, 2))
    add = functools.partial(silos.with_client, known, [np.arange(9)], ("a",), "new")
    assert add(frame("abcde"), frame("abcde")).columns == tuple("abcde")
    with pytest.raises(ConfigError, match="clients = 'new': .* columns a, b, c, d, e in this"):
        add(frame("bacde"))
    with pytest.raises(ConfigError, match="client_test = 'new': .* columns a, b, c, d, e in"):
        add(table(9, 3), frame("edcba"))


def test_nobody_joins_a_run_that_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(WorkdirError, match="is not finished"):
        mhd_jax.join(api.Run(tmp_path, small.config()), table(9, 1))


def test_frozen_clients_have_weights_and_company() -> None:
    with pytest.raises(ConfigError, match="model.init_from = '': expected the weights"):
        experiment_lib.build(small.config(**SETTINGS, clients__frozen=2))
    with pytest.raises(ConfigError, match="clients.frozen = 3: expected fewer than"):
        experiment_lib.build(small.config(**SETTINGS, clients__frozen=3))


def test_what_frozen_clients_alone_could_read_is_not_sent() -> None:
    """On a cycle of three who all have weights, the last one is read by the first alone."""
    config = small.config(**SETTINGS, graph__name="cycle", clients__frozen=1)
    method, fed = methods.build(config), experiment_lib.build(small.config(**SETTINGS)).federations
    (cut,) = traffic.make_topologies(config, method, fed)
    assert cut.at(0).sum(axis=1).tolist() == [0, 1, 1]
    assert cut.at(0).any(axis=0).tolist().count(False) == 1


# --- Weights to start from ------------------------------------------------------------------------


def start(init_from: Any, **changes: Any) -> Any:
    """The initial state with given weights, and the same without."""
    config = small.config(**SETTINGS, **changes)
    plain = experiment_lib.build(config).init_state()
    config.model.init_from = weights.named(init_from)
    return experiment_lib.build(config).init_state(), plain


def same(found: Any, expected: Any) -> bool:
    return bool(jax.tree.all(jax.tree.map(np.array_equal, found, expected)))


def test_clients_of_a_run_go_on_from_their_own_weights(run: mhd_jax.Run) -> None:
    state, plain = start(run.workdir, exchange__mode="stale", exchange__pool_size=2)
    for client in run.clients:
        row = jax.tree.map(lambda x, i=client.index: x[0, i], state.clients[0].snapshot)
        assert same(row["params"], client.params["params"])
        for slot in range(2):
            kept = jax.tree.map(lambda x, i=client.index, s=slot: x[0, i, s], state.pool[0])
            assert same(kept["params"], client.params["params"])
    alone = state.baseline[0].params["model"]["head"]["kernel"]
    np.testing.assert_array_equal(
        alone[0, 1, :, 0], run.clients[1].params["params"]["head"]["kernel"][:, 0]
    )
    assert same(state.clients[0].opt_state, plain.clients[0].opt_state)


def spoiled(checkpoint: Path) -> Path:
    """A checkpoint with one bit flipped in its largest file."""
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0x40
    largest.write_bytes(data)
    return checkpoint


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    run: mhd_jax.Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = Path(shutil.copytree(run.workdir, tmp_path / "given"))
    newest = Path(shutil.copytree(given / "checkpoints/60", given / "checkpoints/120"))
    expected = weights.read(str(run.workdir), 3)
    spoiled(newest)
    assert same(weights.read(str(given), 3), expected)
    (record,) = [record for record in caplog.records if "cannot be read" in record.getMessage()]
    assert record.getMessage().startswith(str(newest))


@pytest.mark.parametrize("inside", ["", "checkpoints/60"])
def test_weights_that_are_not_what_was_written_are_refused(
    run: mhd_jax.Run, tmp_path: Path, inside: str
) -> None:
    given = Path(shutil.copytree(run.workdir, tmp_path / "given"))
    spoiled(given / "checkpoints/60")
    with pytest.raises(ConfigError, match="model.init_from = .* is not what was written"):
        weights.read(str(given / inside), 3)


def test_a_run_that_goes_on_does_not_read_them(run: mhd_jax.Run, tmp_path: Path) -> None:
    given = shutil.copytree(run.workdir, tmp_path / "given")
    config = small.config(**SETTINGS, model__init_from=str(given))
    whole = train.train_and_evaluate(config, tmp_path / "run", with_report=False)
    shutil.rmtree(given)
    (tmp_path / "run" / "summary.json").unlink()
    again = train.train_and_evaluate(config, tmp_path / "run", with_report=False)
    np.testing.assert_array_equal(again.shared_accuracy, whole.shared_accuracy)


@pytest.mark.parametrize("form", ["exported", "bare parameters", "trunk", "network alone"])
def test_one_clients_weights_are_those_of_all(run: mhd_jax.Run, tmp_path: Path, form: str) -> None:
    given = run.clients[2].params
    where: Any = tmp_path / "there"
    if form == "exported":
        run.export("east", where)
    elif form == "bare parameters":
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(where, given["params"])
    else:
        trunk = given["params"]["network"]
        where = {"params": {"network": trunk}} if form == "trunk" else trunk
    state, plain = start(where)
    found, drawn = state.clients[0].params["model"], plain.clients[0].params["model"]
    for client in range(3):
        row = jax.tree.map(lambda x, i=client: x[0, i], found)
        assert same(row["network"], given["params"]["network"])
        assert same(row["head"], given["params"]["head"]) == (
            form in ("exported", "bare parameters")
        )
    if form in ("trunk", "network alone"):
        assert same(found["head"], drawn["head"])


def test_one_each_and_none_for_one(run: mhd_jax.Run) -> None:
    trees = [run.clients[1].params, None, run.clients[0].params]
    state, plain = start(trees, parallel__client_devices=2)  # a row of padding
    kernel = state.clients[0].params["model"]["head"]["kernel"][0]
    for client, tree in enumerate(trees):
        drawn = plain.clients[0].params["model"]["head"]["kernel"][0, client]
        expected = drawn if tree is None else tree["params"]["head"]["kernel"]
        np.testing.assert_array_equal(kernel[client], expected)


class Apart(nn.Module):
    """Heads with a module each."""

    num_classes: int
    num_heads: int

    @nn.compact
    def __call__(self, embedding: jax.Array, train: bool) -> jax.Array:
        heads = [nn.Dense(self.num_classes, name=f"h{i}") for i in range(self.num_heads)]
        return jnp.stack([head(embedding) for head in heads], axis=1)


def test_heads_with_a_module_each_give_the_baseline_the_first() -> None:
    api.register("heads.name", "apart", Apart)
    head = {f"h{i}": {"kernel": np.full((8, C), i), "bias": np.full(C, i)} for i in range(3)}
    state, _ = start({"params": {"head": head}}, heads__name="apart")
    for learners, heads in ((state.clients[0], 3), (state.baseline[0], 1)):
        found = learners.params["model"]["head"]
        assert sorted(found) == [f"h{i}" for i in range(heads)]
        for i in range(heads):
            assert (found[f"h{i}"]["kernel"] == i).all() and (found[f"h{i}"]["bias"] == i).all()


def test_the_name_is_of_the_contents() -> None:
    tree = {"params": {"network": {"kernel": jnp.ones((2, 3))}}}
    assert weights.named(tree) == weights.named(jax.tree.map(np.asarray, tree))
    assert weights.named(tree) != weights.named(jax.tree.map(lambda x: 2 * x, tree))
    assert weights.named("runs/first") == weights.named(Path("runs/first")) == "runs/first"
    for path in (Path("runs/first"), epath.Path("gs://runs/first")):
        assert weights.named([path, None]) == weights.named([str(path), None])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"network": {"kernel": np.zeros((2, 3))}},
            "the network of client north: .*network/kernel is .2, 3. there",
        ),
        ({"params": {"head": {"bias": np.zeros(3)}}}, "head/bias is .3,. there and .3, 3. here"),
        ([{}, {}], "weights for all clients alike, or for each of 3, not 2"),
        ("nowhere", "'nowhere': expected a run, an exported client or an Orbax checkpoint"),
    ],
)
def test_weights_that_do_not_fit_are_named(given: Any, said: str) -> None:
    config = small.config(**SETTINGS, model__init_from=weights.named(given))
    with pytest.raises(ConfigError, match=f"model.init_from = .*{said}"):
        assert experiment_lib.build(config).weights


def test_weights_that_are_not_finite_are_named(run: mhd_jax.Run) -> None:
    spoiled = jax.tree.map(np.array, run.clients[1].params)
    spoiled["params"]["head"]["bias"][0, 0] = np.nan
    config = small.config(**SETTINGS, model__init_from=weights.named([None, spoiled, None]))
    with pytest.raises(ConfigError, match="for client south NaN or inf is in params/head/bias$"):
        assert experiment_lib.build(config).weights


class Normed(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(F, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.dropout(self.norm(self.dense(x)))


@pytest.mark.parametrize("form", [lambda module: module, nnx.state])
def test_an_nnx_module_is_weights_too(form: Any) -> None:
    mhd_jax.register("model.name", "normed", Normed)
    module = Normed(rngs=nnx.Rngs(5))
    module.norm.mean[...] = jnp.arange(8.0)
    given = weights.named([form(module), None, None])
    config = small.config(**SETTINGS, model__name="normed", model__init_from=given)
    (first, second, _), _ = experiment_lib.build(config).weights
    assert not second
    assert same(first["params/network/dense/kernel"], module.dense.kernel)
    assert same(first["batch_stats/network/norm/mean"], jnp.arange(8.0))


def test_what_does_not_fit_claims_no_directory(tmp_path: Path) -> None:
    config = small.config(**SETTINGS, model__init_from=str(tmp_path / "nothing"))
    with pytest.raises(ConfigError):
        train.train_and_evaluate(config, tmp_path / "run", with_report=False)
    assert not (tmp_path / "run" / "config.json").exists()
