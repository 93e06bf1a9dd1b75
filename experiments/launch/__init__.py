# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Starts a run somewhere else: on TPU VMs, under Slurm, on Kubernetes.

    python -m experiments.launch.tpu up --name=mhd --zone=us-west4-a --type=v5litepod-8 \\
        --config=configs/digits.py --workdir=gs://my-bucket/runs/digits

Every script takes `--config` and `--config.name=value` as `mhd_jax.main` does and checks them
before anything is asked of a cluster. `--dry_run` prints the commands and runs none of them.
"""
