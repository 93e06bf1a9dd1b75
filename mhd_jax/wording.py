# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Lists and causes in messages, shortened where they are long."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

LISTED = 10
"""Numbers that a message names."""


def first_few(names: Sequence[str], most: int, between: str = ", ") -> str:
    """All names, or of more than `most` the first ones and how many more there are.

    >>> first_few("ab", 3), first_few("abcde", 3), first_few("abcde", 3, between="; ")
    ('a, b', 'a, b, c and 2 more', 'a; b; c; and 2 more')
    """
    shown = between.join(names[:most])
    if len(names) <= most:
        return shown
    return f"{shown}{' ' if between == ', ' else between}and {len(names) - most:,} more"


def listed(numbers: Iterable[int]) -> str:
    """Numbers of clients or classes in ascending order; of many the first few and how many more.

    >>> listed({4, 2}), listed(range(1000))
    ('2, 4', '0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 990 more')
    """
    return first_few([str(number) for number in sorted(numbers)], LISTED)


def brief(error: BaseException) -> str:
    """A message on one line; the long ones of TensorStore have the cause at their end.

    >>> brief(ValueError("one,\\n  two"))
    'ValueError: one, two'
    """
    text = " ".join(str(error).split())
    if len(text) > 500:
        text = f"{text[:200]} ... {text[-300:]}"
    return f"{type(error).__name__}: {text}"
