# SPDX-License-Identifier: Apache-2.0
"""Approximators that learn from single groups and infer from many."""

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any, Self, final

import jax
from flax import nnx
from jax import Array, lax, random
from jax.typing import ArrayLike

from numpyro_amortized.adapters.adapter import Adapter
from numpyro_amortized.adapters.posterior import makes_prior_normal
from numpyro_amortized.approximators.conditions import (
    check_num_samples,
    check_positive,
    given_names,
    in_batches,
)
from numpyro_amortized.approximators.context import (
    NetworkSpec,
    build_summary,
    context_of,
    make_network,
    network_name,
)
from numpyro_amortized.approximators.density import SingleDensityApproximator, rows_in_cache
from numpyro_amortized.approximators.group_moves import group_density, moved
from numpyro_amortized.approximators.groups import as_groups
from numpyro_amortized.approximators.sources import Source
from numpyro_amortized.approximators.summaries import SummarySpec
from numpyro_amortized.datasets import Batch
from numpyro_amortized.networks.composable import Composable
from numpyro_amortized.networks.continuous_flow import ContinuousFlow
from numpyro_amortized.networks.diffusion import DiffusionModel
from numpyro_amortized.sharding import map_shares, on_shares
from numpyro_amortized.simulators.base import typed_key

__all__ = ["CompositionalApproximator"]

_ENCODED = 4096  # groups at a time


