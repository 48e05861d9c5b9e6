# SPDX-License-Identifier: Apache-2.0
"""The tasks are those of the benchmark: its observations and reference draws fit the models."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random
from numpyro import handlers
from numpyro.infer.util import potential_energy, unconstrain_fn
from scipy.integrate import solve_ivp

from benchmarks import tasks
from benchmarks.tasks import NUM_OBSERVATIONS, TASKS, flatten, reference, simulate
from numpyro_amortized.simulators import ModelSimulator

# Observation 1 of tasks of the benchmark: the parameters it was simulated at, and its value.
RECORDS = {
    "gaussian_linear_uniform": (
        "-0.95270705 -0.14817107 0.9824493 0.41320384 0.99042416 "
        "-0.74023414 0.7862458 0.043799043 -0.6261761 -0.76511395",
        "-0.53739023 -0.23864163 0.81923723 0.6407443 0.41616207 "
        "-0.09746933 1.1292295 -0.05842293 -0.97055256 -0.9423423",
    ),
    "gaussian_mixture": ("-9.527071 -1.4817104", "-9.472713 -1.4950509"),
    "bernoulli_glm": (
        "1.215716 2.1386335 3.6156292 3.3703978 0.3342961 "
        "-1.5749966 -2.4357948 -2.1009881 -1.1669482 0.3189116",
        "56.0 3.32306 14.356438 11.104893 -4.167525 "
        "-18.507809 -21.917496 -9.553517 -0.357257 -5.497825",
    ),
    "lotka_volterra": (
        "0.6859157 0.10761319 0.88789904 0.116794825",
        "31.783262 1.1971166 0.29703617 0.71145046 2.9415865 "
        "11.482614 36.09036 0.46229604 0.38081983 0.9173736 "
        "0.8910395 27.039942 4.356176 0.78444487 0.17100818 "
        "0.1325878 8.727008 16.97251 2.7902339 0.47567415",
    ),
}
RECORDS = {
    name: [np.array(numbers.split(), np.float32) for numbers in record]
    for name, record in RECORDS.items()
}
# The spikes that the recorded statistics of bernoulli_glm are those of.
SPIKES = (
    "1101111111100000011111110001110111100000111100001110001111001100011111001110000000111000"
    "111110000111"
)
SMOOTH = [name for name in TASKS if name != "two_moons"]  # whose density jumps to zero


def sites_of(task, columns):
    """Undo :func:`benchmarks.tasks.flatten`."""
    one = simulate(random.key(0), task, 1)
    sizes = [one[name].size for name in task.parameters]
    parts = np.split(np.asarray(columns), np.cumsum(sizes)[:-1], axis=-1)
    leading = np.shape(columns)[:-1]
    return {
        name: part.reshape(leading + one[name].shape[1:])
        for name, part in zip(task.parameters, parts, strict=True)
    }


@pytest.mark.verify
@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_sites_and_shapes(task):
    simulator = ModelSimulator(task.model, observed=("x",))
    latents = [name for name, site in simulator.sites.items() if site.role == "latent"]
    assert tuple(latents) == task.parameters
    assert simulator.sites["x"].shape == task.observed_shape
    draws = simulate(random.key(0), task, 50)
    assert all(np.isfinite(values).all() for values in draws.values())
    columns = flatten(task, draws)
    for name, values in sites_of(task, columns).items():
        np.testing.assert_array_equal(values, draws[name])


@pytest.mark.parametrize("name", RECORDS)
def test_recorded_observations_are_plausible(name):
    """Their density is no outlier among those of simulations at the same parameters."""
    task, (parameters, observed) = TASKS[name], RECORDS[name]
    model = handlers.substitute(task.model, sites_of(task, parameters))

    @jax.jit
    @jax.vmap
    def log_density(key, observed):
        fn = handlers.trace(handlers.seed(model, key)).get_trace()["x"]["fn"]
        return fn.log_prob(observed), fn.log_prob(fn.sample(key))

    keys = random.split(random.key(0), 2000)
    value = jnp.reshape(observed, task.observed_shape)
    of_record, of_draws = log_density(keys, jnp.broadcast_to(value, (2000, *value.shape)))
    rank = np.mean(np.asarray(of_draws) < np.asarray(of_record))
    assert 0.01 < rank < 0.99


def test_statistics_of_recorded_spikes():
    spikes = np.array([*map(int, SPIKES)], np.float32)
    statistics = spikes @ tasks.design_matrix()
    np.testing.assert_allclose(statistics, RECORDS["bernoulli_glm"][1], rtol=1e-5, atol=1e-5)
    theta = RECORDS["bernoulli_glm"][0]
    likelihood = tasks.SpikeStatistics(theta)
    probs = jax.nn.sigmoid(likelihood.logits)
    expected = jnp.sum(jnp.log(jnp.where(spikes == 1, probs, 1 - probs)))
    np.testing.assert_allclose(likelihood.log_prob(statistics), expected, rtol=1e-4)


def test_spike_statistics_have_the_mean_of_bernoulli_variables():
    theta = RECORDS["bernoulli_glm"][0]
    likelihood = tasks.SpikeStatistics(theta)
    draws = likelihood.sample(random.key(0), (4000,))
    probs = np.asarray(jax.nn.sigmoid(likelihood.logits))
    design = tasks.design_matrix()
    standard_error = np.sqrt((probs * (1 - probs)) @ design**2 / 4000)
    assert (np.abs(draws.mean(0) - probs @ design) < 5 * standard_error).all()


def test_populations_solve_their_equations():
    draws = simulate(random.key(1), TASKS["lotka_volterra"], 30)
    rates = np.stack([draws[name] for name in TASKS["lotka_volterra"].parameters], axis=-1)
    solved = np.log(jax.jit(jax.vmap(tasks.populations))(rates))
    for (a, b, c, d), found in zip(rates.astype(float), solved, strict=True):

        def slope(_, log_state, a=a, b=b, c=c, d=d):
            prey, predators = np.exp(log_state)
            return [a - b * predators, d * prey - c]

        days = np.linspace(0, 18.9, 10)
        options = {"method": "DOP853", "rtol": 1e-9, "atol": 1e-9}
        exact = solve_ivp(slope, (0, 18.9), np.log([30.0, 1.0]), t_eval=days, **options).y
        # The noise of a count has scale .1 on this axis.
        np.testing.assert_allclose(found, exact, atol=2e-3)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.verify
def test_reference_draws_are_those_of_the_posterior(name):
    """The gradient of a log density has mean zero under its own draws."""
    task = TASKS[name]

    @jax.jit
    def scores(x, sites):
        unconstrained = jax.vmap(partial(unconstrain_fn, task.model, (x,), {}))(sites)
        return jax.vmap(jax.grad(partial(potential_energy, task.model, (x,), {})))(unconstrained)

    for observation in range(1, NUM_OBSERVATIONS + 1):
        try:
            x, draws = reference(task, observation)
        except FileNotFoundError as error:
            pytest.skip(str(error))
        draws = draws[::5]
        for each in scores(x, sites_of(task, draws)).values():
            each = np.asarray(each, float).reshape(len(draws), -1)
            standard_error = each.std(0) / np.sqrt(len(draws))
            # About 200 means are compared: the largest is near 3 standard errors.
            assert (np.abs(each.mean(0)) < 5 * standard_error).all()


def test_missing_references_are_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(tasks, "REFERENCES", tmp_path)
    monkeypatch.setattr(tasks, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"'bernoulli_glm'.*pip install --no-deps sbibm"):
        reference(TASKS["bernoulli_glm"], 1)
