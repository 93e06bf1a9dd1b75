# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Building a run: every check that needs the data, before anything is compiled."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import logging
from PIL import Image

import mhd_jax
from mhd_jax import config as config_lib
from mhd_jax import distill, federation, methods, models, record
from mhd_jax import experiment as experiment_lib
from mhd_jax.data.partition import PARTITIONS, Owners
from mhd_jax.errors import ConfigError
from mhd_jax.experiment import checks
from mhd_jax.registry import is_ours
from tests import small


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"partition__skew": -1.0}, r"partition\.skew = -1\.0: expected"),
        ({"partition__primary_labels": 11}, r"partition\.primary_labels = 11: expected"),
        ({"partition__name": "dirichle"}, r"partition\.name = 'dirichle': .*did you mean"),
        ({"clients__num": 2000}, "without|samples"),
        ({"graph__name": "cylce"}, r"graph\.name = 'cylce': .*did you mean 'cycle'"),
        ({"distill__confidence": "max_porb"}, r"distill\.confidence = .*did you mean 'max_prob'"),
        ({"distill__rule": "men"}, r"distill\.rule = .*did you mean 'mean'"),
        ({"model__name": "mpl"}, r"model\.name = 'mpl': .*did you mean"),
        ({"heads__name": "liner"}, r"heads\.name = 'liner': .*did you mean 'linear'"),
        ({"method": "mdh"}, r"method = 'mdh': .*did you mean 'mhd'"),
        ({"data__augment": "flop"}, r"data\.augment = 'flop': .*did you mean 'flip'"),
        ({"parallel__client_devices": 9}, r"parallel\.client_devices = 9: expected at most"),
    ],
)
def test_bad_input_is_refused_before_any_compile(changes, message):
    with pytest.raises(ConfigError, match=message):
        small.build(**changes)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.ones((3, 3)) - np.eye(3), "4"),
        (np.full((4, 4), 2) - 2 * np.eye(4), "0|bool"),
        (np.ones((4, 4)), "diagonal"),
    ],
    ids=["wrong shape", "not boolean", "true diagonal"],
)
def test_adjacency_matrices_that_cannot_be(matrix, message, tmp_path):
    np.save(tmp_path / "graph.npy", matrix)
    with pytest.raises(ConfigError, match=message):
        small.build(graph__name="matrix", graph__matrix=str(tmp_path / "graph.npy"))


