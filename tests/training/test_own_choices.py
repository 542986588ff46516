"""Environments, replay memories and callbacks that a user or a recipe chooses."""

from __future__ import annotations

import importlib.metadata
import types
from pathlib import Path
from typing import Any

import fake_recipe
import fakes
import numpy as np
import pytest

import diffac
import diffac.runs.recipes
from diffac.agent import Agent
from diffac.data.own_stepper import OwnStepper
from diffac.data.replay import ReplayBuffer
from diffac.data.stepper import StepResult, VectorStepper
from diffac.errors import RunError, UsageError
from diffac.runs.resume import resume
from diffac.runs.run import run
from diffac.training.loop import train


class Worlds:
    """Steps what a `VectorStepper` steps, by the methods of the protocol alone."""

    def __init__(self, num_envs: int) -> None:
        self.inner = VectorStepper(diffac.make_envs("fakes:Random-v0", num_envs))
        self.num_envs, self.obs_dim, self.action_dim = num_envs, self.inner.obs_dim, self.inner.action_dim
        self.closed = 0

    def reset(self, seeds: Any) -> np.ndarray:
        return self.inner.reset(seeds)

    def start(self, action: np.ndarray) -> None:
        self.inner.start(action)

    def finish(self) -> StepResult:
        return self.inner.finish()

    def close(self) -> None:
        self.closed += 1
        self.inner.close()


class SavableWorlds(Worlds):
    """They go on where they were saved."""

    def save(self) -> Any:
        return {"worlds": self.inner.save(), "rng": np.random.default_rng(3)}

    def restore(self, saved: Any) -> np.ndarray:
        assert saved["rng"].random() == np.random.default_rng(3).random()
        assert self.inner.restore(saved["worlds"], range(self.num_envs)) is None
        return self.inner.obs


class Newest(ReplayBuffer):
    """Samples the newest transitions."""

    def sample(self, rng: np.random.Generator, updates: int, batch_size: int) -> Any:
        rows = (self.added - 1 - np.arange(updates * batch_size).reshape(updates, batch_size) % len(self)) % len(self)
        kept = self.contents()
        self.sampled_age = float((batch_size - 1) / 2)
        return diffac.Batch(
            *(getattr(kept, name)[rows] for name in ("obs", "action", "reward", "next_obs")), rows * 0.0
        )


class Watching(diffac.Callback):
    """Counts, and stops training after a number of steps."""

    def __init__(self, last: int | None = None) -> None:
        self.last, self.steps, self.ends = last, 0, 0

    def on_step(self, training: Any) -> bool:
        self.steps += 1
        return training.env_step != self.last

    def on_end(self, training: Any) -> None:
        self.ends += 1


def maker(kind: type, made: list[Any] | None = None) -> Any:
    def make_stepper(config: Any, purpose: str) -> Any:
        worlds = kind({"training": config.num_envs, "evaluation": min(config.eval_episodes, 10)}[purpose])
        if made is not None:
            made.append(worlds)
        return worlds

    return make_stepper


def recipe(**functions: Any) -> types.ModuleType:
    """The recipe `fake` with more functions."""
    module = types.ModuleType("fake_recipe")
    vars(module).update(vars(fake_recipe) | functions)
    return module


def lines(writer: fakes.ListWriter) -> list[Any]:
    """What was logged, without times."""
    return [
        (step, {name: value for name, value in metrics.items() if not name.startswith("time/")})
        for step, metrics in writer.lines
    ]


def trained(**given: Any) -> tuple[Any, Any]:
    writer = fakes.ListWriter()
    result = train(fakes.FakeEngine(), fakes.FakeState(), fakes.config(), writer=writer, **given)
    return lines(writer), [(e.env_step, e.returns.tolist(), e.lengths.tolist()) for e in result.evaluations]


