# SPDX-License-Identifier: Apache-2.0
"""Child process of the benchmarks: BayesFlow, in an environment of its own."""

import time
from typing import Any

import bayesflow as bf
import keras
import numpy as np

from benchmarks import protocol

_DEFAULT_BATCH_SIZE = 32  # of `fit_offline`


class BayesFlow:
    """BayesFlow's own workflow with its default optimizer.

    :param network: the inference network.
    :param options: further options of ``fit_offline``.
    """

    def __init__(self, network: bf.networks.InferenceNetwork, **options: int) -> None:
        self.options = options
        self.workflow = bf.BasicWorkflow(
            inference_network=network,
            inference_variables=["theta"],
            inference_conditions=["x"],
            standardize="all",
        )

    def fit(self, theta: np.ndarray, x: np.ndarray) -> dict[str, Any]:
        clock = [time.perf_counter()]
        tick = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda *_: clock.append(time.perf_counter())
        )
        self.workflow.fit_offline(
            {"theta": theta, "x": x}, verbose=0, callbacks=[tick], **self.options
        )
        weights = self.workflow.inference_network.trainable_weights
        batches = -(-len(theta) // self.options.get("batch_size", _DEFAULT_BATCH_SIZE))
        return {
            "parameters": sum(int(np.prod(weight.shape)) for weight in weights),
            "steps": len(clock[1:]) * batches,
            "epoch_seconds": np.diff(clock).tolist(),
        }

    def sample(self, num_samples: int, x: np.ndarray) -> np.ndarray:
        return self.workflow.sample(num_samples=num_samples, conditions={"x": x})["theta"]

    def log_prob(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        return self.workflow.log_prob({"theta": theta, "x": x})


def spline_flow() -> BayesFlow:
    """Coupling flow of the size, batch and number of passes that the speed benchmark compares."""
    network = bf.networks.CouplingFlow(
        depth=protocol.DEPTH,
        transform="spline",
        transform_kwargs={"bins": protocol.BINS},
        subnet_kwargs={"widths": protocol.WIDTHS},
    )
    return BayesFlow(network, epochs=protocol.NUM_EPOCHS, batch_size=protocol.BATCH_SIZE)


def flow_matching() -> BayesFlow:
    """Flow matching of BayesFlow's default size, with the same batch and number of passes."""
    network = bf.networks.FlowMatching()
    return BayesFlow(network, epochs=protocol.NUM_EPOCHS, batch_size=protocol.BATCH_SIZE)


METHODS = {
    "spline_flow": spline_flow,
    "flow_matching": flow_matching,
    "default_coupling_flow": lambda: BayesFlow(bf.networks.CouplingFlow()),
    "default_flow_matching": lambda: BayesFlow(bf.networks.FlowMatching()),
}


if __name__ == "__main__":
    arguments = protocol.parser(methods=list(METHODS)).parse_args()
    keras.utils.set_random_seed(arguments.seed)
    protocol.run(METHODS[arguments.method](), arguments)