def test_a_batch_larger_than_the_public_set_is_announced(monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
    small.build(data__public_batch_size=300)
    assert any("more than once" in line for line in said)


def test_no_aux_heads_with_distillation_weights_is_legal():
    assert small.build(heads__aux=0).parts.models[0].num_heads == 1


def test_one_client_is_legal():
    experiment = small.build(clients__num=1)
    _, metrics = small.run(experiment)
    assert (metrics["head_losses"][:3] == 0).all()
    assert np.isfinite(metrics["loss"]).all()


@pytest.mark.parametrize(
    "method", ["mhd", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fedavg", "fedmd"))]
)
def test_replicas_equal_separate_runs(method):
    together = small.build(num_seeds=3, seed=5, method=method)
    state, metrics = small.run(together)
    for replica in (0, 2):
        alone = small.build(seed=5 + replica, method=method)
        expected, wanted = small.run(alone)
        np.testing.assert_allclose(metrics["loss"][:, replica], wanted["loss"][:, 0], atol=1e-5)
        for ours, theirs in zip(
            small.clients(together, state), small.clients(alone, expected), strict=True
        ):
            np.testing.assert_allclose(ours[replica], theirs[0], atol=1e-5)


def test_cohorts_of_different_width_train_together():
    """On two devices as on one; there the group of one client has a row of padding."""
    settings = {"clients__num": 3, "clients__models": (("mlp_small", 2), ("mlp", 1)),
                "model__width": 0, "heads__aux": 1, "train__steps_per_call": 1}  # fmt: skip
    experiment = small.build(**settings, parallel__client_devices=2)
    reference = small.build(**settings)
    state, metrics = small.run(experiment, calls=3)
    expected, _ = small.run(reference, calls=3)
    assert metrics["loss"].shape[2] == 3
    for ours, theirs in zip(
        small.clients(experiment, state), small.clients(reference, expected), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_public_images_from_a_folder(tmp_path):
    """Colour images of any size become 8x8 grey ones; names of folders mean nothing."""
    draw = np.random.default_rng(0)
    for index in range(20):
        folder = tmp_path / f"group{index % 3}"
        folder.mkdir(exist_ok=True)
        pixels = draw.integers(0, 256, (10 + index, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    changes = {"data__public_name": "folder", "data__public_dir": str(tmp_path)}
    experiment = small.build(**changes)
    fed = experiment.federations[0]
    assert len(fed.public_indices) == 20 and fed.public.image_shape == (8, 8, 1)
    assert fed.partition.sizes.sum() == 1297  # all training samples are private
    assert experiment.feed.data["public"].shape == (1, 20, 8, 8, 1)
    assert (fed.public.labels == -1).all()
    _, metrics = small.run(experiment)
    assert np.isfinite(metrics["loss"]).all() and (metrics["head_losses"] > 0).all()


def test_a_public_data_set_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.public_dir"):
        small.build(data__public_name="folder", data__public_dir=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("changes", "drawn"),
    [
        ({}, 2),
        ({"distill__rule": "mean"}, 0),
        ({"graph__drop": 0.5}, 2),
        ({"graph__name": "cycle"}, 0),
        ({"graph__name": "chain"}, 0),
        ({"graph__name": "star"}, 0),
        ({"graph__name": "none"}, 0),
        ({"distill__alignment": 0.0}, 2),
        ({"heads__aux": 1}, 0),
        ({"data__public_fraction": 0.9}, 0),
        ({"method": "codistillation"}, 0),
        ({"method": "fedavg"}, 0),
        ({"exchange__cache": 4}, 0),
        ({"exchange__mode": "stale"}, 0),
        ({"graph__peers_per_step": 0}, 0),
        ({"graph__peers_per_step": 1}, 1),
        (
            {
                "graph__sequence": ("complete", "random_regular"),
                "graph__degree": 3,
                "graph__every": 5,
                "clients__num": 8,
            },
            2,
        ),
        ({"graph__sequence": ("complete", "star"), "graph__every": 5, "clients__num": 8}, 0),
    ],
)
def test_teachers_of_whom_nothing_is_kept_are_drawn(changes: dict, drawn: int) -> None:
    experiment = small.build(**{"graph__peers_per_step": -1, **changes})
    assert experiment.topologies[0].peers_per_step == drawn


@pytest.mark.parametrize(
    ("method", "everybody"),
    [("fedmd", True), ("feddf", True), ("fedavg", True), ("gossip", False), ("mhd", False),
     ("codistillation", False)],
)  # fmt: skip
def test_the_graph_of_a_run_is_the_one_that_its_method_uses(method, everybody, caplog):
    experiment = small.build(method=method, graph__name="cycle", graph__drop=1.0)
    reads = experiment.topologies[0].at(0)
    assert reads.sum() == (12 if everybody else 4)
    assert ("no message ever arrives" in caplog.text) == (method in ("mhd", "codistillation"))


@pytest.mark.parametrize("method", ["isolated", "supervised"])
def test_where_nothing_is_exchanged_nobody_reads_anybody(method, caplog):
    experiment = small.build(method=method)
    assert not experiment.topologies[0].at(0).any()
    assert "graph      none: no edges" in record.describe(experiment)


def test_the_graph_is_described_in_silence_and_warned_of_apart(caplog):
    experiment = small.build(graph__name="none", graph__every=2)
    caplog.clear()
    assert "graph      none" in record.describe(experiment)
    assert not caplog.records
    record.warn(experiment)
    assert "no peers, private data only: client" in caplog.text
    assert "graph.every has no effect" in caplog.text


def test_what_brings_embeddings_to_one_width_counts_as_parameters():
    unlike = {"clients__models": (("mlp_small", 2), ("mlp_large", 2)), "model__width": 0}
    experiment = small.build(**unlike)
    state = experiment.init_state()
    trained = [sum(x.nbytes // 4 for x in jax.tree.leaves(g.params)) for g in state.clients]
    found = experiment.num_params
    assert [2 * found[0], 2 * found[2]] == trained and found[0] == found[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"distill__fade_in": 1.0}, "distill.fade_in = 1.0: distillation reaches"),
        ({"graph__drop": 1.0}, "graph.drop = 1.0: no message ever arrives"),
        ({"exchange__every": 6}, "exchange.every = 6: of 6 steps only the first distils"),
        ({"attack__name": "noise", "attack__clients": (1,), "attack__start": 6}, "nobody lies"),
        ({"method": "fedmd", "graph__name": "cycle"}, "with fedmd everybody reads everybody"),
        ({"method": "fedmd", "graph__drop": 0.5}, "graph.drop = 0.5: with fedmd everybody reads"),
        ({"method": "gossip", "graph__drop": 0.5}, "gossip averages with all neighbours"),
        ({"method": "gossip", "graph__peers_per_step": 1}, "graph.peers_per_step = 1: gossip"),
        (
            {"method": "codistillation", "distill__temperature": 0.5},
            "distill.temperature = 0.5: with codistillation it is 1.0",
        ),
        ({"method": "codistillation", "distill__rule": "random"}, "with codistillation it is mean"),
        (
            {"clients__offload": "host", "clients__active": 2, "train__steps_per_call": 3},
            "train.steps_per_call = 3: 1 with clients.offload",
        ),
        (
            {"partition__alpha": 0.1},
            "partition.alpha = 0.1: no effect with partition.name = primary_labels, only with "
            "dirichlet or quantity",
        ),
        (
            {"graph__degree": 3, "graph__sequence": ("cycle", "star"), "graph__every": 2},
            "graph.degree = 3: no effect with graph.sequence = cycle, star, only with",
        ),
        ({"exchange__pool_size": 2}, "exchange.pool_size = 2: no effect with exchange.mode"),
        ({"average__trim": 0.1}, "average.trim = 0.1: no effect with average.rule = mean, only"),
        (
            {"method": "codistillation", "distill__nu_aux": 2.0},
            "distill.nu_aux = 2.0: no effect with method = codistillation, only with mhd",
        ),
        (
            {"data__public_name": "photos", "data__public_fraction": 0.2},
            "data.public_fraction = 0.2: no effect, as public samples come from data.public_name",
        ),
        ({"data__public_dir": "elsewhere"}, "no effect without data.public_name"),
        (
            {"method": "fedavg", "distill__mixup": 0.2},
            "distill.mixup = 0.2: no effect with method = fedavg, only with mhd or fedmd or",
        ),
        ({"average__every": 3}, "average.every = 3: no effect with method = mhd, only with fedavg"),
        (
            {"distill__class_frequencies": (1,) * 10, "distill__alignment": 0.0},
            "no effect, as nothing is aligned",
        ),
        (
            {"distill__publish_label_shares": True},
            "published, but distill.rule = most_confident does not read it",
        ),
        ({"data__public_name": "digits"}, "digits: the clients' own images are public, too"),
        ({"data__workers": 2}, "data.workers = 2: no effect, as samples stay on the devices"),
        ({"method": "fedavg"}, "average.every = 200: in 6 steps nobody averages"),
        ({"method": "feddf"}, "rounds.private_steps = 40: in 6 steps no round gets as far as"),
        (
            {"method": "fedmd", "rounds__private_steps": 6},
            "rounds.private_steps = 6: in 6 steps no round gets as far as its public steps",
        ),
        ({"exchange__mode": "stale"}, "exchange.refresh_steps = 200: in 6 steps nobody reads"),
        (
            {"distill__nu_aux": 0.0, "distill__nu_emb": 0.0},
            "method = mhd: nothing is distilled, as all weights",
        ),
        ({"method": "codistillation", "distill__nu_main": 0.0}, "nothing is distilled, as all"),
        ({"heads__aux": 0, "distill__nu_emb": 0.0}, "or no head reads another"),
        ({"method": "fedavg"}, "heads.aux = 2: no effect with method = fedavg, only with mhd"),
        ({"method": "isolated", "graph__name": "cycle"}, "with isolated nobody reads anybody"),
        ({"method": "isolated", "graph__drop": 0.5}, "graph.drop = 0.5: with isolated nobody"),
        ({"method": "fedavg", "graph__every": 2}, "graph.every = 2: with fedavg everybody reads"),
        (
            {"method": "supervised", "clients__active": 0.5},
            "clients.active = 0.5: no effect, as supervised trains one model in every step",
        ),
        (
            {"exchange__embedding_width": 4, "distill__nu_emb": 0.0},
            "exchange.embedding_width = 4: no effect, as no embeddings are published",
        ),
        (
            {"distill__alignment": 0.0, "distill__alignment_momentum": 0.5},
            "distill.alignment_momentum = 0.5: no effect, as nothing is aligned",
        ),
        (
            {"exchange__mode": "stale", "distill__alignment_momentum": 0.5},
            "distill.alignment_momentum = 0.5: no effect on snapshots",
        ),
        (
            {"distill__confidence": "margin", "distill__rule": "mean"},
            "distill.confidence = margin: distill.rule = mean does not read it",
        ),
        (
            {"distill__confidence": "energy", "distill__rule": "mean"},
            "distill.confidence = energy: published, but distill.rule = mean does not read it",
        ),
        (
            {"distill__mixup": 0.2, "data__public_batch_size": 1},
            "distill.mixup = 0.2: no effect with data.public_batch_size = 1",
        ),
        ({"model__remat": True}, "model.remat = True: no effect with model.name = mlp, only with"),
        (
            {"clients__models": (("mlp", 2), ("cnn", 2)), "model__stem": "imagenet"},
            "model.stem = imagenet: no effect with clients.models = mlp, cnn, only with resnet8",
        ),
    ],
)
def test_settings_without_effect_are_told(changes, said, caplog):
    with caplog.at_level("WARNING", logger="absl"):
        small.build(train__steps=6, **changes)
    assert said in caplog.text
    caplog.clear()
    small.build(train__steps=6)
    assert not caplog.records


def test_pieces_of_others_may_read_any_setting(caplog, monkeypatch):
    halves = lambda labels, classes, clients, settings, rng: Owners(  # noqa: E731
        np.arange(len(labels)) % clients
    )
    monkeypatch.setitem(PARTITIONS._pieces, "halves", halves)
    small.build(partition__name="halves", partition__alpha=0.1)
    assert "no effect" not in caplog.text


@pytest.mark.parametrize("setting", ["distill.rule", "average.rule"])
def test_names_are_known_even_where_nobody_reads_them(setting):
    with pytest.raises(ConfigError, match=f"{setting} = 'meen': .*did you mean 'mean'"):
        small.build(method="isolated", **{setting.replace(".", "__"): "meen"})


@pytest.mark.parametrize("name", ["isolated", "supervised", "fedavg", "gossip", "fedmd", "feddf"])
def test_methods_make_nothing_of_settings_that_they_do_not_read(name):
    """Another value of the same type; those that are read change the method, see below."""
    others = {
        "distill.rule": "mean",
        "distill.confidence": "margin",
        "distill.temperature": 0.5,
        "distill.mixup": 0.25,
    }
    usual = config_lib.flatten(config_lib.default_config())
    method, mhd = (methods.build(small.config(method=one)) for one in (name, "mhd"))
    for setting, readers in checks.READ_BY_METHODS.items():
        if setting.startswith("exchange.") or setting == "distill.publish_label_shares":
            continue  # what reads messages makes them, not the method
        value = usual[setting]
        other = value + 1 if type(value) is int else (1.0,) * 10 if value == () else not value
        other = others.get(setting, float(other) if isinstance(value, float) else other)
        changed = {setting.replace(".", "__"): other}
        same = methods.build(small.config(method=name, **changed)) == method
        assert same or name in readers, setting
        if "mhd" in readers:
            assert methods.build(small.config(**changed)) != mhd, setting


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("fedavg", {"average__every": 6}),
        ("gossip", {"average__every": 6}),
        ("fedmd", {"rounds__private_steps": 5}),
        ("mhd", {"exchange__mode": "stale", "exchange__refresh_steps": 5}),
    ],
)
def test_what_is_due_in_the_last_step_is_not_called_idle(method, changes, caplog):
    small.build(method=method, heads__aux=4, train__steps=6, **changes)
    assert "in 6 steps" not in caplog.text


@pytest.mark.parametrize("name", models.MODELS.here())
def test_networks_make_nothing_of_settings_that_they_do_not_read(name):
    def made(**settings):
        chosen = models.network_settings(settings, "auto")
        return models.embedding_network(name, models.MODELS.get(name), chosen)

    others = {"depth": 7, "stem": "imagenet", "remat": True, "signed_embedding": False}
    for setting, readers in checks.READ_BY_NETWORKS.items():
        field = setting.removeprefix("model.")
        assert (made(**{field: others[field]}) != made()) == (name in readers), setting


OUR_RULES = [name for name, rule in distill.RULES.here().items() if is_ours(rule)]


@pytest.mark.parametrize("rule", OUR_RULES)
def test_rules_make_nothing_of_a_confidence_that_they_do_not_read(rule):
    scores = jax.nn.log_softmax(2 * jax.random.normal(jax.random.key(1), (3, 50, 4, 5)))
    candidates = distill.Candidates(
        scores, np.ones((2, 3), bool), 4, None, np.full((3, 5), 0.2), own=scores[:2]
    )
    keys = jax.random.split(jax.random.key(0), (2, 50))
    one, other = (
        jax.tree.leaves(distill.choose(candidates, keys, rule=rule, confidence=confidence))
        for confidence in ("max_prob", "margin")
    )
    differ = any((a != b).any() for a, b in zip(one, other, strict=True))
    assert differ == (rule in checks.BY_CONFIDENCE)


def test_what_settings_say_of_who_reads_them_is_what_is_checked():
    page = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
    rows = {row.split("`")[1]: row.replace("`", "") for row in page.read_text().splitlines()
            if row.startswith("| `")}  # fmt: skip
    for name, (_, readers) in checks.READ_BY.items():
        if name not in ("graph.probability", "distill.nu_aux", "average.rule"):
            assert f"| {', '.join(readers)}: " in rows[name]


# --- Before the data are read ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("graph.name", "cylce"), ("graph.degree", -1), ("graph.sequence", ("cycle", "sta")),
        ("model.name", "mpl"), ("model.norm", "bach"), ("heads.name", "liner"),
        ("exchange.encoding", "int5"), ("attack.name", "nois"), ("data.augment", "flop"),
        ("metrics", ("worst_clas",)), ("clients.active", 1.5), ("partition.name", "dirichle"),
    ],
)  # fmt: skip
def test_what_needs_no_data_is_checked_before_they_are_read(setting, value, monkeypatch):
    monkeypatch.setattr(federation, "data_sets", lambda config: pytest.fail("data were read"))
    with pytest.raises(ConfigError, match=re.escape(setting.removesuffix(".sequence"))):
        small.build(**{setting.replace(".", "__"): value})


