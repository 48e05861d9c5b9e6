# SPDX-License-Identifier: Apache-2.0
"""Tasks of the simulation-based inference benchmark [1] as NumPyro models, and their references.

1. Lueckmann, Boelts, Greenberg, Gonçalves & Macke (2021), *Benchmarking simulation-based
   inference*, AISTATS.
"""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array, lax, random
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

REFERENCES = Path(__file__).resolve().parents[2] / "shared" / "sbibm"
NUM_OBSERVATIONS = 5

POPULATION = 1e6
DAYS_BETWEEN_COUNTS, NUM_COUNTS, STEPS_PER_DAY = 17, 10, 4
NUM_CENSUSES, DAYS_BETWEEN_CENSUSES, STEPS_BETWEEN_CENSUSES = 10, 2.1, 84
NUM_BINS, NUM_LAGS = 100, 9


class Task(NamedTuple):
    """A benchmark task.

    :param name: its name in the benchmark, and of the file of its references.
    :param model: NumPyro model ``model(x=None)`` with the observed site ``"x"``.
    :param observed_shape: shape of the observed value.
    :param parameters: latent sites in the order of the columns of the reference draws.
    :param dtype: dtype of the observed value.
    """

    name: str
    model: Callable[..., None]
    observed_shape: tuple[int, ...]
    parameters: tuple[str, ...]
    dtype: type[np.generic] = np.float32


class TwoMoons(dist.Distribution):
    """Crescent of radius N(.1, .01) and angle U(-pi/2, pi/2), shifted by ``theta``; both integrated
    out in closed form.

    :param theta: shape ``(*batch, 2)``; the event has shape ``(2,)``.
    """

    arg_constraints: ClassVar = {"theta": constraints.real_vector}
    support = constraints.real_vector
    reparametrized_params: ClassVar = ["theta"]
    radius = dist.Normal(0.1, 0.01)

    def __init__(self, theta: ArrayLike, *, validate_args: bool | None = None) -> None:
        self.theta = jnp.asarray(theta)
        super().__init__(self.theta.shape[:-1], (2,), validate_args=validate_args)

    @property
    def centre(self) -> Array:
        first, second = self.theta[..., 0], self.theta[..., 1]
        rotated = jnp.stack([-jnp.abs(first + second), second - first], -1) / np.sqrt(2)
        return rotated + jnp.array([0.25, 0.0])

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """:return: draws of shape ``(*sample_shape, *batch, 2)``."""
        angle_key, radius_key = random.split(key)
        shape = sample_shape + self.batch_shape
        angle = random.uniform(angle_key, shape, minval=-np.pi / 2, maxval=np.pi / 2)
        direction = jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
        return self.centre + self.radius.sample(radius_key, shape)[..., None] * direction

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        """:return: log density, shape ``(*batch,)``; minus infinity on the closed half plane."""
        point = jnp.asarray(value) - self.centre
        radius = jnp.linalg.norm(point, axis=-1)
        polar = self.radius.log_prob(radius) - jnp.log(np.pi * radius)
        return jnp.where(point[..., 0] > 0, polar, -jnp.inf)


def two_moons(x: ArrayLike | None = None) -> None:
    """Posterior of two crescents, ``x`` of shape ``(2,)``."""
    theta = numpyro.sample("theta", dist.Uniform(-1, 1).expand([2]).to_event(1))
    numpyro.sample("x", TwoMoons(theta), obs=x)


def gaussian_linear(x: ArrayLike | None = None) -> None:
    """Conjugate normal location, ``x`` of shape ``(10,)``."""
    scale = np.sqrt(0.1)
    theta = numpyro.sample("theta", dist.Normal(0, scale).expand([10]).to_event(1))
    numpyro.sample("x", dist.Normal(theta, scale).to_event(1), obs=x)


def gaussian_linear_uniform(x: ArrayLike | None = None) -> None:
    """Normal location within bounds, ``x`` of shape ``(10,)``."""
    theta = numpyro.sample("theta", dist.Uniform(-1, 1).expand([10]).to_event(1))
    numpyro.sample("x", dist.Normal(theta, np.sqrt(0.1)).to_event(1), obs=x)


