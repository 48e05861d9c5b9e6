# SPDX-License-Identifier: Apache-2.0
"""A handler under which observed sites are simulated, also inside ``scan`` and ``cond``."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array, lax
from jax.typing import ArrayLike
from numpyro import handlers
from numpyro.contrib.control_flow.cond import cond_wrapper
from numpyro.contrib.control_flow.scan import scan_wrapper
from numpyro.primitives import _PYRO_STACK, Messenger

__all__ = ["Notes", "simulate_observed"]

WRAPPERS = dist.MaskedDistribution | dist.Independent | dist.ExpandedDistribution
_FIXERS = ("condition", "substitute")


@dataclass
class Notes:
    """What a run of the model showed by the way; static facts only, never arrays."""

    given: list[str] = field(default_factory=list)  # sites that came with a value
    conditioned: set[str] = field(default_factory=set)  # of those: the value came from a handler
    scanned: set[str] = field(default_factory=set)
    subsampled: dict[str, tuple[int, int]] = field(default_factory=dict)  # plate: (of, members)
    last: str | None = None  # the site reached last


class simulate_observed(Messenger):  # noqa: N801
    """
    Simulates the observed sites of a model, whose arguments may contain the data.

    Unlike :class:`numpyro.handlers.uncondition` it enters ``scan`` and ``cond``, where a later
    step must see the simulated value, and leaves ``factor`` statements alone.

    :param fn: the model.
    :param keep: names of sites that stay at the value they come with; ``None`` keeps all.
    :param values: site name to value; these sites, whatever their role, are set to it.
        Sites inside a ``scan`` have the time axis first.
    :param notes: filled in while the model runs.
    """

    def __init__(
        self,
        fn: Any = None,
        *,
        keep: Collection[str] | None = (),
        values: Mapping[str, ArrayLike] | None = None,
        notes: Notes | None = None,
        _index: tuple[Array, ...] = (),
        _prefix: str = "",
        _fixers: tuple[tuple[str, Any], ...] = (),
    ) -> None:
        super().__init__(fn)
        self.keep, self.values = keep, values or {}
        self.notes = Notes() if notes is None else notes
        self._index, self._prefix, self._fixers = _index, _prefix, _fixers

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "control_flow":
            self._enter_control_flow(msg)
        elif msg["type"] == "plate":
            self._take_first_members(msg)
        elif msg["type"] in ("sample", "deterministic") and not msg.get("_control_flow_done"):
            self._process_site(msg)

    def _process_site(self, msg: dict[str, Any]) -> None:
        name = self._prefix + msg["name"]
        self.notes.last = name
        if self._index:
            self.notes.scanned.add(name)
        if name in self.values:
            msg["value"] = jnp.asarray(self.values[name])[self._index]
        elif msg["type"] == "sample" and not isinstance(unwrap(msg["fn"]), dist.Unit):
            if not (self._is_given(name, msg) and self._keeps(name)):
                self._free(name, msg)

    def _is_given(self, name: str, msg: dict[str, Any]) -> bool:
        fixed = self._is_fixed_from_outside(msg)
        if fixed:
            self.notes.conditioned.add(name)
        if fixed or msg["value"] is not None:
            self.notes.given.append(name)
        return fixed or msg["value"] is not None

    def _keeps(self, name: str) -> bool:
        return self.keep is None or name in self.keep

    def _free(self, name: str, msg: dict[str, Any]) -> None:
        if is_improper(msg["fn"]):
            raise ValueError(
                f"Cannot simulate site '{name}': its prior is ImproperUniform, from which nothing "
                "can be drawn. Give it a proper prior, or fix it with numpyro.handlers.condition."
            )
        if msg["value"] is not None:
            msg["fn"] = _widened(name, msg["fn"], msg["value"])
        msg["value"], msg["is_observed"] = None, False
        # A key from a `seed` inside the model would be the same in every simulation.
        msg["kwargs"]["rng_key"] = None

    def _is_fixed_from_outside(self, msg: dict[str, Any]) -> bool:
        """Did a handler, and not ``obs=``, give the site its value?"""
        if any(_gives(data, msg, msg["name"]) for _, data in self._fixers):
            return True
        name = msg["name"]
        for handler in _PYRO_STACK[_PYRO_STACK.index(self) + 1 :]:
            if isinstance(handler, handlers.scope):
                name = name.removeprefix(f"{handler.prefix}{handler.divider}")
            elif isinstance(handler, handlers.condition):
                if _gives(handler.data or handler.condition_fn, msg, name):
                    return True
            elif isinstance(handler, handlers.substitute):
                if _gives(handler.data or handler.substitute_fn, msg, name):
                    return True
        return False

    def _enter_control_flow(self, msg: dict[str, Any]) -> None:
        stack = msg["kwargs"]["substitute_stack"]
        inside = _PYRO_STACK[_PYRO_STACK.index(self) + 1 :]
        scopes = [h for h in inside if isinstance(h, handlers.scope)]
        prefix = self._prefix + "".join(f"{h.prefix}{h.divider}" for h in scopes)
        enter = partial(
            simulate_observed,
            keep=self.keep,
            values=self.values,
            notes=self.notes,
            _prefix=prefix,
            _fixers=tuple(entry for entry in stack if entry[0] in _FIXERS),
        )
        # The body applies these entries outside of this handler: they would undo it.
        stack[:] = [
            (kind, self._only_kept(data, prefix) if kind in _FIXERS else data)
            for kind, data in stack
        ]
        if msg["fn"] is scan_wrapper:
            msg["args"] = _enter_scan(enter, self._index, *msg["args"])
        elif msg["fn"] is cond_wrapper:
            predicate, true_fn, false_fn, operand = msg["args"]
            enter = partial(enter, _index=self._index)
            msg["args"] = (predicate, enter(true_fn), enter(false_fn), operand)
        else:
            raise NotImplementedError(f"Cannot simulate the control flow primitive {msg['fn']}.")

    def _only_kept(self, data: Any, prefix: str) -> Any:
        if callable(data):
            return lambda site: data(site) if self._keeps(prefix + site["name"]) else None
        # NumPyro indexes them by the time step, which NumPy arrays do not support.
        return {n: jnp.asarray(x) for n, x in data.items() if self._keeps(prefix + n)}

    def _take_first_members(self, msg: dict[str, Any]) -> None:
        size, subsample_size = msg["args"]
        if msg["value"] is None and subsample_size is not None and subsample_size < size:
            # Random members would pair the data of some with the covariates of others.
            self.notes.subsampled[msg["name"]] = (size, subsample_size)
            msg["value"] = jnp.arange(subsample_size)


def _enter_scan(
    enter: Any, index: tuple[Array, ...], f: Any, init: Any, xs: Any, length: Any, reverse: bool
) -> tuple[Any, ...]:
    if length is None:
        length = jnp.shape(jax.tree.leaves(xs)[0])[0]

    def step(carry: Any, x_and_time: Any) -> Any:
        x, time = x_and_time
        return enter(f, _index=(*index, time))(carry, x)

    return step, init, (xs, jnp.arange(length)), length, reverse


def _gives(data: Any, msg: dict[str, Any], name: str) -> bool:
    value = data(msg) if callable(data) else (data or {}).get(name)
    return value is not None


def _widened(name: str, fn: dist.Distribution, value: Any) -> dist.Distribution:
    """A distribution of the data's shape, for models that leave it to broadcasting."""
    batch = jnp.shape(value)[: max(jnp.ndim(value) - fn.event_dim, 0)]
    try:
        shape = lax.broadcast_shapes(batch, fn.batch_shape)
    except ValueError:
        shape = None
    if shape not in (batch, fn.batch_shape):
        raise ValueError(
            f"Site '{name}': the data have shape {jnp.shape(value)}, but its distribution has "
            f"{fn.batch_shape + fn.event_shape}; reshape one of them to match the other."
        )
    return fn if shape == fn.batch_shape else fn.expand(shape)


def unwrap(fn: dist.Distribution) -> dist.Distribution:
    """
    :param fn: a distribution.
    :return: what is inside of ``mask``, ``to_event`` and ``expand``.
    """
    while isinstance(fn, WRAPPERS):
        fn = fn.base_dist
    return fn


def is_improper(fn: dist.Distribution) -> bool:
    """
    :param fn: a distribution.
    :return: whether it is an ``ImproperUniform``, or a transformation of one.
    """
    fn = unwrap(fn)
    if isinstance(fn, dist.TransformedDistribution):
        return is_improper(fn.base_dist)
    return isinstance(fn, dist.ImproperUniform)
