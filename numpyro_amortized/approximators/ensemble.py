# SPDX-License-Identifier: Apache-2.0
"""Several approximators that are trained together."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, Self, final

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, random
from jax.typing import ArrayLike

from numpyro_amortized.approximators.agreement import check_agreement
from numpyro_amortized.approximators.conditions import check_num_samples
from numpyro_amortized.approximators.density import DensityApproximator, SingleDensityApproximator
from numpyro_amortized.approximators.latent import LatentApproximator
from numpyro_amortized.approximators.mixing import (
    checked_weights,
    draws_of_each,
    places_of_draws,
    stacking,
)
from numpyro_amortized.approximators.scoring_rule import ScoringRuleApproximator
from numpyro_amortized.datasets import Batch
from numpyro_amortized.networks.network_mixture import NetworkMixture
from numpyro_amortized.simulators.base import typed_key

__all__ = ["EnsembleApproximator"]

Weights = Mapping[str, float] | ArrayLike
_CHUNK = 4096  # data at a time, where densities are evaluated


@final
class EnsembleApproximator(DensityApproximator):
    """Approximators of one source that see the same simulations and train in one program.

    Each member has networks, a loss and an optimizer of its own, so that it learns as it would
    alone, but batches are simulated and adapted once for all. The parameters kept are those of the
    epoch with the least sum of the members' validation losses. Members are the approximators that
    are passed: they are trained with the ensemble, and it goes on from those trained before.

    As one density, an ensemble is the mixture of its members [1], in equal shares unless it is told
    others. Where members disagree, training has left the posterior uncertain: the mixture is wider
    than they are.

    **Example**

    .. doctest::

        >>> import numpyro, numpyro.distributions as dist
        >>> from jax import numpy as jnp, random
        >>> import numpyro_amortized as npa
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(mu, 1), obs=y)
        >>> simulator = npa.ModelSimulator(model, jnp.zeros(5))
        >>> members = {name: npa.ContinuousApproximator(simulator) for name in ("a", "b")}
        >>> ensemble = npa.EnsembleApproximator(members)
        >>> history = ensemble.fit(random.key(0), epochs=2, progress_bar=False)
        >>> ensemble.sample(random.key(1), 100, {"y": jnp.zeros((3, 5))})["mu"].shape
        (3, 100)

    **References**

    1. Lakshminarayanan, B., Pritzel, A. and Blundell, C. (2017). Simple and scalable predictive
       uncertainty estimation using deep ensembles. *Advances in Neural Information Processing
       Systems*.

    :param members: approximators of latent sites by name, of any kinds, with one source and one
        adapter; the ensemble's are those of the first.
    :raises TypeError: where a member is no approximator of latent sites.
    :raises ValueError: where there is no member, or their sources or adapters differ.
    """

    def __init__(self, members: Mapping[str, LatentApproximator]) -> None:
        check_agreement(members)
        first = next(iter(members.values()))
        self.members = dict(members)
        super().__init__(
            first.source, adapter=first.adapter, summary_network=None, members=self.members
        )
        if all(member.modules is not None for member in members.values()):
            self._install(nnx.Dict({name: m.networks for name, m in members.items()}))

    @property
    def options(self) -> dict[str, Any]:
        return {"members": self.members}

    def sample(
        self,
        rng_key: Array,
        num_samples: int,
        conditions: Mapping[str, ArrayLike],
        *,
        batch_size: int | None = None,
        merge_members: bool = True,
        member_weights: Weights | None = None,
    ) -> Any:
        """Posterior draws of the latent sites, and the deterministic sites computed from them.

        :param rng_key: a key.
        :param num_samples: draws for each data set.
        :param conditions: values of the observed sites, one data set or a leading axis of them.
        :param batch_size: data sets at a time, which bounds memory; by default all.
        :param merge_members: whether draws are those of the mixture, or ``num_samples`` of each
            member by name. Of a mixture, each member gives its share, to within one draw.
        :param member_weights: probabilities of the members, by name or in their order, such as
            those of :meth:`stacking_weights`; equal by default.
        :return: values of shape ``(num_conditions, num_samples, *shape)``, without the first axis
            for one data set; a dictionary of such values where members are not merged.
        :raises ValueError: where the conditions or weights do not fit, or a member has no density.
        :raises RuntimeError: before ``fit``.
        """
        num_samples = check_num_samples(num_samples)
        members = self._densities()
        _refuse_unused(merge_members, member_weights)
        place_key, *keys = random.split(typed_key(rng_key), 1 + len(members))
        weights = checked_weights(member_weights, list(members))
        numbers = (
            draws_of_each(weights, num_samples) if merge_members else [num_samples] * len(keys)
        )
        draws = {
            name: member.sample(key, int(number), conditions, batch_size=batch_size)
            for (name, member), key, number in zip(members.items(), keys, numbers, strict=True)
            if number
        }
        if not merge_members:
            return draws
        axis = int(self.check_conditions(conditions).is_batch)
        places = places_of_draws(place_key, weights, num_samples)
        return jax.tree.map(
            lambda *parts: jnp.take(jnp.concatenate(parts, axis), places, axis), *draws.values()
        )

    def log_prob(
        self,
        data: Mapping[str, ArrayLike],
        *,
        merge_members: bool = True,
        member_weights: Weights | None = None,
    ) -> Any:
        """Log posterior density in the sites' own, constrained space.

        :param data: values of the inferred latent sites and of the observed sites; latents may
            carry a further axis of samples after that of the data sets.
        :param merge_members: whether the density is that of the mixture, or of each member by name.
        :param member_weights: probabilities of the members, by name or in their order.
        :return: shape ``(num_conditions,)`` or ``(num_conditions, num_samples)``, without the first
            axis for one data set; a dictionary of them where members are not merged.
        :raises ValueError: where the values or weights do not fit, or a member has no density.
        :raises RuntimeError: before ``fit``.
        """
        members = self._densities()
        _refuse_unused(merge_members, member_weights)
        weights = checked_weights(member_weights, list(members))
        log_probs = {name: member.log_prob(data) for name, member in members.items()}
        if not merge_members:
            return log_probs
        each = jnp.stack(list(log_probs.values()), axis=-1)
        return jax.nn.logsumexp(each + jnp.log(jnp.asarray(weights, each.dtype)), axis=-1)

    def stacking_weights(self, data: Mapping[str, ArrayLike]) -> dict[str, float]:
        """Weights under which the mixture has the greatest mean log density at validation data.

        :param data: simulations that were not trained on, such as ``simulator.sample(rng_key,
            2000)``.
        :return: name to weight, for ``member_weights``.
        :raises ValueError: where the values do not fit, or a member has no density.
        :raises RuntimeError: before ``fit``.
        """
        given = {n: np.asarray(data[n]) for n in self._needed_sites if n in data}
        length = len(next(iter(given.values())))
        chunks = [
            self.log_prob({n: x[k : k + _CHUNK] for n, x in given.items()}, merge_members=False)
            for k in range(0, length, _CHUNK)
        ]
        joined = jnp.stack([jnp.concatenate([c[n] for c in chunks]) for n in self.members])
        return dict(zip(self.members, np.asarray(stacking(joined)).tolist(), strict=True))

    def estimate(
        self,
        conditions: Mapping[str, ArrayLike],
        *,
        groupby: Literal["member", "variable", "score"] = "member",
        batch_size: int | None = None,
    ) -> dict[str, dict[str, dict[str, dict[str, Array]]]]:
        """Estimates of the members that make them, in the sites' own space.

        :param conditions: values of the observed sites, one data set or a leading axis of them.
        :param groupby: the outer keys: members, sites or scores. The keys below are sites and
            scores of members, members and scores of sites, or members and sites of scores.
        :param batch_size: data sets at a time, which bounds memory; by default all.
        :return: such as ``{member: {site: {score: {head: array}}}}``.
        :raises ValueError: where the conditions do not fit, ``groupby`` is none of these, or no
            member is a :class:`.ScoringRuleApproximator`.
        :raises RuntimeError: before ``fit``.
        """
        if groupby not in ("member", "variable", "score"):
            raise ValueError(f"groupby: expected 'member', 'variable' or 'score', got {groupby!r}.")
        members = {n: m for n, m in self.members.items() if isinstance(m, ScoringRuleApproximator)}
        if not members:
            raise ValueError(
                "estimate: expected a member that is a ScoringRuleApproximator, got "
                f"{self._kinds()}."
            )
        inner: Literal["variable", "score"] = "score" if groupby == "score" else "variable"
        each = {
            name: member.estimate(conditions, groupby=inner, batch_size=batch_size)
            for name, member in members.items()
        }
        if groupby == "member":
            return each
        outer = dict.fromkeys(key for found in each.values() for key in found)
        return {key: {n: x[key] for n, x in each.items() if key in x} for key in outer}

    def for_groups(
        self, conditions: Mapping[str, ArrayLike], *, any_sizes: bool = False, warn: bool = True
    ) -> Self:
        return self

    def density(self, modules: nnx.Dict) -> NetworkMixture:
        members = self._densities().items()
        return NetworkMixture([member.density(modules[name]) for name, member in members])

    def __repr__(self) -> str:
        lines = ["EnsembleApproximator of"]
        lines += [f"{name}: {member}" for name, member in self.members.items()]
        return "\n  ".join("\n".join(lines).splitlines())

    @property
    def _kept_sites(self) -> tuple[str, ...]:
        kept = [name for member in self.members.values() for name in member._kept_sites]
        return tuple(dict.fromkeys(kept))

    def _densities(self) -> dict[str, SingleDensityApproximator]:
        members = self.members.items()
        found = {n: m for n, m in members if isinstance(m, SingleDensityApproximator)}
        if len(found) < len(self.members):
            raise ValueError(
                f"expected members that sample and have a density, got {self._kinds()}. Call those "
                "that have none on their own: ensemble.members[name]."
            )
        return found

    def _kinds(self) -> dict[str, str]:
        return {name: type(member).__name__ for name, member in self.members.items()}

    def _build(self, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        """Networks of the members; those that are trained go on."""
        keys = random.split(rngs(), len(self.members))
        return {
            name: nnx.Dict(member._build(nnx.Rngs(key)))
            if member.modules is None
            else member.modules
            for key, (name, member) in zip(keys, self.members.items(), strict=True)
        }

    def _loss(self, modules: nnx.Dict, rng_key: Array, inputs: Batch) -> Array:
        fold = partial(random.fold_in, rng_key)
        losses = [
            member._regularized_loss(modules[name], fold(index), inputs)
            for index, (name, member) in enumerate(self.members.items())
        ]
        return jnp.sum(jnp.stack(losses), axis=0)


def _refuse_unused(merge_members: bool, member_weights: Weights | None) -> None:
    if member_weights is not None and not merge_members:
        raise ValueError(
            "member_weights: expected none with merge_members=False, where members stay apart."
        )
