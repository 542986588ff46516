"""An `Agent` in several threads, and what its callbacks and environments may call while it learns."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import fake_recipe
import fakes
import numpy as np
import pytest

from diffac.agent import Agent
from diffac.errors import RunError, UsageError
from diffac.noise import draw
from diffac.parts.export import signature
from diffac.parts.inputs import entry
from diffac.training.callbacks import Callback, CallbackError
from diffac.training.evaluation import evaluate
from diffac.training.state import Training

SMALL: dict[str, Any] = {
    "hidden_sizes": (8,), "total_timesteps": 120, "learning_starts": 20, "batch_size": 4, "num_envs": 2,
    "buffer_size": 200, "eval_interval": 60, "eval_episodes": 1, "log_interval": 40, "updates_per_env_step": 1.0,
}  # fmt: skip
OBS = np.zeros((2, 3))


@pytest.fixture(autouse=True)
def _in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fakes.FakeEngine, "compile_act", lambda self, *_: None, raising=False)


class Calls(fakes.Counter):
    """`Counter` whose steps call something."""

    called: ClassVar[list[Callable[[], Any]]] = []

    def step(self, action: np.ndarray) -> Any:
        for call in self.called:
            call()
        return super().step(action)


fakes.register("Calls", Calls, length=None)


def fake(env_id: str = "fakes:Random-v0", **fields: Any) -> Agent:
    return Agent.from_recipe(fake_recipe, env_id, num_envs=4, **fields)


class Consuming(fakes.FakeEngine):
    """Its updates consume the state they are given, and take their time."""

    def update(self, state: Any, batches: Any, key: int) -> Any:
        weight, state.weight = state.weight, np.nan
        time.sleep(0.002)
        state.weight = weight
        new = super().update(state, batches, key)
        state.weight = np.nan
        return new


def acting_threads(agent: Agent, work: Callable[[], Any], count: int = 2) -> int:
    """Does the work while threads call `predict` without a pause; how often they did."""
    over = threading.Event()

    def act() -> int:
        calls = 0
        while not over.is_set():
            action, _ = agent.predict(OBS)
            assert np.isfinite(action).all()
            calls += 1
            time.sleep(1e-4)
        return calls

    with ThreadPoolExecutor(count) as pool:
        acting = [pool.submit(act) for _ in range(count)]
        try:
            work()
        finally:
            over.set()
        return sum(future.result() for future in acting)


def test_predict_never_sees_a_state_that_an_update_consumes() -> None:
    agent = fake()
    learner: Any = Consuming()
    agent.engine = agent._codec = learner
    assert acting_threads(agent, agent.learn) > 0
    assert agent.state.keys == fake().learn().state.keys


def test_predict_while_learn_runs(backend: Any) -> None:
    """Real programs, one of which donates its buffers: every call acts, and the numbers of training stay the same."""
    agents = [Agent.from_recipe("sac", "fakes:Random-v0", backend=backend.name, **SMALL) for _ in range(2)]
    agents[0].learn(40)
    assert acting_threads(agents[0], agents[0].learn) > 0
    agents[1].learn()
    for name, array in backend.to_arrays(agents[0].state).items():
        np.testing.assert_array_equal(array, backend.to_arrays(agents[1].state)[name], err_msg=name)


def test_the_update_never_overlaps_with_predict_that_began_before_learn() -> None:
    """Also where the first `predict`, which may compile for seconds, began when there was no training yet."""
    agent, began, go_on = fake(), threading.Event(), threading.Event()

    class Slow(Consuming):
        def act(self, state: Any, obs: np.ndarray, noise: Any, **_: Any) -> np.ndarray:
            if threading.current_thread() is not learning:
                began.set()
                go_on.wait(10)
                assert np.isfinite(state.weight)
            return super().act(state, obs, noise)

    learner: Any = Slow()
    agent.engine = agent._codec = learner
    learning = threading.Thread(target=agent.learn)
    with ThreadPoolExecutor(1) as pool:
        acting = pool.submit(agent.predict, OBS)
        assert began.wait(10)
        learning.start()
        time.sleep(0.2)
        assert agent.num_timesteps < 80
        go_on.set()
        assert np.isfinite(acting.result()[0]).all()
    learning.join(10)
    assert agent.num_timesteps == 80


REFUSED = {
    "learn": r"learn was called while learn of the same agent is running; call it when that has returned \(predict",
    "close": r"close was called while learn of the same agent is running; call it when that has returned \(predict",
    "save": "save was called while learn of the same agent is running; .* has returned or in a callback",
    "compile": "compile was called while learn of the same agent is running; .* has returned or in a callback",
}


def calls(agent: Agent) -> dict[str, Callable[[], Any]]:
    return {
        "learn": lambda: agent.learn(4),
        "close": agent.close,
        "save": lambda: agent.save("agent"),
        "compile": agent.compile,
    }


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_while_learn_runs_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another thread, and by an environment in its step. Training goes on as if nothing had happened."""
    agent, refused = fake("fakes:Calls-v0"), []

    def attempt() -> None:
        with pytest.raises(RunError, match=REFUSED[name]) as raised:
            calls(agent)[name]()
        refused.append(raised.value)

    class Meanwhile(Callback):
        def on_step(self, training: Training) -> None:
            thread = threading.Thread(target=attempt)
            thread.start()
            thread.join(10)

    monkeypatch.setattr(Calls, "called", [attempt])
    agent.learn(callback=Meanwhile())
    monkeypatch.setattr(Calls, "called", [])
    assert len(refused) > 80 + 20
    assert agent.num_timesteps == 80
    assert agent.state.keys == fake("fakes:Calls-v0").learn().state.keys
    agent.save("agent")
    calls(agent)[name]()
    agent.close()


