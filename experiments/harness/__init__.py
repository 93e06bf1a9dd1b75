# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What runs a study, keeps its records and shows them.

What there is to run: `presets` (data sets and scales), with `many` (digits for any number of
clients); `study` (what a study, a cell and a record are); `candidates` (methods and settings that
several studies compare).

How it is run: `runs` (one folder per run, so that none is made twice), `workers` (several at once),
`sweep` (the command line of every study), `compiling` (quickly, for trials and tests) and, for
measurements, `stepping` (the compiled step without the loop around it).

What comes out: `records`, `tables`, `plots`, `worst` (settings judged by their worst row),
`compare` (with the committed records) and `render` (into the pages).

No module here knows a study but `render`, which shows them all, and none imports in a circle.
"""
