# SPDX-License-Identifier: Apache-2.0
"""Estimates of functionals of the posterior, by scoring rules."""

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from math import prod
from typing import Any, Literal, NamedTuple, Self, final

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, random
from jax.typing import ArrayLike

from numpyro_amortized.adapters.adapter import Adapter
from numpyro_amortized.approximators.conditions import in_batches
from numpyro_amortized.approximators.context import (
    build_summary,
    context_of,
    make_network,
)
from numpyro_amortized.approximators.density import SingleDensityApproximator
from numpyro_amortized.approximators.monotone import increasing_sites
from numpyro_amortized.approximators.sources import Source
from numpyro_amortized.approximators.summaries import SummarySpec
from numpyro_amortized.concrete import concrete_values
from numpyro_amortized.datasets import Batch, Dataset
from numpyro_amortized.networks.base import DensityNetwork
from numpyro_amortized.networks.mlp import MLP
from numpyro_amortized.networks.parametric import Parametric
from numpyro_amortized.scoring_rules.base import ParametricRule, ScoringRule
from numpyro_amortized.scoring_rules.categorical import CategoricalRule
from numpyro_amortized.scoring_rules.points import Median, Quantiles
from numpyro_amortized.simulators.tracing import Site

__all__ = ["ScoringRuleApproximator"]

_NUM_PILOTS, _NUM_PROBES = 1000, 16
Nested = dict[str, dict[str, dict[str, Array]]]


class _Task(NamedTuple):
    """One rule of one site."""

    site: str
    score: str
    rule: ScoringRule
    places: np.ndarray | None  # in the network's vector, where the rule is applied there
    shape: tuple[int, ...]  # of the site

    @property
    def size(self) -> int:
        return prod(self.shape)


