# SPDX-License-Identifier: Apache-2.0
"""Worker processes draw the same, tell which simulation failed, and may be those of a cluster."""

import os

import numpy as np
import pytest
from jax import random
from joblib import parallel_config

from numpyro_amortized.simulators.functions import LambdaSimulator
from numpyro_amortized.simulators.sequential import SequentialSimulator


@pytest.fixture(params=["loky", "threading"])
def two_workers(request):
    with parallel_config(backend=request.param):
        yield {"workers": 2}


def make_sequence() -> SequentialSimulator:
    """All kinds of steps; the functions are local, so that workers cannot import them."""
    offset = 3.0

    def prior(rng):
        return {"mu": rng.normal(), "v": rng.normal(size=2)}

    def likelihood(mu, w, rng):
        return {"x": mu + w + rng.normal(size=3) + offset}

    batched = LambdaSimulator(lambda shape, v, rng: {"w": v.sum(-1)}, is_batched=True)
    return SequentialSimulator(
        [prior, batched, likelihood, lambda x, rng: {"y": x.sum() + rng.normal()}]
    )


def test_draws_do_not_depend_on_workers(two_workers):
    simulator = make_sequence()
    alone = simulator.sample(random.key(0), (3, 7))
    together = simulator.sample(random.key(0), (3, 7), **two_workers)
    assert [*alone] == [*together] == ["mu", "v", "w", "x", "y"]
    for name, values in alone.items():
        np.testing.assert_array_equal(values, together[name])
        assert values.dtype == together[name].dtype


def test_processes_are_others():
    simulator = LambdaSimulator(lambda rng: {"process": os.getpid()})
    assert (simulator.sample(random.key(0), 4)["process"] == os.getpid()).all()
    assert os.getpid() not in simulator.sample(random.key(0), 4, workers=2)["process"]


def failing(error, *args):
    def unstable(rng, x):
        if x == 5:
            raise error(*args)
        return {"y": x}

    counter = LambdaSimulator(lambda shape, rng: {"x": np.arange(shape[0])}, is_batched=True)
    return SequentialSimulator([counter, unstable])


@pytest.mark.parametrize("workers", [None, 2])
def test_the_failed_simulation_is_named(workers):
    with pytest.raises(ZeroDivisionError, match="by zero") as caught:
        failing(ZeroDivisionError, "by zero").sample(random.key(0), 9, workers=workers)
    assert caught.value.__notes__ == ["Simulation 5 failed in function 'unstable'."]


@pytest.mark.verify
def test_errors_that_cannot_be_pickled_surface():
    class SolverError(Exception):
        def __init__(self, step, size):
            super().__init__(f"step {step} of size {size}")

    with pytest.raises(RuntimeError, match="SolverError: step 3 of") as caught:
        failing(SolverError, 3, 0.1).sample(random.key(0), 9, workers=2)
    assert caught.value.__notes__ == ["Simulation 5 failed in function 'unstable'."]


@pytest.mark.verify
def test_ragged_outputs_of_different_workers_are_named(two_workers):
    counter = LambdaSimulator(lambda shape, rng: {"n": np.arange(shape[0]) // 4}, is_batched=True)
    simulator = SequentialSimulator([counter, lambda n, rng: {"x": np.zeros(n + 1)}])
    with pytest.raises(ValueError, match=r"'x': shape \(1,\) in simulation 0, but \(2,\) in .* 4"):
        simulator.sample(random.key(0), 8, **two_workers)


@pytest.mark.verify
def test_different_entries_of_different_workers_are_named(two_workers):
    counter = LambdaSimulator(lambda shape, rng: {"n": np.arange(shape[0]) // 4}, is_batched=True)
    simulator = SequentialSimulator([counter, lambda n, rng: {"b": 1} if n else {"a": 1}])
    with pytest.raises(ValueError, match=r"Simulation 4: expected entries \['a'\].* got \['b'\]"):
        simulator.sample(random.key(0), 8, **two_workers)


def test_context_sets_the_number_of_workers():
    simulator = LambdaSimulator(lambda: {"x": 1.0})
    with parallel_config(backend="threading", n_jobs=2):
        with pytest.raises(ValueError, match="on 2 workers"):
            simulator.sample(random.key(0), 4)


@pytest.mark.parametrize("workers", [0, -2, 1.5, "two"])
def test_numbers_of_workers_are_checked(workers):
    with pytest.raises(ValueError, match="workers: expected at least 1"):
        make_sequence().sample(random.key(0), 4, workers=workers)


@pytest.mark.verify
def test_dask_cluster():
    distributed = pytest.importorskip("distributed")
    simulator = make_sequence()
    alone = simulator.sample(random.key(0), 12)
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    )
    with cluster, distributed.Client(cluster), parallel_config(backend="dask"):
        together = simulator.sample(random.key(0), 12)
        with pytest.raises(ZeroDivisionError, match="by zero"):
            failing(ZeroDivisionError, "by zero").sample(random.key(0), 9)
    for name, values in alone.items():
        np.testing.assert_array_equal(values, together[name])
