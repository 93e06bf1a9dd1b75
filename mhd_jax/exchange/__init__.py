# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What leaves a client, in which form, when others read it, and how many bytes that is.

Publishing is the only exchange: encoded predictions (and embeddings) on the public batch. Their
form is in `encodings`, who reads them in `readers`, what they weigh in `ledger`.
"""

from mhd_jax.exchange.encodings import (
    ENCODINGS,
    AllClasses,
    Encoding,
    Levels,
    TopK,
    from_wire,
    make_encoding,
    projection,
    to_wire,
)
from mhd_jax.exchange.ledger import Ledger, message_bytes
from mhd_jax.exchange.readers import Fresh, Reader, Reading, RoundStart, Stale, make_readers

__all__ = [
    "ENCODINGS",
    "AllClasses",
    "Encoding",
    "Fresh",
    "Ledger",
    "Levels",
    "Reader",
    "Reading",
    "RoundStart",
    "Stale",
    "TopK",
    "from_wire",
    "make_encoding",
    "make_readers",
    "message_bytes",
    "projection",
    "to_wire",
]
