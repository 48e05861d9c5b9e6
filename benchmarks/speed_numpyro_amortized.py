# SPDX-License-Identifier: Apache-2.0
"""Child process of the speed benchmark: this package."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from flax import nnx
from jax import Array, random
from jax.typing import ArrayLike

import numpyro_amortized as npa
from benchmarks import protocol
from benchmarks.tasks import TASKS, slcp_likelihood, two_moons


def flat_slcp(x: ArrayLike | None = None) -> None:
    """``slcp`` without its plate: eight numbers, as BayesFlow gets them."""
    theta = numpyro.sample("theta", dist.Uniform(-3, 3).expand([5]).to_event(1))
    points = slcp_likelihood(theta).expand([4]).to_event(1)
    flatten = dist.transforms.ReshapeTransform((8,), (4, 2))
    numpyro.sample("x", dist.TransformedDistribution(points, flatten), obs=x)


FLAT: dict[str, Callable[..., None]] = {"two_moons": two_moons, "slcp": flat_slcp}
# with as many parameters as BayesFlow's: of five variables, all couplings here transform three
WIDTHS = {"two_moons": protocol.WIDTHS, "slcp": (118, 118)}
FLOW_MATCHING_WIDTHS = (432,) * 5  # of as many parameters as BayesFlow's default
EQUAL = {
    "epochs": protocol.NUM_EPOCHS,
    "batch_size": protocol.BATCH_SIZE,
    "validation": 0,
    "rejuvenation": 0,
}


class NumPyroAmortized:
    """Posterior of a model with the one latent site ``theta``.

    :param model: the model.
    :param seed: seed of the training and the draws.
    :param inference_network: as :class:`npa.ContinuousApproximator` takes it.
    :param options: further options of ``fit``.
    """

    def __init__(
        self,
        model: Callable[..., None],
        *,
        seed: int,
        inference_network: Callable[..., nnx.Module] = npa.networks.CouplingFlow,
        options: dict[str, int],
    ) -> None:
        simulator = npa.ModelSimulator(model, observed=("x",))
        self.shape = simulator.sites["x"].shape
        self.approximator = npa.ContinuousApproximator(
            simulator, inference_network=inference_network
        )
        self.options = options
        self.key = random.key(seed)

    def fit(self, theta: np.ndarray, x: np.ndarray) -> dict[str, Any]:
        bank = {"theta": jnp.asarray(theta), "x": jnp.asarray(self._observed(x))}
        history = self.approximator.fit(
            self._next_key(), dataset=bank, progress_bar=False, **self.options
        )
        weights = jax.tree.leaves(nnx.state(self.approximator.inference_network, nnx.Param))
        return {
            "parameters": sum(weight.size for weight in weights),
            "steps": history.num_steps,
            "epoch_seconds": history.seconds.tolist(),
        }

    def sample(self, num_samples: int, x: np.ndarray) -> np.ndarray:
        sites = self.approximator.sample(self._next_key(), num_samples, {"x": self._observed(x)})
        return np.asarray(sites["theta"])

    def log_prob(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        return np.asarray(self.approximator.log_prob({"theta": theta, "x": self._observed(x)}))

    def _observed(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(-1, *self.shape)

    def _next_key(self) -> Array:
        self.key, key = random.split(self.key)
        return key


def equal_network(task: str, seed: int) -> NumPyroAmortized:
    """BayesFlow's network, batch and steps; like there, nothing is held out."""
    spline = npa.networks.Spline(bins=protocol.BINS)
    network = partial(
        npa.networks.CouplingFlow, transform=spline, depth=protocol.DEPTH, widths=WIDTHS[task]
    )
    return NumPyroAmortized(FLAT[task], seed=seed, inference_network=network, options=EQUAL)


def equal_flow_matching(task: str, seed: int) -> NumPyroAmortized:
    """Flow matching of the size of BayesFlow's default, with its batch and steps."""
    network = partial(npa.networks.FlowMatching, widths=FLOW_MATCHING_WIDTHS)
    return NumPyroAmortized(FLAT[task], seed=seed, inference_network=network, options=EQUAL)


def flow_matching(task: str, seed: int) -> NumPyroAmortized:
    """Flow matching of the default size, whose widths are BayesFlow's, with its batch and steps."""
    network = npa.networks.FlowMatching
    return NumPyroAmortized(FLAT[task], seed=seed, inference_network=network, options=EQUAL)


def default_network(task: str, seed: int) -> NumPyroAmortized:
    """The package's default network and all else by default, with BayesFlow's batch and steps.

    A tenth of the bank is held out: 22 passes of 71 batches are about as many steps.
    """
    options = {"epochs": 22, "batch_size": protocol.BATCH_SIZE}
    return NumPyroAmortized(TASKS[task].model, seed=seed, options=options)


def defaults(task: str, seed: int) -> NumPyroAmortized:
    """The package's defaults throughout, the number of steps too."""
    return NumPyroAmortized(TASKS[task].model, seed=seed, options={})


METHODS = {
    "equal": equal_network,
    "network": default_network,
    "default": defaults,
    "equal_flow_matching": equal_flow_matching,
    "flow_matching": flow_matching,
}


if __name__ == "__main__":
    arguments = protocol.parser(methods=list(METHODS)).parse_args()
    protocol.run(METHODS[arguments.method](arguments.task, arguments.seed), arguments)
