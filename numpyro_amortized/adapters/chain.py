# SPDX-License-Identifier: Apache-2.0
"""The steps of an adapter as methods that return a longer chain."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, Self

from jax.typing import ArrayLike, DTypeLike
from numpyro.distributions.constraints import Constraint

from numpyro_amortized.adapters.base import Transform
from numpyro_amortized.adapters.constrain import Constrain, to_constraint
from numpyro_amortized.adapters.dtypes import MapDtype
from numpyro_amortized.adapters.elementwise import Log, Log1p, Scale, Shift, Sqrt
from numpyro_amortized.adapters.filters import Filter, Filtered, Names, Predicate, as_names
from numpyro_amortized.adapters.functions import Apply, ApplyOneWay, Function
from numpyro_amortized.adapters.joining import Concatenate, Split
from numpyro_amortized.adapters.nesting import Group, Ungroup
from numpyro_amortized.adapters.one_way import (
    AsSet,
    AsTimeSeries,
    Broadcast,
    Drop,
    Keep,
    NanToNum,
    OneHot,
    Take,
)
from numpyro_amortized.adapters.standardize import FitStandardize, given_moments
from numpyro_amortized.adapters.structure import ExpandDims, Rename, Squeeze, ToArray

_Axes = int | Sequence[int]
_Moments = ArrayLike | Mapping[str, ArrayLike]


class Chain(ABC):
    """What can be chained.

    Every method returns a longer chain and leaves the one it is called on as it is. Axes are those
    of one simulation's value, without batch axes. Steps marked *one-way* cannot be undone, and may
    not touch what becomes ``inference_variables``.
    """

    @abstractmethod
    def append(self, transform: Transform) -> Self:
        """A chain with one more step."""

    # names and axes ------------------------------------------------------------------------------

    def rename(self, old: str, new: str) -> Self:
        """Give an entry another name."""
        return self.append(Rename(old, new))

    def concatenate(self, names: Names, *, into: str, axis: int | None = -1) -> Self:
        """Join entries along an axis; scalars count as vectors of one number.

        :param names: the entries, in their order.
        :param into: name of the result.
        :param axis: of a value; ``None`` flattens each value to a vector first.
        """
        return self.append(Concatenate(as_names(names), into, axis))

    def split(
        self,
        name: str,
        *,
        into: Sequence[str],
        indices_or_sections: int | Sequence[int] | None = None,
        axis: int = -1,
    ) -> Self:
        """Take an entry apart along an axis.

        :param name: the entry.
        :param into: names of the parts.
        :param indices_or_sections: where to cut, as for :func:`jax.numpy.split`; by default into
            equal parts.
        :param axis: of a value.
        """
        cuts = len(into) if indices_or_sections is None else indices_or_sections
        cuts = cuts if isinstance(cuts, int) else tuple(cuts)
        return self.append(Split(name, as_names(into), cuts, axis))

    def group(self, names: Names, into: str, *, prefix: str = "") -> Self:
        """Collect entries in one entry that is a dict of them.

        :param prefix: of all names, left out inside the dict.
        """
        return self.append(Group(as_names(names), into, prefix))

    def ungroup(self, name: str, *, prefix: str = "") -> Self:
        """Make entries of the members of a dict.

        :param prefix: put before the names of its members.
        """
        return self.append(Ungroup(name, prefix))

    def expand_dims(self, names: Names, *, axis: _Axes) -> Self:
        """Insert axes of length one at these places of the result."""
        return self.append(ExpandDims(as_names(names), _as_axis(axis)))

    def squeeze(self, names: Names, *, axis: _Axes) -> Self:
        """Remove these axes, which have length one."""
        return self.append(Squeeze(as_names(names), _as_axis(axis)))

    def to_array(
        self,
        include: Names | None = None,
        *,
        exclude: Names = (),
        predicate: Predicate | None = None,
    ) -> Self:
        """Numbers and nested lists become arrays. An adapter does so of itself."""
        return self._filtered(ToArray, "arrays", include, exclude, predicate)

    # types ---------------------------------------------------------------------------------------

    def map_dtype(self, names: Names, to_dtype: DTypeLike) -> Self:
        """Convert entries to another type."""
        return self.append(MapDtype(as_names(names), to_dtype))

    def convert_dtype(
        self,
        from_dtype: str,
        to_dtype: str,
        *,
        include: Names | None = None,
        exclude: Names = (),
        predicate: Predicate | None = None,
    ) -> Self:
        """Convert all entries of one type, such as ``"int32"``, to another."""
        entries = _filter(include, exclude, predicate, from_dtype)
        make = partial(MapDtype, dtype=to_dtype)
        return self.append(Filtered(entries, make, f"to {to_dtype}"))

    # numbers -------------------------------------------------------------------------------------

    def constrain(
        self,
        names: Names,
        *,
        lower: ArrayLike | None = None,
        upper: ArrayLike | None = None,
        constraint: Constraint | None = None,
    ) -> Self:
        """Map values of a constrained support to real numbers, by :func:`biject_to`.

        :param names: the entries.
        :param lower: lower bound.
        :param upper: upper bound.
        :param constraint: instead of bounds, a NumPyro constraint: ``constraints.simplex``,
            ``ordered_vector``, ``positive_definite``, ``corr_cholesky``, ...
        :raises ValueError: where these do not say one support, or it has no bijection.
        """
        return self.append(Constrain(as_names(names), to_constraint(lower, upper, constraint)))

    def log(self, names: Names, *, p1: bool = False) -> Self:
        """The logarithm; with ``p1`` that of one plus the value."""
        return self.append(Log1p(as_names(names)) if p1 else Log(as_names(names)))

    def log1p(self, names: Names) -> Self:
        """The logarithm of one plus the value."""
        return self.append(Log1p(as_names(names)))

    def sqrt(self, names: Names) -> Self:
        """The square root."""
        return self.append(Sqrt(as_names(names)))

    def scale(self, names: Names, by: ArrayLike) -> Self:
        """Multiply by a constant that broadcasts against one value."""
        return self.append(Scale(as_names(names), by))

    def shift(self, names: Names, by: ArrayLike) -> Self:
        """Add a constant that broadcasts against one value."""
        return self.append(Shift(as_names(names), by))

    def standardize(
        self,
        include: Names | None = None,
        *,
        mean: _Moments | None = None,
        std: _Moments | None = None,
        pooled: _Axes = (),
        mask: str | None = None,
        exclude: Names = (),
        predicate: Predicate | None = None,
    ) -> Self:
        """Subtract the mean and divide by the standard deviation.

        Without moments they are fitted when the adapter is bound to pilot draws, over the finite
        numbers of each place of a value, and are frozen from then on.

        :param include: the entries, by default all.
        :param mean: for all entries, or a mapping of one for each.
        :param std: the same.
        :param pooled: axes of a value whose members share the moments that are fitted, such as
            those of a set.
        :param mask: name of an entry of booleans beside the value; where it is false, numbers do
            not count for the moments and stay as they are.
        :param exclude: names that are left out.
        :param predicate: further condition on an entry's name and its shape and type.
        :raises ValueError: where only one of ``mean`` and ``std`` is given.
        """
        if (mean is None) != (std is None):
            raise ValueError(
                "Adapter: standardize: expected both `mean` and `std`, or none of them to have "
                "them fitted by `adapter.bind(draws)`."
            )
        axes = (pooled,) if isinstance(pooled, int) else tuple(pooled)
        make: Callable[[tuple[str, ...]], Transform] = (
            partial(FitStandardize, pooled=axes, mask=mask)
            if mean is None
            else partial(given_moments, mean=mean, std=std, mask=mask)
        )
        exclude = as_names(exclude) if mask is None else (*as_names(exclude), mask)
        return self._filtered(make, "standardized", include, exclude, predicate)

    def apply(
        self,
        include: Names | None = None,
        *,
        forward: Function,
        inverse: Function | None = None,
        log_det_jac: Function | None = None,
        exclude: Names = (),
        predicate: Predicate | None = None,
    ) -> Self:
        """A function of your own, of one simulation's value; *one-way* without its inverse.

        :param include: the entries, by default all.
        :param forward: a JAX function. To save the adapter, define it at the top of a module.
        :param inverse: its inverse.
        :param log_det_jac: the log absolute determinant of its Jacobian at a value; by default by
            automatic differentiation.
        :param exclude: names that are left out.
        :param predicate: further condition on an entry's name and its shape and type.
        """
        make: Callable[[tuple[str, ...]], Transform] = (
            partial(ApplyOneWay, function=forward)
            if inverse is None
            else partial(Apply, function=forward, undo=inverse, log_det=log_det_jac)
        )
        label = getattr(forward, "__name__", repr(forward))
        return self._filtered(make, label, include, exclude, predicate)

    # one-way -------------------------------------------------------------------------------------

    def drop(
        self,
        include: Names | None = None,
        *,
        exclude: Names = (),
        predicate: Predicate | None = None,
    ) -> Self:
        """Leave entries out (*one-way*)."""
        return self._filtered(Drop, "dropped", include, exclude, predicate)

    def keep(
        self,
        include: Names | None = None,
        *,
        exclude: Names = (),
        predicate: Predicate | None = None,
    ) -> Self:
        """Leave all other entries out (*one-way*)."""
        return self._filtered(Keep, "kept", include, exclude, predicate)

    def as_set(self, names: Names, *, mask: str | None = None) -> Self:
        """Values as sets, ``(members, features)`` (*one-way*).

        :param names: the entries.
        :param mask: name of an entry of booleans that says which numbers are observed; the step
            then adds ``summary_mask``, true for members with at least one of them.
        """
        return self.append(AsSet(as_names(names), mask))

    def as_time_series(self, names: Names) -> Self:
        """Values as series, ``(steps, features)`` (*one-way*)."""
        return self.append(AsTimeSeries(as_names(names)))

    def broadcast(
        self,
        names: Names,
        *,
        to: str,
        expand: Literal["left", "right"] | _Axes = "left",
        exclude: _Axes = -1,
        squeeze: _Axes = (),
    ) -> Self:
        """Repeat values along the axes of another entry (*one-way*).

        :param names: the entries.
        :param to: the entry whose axes they get.
        :param expand: where missing axes are inserted: ``"left"``, ``"right"``, or their places.
        :param exclude: axes that keep their length, by default the last, of features.
        :param squeeze: axes of length one that are removed at last.
        """
        places = expand if expand == "left" or expand == "right" else _as_axes(expand)
        return self.append(
            Broadcast(as_names(names), to, places, _as_axes(exclude), _as_axes(squeeze))
        )

    def take(
        self,
        include: Names | None = None,
        *,
        indices: Sequence[int],
        axis: int = -1,
        exclude: Names = (),
        predicate: Predicate | None = None,
    ) -> Self:
        """Some of the places along an axis (*one-way*)."""
        make = partial(Take, indices=tuple(indices), axis=axis)
        label = f"places {list(indices)} of axis {axis}"
        return self._filtered(make, label, include, exclude, predicate)

    def one_hot(self, names: Names, num_classes: int) -> Self:
        """Classes as vectors along a new last axis (*one-way*)."""
        return self.append(OneHot(as_names(names), num_classes))

    def nan_to_num(
        self, names: Names, default_value: float = 0.0, *, return_mask: bool = False
    ) -> Self:
        """Replace missing values, which are NaN (*one-way*).

        :param names: the entries.
        :param default_value: what replaces them.
        :param return_mask: whether to add the entry ``<name>_mask``, booleans of the value's
            shape, true where the value was observed. Concatenate it with the value, or pass it
            to :meth:`as_set`, so that the network knows what is missing.
        """
        return self.append(NanToNum(as_names(names), default_value, return_mask))

    def _filtered(
        self,
        make: Callable[[tuple[str, ...]], Transform],
        label: str,
        include: Names | None,
        exclude: Names,
        predicate: Predicate | None,
    ) -> Self:
        """Names alone make the step at once; all else waits for the entries."""
        if include is not None and not exclude and predicate is None:
            return self.append(make(as_names(include)))
        return self.append(Filtered(_filter(include, exclude, predicate), make, label))


def _filter(
    include: Names | None, exclude: Names, predicate: Predicate | None, dtype: str | None = None
) -> Filter:
    names = None if include is None else as_names(include)
    return Filter(names, as_names(exclude), predicate, dtype)


def _as_axis(axis: _Axes) -> int | tuple[int, ...]:
    return axis if isinstance(axis, int) else tuple(axis)


def _as_axes(axis: _Axes) -> tuple[int, ...]:
    return (axis,) if isinstance(axis, int) else tuple(axis)
