# SPDX-License-Identifier: Apache-2.0
"""What networks are conditioned on: vectors of conditions, and summaries of the rest."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from numpyro_amortized.datasets import Batch

__all__ = [
    "NetworkSpec",
    "build_summary",
    "context_of",
    "make_network",
    "network_name",
    "with_summaries",
]

NetworkSpec = nnx.Module | Callable[..., nnx.Module]


def make_network(network: NetworkSpec, rngs: nnx.Rngs, **sizes: Any) -> nnx.Module:
    """A ready module as it is; a class or a partial of one with its sizes.

    :raises TypeError: where it is none of these.
    """
    if not callable(network):
        raise TypeError(
            "expected a network: a class such as networks.CouplingFlow, a functools.partial of "
            f"one, or a ready module, got {network!r}."
        )
    return network if isinstance(network, nnx.Module) else network(**sizes, rngs=rngs)


def build_summary(
    network: NetworkSpec, row: Batch, rngs: nnx.Rngs
) -> tuple[dict[str, nnx.Module], int]:
    """The summary network, where there is something to summarize, and the size of the context.

    :param network: a class, a partial of one, or a ready module.
    :param row: shapes of one row of network inputs.
    :param rngs: random streams of the initial parameters.
    """
    modules, size = {}, 0
    if "inference_conditions" in row:
        size += row["inference_conditions"].shape[-1]
    if "summary_variables" in row:
        arrays, mask = row["summary_variables"], row.get("summary_mask")
        _check_mask(arrays, mask)
        num_features = jax.tree.map(lambda array: array.shape[-1], arrays)
        summary = make_network(network, rngs, size=num_features)
        modules["summary_network"] = summary
        size += jax.eval_shape(lambda x, m: summary(x, m), arrays, mask).shape[-1]
    return modules, size


def context_of(modules: nnx.Dict, inputs: Batch) -> Array:
    """What the other networks are conditioned on, shape ``(*batch, condition_size)``.

    :param modules: the networks.
    :param inputs: those of the networks.
    """
    parts = []
    if "inference_conditions" in inputs:
        parts.append(inputs["inference_conditions"])
    inputs = with_summaries(modules, inputs)
    if _SUMMARIES in inputs:
        parts.append(inputs[_SUMMARIES])
    return jnp.concatenate(parts, axis=-1)


def with_summaries(modules: nnx.Dict, inputs: Batch) -> Batch:
    """Inputs with ``summaries``, ``(*batch, summary_size)``, in the place of what is summarized."""
    if "summary_variables" not in inputs:
        return inputs
    rest = {name: x for name, x in inputs.items() if name not in _SUMMARIZED}
    mask = inputs.get("summary_mask")
    return rest | {_SUMMARIES: modules["summary_network"](inputs["summary_variables"], mask)}


_SUMMARIES = "summaries"
_SUMMARIZED = ("summary_variables", "summary_mask")


def _check_mask(arrays: Any, mask: Any) -> None:
    if mask is None or (not isinstance(arrays, Mapping) and not isinstance(mask, Mapping)):
        return
    names = sorted(arrays) if isinstance(arrays, Mapping) else None
    masked = sorted(mask) if isinstance(mask, Mapping) else None
    if names is None or masked is None or not set(masked) <= set(names):
        raise ValueError(
            "adapter: expected `summary_mask` to have the form of `summary_variables`, "
            f"{names or 'one array'}, got masks of {masked or 'one array'}."
        )


def network_name(network: NetworkSpec) -> str:
    """How a network is called when it is printed."""
    if isinstance(network, partial):
        options = ", ".join(f"{name}={value!r}" for name, value in network.keywords.items())
        return f"{network_name(network.func)}({options})"
    return network.__name__ if isinstance(network, type) else type(network).__name__
