# SPDX-License-Identifier: Apache-2.0
"""Adding, removing and requiring entries."""

from collections.abc import Sequence
from typing import Any

from jax import Array

from numpyro_amortized.adapters.base import Data


def all_or_none(data: Data, names: Sequence[str], step: str) -> bool:
    """Whether the entries are present.

    :raises ValueError: where only some are.
    """
    missing = [name for name in names if name not in data]
    if missing and len(missing) < len(names):
        raise ValueError(f"Adapter: {step}: expected all of {list(names)}, missing: {missing}.")
    return not missing


def without(data: Data, names: Sequence[str]) -> dict[str, Array]:
    """The other entries."""
    return {name: value for name, value in data.items() if name not in names}


def with_entry(data: dict[str, Array], name: str, value: Any) -> dict[str, Array]:
    """One more entry.

    :raises ValueError: where there is one of that name.
    """
    if name in data:
        raise ValueError(
            f"Adapter: an entry '{name}' is there already; drop or rename it first, or choose "
            "another name."
        )
    return data | {name: value}