def test_environments_may_act_while_learn_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in self-play."""
    agent = fake("fakes:Calls-v0")
    actions: list[np.ndarray] = []
    monkeypatch.setattr(Calls, "called", [lambda: actions.append(agent.predict(OBS)[0])])
    agent.learn()
    assert len(actions) > 80


@pytest.mark.parametrize("name", ["learn", "close"])
def test_what_a_callback_may_not_do(name: str) -> None:
    class Wrong(Callback):
        def on_step(self, training: Training) -> None:
            calls(agent)[name]()

    agent = fake()
    with pytest.raises(CallbackError, match=f"Wrong.on_step raised RunError: {REFUSED[name]}"):
        agent.learn(callback=Wrong())
    assert agent.num_timesteps == 4
    assert agent.learn().state.keys == fake().learn().state.keys


def test_learn_and_close_wait_for_nobody_while_save_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = fake().learn(40)
    writing, go_on = threading.Event(), threading.Event()
    arrays = agent._codec.to_arrays

    def slow(state: Any) -> Any:
        writing.set()
        go_on.wait(10)
        return arrays(state)

    monkeypatch.setattr(agent._codec, "to_arrays", slow)
    with ThreadPoolExecutor(1) as pool:
        saving = pool.submit(agent.save, "agent")
        assert writing.wait(10)
        for name, call in calls(agent).items():
            with pytest.raises(RunError, match=f"{name} was called while save of the same agent is running; call it"):
                call()
        agent.predict(OBS)
        go_on.set()
        saving.result()
    assert Agent.load("agent", recipe=fake_recipe).learn().state.keys == agent.learn().state.keys


def test_after_close() -> None:
    agent = fake().learn(40)
    agent.close()
    agent.close()
    assert agent.predict(OBS)[0].shape == (2, 1)
    agent.save("agent", replay=False)
    for call in (agent.learn, lambda: agent.save("other")):
        with pytest.raises(RunError, match="the training of this agent has been closed or broken off; load"):
            call()


def test_an_update_that_breaks_off_leaves_a_sentence(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it has consumed the state, which only some backends do; otherwise the agent acts."""
    agent = Agent.from_recipe("sac", "fakes:Random-v0", backend=backend.name, **SMALL)
    update = type(agent.engine).update

    def breaks(*args: Any, **kwargs: Any) -> Any:
        update(*args, **kwargs)
        raise MemoryError("after the update")

    monkeypatch.setattr(type(agent.engine), "update", breaks)
    with pytest.raises(MemoryError):
        agent.learn()
    for call in (lambda: agent.predict(OBS), lambda: agent.save("agent", replay=False)):
        if backend.name == "torch":
            call()
        else:
            with pytest.raises(RunError, match="an update that broke off has left nothing to act by or to save"):
                call()
    assert not agent._turn.locked()