@final
class ScoringRuleApproximator(SingleDensityApproximator):
    """Amortized estimates of every latent site, such as means and quantiles [1].

    Quantiles and medians are learned in the network's space where every number of a site is an
    increasing function of one network variable, and carried to the site's own space, which is
    exact. All else is learned from the site's own values, standardized: the mean of a log-normal
    site is its mean.

    The first parametric rule, where there is one, is also learned of all inference variables
    together: :meth:`sample`, :meth:`log_prob` and :meth:`posterior` are of that distribution,
    carried to the sites by the adapter, so that draws lie in the sites' supports.

    The first parametric rule, where there is one, is also learned of all inference variables
    together: :meth:`sample`, :meth:`log_prob` and :meth:`posterior` are of that distribution,
    carried to the sites by the adapter, so that draws lie in the sites' supports.

    **References**

    1. Gneiting, T. and Raftery, A. E. (2007). Strictly proper scoring rules, prediction, and
       estimation. *Journal of the American Statistical Association*, 102(477), 359-378.

    :param source: a simulator, a data set, or a NumPyro model without arguments.
    :param scoring_rules: name to rule; each is applied to each latent site.
    :param subnet: a class, a :func:`functools.partial` of one (``size``, ``out_size`` and ``rngs``
        are supplied): the network of each rule.
    :param adapter: sites to network inputs, by default :meth:`Adapter.for_posterior`.
    :param summary_network: the network that summarizes data.
    :raises ValueError: where there is no rule.
    """

    def __init__(
        self,
        source: Source | Callable[[], object],
        *,
        scoring_rules: Mapping[str, ScoringRule],
        subnet: Callable[..., nnx.Module] = MLP,
        adapter: Adapter | None = None,
        summary_network: SummarySpec | None = None,
    ) -> None:
        _check_rules(scoring_rules)
        super().__init__(source, adapter=adapter, summary_network=summary_network)
        self.scoring_rules = dict(scoring_rules)
        self._subnet_spec = subnet
        if refused := [n for n, r in scoring_rules.items() if isinstance(r, CategoricalRule)]:
            continuous = [s.name for s in self._latents if jnp.issubdtype(s.dtype, jnp.floating)]
            if continuous:
                raise ValueError(
                    f"scoring_rules: {refused} are of categories, but sites {continuous} are "
                    "continuous. Give discrete sites an approximator of their own."
                )

    def estimate(
        self,
        conditions: Mapping[str, ArrayLike],
        *,
        groupby: Literal["variable", "score"] = "variable",
        batch_size: int | None = None,
    ) -> Nested:
        """Estimates in the sites' own space.

        :param conditions: values of the observed sites, one data set or a leading axis of them.
        :param groupby: whether the outer keys are sites or scores.
        :param batch_size: data sets at a time, which bounds memory; by default all.
        :return: ``{site: {score: {head: array}}}``, or with the score first; arrays of shape
            ``(num_conditions, *shape)`` for heads that are values of a site, without the first axis
            for one data set.
        :raises ValueError: where the conditions do not fit, or ``groupby`` is none of these.
        :raises RuntimeError: before ``fit``.
        """
        if groupby not in ("variable", "score"):
            raise ValueError(f"groupby: expected 'variable' or 'score', got {groupby!r}.")
        graphdef, state = nnx.split(self._trained())
        checked = self.check_conditions(conditions)
        function = partial(self._estimate, graphdef, state)
        flat = checked.unbatch(in_batches(function, (checked.values,), batch_size))
        nested: Nested = {}
        for task, heads in zip(self._tasks, flat, strict=True):
            keys = (task.site, task.score)
            outer, inner = keys if groupby == "variable" else keys[::-1]
            nested.setdefault(outer, {})[inner] = heads
        return nested

    def for_groups(
        self, conditions: Mapping[str, ArrayLike], *, any_sizes: bool = False, warn: bool = True
    ) -> Self:
        return self

    def density(self, modules: nnx.Dict) -> DensityNetwork:
        if self._parametric is None:
            raise ValueError(
                "ScoringRuleApproximator: expected a parametric rule to sample from or to evaluate "
                f"a density, got the rules {list(self.scoring_rules)}, which have none. Train with "
                "one: scoring_rules={'normal': MultivariateNormal(), ...}, or GaussianMixture()."
            )
        return modules["density"]

    @property
    def options(self) -> dict[str, Any]:
        return {
            "scoring_rules": self.scoring_rules,
            "subnet": self._subnet_spec,
            "summary_network": self._given_summary,
        }

    @property
    def _parametric(self) -> ParametricRule | None:
        rules = self.scoring_rules.values()
        return next((rule for rule in rules if isinstance(rule, ParametricRule)), None)

    @property
    def _latents(self) -> list[Site]:
        return [self.sites[name] for name in self.inferred_sites]

    @property
    def _context(self) -> list[str]:
        return [site.name for site in self.sites.values() if site.role == "context"]

    @property
    def _kept_sites(self) -> tuple[str, ...]:
        return self.inferred_sites

    @cached_property
    def _pilot(self) -> dict[str, Array]:
        """Finite simulations, that fix moments and the maps of the sites."""
        with concrete_values():
            source = self.source
            draws = (
                source.head(_NUM_PILOTS)
                if isinstance(source, Dataset)
                else source.sample(random.key(24), _NUM_PILOTS)
            )
            finite = np.logical_and.reduce(
                [
                    np.isfinite(np.asarray(draws[n])).reshape(len(draws[n]), -1).all(-1)
                    for n in self._needed_sites
                ]
            )
            return {n: jnp.asarray(x)[finite] for n, x in draws.items()}

    @cached_property
    def _tasks(self) -> list[_Task]:
        places = increasing_sites(self.latents_at, *self._probes, self.inferred_sites)
        return [
            _Task(
                site.name,
                score,
                rule,
                places.get(site.name) if isinstance(rule, Median | Quantiles) else None,
                site.shape,
            )
            for site in self._latents
            for score, rule in self.scoring_rules.items()
        ]

    @cached_property
    def _moments(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Means and standard deviations of each number of each site."""
        values = {n: np.asarray(self._pilot[n], float) for n in self.inferred_sites}
        flat = {n: x.reshape(len(x), -1) for n, x in values.items()}
        dtype = jnp.result_type(float)
        return {
            n: (x.mean(0).astype(dtype), np.where(x.std(0) > 0, x.std(0), 1).astype(dtype))
            for n, x in flat.items()
        }

    @property
    def _probes(self) -> tuple[Array, Batch]:
        head = {n: x[:_NUM_PROBES] for n, x in self._pilot.items()}
        given = {name: head[name] for name in self._context}
        return self.adapter.forward(head)["inference_variables"], given

    def _build(self, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        modules, condition_size = build_summary(self._summary_spec, self._row, rngs)
        for index, task in enumerate(self._tasks):
            out_size = task.rule.num_outputs(task.size)
            modules[f"subnet_{index}"] = make_network(
                self._subnet_spec, rngs, size=condition_size, out_size=out_size
            )
        if self._parametric is not None:
            modules["density"] = Parametric(
                self.num_variables,
                condition_size,
                rule=self._parametric,
                subnet=self._subnet_spec,
                rngs=rngs,
            )
        return modules

    def _loss(self, modules: nnx.Dict, rng_key: Array, inputs: Batch) -> Array:
        context = context_of(modules, inputs)
        scores = [
            task.rule.score(self._raw(modules, k, context), self._target_of(task, inputs))
            for k, task in enumerate(self._tasks)
        ]
        if self._parametric is not None:
            variables = inputs["inference_variables"]
            scores.append(modules["density"].loss(rng_key, variables, context))
        return jnp.sum(jnp.stack(scores), axis=0)

    def _raw(self, modules: nnx.Dict, index: int, context: Array) -> dict[str, Array]:
        """Estimates in the space in which they are learned."""
        task = self._tasks[index]
        return task.rule.estimates(modules[f"subnet_{index}"](context), task.size)

    def _target_of(self, task: _Task, inputs: Any) -> Array:
        if task.places is not None:
            return inputs["inference_variables"][:, task.places.ravel()]
        values = inputs["site_values"][task.site]
        if isinstance(task.rule, CategoricalRule):
            return values.reshape(len(values), -1)
        mean, scale = self._moments[task.site]
        return (values.reshape(len(values), -1) - mean) / scale

    @cached_property
    def _estimate(self) -> Callable[..., list[dict[str, Array]]]:
        self._tasks, self._moments  # noqa: B018  computed outside of the trace

        def estimate(
            graphdef: nnx.GraphDef, state: nnx.State, conditions: Batch
        ) -> list[dict[str, Array]]:
            modules = nnx.merge(graphdef, state)
            context = self.encode(graphdef, state, conditions)
            given = {name: conditions[name] for name in self._context}
            return [
                self._own(task, self._raw(modules, k, context), given)
                for k, task in enumerate(self._tasks)
            ]

        return jax.jit(estimate, static_argnums=0)

    def _own(self, task: _Task, estimates: dict[str, Array], given: Batch) -> dict[str, Array]:
        """Estimates in the site's own space."""
        if task.places is not None:
            return {n: self._carried(task, x, given) for n, x in estimates.items()}
        return task.rule.moved(estimates, *self._moments[task.site], task.shape)

    def _carried(self, task: _Task, values: Array, given: Batch) -> Array:
        """Through the map of the site, which depends on its own variables alone."""
        vectors = jnp.zeros((len(values), self.num_variables))
        assert task.places is not None
        vectors = vectors.at[:, task.places.ravel()].set(values)
        return jax.vmap(self.latents_at)(vectors, given)[task.site]


def _check_rules(rules: object) -> None:
    if not isinstance(rules, Mapping):
        raise TypeError(
            "scoring_rules: expected a mapping of names to rules, {'mean': Mean()}, got "
            f"{type(rules).__name__}."
        )
    if not rules:
        raise ValueError("scoring_rules: expected at least one, {name: rule}.")
    for name, rule in rules.items():
        if not isinstance(rule, ScoringRule):
            raise TypeError(
                f"scoring_rules: '{name}': expected a scoring rule such as Mean(), got {rule!r}."
            )
