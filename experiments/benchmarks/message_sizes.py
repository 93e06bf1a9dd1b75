# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What a client would send of large networks in an epoch, from shapes alone: nothing is trained.

python -m experiments.benchmarks.message_sizes --out=experiments/results/benchmarks
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.benchmarks import timing
from experiments.benchmarks.timing import Benchmark, Effort, Record
from experiments.harness import tables
from experiments.harness.presets import PRESETS
from mhd_jax import estimate
from mhd_jax import experiment as experiment_lib
from mhd_jax.estimate import KNOWN
from mhd_jax.models import MODELS, ModelSettings, shapes
from mhd_jax.models.vit import ViT

NETWORKS = {"resnet18": "ResNet-18", "resnet50": "ResNet-50", "vit_b16": "ViT-B/16"}
MEMORY = 2**50  # nothing is read, whatever would fit

_INT4 = {"exchange.encoding": "int4", "exchange.embedding_width": 16}
FORMS: dict[str, dict[str, Any]] = {
    "MHD, float32": {},
    "MHD, int8": {"exchange.encoding": "int8"},
    "MHD, int4, embeddings in 16 numbers": _INT4,
    "MHD, int4, 16 numbers, every 8th step": {**_INT4, "exchange.every": 8},
    "MHD, int4, 16 numbers, sent once, read 8 times": {**_INT4, "exchange.cache": 8},
    "codistillation": {"method": "codistillation"},
    "FedMD": {"method": "fedmd"},
    "FedAvg every 50 steps": {"method": "fedavg", "average.every": 50},
    "FedAvg every 200 steps": {"method": "fedavg", "average.every": 200},
    "FedAvg every 200 steps, bfloat16": {
        "method": "fedavg", "average.every": 200, "exchange.encoding": "bfloat16",
    },
    "FedAvg every 1,000 steps": {"method": "fedavg", "average.every": 1000},
}  # fmt: skip


def vit_b16(settings: ModelSettings) -> ViT:
    """The "base" size: 12 blocks of 768 in patches of 16 pixels, 86 million parameters."""
    return ViT(768, 12, settings.compute_dtype, patch=16, heads=12)


def measure(effort: Effort) -> dict[str, Any]:
    """Parameters by network, and bytes a client and epoch by network and form."""
    networks = list(NETWORKS)[:1] if effort.quick else NETWORKS
    if "vit_b16" in networks:
        MODELS.register("vit_b16")(vit_b16)
    found: dict[str, Any] = {"steps": 0, "parameters": {}, "bytes": {}}
    for network in networks:
        found["bytes"][network] = {}
        for form, changes in FORMS.items():
            config = PRESETS["imagenet"].base(
                {**changes, "model.name": network, "isolated_baseline": False,
                 "data.split": "train[:1%]", "parallel.conv_lowering": "grouped",
                 "parallel.client_devices": 1}
            )  # fmt: skip
            made = experiment_lib.build(config, estimate.data_sets(config), MEMORY)
            samples = KNOWN[config.data.name][2] * (1 - config.data.public_fraction)
            clients = config.clients.num
            found["steps"] = steps = int(samples / clients / config.data.batch_size)
            found["bytes"][network][form] = made.ledger.sent(steps) / clients
        (model,) = made.parts.models
        found["parameters"][network] = shapes.count_params(model, made.sample)
    return found


def table(records: Sequence[Record]) -> str:
    """A row for every form, a column for every network, in megabytes."""
    results = records[0]["results"]
    names = [
        f"{NETWORKS[network]}, {tables.short(size / 1e6)} million parameters"
        for network, size in results["parameters"].items()
    ]
    lines = [
        (form, *(tables.short(sent[form] / 1e6) for sent in results["bytes"].values()))
        for form in FORMS
    ]
    said = (
        f"MB that one of 8 clients sends in an epoch of its private data, {results['steps']:,} "
        "steps of 32 samples, on ImageNet with 4 auxiliary heads, by the ledger; parameters are "
        "those of a client with its main head. Nothing was trained."
    )
    return timing.markdown(("MB an epoch", *names), lines, said, records)


BENCHMARK = Benchmark(
    "message_sizes",
    "What a client would send of large networks",
    timing.one_case("imagenet", measure),
    table,
)


if __name__ == "__main__":
    timing.main(BENCHMARK)
