# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Samples that are no images: tables, series and ids, from their source to a prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhd_jax
from mhd_jax import api, audit, estimate, federation, rng, train
from mhd_jax import experiment as experiment_lib
from mhd_jax.data import augment, sources
from mhd_jax.data.sources.arrays import as_samples, as_stored
from mhd_jax.data.streaming import Streaming
from mhd_jax.errors import ConfigError, DivergedError
from tests import small

VOCABULARY, LENGTH, ROWS = 11, 6, 40


class BagOfWords(nn.Module):
    """The mean of learned vectors, one for each id."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return nn.Embed(VOCABULARY, 8)(x).mean(axis=1)


def samples(kind: str, rows: int = ROWS) -> np.ndarray:
    draw = np.random.default_rng(rows)
    return {
        "table": lambda: 100 + 7 * draw.normal(size=(rows, 5)),
        "series": lambda: 3 * draw.normal(size=(rows, LENGTH, 2)) - 1,
        "ids": lambda: draw.integers(0, VOCABULARY, (rows, LENGTH)),
    }[kind]()


def source(kind: str) -> sources.Source:
    labels = np.arange(ROWS) % 2
    return mhd_jax.from_arrays(kind, (samples(kind), labels), (samples(kind, 20), labels[:20]))


@pytest.fixture(scope="module")
def run(pieces: None) -> mhd_jax.Run:
    """Clients that learn from ids."""
    config = small.config(data__public_fraction=0.3, clients__num=2, partition__name="iid")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "_report", lambda *_: None)  # nobody looks at it
        return mhd_jax.fit(config, source=source("ids"), model=BagOfWords)


@pytest.mark.parametrize(
    ("kind", "shape", "dtype"),
    [("table", (5,), "f4"), ("series", (LENGTH, 2), "f4"), ("ids", (LENGTH,), "i4")],
)
def test_shape_and_type_reach_the_network(kind: str, shape: Any, dtype: str, pieces: None) -> None:
    api.register("model.name", "bag", lambda settings: BagOfWords())
    config = small.config(clients__num=2, model__name="bag" if kind == "ids" else "mlp")
    found = experiment_lib.build(config, (source(kind), None))
    assert found.image_shape == shape
    batch = found.feed.data_shapes()["private"][0][0]
    assert (batch.shape[3:], batch.dtype) == (shape, np.dtype(dtype))
    width = found.init_state(abstract=True).clients[0].params["model"]["network"]
    assert jax.tree.leaves(width)


@pytest.mark.parametrize("kind", ["table", "series"])
def test_numbers_are_normalised_by_feature_with_the_public_rows(kind: str) -> None:
    config = small.config(clients__num=2, data__public_fraction=0.5)
    found = experiment_lib.build(config, (source(kind), None))
    fed = found.federations[0]
    public = fed.public.images(fed.public_indices)
    prepare = federation.preparation(config, found.federations).test
    flat = np.asarray(prepare(jnp.asarray(public))).reshape(-1, public.shape[-1])
    np.testing.assert_allclose(flat.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(flat.std(axis=0), 1, atol=1e-3)


def test_ids_enter_a_network_as_they_are(pieces: None) -> None:
    api.register("model.name", "bag", lambda settings: BagOfWords())
    config = small.config(clients__num=2, model__name="bag")
    found = experiment_lib.build(config, (source("ids"), None))
    prepare = federation.preparation(config, found.federations)
    ids = jnp.asarray(found.federations[0].source.test.images(np.arange(3)))
    assert prepare.test(ids).dtype == jnp.int32
    np.testing.assert_array_equal(prepare.test(ids), ids)
    keys = rng.each(jax.random.key(0), jnp.arange(3))
    np.testing.assert_array_equal(prepare.train(ids, keys, jnp.zeros((2, 0))), ids)


def test_messages_about_ids_are_audited(pieces: None) -> None:
    api.register("model.name", "bag", lambda settings: BagOfWords())
    config = small.config(clients__num=2, model__name="bag", parallel__client_devices=2)
    found = audit.audit(experiment_lib.build(config, (source("ids"), None)))
    assert found.clean and found.findings


class AsItIs(nn.Module):
    """No network: embeddings that somebody else has computed."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return x


def test_a_network_may_have_no_parameters(pieces: None) -> None:
    api.register("model.name", "as_it_is", AsItIs)
    config = small.config(clients__num=2, model__name="as_it_is", isolated_baseline=False)
    experiment = experiment_lib.build(config, (source("table"), None))
    _, metrics = small.run(experiment)
    assert np.isfinite(metrics["loss"]).all() and not metrics["distillation_gradient"].any()


