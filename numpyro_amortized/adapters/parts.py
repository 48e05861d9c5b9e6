# SPDX-License-Identifier: Apache-2.0
"""What the inference variables of a likelihood consist of, in their order."""

from typing import NamedTuple


class Numbers(NamedTuple):
    """Real numbers with a joint density."""

    size: int


class Category(NamedTuple):
    """One of a few categories, the variable being its index from 0."""

    num_categories: int
    size: int = 1


class Count(NamedTuple):
    """A whole number between bounds, which may be infinite.

    ``center`` and ``spread`` are of typical counts.
    """

    lower: float
    upper: float
    center: float
    spread: float
    size: int = 1


Part = Numbers | Category | Count
