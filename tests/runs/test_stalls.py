"""Nothing keeps a run waiting: episodes without an end are cut, and an evaluation costs nothing that is not saved."""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
from test_resume import assert_same, fake, play

import diffac.reports.videos
from diffac.agent import Agent
from diffac.commands.main import main
from diffac.errors import UsageError
from diffac.reports.videos import record_video
from diffac.runs.checkpointer import Checkpointer
from diffac.runs.logs import rewind
from diffac.runs.store import Store
from diffac.system.signals import Interrupted
from diffac.training.evaluation import MAX_STEPS, Evaluation, EvaluationRecord, Evaluator, evaluate
from diffac.training.loop import Loop, train
from diffac_recipes import RECIPES


@pytest.fixture(autouse=True)
def third_party(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The recipe `fake` is known; runs go to an empty folder."""
    monkeypatch.setitem(RECIPES, "fake", "fake_recipe")
    monkeypatch.chdir(tmp_path)


# episodes without an end


def play_episodes(env_id: str, **options: Any) -> Evaluation:
    return evaluate(fakes.FakeEngine(), fakes.FakeState(), env_id, seed=0, **options)


def test_episodes_without_an_end_are_cut() -> None:
    """Each environment plays its share, and what it got until the cut counts."""
    result = play_episodes("fakes:Endless-v0", num_episodes=5, num_envs=2, max_steps=7)
    assert result.lengths.tolist() == [7] * 5
    assert result.returns.tolist() == [10.0 * sum(range(1, 8))] * 5
    assert result.cut == 5
    assert result.cut_note is not None
    assert "5 of 5 episodes had no end after 7 steps and were cut there" in result.cut_note


@pytest.mark.parametrize(("max_steps", "lengths", "cut"), [(None, 5, 0), (6, 5, 0), (5, 5, 0), (4, 4, 3)])
def test_episodes_that_end_are_not_cut(max_steps: int | None, lengths: int, cut: int) -> None:
    """Also where both happen in the same step."""
    result = play_episodes("fakes:Terminates-v0", num_episodes=3, max_steps=max_steps)
    assert result.lengths.tolist() == [lengths] * 3
    assert result.cut == cut
    assert (result.cut_note is None) == (cut == 0)


def test_without_a_limit_there_is_one() -> None:
    """The environment's own where it is registered with one, also where that is the longer one."""
    assert play_episodes("fakes:Endless-v0", num_episodes=1).lengths.tolist() == [MAX_STEPS]
    fakes.gym.register("EndlessLimited-v0", lambda: fakes.Counter(10**9), max_episode_steps=MAX_STEPS + 3)
    try:
        result = play_episodes("EndlessLimited-v0", num_episodes=1)
        assert result.lengths.tolist() == [MAX_STEPS + 3]
        assert result.cut == 0  # it ended by itself
        assert play_episodes("EndlessLimited-v0", num_episodes=1, max_steps=9).lengths.tolist() == [9]
    finally:
        del fakes.gym.registry["EndlessLimited-v0"]


@pytest.mark.parametrize("call", [
    lambda: fakes.config(eval_max_steps=0),
    lambda: play_episodes("fakes:Endless-v0", max_steps=0),
])  # fmt: skip
def test_a_limit_that_is_none_is_refused(call: Any) -> None:
    with pytest.raises(UsageError, match=r"max_steps must be at least 1, or None, got"):
        call()


def test_training_says_once_that_evaluations_are_cut() -> None:
    said: list[str] = []
    config = fakes.config(env_id="fakes:Endless-v0", eval_max_steps=11)
    with Loop(*fake(), config, say=said.append) as training:
        training.advance(config.total_timesteps)
    assert [record.lengths.tolist() for record in training.evaluations] == [[11] * 3] * 2
    (text,) = said
    assert "3 of 3 episodes had no end after 11 steps" in text
    assert "eval_max_steps" in text


def test_every_command_cuts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`train`, `evaluate` by the run's limit and by its own, and the video."""
    options = ["train", "fake", "--env-id", "fakes:Endless-v0", "--no-progress", "--eval-max-steps", "9"]
    assert main(options) == 0
    assert "2 of 2 episodes had no end after 9 steps" in capsys.readouterr().err
    (run,) = Path().glob("runs/*/fake/*/seed0*")
    videos: list[int | None] = []

    def record(*_: Any, max_steps: int | None, **__: Any) -> Evaluation:
        videos.append(max_steps)
        return Evaluation(np.array([1.0]), np.array([9]), 1)

    monkeypatch.setattr("diffac.commands.evaluate.record_video", record)
    for more, steps in (([], 9), (["--max-steps", "4", "--video"], 4)):
        assert main(["evaluate", str(run), "--episodes", "3", *more]) == 0
        assert f"3 of 3 episodes had no end after {steps} steps" in capsys.readouterr().err
    assert videos == [4]
    abouts = [json.loads(path.read_text()) for path in sorted((run / "evaluations").glob("*.json"))]
    assert [(about["cut"], about["max_length"]) for about in abouts] == [(3, 9), (3, 4)]
    assert main(["evaluate", str(run), "--max-steps", "0"]) == 2


def test_a_video_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Drawn(fakes.Counter):
        metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
        render_mode = "rgb_array"

        def render(self) -> np.ndarray:  # type: ignore[override]
            return np.zeros((4, 4, 3), np.uint8)

    frames: list[Any] = []
    monkeypatch.setattr(
        diffac.reports.videos, "_write", lambda path, pictures, fps: frames.extend(pictures) or path.touch()
    )
    monkeypatch.setitem(fakes.gym.registry, "Drawn-v0", fakes.gym.envs.registration.EnvSpec(
        "Drawn-v0", lambda **_: Drawn(10**9)
    ))  # fmt: skip
    played = record_video(lambda obs: obs[:, :1] * 0, "Drawn-v0", tmp_path / "a.mp4", episodes=2, max_steps=6)
    assert len(frames) == 12
    assert (played.lengths.tolist(), played.cut) == ([6, 6], 2)


# evaluations and checkpoints


class Stopping(fakes.FakeEngine):
    """Asks for a stop in a step of an evaluation of three environments; the `Stop` of its own run.

    Args:
        updates: of the state that is evaluated.
        step: of the evaluation, counted from 0.
    """

    def __init__(self, updates: int, step: int) -> None:
        super().__init__()
        self.updates, self.left, self.requested = updates, step, False

    def act(self, state: Any, obs: np.ndarray, noise: Any, **_: Any) -> np.ndarray:
        if len(obs) == 3 and state.updates == self.updates:
            self.requested = self.left == 0
            self.left -= 1
        return super().act(state, obs, noise)

    def raise_if_requested(self) -> None:
        if self.requested:
            raise Interrupted(signal.SIGTERM)


@pytest.mark.parametrize("interval", [1000, 60, 20, 120])
@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("number", [0, 1])
def test_an_evaluation_that_a_stop_cut_short_is_played_again(
    number: int, step: int, interval: int, tmp_path: Path
) -> None:
    """Whether a checkpoint was due at its step or not; the first of the two, or that at the end."""
    config = fakes.config(checkpoint_interval=interval)
    whole = play(None, fake, config)
    assert whole is not None
    env_step, updates, *_ = whole.result.evaluations[number]
    learner, writer = Stopping(updates, step), fakes.ListWriter()
    keeper = Checkpointer(tmp_path, learner, interval=interval, info={"run_id": "x"}, stop=learner)
    with pytest.raises(Interrupted):
        train(learner, fakes.FakeState(), config, writer=writer, checkpointer=keeper)
    found, _ = Store(tmp_path / "checkpoints").newest()
    assert found is not None
    assert found.env_step == env_step
    assert found.host()["evaluation_due"]
    assert not list((tmp_path / "checkpoints").glob("*-2"))
    (tmp_path / "lines.json").write_text(json.dumps(writer.lines))
    assert_same(play(tmp_path, fake, config), whole)
    found, _ = Store(tmp_path / "checkpoints").newest()
    assert found is not None
    assert not found.host()["evaluation_due"]


def test_what_is_due_is_saved_before_the_evaluation(tmp_path: Path) -> None:
    """Killed in an evaluation, the run has lost nothing."""

    class Stuck(fakes.FakeEngine):
        def act(self, state: Any, obs: np.ndarray, noise: Any, **_: Any) -> np.ndarray:
            if len(obs) == 3:
                raise MemoryError
            return super().act(state, obs, noise)

    for step, config in ((60, fakes.config(checkpoint_interval=60)), (120, fakes.config(eval_interval=10**6))):
        folder = tmp_path / str(step)
        whole = play(None, fake, config)
        learner, writer = Stuck(), fakes.ListWriter()
        keeper = Checkpointer(folder, learner, interval=config.checkpoint_interval, info={"run_id": "x"})
        with pytest.raises(MemoryError):
            train(learner, fakes.FakeState(), config, writer=writer, checkpointer=keeper)
        assert [path.name for path in Store(folder / "checkpoints").paths()] == [f"step_{step:012d}"]
        (folder / "lines.json").write_text(json.dumps(writer.lines))
        assert_same(play(folder, fake, config), whole)


def test_a_line_of_an_evaluation_that_is_played_again_goes(tmp_path: Path) -> None:
    """A run that was killed after its evaluation goes on from the checkpoint before it."""
    record = EvaluationRecord(20, 5, np.ones(1), np.ones(1))
    lines = [{"step": 20, "a": 1}, {"step": 20, "eval/mean_reward": 2.0}, {"step": 30, "a": 1}]
    for evaluations, kept in (([], 1), ([record], 2)):
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (tmp_path / "metrics.csv").write_text("step,a,eval/mean_reward\n20,1,\n20,,2.0\n30,1,\n")
        rewind(tmp_path, 20, evaluations)
        assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == kept
        assert len((tmp_path / "metrics.csv").read_text().splitlines()) == kept + 1


def test_a_run_that_lacks_its_last_evaluation_is_not_complete(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "__call__", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(["train", "fake", "--no-progress"]) == 130
    assert f"go on from step 80 with: diffac resume {Path('runs').absolute()}" in capsys.readouterr().err
    (run,) = Path().glob("runs/*/fake/*/seed0*")
    assert main(["resume", str(run)]) == 0
    assert "final return" in capsys.readouterr().out
    assert main(["resume", str(run)]) == 0
    assert "the run is complete" in capsys.readouterr().out


@pytest.mark.parametrize("when", [40, 80])
def test_an_agent_plays_the_evaluation_again(when: int, tmp_path: Path) -> None:
    """In the next `learn`, also after it was saved and loaded, also where nothing but that is left to do."""
    expected = Agent.from_recipe("fake", eval_interval=40).learn()
    for folder in (None, tmp_path):
        agent = Agent.from_recipe("fake", eval_interval=40)

        class Stop(fakes.FakeEngine):
            def act(self, state: Any, obs: np.ndarray, noise: Any, **_: Any) -> np.ndarray:
                if len(obs) == 2 and agent.num_timesteps == when and not self.acted:  # noqa: B023
                    self.acted.append(obs)
                    signal.raise_signal(signal.SIGTERM)
                return fakes.FakeEngine.act(learner, state, obs, noise)  # noqa: B023

        learner, agent._training = agent.engine, None
        training = agent._begin()
        training._evaluator = partial(lambda play, other, _, *rest: play(other, *rest), training._evaluator, Stop())  # type: ignore[assignment]
        with pytest.raises(Interrupted):
            agent.learn()
        assert agent.num_timesteps == when
        assert len(agent.evaluations) == when // 40 - 1
        if folder is not None:
            agent.save(folder)
            agent = Agent.load(folder)
        agent.learn()
        assert len(agent.evaluations) == 2
        for mine, theirs in zip(agent.evaluations, expected.evaluations, strict=True):
            np.testing.assert_array_equal(mine.returns, theirs.returns)
        with pytest.raises(UsageError, match="all 80 steps of the configuration are done"):
            agent.learn()
