"""Callbacks: they see everything in its order, change nothing, and can stop a run that goes on afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest

from diffac.agent import Agent
from diffac.errors import RunError
from diffac.runs.checkpointer import Checkpointer
from diffac.runs.store import Store
from diffac.training.callbacks import Callback, CallbackError, Callbacks
from diffac.training.loop import train
from diffac.training.state import Training

SMALL: dict[str, Any] = {
    "hidden_sizes": (8,), "total_timesteps": 90, "learning_starts": 30, "batch_size": 8, "num_envs": 2,
    "buffer_size": 200, "eval_interval": 40, "eval_episodes": 1, "log_interval": 20, "updates_per_env_step": 0.5,
}  # fmt: skip


class Witness(Callback):
    """Notes what it sees, and looks at everything it may."""

    def __init__(self, stop_step: int | None = None, stop_evaluation: int | None = None) -> None:
        self.stop_step, self.stop_evaluation = stop_step, stop_evaluation
        self.seen: list[tuple[str, int, int]] = []
        self.episodes: list[float] = []

    def note(self, what: str, training: Training) -> None:
        self.seen.append((what, training.env_step, training.updates))
        np.random.default_rng(0).random()
        np.random.random(7)  # noqa: NPY002
        training.engine.act_noise_spec((1, 1))
        len(training.buffer)

    def on_step(self, training: Training) -> Any:
        self.note("step", training)
        self.episodes += [episode.ret for episode in training.episodes]
        return None if self.stop_step is None else np.bool_(training.env_step < self.stop_step)

    def on_evaluation(self, training: Training) -> Any:
        self.note("evaluation", training)
        assert training.evaluations[-1].env_step == training.env_step
        return None if self.stop_evaluation is None else training.env_step < self.stop_evaluation

    def on_end(self, training: Training) -> None:
        self.note("end", training)


def test_order() -> None:
    """4 environments, 120 steps, evaluations at 60 and 120; updates of the last step are done before its call."""
    witness, writer = Witness(), fakes.ListWriter()
    result = train(fakes.FakeEngine(), fakes.FakeState(), fakes.config(), callback=witness, writer=writer)
    steps = [step for what, step, _ in witness.seen if what == "step"]
    assert steps == list(range(4, 121, 4))
    others = [(what, step) for what, step, _ in witness.seen if what != "step"]
    assert others == [("evaluation", 60), ("evaluation", 120), ("end", 120)]
    assert witness.seen.index(("step", 60, 8)) + 1 == witness.seen.index(("evaluation", 60, 8))
    assert witness.seen[-1][2] == result.state.updates == fakes.config().total_updates
    assert np.mean(witness.episodes) == writer.column("rollout/ep_rew_mean")[-1][1]


def test_only_what_is_written_is_called() -> None:
    class Ends(Callback):
        def on_end(self, training: Training) -> None:
            ended.append(training.env_step)

    ended: list[int] = []
    train(fakes.FakeEngine(), fakes.FakeState(), fakes.config(), callback=Ends())
    assert ended == [120]


@pytest.mark.parametrize(
    ("callback", "end"),
    [
        (Witness(stop_step=50), 52),
        (Witness(stop_evaluation=1), 60),
        (Callbacks(Witness(), Witness(stop_step=50), Witness()), 52),
        (Callbacks(Witness(stop_evaluation=1), Witness()), 60),
    ],
)
def test_a_callback_stops_the_run(callback: Any, end: int) -> None:
    result = train(fakes.FakeEngine(), fakes.FakeState(), fakes.config(), callback=callback)
    witnesses = callback.callbacks if isinstance(callback, Callbacks) else [callback]
    assert [witness.seen[-1][:2] for witness in witnesses] == [("end", end)] * len(witnesses)
    assert len(result.evaluations) == (end >= 60)


@pytest.mark.parametrize("callback", [Witness(stop_step=70), Witness(stop_evaluation=1)])
def test_a_run_that_was_stopped_goes_on(callback: Callback, tmp_path: Path) -> None:
    """From the checkpoint that it wrote, with the same result."""
    whole = train(fakes.FakeEngine(), fakes.FakeState(), fakes.config())
    for stop in (callback, None):
        learner, state = fakes.FakeEngine(), fakes.FakeState()
        found, _ = Store(tmp_path / "checkpoints").newest()
        checkpointer = Checkpointer(tmp_path, learner, interval=1000, info={"run_id": "x"}, checkpoint=found)
        result = train(learner, state, fakes.config(), callback=stop, checkpointer=checkpointer)
    assert result.state.keys == whole.state.keys
    assert result.state.weight == whole.state.weight
    assert [record.returns.tolist() for record in result.evaluations] == [
        record.returns.tolist() for record in whole.evaluations
    ]


class Raises(Witness):
    """Sees everything, and raises at the first step and at the end."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def on_step(self, training: Training) -> None:
        super().on_step(training)
        raise KeyError(self.text)

    def on_end(self, training: Training) -> None:
        super().on_end(training)
        raise OSError("closed")