def test_ids_train_and_are_predicted(run: mhd_jax.Run) -> None:
    assert np.isfinite(run.records[-2]["loss"]).all()
    ids = samples("ids", 20)
    probabilities = run.predict(ids)
    assert probabilities.shape == (2, 20, 3, 2)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, rtol=1e-5)
    client = run.clients[0]
    logits, _ = client.model.apply(client.params, jnp.asarray(ids), train=False)
    np.testing.assert_allclose(probabilities[0], jax.nn.softmax(logits), atol=1e-6)


def test_ids_are_never_mixed() -> None:
    changes = {"clients__num": 2, "model__name": "bag", "distill__mixup": 0.5}
    with pytest.raises(ConfigError, match=r"distill\.mixup = 0\.5: expected 0 for ids"):
        experiment_lib.build(small.config(**changes), (source("ids"), None))


def test_numbers_of_another_type_do_not_stand_for_bytes() -> None:
    row = np.array([[200, 3]])
    stored = as_stored("samples", row.astype(np.uint8), (2,), np.dtype(np.uint8))
    assert stored.dtype == np.uint8
    for dtype in (np.int64, np.float32):
        with pytest.raises(ConfigError, match=f"array of {dtype.__name__}.*type uint8"):
            as_stored("samples", row.astype(dtype), (2,), np.dtype(np.uint8))


@pytest.mark.parametrize("shape", [(5,), (2, 3), (4, 4, 1)])
def test_truths_are_numbers_to_predict_as_to_train_on(shape: tuple[int, ...]) -> None:
    truths = np.arange(3 * np.prod(shape)).reshape(3, *shape) % 2 == 0
    trained = as_samples(("data.name", "mine"), truths)
    stored = as_stored("samples", truths, shape, trained.dtype)
    assert stored.dtype == trained.dtype == np.float32
    np.testing.assert_array_equal(stored, trained)
    with pytest.raises(ConfigError, match="an array of bool': expected ids"):
        as_stored("samples", truths, shape, np.dtype(np.int32))


def test_labels_may_be_truths() -> None:
    rows, labels = np.zeros((4, 3)), np.array([True, False, True, True])
    source = mhd_jax.from_arrays("mine", (rows, labels), (rows, labels))
    assert source.num_classes == 2
    assert source.train.labels.tolist() == source.test.labels.tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize("row", [[-1, 0], [0, 2**32]])
def test_ids_to_predict_are_checked_as_those_to_train_on(row: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"samples = 'an array of int64': expected ids"):
        as_stored("samples", np.array([row]), (2,), np.dtype(np.int32))


def test_predictions_refuse_another_shape_and_numbers_for_ids(run: mhd_jax.Run) -> None:
    with pytest.raises(ConfigError, match=r"shape \(3, 4\)': expected \[N, 6\]"):
        run.predict(np.zeros((3, 4), int))
    with pytest.raises(ConfigError, match="an array of float64': expected ids, which are integers"):
        run.predict(np.zeros((3, LENGTH)))
    with pytest.raises(ConfigError, match="images = 'list': expected an array of samples, all of"):
        run.predict([[1, 2], [3]])  # type: ignore[arg-type]


def test_streamed_rows_are_the_resident_ones() -> None:
    settings: dict[str, Any] = {"clients__num": 2, "train__steps_per_call": 1}
    built = [
        experiment_lib.build(small.config(data__feed=feed, **settings), (source("table"), None))
        for feed in ("resident", "streaming")
    ]
    resident, streaming = built
    assert isinstance(streaming.feed, Streaming)
    fed = resident.federations[0]
    (position,), public = resident.feed.inputs(1, 2)
    ((rows, labels),), streamed = streaming.feed.inputs(1, 2)
    for client in range(2):
        owned = fed.partition.indices[client][position[0, 0, client]]
        np.testing.assert_array_equal(rows[0, 0, client], fed.source.train.images(owned))
        np.testing.assert_array_equal(labels[0, 0, client], fed.source.train.labels[owned])
    np.testing.assert_array_equal(
        streamed[0, 0], fed.public.images(fed.public_indices[public[0, 0]])
    )


@pytest.mark.parametrize("name", ["flip", "crop_flip", "random_resized_crop"])
@pytest.mark.parametrize("kind", ["table", "series"])
def test_augmentation_refuses_what_is_no_image(kind: str, name: str) -> None:
    shape = source(kind).image_shape
    with pytest.raises(ConfigError) as error:
        experiment_lib.build(small.config(clients__num=2, data__augment=name), (source(kind), None))
    assert str(error.value) == (
        f"data.augment = {name!r}: expected none for samples of shape {shape}: {name} changes "
        "images [H, W, C], which are uint8 or floating point"
    )


def test_ids_in_the_shape_of_images_are_none() -> None:
    with pytest.raises(ConfigError, match=r"'flip': .* which are uint8 or floating point"):
        augment.check("flip", (8, 8, 3), np.dtype(np.int32))
    augment.check("flip", (8, 8, 3), np.dtype(np.uint8))


