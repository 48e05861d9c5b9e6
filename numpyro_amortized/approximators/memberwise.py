# SPDX-License-Identifier: Apache-2.0
"""One optimizer for each of several sets of parameters."""

from collections.abc import Sequence
from typing import Any

import jax
import optax

__all__ = ["memberwise"]


def memberwise(
    optimizer: optax.GradientTransformation, names: Sequence[str]
) -> optax.GradientTransformation:
    """Optimizes each part of the parameters as if it were alone: none clips another's steps.

    :param optimizer: of one part.
    :param names: of the parts.
    """

    def parts(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key, params)

    return optax.partition(dict.fromkeys(names, optimizer), parts)
