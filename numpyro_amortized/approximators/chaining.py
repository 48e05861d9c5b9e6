# SPDX-License-Identifier: Apache-2.0
"""What the next observed site of a chain is given."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from numpyro_amortized.adapters.observed_variables import CollectObservations
from numpyro_amortized.simulators.tracing import Site

__all__ = ["chained"]


def chained(
    sites: Mapping[str, Site], observations: CollectObservations, values: Mapping[str, ArrayLike]
) -> tuple[dict[str, Array], Array, int]:
    """Values of latents and context with their batch axes, and the variables of earlier sites.

    :param sites: latents and context are given, observed sites are inferred.
    :param observations: the maps of the observed sites, in their order.
    :param values: ``(*batch, *shape)``, the batch axes broadcast.
    :return: the values, the earlier variables ``(*batch, size)``, and which site comes next.
    :raises ValueError: where names or shapes do not fit.
    """
    observed = [one.name for one in observations.maps]
    needed = [name for name, site in sites.items() if site.is_given]
    index = next((i for i, name in enumerate(observed) if name not in values), len(observed))
    expected = {*needed, *observed[:index]}
    if set(values) != expected or index == len(observed):
        raise ValueError(
            f"likelihood: expected values of {needed}, and of the first of the observed sites "
            f"{observed} where another one is asked for, got {list(values)}."
        )
    arrays = {name: jnp.asarray(values[name]) for name in values}
    ranks = {name: arrays[name].ndim - len(sites[name].shape) for name in arrays}
    fits = [r >= 0 and arrays[n].shape[r:] == sites[n].shape for n, r in ranks.items()]
    try:
        if not all(fits):
            raise ValueError
        batch = jnp.broadcast_shapes(*(arrays[n].shape[: ranks[n]] for n in arrays))
    except ValueError:
        shapes = {name: (array.shape, sites[name].shape) for name, array in arrays.items()}
        raise ValueError(
            "likelihood: expected values with batch axes that broadcast, before those of one "
            f"observation; got shapes, and those of one observation: {shapes}."
        ) from None
    # batch axes that the latents lack stay away: they are encoded once
    own = jnp.broadcast_shapes(*(arrays[n].shape[: ranks[n]] for n in needed))
    given = {n: jnp.broadcast_to(arrays[n], own + sites[n].shape) for n in needed}
    pieces = [jnp.zeros((*batch, 0), jnp.result_type(float))]
    for one in observations.maps[:index]:
        forward = one.forward
        for _ in range(ranks[one.name]):
            forward = jax.vmap(forward)
        variables = forward(arrays[one.name])[0]
        pieces.append(jnp.broadcast_to(variables, (*batch, one.size)))
    return given, jnp.concatenate(pieces, axis=-1), index