# --- Classes that somebody lacks ------------------------------------------------------------------


def _of_labels(train: np.ndarray, test: np.ndarray) -> experiment_lib.Experiment:
    draw = np.random.default_rng(0)
    pairs = [(draw.normal(size=(len(labels), 5)), labels) for labels in (train, test)]
    source = mhd_jax.from_arrays("labelled", *pairs)
    return experiment_lib.build(
        small.config(clients__num=2, data__public_batch_size=4), (source, None)
    )


def test_classes_that_nobody_has_or_is_tested_on_are_told(caplog):
    labels = np.arange(60) % 3
    _of_labels(labels, labels)
    assert "classes" not in caplog.text
    _of_labels(labels + 1, labels + 1)
    assert (
        "no client has private samples of the classes 0; are labels counted from 0?" in caplog.text
    )
    _of_labels(labels, labels % 2)
    assert "the test set has no sample of the classes 2: accuracies are those of the other 2" in (
        caplog.text
    )


def test_a_client_who_cannot_be_tested_is_refused():
    with pytest.raises(ConfigError, match=r"test samples of a class that client \d has: 1"):
        _of_labels(np.ones(60, int), np.zeros(20, int))


# --- One model for all ----------------------------------------------------------------------------


def test_supervised_trains_on_one_place_however_many_devices_are_asked_for():
    experiment = small.build(method="supervised", clients__num=6, parallel__client_devices=4)
    assert experiment.layout.client_devices == 1
    _, metrics = small.run(experiment)
    assert np.isfinite(metrics["loss"]).all()


