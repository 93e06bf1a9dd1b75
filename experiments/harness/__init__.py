# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What runs a study, keeps its records and shows them; each module knows those before it only.

`presets` (data sets and scales), `study` (what a study, a cell and a record are), `records`,
`tables`, `plots`, `sweep` (the command line of every study) and, above the studies, `render`.
"""
