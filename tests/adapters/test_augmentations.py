# SPDX-License-Identifier: Apache-2.0
"""Random changes to simulations."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import random

from numpyro_amortized.adapters.augmentations import (
    Noise,
    RandomMissing,
    RandomSubsample,
    augment,
)
from numpyro_amortized.augmented import AugmentedDataset
from numpyro_amortized.datasets import OfflineDataset, OnlineDataset
from numpyro_amortized.simulators.base import TraceableSimulator
from numpyro_amortized.streamed import HostDataset

NUM = 400
BATCH = {
    "x": jnp.broadcast_to(jnp.arange(10.0), (NUM, 10)),
    "z": jnp.broadcast_to(jnp.arange(10), (NUM, 2, 10)),
    "theta": jnp.zeros(NUM),
}


def shuffled(rng_key, data):
    return dict(data) | {"x": random.permutation(rng_key, data["x"])}


STEPS = {
    "subsample": RandomSubsample("x", 4),
    "noise": Noise(["x", "theta"], dist.Normal(0.0, 0.1)),
    "missing": RandomMissing("x", 0.3),
    "own function": shuffled,
}


@pytest.mark.parametrize("name", STEPS)
def test_reproducible_and_new_for_each_simulation_and_key(name):
    run = jax.jit(lambda key, data: augment(key, data, [STEPS[name]]))
    one, again, other = (np.asarray(run(random.key(k), BATCH)["x"]) for k in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    assert len(np.unique(np.nan_to_num(one, nan=-1.0), axis=0)) > NUM / 5
    raw = augment(jnp.array([0, 0], jnp.uint32), BATCH, [STEPS[name]])["x"]
    np.testing.assert_allclose(raw, one, rtol=1e-6)


@pytest.mark.parametrize("size, expected", [(4, 4), (0.5, 5), (1.0, 10), (0.01, 1)])
def test_subsamples_are_without_replacement_and_uniform(size, expected):
    step = RandomSubsample(["x", "z"], size)
    out = augment(random.key(0), BATCH, [step])
    x = np.asarray(out["x"])
    assert x.shape == (NUM, expected) and out["z"].shape == (NUM, 2, expected)
    assert all(len(set(row)) == expected for row in x)
    # entries lose the same places
    np.testing.assert_array_equal(out["z"], np.stack([x, x], axis=1))
    share = expected / 10
    error = 5 * np.sqrt(max(share * (1 - share), 1e-12) / NUM)  # five standard errors
    np.testing.assert_allclose((x[..., None] == np.arange(10)).any(1).mean(0), share, atol=error)


def test_noise_has_its_distribution():
    out = augment(random.key(1), BATCH, [Noise("x", dist.Normal(1.0, 0.5))])
    noise = np.asarray(out["x"] - BATCH["x"])
    # five standard errors of 4,000 independent numbers
    assert abs(noise.mean() - 1) < 5 * 0.5 / np.sqrt(noise.size)
    assert abs(noise.std() - 0.5) < 5 * 0.5 / np.sqrt(2 * noise.size)
    np.testing.assert_array_equal(out["theta"], BATCH["theta"])
    joint = Noise("x", dist.MultivariateNormal(jnp.zeros(10), jnp.eye(10)))
    assert augment(random.key(1), BATCH, [joint])["x"].shape == (NUM, 10)


@pytest.mark.parametrize("axis", [None, -1])
def test_values_are_missing_at_random(axis):
    out = augment(random.key(2), BATCH, [RandomMissing(["x", "z"], 0.3, axis)])
    missing = np.isnan(out["x"])
    assert abs(missing.mean() - 0.3) < 5 * np.sqrt(0.21 / missing.size)
    if axis is not None:  # whole places of both rows
        z = np.isnan(out["z"])
        np.testing.assert_array_equal(z[:, 0], z[:, 1])


def test_in_order_and_with_several_batch_axes():
    data = {"x": jnp.zeros((3, 2, 5))}

    def tens(rng_key, values):
        return {"x": values["x"] + 10}

    def doubled(rng_key, values):
        return {"x": values["x"] * 2}

    out = augment(random.key(0), data, [tens, doubled], num_batch_axes=2)
    np.testing.assert_array_equal(out["x"], np.full((3, 2, 5), 20.0))


def test_absent_entries_are_not_missed():
    steps = [step for name, step in STEPS.items() if name != "own function"]
    out = augment(random.key(0), {"other": jnp.ones((3, 2))}, steps)
    np.testing.assert_array_equal(out["other"], np.ones((3, 2)))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: RandomSubsample("x", 0), "positive integer or a share"),
        (lambda: RandomSubsample("x", 1.5), "positive integer or a share"),
        (lambda: RandomMissing("x", -0.1), "between 0 and 1"),
        (lambda: augment(random.key(0), BATCH, [RandomSubsample("x", 11)]), "at least 11 places"),
        (
            lambda: augment(random.key(0), BATCH, [RandomSubsample(["x", "z"], 2, axis=0)]),
            "all the same number",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class Zeros(TraceableSimulator):
    """Simulations without any variation."""

    def simulate(self, rng_key):
        return {"x": jnp.zeros(10)}


@pytest.mark.parametrize("dataset", ["online", "offline"])
def test_every_batch_of_a_data_set_is_changed_anew(dataset):
    source = (
        OnlineDataset(Zeros()) if dataset == "online" else OfflineDataset({"x": np.zeros((64, 10))})
    )
    steps = [RandomSubsample("x", 4), Noise("x", dist.Normal(0.0, 1.0))]
    # the adapter comes last
    augmented = AugmentedDataset(source, steps).map(lambda values: {"x": values["x"] + 100.0})
    assert augmented.head(2)["x"].shape == (2, 4)

    @jax.jit
    def batches(key, arrays):
        arrays, epoch = augmented.start(key, arrays)
        return arrays, [augmented.batch(epoch, jnp.asarray(step), 32)["x"] for step in (0, 1)]

    arrays, (one, two) = batches(random.key(0), augmented.arrays)
    _, (three, _) = batches(random.key(1), arrays)
    assert one.shape == (32, 4)
    assert all(abs(float(x.mean()) - 100) < 5 / np.sqrt(x.size) for x in (one, two, three))
    assert len(np.unique(np.stack([one, two, three]))) == 3 * one.size
    np.testing.assert_array_equal(batches(random.key(0), augmented.arrays)[1][0], one)


def test_data_sets_of_the_host_are_refused():
    with pytest.raises(TypeError, match="on the device, got HostDataset"):
        AugmentedDataset(HostDataset(Zeros()), [])