def test_supervised_has_one_architecture():
    with pytest.raises(ConfigError, match="clients.models = .*one architecture: supervised trains"):
        small.build(method="supervised", clients__models=(("mlp", 1), ("mlp_small", 3)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attack__name": "noise", "attack__clients": (1,), "method": "isolated"},
         "expected 'none', as clients send nothing under isolated"),
        ({"attack__name": "swapped", "attack__clients": (1,), "method": "fedavg"},
         "expected an attack on what fedavg sends: "),
    ],
)  # fmt: skip
def test_lies_that_nothing_carries_are_refused_in_plain_words(changes, said):
    with pytest.raises(ConfigError, match=f"attack.name = .*: {said}"):
        small.build(**changes)


def test_public_samples_that_are_all_alike_are_blamed_on_where_they_come_from():
    labels, config = np.arange(60) % 3, small.config(clients__num=2, data__public_batch_size=4)
    alike, samples = np.ones((60, 5)), np.random.default_rng(0).normal(size=(60, 5))
    source = mhd_jax.from_arrays("alike", (alike, labels), (alike, labels))
    with pytest.raises(ConfigError, match=r"^data\.public_fraction = '.* samples, all alike'"):
        experiment_lib.build(config, (source, None))
    clients = {name: (samples[i::2], labels[i::2]) for i, name in enumerate("ab")}
    source = mhd_jax.from_clients(clients, test=(samples, labels), public=alike)
    config.partition.name = "by_key"
    with pytest.raises(ConfigError, match="^public = '60 public samples, all alike'"):
        experiment_lib.build(config, (source, source.public))


def test_clients_with_very_few_samples_are_told(caplog: pytest.LogCaptureFixture) -> None:
    made = small.config(partition__name="quantity", partition__alpha=0.05, clients__num=6)
    for smallest, told in ((1, True), (4, False)):
        made.partition.min_size = smallest
        caplog.clear()
        with caplog.at_level("WARNING", logger="absl"):
            experiment_lib.build(made)
        said = "of 6 clients have fewer than 4 private samples, and their main heads may lose"
        assert (said in caplog.text) == told
        assert ("; partition.min_size = 4 gives everybody more" in caplog.text) == told
