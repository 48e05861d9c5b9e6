# SPDX-License-Identifier: Apache-2.0
"""What several devices compute, as arrays in a file.

``python -m tests.devices train directory`` makes ``all.npz`` with all devices and ``one.npz`` with
the first one. With an address and the process's number, two processes share the work, and each one
writes ``process_<number>.npz``.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import random

import numpyro_amortized as npa
from numpyro_amortized.approximators.conditions import in_batches, map_in_chunks
from numpyro_amortized.datasets import OfflineDataset
from numpyro_amortized.training import train
from tests import models
from tests.conftest import AFFINE, SETS

NUM_DATASETS, NUM_BANK, NUM_VALIDATION = 13, 99, 51  # no multiples of the devices
BATCH_SIZE = 32
OPTIONS = {"epochs": 2, "num_batches": 3, "progress_bar": False}


def minimize(directory):
    """One parameter by the training loop, and a function mapped over rows."""
    shares = Shares()

    def loss(w, rng_key, batch):
        shares.record(batch["x"])
        return (w - batch["x"] - random.normal(rng_key, batch["x"].shape)) ** 2

    best, history = train(
        random.key(0),
        loss,
        jnp.zeros(()),
        OfflineDataset({"x": jnp.linspace(-1, 2, NUM_BANK)}),
        optimizer=optax.sgd(0.1),
        validation={"x": jnp.linspace(-1, 1, NUM_VALIDATION)},
        batch_size=BATCH_SIZE,
        **OPTIONS,
    )
    squares = jax.jit(lambda x: map_in_chunks(jnp.square, (x,), 2))
    mapped = in_batches(squares, (jnp.linspace(0, 1, BATCH_SIZE),), None)
    return {
        "losses": history.loss,
        "validation_losses": history.validation_loss,
        "parameters": np.ravel(best),
        "draws": np.asarray(mapped),
        "rows": shares.rows,
        "datasets": [len(x.data) for x in mapped.addressable_shards],
    }


def train_and_sample(directory):
    """Two trainings, online and over a bank whose latents move; a resumed one, and draws."""
    shares = Shares()

    def regularizer(summaries):
        shares.record(summaries)
        return (summaries**2).mean()

    def untrained():
        return npa.ContinuousApproximator(
            npa.ModelSimulator(models.normal_mean, np.zeros(4)),
            inference_network=AFFINE,
            summary_network=SETS,
            summary_regularizer=regularizer,
        )

    approximator, other = untrained(), untrained()
    bank = jax.tree.map(np.asarray, approximator.source.sample(random.key(9), NUM_BANK))
    options = OPTIONS | {"validation": NUM_VALIDATION}
    run = options | {"batch_size": BATCH_SIZE, "checkpoint_dir": directory}
    online = approximator.fit(random.key(0), **run)
    other.fit(random.key(0), **run)
    same = [
        (x == y).all() for x, y in zip(parameters(approximator), parameters(other), strict=True)
    ]
    rows = shares.rows
    offline = approximator.fit(random.key(1), batch_size=30, dataset=bank, **options)
    y = np.linspace(-1, 1, 4 * NUM_DATASETS).reshape(NUM_DATASETS, 4)
    some = approximator.sample(random.key(3), 5, {"y": y[:8]})["mu"]
    return {
        "losses": np.concatenate([online.loss, offline.loss]),
        "validation_losses": np.concatenate([online.validation_loss, offline.validation_loss]),
        "parameters": np.concatenate([np.ravel(x) for x in parameters(approximator)]),
        "draws": np.asarray(approximator.sample(random.key(2), 5, {"y": y})["mu"]),
        "rows": rows,
        "datasets": [len(x.data) for x in some.addressable_shards],
        "resumed": all(same),
    }


def parameters(approximator):
    return jax.tree.leaves(nnx.state(approximator.networks, nnx.Param))


class Shares:
    """How many rows of a batch each device has, as the compiled program says."""

    def __init__(self):
        self.rows = []

    def record(self, batch):
        def keep(sharding):
            if len(batch) == BATCH_SIZE:
                self.rows.append(sharding.shard_shape(batch.shape)[0])

        jax.debug.inspect_array_sharding(batch, callback=keep)


def main(kind, directory, address=None, process=None):
    jax.config.update("jax_disable_most_optimizations", True)
    directory = Path(directory)
    results = {"minimize": minimize, "train": train_and_sample}[kind]
    if address is not None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, 2, int(process))
        np.savez(directory / f"process_{process}.npz", **results(directory / "run"))
        return
    np.savez(directory / "all.npz", **results(directory / "all"))
    with jax.default_device(jax.devices()[0]):
        np.savez(directory / "one.npz", **results(directory / "one"))


if __name__ == "__main__":
    main(*sys.argv[1:])
