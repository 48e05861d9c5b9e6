# SPDX-License-Identifier: Apache-2.0
"""What of a model is settled once the values of some sites are known."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from numpyro_amortized.simulators.model import ModelSimulator
from numpyro_amortized.simulators.tracing import probe, varies

__all__ = ["Varying", "varying_sites"]


class Varying(NamedTuple):
    """What of a site still varies when the known sites are held fixed.

    :param distribution: the distribution of a sample site.
    :param support: its support.
    :param value: the value of a deterministic site.
    """

    distribution: bool
    support: bool
    value: bool


def varying_sites(
    simulator: ModelSimulator, values: Mapping[str, Array | np.ndarray]
) -> dict[str, Varying]:
    """
    Holds some sites fixed and simulates the others anew: what changes depends on the others.

    :param simulator: a traced model.
    :param values: site name to the value of one event.
    :return: site name to what varies, for every site of the model.
    """

    def read(rng_key: Array) -> dict[str, Any]:
        trace = simulator.trace(rng_key, values)
        return {name: _leaves(trace[name]) for name in simulator.sites if name in trace}

    return {
        name: Varying(*(any(map(varies, leaves)) for leaves in parts))
        for name, parts in probe(read).items()
    }


def _leaves(site: dict[str, Any]) -> tuple[list[Array], list[Array], list[Array]]:
    if site["type"] != "sample":
        return [], [], [site["value"]]
    fn = site["fn"]
    return jax.tree.leaves(fn), jax.tree.leaves(fn.support), []  # unread draws are not compiled
