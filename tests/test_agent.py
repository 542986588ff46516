"""`Agent`: learns in any pieces, acts in the environment's own terms, is saved and loaded by either backend."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_recipe
import fakes
import gymnasium as gym
import numpy as np
import pytest

import diffac.runs.recipes
from diffac.agent import Agent
from diffac.commands.main import main
from diffac.data.spaces import action_scaler, flat_observations
from diffac.errors import RunError, UsageError
from diffac.runs.find import find_checkpoint
from diffac.runs.store import Store
from diffac.testing.conformance import unchecked_shapes
from diffac.training.callbacks import Callback, CallbackError, Callbacks
from diffac.training.evaluation import Evaluation, Evaluator
from diffac.training.loop import train
from diffac.training.state import Training

SMALL: dict[str, Any] = {
    "hidden_sizes": (8,), "total_timesteps": 90, "learning_starts": 30, "batch_size": 8, "num_envs": 2,
    "buffer_size": 60, "eval_interval": 40, "eval_episodes": 1, "log_interval": 20, "updates_per_env_step": 0.5,
}  # fmt: skip
TINY = {"num_diffusion_steps": 2, "num_candidates": 2, "num_particles": 2}


@pytest.fixture(autouse=True)
def third_party(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The recipe `fake` is registered as a third party's; runs go to an empty folder."""
    entries = [importlib.metadata.EntryPoint("fake", "fake_recipe", diffac.runs.recipes.GROUP)]
    monkeypatch.setattr(diffac.runs.recipes, "entry_points", lambda *, group: entries)
    monkeypatch.chdir(tmp_path)


def small(recipe: str, backend: Any, env_id: str = "fakes:Random-v0", **fields: Any) -> Agent:
    sizes = TINY if recipe == "sdac" else {}
    return Agent.from_recipe(recipe, env_id, backend=backend.name, **{**SMALL, **sizes, **fields})


def fake(**fields: Any) -> Agent:
    return Agent.from_recipe("fake", num_envs=4, **fields)


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


# learning


@pytest.mark.parametrize("recipe", ["sac", "sdac"])
def test_pieces_make_the_same_agent(recipe: str, backend: Any, tmp_path: Path) -> None:
    """One call, three calls, and calls with saving and loading between them, against `train`: bit for bit."""
    whole = small(recipe, backend)
    learner, actor, critic = whole._module.build(whole.config, 3, 1)
    expected = backend.to_arrays(train(backend.Engine(learner), learner.init(actor, critic), whole.config).state)
    assert expected["updates"] == 30
    assert whole.learn() is whole
    assert_equal(backend.to_arrays(whole.state), expected)
    pieces = small(recipe, backend)
    for _ in range(3):
        pieces.learn(30)
    assert_equal(backend.to_arrays(pieces.state), expected)
    assert [record.env_step for record in pieces.evaluations] == [40, 80, 90]
    saved = small(recipe, backend)
    for steps in (20, 37, None):
        saved.learn(steps)
        saved.save(tmp_path / "agent")
        saved = Agent.load(tmp_path / "agent")
    assert saved.num_timesteps == 90
    assert_equal(backend.to_arrays(saved.state), expected)
    for mine, theirs in zip(saved.evaluations, whole.evaluations, strict=True):
        np.testing.assert_array_equal(mine.returns, theirs.returns)


def test_how_steps_count() -> None:
    agent = fake()  # 80 steps
    assert agent.num_timesteps == 0
    assert agent.learn(50).num_timesteps == 52  # a multiple of the 4 environments
    assert agent.learn(4).num_timesteps == 56
    assert agent.evaluations == []
    assert agent.learn().num_timesteps == 80
    with pytest.raises(UsageError, match=r"all 80 steps of the configuration are done; say how many more"):
        agent.learn()
    assert agent.learn(30).num_timesteps == 112
    assert [record.env_step for record in agent.evaluations] == [80, 112]
    assert agent.state.updates == 0.2 * (110 - 20)
    assert repr(agent) == "Agent(fake on fakes:Random-v0, backend none, 112 steps)"
    for wrong in (0, -3):
        with pytest.raises(UsageError, match=f"total_timesteps must be at least 1, got {wrong}"):
            agent.learn(wrong)


