"""What a run says when its numbers are no longer numbers: which, since when, and what is still whole."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from diffac.errors import RunError

NAMED = 3
"""Arrays that a message names, of those that are not finite."""


class DivergenceError(RunError):
    """A loss, a gradient, an action or a parameter is NaN or infinite."""


def nonfinite_arrays(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the arrays that hold NaN or infinity."""
    return [name for name, array in arrays.items() if not np.isfinite(array).all()]


def diverged(what: str, arrays: Mapping[str, np.ndarray]) -> DivergenceError:
    """The error for a run that cannot go on.

    Args:
        what: which number was the first that is not finite, and when.
        arrays: all of the learner's, as they are now.
    """
    names = nonfinite_arrays(arrays)
    state = f"all {len(arrays)} arrays of the learner are still finite"
    if names:
        more = ", ..." if len(names) > NAMED else ""
        state = (
            f"{len(names)} of the learner's {len(arrays)} arrays are not finite now: {', '.join(names[:NAMED])}{more}"
        )
    return DivergenceError(
        f"training diverged: {what}; {state}; lower the learning rate or the reward scale, or try another seed"
    )
