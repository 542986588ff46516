"""What parts hand back to a learner: any number is welcome, whatever it is made of; everything else gets a sentence.

Parts may come from users, who return Python's numbers, NumPy's, or arrays that still carry a gradient. A learner passes
all of it through here and keeps arrays of its backend, without gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from diffac.errors import UsageError
from diffac.protocols import Array, Loss, Metrics, RowUpdate, State

_KINDS = {"bool": "True or False", "int": "a whole number", "float": "a number"}


def checked_loss(objective: Any, loss: Any, before: State, convert: Callable[[Any, Any], Array]) -> Loss:
    """What an objective returned, with metrics, state and log-probabilities converted; the value stays as it is.

    Args:
        objective: names the culprit.
        loss: what it returned.
        before: the state that it was given.
        convert: (number or array, like) -> array without gradient, with the type and on the device of the array `like`.

    Raises:
        UsageError: it is no `Loss` of one number, a metric is not one number, or the state is not like the one before.
    """
    name = type(objective).__name__
    if not isinstance(loss, Loss):
        raise UsageError(f"{name} must return a diffac.Loss(value, metrics, state), got {type(loss).__name__}")
    _check_one(f"the loss of {name}", loss.value)
    metrics = checked_metrics(objective, loss.metrics, loss.value, convert)
    log_prob = None if loss.log_prob is None else convert(loss.log_prob, loss.value)
    return Loss(loss.value, metrics, checked_state(objective, loss.state, before, convert, rows=True), log_prob)


def checked_metrics(part: Any, metrics: Any, like: Array, convert: Callable[[Any, Any], Array]) -> dict[str, Array]:
    """A part's metrics as arrays of one number, with the type of `like`.

    Raises:
        UsageError: a metric is not one number.
    """
    for name, number in _mapping("metrics", part, metrics).items():
        _check_one(f"metric {name!r} of {type(part).__name__}", number)
    return {name: convert(number, like) for name, number in metrics.items()}


def checked_state(
    part: Any, state: Any, before: State, convert: Callable[[Any, Any], Array], *, rows: bool = False
) -> dict[str, Array]:
    """A part's new state as arrays like those of the state before, and with `rows` as a `RowUpdate` where it is one.

    Raises:
        UsageError: names or shapes differ, or an entry is of another kind; a whole number may become a real one.
    """
    name = type(part).__name__
    if _mapping("state", part, state).keys() != before.keys():
        raise UsageError(
            f"the state of {name} must keep its names: {sorted(before) or 'none'} before, {sorted(state) or 'none'} now"
        )
    kinds, checked = list(_KINDS), {}
    for entry, old in before.items():
        what, new = f"state {entry!r} of {name}", state[entry]
        kind, shape = _numbers(what, old)
        if update := new if rows and isinstance(new, RowUpdate) else None:
            row_kind, row_shape = _numbers(f"the rows of {what}", update.rows)
            if row_kind != "int" or len(row_shape) != 1:
                raise UsageError(f"the rows of {what} must be [n] of integers, got {row_kind} of shape {row_shape}")
            new, shape = update.values, (*row_shape, *shape[1:])
        new_kind, new_shape = _numbers(what, new)
        if new_shape != shape:
            raise UsageError(f"{what} must keep its shape {shape}, got shape {new_shape}")
        if kinds.index(new_kind) > kinds.index(kind):
            raise UsageError(f"{what} must stay {_KINDS[kind]}, got {new_kind}")
        new = convert(new, old)
        checked[entry] = RowUpdate(update.rows, new) if update else new
    return checked


def initial_state(part: Any, state: Any, convert: Callable[[Any], Array]) -> dict[str, Array]:
    """A part's first state as arrays.

    Raises:
        UsageError: an entry is not made of numbers.
    """
    for name, value in _mapping("state", part, state).items():
        _numbers(f"state {name!r} of {type(part).__name__}", value)
    return {name: convert(value) for name, value in state.items()}


def of_loss(network: str, loss: Loss) -> dict[str, Array]:
    """What is logged of a network's loss."""
    return {f"{network}_loss": loss.value, **prefixed(network, loss.metrics)}


def prefixed(prefix: str, metrics: Metrics) -> dict[str, Array]:
    """Metrics by the names under which a learner logs them."""
    return {f"{prefix}_{name}": value for name, value in metrics.items()}


def _mapping(what: str, part: Any, given: Any) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise UsageError(f"the {what} of {type(part).__name__} must be a mapping, got {type(given).__name__}")
    return given


def _check_one(what: str, value: Any) -> None:
    _, shape = _numbers(what, value, "one number")
    if shape:
        raise UsageError(f"{what} must be one number, got shape {shape}")


def _numbers(what: str, value: Any, wanted: str = "numbers") -> tuple[str, tuple[int, ...]]:
    """Kind (a key of `_KINDS`) and shape of a number of Python's, NumPy's or any backend's, or of an array of them."""
    name = str(getattr(value, "dtype", type(value).__name__)).removeprefix("torch.")
    kind = {"uint": "int", "bfloat": "float"}.get(stem := name.rstrip("0123456789"), stem)
    if kind not in _KINDS:
        raise UsageError(f"{what} must be {wanted}, got {name}")
    return kind, tuple(getattr(value, "shape", ()))