@pytest.mark.parametrize("kind", [Worlds, SavableWorlds])
def test_a_stepper_trains_as_gymnasium_does(kind: type) -> None:
    """The same numbers; it is closed when training ends."""
    made: list[Any] = []
    assert trained(stepper=maker(kind, made)) == trained()
    assert [worlds.num_envs for worlds in made] == [4, 3]
    assert all(worlds.closed for worlds in made)


def test_an_evaluation_plays_in_a_stepper() -> None:
    engine, state = fakes.FakeEngine(), fakes.FakeState()
    with diffac.Evaluator("fakes:Random-v0", num_episodes=7, num_envs=3, seed=5) as evaluator:
        expected = evaluator(engine, state)
    with diffac.Evaluator(Worlds(3), num_episodes=7, seed=5) as evaluator:
        found = evaluator(engine, state)
        np.testing.assert_array_equal(evaluator.env_of_episode, [0, 0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(found.returns, expected.returns)
    np.testing.assert_array_equal(found.lengths, expected.lengths)


def of_transition(result: StepResult, **fields: Any) -> StepResult:
    return result._replace(transition=result.transition._replace(**fields))


REFUSED: dict[str, tuple[str, str, Any]] = {
    "no method": ("Wrong is no Stepper: it has no close", "close", None),
    "no size": ("Wrong is no Stepper: it has no obs_dim", "obs_dim", None),
    "another number": ("Wrong steps 5 environments, and 4 are wanted", "num_envs", 5),
}
BROKEN: dict[str, tuple[str, str, Any]] = {
    "reset raises": ("Wrong.reset raised ZeroDivisionError: division by zero", "reset", lambda _: 1 / 0),
    "start raises": ("Wrong.start raised KeyError: 3", "start", lambda _: {}[3]),
    "other sizes": ("Wrong.reset must .* of shape .4, 3., got float64 .2, 3.", "reset", lambda _: np.ones((2, 3))),
    "integers": ("Wrong.reset must .* floats of shape .4, 3., got int64", "reset", lambda _: np.ones((4, 3), int)),
    "NaN": ("Wrong.reset gave .* not finite for environment 2", "reset", lambda _: np.diag([1, 1, np.nan, 1])[:, 1:]),
    "no result": ("Wrong.finish must return a StepResult, got tuple", "finish", tuple),
    "infinite": ("Wrong.finish gave .* not finite", "finish", lambda r: r._replace(obs=r.obs / 0)),
    "rows": ("Wrong.finish must give a row for each of 4", "finish", lambda r: of_transition(r, reward=np.ones(3))),
    "a number": ("Wrong.finish must give a row for each of 4", "finish", lambda r: of_transition(r, reward=1.0)),
    "texts": ("Wrong.finish raised ValueError", "finish", lambda r: of_transition(r, reward=np.array(list("abcd")))),
}
MISTAKES = {name: (UsageError, *entry) for name, entry in REFUSED.items()}
MISTAKES |= {name: (RunError, *entry) for name, entry in BROKEN.items()}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_mistakes_of_a_stepper_are_told_by_name(mistake: str) -> None:
    kind, message, name, value = MISTAKES[mistake]
    made: list[Any] = []

    class Wrong(Worlds):
        def __init__(self, num_envs: int) -> None:
            super().__init__(num_envs)
            if not callable(value):
                setattr(self, name, value)

        def reset(self, seeds: Any) -> Any:
            return value(seeds) if name == "reset" else super().reset(seeds)

        def start(self, action: np.ndarray) -> None:
            value(action) if name == "start" else super().start(action)

        def finish(self) -> Any:
            return value(super().finish()) if name == "finish" else super().finish()

    with pytest.raises(kind, match=message):
        trained(stepper=maker(Wrong, made))
    assert all(worlds.closed for worlds in made) or "no " in mistake or mistake == "another number"


def test_a_stepper_is_made_anew_by_its_reset_after_an_error() -> None:
    """The run goes on with new episodes; the step that broke off does not count."""
    failing = [7]

    class Fragile(Worlds):
        def finish(self) -> StepResult:
            failing[0] -= 1
            if failing[0] == 0:
                raise OSError("gone")
            return super().finish()

    from diffac.training.loop import Loop

    with Loop(fakes.FakeEngine(), fakes.FakeState(), fakes.config(), stepper=maker(Fragile)) as loop:
        with pytest.raises(RunError, match=r"Fragile.finish raised OSError: gone"):
            loop.advance(120)
        assert loop.env_step == 24
        loop.advance(120)
        assert loop.env_step == 120


class Endless(Worlds):
    """No episode of theirs ends."""

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs)
        self.steps = 0

    def finish(self) -> StepResult:
        self.steps += 1
        result = super().finish()
        kept = of_transition(result, terminated=np.zeros(self.num_envs, bool), reward=np.full(self.num_envs, 2.0))
        return kept._replace(episodes=[])


def test_an_evaluation_cuts_episodes_without_an_end() -> None:
    worlds = Endless(2)
    with diffac.Evaluator(worlds, num_episodes=3, seed=5, max_steps=20) as evaluator:
        found = evaluator(fakes.FakeEngine(), fakes.FakeState())
    np.testing.assert_array_equal(found.lengths, [20, 20, 20])
    np.testing.assert_array_equal(found.returns, [40, 40, 40])
    assert (found.cut, worlds.steps) == (3, 40)


def test_a_run_says_that_its_stepper_has_no_end() -> None:
    with pytest.warns(UserWarning, match=r"3 of 3 episodes had no end after 7 steps.*eval_max_steps"):
        train(fakes.FakeEngine(), fakes.FakeState(), fakes.config(eval_max_steps=7), stepper=maker(Endless))


def test_environments_of_other_sizes_are_refused() -> None:
    class Wider(Worlds):
        def __init__(self, num_envs: int) -> None:
            super().__init__(num_envs)
            self.obs_dim += num_envs == 3

    with pytest.raises(UsageError, match=r"training have observations of 3 .* those of the evaluation have 4 and 1"):
        trained(stepper=maker(Wider))
    state = fakes.FakeState()
    state.actor = types.SimpleNamespace(obs_dim=3, action_dim=2)
    with pytest.raises(UsageError, match=r"training have .* actions of 1, and the actor is for 3 and 2"):
        train(fakes.FakeEngine(), state, fakes.config(), stepper=maker(Worlds))


def test_a_vector_stepper_may_be_made() -> None:
    def make_stepper(config: Any, purpose: str) -> VectorStepper:
        return VectorStepper(diffac.make_envs("fakes:Random-v0", 4 if purpose == "training" else 3))

    assert trained(stepper=make_stepper) == trained()


@pytest.mark.parametrize(("data", "said"), [(object(), "is a object, which is not data"), ([[[]]] * 2, None)])
def test_what_a_stepper_saves_must_be_data(data: Any, said: str | None) -> None:
    class Odd(SavableWorlds):
        def save(self) -> Any:
            return {"worlds": data}

        def restore(self, saved: Any) -> np.ndarray:
            assert saved == {"worlds": data}
            return np.ones((2, 3))

    own = OwnStepper(Odd(2), 2)
    own.reset([0, 1])
    saved = own.save()
    problem = OwnStepper(Odd(2), 2).restore(saved, [0, 1])
    assert (problem is None) == (said is None)
    assert said is None or f"Odd.save()['worlds'] {said}" == problem
    for wrong in ({**saved, "restart": None, "envs": [{}, {}]}, {**saved, "restart": None, "envs": []}):
        assert OwnStepper(Odd(2), 2).restore(wrong, [0, 1]) == "the checkpoint holds no state of Odd"


# recipes


@pytest.fixture
def in_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    entries = [importlib.metadata.EntryPoint("fake", "fake_recipe", diffac.runs.recipes.GROUP)]
    monkeypatch.setattr(diffac.runs.recipes, "entry_points", lambda *, group: entries)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def summary(result: Any) -> Any:
    return [(e.env_step, e.returns.tolist()) for e in result.evaluations]


@pytest.mark.parametrize("kind", [Worlds, SavableWorlds])
def test_a_recipe_chooses_stepper_replay_and_callback(
    kind: type, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a run and in its resumption, which with environments that can be saved equals a run without a stop."""
    buffers: list[Newest] = []

    def make_replay(config: Any, *sizes: int, **options: Any) -> Newest:
        assert config.gain == 1.0
        buffers.append(Newest(*sizes, **options))
        return buffers[-1]

    def results(root: str, last: int | None) -> Any:
        callbacks: list[Watching] = []

        def make_callback(config: Any) -> Watching:
            callbacks.append(Watching(None if callbacks else last))
            return callbacks[-1]

        module = recipe(make_stepper=maker(kind), make_replay=make_replay, make_callback=make_callback)
        config = fake_recipe.Config(run_root=str(in_folder / root), eval_interval=40, progress=False)
        result = run(module, config, "fake")
        if last is not None:
            (folder,) = (path.parent for path in (in_folder / root).rglob("config.yaml"))
            result = resume(folder, lambda name: module)
        assert [callback.ends for callback in callbacks] == [1] * (1 if last is None else 2)
        assert sum(callback.steps for callback in callbacks) * config.num_envs == config.total_timesteps
        return summary(result)

    whole = results("whole", None)
    capsys.readouterr()
    stopped = results("stopped", 30)
    said = "begin new episodes, because they could not be saved: Worlds has no save and restore"
    text = " ".join("".join(capsys.readouterr()).split())
    assert (said in text) == (kind is Worlds)
    if kind is SavableWorlds:
        assert stopped == whole
    assert [step for step, _ in stopped] == [40, 80]
    assert len(buffers) == 3
    assert all(buffer.added == 80 for buffer in (buffers[0], buffers[2]))


def test_an_agent_trains_with_what_its_recipe_chooses(in_folder: Path) -> None:
    made: list[Any] = []
    own, users = Watching(), Watching(40)
    module = recipe(
        make_stepper=maker(Worlds, made), make_replay=lambda config, *a, **k: Newest(*a, **k),
        make_callback=lambda config: own,
    )  # fmt: skip
    agent = Agent.from_recipe(module, "fakes:Random-v0")
    agent.learn(callback=users)
    assert agent.num_timesteps == 40
    agent.learn()
    assert agent.num_timesteps == 80
    assert (own.steps, users.steps) == (16, 8)
    assert isinstance(agent._training and agent._training.buffer, Newest)
    agent.close()
    assert all(worlds.closed for worlds in made)


def test_wrong_choices_are_refused(in_folder: Path) -> None:
    config = fake_recipe.Config(run_root=str(in_folder), progress=False)
    with pytest.raises(UsageError, match=r"callback must be a diffac\.Callback"):
        run(recipe(make_callback=lambda config: print), config, "fake")

    for name, wrong in [("make_stepper", 3), ("make_replay", "no function"), ("make_callback", [])]:
        with pytest.raises(UsageError, match=f"{name} of a recipe must be a function, got"):
            run(recipe(**{name: wrong}), config, "fake")

    def broken(*args: Any, **options: Any) -> Any:
        raise OSError("no licence")

    for name, who in [("make_stepper", "what makes the environments for training"), ("make_callback", "make_callback"),
                      ("make_replay", "what makes the replay memory")]:  # fmt: skip
        with pytest.raises(RunError, match=f"{who} raised OSError: no licence"):
            run(recipe(**{name: broken}), config, "fake")

    class Forgetful:
        def __init__(self, *sizes: int, **options: Any) -> None:
            self.inner = ReplayBuffer(*sizes, **options)
            self.add, self.sample, self.sampled_age = self.inner.add, self.inner.sample, 0.0

        def __len__(self) -> int:
            return len(self.inner)

    with pytest.raises(UsageError, match="checkpoints cannot hold a Forgetful; it must offer what NumberedReplay says"):
        run(recipe(make_replay=lambda config, *a, **k: Forgetful(*a, **k)), config, "fake")