def test_pieces_beyond_the_end_can_be_saved_too(tmp_path: Path) -> None:
    agents = [fake(), fake()]
    for agent in agents:
        agent.learn()
        agent.learn(40)
    agents[1].save(tmp_path)
    agents[1] = Agent.load(tmp_path)
    states = [agent.learn(40).state for agent in agents]
    assert states[0].keys == states[1].keys
    assert states[0].weight == states[1].weight


def test_metrics_of_all_pieces_go_to_the_writer() -> None:
    agent, writer = fake(log_interval=20), fakes.ListWriter()
    for _ in range(4):
        agent.learn(20, writer=writer)
    assert [step for step, _ in writer.column("time/fps")] == [20, 40, 60, 80]


def test_a_callback_stops_a_call_and_the_next_goes_on() -> None:
    class Stop(Callback):
        def on_step(self, training: Training) -> bool:
            return training.env_step < 48

        def on_end(self, training: Training) -> None:
            ended.append(training.env_step)

    ended: list[int] = []
    whole, agent = fake().learn(), fake().learn(callback=Stop())
    assert ended == [agent.num_timesteps] == [48]
    assert agent.learn().state.keys == whole.state.keys


def test_an_agent_is_saved_in_a_callback(tmp_path: Path) -> None:
    """Between two steps everything is whole."""

    class Save(Callback):
        def on_evaluation(self, training: Training) -> None:
            agent.save(tmp_path / str(training.env_step))

    agent = fake(eval_interval=40)
    agent.learn(callback=Save())
    again = Agent.load(tmp_path / "40")
    assert again.num_timesteps == 40
    assert again.learn().state.keys == agent.state.keys


def test_ctrl_c_leaves_a_whole_agent() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background

    class Interrupt(Callback):
        def on_step(self, training: Training) -> None:
            if training.env_step == 48:
                os.kill(os.getpid(), signal.SIGINT)

    agent = fake()
    with pytest.raises(KeyboardInterrupt):
        agent.learn(callback=Interrupt())
    assert agent.num_timesteps == 48
    assert agent.learn().state.keys == fake().learn().state.keys


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("how", ["raise", "exit", "base", "interrupt"])
def test_an_environment_that_fails(how: str, asynchronous: bool, tmp_path: Path) -> None:
    """Also with what no `except Exception` sees. Afterwards the agent acts, is saved, and learns on."""
    agent = Agent.from_recipe(
        "fake", f"fakes:Failing{how}-v0", total_timesteps=200, num_envs=2, asynchronous=asynchronous
    )
    with pytest.raises(KeyboardInterrupt if how == "interrupt" and not asynchronous else RunError, match="the gears"):
        agent.learn()
    assert agent.num_timesteps == 58  # the 30th step of both did not happen
    keys = agent.state.keys
    assert len(keys) > 0
    assert agent.predict(np.zeros(3))[0].shape == (1,)
    agent.save(tmp_path)
    with pytest.warns(UserWarning, match=r"begin new episodes, .* one of them had failed"):
        loaded = Agent.load(tmp_path).learn(20)
    for learned in (agent.learn(20), loaded):  # in new environments, which fail later
        assert learned.num_timesteps == 78
        assert len(learned._training.buffer) == 78
        assert learned.state.keys[: len(keys)] == keys
        assert len(learned.state.keys) > len(keys)
    agent.close()


