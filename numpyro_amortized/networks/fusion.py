# SPDX-License-Identifier: Apache-2.0
"""Several observed sites, each summarized by its own network."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, final

import jax.numpy as jnp
from flax import nnx
from jax import Array

from numpyro_amortized.networks.mlp import MLP, swish


class SummaryNetwork(Protocol):
    """Maps data and a mask to summaries, shape ``(*batch, summary_size)``."""

    summary_size: int

    def __call__(self, x: Array, mask: Array | None = None) -> Array: ...


@final
class Fusion(nnx.Module):
    """One summary of several sites [1].

    The sites' summaries, each by a network of its own, are joined and mapped to one summary.

    :param size: number of features of a member, step or cell of each site.
    :param summary_size: length of the summary.
    :param networks: for each site a summary network, its class or a partial of one, which gets its
        size and random streams from here.
    :param widths: hidden layers of the perceptron that merges the summaries.
    :param activation: its activation.
    :param rngs: random streams of the initial parameters.
    :raises ValueError: where the sites of ``size`` and ``networks`` differ.

    >>> from numpyro_amortized.networks.deep_set import DeepSet
    >>> from numpyro_amortized.networks.gru import GRU
    >>> networks = {"survey": DeepSet, "series": GRU}
    >>> network = Fusion({"survey": 3, "series": 1}, 8, networks=networks, rngs=nnx.Rngs(0))
    >>> network({"survey": jnp.ones((5, 20, 3)), "series": jnp.ones((5, 100, 1))}).shape
    (5, 8)

    **References**

    1. *Fuse It or Lose It: Deep Fusion for Multimodal Simulation-Based Inference*, Schmitt
       et al. (2023), late fusion.
    """

    def __init__(
        self,
        size: Mapping[str, int],
        summary_size: int = 32,
        *,
        networks: Mapping[str, SummaryNetwork | Callable[..., SummaryNetwork]],
        widths: Sequence[int] = (64,),
        activation: Callable[[Array], Array] = swish,
        rngs: nnx.Rngs,
    ) -> None:
        _check_names("networks", networks, size)
        self.summary_size = summary_size
        self.sites = tuple(sorted(size))
        modules = [build_network(networks[site], size[site], rngs) for site in self.sites]
        self.networks = nnx.List(modules)
        joined = sum(module.summary_size for module in modules)
        self.merge = MLP(joined, summary_size, widths=widths, activation=activation, rngs=rngs)

    def __call__(
        self, inputs: Mapping[str, Array], masks: Mapping[str, Array | None] | None = None
    ) -> Array:
        """Summaries, shape ``(*batch, summary_size)``.

        :param inputs: the data of each site, as its network takes them, with equal batch axes.
        :param masks: masks of those sites that have one; a site that was not observed at all has
            a mask that is false everywhere.
        :raises ValueError: where the sites of ``inputs`` are not those of the networks, or there
            are masks of other sites.
        """
        masks = {} if masks is None else masks
        _check_names("inputs", inputs, self.sites)
        _check_names("masks", {**dict.fromkeys(self.sites), **masks}, self.sites)
        parts = [
            network(inputs[site], masks.get(site))
            for site, network in zip(self.sites, self.networks, strict=True)
        ]
        return self.merge(jnp.concatenate(parts, axis=-1))


def build_network(network: Any, size: int, rngs: nnx.Rngs) -> Any:
    """A ready module as it is; a class or a partial of one with its sizes."""
    return network if isinstance(network, nnx.Module) else network(size=size, rngs=rngs)


def _check_names(argument: str, given: Mapping[str, Any], expected: Any) -> None:
    if set(given) != set(expected):
        raise ValueError(
            f"Fusion: {argument}: expected the sites {sorted(expected)}, got {sorted(given)}; "
            "give one entry for each site."
        )
