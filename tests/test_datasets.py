# SPDX-License-Identifier: Apache-2.0
"""Data sets that the host feeds: their loads, their thread, and training from them."""

import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import random

from numpyro_amortized.datasets import OfflineDataset, OnlineDataset
from numpyro_amortized.loads import THREAD_NAME, Schedule, host_rows, prefetch
from numpyro_amortized.simulators.base import Simulator, TraceableSimulator
from numpyro_amortized.streamed import HostDataset
from numpyro_amortized.training import train

ROW = 4 * 2  # bytes of a simulation of Points


class Points(Simulator):
    """x is uniform, y = 2 x; made by NumPy, and what is asked is recorded."""

    def __init__(self, fail_at=None):
        self.fail_at, self.calls = fail_at, []

    def sample(self, rng_key, batch_shape, *, workers=None):
        if len(self.calls) == self.fail_at:
            raise OSError("the simulator failed")
        self.calls.append((batch_shape, workers))
        seed = np.asarray(random.key_data(rng_key)).tolist()
        x = np.random.default_rng(seed).uniform(1, 2, batch_shape).astype(np.float32)
        return {"x": x, "y": 2 * x}


class Line(TraceableSimulator):
    def simulate(self, rng_key):
        x = random.uniform(rng_key, minval=1.0, maxval=2.0)
        return {"x": x, "y": 2 * x}


def squared(w, key, batch):
    return (batch["y"] - w * batch["x"]) ** 2


OPTIMIZER = optax.sgd(0.1)


def slope(dataset, *, epochs=3, num_batches=10, batch_size=8, validation=None, seed=0):
    """Regress y on x: the optimum is exactly 2."""
    return train(
        random.key(seed),
        squared,
        jnp.zeros(()),
        dataset,
        optimizer=OPTIMIZER,
        epochs=epochs,
        num_batches=num_batches,
        batch_size=batch_size,
        validation=validation,
        progress_bar=False,
    )


def prefetching():
    return [t for t in threading.enumerate() if t.name.startswith(THREAD_NAME)]


def numbered(length=5):
    """Pieces of ``length`` rows that count up."""
    start = 0
    while True:
        yield {"n": np.arange(start, start + length), "x": np.zeros((length, 2), np.float32)}
        start += length


@pytest.mark.parametrize(
    "num_batches, memory, sizes",
    [
        (10, 10**9, [10]),
        (10, 16 * 4 * 5, [5, 5]),
        (10, 16 * 4 * 3, [2, 3, 2, 3]),
        (7, 16 * 4 * 4, [3, 4]),
        (3, 1, [1, 1, 1]),
    ],
)
@pytest.mark.parametrize("shuffle", [False, True])
def test_loads_cut_the_stream_without_loss(num_batches, memory, sizes, shuffle):
    order = np.random.default_rng(0) if shuffle else None
    with prefetch(numbered(), Schedule(2, num_batches, 4), memory=memory, order=order) as loads:
        loads = list(loads)
    assert [load.num_steps for load in loads] == sizes * 2
    assert [load.ends_epoch for load in loads] == ([False] * (len(sizes) - 1) + [True]) * 2
    assert {load.size for load in loads} == {max(sizes)}
    assert {load.arrays["x"].shape for load in loads} == {(max(sizes) * 4, 2)}
    rows = [np.asarray(load.arrays["n"][: load.num_steps * 4]) for load in loads]
    expected = np.split(np.arange(2 * num_batches * 4), np.cumsum([len(r) for r in rows])[:-1])
    for row, values in zip(rows, expected, strict=True):
        assert shuffle == (row != values).any()
        np.testing.assert_array_equal(np.sort(row), values)


def test_one_load_is_made_ahead():
    made = []

    def pieces():
        for number in range(100):
            made.append(number)
            yield {"n": np.full(4, number)}

    with prefetch(pieces(), Schedule(1, 20, 4), memory=1, order=None) as loads:
        for used, _ in enumerate(loads):
            deadline = time.monotonic() + 10
            while len(made) < min(used + 2, 20) and time.monotonic() < deadline:
                time.sleep(1e-3)
            assert len(made) == min(used + 2, 20)  # this one and the next
    assert not prefetching()


@pytest.mark.parametrize(
    "second, message",
    [
        ({"x": np.zeros((2, 4))}, r"entry 'x': expected shape \(3,\).*Pad"),
        ({"x": np.zeros((2, 3), complex)}, "expected shape.*float64.*complex128"),
        ({"y": np.zeros((2, 3))}, r"expected entries \['x'\], got \['y'\]"),
    ],
)
def test_pieces_that_differ(second, message):
    pieces = iter([{"x": np.zeros((2, 3))}, second])
    with prefetch(pieces, Schedule(1, 1, 4), memory=10**6, order=None) as loads:
        with pytest.raises(ValueError, match=message):
            list(loads)


def test_entries_that_are_no_numbers():
    with pytest.raises(TypeError, match="entry 'name': expected numbers"):
        host_rows({"x": np.zeros(2), "name": np.array(["a", "b"])})


@pytest.mark.parametrize("memory", [10**9, 8 * ROW * 4, 1])
def test_host_batches_are_those_of_the_folded_key(memory):
    simulator, key = Points(), random.key(3)
    with HostDataset(simulator, workers=2, memory=memory).loads(key, Schedule(1, 6, 8)) as loads:
        loads = list(loads)
    x = np.concatenate([load.arrays["x"][: 8 * load.num_steps] for load in loads])
    batches = [Points().sample(random.fold_in(key, i), 8)["x"] for i in range(6)]
    np.testing.assert_array_equal(x, np.concatenate(batches))
    assert set(simulator.calls) == {(8, 2)}


