# SPDX-License-Identifier: Apache-2.0
"""The variables of networks as named arrays, and back."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array

__all__ = ["named_arrays", "with_arrays"]


def named_arrays(modules: nnx.Dict) -> dict[str, Array]:
    """:return: path of each variable, such as ``inference_network/layers/0``, to its value."""
    return {_name(path): x for path, x in _leaves(nnx.state(modules))}


def with_arrays(modules: nnx.Dict, arrays: Mapping[str, Any]) -> nnx.Dict:
    """
    Networks like those given, which are not changed.

    :param modules: networks of the same shapes.
    :param arrays: from :func:`named_arrays`.
    :raises ValueError: where the networks have other variables, naming them.
    """
    graphdef, state = nnx.split(modules)
    leaves = {_name(path): x for path, x in _leaves(state)}
    expected = {name: _layout(x) for name, x in leaves.items()}
    got = {name: _layout(x) for name, x in arrays.items()}
    if differing := [n for n in {**expected, **got} if expected.get(n) != got.get(n)]:
        name = differing[0]
        raise ValueError(
            f"{len(differing)} variables are not those of the networks that were saved; "
            f"'{name}': expected {got.get(name, 'none')}, got {expected.get(name, 'none')}. "
            "Pass the same networks as custom_objects, and use the versions of the packages with "
            "which they were saved."
        )
    values = [arrays[name] for name in leaves]
    structure = jax.tree.structure(state)
    return nnx.merge(graphdef, jax.tree.unflatten(structure, jax.device_put(values)))


def _leaves(state: nnx.State) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_flatten_with_path(state)[0]


def _name(path: Any) -> str:
    keys = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path)
    return "/".join(str(key) for key in keys)


def _layout(x: Any) -> str:
    return f"{np.shape(x)} {x.dtype}"
