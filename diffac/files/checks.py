"""Whether a value out of a file is what it must be: each function returns the value or raises a `DamagedError`."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffac.errors import DamagedError

MOST = 2**53
"""Largest counter: the last whole number that floats tell from its neighbours."""
_BIT_GENERATORS = {
    kind.__name__: kind
    for kind in (np.random.MT19937, np.random.PCG64, np.random.PCG64DXSM, np.random.Philox, np.random.SFC64)
}
"""Those that NumPy ships: a name that is not here is refused, never looked up."""
_BOUNDS = {"pos": 624, "buffer_pos": 4, "has_uint32": 1, "uinteger": 2**32 - 1}
"""Largest values of the entries of a bit generator's state with which it stays in its memory."""


def shown(value: Any) -> str:
    """A value for a message: cut short, control characters escaped."""
    return reprlib.repr(value)


def whole(value: Any, what: str, least: int = 0, most: int = MOST) -> int:
    """A whole number in [least, most]."""
    if type(value) is not int or not least <= value <= most:
        raise _not(what, f"a whole number from {least} to {most}", value)
    return value


def number(value: Any, what: str, least: float = -np.inf) -> float:
    """A finite number, at least `least`."""
    if type(value) not in (int, float) or not np.isfinite(float(value)) or value < least:
        raise _not(what, "a finite number" + (f" from {least:g} on" if least > -np.inf else ""), value)
    return value


def text(value: Any, what: str) -> str:
    """A text, of any characters: `diffac.messages` shows it."""
    if not isinstance(value, str):
        raise _not(what, "a text", value)
    return value


def mapping(value: Any, what: str, *names: str) -> dict[str, Any]:
    """A dictionary with texts for names, these among them."""
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise _not(what, "a table of names and values", value)
    for name in names:
        if name not in value:
            raise DamagedError(f"{what} lacks {name!r}")
    return value


def items(value: Any, what: str, length: int | None = None) -> list[Any]:
    """A list, of that length if one is given."""
    if not isinstance(value, list) or length not in (None, len(value)):
        raise _not(what, "a list" + ("" if length is None else f" of {length}"), value)
    return value


def array(
    value: Any, what: str, shape: Sequence[int | None], kinds: str = "f", *, least: float = -np.inf, finite: bool = True
) -> np.ndarray:
    """A NumPy array.

    Args:
        value: out of a file.
        what: it is, for messages.
        shape: None for an axis of any length.
        kinds: of its dtype, some of "biuf".
        least: value of an entry.
        finite: whether NaN and infinity are refused.

    Raises:
        DamagedError: it is anything else.
    """
    fits = (
        isinstance(value, np.ndarray)
        and value.dtype.kind in kinds
        and len(value.shape) == len(shape)
        and all(wanted in (None, size) for wanted, size in zip(shape, value.shape, strict=True))
    )
    if not fits:
        given = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else value
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        raise _not(what, f"an array of numbers of shape ({sizes})", given)
    if finite and not (np.isfinite(value) & (value >= least)).all():
        raise _not(what, "an array of finite numbers" + (f" from {least:g} on" if least > -np.inf else ""), value)
    return value


def bit_generator(state: Any, what: str, kind: str | None = None) -> np.random.BitGenerator:
    """A random generator of NumPy in a saved state.

    Args:
        state: as `BitGenerator.state` returns it.
        what: it is, for messages.
        kind: the generator that it must be; None: any that NumPy ships.

    Raises:
        DamagedError: NumPy ships no generator of that name, or the state is none of its own: with some, it would read
            outside its memory.
    """
    name = text(mapping(state, what, "bit_generator")["bit_generator"], f"{what}: bit_generator")
    if name not in (_BIT_GENERATORS if kind is None else [kind]):
        raise DamagedError(f"{what} must be a {kind or ', '.join(_BIT_GENERATORS)}, got {shown(name)}")
    generator = _BIT_GENERATORS[name]()
    generator.state = _like(state, generator.state, what)
    return generator


def _like(value: Any, example: Any, what: str) -> Any:
    """A bit generator's state, or a part of one, of the same form as the example's."""
    if isinstance(example, Mapping):
        found = mapping(value, what, *example)
        return {name: _like(found[name], part, f"{what}: {name}") for name, part in example.items()}
    if isinstance(example, np.ndarray):
        return array(value, what, example.shape, "u").astype(example.dtype)
    if isinstance(example, str):
        return text(value, what)
    given = int(value) if isinstance(value, np.integer) else value
    return whole(given, what, 0, _BOUNDS.get(what.rpartition(": ")[2], 2**128 - 1))


def _not(what: str, allowed: str, value: Any) -> DamagedError:
    return DamagedError(f"{what} must be {allowed}, got {shown(value)}")