def test_an_error_is_an_end_for_everybody() -> None:
    """All are asked and told of the end, whoever has raised; the first error is raised, the others are noted."""
    before, after = Witness(), Witness()
    one, other = Raises("pruned"), Raises("lost")
    everybody = Callbacks(before, Callbacks(one), other, after)
    with pytest.raises(CallbackError, match=r"callback Raises\.on_step raised KeyError: 'pruned' \(test_") as raised:
        train(fakes.FakeEngine(), fakes.FakeState(), fakes.config(), callback=everybody)
    for witness in (before, one, other, after):
        assert witness.seen == [("step", 4, 0), ("end", 4, 0)]
    assert isinstance(raised.value.__cause__, KeyError)
    notes = " ".join(raised.value.__notes__)
    assert "Raises.on_step raised KeyError: 'lost'" in notes
    assert notes.count("Raises.on_end raised OSError: closed") == 1


def test_an_error_of_the_environment_is_no_end() -> None:
    witness = Witness()
    with pytest.raises(RunError, match="gears"):
        train(fakes.FakeEngine(), fakes.FakeState(), fakes.config(env_id="fakes:Failingraise-v0"), callback=witness)
    assert {what for what, _, _ in witness.seen} == {"step", "evaluation"}


def test_an_error_after_that_of_a_callback_hides_nothing() -> None:
    class Unwritten(fakes.ListWriter):
        def write(self, step: int, metrics: Any) -> None:
            raise OSError("full")

    with pytest.raises(OSError, match="full") as raised:
        train(
            fakes.FakeEngine(), fakes.FakeState(), fakes.config(log_interval=4), callback=Raises("pruned"),
            writer=Unwritten(),
        )  # fmt: skip
    assert raised.value.__notes__[0].startswith("before that, callback Raises.on_step raised KeyError: 'pruned'")


def test_a_run_on_disk_is_saved_when_a_callback_raises(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, fakes.FakeEngine(), interval=1000, info={"run_id": "x"})
    with pytest.raises(CallbackError, match="pruned"):
        train(
            fakes.FakeEngine(), fakes.FakeState(), fakes.config(), callback=Raises("pruned"),
            checkpointer=checkpointer,
        )  # fmt: skip
    found, _ = Store(tmp_path / "checkpoints").newest()
    assert found is not None
    assert found.env_step == 4


@pytest.mark.parametrize("method", ["on_step", "on_evaluation"])
@pytest.mark.parametrize("answer", ["stop", 0, np.ones(2), np.float32(0), object()])
def test_odd_answers(method: str, answer: Any) -> None:
    callback = type("Odd", (Witness,), {method: lambda self, training: answer})()
    with pytest.raises(CallbackError, match=rf"callback Odd\.{method} returned .*; it must return False to stop"):
        train(fakes.FakeEngine(), fakes.FakeState(), fakes.config(), callback=callback)


@pytest.mark.filterwarnings("ignore:coroutine")
def test_a_coroutine_is_no_answer() -> None:
    class Asks(Callback):
        async def on_step(self, training: Training) -> bool:  # pyright: ignore
            return False

    with pytest.raises(CallbackError, match=r"callback Asks\.on_step returned <coroutine"):
        train(fakes.FakeEngine(), fakes.FakeState(), fakes.config(), callback=Asks())


@pytest.mark.parametrize("recipe", ["sac", "sdac"])
def test_looking_on_changes_nothing(recipe: str, backend: Any) -> None:
    """Neither does evaluating more or less often, or with more episodes: bit for bit the same learner."""
    small = {"num_diffusion_steps": 2, "num_candidates": 2, "num_particles": 2} if recipe == "sdac" else {}
    variants: list[tuple[Callback | None, dict[str, Any]]] = [
        (None, {}),
        (Callbacks(Witness(), Witness()), {}),
        (None, {"eval_interval": 7}),
        (Witness(), {"eval_interval": 1000, "eval_episodes": 3, "log_interval": 1}),
    ]
    results = []
    for callback, fields in variants:
        agent = Agent.from_recipe(recipe, "fakes:Random-v0", backend=backend.name, **{**SMALL, **small, **fields})
        agent.learn(callback=callback)
        results.append(backend.to_arrays(agent.state))
    assert results[0]["updates"] == 30
    for other in results[1:]:
        assert other.keys() == results[0].keys()
        for name, array in other.items():
            np.testing.assert_array_equal(array, results[0][name], err_msg=name)