def test_an_environment_that_fails_in_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps before it count, and the evaluation is played again, in new environments."""
    agent = Agent.from_recipe("fake", "fakes:Failingraise-v0", eval_interval=40, eval_episodes=70, num_envs=4)
    with pytest.raises(RunError, match="the gears are stuck"):
        agent.learn()
    assert (agent.num_timesteps, agent.evaluations) == (40, [])
    monkeypatch.setattr(fakes.Failing, "step", fakes.Counter.step)
    agent.learn()
    assert [record.env_step for record in agent.evaluations] == [40, 80]
    assert agent.evaluations[0].lengths.tolist() == [5] * 70


class Raises(Callback):
    """Raises an error at a step, at an evaluation and at the end, as it is told."""

    def __init__(self, method: str, error: BaseException) -> None:
        self.method, self.error, self.asked = method, error, []

    def on_step(self, training: Training) -> None:
        self._note("on_step", training)

    def on_evaluation(self, training: Training) -> None:
        self._note("on_evaluation", training)

    def on_end(self, training: Training) -> None:
        self._note("on_end", training)

    def _note(self, method: str, training: Training) -> None:
        self.asked.append((method, training.env_step))
        if method == self.method and training.env_step >= 40:
            raise self.error


@pytest.mark.parametrize("error", [ValueError("no such file"), RunError("disk"), OSError(5, "EIO"), StopIteration()])
@pytest.mark.parametrize("method", ["on_step", "on_evaluation", "on_end"])
def test_an_error_in_a_callback_leaves_a_whole_agent(method: str, error: Exception, tmp_path: Path) -> None:
    """It names class and method, and has its cause; nothing of the step is lost; learning on makes the same agent."""
    whole, agent = fake(eval_interval=40).learn(), fake(eval_interval=40)
    end = 80 if method == "on_end" else 40
    callback = Raises(method, error)
    with pytest.raises(CallbackError, match=rf"callback Raises\.{method} raised {type(error).__name__}: ") as raised:
        agent.learn(callback=callback)
    assert raised.value.__cause__ is error
    assert agent.num_timesteps == end
    assert [record.env_step for record in agent.evaluations] == list(range(40, end + 1, 40))
    assert [moment for moment, _ in callback.asked].count("on_end") == 1
    agent.predict(np.zeros(3))
    agent.save(tmp_path)
    for again in (agent, Agent.load(tmp_path)):
        if again.num_timesteps < 80:
            again.learn()
        assert again.state.keys == whole.state.keys
        assert [record.env_step for record in again.evaluations] == [40, 80]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), fakes.Unheard()])
def test_what_a_callback_raises_to_end_the_program(error: BaseException, tmp_path: Path) -> None:
    """It passes as it is, and the agent is whole too."""
    agent = fake()
    with pytest.raises(type(error)):
        agent.learn(callback=Raises("on_step", error))
    assert agent.num_timesteps == 40
    agent.save(tmp_path)
    assert agent.learn().state.keys == Agent.load(tmp_path).learn().state.keys == fake().learn().state.keys


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (print, "got <built-in function print>, which has no on_step, on_evaluation, on_end; derive a class"),
        (lambda training: True, "got <function <lambda>"),
        (Raises, "got the class Raises; write Raises()"),
        ([Raises("", ValueError())], r"got several; write Callbacks(first, second)"),
        (False, "got False, which has no on_step"),
        (fakes.ListWriter(), "which has no on_step"),
    ],
)
def test_what_is_no_callback_is_refused_before_anything_starts(callback: Any, message: str) -> None:
    agent = fake()
    for start in (lambda: agent.learn(callback=callback), lambda: Callbacks(callback)):
        with pytest.raises(UsageError) as raised:
            start()
        assert message in str(raised.value)
    with pytest.raises(UsageError, match="callback must be"):
        train(fakes.FakeEngine(), fakes.FakeState(), fakes.config(), callback=callback)
    assert agent.num_timesteps == 0
    assert agent._training is None


def test_an_update_that_breaks_off() -> None:
    """The agent goes on where its state is still there, and says that it cannot where it is not."""

    class Breaks(fakes.FakeEngine):
        broken, gone = True, False

        def update(self, state: Any, batches: Any, key: int) -> Any:
            if self.broken:
                raise MemoryError("a part of the user")
            return super().update(state, batches, key)

        def to_arrays(self, state: Any) -> Any:
            if self.gone:
                raise RuntimeError("deleted")
            return super().to_arrays(state)

    agent = fake()
    agent.engine = agent._codec = learner = Breaks()
    with pytest.raises(MemoryError):
        agent.learn()
    learner.broken = False
    agent.learn(20)
    learner.broken = learner.gone = True
    with pytest.raises(MemoryError):
        agent.learn()
    with pytest.raises(RunError, match="closed or broken off"):
        agent.learn()


@pytest.mark.parametrize("error", ["ValueError", "SystemExit", "Unheard"])
def test_an_environment_that_does_not_close(error: str, tmp_path: Path) -> None:
    """Before, during and after a run: the result is there, and a warning names what happened."""
    fakes.Closing.closed.clear()
    warning = rf"'Closing{error}-v0' raised an error in close\(\): {error}: the door is stuck \(fakes\.py, line \d+\)"
    with pytest.warns(UserWarning, match=warning):
        agent = Agent.from_recipe("fake", f"fakes:Closing{error}-v0", num_envs=3)
    agent.learn()
    with pytest.warns(UserWarning, match=warning):
        agent.close()
    assert fakes.Closing.closed == [error] * (1 + 3 + 2)  # its spaces, training, evaluation: every one of them
    agent.save(tmp_path, replay=False)
    with pytest.warns(UserWarning, match=warning):
        result = train(fakes.FakeEngine(), fakes.FakeState(), fakes.config(env_id=f"fakes:Closing{error}-v0"))
    assert result.state.updates > 0


@pytest.mark.parametrize("error", ["ValueError", "SystemExit", "Unheard"])
def test_an_environment_that_cannot_be_made(error: str) -> None:
    with pytest.raises(UsageError) as raised:
        Agent.from_recipe("fake", f"fakes:Unmade{error}-v0")
    text = str(raised.value)
    assert text.startswith(
        f"environment 'fakes:Unmade{error}-v0' cannot be made: {error}: the engine is missing at this "
    )
    assert text.endswith("(fakes.py, line " + text.rpartition(" ")[2])
    assert len(text) < 700
    assert "\n" not in text


def test_a_closed_agent_still_acts() -> None:
    agent = fake(asynchronous=True)
    agent.close()  # nothing to close yet
    agent.learn(8)
    agent.close()
    assert agent.predict(np.zeros(3))[0].shape == (1,)
    with pytest.raises(RunError, match="closed"):
        agent.learn(8)


@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [
        ("fakke", {}, "unknown recipe 'fakke'; did you mean 'fake'?"),
        ("fake", {"gian": 2.0}, "unknown key in recipe fake: 'gian'; did you mean 'gain'?"),
        ("fake", {"gain": "much"}, "recipe fake: gain must be a number, got 'much'"),
        ("fake", {"learning_starts": 90}, r"recipe fake: learning_starts must be less than total_timesteps (80)"),
        ("fake", {"preset": "lout"}, "unknown preset of fake 'lout'; did you mean 'loud'?"),
        ("fake", {"env_id": "fakes:Rondom-v0"}, "unknown environment 'fakes:Rondom-v0'"),
        ("fake", {"env_id": "fakes:Unbounded-v0"}, "without finite bounds"),
        ("fake", {"backend": "tourch", "fail": "backend"}, "unknown backend 'tourch'; did you mean 'torch'?"),
    ],
)
def test_mistakes(recipe: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        Agent.from_recipe(recipe, **arguments)
    assert message in str(raised.value)


def test_presets_and_constants() -> None:
    assert Agent.from_recipe("fake", preset="loud").config.gain == 3.0
    config = Agent.from_recipe("fake", "fakes:Terminates-v0", preset="loud", seed=4).config
    assert (config.env_id, config.gain, config.hidden_sizes, config.seed) == ("fakes:Terminates-v0", 3.0, (5,), 4)
    assert Agent.from_recipe("fake", preset="elsewhere").config.env_id == "fakes:Terminates-v0"


# acting


def test_one_observation_or_many(backend: Any) -> None:
    agent = small("sdac", backend)
    obs = np.random.default_rng(0).normal(size=(5, 3))
    one, state = agent.predict(obs[0])
    assert state is None
    assert one.shape == (1,)
    assert one.dtype == agent.action_space.dtype
    many, _ = agent.predict(obs.astype(np.float32), state=(), episode_start=np.ones(5, bool), deterministic=False)
    assert many.shape == (5, 1)
    assert many.dtype == np.float32
    assert all(action in agent.action_space for action in [one, *many])
    assert agent.predict(obs[:1])[0].shape == (1, 1)


@pytest.mark.parametrize("recipe", ["sac", "sdac"])
def test_same_agent_same_actions(recipe: str, backend: Any, tmp_path: Path) -> None:
    """A new one and a loaded one start their random numbers anew; SAC without exploration needs none."""
    obs = np.random.default_rng(0).normal(size=(4, 3))
    agent = small(recipe, backend)
    first = [agent.predict(obs)[0] for _ in range(2)]
    agent.save(tmp_path)
    for other in (small(recipe, backend), Agent.load(tmp_path)):
        for actions in first:
            np.testing.assert_array_equal(other.predict(obs)[0], actions)
    assert (first[0] == first[1]).all() == (recipe == "sac")
    assert (agent.predict(obs, deterministic=False)[0] != agent.predict(obs)[0]).any()


def test_compiled(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same actions, without Python between the steps of a chain (torch) or another compilation (JAX)."""
    obs = np.random.default_rng(0).normal(size=(3, 3))
    plain, compiled = small("sdac", backend), small("sdac", backend)
    with unchecked_shapes():
        compiled.compile([1, 3])
    if backend.name == "torch":
        monkeypatch.setattr(compiled.engine, "_action", None)
    expected = [plain.predict(rows, deterministic=off)[0] for rows in (obs[0], obs) for off in (True, False)]
    with no_compilation(backend):
        actions = [compiled.predict(rows, deterministic=off)[0] for rows in (obs[0], obs) for off in (True, False)]
    for action, same in zip(actions, expected, strict=True):
        np.testing.assert_allclose(action, same, atol=1e-6)


