# SPDX-License-Identifier: Apache-2.0
"""Models drawn at random: plates, supports that depend on other sites, types of data, faults."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from hypothesis import strategies as st
from numpyro import handlers

# Priors at a number between 0.5 and 1.5, which may be computed from the sites before.
PRIORS: dict[str, Callable[[Any], dist.Distribution]] = {
    "real": lambda s: dist.Normal(s, s),
    "heavy tails": lambda s: dist.StudentT(5.0, 0.0, s),
    "positive": lambda s: dist.Gamma(2.0, s),
    "half real": lambda s: dist.HalfNormal(s),
    "proportion": lambda s: dist.Beta(1.0 + s, 2.0),
    "interval": lambda s: dist.Uniform(-s, 2 * s),
    "lower bound": lambda s: dist.TruncatedNormal(0.0, 1.0, low=-s),
    "scale as bound": lambda s: dist.Pareto(s, 4.0),
    "vector": lambda s: dist.MultivariateNormal(s[..., None] * jnp.ones(2), jnp.eye(2)),
    "simplex": lambda s: dist.Dirichlet(s[..., None] * jnp.array([2.0, 3.0, 2.0])),
    "ordered": lambda s: dist.TransformedDistribution(
        dist.Normal(jnp.zeros(2), s[..., None]).to_event(1), dist.transforms.OrderedTransform()
    ),
    "correlations": lambda s: dist.LKJCholesky(2, 1.0 + s),
    "matrix": lambda s: dist.Normal(jnp.zeros((2, 2)), s[..., None, None]).to_event(2),
    "counts": lambda s: dist.Poisson(2 * s),
    "class": lambda s: dist.Categorical(s[..., None] * jnp.array([0.2, 0.3, 0.5])),
}
DISCRETE = ("counts", "class")
BOUNDED = ("interval", "lower bound", "scale as bound")  # their supports depend on the number

# Likelihoods at a real number, and the types in which users may have such data.
FLOATS, INTEGERS = ("float16", "float32", "float64"), ("int32", "int64", "uint8", "float32")
LIKELIHOODS: dict[str, tuple[Callable[[Any], dist.Distribution], tuple[str, ...]]] = {
    "normal": (lambda x: dist.Normal(x, 1.0), FLOATS),
    "laplace": (lambda x: dist.Laplace(x, 0.5), FLOATS),
    "positive": (lambda x: dist.LogNormal(0.3 * x, 0.5), FLOATS),
    "counts": (lambda x: dist.Poisson(jnp.exp(0.3 * x)), INTEGERS),
    "zeros and ones": (lambda x: dist.Bernoulli(logits=x), ("bool", *INTEGERS)),
    "successes": (lambda x: dist.Binomial(5, logits=x), INTEGERS),
    "pair": (lambda x: dist.Normal(x[..., None] * jnp.ones(2), 1.0).to_event(1), FLOATS),
}


class Site(NamedTuple):
    """Of which distribution, in which plates, and whether it depends on the sites before."""

    kind: str
    plates: tuple[int, ...] = ()
    depends: bool = True
    dtype: str = "float32"  # of the data


class Spec(NamedTuple):
    """All that a model is made of."""

    plates: tuple[int, ...]  # sizes, the outer one first
    latents: tuple[Site, ...]
    observed: tuple[Site, ...]
    has_deterministic: bool
    fault: str | None

    @property
    def data(self) -> dict[str, np.ndarray]:
        """Ones, which all likelihoods can give."""
        values = {}
        for k, site in enumerate(self.observed):
            inner = range(min(site.plates, default=len(self.plates)), len(self.plates))
            shape = [self.plates[k] if k in site.plates else 1 for k in inner]
            values[f"y_{k}"] = np.ones((*shape, 2) if site.kind == "pair" else shape, site.dtype)
        return values

    @property
    def reasons(self) -> list[str]:
        """What the docs say why such a model is refused."""
        kinds = [site.kind for site in self.latents]
        bounded = [k for k, s in enumerate(self.latents) if s.depends and s.kind in BOUNDED]
        reasons = {
            "no observed site": not self.observed,
            "no latent site": not kinds and not FAULTS.get(self.fault, (None, False))[1],
            "no continuous latent site": bool(kinds) and set(kinds) <= set(DISCRETE),
            "support depends on sites that are not": any(
                kind in DISCRETE for k in bounded for kind in kinds[:k]
            ),
        }
        found = [reason for reason, holds in reasons.items() if holds]
        return found if self.fault is None else [*found, FAULTS[self.fault][0]]

    def model(self, data: dict[str, Any]) -> None:
        """The NumPyro model; ``partial(spec.model, spec.data)`` takes no arguments."""
        before: list[tuple[Site, Any]] = []
        for k, site in enumerate(self.latents):
            level = jax.nn.sigmoid(self._mean(before, site)) if site.depends else jnp.array(0.5)
            fn = PRIORS[site.kind](0.5 + level)
            value = self._sample(f"theta_{k}", site, fn)
            before.append((site, jnp.tanh(value).mean(tuple(range(-fn.event_dim, 0)))))
        if self.has_deterministic:
            numpyro.deterministic("total", self._mean(before, Site("")))
        if self.fault is not None:
            _FAULTY[self.fault](data)
        for k, site in enumerate(self.observed):
            fn = LIKELIHOODS[site.kind][0](self._mean(before, site))
            self._sample(f"y_{k}", site, fn, obs=data[f"y_{k}"])

    def _sample(self, name: str, site: Site, fn: dist.Distribution, obs: Any = None) -> Any:
        with ExitStack() as plates:
            for k in site.plates:
                plate = numpyro.plate(f"plate_{k}", self.plates[k], dim=k - len(self.plates))
                plates.enter_context(plate)
            return numpyro.sample(name, fn, obs=obs)

    def _mean(self, before: list[tuple[Site, Any]], at: Site) -> Any:
        """A real number for each member of the plates of a site, from the sites before."""
        num, total = len(self.plates), jnp.zeros(())
        for site, value in before:
            others = tuple(k - num for k in site.plates if k not in at.plates)
            total = total + value.mean(others, keepdims=True)
        rank = num - min(at.plates, default=num)
        return total.reshape(total.shape[max(0, total.ndim - rank) :])


def _draw() -> Any:
    return numpyro.sample("fault_x", dist.Normal(0, 1))


def _improper(data: Any) -> None:
    numpyro.sample("fault", dist.ImproperUniform(dist.constraints.real, (), ()))


def _computed(data: Any) -> None:
    numpyro.sample("fault", dist.Normal(0, 1), obs=_draw() ** 2)


def _leak(data: Any) -> None:
    total = sum(jnp.asarray(y, float).sum() for y in data.values())
    numpyro.sample("fault", dist.Normal(total, 1))


def _branch(data: Any) -> None:
    if _draw() > 0:
        numpyro.sample("fault", dist.Normal(0, 1))


def _mask(data: Any) -> None:
    x = _draw()
    with handlers.mask(mask=x > 0):
        numpyro.sample("fault", dist.Normal(x, 1), obs=1.0)


def _shape(data: Any) -> None:
    numpyro.sample("fault", dist.Normal(jnp.zeros(3), 1), obs=np.ones((3, 1)))


def _not_finite(data: Any) -> None:
    x = _draw()
    numpyro.sample("fault", dist.Normal(jnp.where(x > -1, jnp.nan, x), 1), obs=1.0)


def _support(data: Any) -> None:
    numpyro.sample("fault", dist.Uniform(0, 1 + numpyro.sample("fault_k", dist.Poisson(2.0))))


_FAULTY: dict[str, Callable[[Any], None]] = {
    "improper prior": _improper,
    "factor": lambda data: numpyro.factor("fault", -1.0),
    "computed observation": _computed,
    "leak": _leak,
    "branch": _branch,
    "sphere": lambda data: numpyro.sample("fault", dist.ProjectedNormal(jnp.ones(3))),
    "mask": _mask,
    "wrong shape": _shape,
    "not finite": _not_finite,
    "support of a count": _support,
}
# What the docs say of them, and whether they bring a latent site.
FAULTS: dict[str | None, tuple[str, bool]] = {
    "improper prior": ("ImproperUniform", True),
    "factor": ("numpyro.factor", False),
    "computed observation": ("observed at a value computed", True),
    "leak": ("leak into the simulation", True),
    "branch": ("cannot be simulated under jit", True),
    "sphere": ("no bijection", True),
    "mask": ("mask depends on sampled values", True),
    "wrong shape": ("reshape one of them", False),
    "not finite": ("Simulations are not finite", True),
    "support of a count": ("support depends on sites that are not", True),
}


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Models with up to three latent and two observed sites in up to two plates."""
    plates = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    subsets = st.sets(st.sampled_from(range(len(plates)))) if plates else st.just(set())
    inside = subsets.map(lambda chosen: tuple(sorted(chosen)))
    latents = st.builds(Site, st.sampled_from(sorted(PRIORS)), inside, st.booleans(), st.just(""))

    @st.composite
    def observed(draw: st.DrawFn) -> Site:
        kind = draw(st.sampled_from(sorted(LIKELIHOODS)))
        return Site(kind, draw(inside), dtype=draw(st.sampled_from(LIKELIHOODS[kind][1])))

    is_faulty = draw(st.integers(0, 4)) == 4
    return Spec(
        plates,
        tuple(draw(st.lists(latents, min_size=0 if is_faulty else 1, max_size=3))),
        tuple(draw(st.lists(observed(), min_size=0 if is_faulty else 1, max_size=2))),
        draw(st.booleans()),
        draw(st.none() | st.sampled_from(sorted(_FAULTY))) if is_faulty else None,
    )
