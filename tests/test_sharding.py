# SPDX-License-Identifier: Apache-2.0
"""Several devices share the work, and compute what one computes."""

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

from numpyro_amortized import sharding

EIGHT = "--xla_force_host_platform_device_count=8"


def start(*arguments, flags=EIGHT):
    command = [sys.executable, "-m", "tests.devices", *map(str, arguments)]
    return subprocess.Popen(command, env=os.environ | {"XLA_FLAGS": flags})


def compare(results, expected):
    """Equal to the rounding of some sums of a few thousand terms in single precision."""
    for name in ("losses", "validation_losses", "parameters", "draws"):
        np.testing.assert_allclose(results[name], expected[name], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("kind", ["minimize", pytest.param("train", marks=pytest.mark.verify)])
def test_eight_devices_compute_what_one_does(kind, tmp_path):
    assert start(kind, tmp_path).wait() == 0
    everywhere, alone = np.load(tmp_path / "all.npz"), np.load(tmp_path / "one.npz")
    compare(everywhere, alone)
    assert set(everywhere["rows"]) == {4} and set(alone["rows"]) == {32}
    assert len(everywhere["datasets"]) == 8 and len(set(everywhere["datasets"])) == 1
    assert len(alone["datasets"]) == 1
    assert everywhere.get("resumed", True) and alone.get("resumed", True)


def test_one_device_is_left_as_it_is():
    rows = {"x": jnp.zeros(3)}
    with jax.default_device(jax.devices()[0]):
        for function in (sharding.replicate, sharding.localize, sharding.split_rows):
            assert function(rows) is rows
        assert sharding.replicated() is None


def test_threads_sample_from_one_approximator(normal_mean):
    y, keys = np.linspace(-1, 1, 10), random.split(random.key(0), 8)
    draw = partial(normal_mean.sample, num_samples=3, conditions={"y": y})
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(draw, keys))
    for key, draws in zip(keys, together, strict=True):
        np.testing.assert_array_equal(draws["mu"], draw(key)["mu"])


@pytest.mark.verify
def test_two_processes_train_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    two = "--xla_force_host_platform_device_count=2"
    processes = [start("train", tmp_path, address, k, flags=two) for k in range(2)]
    assert start("train", tmp_path, flags=two).wait() == 0
    assert [process.wait() for process in processes] == [0, 0]
    one = np.load(tmp_path / "one.npz")
    for number in range(2):
        results = np.load(tmp_path / f"process_{number}.npz")
        compare(results, one)
        assert results["resumed"]
        assert set(results["rows"]) == {8}  # four devices in two processes
        assert len(results["datasets"]) == 2  # each one samples with its own