def gaussian_mixture(x: ArrayLike | None = None) -> None:
    """Common location of a wide and a narrow normal, ``x`` of shape ``(2,)``."""
    theta = numpyro.sample("theta", dist.Uniform(-10, 10).expand([2]).to_event(1))
    scales = jnp.array([[1.0], [0.1]])
    components = dist.Normal(theta, jnp.broadcast_to(scales, (2, 2))).to_event(1)
    halves = dist.Categorical(probs=jnp.array([0.5, 0.5]))
    numpyro.sample("x", dist.MixtureSameFamily(halves, components), obs=x)


def slcp_likelihood(theta: Array) -> dist.MultivariateNormal:
    """Distribution of one point of ``slcp``, with its Cholesky factor written out.

    :param theta: shape ``(5,)``; the event has shape ``(2,)``.
    """
    jitter = 1e-6
    first, second = theta[2] ** 2, theta[3] ** 2
    first_sd = jnp.sqrt(first**2 + jitter)
    slope = jnp.tanh(theta[4]) * first * second / first_sd
    # 1 - tanh^2 = 1 / cosh^2: no cancellation where the correlation is close to one
    rest = (first**2 / jnp.cosh(theta[4]) ** 2 + jitter) / first_sd**2
    second_sd = jnp.sqrt(second**2 * rest + jitter)
    scale_tril = jnp.array([[first_sd, 0.0], [slope, second_sd]])
    return dist.MultivariateNormal(theta[:2], scale_tril=scale_tril)


def slcp(x: ArrayLike | None = None) -> None:
    """Simple likelihood, complex posterior: four independent points, ``x`` of shape ``(4, 2)``."""
    theta = numpyro.sample("theta", dist.Uniform(-3, 3).expand([5]).to_event(1))
    with numpyro.plate("points", 4):
        numpyro.sample("x", slcp_likelihood(theta), obs=x)


def runge_kutta(slope: Callable[[Array], Array], state: Array, step: float) -> Array:
    """:return: the state one step later, by Runge and Kutta's fourth-order method."""
    start = slope(state)
    middle = slope(state + step / 2 * start)
    corrected = slope(state + step / 2 * middle)
    end = slope(state + step * corrected)
    return state + step / 6 * (start + 2 * middle + 2 * corrected + end)


def infected_fractions(beta: Array, gamma: Array) -> Array:
    """Solve the SIR equations by fixed steps of Runge and Kutta's fourth-order method.

    :param beta: contact rate per day, a scalar.
    :param gamma: recovery rate per day, a scalar.
    :return: infected fraction of the population at days 0, 17, ..., 153, shape ``(10,)``.
    """
    step = 1 / STEPS_PER_DAY

    def slope(
        state: Array,
    ) -> Array:  # of log S/N and log I/N: one in a million is then exact in float32
        return jnp.stack([-beta * jnp.exp(state[1]), beta * jnp.exp(state[0]) - gamma])

    def advance(state: Array, _: None) -> tuple[Array, None]:
        return runge_kutta(slope, state, step), None

    def to_next_count(state: Array, _: None) -> tuple[Array, Array]:
        state, _ = lax.scan(advance, state, length=DAYS_BETWEEN_COUNTS * STEPS_PER_DAY)
        return state, state[1]

    initial = jnp.stack([jnp.log1p(-1 / POPULATION), jnp.log(1 / POPULATION)])
    _, path = lax.scan(to_next_count, initial, length=NUM_COUNTS - 1)
    return jnp.exp(jnp.append(initial[1], path))


def sir(x: ArrayLike | None = None) -> None:
    """Epidemic seen through ten samples of 1,000 persons, counts ``x`` of shape ``(10,)``."""
    beta = numpyro.sample("beta", dist.LogNormal(np.log(0.4), 0.5))
    gamma = numpyro.sample("gamma", dist.LogNormal(np.log(0.125), 0.2))
    infected = jnp.clip(infected_fractions(beta, gamma), 0, 1)
    numpyro.sample("x", dist.Binomial(1000, infected).to_event(1), obs=x)


