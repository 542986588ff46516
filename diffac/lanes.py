"""Several training loops, each in a thread of its own (a lane), whose learners are called together by one thread.

The lanes step environments, fill replay memories and write files. Whatever the framework computes, the thread that
`Lanes.serve` runs in computes. Updates and actions of training wait until every lane has asked for one, and are then
computed for all seeds in one call. Anything else (evaluations, checkpoints) is computed for the lane that asks for it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffac.checkpoints import Codec
from diffac.noise import Noise, NoiseSpec, Shape
from diffac.protocols import GroupLearner, Learner, Metrics, SeedGroup, Transition


def group_of(learners: Sequence[Learner], states: Sequence[Any]) -> SeedGroup:
    """The learners' own way to train several seeds together, or else one seed after the other.

    Args:
        learners: one for each seed.
        states: theirs, before training; are consumed.
    """
    first = learners[0]
    group = first.group(learners, states) if isinstance(first, GroupLearner) else None
    return OneByOne(learners, states) if group is None else group


class OneByOne:
    """A `SeedGroup` that calls one learner after the other: for learners that offer nothing better.

    Args:
        learners: one for each seed.
        states: theirs; are consumed.
    """

    def __init__(self, learners: Sequence[Learner], states: Sequence[Any]) -> None:
        self._learners, self._states = learners, list(states)

    def update(self, batches: Sequence[Transition | None], keys: Sequence[int | None]) -> Sequence[Metrics]:
        metrics: list[Metrics] = [{} for _ in batches]
        for i, (batch, key) in enumerate(zip(batches, keys, strict=True)):
            if batch is not None and key is not None:
                self._states[i], metrics[i] = self._learners[i].update(self._states[i], batch, key)
        return metrics

    def act(self, obs: Sequence[np.ndarray | None], noise: Sequence[Noise | None]) -> Sequence[np.ndarray]:
        actions = [np.empty(0) for _ in obs]
        for i, (own, draws) in enumerate(zip(obs, noise, strict=True)):
            if own is not None and draws is not None:
                actions[i] = self._learners[i].act(self._states[i], own, draws)
        return actions

    def state(self, index: int) -> Any:
        return self._states[index]


class Closed(Exception):
    """The lanes are no longer served."""


class _Answer(NamedTuple):
    value: Any
    error: BaseException | None = None


class _Together(NamedTuple):
    """A method of the group, and one seed's share of its arguments."""

    method: str
    arguments: tuple[Any, ...]


class Lanes:
    """Where the lanes ask, and what answers them.

    A lane that has left is None in the calls that follow: no other lane waits for it.

    Args:
        group: the states of all seeds.
        num_seeds: lanes.
    """

    def __init__(self, group: SeedGroup, num_seeds: int) -> None:
        self._group = group
        self._closed = False
        self._questions: queue.SimpleQueue[tuple[int, _Together | Callable[[SeedGroup], Any] | None]]
        self._questions = queue.SimpleQueue()
        self._answers: list[queue.SimpleQueue[_Answer]] = [queue.SimpleQueue() for _ in range(num_seeds)]

    def serve(self) -> None:
        """Answers until every lane has left."""
        present, waiting = set(range(len(self._answers))), dict[int, _Together]()
        try:
            while present:
                lane, question = self._questions.get()
                if question is None:
                    present.discard(lane)
                elif isinstance(question, _Together):
                    waiting[lane] = question
                else:
                    self._answers[lane].put(_answer(question, self._group))
                if waiting and waiting.keys() == present:
                    self._answer_all(waiting)
                    waiting = {}
        finally:
            self._closed = True
            for lane in present:
                self._answers[lane].put(_Answer(None, Closed()))

    def together(self, lane: int, method: str, *arguments: Any) -> Any:
        """What the group's method returns for the lane, as soon as all lanes have asked for it.

        Raises:
            Closed: nobody answers any more.
        """
        return self._ask(lane, _Together(method, arguments))

    def alone(self, lane: int, question: Callable[[SeedGroup], Any]) -> Any:
        """What the function returns for the group; not while the group is at work.

        Raises:
            Closed: nobody answers any more.
        """
        return self._ask(lane, question)

    def leave(self, lane: int) -> None:
        """The lane asks for nothing any more."""
        self._questions.put((lane, None))

    def _ask(self, lane: int, question: _Together | Callable[[SeedGroup], Any]) -> Any:
        if self._closed:
            raise Closed
        self._questions.put((lane, question))
        answer = self._answers[lane].get()
        if answer.error is not None:
            raise answer.error
        return answer.value

    def _answer_all(self, waiting: Mapping[int, _Together]) -> None:
        """One call of the group for all lanes; an error is everybody's."""
        lanes = range(len(self._answers))
        (method,) = {question.method for question in waiting.values()}
        (count,) = {len(question.arguments) for question in waiting.values()}
        arguments = [[waiting[lane].arguments[i] if lane in waiting else None for lane in lanes] for i in range(count)]
        answer = _answer(getattr(self._group, method), *arguments)
        for lane in waiting:
            value = None if answer.error is not None else answer.value[lane]
            self._answers[lane].put(_Answer(value, answer.error))


