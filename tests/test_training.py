# SPDX-License-Identifier: Apache-2.0
"""Training, online and from a bank, through ``fit``."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import nnx
from jax import random

import numpyro_amortized as npa
from numpyro_amortized.datasets import OfflineDataset, OnlineDataset, finite_rows
from numpyro_amortized.disk import DiskDataset
from numpyro_amortized.simulators.base import Simulator
from numpyro_amortized.training import default_optimizer, train
from tests import models
from tests.conftest import AFFINE, SETS

SHORT = {"epochs": 2, "num_batches": 5, "batch_size": 32, "progress_bar": False, "rejuvenation": 0}


@pytest.fixture
def approximator(approximate):
    return approximate(models.normal_mean, np.zeros(4), network=AFFINE)


@pytest.fixture(scope="module")
def bank():
    draws = npa.ModelSimulator(models.normal_mean, np.zeros(4)).sample(random.key(9), 200)
    return jax.tree.map(np.asarray, draws)


def parameters(approximator):
    return jax.tree.leaves(nnx.state(approximator.inference_network, nnx.Param))


def partly_undefined(share):
    """Simulations are NaN with probability ``share``."""

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        u = numpyro.sample("u", dist.Uniform(0, 1))
        loc = jnp.where(u < share, jnp.nan, mu)
        numpyro.sample("y", dist.Normal(loc, 1), obs=y)

    return model


@pytest.mark.parametrize("offline", [pytest.param(False, marks=pytest.mark.verify), True])
def test_same_key_same_networks(approximate, bank, offline):
    histories, weights = [], []
    before = jax.tree.map(np.array, bank)
    for _ in range(2):
        approximator = approximate(models.normal_mean, np.zeros(4), network=AFFINE)
        # a bank with moves of its latents, which are the default
        options = SHORT | ({"dataset": bank, "rejuvenation": None} if offline else {})
        histories.append(approximator.fit(random.key(0), **options))
        weights.append(parameters(approximator))
    np.testing.assert_array_equal(histories[0].loss, histories[1].loss)
    np.testing.assert_array_equal(histories[0].validation_loss, histories[1].validation_loss)
    for first, second in zip(*weights, strict=True):
        np.testing.assert_array_equal(first, second)
    assert set(before) == set(bank)  # which is not changed
    for name, value in before.items():
        np.testing.assert_array_equal(bank[name], value)


def test_history(approximator):
    history = approximator.fit(random.key(0), **SHORT)
    assert history.loss.shape == history.validation_loss.shape == history.seconds.shape == (2,)
    assert (history.num_steps, history.num_simulations) == (10, 320)
    assert (history.skipped_simulations, history.skipped_steps) == (0, 0)
    # every batch is new, so that the last parameters are kept, and nothing is held out
    assert history.best_epoch == 1 and np.isnan(history.validation_loss).all()
    assert (history.seconds > 0).all()


@pytest.mark.verify
def test_an_epoch_is_at_most_one_pass_over_the_bank(approximator, bank):
    # a tenth is held out for validation: 180 remain, six batches of 32, the last
    # of which overlaps with the one before
    history = approximator.fit(random.key(0), dataset=bank, **SHORT | {"num_batches": None})
    assert history.num_steps == 2 * 6
    assert (
        approximator.fit(random.key(0), dataset=bank, **SHORT | {"num_batches": 99}).num_steps == 12
    )
    history = approximator.fit(random.key(0), dataset=bank, **SHORT | {"batch_size": 1000})
    assert history.num_simulations == 2 * 180


def test_a_dataset_object_is_a_bank(approximator, bank):
    history = approximator.fit(random.key(0), dataset=OfflineDataset(bank), **SHORT)
    assert np.isfinite(history.loss).all()
    history = approximator.fit(random.key(0), dataset=OnlineDataset(approximator.source), **SHORT)
    assert np.isfinite(history.loss).all()


@pytest.mark.verify
def test_a_bank_on_disk(approximator, tmp_path):
    path = tmp_path / "bank"
    approximator.source.to_disk(random.key(0), 400, path, chunk_size=50, progress_bar=False)
    for memory in (10**9, 4 * 5 * 100):  # a pass over the 360 that are not held out: in four loads
        dataset = DiskDataset(path, memory=memory)
        history = approximator.fit(
            random.key(1), dataset=dataset, epochs=2, batch_size=90, progress_bar=False
        )
        assert (history.num_steps, history.num_simulations) == (2 * 4, 2 * 360)
        assert np.isfinite(history.loss).all() and np.isfinite(history.validation_loss).all()


@pytest.mark.verify
def test_a_simulator_that_cannot_be_traced(approximator):
    class Host(Simulator):
        def sample(self, rng_key, batch_shape, *, workers=None):
            return jax.tree.map(np.asarray, approximator.source.sample(rng_key, batch_shape))

    host = npa.ContinuousApproximator(
        Host(),
        adapter=approximator.adapter,
        inference_network=AFFINE,
        summary_network=SETS,
    )
    history = host.fit(random.key(0), validation=50, **SHORT)
    assert np.isfinite(history.loss).all() and np.isfinite(history.validation_loss).all()


@pytest.mark.verify
def test_validation_can_be_given(approximator, bank):
    first = approximator.fit(random.key(0), dataset=bank, validation=bank, **SHORT)
    assert np.isfinite(first.validation_loss).all()
    assert approximator.fit(random.key(0), validation=50, **SHORT).num_simulations == 320


def test_called_again_it_goes_on(approximator):
    first = approximator.fit(random.key(0), **SHORT | {"epochs": 20})
    weights = [np.array(leaf) for leaf in parameters(approximator)]
    second = approximator.fit(random.key(1), **SHORT)
    assert second.loss[0] < first.loss[0] - 0.2
    moved = zip(weights, parameters(approximator), strict=True)
    assert any((a != b).any() for a, b in moved)


@pytest.mark.verify
def test_training_improves(approximator):
    history = approximator.fit(random.key(0), validation=200, **SHORT | {"epochs": 30})
    assert history.best_epoch == np.argmin(history.validation_loss)
    assert history.validation_loss[history.best_epoch] < history.validation_loss[0] - 0.2


@pytest.mark.verify
def test_the_optimizer_can_be_replaced(approximator):
    approximator.fit(random.key(0), **SHORT)
    weights = [np.array(leaf) for leaf in parameters(approximator)]
    approximator.fit(random.key(1), optimizer=optax.sgd(0.0), **SHORT)
    for before, after in zip(weights, parameters(approximator), strict=True):
        np.testing.assert_array_equal(before, after)


def quadratic(rates, dataset, optimizer, validation=None, epochs=4):
    """Minimize the mean of (w - x)^2 in one parameter."""
    return train(
        random.key(0),
        lambda w, key, batch: (w - batch["x"]) ** 2,
        jnp.asarray(rates),
        dataset,
        optimizer=optimizer,
        epochs=epochs,
        num_batches=10,
        batch_size=10,
        validation=validation,
        progress_bar=False,
    )


def test_the_best_parameters_are_kept():
    data = OfflineDataset({"x": jnp.ones(100)})
    held_out = {"x": jnp.full(5, 0.5)}
    # towards 1, past the validation optimum at 0.5
    best, history = quadratic(0.0, data, optax.sgd(0.02), held_out, epochs=8)
    assert 0 < history.best_epoch < 7
    np.testing.assert_allclose((best - 0.5) ** 2, history.validation_loss.min(), rtol=1e-4)
    last, history = quadratic(0.0, data, optax.sgd(0.02), epochs=8)
    assert last > 0.9 and history.best_epoch == 7 and np.isnan(history.validation_loss).all()


def test_every_epoch_is_validated_with_the_same_noise():
    def noisy(w, key, batch):
        return (w - random.normal(key, batch["x"].shape)) ** 2

    held_out = {"x": jnp.ones(5)}
    _, history = train(
        random.key(0),
        noisy,
        jnp.zeros(()),
        OfflineDataset({"x": jnp.ones(100)}),
        optimizer=optax.sgd(0.0),
        epochs=3,
        num_batches=2,
        batch_size=10,
        validation=held_out,
        progress_bar=False,
    )
    assert len(set(history.loss.tolist())) == 3
    assert len(set(history.validation_loss.tolist())) == 1


def test_initial_parameters_survive_donation():
    start = jnp.zeros(())
    quadratic(start, OfflineDataset({"x": jnp.ones(100)}), optax.sgd(0.1))
    assert start == 0


def test_values_that_are_not_finite_are_left_out():
    x = jnp.ones(100).at[::10].set(jnp.nan).at[5].set(jnp.inf)
    best, history = quadratic(0.0, OfflineDataset({"x": x}), optax.sgd(0.1))
    np.testing.assert_allclose(best, 1, atol=1e-2)
    assert history.skipped_simulations == 4 * 11 and history.skipped_steps == 0


def test_steps_that_are_not_finite_are_left_out():
    def loss(w, key, batch):  # the gradient of sqrt at zero is infinite, its value is not
        return jnp.sqrt(jnp.abs(batch["x"]) * w**2) + (w - 1) ** 2

    def run(x):
        return train(
            random.key(0),
            loss,
            jnp.asarray(0.5),
            OfflineDataset({"x": x}),
            optimizer=optax.sgd(0.01),
            epochs=1,
            num_batches=10,
            batch_size=10,
            validation=None,
            progress_bar=False,
        )

    best, history = run(jnp.ones(100).at[0].set(0))
    assert jnp.isfinite(best) and history.skipped_steps == 1
    with pytest.raises(FloatingPointError, match=r"10 of 10 steps.*Lower the learning rate"):
        run(jnp.zeros(100))


def test_undefined_simulations_online(approximate):
    approximator = approximate(partly_undefined(0.2), 0.0, network=AFFINE)
    history = approximator.fit(random.key(0), validation=50, **SHORT | {"num_batches": 20})
    # a fifth of 1,280, within five standard errors
    assert abs(history.skipped_simulations - 256) < 5 * np.sqrt(1280 * 0.2 * 0.8)
    assert np.isfinite(history.loss).all() and np.isfinite(history.validation_loss).all()


@pytest.mark.verify
def test_undefined_simulations_in_a_bank(approximate, bank):
    approximator = approximate(models.normal_mean, np.zeros(4), network=AFFINE)
    broken = bank | {"y": np.where(np.arange(200)[:, None] % 4 == 0, np.nan, bank["y"])}
    history = approximator.fit(random.key(0), dataset=broken, **SHORT)
    assert np.isfinite(history.loss).all()
    assert history.skipped_simulations == 50


def test_mostly_undefined_simulations(approximate, bank):
    with pytest.raises(ValueError, match=r"not finite.*Restrict the priors"):
        approximate(partly_undefined(0.8), 0.0, network=AFFINE)
    approximator = approximate(models.normal_mean, np.zeros(4), network=AFFINE)
    broken = bank | {"y": np.where(np.arange(200)[:, None] % 4, np.nan, bank["y"])}
    with pytest.raises(ValueError, match="not finite"):
        approximator.fit(random.key(0), dataset=broken, **SHORT)


def test_default_optimizer_warms_up_and_decays():
    optimizer = default_optimizer(100, learning_rate=1e-2, weight_decay=0.0)
    params, sizes = jnp.zeros(()), []
    state = optimizer.init(params)
    for _ in range(100):
        updates, state = optimizer.update(jnp.ones(()), state, params)
        sizes.append(float(jnp.abs(updates)))
    assert sizes[0] < 0.1 * max(sizes) and sizes[-1] < 0.01 * max(sizes)
    np.testing.assert_allclose(max(sizes), 1e-2, rtol=0.05)
    huge, _ = optimizer.update(jnp.asarray(1e20), optimizer.init(params), params)
    assert jnp.isfinite(huge)


def epoch_of(dataset, seed, num_batches, batch_size):
    _, epoch = dataset.start(random.key(seed), dataset.arrays)
    return [dataset.batch(epoch, jnp.asarray(i), batch_size) for i in range(num_batches)]


def test_every_simulation_once_in_an_epoch():
    data = OfflineDataset({"x": jnp.arange(12)})
    orders = [np.concatenate([b["x"] for b in epoch_of(data, seed, 3, 4)]) for seed in (0, 1)]
    assert all(sorted(order.tolist()) == list(range(12)) for order in orders)
    assert (orders[0] != orders[1]).any()


def test_split_and_finite():
    data = OfflineDataset({"x": jnp.arange(10.0).at[3].set(jnp.nan), "n": jnp.arange(10)})
    assert len(data.finite()) == 9
    rest, held_out = data.split(random.key(0), 4)
    assert (len(rest), len(held_out)) == (6, 4)
    assert sorted([*rest.arrays["n"].tolist(), *held_out.arrays["n"].tolist()]) == list(range(10))
    np.testing.assert_array_equal(finite_rows(data.arrays), np.arange(10) != 3)


def test_online_batches_differ_and_are_reproducible():
    data = OnlineDataset(npa.ModelSimulator(models.normal_mean, np.zeros(4)))
    first, second = epoch_of(data, 0, 2, 3)
    np.testing.assert_array_equal(first["mu"], epoch_of(data, 0, 1, 3)[0]["mu"])
    assert (first["mu"] != second["mu"]).all()


@pytest.mark.parametrize(
    "bank", [{}, {"x": np.ones(3), "y": np.ones(2)}, {"x": 1.0}, {"x": np.ones(0)}]
)
def test_unequal_or_empty_banks(bank):
    with pytest.raises(
        ValueError, match="OfflineDataset: expected arrays with a common leading axis"
    ):
        OfflineDataset(bank)
