# SPDX-License-Identifier: Apache-2.0
"""A model with branches as several models, one for each value of the site that chooses."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import numpy as np
import numpyro
from jax import Array, random
from numpyro import handlers
from numpyro.primitives import Messenger

from numpyro_amortized.simulators.model import ModelSimulator
from numpyro_amortized.simulators.unobserve import Notes, simulate_observed

__all__ = ["Branches", "marked_sites", "split_branches"]

_NUM_PROBES = 4


class Branches(NamedTuple):
    """The branches of a model, in the order of the values of the site that chooses."""

    simulators: tuple[ModelSimulator, ...]
    probs: np.ndarray  # prior probabilities, shape (num_branches,)
    site: str
    values: tuple[Any, ...]


def split_branches(
    model: Callable[..., Any], *args: Any, observed: Sequence[str] | None = None, **kwargs: Any
) -> Branches:
    """
    Splits a model by its discrete latent site marked ``infer={"branching": True}``.

    In each branch that site has one value, which is known while the model is traced: Python's
    ``if`` can choose by it, and branches may have different sites.

    **Example**

    .. doctest::

        >>> import numpyro, numpyro.distributions as dist
        >>> def model(y):
        ...     heavy = numpyro.sample("heavy", dist.Bernoulli(0.2), infer={"branching": True})
        ...     mu = numpyro.sample("mu", dist.Normal(0, 1))
        ...     noise = dist.StudentT(3, mu, 1) if heavy else dist.Normal(mu, 1)
        ...     numpyro.sample("y", noise, obs=y)
        >>> branches = split_branches(model, 0.5)
        >>> branches.values, branches.probs.round(2).tolist()
        ((0, 1), [0.8, 0.2])

    :param model: a NumPyro model.
    :param args: its arguments, as for :class:`.ModelSimulator`.
    :param observed: names of the observed sites, as for :class:`.ModelSimulator`.
    :param kwargs: the model's keyword arguments.
    :return: the branches.
    :raises ValueError: if not exactly one site is marked, or it is no single discrete latent of
        finitely many values, or its distribution depends on other sites.
    """
    keys = random.split(random.key(0), _NUM_PROBES)
    found = [_run_to_mark(model, key, args, kwargs) for key in keys]
    name, fn = found[0]["name"], found[0]["fn"]
    _refuse_dependence(name, [site["fn"] for site in found])
    support = fn.enumerate_support()
    probs = np.exp(np.asarray(fn.log_prob(support), float))
    # A NumPy scalar stays concrete under jit, where a JAX array would be traced.
    values = tuple(np.asarray(support))
    models = [handlers.substitute(model, data={name: value}) for value in values]
    simulators = [ModelSimulator(each, *args, observed=observed, **kwargs) for each in models]
    for simulator in simulators:
        if more := marked_sites(simulator):
            raise ValueError(
                f"Sites {[name, *more]} are marked as branching, but a model is split by one site. "
                "Draw one site that stands for all combinations."
            )
    branches = tuple(value.item() for value in values)
    return Branches(tuple(simulators), probs / probs.sum(), name, branches)


def marked_sites(simulator: ModelSimulator) -> list[str]:
    """
    :param simulator: a traced model.
    :return: names of its sites that are marked as branching and not fixed.
    """
    marked: list[str] = []

    def look(rng_key: Array) -> None:
        for name, site in simulator.trace(rng_key).items():
            if name in simulator.sites and _is_marked(site):
                marked.append(name)

    jax.eval_shape(look, random.key(0))
    return marked


class _Found(Exception):  # noqa: N818
    """Ends a run at the marked site: what comes after it may need its value to be concrete."""


class _stop_at_mark(Messenger):  # noqa: N801
    site: dict[str, Any]

    def process_message(self, msg: dict[str, Any]) -> None:
        if _is_marked(msg):
            self.site = msg
            raise _Found


def _is_marked(site: Mapping[str, Any]) -> bool:
    return site["type"] == "sample" and bool(site["infer"].get("branching"))


def _run_to_mark(
    model: Callable[..., Any], rng_key: Array, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    notes = Notes()
    run = _stop_at_mark(simulate_observed(model, notes=notes))
    try:
        with numpyro.validation_enabled(False):
            trace = handlers.trace(handlers.seed(run, rng_key)).get_trace(*args, **kwargs)
    except _Found:
        _check_site(run.site, notes)
        return run.site
    raise ValueError(
        f"No site among {list(trace)} is marked as branching. Mark the discrete site that chooses: "
        'numpyro.sample(name, distribution, infer={"branching": True}).'
    )


def _check_site(site: Mapping[str, Any], notes: Notes) -> None:
    fn, problem = site["fn"], None
    if site["name"] in notes.given:
        problem = "has a value already"
    elif not fn.has_enumerate_support:
        problem = f"is a {type(fn).__name__}, which has no finite list of values"
    elif fn.batch_shape or fn.event_shape or site["cond_indep_stack"]:
        problem = f"has shape {fn.batch_shape + fn.event_shape} or stands in a plate"
    if problem is not None:
        raise ValueError(
            f"Site '{site['name']}' is marked as branching, but {problem}. Expected a single "
            "latent site with a discrete distribution, such as Categorical, outside of plates."
        )


def _refuse_dependence(name: str, fns: Sequence[Any]) -> None:
    parameters = [jax.tree.leaves(fn) for fn in fns]
    if not all(all(map(np.array_equal, *pair)) for pair in pairwise(parameters)):
        raise ValueError(
            f"Site '{name}' is marked as branching, but its distribution depends on other sites, "
            "so that its branches have no prior probabilities of their own. Draw it from a "
            "distribution with known parameters."
        )
