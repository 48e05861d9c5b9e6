# SPDX-License-Identifier: Apache-2.0
"""Which sites an adapter maps element by element, each increasing in one network variable."""

from collections.abc import Callable

import jax
import numpy as np
from jax import Array

from numpyro_amortized.datasets import Batch

__all__ = ["increasing_sites"]


def increasing_sites(
    inverse: Callable[[Array, Batch], Batch],
    vectors: Array,
    given: Batch,
    names: tuple[str, ...],
) -> dict[str, np.ndarray]:
    """
    Sites whose every number is an increasing function of one network variable, its own.

    Quantiles go through such a map exactly. The dependence is read from the Jacobian.

    :param inverse: from one vector ``(size,)`` and what is given to the sites.
    :param vectors: where the Jacobian is taken, shape ``(num_vectors, size)``.
    :param given: values ``(num_vectors, *shape)`` of the context.
    :param names: of the sites.
    :return: name to the places of its variables in the vector, of the site's shape.
    """

    def chosen(vector: Array, given: Batch) -> Batch:
        values = inverse(vector, given)
        return {name: values[name] for name in names}

    jacobians = jax.jit(jax.vmap(jax.jacfwd(chosen)))(vectors, given)
    places = {}
    for name, jacobian in jacobians.items():
        slopes = np.asarray(jacobian)
        depends = (slopes != 0).any(0)
        shape = depends.shape[:-1]
        own = depends.reshape(-1, depends.shape[-1]).argmax(-1)
        alone = depends.sum(-1).max() == 1 and len(set(own.tolist())) == own.size
        if alone and (slopes >= 0).all():
            places[name] = own.reshape(shape)
    return places