def test_an_augmentation_of_ones_own_may_change_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment.AUGMENTS, "_pieces", dict(augment.AUGMENTS._pieces))
    augment.AUGMENTS.register("noise")(lambda key, x: x + jax.random.normal(key, x.shape))
    augment.AUGMENTS.register("halved")(lambda key, x: x[:2])
    experiment_lib.build(
        small.config(clients__num=2, data__augment="noise"), (source("table"), None)
    )
    with pytest.raises(ConfigError, match="one that leaves float32"):
        experiment_lib.build(
            small.config(clients__num=2, data__augment="halved"), (source("table"), None)
        )


def test_a_network_of_images_refuses_a_table() -> None:
    config = small.config(clients__num=2, model__name="cnn")
    with pytest.raises(ConfigError, match=r"'cnn': .*samples of shape \(5,\) and type float32"):
        experiment_lib.build(config, (source("table"), None))
    with pytest.raises(ConfigError, match=r"images have the shape \[H, W, C\], and this counts"):
        experiment_lib.build(config, (source("series"), None))


def test_our_networks_refuse_ids_as_a_table_of_integers_looks_like_them() -> None:
    with pytest.raises(ConfigError, match=r"model.name = 'mlp': .* Give a table as floating point"):
        experiment_lib.build(small.config(clients__num=2), (source("ids"), None))


def test_a_network_of_ids_is_told_that_8_bits_are_pixels(pieces: None) -> None:
    api.register("model.name", "bag", lambda settings: BagOfWords())
    labels = np.arange(ROWS) % 2
    given = samples("ids").astype(np.uint8), labels
    pixels = mhd_jax.from_arrays("pixels", given, given)
    with pytest.raises(ConfigError, match="'bag': .* float32 .*; uint8 is taken for pixels"):
        experiment_lib.build(small.config(clients__num=2, model__name="bag"), (pixels, None))


def test_ids_beyond_the_vocabulary_stop_the_run_at_once(pieces: None) -> None:
    labels = np.arange(ROWS) % 2
    given = samples("ids") + VOCABULARY, labels
    far = mhd_jax.from_arrays("far", given, given)
    config = small.config(clients__num=2, data__public_fraction=0.3)
    with pytest.raises(DivergedError, match="at step 0, before any update; .*ids beyond those"):
        mhd_jax.fit(config, source=far, model=BagOfWords)


def test_no_prediction_is_an_error(run: mhd_jax.Run, tmp_path: Path) -> None:
    given = samples("ids", 4)
    given[2] = VOCABULARY
    client = mhd_jax.load_client(run.export(0, tmp_path / "client"))
    for setting, predict in (("images", run.predict), ("samples", client.predict)):
        with pytest.raises(ConfigError, match=f"{setting} = 'row 2': .*are ids too large"):
            predict(given)


def test_frames_with_types_of_pandas_are_numbers_and_words_are_named() -> None:
    pandas = pytest.importorskip("pandas")
    where = ("clients", "north")
    frame = pandas.DataFrame({"age": [1, 2], "dose": [0.5, 2.5]}).convert_dtypes()
    assert str(frame.dtypes["dose"]) == "Float64"
    np.testing.assert_array_equal(as_samples(where, frame), [[1, 0.5], [2, 2.5]])
    with pytest.raises(ConfigError, match="numbers, not object in the columns ward"):
        as_samples(where, frame.assign(ward=["a", "b"]))
    missing = pandas.DataFrame({"age": pandas.array([1.5, None], "Float64")})
    with pytest.raises(ConfigError, match=r"1 of 2 rows have NaN or inf \(rows 1\)"):
        as_samples(where, missing)


def test_negative_ids_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"ids \(integers\) from 0 to 2\*\*31 - 1, not -1..4"):
        as_samples(("clients", "north"), np.array([[-1, 4]]))


def test_grey_images_and_series_are_told_apart_by_their_type() -> None:
    where = ("data.name", "mine")
    assert as_samples(where, np.zeros((2, 4, 4), np.uint8)).shape == (2, 4, 4, 1)
    assert as_samples(where, np.zeros((2, 4, 3))).shape == (2, 4, 3)


def test_the_embedded_table_has_four_silos_of_unlike_labels() -> None:
    config = small.config(
        data__name="breast_cancer", partition__name="by_key", data__public_fraction=0.2
    )
    found = experiment_lib.build(config)
    fed = found.federations[0]
    assert found.client_names == ("smallest", "small", "large", "largest")
    counts = fed.partition.histogram(fed.source.train.labels, 2)
    malignant = counts[:, 0] / counts.sum(axis=1)
    assert malignant[0] < 0.05 and malignant[3] > 0.95
    assert (len(fed.source.test), fed.source.class_names) == (150, ("malignant", "benign"))
    assert estimate.data_sets(config) is None