@pytest.mark.parametrize("name", ["advance", "close"])
def test_what_a_callback_may_not_do_with_the_training(name: str) -> None:
    class Wrong(Callback):
        def on_step(self, training: Training) -> None:
            training.advance(80) if name == "advance" else training.close()

    agent = fake()
    with pytest.raises(CallbackError, match=f"{name} was called while training advances; a callback ends that"):
        agent.learn(callback=Wrong())
    assert agent.learn().state.keys == fake().learn().state.keys


def test_what_callbacks_and_writers_may_do() -> None:
    class Everything(Callback):
        def on_step(self, training: Training) -> None:
            self.call()

        on_evaluation = on_end = on_step

        def call(self) -> None:
            agent.save("agent")
            agent.compile()
            agent.predict(OBS)
            evaluate(agent.engine, agent.state, "fakes:Random-v0", num_episodes=1, seed=0)
            at.append(agent.num_timesteps)

    class Writes(fakes.ListWriter):
        def write(self, step: int, metrics: Any) -> None:
            Everything().call()

    at: list[int] = []
    agent = fake(eval_interval=40, log_interval=40)
    agent.learn(callback=Everything(), writer=Writes())
    assert len(at) == 80 / 4 + 2 + 1 + 2 * 2
    assert Agent.load("agent", recipe=fake_recipe).state.keys == fake(eval_interval=40).learn().state.keys


def test_an_environment_that_saves_while_it_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a callback saves too: it is one sentence, not a recursion without end."""

    class Saving(fakes.Saving):
        def get_checkpoint_state(self) -> dict[str, Any]:
            with pytest.raises(RunError, match="save was called while learn of the same agent is running"):
                agent.save("agent")
            return super().get_checkpoint_state()

    class Saves(Callback):
        def on_step(self, training: Training) -> None:
            for _ in range(2):
                agent.save("agent")

    fakes.register("SavingWhileSaved", Saving, length=None)
    agent = fake("fakes:SavingWhileSaved-v0")
    agent.learn(callback=Saves())
    assert agent.num_timesteps == 80


def test_a_state_that_was_consumed_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    """JAX takes the memory of the state before an update; whoever uses that state gets a sentence."""
    backend = pytest.importorskip("diffac_equinox")
    export = importlib.import_module("diffac_equinox.engine.export")
    agent = Agent.from_recipe("sac", "fakes:Random-v0", backend="equinox", **SMALL)
    state = agent.state
    never_acted = backend.from_arrays(state, backend.to_arrays(state))
    agent.learn(40)
    assert agent._training is not None
    batches = agent._training.buffer.sample(np.random.default_rng(0), 1, 4)
    batch = entry(batches, 0)
    act_noise = draw(np.random.default_rng(0), agent.engine.act_noise_spec((1, 1)))
    step_noise = agent.engine.draw_noise(0, 0, (4, 1))
    described = signature(agent.engine, 3, np.array([-1.0]), np.array([1.0]))
    agent.engine.update(never_acted, batches, 0)
    for use in (
        lambda: agent.engine.act(never_acted, np.zeros((1, 3), np.float32), act_noise),
        lambda: agent.engine.act(state, np.zeros((1, 3), np.float32), act_noise),
        lambda: agent.engine.update(state, batches, 0),
        lambda: agent.engine.step(state, batch, step_noise),
        lambda: agent.engine.measure(state),
        lambda: agent.engine.compile_act(state, 3, 1, (1,)),
        lambda: evaluate(agent.engine, state, "fakes:Random-v0", num_episodes=1, seed=0),
        lambda: backend.to_arrays(state),
        lambda: export.export_policy(agent.engine.learner, state, described, "jax", ""),
    ):
        with pytest.raises(UsageError, match="this state of the learner is gone: an update has consumed it; take the"):
            use()
    jit = pytest.importorskip("equinox").filter_jit  # within, nothing is known about memory
    jit(lambda now: agent.engine.step(now, batch, step_noise))(agent.state)
    assert "buffer" not in capfd.readouterr().err.lower()