def design_matrix() -> np.ndarray:
    """:return: ones, and a frozen white noise at lags 0 to 8, shape ``(100, 10)``."""
    noise = np.random.RandomState(42).standard_normal(NUM_BINS)
    lagged = [np.append(np.zeros(lag), noise[: NUM_BINS - lag]) for lag in range(NUM_LAGS)]
    return np.stack([np.ones(NUM_BINS), *lagged], axis=1).astype(np.float32)


def smoothness_precision() -> np.ndarray:
    """:return: prior precision of an offset and a smooth filter, shape ``(10, 10)``."""
    differences = np.eye(NUM_LAGS) - np.eye(NUM_LAGS, k=-1)
    root = differences @ differences + np.diag(np.sqrt(np.arange(NUM_LAGS) / NUM_LAGS))
    precision = np.zeros((1 + NUM_LAGS, 1 + NUM_LAGS))
    precision[0, 0], precision[1:, 1:] = 0.5, root.T @ root
    return precision


class SpikeStatistics(dist.Distribution):
    """Number of spikes and spike-triggered sums of the noise, ``X' y`` with ``y`` independent
    Bernoulli variables of logits ``X theta``.

    No two ``y`` have the same statistics, so the probability of these is that of ``y``.

    :param theta: offset and filter, shape ``(*batch, 10)``; the event has shape ``(10,)``.
    """

    arg_constraints: ClassVar = {"theta": constraints.real_vector}
    support = constraints.real_vector
    design = design_matrix()

    def __init__(self, theta: ArrayLike, *, validate_args: bool | None = None) -> None:
        self.theta = jnp.asarray(theta)
        batch_shape, event_shape = self.theta.shape[:-1], self.theta.shape[-1:]
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @property
    def logits(self) -> Array:
        return self.theta @ self.design.T

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """:return: draws of shape ``(*sample_shape, *batch, 10)``."""
        return dist.Bernoulli(logits=self.logits).sample(key, sample_shape) @ self.design

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        """:return: log probability, shape ``(*batch,)``, of a value that ``sample`` can give."""
        fit = jnp.sum(jnp.asarray(value) * self.theta, axis=-1)
        return fit - jnp.sum(jax.nn.softplus(self.logits), axis=-1)


def bernoulli_glm(x: ArrayLike | None = None) -> None:
    """Spikes of a neuron driven by noise, in sufficient statistics ``x`` of shape ``(10,)``."""
    prior = dist.MultivariateNormal(0.0, precision_matrix=smoothness_precision())
    theta = numpyro.sample("theta", prior)
    numpyro.sample("x", SpikeStatistics(theta), obs=x)


def populations(rates: Array) -> Array:
    """Solve the equations of Lotka and Volterra from 30 prey and one predator.

    :param rates: birth and death rate of the prey, death and birth rate of the predators, per
        day; shape ``(4,)``.
    :return: prey and predators on days 0, 2.1, ..., 18.9, shape ``(2, 10)``.
    """
    step = DAYS_BETWEEN_CENSUSES / STEPS_BETWEEN_CENSUSES

    def slope(state: Array) -> Array:  # of logarithms: both populations stay positive
        prey, predators = jnp.exp(state)
        return jnp.stack([rates[0] - rates[1] * predators, rates[3] * prey - rates[2]])

    def advance(state: Array, _: None) -> tuple[Array, None]:
        return runge_kutta(slope, state, step), None

    def to_next_census(state: Array, _: None) -> tuple[Array, Array]:
        return lax.scan(advance, state, length=STEPS_BETWEEN_CENSUSES)[0], state

    initial = jnp.log(jnp.array([30.0, 1.0]))
    return jnp.exp(lax.scan(to_next_census, initial, length=NUM_CENSUSES)[1].T)


