# SPDX-License-Identifier: Apache-2.0
"""Densities of vectors that mix categories, counts and real numbers."""

from collections.abc import Sequence
from functools import partial
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, random
from jax.scipy.special import log_ndtr

from numpyro_amortized.adapters.parts import Category, Count, Numbers, Part
from numpyro_amortized.networks.base import DensityNetwork
from numpyro_amortized.networks.coupling_flow import CouplingFlow
from numpyro_amortized.networks.mlp import MLP

_LEAST_MASS = -1e-6  # of the log ratio of two probabilities that differ by a bin's: its float32


@final
class Categorical(DensityNetwork):
    """Probabilities of categories, by a softmax.

    :param num_categories: their number; the variable is the index.
    :param condition_size: length of the context.
    :param widths: of the hidden layers.
    :param rngs: random streams of the initial parameters.
    """

    def __init__(
        self,
        num_categories: int,
        condition_size: int,
        *,
        widths: Sequence[int] = (64, 64),
        rngs: nnx.Rngs,
    ) -> None:
        self.size, self.condition_size = 1, condition_size
        self.logits = MLP(
            0, num_categories, context_size=condition_size, widths=widths, zero_init=True, rngs=rngs
        )

    def log_prob(self, variables: Array, context: Array) -> Array:
        log_probs = jax.nn.log_softmax(self.logits(None, context))
        chosen = jax.nn.one_hot(_index(variables[..., 0]), log_probs.shape[-1])
        return jnp.max(jnp.where(chosen > 0, log_probs, -jnp.inf), axis=-1)

    def loss(self, rng_key: Array, variables: Array, context: Array) -> Array:
        return -self.log_prob(variables, context)

    def sample(self, rng_key: Array, context: Array) -> Array:
        index = random.categorical(rng_key, self.logits(None, context))
        return index[..., None].astype(context.dtype)

    def sample_and_log_prob(self, rng_key: Array, context: Array) -> tuple[Array, Array]:
        draws = self.sample(rng_key, context)
        return draws, self.log_prob(draws, context)


@final
class Discretized(DensityNetwork):
    """Probabilities of counts: a count has that of its bin under a continuous density [1].

    The bin of ``k`` reaches from ``k - 1/2`` to ``k + 1/2``, those of the bounds reach to infinity:
    the probabilities add up to one exactly.

    :param part: the counts' bounds, and where typical ones are.
    :param condition_size: length of the context.
    :param flow: a coupling flow, or a partial of one, of one variable.
    :param rngs: random streams of the initial parameters.

    **References**

    1. *PixelCNN++*, Salimans, Karpathy, Chen and Kingma (2017), section 2.1.
    """

    def __init__(
        self, part: Count, condition_size: int, *, flow: Any = CouplingFlow, rngs: nnx.Rngs
    ) -> None:
        self.size, self.condition_size = 1, condition_size
        self.part = nnx.static(part)
        self.flow = flow(1, condition_size, rngs=rngs)

    def log_prob(self, variables: Array, context: Array) -> Array:
        count = jnp.round(variables)
        low, high = (
            self.flow.normalize(scaled_count(self.part, count + half), context)[0][..., 0]
            for half in (-0.5, 0.5)
        )
        low = jnp.where(count[..., 0] <= self.part.lower, -jnp.inf, low)
        high = jnp.where(count[..., 0] >= self.part.upper, jnp.inf, high)
        within = (count >= self.part.lower) & (count <= self.part.upper)
        return jnp.where(within[..., 0], _log_mass(low, high), -jnp.inf)

    def loss(self, rng_key: Array, variables: Array, context: Array) -> Array:
        return -self.log_prob(variables, context)

    def sample(self, rng_key: Array, context: Array) -> Array:
        z = self.flow.sample(rng_key, context)
        count = jnp.round(self.part.center + self.part.spread * jnp.sinh(z))
        return jnp.clip(count, self.part.lower, self.part.upper)

    def sample_and_log_prob(self, rng_key: Array, context: Array) -> tuple[Array, Array]:
        draws = self.sample(rng_key, context)
        return draws, self.log_prob(draws, context)


def scaled_count(part: Count, count: Array) -> Array:
    """Counts to numbers of order one, monotone."""
    return jnp.arcsinh((count - part.center) / part.spread)


def _log_mass(low: Array, high: Array) -> Array:
    """Log of the standard normal's mass between two numbers, from the nearer tail."""
    flip = low + high > 0
    low, high = jnp.where(flip, -high, low), jnp.where(flip, -low, high)
    # the inner `where` keeps gradients finite where there is no lower end
    bounded = jnp.isfinite(low)
    top = jnp.where(jnp.isfinite(high), log_ndtr(jnp.where(jnp.isfinite(high), high, 0)), 0)
    gap = jnp.minimum(log_ndtr(jnp.where(bounded, low, -1)) - top, _LEAST_MASS)
    return top + jnp.where(bounded, jnp.log(-jnp.expm1(jnp.where(bounded, gap, -1))), 0)