def _answer(function: Callable[..., Any], *arguments: Any) -> _Answer:
    try:
        return _Answer(function(*arguments))
    except Exception as error:
        return _Answer(None, error)


class LaneState:
    """What a training loop takes for the learner's state: the share of one lane in that of all."""

    def __init__(self) -> None:
        self.own: Any = None
        """The state itself, from the first time on that somebody asks for it."""


class LaneLearner:
    """What the training loop of one seed takes for its learner, and for the codec of its state.

    Args:
        lanes: of all seeds.
        lane: which of them.
        learner: that of the seed.
        codec: of its state.
    """

    def __init__(self, lanes: Lanes, lane: int, learner: Learner, codec: Codec) -> None:
        self._lanes, self._lane, self._learner, self._codec = lanes, lane, learner, codec
        self.evaluated = EvaluatedLane(self, learner)
        """What acts in evaluations: they differ in length, so no lane waits for another."""

    def update(self, state: LaneState, batches: Transition, key: int) -> tuple[LaneState, Metrics]:
        """With all other lanes."""
        return LaneState(), self._lanes.together(self._lane, "update", batches, key)

    def act(self, state: LaneState, obs: np.ndarray, noise: Noise) -> np.ndarray:
        """With all other lanes."""
        return self._lanes.together(self._lane, "act", obs, noise)

    def act_noise_spec(self, shape: Shape, *, deterministic: bool = False) -> NoiseSpec:
        return self._learner.act_noise_spec(shape, deterministic=deterministic)

    def measure(self, state: LaneState) -> Metrics:
        return self.alone(state, self._learner.measure)

    def fetch(self, metrics: Sequence[Metrics]) -> Mapping[str, np.ndarray]:
        return self._lanes.alone(self._lane, lambda _: self._learner.fetch(metrics))

    def to_arrays(self, state: LaneState) -> Mapping[str, np.ndarray]:
        return self.alone(state, self._codec.to_arrays)

    def alone(self, state: LaneState, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(this seed's state, *arguments), in the thread that computes."""

        def call(group: SeedGroup) -> Any:
            if state.own is None:
                state.own = group.state(self._lane)
            return function(state.own, *arguments)

        return self._lanes.alone(self._lane, call)


class EvaluatedLane:
    """The learner of one lane, without the others.

    Args:
        lane: the learner of the lane.
        learner: that of the seed.
    """

    def __init__(self, lane: LaneLearner, learner: Learner) -> None:
        self._lane, self._learner = lane, learner

    def act_noise_spec(self, shape: Shape, *, deterministic: bool = False) -> NoiseSpec:
        return self._learner.act_noise_spec(shape, deterministic=deterministic)

    def act(self, state: LaneState, obs: np.ndarray, noise: Noise) -> np.ndarray:
        return self._lane.alone(state, self._learner.act, obs, noise)


def in_lanes(lanes: Lanes, work: Sequence[Callable[[], None]], patience: float = 2.0) -> None:
    """Runs each function in a thread, its lane, and serves them until all have ended.

    Args:
        lanes: which the functions use.
        work: one function for each lane, which must not raise.
        patience: seconds for which an error of this thread (a second Ctrl-C) waits until the lanes have ended too.
    """

    def run(lane: int) -> None:
        try:
            work[lane]()
        finally:
            lanes.leave(lane)

    threads = [
        threading.Thread(target=run, args=(lane,), name=f"lane {lane}", daemon=True) for lane in range(len(work))
    ]
    for thread in threads:
        thread.start()
    try:
        lanes.serve()
    except BaseException:
        for thread in threads:
            thread.join(patience)
        raise
    for thread in threads:
        thread.join()
