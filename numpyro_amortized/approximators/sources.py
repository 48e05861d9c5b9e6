# SPDX-License-Identifier: Apache-2.0
"""What an approximator may learn from, and what its sites are."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jax import Array, random
from jax.interpreters import partial_eval

from numpyro_amortized.adapters.adapter import Adapter
from numpyro_amortized.adapters.binding import Shapes
from numpyro_amortized.datasets import Dataset
from numpyro_amortized.simulators.base import Simulator
from numpyro_amortized.simulators.model import ModelSimulator
from numpyro_amortized.simulators.tracing import Site

__all__ = ["Source", "as_source", "bound_adapter", "check_target", "source_sites"]

Source = Simulator | Dataset
_INPUTS = ("inference_conditions", "summary_variables", "summary_mask")
_NUM_DRAWS = 1000  # that fit the moments of an adapter


def as_source(source: Source | Callable[[], object]) -> Source:
    """
    :param source: a simulator, a data set, or a NumPyro model without arguments.
    :return: the simulator or data set.
    :raises TypeError: for anything else.
    """
    if isinstance(source, Simulator | Dataset):
        return source
    if not callable(source):
        raise TypeError(
            "source: expected a simulator, a data set or a NumPyro model without arguments, got "
            f"{type(source).__name__}. Wrap a model with arguments: ModelSimulator(model, *args)."
        )
    return ModelSimulator(source)


def bound_adapter(source: Source, adapter: Adapter) -> Adapter:
    """
    The adapter with all shapes known and all moments fitted, by draws from the source.

    :param source: a simulator or data set.
    :param adapter: values to network inputs.
    """
    if adapter.is_bound:
        return adapter
    draws = source.head if isinstance(source, Dataset) else partial(source.sample, random.key(23))
    return adapter.bind({n: jnp.asarray(x) for n, x in draws(_NUM_DRAWS).items()})


def source_sites(
    source: Source, adapter: Adapter, target: str = "inference_variables"
) -> Mapping[str, Site]:
    """
    The sites of a source. Without a model, and for a likelihood, the adapter tells their roles:
    what comes back from the target is latent, what goes into the conditions is observed.

    :param source: a simulator or data set.
    :param adapter: its values to network inputs, bound.
    :param target: name of the network input that is learned.
    :raises ValueError: where the adapter makes no such input.
    """
    if isinstance(source, ModelSimulator) and adapter.observations is None:
        return source.sites
    shapes = adapter.shapes
    row = jax.eval_shape(adapter.forward, shapes)
    check_target(row, target)
    variables = {target: row[target]}
    latent = jax.eval_shape(adapter.inverse, variables)
    observed = _used(adapter, shapes)
    roles = {name: "latent" if name in latent else "deterministic" for name in shapes}
    roles |= dict.fromkeys(observed, "observed")
    return MappingProxyType(
        {
            name: Site(name, roles[name], x.shape, x.dtype, None, (), x.ndim, has_density=False)
            for name, x in shapes.items()
        }
    )


def check_target(row: Shapes, target: str) -> None:
    """
    :param row: network inputs.
    :param target: name of the one that is learned.
    :raises ValueError: where it is missing.
    """
    if target not in row:
        raise ValueError(
            f"adapter: expected `{target}` among its outputs, got {list(row)}. Name them: "
            f"adapter.concatenate([...], into='{target}')."
        )


def _used(adapter: Adapter, shapes: Shapes) -> list[str]:
    """Names of the values that the conditions depend on."""

    def conditions(values: Mapping[str, Array]) -> list[Array]:
        inputs = adapter.forward(values)
        return [inputs[name] for name in _INPUTS if name in inputs]

    jaxpr = jax.make_jaxpr(conditions)(shapes).jaxpr
    _, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return [name for name, is_used in zip(sorted(shapes), used, strict=True) if is_used]