@final
class Mixed(DensityNetwork):
    """Each part given the context and the parts before it.

    :param size: number of variables.
    :param condition_size: length of the context, at least 1.
    :param parts: what the variables are, in order.
    :param flow: network of the real numbers; a class or partial, or ready module for one part.
    :param rngs: random streams of the initial parameters.
    """

    def __init__(
        self,
        size: int,
        condition_size: int,
        *,
        parts: Sequence[Part],
        flow: Any = CouplingFlow,
        rngs: nnx.Rngs,
    ) -> None:
        if sum(part.size for part in parts) != size:
            raise ValueError(f"Mixed: expected parts of {size} variables, got {tuple(parts)}.")
        if isinstance(flow, nnx.Module) and len(parts) > 1:
            raise ValueError(
                f"Mixed: expected a class or partial of one for the {len(parts)} parts, got a "
                "ready network."
            )
        self.size, self.condition_size = size, condition_size
        self.parts = nnx.static(tuple(parts))
        given = [condition_size + sum(map(_num_features, parts[:i])) for i in range(len(parts))]
        self.heads = nnx.List(
            _head(part, length, flow, rngs) for part, length in zip(parts, given, strict=True)
        )

    def log_prob(self, variables: Array, context: Array) -> Array:
        return self.partial_log_prob(variables, context, 0, len(self.parts))

    def loss(self, rng_key: Array, variables: Array, context: Array) -> Array:
        keys = random.split(rng_key, len(self.parts))
        terms = [
            head.loss(key, own, given)
            for key, (head, own, given) in zip(keys, self._terms(variables, context), strict=True)
        ]
        return sum(terms[1:], start=terms[0])

    def sample(self, rng_key: Array, context: Array) -> Array:
        nothing = jnp.zeros((*context.shape[:-1], 0), context.dtype)
        return self.partial_sample(rng_key, nothing, context, 0, len(self.parts))

    def sample_and_log_prob(self, rng_key: Array, context: Array) -> tuple[Array, Array]:
        draws = self.sample(rng_key, context)
        return draws, self.log_prob(draws, context)

    def partial_log_prob(self, variables: Array, context: Array, first: int, last: int) -> Array:
        """Log density of the parts from ``first`` to before ``last`` given those before.

        :param variables: shape ``(*batch, size of the parts before last)``.
        :param context: shape ``(*batch, condition_size)``.
        :return: shape ``(*batch,)``.
        """
        terms = self._terms(variables, context, last)[first:]
        log_probs = [head.log_prob(own, given) for head, own, given in terms]
        return sum(log_probs[1:], start=log_probs[0])

    def partial_sample(
        self, rng_key: Array, earlier: Array, context: Array, first: int, last: int
    ) -> Array:
        """The variables before ``last``, of which those before ``first`` are given.

        :param earlier: shape ``(*batch, size of the parts before first)``.
        :return: shape ``(*batch, size of the parts before last)``.
        """
        variables = earlier
        for index, key in zip(range(first, last), random.split(rng_key, last - first), strict=True):
            given = self._given(variables, context, index)
            variables = jnp.concatenate([variables, self.heads[index].sample(key, given)], -1)
        return variables

    def _terms(
        self, variables: Array, context: Array, last: int | None = None
    ) -> list[tuple[DensityNetwork, Array, Array]]:
        """Each head, its own variables, and what it is given."""
        pieces = _split(variables, self.parts[:last])
        return [
            (self.heads[i], piece, self._given(variables, context, i))
            for i, piece in enumerate(pieces)
        ]

    def _given(self, variables: Array, context: Array, index: int) -> Array:
        pieces = _split(variables, self.parts[:index])
        if not pieces:
            return context
        features = [_features(p, x) for p, x in zip(self.parts[:index], pieces, strict=True)]
        batch = jnp.broadcast_shapes(variables.shape[:-1], context.shape[:-1])
        values = [jnp.broadcast_to(x, (*batch, x.shape[-1])) for x in (context, *features)]
        return jnp.concatenate(values, axis=-1)


def _split(variables: Array, parts: Sequence[Part]) -> list[Array]:
    ends = np.cumsum([part.size for part in parts], dtype=int)
    starts = [end - part.size for end, part in zip(ends, parts, strict=True)]
    return [variables[..., i:j] for i, j in zip(starts, ends, strict=True)]


def _num_features(part: Part) -> int:
    return part.num_categories if isinstance(part, Category) else part.size


def _features(part: Part, x: Array) -> Array:
    """What the later parts see of an earlier one."""
    match part:
        case Category():
            return jax.nn.one_hot(_index(x[..., 0]), part.num_categories, dtype=x.dtype)
        case Count():
            return scaled_count(part, x)
        case Numbers():
            return x


def _head(part: Part, condition_size: int, flow: Any, rngs: nnx.Rngs) -> DensityNetwork:
    match part:
        case Category():
            return Categorical(part.num_categories, condition_size, rngs=rngs)
        case Count():
            own = flow if _base(flow) is CouplingFlow else CouplingFlow
            return Discretized(part, condition_size, flow=own, rngs=rngs)
        case Numbers():
            if isinstance(flow, DensityNetwork):
                return flow
            return flow(size=part.size, condition_size=condition_size, rngs=rngs)


def _base(flow: Any) -> Any:
    return flow.func if isinstance(flow, partial) else flow


def _index(x: Array) -> Array:
    return jnp.round(x).astype(jnp.int32)