@pytest.mark.parametrize("memory", [10**9, 8 * ROW * 4])
def test_training_on_the_host(memory):
    """However the stream is cut, the steps are the same; only the keys of the loss differ."""
    results = [slope(HostDataset(Points(), memory=m)) for m in (memory, 10**9, 10**9)]
    for w, history in results:
        np.testing.assert_allclose(w, results[1][0], rtol=1e-6)
        np.testing.assert_allclose(history.loss, results[1][1].loss, rtol=1e-5)
        assert (history.num_steps, history.num_simulations) == (30, 240)
        assert (history.skipped_steps, history.skipped_simulations) == (0, 0)
    # each step shrinks the error by at least 1 - 0.2 E x^2 < 0.8, as 1 < x < 2
    np.testing.assert_allclose(results[0][0], 2, atol=2 * 0.8**30)
    assert slope(HostDataset(Points()), seed=1)[1].loss[0] != results[0][1].loss[0]


@pytest.mark.parametrize("memory", [10**9, 8 * ROW * 4])
def test_one_program_for_all_loads_and_epochs(memory, compilations):
    dataset = HostDataset(Points(), memory=memory)  # ten batches in one load, or in three
    validation = {"x": jnp.ones(4), "y": jnp.ones(4)}

    def compiled(epochs):
        before = len(compilations)
        slope(dataset, epochs=epochs, validation=validation)
        return len(compilations) - before

    compiled(1)
    assert compiled(4) <= 1  # the copy of the initial parameters


def test_validation_ends_an_epoch_of_several_loads():
    validation = {"x": jnp.ones(4), "y": jnp.ones(4)}  # its optimum is passed on the way to 2
    best, history = slope(HostDataset(Points(), memory=1), num_batches=2, validation=validation)
    assert history.validation_loss.shape == (3,) and np.isfinite(history.validation_loss).all()
    np.testing.assert_allclose((1 - best) ** 2, history.validation_loss.min(), rtol=1e-5)


def test_values_that_are_not_finite_are_counted():
    class Broken(Simulator):
        def sample(self, rng_key, batch_shape, *, workers=None):
            values = Points().sample(rng_key, batch_shape)
            return values | {"x": np.where(np.arange(batch_shape) == 0, np.nan, values["x"])}

    w, history = slope(HostDataset(Broken(), memory=8 * ROW * 4))
    np.testing.assert_allclose(w, 2, atol=1e-2)
    assert (history.skipped_simulations, history.skipped_steps) == (30, 0)


@pytest.mark.parametrize("fail_at", [0, 1, 12])
def test_errors_of_the_thread_are_raised(fail_at):
    with pytest.raises(OSError, match="the simulator failed"):
        slope(HostDataset(Points(fail_at), memory=8 * ROW))
    assert not prefetching()


def test_interrupting_ends_the_thread(request):
    # the jobs that a shell runs in the background ignore the signal
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    class Interrupting(Simulator):
        calls = 0

        def sample(self, rng_key, batch_shape, *, workers=None):
            self.calls += 1
            time.sleep(0.1)
            if self.calls == 2:  # Ctrl-C, while the main thread waits for a load of 1,000 seconds
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            return Points().sample(rng_key, batch_shape)

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        slope(HostDataset(Interrupting()), num_batches=10_000)
    for thread in prefetching():  # one that had just begun is not waited for, but ends as well
        thread.join(30)
    assert not prefetching()
    assert time.monotonic() - start < 30


def test_the_backend_of_the_caller_holds_in_the_thread():
    joblib = pytest.importorskip("joblib")
    seen = []

    class Asking(Simulator):
        def sample(self, rng_key, batch_shape, *, workers=None):
            backend, num_jobs = joblib.parallel.get_active_backend()
            seen.append((type(backend).__name__, num_jobs))
            return Points().sample(rng_key, batch_shape)

    with joblib.parallel_config("threading", n_jobs=3):
        slope(HostDataset(Asking()), epochs=1, num_batches=1)
    slope(HostDataset(Asking()), epochs=1, num_batches=1)
    assert seen[0] == ("ThreadingBackend", 3) and seen[-1] == ("LokyBackend", None)


@pytest.mark.parametrize(
    "dataset",
    [
        OnlineDataset(Line()),
        OfflineDataset(Points().sample(random.key(0), 80)),
        HostDataset(Points()),
    ],
    ids=lambda dataset: type(dataset).__name__,
)
def test_maps_are_composed(dataset):
    def add(values):
        return {"x": values["x"], "y": values["y"] + values["x"]}

    def halve(values):
        return jax.tree.map(lambda value: value / 2, values)

    # y = 3 x in both; a map that is left out changes the slope or the loss
    w, history = slope(dataset.map(add).map(halve), epochs=20)
    np.testing.assert_allclose(w, 3, rtol=1e-2)
    assert history.loss[0] < slope(dataset.map(add), epochs=1)[1].loss[0]
    first = dataset.map(add).map(halve).head(2)
    assert first["x"].shape == (2,)
    np.testing.assert_allclose(first["y"], 3 * first["x"], rtol=1e-6)