@final
class CompositionalApproximator(SingleDensityApproximator):
    """Amortized posterior given any number of groups, learned from simulations of single ones.

    Groups are independent given the latents that are inferred. :meth:`sample` and :meth:`log_prob`
    are of one group, :meth:`compositional_sample` is of many: it composes the scores of the single
    posteriors with second order corrections [1]. Their covariances come from the slopes of the
    scores, and at high levels of noise from a normal distribution that the flow corrects.

    Of each group's score that of the prior is taken off. What a network errs in both alike for all
    groups would add up; so what is taken off is the mean of the learned scores over all data that
    could have been seen, which a network of its own learns from the noisy latents alone. Without
    errors the two are the same.

    The prior counts once. Where every latent is mapped by the normal quantiles of its prior, as
    :meth:`Adapter.for_posterior` does where priors are independent and have a CDF, it is N(0, I)
    and its score exact. Otherwise that mean stands for it, too. Printing the approximator says
    which.

    **Example**

    .. doctest::

        >>> import numpyro, numpyro.distributions as dist
        >>> from jax import numpy as jnp, random
        >>> import numpyro_amortized as npa
        >>> def one_group(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(mu, 1), obs=y)
        >>> approximator = npa.CompositionalApproximator(npa.ModelSimulator(one_group, 0.0))
        >>> history = approximator.fit(random.key(0), epochs=2, progress_bar=False)
        >>> y = jnp.zeros((3, 50))  # three data sets of 50 groups
        >>> approximator.compositional_sample(random.key(1), 10, {"y": y})["mu"].shape
        (3, 10)

    **References**

    1. Linhart, J., Victorino Cardoso, G., Gramfort, A., Le Corff, S. and Rodrigues, P. L. C.
       (2024). Diffusion posterior sampling for simulation-based inference in tall data settings.

    :param source: a simulator of one group, a data set, or a NumPyro model without arguments.
    :param adapter: sites to network inputs, by default :meth:`Adapter.for_posterior`.
    :param inference_network: :class:`~numpyro_amortized.networks.DiffusionModel` or
        :class:`~numpyro_amortized.networks.FlowMatching`, or a partial of one; or a ready module
        made with ``normal=True``.
    :param summary_network: the network that summarizes the data of one group.
    :raises TypeError: where the network has no score.
    """

    def __init__(
        self,
        source: Source | Callable[[], object],
        *,
        adapter: Adapter | None = None,
        inference_network: NetworkSpec = DiffusionModel,
        summary_network: SummarySpec | None = None,
    ) -> None:
        super().__init__(source, adapter=adapter, summary_network=summary_network)
        self._inference_spec = inference_network

    @property
    def options(self) -> dict[str, Any]:
        return {"inference_network": self._inference_spec, "summary_network": self._given_summary}

    @property
    def inference_network(self) -> NetworkSpec:
        """The trained network; before ``fit``, what it is made from."""
        return self._network("inference_network", self._inference_spec)

    def for_groups(
        self, conditions: Mapping[str, ArrayLike], *, any_sizes: bool = False, warn: bool = True
    ) -> Self:
        return self

    def density(self, modules: nnx.Dict) -> Composable:
        return modules["inference_network"]

    def compositional_sample(
        self,
        rng_key: Array,
        num_samples: int,
        conditions: Mapping[str, ArrayLike],
        *,
        mini_batch_size: int | None = None,
        num_levels: int = 50,
        last_level: float = 0.1,
        num_moves: int = 0,
    ) -> dict[str, Array]:
        """Draws of the latent sites given all groups of each data set together.

        :param rng_key: a key.
        :param num_samples: draws for each data set.
        :param conditions: values of the observed sites, with leading axes of data sets and of at
            least two groups; without the first one, a single data set.
        :param mini_batch_size: groups at a time, which bounds memory: networks see
            ``num_samples * mini_batch_size`` rows at once. By default as many as stay in cache.
        :param num_levels: levels of noise. The cost is proportional to them, and to the groups.
        :param last_level: the last one, in standard deviations of the inference variables, which
            should be small for the posterior of a single group. Less of it is less biased where
            that is skewed, and amplifies the errors of the network where groups are many.
        :param num_moves: Metropolis moves of each composed draw by the model's own density given
            all groups, where that is known. They take away the networks' errors: some 15 for each
            dimension, where draws are off by less than the posterior's standard deviation.
        :return: values of shape ``(n_datasets, num_samples, *shape)``, without the first axis for a
            single data set.
        :raises ValueError: where the conditions do not fit, or are of a single group; where draws
            are to be moved, and the model's density is not known, with the reason.
        :raises TypeError: where draws are to be moved, and there is no model.
        :raises RuntimeError: before ``fit``.
        """
        num_samples = check_num_samples(num_samples)
        check_positive(num_levels=num_levels)
        self._check_moves(num_moves, num_samples)
        if not 0 < last_level < 1:
            raise ValueError(f"last_level: expected between 0 and 1, got {last_level!r}.")
        if mini_batch_size is None:
            mini_batch_size = max(1, rows_in_cache() // num_samples)
        check_positive(mini_batch_size=mini_batch_size)
        graphdef, state = nnx.split(self._trained())
        groups = as_groups(self.sites, conditions, given_names(self.sites, self.varying_size))
        checked = self.check_conditions(groups.values)
        encode = partial(self.encode, graphdef, state)
        contexts = in_batches(encode, (checked.values,), _ENCODED)
        contexts = contexts.reshape(*groups.shape, -1)
        given = {
            name: value.reshape(*groups.shape, *value.shape[1:])
            for name, value in checked.values.items()
        }
        keys = random.split(typed_key(rng_key), groups.shape[0])
        settings = (num_samples, mini_batch_size, num_levels, float(last_level), num_moves)
        compose = partial(self._compose, graphdef, state, settings)
        draws = on_shares(compose, (keys, contexts, given))
        return draws if groups.is_batch else jax.tree.map(lambda x: x[0], draws)

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}", str(self.adapter)]
        lines += [f"inference network: {network_name(self._inference_spec)}"]
        exact = "exact, since the prior is N(0, I) in the network's space"
        learned = "learned, since the prior is not N(0, I) in the network's space"
        lines += [f"score of the prior: {exact if self._prior_is_normal else learned}"]
        lines += self._describe_summary()
        return "\n  ".join("\n".join(lines).splitlines())

    @cached_property
    def _prior_is_normal(self) -> bool:
        return makes_prior_normal(self.adapter)

    def _check_moves(self, num_moves: int, num_samples: int) -> None:
        if num_moves < 0 or (num_moves and num_samples < 2):
            raise ValueError(
                "num_moves: expected none, or some of at least two draws, got "
                f"num_moves={num_moves} and num_samples={num_samples}."
            )
        if num_moves and not self.data_density("num_moves").predictive.prior_sites:
            raise ValueError(
                f"num_moves: expected priors of {list(self.inferred_sites)} that do not depend on "
                "latents left out: the prior must count once, and not with every group. Leave it "
                "out."
            )

    @property
    def _kept_sites(self) -> tuple[str, ...]:
        return ()

    def _build(self, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        modules, condition_size = build_summary(self._summary_spec, self._row, rngs)
        spec = _with_normal(self._inference_spec)
        flow: Any = make_network(spec, rngs, size=self.num_variables, condition_size=condition_size)
        is_normal = self._prior_is_normal
        modules["inference_network"] = Composable(flow, prior_is_normal=is_normal, rngs=rngs)
        return modules

    def _loss(self, modules: nnx.Dict, rng_key: Array, inputs: Batch) -> Array:
        variables, context = inputs["inference_variables"], context_of(modules, inputs)
        return modules["inference_network"].loss(rng_key, variables, context)

    @cached_property
    def _compose(self) -> Callable[..., Batch]:
        def compose(
            graphdef: nnx.GraphDef,
            state: nnx.State,
            settings: tuple[int, int, int, float, int],
            keys: Array,
            contexts: Array,
            given: Batch,
        ) -> Batch:
            network = self.density(nnx.merge(graphdef, state))
            num_samples, mini_batch_size, num_levels, last, num_moves = settings

            def one(row: tuple[Array, Array, Batch]) -> Batch:
                key, context, groups = row
                vectors = network.compose(
                    key,
                    context,
                    num_samples,
                    mini_batch_size=mini_batch_size,
                    num_levels=num_levels,
                    last=last,
                )
                if num_moves:
                    log_density = group_density(self.data_density("num_moves"), groups)
                    vectors = moved(random.fold_in(key, 1), log_density, vectors, num_moves)
                first = jax.tree.map(lambda x: x[0], groups)
                values = jax.vmap(self.latents_at, in_axes=(0, None))(vectors, first)
                return {name: values[name] for name in self.inferred_sites}

            return map_shares(lambda *rows: lax.map(one, rows), (keys, contexts, given))

        return jax.jit(compose, static_argnums=(0, 2))


def _with_normal(spec: NetworkSpec) -> NetworkSpec:
    """The network with the normal distribution of which the covariances are taken."""
    made = spec.func if isinstance(spec, partial) else spec
    is_flow = isinstance(made, type) and issubclass(made, ContinuousFlow)
    return partial(spec, normal=True) if is_flow and not isinstance(spec, nnx.Module) else spec
