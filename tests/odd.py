"""Environments as people have them, `odd:NAME-v0`: bounds, spaces and return values that gymnasium does not forbid."""

from __future__ import annotations

import itertools
from typing import Any

import fakes
import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple

EVERYDAY = sorted(
    {
        (low, high)
        for low, high in itertools.product(
            [-3.1415927, -3, -2.8973, -2.5, -2, -1.7, -1.2, -1, -0.7, -0.5, -0.4, -0.3, -0.1, -0.05, 0, 0.1, 0.2, 0.65],
            [-0.01, 0, 0.1, 0.3, 0.4, 0.6, 0.7, 0.9, 1, 1.3, 1.7, 2.8973, 3.1415927, 10, 100],
        )
        if low < high and low != -high
    }
)
"""Asymmetric bounds of actions as one writes them."""


class Inside(fakes.Counter):
    """`Counter` that wants actions of its box and dtype; its components have all the `EVERYDAY` bounds."""

    def __init__(self, dtype: Any = np.float32, bounds: Any = EVERYDAY) -> None:
        super().__init__()
        low, high = (np.array(side, np.float64).astype(dtype) for side in zip(*bounds, strict=True))
        self.action_space = Box(low, high, dtype=dtype)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        space = self.action_space
        outside = ~((action >= space.low) & (action <= space.high))  # so that NaN is outside too
        if action.dtype != space.dtype or outside.any():
            raise AssertionError(f"{action.dtype} {action[outside]} outside {space.low[outside]} {space.high[outside]}")
        return super().step(action)


class Infos(fakes.Counter):
    """`Counter` whose `info` holds what vector environments cannot stack, another thing each time."""

    def info(self) -> dict[str, Any]:
        sizes = int(self.np_random.integers(1, 5))
        changing = [1, "text", None, np.zeros(sizes), {"a": sizes}, {"a": np.zeros(sizes)}, [], object, lambda: 0]
        return {"rows": np.ones(sizes), "changing": changing[int(self.np_random.integers(len(changing)))], 7: object()}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        return super().reset(seed=seed)[0], self.info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return *super().step(action)[:4], self.info()


class Returning(fakes.Counter):
    """`Counter` that returns something else: in the first reset, or from its third step on.

    Args:
        reset: in place of what `reset` returns.
        step: in place of what `step` returns.
        entries: entries of what `step` returns, by their number.
        space: its observation space, if another one.
    """

    def __init__(self, reset: Any = None, step: Any = None, entries: Any = None, space: Any = None) -> None:
        super().__init__()
        self.odd_reset, self.odd_step, self.entries = reset, step, entries or {}
        self.observation_space = space or self.observation_space

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        usual = super().reset(seed=seed)
        return usual if self.odd_reset is None else self.odd_reset

    def step(self, action: np.ndarray) -> Any:
        usual = list(super().step(action))
        if self.t < 3:
            return tuple(usual)
        for i, value in self.entries.items():
            usual[i] = value
        return tuple(usual) if self.odd_step is None else self.odd_step


