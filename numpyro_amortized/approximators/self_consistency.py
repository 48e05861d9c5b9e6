# SPDX-License-Identifier: Apache-2.0
"""A training loss that asks the model's own density, and needs no latents."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax, random
from jax.typing import ArrayLike

from numpyro_amortized.approximators.conditions import check_positive, given_names
from numpyro_amortized.datasets import Batch

if TYPE_CHECKING:
    from numpyro_amortized.approximators.base import Approximator
    from numpyro_amortized.approximators.density import DensityApproximator
    from numpyro_amortized.approximators.vector_density import VectorDensity

__all__ = ["SelfConsistency"]

_FLOOR = 1e4  # log densities; those of draws of an exact posterior differ by far less
Penalty = Callable[[nnx.Dict, Array, Batch], Array]


@final
@dataclass(frozen=True, eq=False)
class SelfConsistency:
    """Bayes' rule as a loss, for ``fit(self_consistency=...)`` [1].

    Where the posterior is exact, ``log p(latents) + log p(data | latents) - log q(latents | data)``
    is the same for all latents: the log evidence of the data. The loss is the mean over data sets
    of ``2 (sqrt(1 + v) - 1)``, with the variance ``v`` of that over draws of ``q`` as it is, which
    are held fixed: ``v`` where it is small, but a data set whose posterior is far off does not
    outweigh all others [3]. It needs data without their latents: those of simulations, and real
    ones, also far from what the model simulates [2].

    The variance says little as long as posteriors are far off. Train without it first, then go on
    with it. Data sets at which the model has no density at any draw have no part in a step.

    :param weight: factor of the loss.
    :param num_samples: draws of each posterior.
    :param num_datasets: data sets of a step, simulated ones and as many of ``data``. They cost
        ``num_samples`` densities of the network and of the model each.
    :param data: unlabelled data sets, values of the observed sites with a leading axis.
    :raises ValueError: where a number is not positive, or there are less than two draws.

    **References**

    1. *Leveraging self-consistency for data-efficient amortized Bayesian inference*, Schmitt,
       Ivanova, Habermann, Köthe, Bürkner and Radev (2024).
    2. *Robust amortized Bayesian inference with self-consistency losses on unlabeled data*, Mishra,
       Habermann, Schmitt, Radev and Bürkner (2025).
    3. *Deterministic edge-preserving regularization in computed imaging*, Charbonnier,
       Blanc-Féraud, Aubert and Barlaud (1997).

    **Example**

    .. doctest::

        >>> import numpyro, numpyro.distributions as dist
        >>> from jax import numpy as jnp, random
        >>> import numpyro_amortized as npa
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0, 1))
        ...     with numpyro.plate("N", 5):
        ...         numpyro.sample("y", dist.Normal(mu, 1), obs=y)
        >>> approximator = npa.amortize(model, jnp.zeros(5))
        >>> run = {"epochs": 1, "num_batches": 2, "progress_bar": False}
        >>> history = approximator.fit(random.key(0), **run)
        >>> unlabelled = npa.SelfConsistency(data={"y": jnp.full((20, 5), 4.0)})
        >>> history = approximator.fit(random.key(1), self_consistency=unlabelled, **run)
    """

    weight: float = 1.0
    num_samples: int = 16
    num_datasets: int = 32
    data: Mapping[str, ArrayLike] | None = None

    def __post_init__(self) -> None:
        check_positive(num_samples=self.num_samples, num_datasets=self.num_datasets)
        if self.num_samples < 2:
            raise ValueError(
                f"num_samples: expected at least 2, of which there is a variance, got "
                f"{self.num_samples}."
            )
        if not (np.isfinite(self.weight) and self.weight > 0):
            raise ValueError(f"weight: expected a positive number, got {self.weight!r}.")

    def penalty(self, approximator: "Approximator") -> Penalty:
        """The loss of networks, a key and network inputs that hold ``site_values``.

        :param approximator: whose networks are trained.
        :raises TypeError: where it has no density, or is none of a model.
        :raises ValueError: where the model's density is not known, with the site and the reason,
            or data do not fit.
        """
        density = _density(approximator)
        data = None if self.data is None else _batch(density.approximator, self.data)

        def penalty(modules: nnx.Dict, rng_key: Array, inputs: Batch) -> Array:
            simulated_key, choice_key, real_key = random.split(rng_key, 3)
            kept: Any = inputs["site_values"]
            names = given_names(density.approximator.sites)
            simulated = {name: kept[name][: self.num_datasets] for name in names}
            loss = self._inconsistency(density, modules, simulated_key, simulated)
            if data is not None:
                length = len(next(iter(data.values())))
                rows = random.permutation(choice_key, length)[: self.num_datasets]
                chosen = {name: x[rows] for name, x in data.items()}
                loss += self._inconsistency(density, modules, real_key, chosen)
            return self.weight * loss

        return penalty

    def _inconsistency(
        self, density: "VectorDensity", modules: nnx.Dict, rng_key: Array, given: Batch
    ) -> Array:
        """Over data sets, the mean of bounded variances of log joint density less log posterior."""
        network = density.approximator.density(modules)
        context = density.approximator.context(modules, given)
        # no gradient of drawing: it may be infinite, and zero times infinity is no number
        graphdef, state = nnx.split(network)
        held = nnx.merge(graphdef, jax.tree.map(lax.stop_gradient, state))
        repeated = jnp.broadcast_to(context, (self.num_samples, *context.shape))
        vectors = lax.stop_gradient(held.sample(rng_key, lax.stop_gradient(repeated)))
        each = jax.vmap(jax.vmap(density), in_axes=(0, None, None))
        log_p = lax.stop_gradient(each(vectors, given, given))
        log_p = jnp.where(jnp.isfinite(vectors).all(-1), log_p, -jnp.inf)
        vectors = jnp.where(jnp.isfinite(vectors), vectors, 0)
        return jnp.mean(_bounded(_variance(log_p, network.log_prob(vectors, context))))


def _variance(log_p: Array, log_q: Array) -> Array:
    """Of the difference over the first axis.

    A draw at which the model has next to no density counts as one of ``exp(-1e4)`` of the best:
    of the exact posterior there is none, and a square would overflow.
    """
    known = jnp.isfinite(log_p.max(0))  # not where the model has no density at any draw
    log_p = jnp.where(known, log_p, 0)
    floored = jnp.maximum(log_p, log_p.max(0) - _FLOOR)
    return jnp.where(known, jnp.var(floored - log_q, axis=0, ddof=1), 0)


def _bounded(variance: Array) -> Array:
    """The variance where it is small, twice the standard deviation where it is large [3].

    It increases with the variance, from zero at zero: the minimum is the same. But the pull of a
    data set does not grow with how far off its posterior is.
    """
    return 2 * variance / (1 + jnp.sqrt(1 + variance))


def _density(approximator: "Approximator") -> "VectorDensity":
    """The joint density of an approximator's model.

    :raises TypeError: where it has no density, or is none of a model.
    :raises ValueError: where the density is not known.
    """
    from numpyro_amortized.approximators.density import DensityApproximator

    if not isinstance(approximator, DensityApproximator):
        raise TypeError(
            "self_consistency: expected an approximator with a posterior density, got "
            f"{type(approximator).__name__}."
        )
    if approximator.adapter.observations is not None:
        raise ValueError(
            "self_consistency: expected an approximator of a posterior, got one of a likelihood."
        )
    return approximator.data_density("self_consistency")


def _batch(approximator: "DensityApproximator", data: Mapping[str, ArrayLike]) -> Batch:
    checked = approximator.check_conditions(data)
    if not checked.is_batch:
        raise ValueError(
            "self_consistency: expected data sets with a leading axis, got a single one. Add the "
            "axis: {name: value[None] for name, value in data.items()}."
        )
    return checked.values
