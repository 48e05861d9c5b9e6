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
        start = slope(state)
        middle = slope(state + step / 2 * start)
        corrected = slope(state + step / 2 * middle)
        end = slope(state + step * corrected)
        return state + step / 6 * (start + 2 * middle + 2 * corrected + end), None

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


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("two_moons", two_moons, (2,), ("theta",)),
        Task("gaussian_linear", gaussian_linear, (10,), ("theta",)),
        Task("slcp", slcp, (4, 2), ("theta",)),
        Task("sir", sir, (10,), ("beta", "gamma"), np.int32),
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