@contextlib.contextmanager
def no_compilation(backend: Any) -> Iterator[None]:
    """JAX must not compile; it has to be heard compiling afterwards."""
    if backend.name != "equinox":
        yield
        return
    import jax

    events: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: events.append(event) if "compile" in event else None
    )
    try:
        yield
        assert events == []
        jax.jit(lambda x: x + 1)(np.zeros(5))
        assert events, "the listener hears nothing: the check would be empty"
    finally:
        jax.monitoring.clear_event_listeners()


@pytest.mark.parametrize("given", [0, -1, 1.5, "2", [1, 0], [2.0]])
def test_numbers_of_observations_that_cannot_be(given: Any) -> None:
    with pytest.raises(UsageError, match="num_observations must be whole numbers from 1 on, got "):
        fake().compile(given)


SPACES = [
    gym.spaces.Box(-1, 1, (3,)),
    gym.spaces.Box(-1, 1, (3,), np.float64),
    gym.spaces.Box(0, 255, (2, 3), np.uint8),
    gym.spaces.MultiBinary((2, 2)),
    gym.spaces.Dict(a=gym.spaces.Box(-1, 1, (2, 2)), b=gym.spaces.Discrete(4, start=-1)),
    gym.spaces.Dict(b=gym.spaces.Discrete(3), a=gym.spaces.MultiDiscrete([2, 5])),
    gym.spaces.Tuple((gym.spaces.Discrete(3), gym.spaces.Dict(x=gym.spaces.Box(-1, 1, (1,), np.float64)))),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_observations_are_flattened_as_in_training(space: gym.Space) -> None:
    space.seed(0)
    samples = [space.sample() for _ in range(4)]
    expected = np.array([gym.spaces.flatten(space, sample) for sample in samples], np.float32)
    for sample, row in zip(samples, expected, strict=True):
        flat, single = flat_observations(space, sample)
        assert single
        assert flat.dtype == np.float32
        np.testing.assert_array_equal(flat, row[None])
    for count in (4, 1):
        stacked = gym.vector.utils.concatenate(
            space, samples[:count], gym.vector.utils.create_empty_array(space, count)
        )
        flat, single = flat_observations(space, stacked)
        assert not single
        assert flat.dtype == np.float32
        np.testing.assert_array_equal(flat, expected[:count])


@pytest.mark.parametrize(
    ("space", "observation", "given"),
    [
        (SPACES[0], np.zeros(4), "of shape (4,)"),
        (SPACES[0], np.zeros((2, 4)), "of shape (2, 4)"),
        (SPACES[0], np.zeros((2, 2, 3)), "of shape (2, 2, 3)"),
        (SPACES[0], 1.0, "of shape ()"),
        (SPACES[0], {"a": 1}, "of type dict"),
        (SPACES[4], np.zeros(5), "of shape (5,)"),
        (SPACES[4], {"a": np.zeros((2, 2))}, "of type dict"),
        (SPACES[4], {"a": np.zeros((3, 2, 2)), "b": np.zeros(2, int)}, "of type dict"),
        (SPACES[4], {"a": np.zeros((3, 2, 2)), "b": 1}, "of type dict"),
        (SPACES[4], {"a": np.zeros((2, 2)), "b": 7}, "of type dict"),
        (SPACES[6], (1,), "of type tuple"),
    ],
)
def test_other_observations_are_refused(space: gym.Space, observation: Any, given: str) -> None:
    with pytest.raises(UsageError) as raised:
        flat_observations(space, observation)
    assert f"an observation {given} does not fit {space}; give one" in str(raised.value)


def test_actions_are_mapped_as_in_training() -> None:
    """Bit for bit what the environment gets in training."""
    stepper = diffac.VectorStepper(diffac.make_envs("fakes:Random-v0", 1))
    stepper.reset([0])
    actions = np.random.default_rng(0).uniform(-1.1, 1.1, (100, 1)).astype(np.float32)
    mapped = action_scaler(gym.spaces.Box(np.float32([-1]), np.float32([3])))(actions)
    got = [stepper.step(action[None]).transition.next_obs[0, 2] for action in actions]
    np.testing.assert_array_equal(mapped[:, 0], got)


def test_plain_loops(backend: Any) -> None:
    """Gymnasium's own environments, one or a vector of them, with dictionaries as observations."""
    agent = small("sac", backend, "fakes:Named-v0")
    agent.learn(40)
    env = gym.make("fakes:Named-v0")
    obs, _ = env.reset(seed=0)
    for _ in range(20):
        action, _ = agent.predict(obs)
        obs, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            obs, _ = env.reset()
    envs = gym.make_vec("fakes:Named-v0", 3)
    obs, _ = envs.reset(seed=0)
    for _ in range(5):
        action, _ = agent.predict(obs)
        assert action.shape == (3, 1)
        obs, *_ = envs.step(action)


# Stable-Baselines3


@pytest.mark.parametrize("env_id", ["fakes:Named-v0", "Pendulum-v1"])
def test_evaluate_policy_of_stable_baselines3(env_id: str, backend: Any) -> None:
    """The real one: it measures what our own evaluation measures in the same episode."""
    evaluation = pytest.importorskip("stable_baselines3.common.evaluation")
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env")
    agent = small("sac", backend, env_id)
    agent.learn(60)
    for seed in (3, 4):
        with Evaluator(env_id, num_episodes=1, seed=seed) as evaluator:
            ours = evaluator(agent.engine, agent.state)
            env_seed = evaluator.env_seeds[0]
        env = vec_env.DummyVecEnv([lambda: gym.make(env_id)])
        env.seed(env_seed)
        returns, lengths = evaluation.evaluate_policy(agent, env, 1, return_episode_rewards=True, warn=False)
        np.testing.assert_allclose(returns, ours.returns, rtol=1e-5)
        np.testing.assert_array_equal(lengths, ours.lengths)
    many = vec_env.DummyVecEnv([lambda: gym.make(env_id)] * 3)
    mean, std = evaluation.evaluate_policy(agent, many, n_eval_episodes=4, deterministic=False, warn=False)
    assert np.isfinite([mean, std]).all()
    mean, _ = evaluation.evaluate_policy(agent, gym.make(env_id), n_eval_episodes=2, warn=False)
    assert np.isfinite(mean)


# saving and loading


@pytest.mark.parametrize("recipe", ["sac", "sdac"])
@pytest.mark.parametrize(("first", "then"), [("torch", "equinox"), ("equinox", "torch")])
def test_the_other_backend(recipe: str, first: str, then: str, tmp_path: Path, both: SimpleNamespace) -> None:
    """Acts alike, and goes on learning from the same steps, replay memory and optimisers."""
    agent = small(recipe, getattr(both, first)).learn(60)
    agent.save(tmp_path)
    other = Agent.load(tmp_path, backend=then)
    same = Agent.load(tmp_path)
    assert (other.config.backend, same.config.backend) == (then, first)
    obs = np.random.default_rng(0).normal(size=(16, 3))
    for deterministic in (True, False):
        actions = [loaded.predict(obs, deterministic=deterministic)[0] for loaded in (same, other)]
        np.testing.assert_allclose(*actions, rtol=1e-5, atol=1e-6)
    assert_equal(getattr(both, first).to_arrays(agent.state), getattr(both, then).to_arrays(other.state))
    other.learn(20)
    assert other.num_timesteps == 80
    assert getattr(both, then).to_arrays(other.state)["updates"] > 20


def test_no_pickle_and_nothing_else(tmp_path: Path) -> None:
    agent = fake().learn(40)
    agent.save(tmp_path / "a/b")
    agent.learn(20)
    agent.save(tmp_path / "a/b")
    (folder,) = (tmp_path / "a/b").iterdir()
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors", ".npy"}
    np.load(next(folder.glob("*.npy")), allow_pickle=False)
    agent.save(tmp_path / "policy", replay=False)
    (folder,) = (tmp_path / "policy").iterdir()
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "learner.safetensors"}


