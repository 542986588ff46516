"""What a policy that is exported takes and gives: the contract between `diffac export` and the backends' exporters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from diffac.errors import UsageError
from diffac.noise import Law, Noise, NoiseSpec, Zeros, draw
from diffac.protocols import Engine

BATCH = "batch"
"""Stands in a shape for the number of observations."""


@dataclasses.dataclass(frozen=True)
class NoiseEntry:
    """One array of the noise of `Engine.act`."""

    name: str
    """Its path in the nested noise, for example "noise.inner.candidates.start"."""
    law: Law
    shape: tuple[int | str, ...]
    """`BATCH` where the number of observations stands, if anywhere."""

    @property
    def is_input(self) -> bool:
        """Whether the caller gives it; what is switched off or empty is a constant."""
        return not isinstance(self.law, Zeros) and 0 not in self.shape

    def sizes(self, batch: Any) -> tuple[Any, ...]:
        """The shape for a batch size."""
        return tuple(batch if size == BATCH else size for size in self.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Signature:
    """A function of obs [batch obs_dim] and of arrays of noise, which gives actions [batch action_dim].

    All arrays are float32, noise of the law `Integers` int32.
    """

    obs_dim: int
    noise: Mapping[str, Any]
    """As the noise specification is nested, with a `NoiseEntry` for each law."""
    low: np.ndarray
    """[action_dim], the environment's bounds of an action."""
    high: np.ndarray

    @property
    def inputs(self) -> tuple[NoiseEntry, ...]:
        """The noise that the function takes, in the order of its arguments."""
        return tuple(entry for entry in _leaves(self.noise) if entry.is_input)

    @property
    def scale(self) -> tuple[np.ndarray, np.ndarray]:
        """Half the range and the centre of the action, float32: what takes [-1, 1] to the environment's bounds."""
        low, high = np.asarray(self.low, np.float64), np.asarray(self.high, np.float64)
        return ((high - low) / 2).astype(np.float32), ((high + low) / 2).astype(np.float32)

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The bounds of an action, float32, rounded inwards where they are no numbers of it."""
        low, high = self.low.astype(np.float32), self.high.astype(np.float32)
        inner_low = np.where(low < self.low, np.nextafter(low, np.float32(np.inf)), low)
        inner_high = np.where(high > self.high, np.nextafter(high, np.float32(-np.inf)), high)
        between = inner_low <= inner_high  # unless no number of float32 lies between them
        return np.where(between, inner_low, low), np.where(between, inner_high, high)

    def draw(self, rng: np.random.Generator, batch: int) -> list[np.ndarray]:
        """The inputs' noise for a batch size."""
        laws = {entry.name: dataclasses.replace(entry.law, shape=entry.sizes(batch)) for entry in self.inputs}
        return list(draw(rng, laws).values())

    def nest(self, arrays: Sequence[Any], zeros: Callable[[tuple[Any, ...]], Any], batch: Any) -> Noise:
        """The noise as `Engine.act` wants it.

        Args:
            arrays: those of `inputs`.
            zeros: makes an array of a shape.
            batch: the number of observations.
        """
        given = iter(arrays)

        def fill(noise: Mapping[str, Any]) -> dict[str, Any]:
            return {
                name: fill(entry)
                if isinstance(entry, Mapping)
                else next(given)
                if entry.is_input
                else zeros(entry.sizes(batch))
                for name, entry in noise.items()
            }

        return fill(self.noise)


def signature(engine: Engine, obs_dim: int, low: np.ndarray, high: np.ndarray) -> Signature:
    """The signature of a learner's policy as it is evaluated, without exploration.

    Args:
        engine: says which noise it needs.
        obs_dim: length of an observation.
        low: [action_dim], the environment's bounds of an action.
        high: the upper ones.

    Raises:
        UsageError: the shape of a noise depends on the number of observations in another way than by one axis of that
            length.
    """
    specs = [engine.act_noise_spec((batch, len(low)), deterministic=True) for batch in (2, 3)]
    return Signature(obs_dim, _entries("noise", *specs), low, high)


def _entries(prefix: str, two: NoiseSpec, three: NoiseSpec) -> dict[str, Any]:
    """The entries of specifications for 2 and 3 observations."""
    entries: dict[str, Any] = {}
    for key, law in two.items():
        name, other = f"{prefix}.{key}", three[key]
        if isinstance(law, Mapping):
            entries[key] = _entries(name, law, other)
            continue
        shape = tuple(BATCH if sizes == (2, 3) else sizes[0] for sizes in zip(law.shape, other.shape, strict=True))
        entries[key] = entry = NoiseEntry(name, law, shape)
        if entry.sizes(3) != other.shape:
            raise UsageError(
                f"{name} has shape {law.shape} for 2 observations and {other.shape} for 3; a policy can be exported "
                f"where one axis has the length of the batch"
            )
    return entries


def _leaves(noise: Mapping[str, Any]) -> Iterator[NoiseEntry]:
    for entry in noise.values():
        if isinstance(entry, Mapping):
            yield from _leaves(entry)
        else:
            yield entry
