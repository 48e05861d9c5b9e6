# SPDX-License-Identifier: Apache-2.0
"""Densities that factorize over groups, and the summaries of the groups."""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax, random

from numpyro_amortized.networks.base import DensityNetwork
from numpyro_amortized.networks.fusion import SummaryNetwork, build_network

__all__ = ["GroupSummary", "Hierarchical"]

_NUM_GROUPS = 8  # of a simulation in a step: others tell little more of what all have in common


@final
class GroupSummary(nnx.Module):
    """A summary of all groups, and one of each group.

    Every group is embedded: its numbers, and summaries of its sets or series. A set network
    summarizes the embeddings. The result is one vector: the summary of all groups, and for each
    group its embedding and whether it is there.

    :param size: number of features of each array: numbers of a group, under the name of the plate,
        and members of what is summarized within groups.
    :param plate: its name.
    :param over: network of the set of groups, its class or a partial of one.
    :param networks: the same for each array that is summarized within groups.
    :param rngs: random streams of the initial parameters.
    """

    def __init__(
        self,
        size: Mapping[str, int],
        *,
        plate: str,
        over: SummaryNetwork | Callable[..., SummaryNetwork],
        networks: Mapping[str, SummaryNetwork | Callable[..., SummaryNetwork]],
        rngs: nnx.Rngs,
    ) -> None:
        self.plate = plate
        self.sites = tuple(sorted(networks))
        modules = [build_network(networks[site], size[site], rngs) for site in self.sites]
        self.networks = nnx.List(modules)
        self.group_size = size[plate] + sum(module.summary_size for module in modules)
        self.over = build_network(over, self.group_size, rngs)

    @property
    def summary_size(self) -> int:
        """Length of the summary of all groups."""
        return self.over.summary_size

    def __call__(
        self, inputs: Mapping[str, Array], masks: Mapping[str, Array] | None = None
    ) -> Array:
        """Shape ``(*batch, summary_size + num_groups * (group_size + 1))``.

        :param inputs: numbers ``(*batch, num_groups, size)`` under the name of the plate, and
            arrays ``(*batch, num_groups, members, size)``.
        :param masks: booleans ``(*batch, num_groups)`` and ``(*batch, num_groups, members)``, where
            there are any.
        """
        batch = inputs[self.plate].shape[:-2]
        num_rows = max(prod(x.shape[len(batch) : -1]) for x in inputs.values())
        chunk = max(1, _rows() // num_rows)
        if prod(batch) <= chunk:
            return self._encode(inputs, masks or {})
        arrays = (dict(inputs), dict(masks or {}))
        flat = jax.tree.map(lambda x: x.reshape(prod(batch), *x.shape[len(batch) :]), arrays)
        graphdef, state = nnx.split(self)
        # to encode again costs less than to keep what many groups need
        encode = jax.checkpoint(lambda x, mask: nnx.merge(graphdef, state)._encode(x, mask))
        encoded = _in_chunks(encode, flat, chunk)
        return encoded.reshape(*batch, encoded.shape[-1])

    def _encode(self, inputs: Mapping[str, Array], masks: Mapping[str, Array]) -> Array:
        parts = [
            network(inputs[site], masks.get(site))
            for site, network in zip(self.sites, self.networks, strict=True)
        ]
        groups = jnp.concatenate([inputs[self.plate], *parts], axis=-1)
        mask = masks.get(self.plate)
        there = jnp.ones(groups.shape[:-1], bool) if mask is None else mask
        rows = jnp.concatenate([groups, there[..., None].astype(groups.dtype)], axis=-1)
        flat = rows.reshape(*rows.shape[:-2], -1)
        return jnp.concatenate([self.over(groups, mask), flat], axis=-1)


@final
class Hierarchical(DensityNetwork):
    """Density of global variables, times those of each group given the globals and its data [1].

    ``q(globals | conditions, summary) prod_j q(locals_j | globals, conditions, group_j)``, both
    factors networks of their own. The variables are the globals, then those of each group; the
    context is the conditions, then what :class:`GroupSummary` makes. The number of groups is read
    from the context, and those that are not there have no part in the density. In training,
    eight groups of a simulation, chosen anew in every step, stand for all.

    :param size: number of inference variables.
    :param condition_size: length of the context.
    :param num_globals: number of global variables.
    :param num_groups: number of groups.
    :param group_size: length of a group's embedding.
    :param summary_size: length of the summary of all groups.
    :param globals: network of the global variables, its class or a partial of one.
    :param locals: network of the variables of one group, the same.
    :param rngs: random streams of the initial parameters.

    **References**

    1. *Amortized Bayesian Multilevel Models*, Habermann, Schmitt, Kühmichel, Bulling, Radev and
       Bürkner (2024).
    """

    def __init__(
        self,
        size: int,
        condition_size: int,
        *,
        num_globals: int,
        num_groups: int,
        group_size: int,
        summary_size: int,
        globals: Any,
        locals: Any,
        rngs: nnx.Rngs,
    ) -> None:
        self.size, self.condition_size = size, condition_size
        self.num_globals, self.group_size, self.summary_size = num_globals, group_size, summary_size
        self.shared_size = condition_size - num_groups * (group_size + 1)
        self.local_size = (size - num_globals) // num_groups
        own = num_globals + self.shared_size - summary_size + group_size
        self.globals = _built(globals, num_globals, self.shared_size, rngs)
        self.locals = _built(locals, self.local_size, own, rngs)

    def log_prob(self, variables: Array, context: Array) -> Array:
        shared, groups, there = self._split(context)
        own, rows = self._split_variables(variables)
        batch = jnp.broadcast_shapes(variables.shape[:-1], context.shape[:-1])

        def of_groups(rows: Array, groups: Array, rng_keys: Array) -> Array:
            return self.locals.log_prob(rows, _joined(own, groups))

        terms = _over_groups(of_groups, rows, groups, prod(batch), random.key(0))
        return self.globals.log_prob(own, shared) + _total(terms, there)

    def loss(self, rng_key: Array, variables: Array, context: Array) -> Array:
        choice_key, global_key, local_key = random.split(rng_key, 3)
        shared, groups, there = self._split(context)
        own, rows = self._split_variables(variables)
        chosen = min(_NUM_GROUPS, there.shape[-1])
        # those that are there come first, in random order
        _, index = lax.top_k(random.uniform(choice_key, there.shape) + there, chosen)
        rows, groups = (jnp.take_along_axis(x, index[..., None], axis=-2) for x in (rows, groups))
        there = jnp.take_along_axis(there, index, axis=-1)
        own_of_each = jnp.broadcast_to(own[..., None, :], (*rows.shape[:-1], own.shape[-1]))
        context = jnp.concatenate([own_of_each, groups], axis=-1)
        losses = self.locals.loss(local_key, rows, context)
        local_loss = jnp.sum(losses * there, -1) / jnp.maximum(jnp.sum(there, -1), 1)
        return self.globals.loss(global_key, own, shared) + local_loss

    def sample(self, rng_key: Array, context: Array) -> Array:
        return self.sample_and_log_prob(rng_key, context)[0]

    def sample_and_log_prob(self, rng_key: Array, context: Array) -> tuple[Array, Array]:
        global_key, local_key = random.split(rng_key)
        own, log_prob = self.globals.sample_and_log_prob(global_key, self._split(context)[0])
        rows, log_probs = self.sample_locals(local_key, own, context)
        flat = rows.reshape(*rows.shape[:-2], -1)
        there = self._split(context)[2]
        return jnp.concatenate([own, flat], axis=-1), log_prob + _total(log_probs, there)

    def sample_locals(self, rng_key: Array, own: Array, context: Array) -> tuple[Array, Array]:
        """Variables of each group given the global ones.

        :param rng_key: a key.
        :param own: global variables, shape ``(*batch, num_globals)``.
        :param context: shape ``(*batch, condition_size)``, of any number of groups; batch
            axes broadcast.
        :return: shape ``(*batch, num_groups, local_size)``, and log densities of each group,
            ``(num_groups, *batch)``.
        """
        _, groups, _ = self._split(context)
        batch = jnp.broadcast_shapes(own.shape[:-1], context.shape[:-1])
        own = jnp.broadcast_to(own, (*batch, own.shape[-1]))

        def of_groups(_: None, groups: Array, rng_keys: Array) -> tuple[Array, Array]:
            return self.locals.sample_and_log_prob(rng_keys[0], _joined(own, groups))

        draw = _over_groups(of_groups, None, groups, prod(batch), rng_key)
        rows, log_probs = draw
        return jnp.moveaxis(rows, 0, -2), log_probs

    def transport(self, base: Array, context: Array) -> tuple[Array, Array]:
        """Carry draws of the standard normal to the variables, where both networks are flows.

        :param base: shape ``(*batch, size)``.
        :param context: shape ``(*batch, condition_size)``, batch axes broadcast.
        :return: draws, shape ``(*batch, size)``, and their log densities ``(*batch,)``.
        """
        shared, groups, there = self._split(context)
        own, rows = self._split_variables(base)
        own, log_prob = self.globals.transport(own, shared)

        def of_groups(rows: Array, groups: Array, rng_keys: Array) -> tuple[Array, Array]:
            return self.locals.transport(rows, _joined(own, groups))

        carried = _over_groups(of_groups, rows, groups, prod(own.shape[:-1]), random.key(0))
        flat = jnp.moveaxis(carried[0], 0, -2).reshape(*own.shape[:-1], -1)
        return jnp.concatenate([own, flat], axis=-1), log_prob + _total(carried[1], there)

    def global_context(self, context: Array) -> Array:
        """What the globals are conditioned on, shape ``(*batch, shared_size)``."""
        return self._split(context)[0]

    def local_context(self, own: Array, context: Array, index: Array) -> Array:
        """What the variables of some groups are conditioned on.

        :param own: global variables, shape ``(*batch, num_globals)``.
        :param context: shape ``(*batch, condition_size)``; batch axes broadcast.
        :param index: of the groups, shape ``(num,)``.
        :return: shape ``(num, *batch, size)``.
        """
        groups = jnp.moveaxis(self._split(context)[1], -2, 0)
        return _joined(own, groups[index])

    def _split(self, context: Array) -> tuple[Array, Array, Array]:
        """Context of the globals, of each group but for the globals, and which groups are there."""
        shared, flat = jnp.split(context, [self.shared_size], axis=-1)
        rows = flat.reshape(*flat.shape[:-1], -1, self.group_size + 1)
        conditions = shared[..., None, : self.shared_size - self.summary_size]
        conditions = jnp.broadcast_to(conditions, (*rows.shape[:-1], conditions.shape[-1]))
        return shared, jnp.concatenate([conditions, rows[..., :-1]], axis=-1), rows[..., -1]

    def _split_variables(self, variables: Array) -> tuple[Array, Array]:
        own, flat = jnp.split(variables, [self.num_globals], axis=-1)
        return own, flat.reshape(*flat.shape[:-1], -1, self.local_size)


def _built(network: Any, size: int, condition_size: int, rngs: nnx.Rngs) -> Any:
    if isinstance(network, nnx.Module):
        return network
    return network(size=size, condition_size=condition_size, rngs=rngs)


def _joined(own: Array, groups: Array) -> Array:
    """Globals beside the data of some groups, the first axis that of groups."""
    batch = jnp.broadcast_shapes(own.shape[:-1], groups.shape[1:-1])
    parts = [jnp.broadcast_to(x, (len(groups), *batch, x.shape[-1])) for x in (own, groups)]
    return jnp.concatenate(parts, axis=-1)


def _total(terms: Array, there: Array) -> Array:
    """Sum over the first axis, of the groups that are there."""
    return jnp.sum(jnp.where(jnp.moveaxis(there, -1, 0) > 0, terms, 0), axis=0)


def _over_groups(
    function: Callable[..., Any], rows: Array | None, groups: Array, num_rows: int, rng_key: Array
) -> Any:
    """Map over the axis of groups, some at a time; it comes out first.

    :param function: of rows, groups and a key for each group, the axis of groups first.
    :param rows: shape ``(*batch, num_groups, size)``.
    :param groups: shape ``(*batch, num_groups, size)``.
    :param num_rows: number of draws of a group.
    """
    num_groups = groups.shape[-2]
    chunk = min(num_groups, max(1, _rows() // num_rows))
    moved = jax.tree.map(lambda x: jnp.moveaxis(x, -2, 0), (rows, groups))
    arguments = (*moved, random.split(rng_key, num_groups))
    return function(*arguments) if chunk == num_groups else _in_chunks(function, arguments, chunk)


def _in_chunks(function: Callable[..., Any], arguments: tuple[Any, ...], chunk: int) -> Any:
    """Map over the first axis, some entries at a time."""
    length = len(jax.tree.leaves(arguments)[0])
    num_chunks = -(-length // chunk)
    # the last chunk is filled up: a shorter one would be a second program
    index = np.minimum(np.arange(num_chunks * chunk), length - 1).reshape(num_chunks, chunk)
    chunks = jax.tree.map(lambda x: x[index], arguments)
    results = lax.map(lambda each: function(*each), chunks)
    return jax.tree.map(lambda x: x.reshape(index.size, *x.shape[2:])[:length], results)


def _rows() -> int:
    """Rows at a time: on a CPU so few that what they need stays in its cache."""
    return 2**12 if jax.default_backend() == "cpu" else 2**18
