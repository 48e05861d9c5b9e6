# SPDX-License-Identifier: Apache-2.0
"""Child process of the speed benchmark: BayesFlow, in an environment of its own."""

import time
from typing import Any

import bayesflow as bf
import keras
import numpy as np

from benchmarks import speed_protocol as protocol


class BayesFlow:
    """Spline coupling flow trained by BayesFlow's own workflow and its default optimizer."""

    def __init__(self, *, seed: int) -> None:
        keras.utils.set_random_seed(seed)
        network = bf.networks.CouplingFlow(
            depth=protocol.DEPTH,
            transform="spline",
            transform_kwargs={"bins": protocol.BINS},
            subnet_kwargs={"widths": protocol.WIDTHS},
        )
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
            {"theta": theta, "x": x},
            epochs=protocol.NUM_EPOCHS,
            batch_size=protocol.BATCH_SIZE,
            verbose=0,
            callbacks=[tick],
        )
        weights = self.workflow.inference_network.trainable_weights
        batches = -(-len(theta) // protocol.BATCH_SIZE)
        return {
            "parameters": sum(int(np.prod(weight.shape)) for weight in weights),
            "steps": protocol.NUM_EPOCHS * batches,
            "epoch_seconds": np.diff(clock).tolist(),
        }

    def sample(self, num_samples: int, x: np.ndarray) -> np.ndarray:
        return self.workflow.sample(num_samples=num_samples, conditions={"x": x})["theta"]

    def log_prob(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        return self.workflow.log_prob({"theta": theta, "x": x})


if __name__ == "__main__":
    arguments = protocol.parser(methods=["bayesflow"]).parse_args()
    protocol.run(BayesFlow(seed=arguments.seed), arguments)