class Observing(fakes.Counter):
    """`Counter` with another observation space, of which it always observes the same thing."""

    def __init__(self, space: gym.Space, obs: Any) -> None:
        super().__init__()
        self.observation_space, self.obs = space, obs

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        return self.obs, {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        return self.obs, *super().step(action)[1:]


class OldReset(fakes.Counter):
    """`Counter` with the `reset` of gym before 0.26."""

    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()[0]


class Percent(fakes.Counter):
    """Raises an error that cannot be pickled and whose message holds what `%` would format, over two lines."""

    class Unpicklable(Exception):
        def __init__(self, one: str, other: Any) -> None:
            super().__init__(f"{one}\nand much more")
            self.other = other

    def step(self, action: np.ndarray) -> Any:
        raise self.Unpicklable("100 % of 3 %d items", lambda: 0)


class Differing(fakes.Counter):
    """Every instance has an observation more than the one before."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        Differing.made += 1
        self.observation_space = Box(-1, 1, (Differing.made,))


for dtype in (np.float16, np.float32, np.float64):
    fakes.register(f"Inside{np.dtype(dtype).name}", Inside, dtype=dtype)
fakes.register("Constant", Inside, bounds=[(-1, 1), (0.3, 0.3), (0, 0), (-2.5, -2.5), (-0.0, 0.0)])
fakes.register("Infos", Infos, length=None)
fakes.register("OldReset", OldReset)
fakes.register("Percent", Percent)
fakes.register("Differing", Differing)

NAN = float("nan")
ROW = np.zeros(3)
BREACHES: dict[str, tuple[dict[str, Any], str, str]] = {
    # name: arguments of `Returning`, the method that breaks its contract, what the message says
    "ResetAlone": ({"reset": ROW}, "reset", r"\(observation, info\), got an array of shape \(3,\)"),
    "ResetThree": ({"reset": (ROW, {}, 0)}, "reset", r"\(observation, info\), got a tuple of 3"),
    "ResetNone": ({"reset": (None, {})}, "reset", r"observation must have shape \(3,\), got a NoneType"),
    "ResetInfo": ({"reset": (ROW, None)}, "reset", "info must be a dictionary, .* got None"),
    "ResetList": ({"reset": [ROW, {}]}, "reset", r"\(observation, info\), got a list"),
    "StepFour": ({"step": (ROW, 0.0, False, {})}, "step", "terminated, truncated, info.*got a tuple of 4; gym before"),
    "StepNone": ({"step": ()}, "step", "terminated, truncated, info.*got a tuple of 0"),
    "StepInfo": ({"entries": {4: None}}, "step", "info must be a dictionary, .* got None"),
    "StepInfoText": ({"entries": {4: "done"}}, "step", "info must be a dictionary, .* got a str, 'done'"),
    "Reward1": ({"entries": {1: np.ones(1)}}, "step", r"reward must be one number, .* got an array of shape \(1,\)"),
    "RewardList": ({"entries": {1: [1.0]}}, "step", r"reward must be one number, .* got a list, \[1.0\]"),
    "RewardNone": ({"entries": {1: None}}, "step", "reward must be one number, .* got None"),
    "RewardText": ({"entries": {1: "1"}}, "step", "reward must be one number, .* got a str, '1'"),
    "RewardComplex": ({"entries": {1: 1j}}, "step", "reward must be one number, .* got a complex"),
    "Terminated1": ({"entries": {2: np.zeros(1, bool)}}, "step", r"terminated must be True or False, got an array"),
    "TerminatedNone": ({"entries": {2: None}}, "step", "terminated must be True or False, got None"),
    "TerminatedText": ({"entries": {2: "False"}}, "step", "terminated must be True or False, got a str, 'False'"),
    "TerminatedTwo": ({"entries": {2: 2}}, "step", "terminated must be True or False, got a int, 2"),
    "TruncatedHalf": ({"entries": {3: 0.5}}, "step", "truncated must be True or False, got a float, 0.5"),
    "TruncatedNaN": ({"entries": {3: NAN}}, "step", "truncated must be True or False, got a float, nan"),
    "ObsRow": ({"entries": {0: ROW[None]}}, "step", r"observation must have shape \(3,\), got shape \(1, 3\)"),
    "ObsColumn": ({"entries": {0: ROW[:, None]}}, "step", r"observation must have shape \(3,\), got shape \(3, 1\)"),
    "ObsNumber": ({"entries": {0: 1.0}}, "step", r"observation must have shape \(3,\), got a float"),
    "ObsOne": ({"entries": {0: np.ones(1)}}, "step", r"observation must have shape \(3,\), got shape \(1,\)"),
    "ObsFour": ({"entries": {0: np.ones(4)}}, "step", r"observation must have shape \(3,\), got shape \(4,\)"),
    "ObsText": ({"entries": {0: ["a", "b", "c"]}}, "step", "observation must hold numbers, got a list of 3"),
    "ObsComplex": ({"entries": {0: 1j * ROW}}, "step", "observation must hold numbers, .* complex128"),
    "ObsRagged": ({"entries": {0: [[1, 2], [3]]}}, "step", r"observation must have shape \(3,\), got lists of unequal"),
    "ObsNone": ({"entries": {0: None}}, "step", r"observation must have shape \(3,\), got a NoneType"),
}
ALIKE: dict[str, dict[str, Any]] = {
    # what is no breach: the same in other types
    "RewardInt": {"entries": {1: 1}},
    "RewardFloat32": {"entries": {1: np.float32(1)}},
    "RewardArray": {"entries": {1: np.array(1.0)}},
    "RewardBool": {"entries": {1: np.True_}},
    "TerminatedBool": {"entries": {2: np.False_}},
    "TerminatedInt": {"entries": {2: 0}},
    "TerminatedArray": {"entries": {2: np.array(False)}},
    "ObsList": {"entries": {0: [0.0, 0, 0.5]}},
    "ObsTuple": {"entries": {0: (0, 0, 0)}},
    "ObsFloat32": {"entries": {0: np.zeros(3, np.float32)}},
    "ObsInt": {"entries": {0: np.zeros(3, np.int8)}},
    "StepList": {"entries": {4: {1: 2}}},
}
for name, (arguments, _, _) in BREACHES.items():
    fakes.register(name, Returning, **arguments)
for name, arguments in ALIKE.items():
    fakes.register(name, Returning, **arguments)

GOAL = Dict({name: Box(-1, 1, (2,)) for name in ("observation", "achieved_goal", "desired_goal")})
PAIR = np.float32([0.25, -0.5])
BYTES, COUNTS = Box(0, 255, (2,), np.uint8), Box(-10, 10, (2,), np.int64)
OBSERVED: dict[str, tuple[gym.Space, Any, list[float]]] = {
    # name: space, an observation of it, its row
    "Goal": (GOAL, dict.fromkeys(GOAL, PAIR), [*PAIR] * 3),
    "GoalMore": (GOAL, {**dict.fromkeys(GOAL, PAIR), "debug": "text"}, [*PAIR] * 3),
    "Choice": (Discrete(3), 2, [0, 0, 1]),
    "ChoiceFrom": (Discrete(3, start=-1), np.int64(-1), [1, 0, 0]),
    "ChoiceArray": (Discrete(3), np.array(1), [0, 1, 0]),
    "Choices": (MultiDiscrete([2, 3]), [1, 0], [0, 1, 1, 0, 0]),
    "ChoicesFrom": (MultiDiscrete([2, 2], start=[5, -1]), np.array([5, 0]), [1, 0, 0, 1]),
    "ChoicesTwoAxes": (MultiDiscrete([[2, 1], [1, 2]]), [[1, 0], [0, 0]], [0, 1, 1, 1, 1, 0]),
    "Bits": (MultiBinary(3), np.array([1, 0, 1]), [1, 0, 1]),
    "Bytes": (BYTES, np.array([0, 255], np.uint8), [0, 255]),
    "BytesAsFloats": (BYTES, [3.0, 4.0], [3, 4]),
    "Counts": (COUNTS, np.array([-3, 4]), [-3, 4]),
    "Scalar": (Box(-1, 1, ()), 0.5, [0.5]),
    "ScalarArray": (Box(-1, 1, ()), np.array(0.5), [0.5]),
    "Double": (Box(-np.inf, np.inf, (2,), np.float64), np.array([1e300, 1 / 3]) * [0, 1], [0, np.float32(1 / 3)]),
    "Half": (Box(-1, 1, (2,), np.float16), np.float16([0.1, 1]), [np.float16(0.1), 1]),
    "OneSided": (Box(0, np.inf, (2,)), np.array([0, 5]), [0, 5]),
    "NegativeZero": (Box(-1, 1, (2,)), np.float32([-0.0, 0.0]), [0, 0]),
    "Beyond": (Box(-1, 1, (2,)), np.array([7, -7]), [7, -7]),
    "Text": (Text(2, charset="ab"), "ba", [1, 0]),
    "Nested": (
        Dict({"b": Tuple((Discrete(2), COUNTS)), "a": BYTES}), {"a": [1, 2], "b": (1, [3, 4])}, [1, 2, 0, 1, 3, 4]
    ),
    "Image": (Box(0, 255, (2, 2, 1), np.uint8), np.arange(4, dtype=np.uint8).reshape(2, 2, 1), [0, 1, 2, 3]),
}  # fmt: skip
MISFITS: dict[str, tuple[gym.Space, Any, str]] = {
    # name: space, an observation that is not of it, what the message says
    "Fraction": (COUNTS, np.array([1.5, 2]), "whole numbers of dtype int64, got 1.5"),
    "NaNCount": (COUNTS, [NAN, 2], "whole numbers of dtype int64, got nan"),
    "InfCount": (COUNTS, [1, np.inf], "whole numbers of dtype int64, got inf"),
    "LargeByte": (BYTES, np.array([256, 1]), "whole numbers of dtype uint8, got 256"),
    "NegativeByte": (BYTES, [-1, 1], "whole numbers of dtype uint8, got -1"),
    "NoBit": (MultiBinary(2), [0, 2], "zeros and ones"),
    "ChoiceBeyond": (Discrete(3), 3, "must choose from"),
    "ChoiceNegative": (Discrete(3), -1, "must choose from"),
    "ChoiceFraction": (Discrete(3), 1.5, "whole numbers of dtype int64, got 1.5"),
    "ChoiceNaN": (Discrete(3), NAN, "whole numbers of dtype int64, got nan"),
    "ChoiceVector": (Discrete(3), np.array([1]), r"must have shape \(\), got shape \(1,\)"),
    "ChoicesBeyond": (MultiDiscrete([2, 3]), [2, 0], "must choose from"),
    "GoalMissing": (GOAL, {"observation": PAIR}, "must have the entry 'achieved_goal', got 'observation'"),
    "GoalArray": (GOAL, np.zeros(6), "must be a dictionary with achieved_goal, desired_goal, observation"),
    "GoalWrong": (GOAL, dict.fromkeys(GOAL, PAIR[:1]), r"observation\['achieved_goal'\] must have shape \(2,\)"),
    "TupleShort": (Tuple((BYTES, BYTES)), ([1, 2],), "must be a tuple of 2"),
    "TupleWrong": (Tuple((BYTES, BYTES)), ([1, 2], [3, 0.5]), r"observation\[1\] must hold whole numbers"),
    "ScalarVector": (Box(-1, 1, ()), np.ones(1), r"must have shape \(\), got shape \(1,\)"),
    "ImageFlat": (Box(0, 255, (2, 2, 1), np.uint8), np.zeros(4, np.uint8), r"must have shape \(2, 2, 1\), got shape"),
    "TextLong": (Text(2, charset="ab"), "abcd", "must be of Text"),
    "TextNumber": (Text(2, charset="ab"), 3, "must be of Text"),
}
for name, (space, obs, _) in {**OBSERVED, **MISFITS}.items():
    fakes.register(f"Sees{name}", Observing, space=space, obs=obs)


def doubled(env: gym.Env) -> gym.Env:
    return gym.wrappers.TransformReward(env, lambda reward: 2 * reward)


def plus_one(env: gym.Env) -> gym.Env:
    return gym.wrappers.TransformReward(env, lambda reward: reward + 1)