def lotka_volterra(x: ArrayLike | None = None) -> None:
    """Prey and predators, counted with noise ten times, ``x`` of shape ``(2, 10)``."""
    means = {"alpha": -0.125, "beta": -3.0, "gamma": -0.125, "delta": -3.0}
    rates = [numpyro.sample(name, dist.LogNormal(mean, 0.5)) for name, mean in means.items()]
    counts = jnp.clip(populations(jnp.stack(rates)), 1e-10, 1e4)
    numpyro.sample("x", dist.LogNormal(jnp.log(counts), 0.1).to_event(2), obs=x)


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("two_moons", two_moons, (2,), ("theta",)),
        Task("gaussian_linear", gaussian_linear, (10,), ("theta",)),
        Task("gaussian_linear_uniform", gaussian_linear_uniform, (10,), ("theta",)),
        Task("gaussian_mixture", gaussian_mixture, (2,), ("theta",)),
        Task("slcp", slcp, (4, 2), ("theta",)),
        Task("bernoulli_glm", bernoulli_glm, (10,), ("theta",)),
        Task("sir", sir, (10,), ("beta", "gamma"), np.int32),
        Task("lotka_volterra", lotka_volterra, (2, 10), ("alpha", "beta", "gamma", "delta")),
    )
}


def reference(task: Task, observation: int) -> tuple[np.ndarray, np.ndarray]:
    """Observed data and reference draws of its posterior.

    :param task: the task.
    :param observation: number of the observation, from 1 to 5.
    :return: observed value of shape ``task.observed_shape``, draws of shape ``(10000, d)``.
    :raises FileNotFoundError: if neither the files nor the wheel ``sbibm`` are there.
    """
    file = REFERENCES / f"{task.name}.npz"
    observed, draws = (
        _from_file(file, observation) if file.exists() else _from_wheel(task, observation)
    )
    return observed.reshape(task.observed_shape).astype(task.dtype), draws.astype(np.float32)


def flatten(task: Task, samples: Mapping[str, Any]) -> np.ndarray:
    """Columns of the parameters in the task's order.

    :param task: the task.
    :param samples: site to array of shape ``(num_samples, *shape)``.
    :return: shape ``(num_samples, d)``.
    """
    sites = [np.asarray(samples[name]) for name in task.parameters]
    return np.concatenate([site.reshape(len(site), -1) for site in sites], axis=1)


def _from_file(file: Path, observation: int) -> tuple[np.ndarray, np.ndarray]:
    with np.load(file) as arrays:
        return arrays[f"observation_{observation}"], arrays[f"reference_{observation}"]


def _from_wheel(task: Task, observation: int) -> tuple[np.ndarray, np.ndarray]:
    spec = find_spec("sbibm")  # found, not imported: it needs torch
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            f"no reference draws of task '{task.name}': expected {REFERENCES / task.name}.npz or "
            "the package sbibm; fix: `pip install --no-deps sbibm`"
        )
    tables = Path(spec.origin).parent / "tasks" / task.name / "files"
    folder = tables / f"num_observation_{observation}"
    observed = np.loadtxt(folder / "observation.csv", delimiter=",", skiprows=1)
    draws = np.loadtxt(folder / "reference_posterior_samples.csv.bz2", delimiter=",", skiprows=1)
    return observed, draws


def simulate(rng_key: Array, task: Task, num_samples: int) -> dict[str, np.ndarray]:
    """Prior simulations by NumPyro alone, without the package under test.

    :param rng_key: key of the simulations.
    :param task: the task.
    :param num_samples: number of simulations.
    :return: site to array of shape ``(num_samples, *shape)``.
    """

    def one(key: Array) -> dict[str, Array]:
        trace = numpyro.handlers.trace(numpyro.handlers.seed(task.model, key)).get_trace()
        return {name: site["value"] for name, site in trace.items() if site["type"] == "sample"}

    draws = jax.jit(jax.vmap(one))(random.split(rng_key, num_samples))
    return {name: np.asarray(value) for name, value in draws.items()}
