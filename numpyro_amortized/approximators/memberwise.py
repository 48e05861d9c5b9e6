# SPDX-License-Identifier: Apache-2.0
"""One optimizer for each of several sets of parameters."""

from collections.abc import Sequence
from typing import Any

import optax
from flax import nnx

__all__ = ["memberwise"]


def memberwise(
    optimizer: optax.GradientTransformation, names: Sequence[str]
) -> optax.GradientTransformation:
    """Optimizes each part of the parameters as if it were alone: none clips another's steps.

    :param optimizer: of one part.
    :param names: of the parts.
    """

    def init(params: nnx.State) -> dict[str, Any]:
        return {name: optimizer.init(params[name]) for name in names}

    def update(
        updates: nnx.State, state: dict[str, Any], params: nnx.State | None = None
    ) -> tuple[nnx.State, dict[str, Any]]:
        given = {name: None if params is None else params[name] for name in names}
        pairs = {n: optimizer.update(updates[n], state[n], given[n]) for n in names}
        return nnx.State({n: u for n, (u, _) in pairs.items()}), {
            n: s for n, (_, s) in pairs.items()
        }

    return optax.GradientTransformation(init, update)