def test_a_policy_without_its_replay_memory_begins_anew(tmp_path: Path) -> None:
    """From its weights, with the steps of a new run."""
    agent = fake().learn()
    agent.save(tmp_path / "policy", replay=False)
    policy = Agent.load(tmp_path / "policy")
    policy.save(tmp_path / "again")  # there is nothing more to save
    assert find_checkpoint(tmp_path / "again").env_step == find_checkpoint(tmp_path / "policy").env_step == 80
    assert policy.num_timesteps == 0
    assert policy.evaluations == []
    policy.learn(40)
    assert policy.num_timesteps == 40
    assert policy.state.keys[: len(agent.state.keys)] == agent.state.keys
    assert policy.state.updates == agent.state.updates + 3


def test_saving_what_was_only_loaded_keeps_everything(tmp_path: Path) -> None:
    agent = fake().learn(40)
    agent.save(tmp_path / "one")
    Agent.load(tmp_path / "one").save(tmp_path / "two")
    shutil.rmtree(tmp_path / "one")
    assert Agent.load(tmp_path / "two").learn().state.keys == agent.learn().state.keys


def test_a_checkpoint_that_has_gone(tmp_path: Path) -> None:
    fake().learn(40).save(tmp_path / "one")
    agent = Agent.load(tmp_path / "one")
    shutil.rmtree(tmp_path / "one")
    assert agent.predict(np.zeros(3))[0].shape == (1,)
    with pytest.raises(RunError, match="cannot be read any more: No such file or directory"):
        agent.learn()


def test_environments_that_cannot_be_saved(tmp_path: Path) -> None:
    Agent.from_recipe("fake", "fakes:Opaque-v0", num_envs=4).learn(40).save(tmp_path)
    with pytest.warns(UserWarning, match="the environments begin new episodes, because they could not be saved"):
        assert Agent.load(tmp_path).learn(20).num_timesteps == 60


def trained(tmp_path: Path, *argv: str) -> Path:
    assert main(["train", "fake", "--no-progress", *argv]) == 0
    return next(tmp_path.glob("runs/*/fake/*/seed*"))


def test_a_run_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its best policy (of equals the first), or its last checkpoint."""
    scores = iter([3.0, 1.0, 5.0, 5.0, 2.0, 4.0, -1.0, 0.0, 4.5, 3.0, *[0.0] * 9])

    def scored(self: Evaluator, learner: Any, state: Any, *_: Any) -> Evaluation:
        return Evaluation(next(scores) + np.array([-1.0, 1.0]), np.array([3, 4]))

    monkeypatch.setattr(Evaluator, "__call__", scored)
    run = trained(tmp_path, "--num-envs", "4", "--eval-interval", "20", "--total-timesteps", "200")
    data = np.load(run / "evaluations.npz", allow_pickle=False)
    means = data["results"].mean(1)
    assert data["results"].shape == (10, 2)
    assert means.argmax() == 2
    best, last = Agent.load(run), Agent.load(run / "checkpoints")
    assert best.checkpoint is not None
    assert best.checkpoint.env_step == data["timesteps"][means.argmax()]
    assert best.checkpoint.manifest["mean_reward"] == means.max()
    assert best.state.updates == data["updates"][means.argmax()]
    assert last.num_timesteps == 200
    assert last.state.updates == data["updates"][-1]
    assert Agent.load(run / "best").state.keys == best.state.keys
    assert Agent.load(best.checkpoint.folder).state.keys == best.state.keys
    assert last.learn(40).num_timesteps == 240
    shutil.rmtree(run / "best")
    assert Agent.load(run).num_timesteps == 200


def test_the_best_policy_plays_as_it_did(tmp_path: Path, backend: Any) -> None:
    """Evaluated with the seed of the evaluation in which it was the best, it gets the same returns."""
    argv = ["sac", "--backend", backend.name, "--env-id", "fakes:Named-v0", "--no-progress"]
    for name, value in SMALL.items():
        argv += [f"--{name.replace('_', '-')}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    assert main(["train", *argv, "--eval-interval", "10", "--eval-episodes", "4"]) == 0
    run = next(tmp_path.glob("runs/*/sac/*/seed*"))
    data = np.load(run / "evaluations.npz", allow_pickle=False)
    agent = Agent.load(run)
    seed = diffac.training.streams.integer(diffac.training.streams.Streams.from_seed(0).evaluation)
    again = diffac.evaluate(agent.engine, agent.state, "fakes:Named-v0", num_episodes=4, seed=seed)
    np.testing.assert_array_equal(again.returns, data["results"][data["results"].mean(1).argmax()])


def test_damage(tmp_path: Path) -> None:
    run = trained(tmp_path, "--checkpoint-interval", "40")
    newest, before = Store(run / "checkpoints").paths()
    (newest / "learner.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"learner\.safetensors has 0 bytes, not .* is used instead"):
        assert Agent.load(run / "checkpoints").checkpoint.folder == before  # pyright: ignore[reportOptionalMemberAccess]
    with pytest.raises(RunError, match=r"learner\.safetensors has 0 bytes"):
        Agent.load(newest)
    (before / "learner.safetensors").unlink()
    with pytest.raises(RunError, match="is damaged"):
        Agent.load(run / "checkpoints")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Agent.load(run).checkpoint.folder.parent.name == "best"  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (None, "thing is no folder; give that of a run"),
        ([], "thing holds neither a run nor a saved agent nor a checkpoint"),
        (["config.yaml"], "thing has no checkpoint yet; the first is written after eval_interval or"),
    ],
)
def test_nothing_to_load(make: list[str] | None, message: str, tmp_path: Path) -> None:
    if make is not None:
        (tmp_path / "thing").mkdir()
        for name in make:
            (tmp_path / "thing" / name).write_text("")
    with pytest.raises(UsageError) as raised:
        Agent.load(tmp_path / "thing")
    assert message in str(raised.value)


def test_another_environment(tmp_path: Path, backend: Any) -> None:
    small("sac", backend).learn(40).save(tmp_path)
    other = Agent.load(tmp_path, env_id="fakes:Truncates-v0")
    assert other.num_timesteps == 0  # other episodes than those in the replay memory
    assert other.learn(10).num_timesteps == 10
    with pytest.raises(UsageError) as raised:
        Agent.load(tmp_path, env_id="fakes:DictObs-v0")
    text = str(raised.value)
    assert "was trained on fakes:Random-v0 and does not fit fakes:DictObs-v0: these arrays do not fit: " in text
    assert text.count(";") == 0


def test_saving_never_touches_a_run(tmp_path: Path) -> None:
    run = trained(tmp_path)
    before = sorted(run.rglob("*"))
    for folder in (run, run / "best", run / "checkpoints", Store(run / "best").paths()[0]):
        with pytest.raises(UsageError, match="belongs to a run or is a checkpoint; save the agent to a folder of its"):
            fake().save(folder)
    assert sorted(run.rglob("*")) == before
    fake().save(run / "mine")


def test_a_recipe_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module needs no registered name; then loading needs the module, and never takes another one of that name."""
    path = Path(fake_recipe.__file__)
    (tmp_path / "mine.py").write_text(path.read_text().replace("gain: float = 1.0", "gain: float = 7.0"))
    monkeypatch.syspath_prepend(tmp_path)
    mine = __import__("mine")
    agent = Agent.from_recipe(mine, num_envs=4).learn(40)
    assert (agent.recipe, agent.config.gain) == ("mine", 7.0)
    agent.save(tmp_path / "agent")
    with pytest.raises(RunError, match=r"was trained with '.*mine\.py', which has no registered name"):
        Agent.load(tmp_path / "agent")
    assert Agent.load(tmp_path / "agent", recipe=mine).learn().state.keys == agent.learn().state.keys
    sys.modules.pop("mine")
    run = trained(tmp_path)
    about = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(about | {"recipe_file": "/somewhere/fake.py"}))
    for folder in (run, run / "best", run / "checkpoints"):
        with pytest.raises(RunError, match=r"was trained with '/somewhere/fake\.py'"):
            Agent.load(folder)
    assert Agent.load(run, recipe=fake_recipe).recipe == "fake"
