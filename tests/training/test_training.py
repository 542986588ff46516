"""The loop: what is stored, how often the learner learns, and that watching does not change the run."""

from __future__ import annotations

import dataclasses
from typing import Any

import fakes
import numpy as np
import pytest

from diffac.data.replay import ReplayBuffer
from diffac.errors import RunError, UsageError
from diffac.protocols import Transition
from diffac.training.callbacks import Callback
from diffac.training.config import TrainConfig
from diffac.training.loop import TrainResult, train
from diffac.training.nonfinite import DivergenceError
from diffac.training.state import Training


@dataclasses.dataclass
class Ran:
    """A run and what can be seen of it."""

    result: TrainResult
    buffer: ReplayBuffer
    engine: fakes.FakeEngine
    writer: fakes.ListWriter

    @property
    def contents(self) -> Transition:
        return self.buffer.contents()


def run(losses: dict[int, dict[str, float]] | None = None, **fields: Any) -> Ran:
    buffers: list[ReplayBuffer] = []

    def make(*sizes: int, **given: Any) -> ReplayBuffer:
        buffers.append(ReplayBuffer(*sizes, **given))
        return buffers[0]

    learner, writer = fakes.FakeEngine(losses), fakes.ListWriter()
    result = train(learner, fakes.FakeState(), fakes.config(**fields), writer=writer, replay=make)
    return Ran(result, buffers[0], learner, writer)


def assert_same(a: Ran, b: Ran) -> None:
    for mine, theirs in zip(a.contents, b.contents, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert a.result.state.keys == b.result.state.keys
    for mine, theirs in zip(a.result.state.batches, b.result.state.batches, strict=True):
        for x, y in zip(mine[:5], theirs[:5], strict=True):
            np.testing.assert_array_equal(x, y)


def test_no_transition_crosses_a_reset() -> None:
    stored = run(total_timesteps=400).contents
    assert len(stored.reward) == 400
    np.testing.assert_array_equal(stored.next_obs[:, 0], stored.obs[:, 0])
    np.testing.assert_array_equal(stored.next_obs[:, 1], stored.obs[:, 1] + 1)
    assert 20 < stored.terminated.sum() < 200


def test_truncation_bootstraps_and_termination_does_not() -> None:
    assert not run(env_id="fakes:Truncates-v0").contents.terminated.any()
    terminating = run(env_id="fakes:Terminates-v0").contents
    np.testing.assert_array_equal(terminating.terminated, terminating.next_obs[:, 1] == 5)


def test_rewards_are_stored_and_returned_unscaled() -> None:
    ran = run(env_id="fakes:Terminates-v0")
    np.testing.assert_array_equal(ran.contents.reward, 10 * ran.contents.next_obs[:, 1])
    assert ran.writer.column("rollout/ep_rew_mean")[-1][1] == 150
    assert ran.writer.column("rollout/ep_len_mean")[-1][1] == 5
    assert ran.writer.column("eval/mean_reward")[-1] == (120, 150.0)
    assert ran.writer.column("eval/std_reward")[-1] == (120, 0.0)
    assert ran.writer.column("eval/mean_ep_length")[-1] == (120, 5.0)


def test_actions_and_observations_belong_together() -> None:
    """The environment echoes the action, rescaled from [-1, 1] to [-1, 3]."""
    stored = run().contents
    np.testing.assert_allclose(stored.next_obs[:, 2], 2 * stored.action[:, 0] + 1, atol=1e-6)


@pytest.mark.parametrize("fields", [{"eval_interval": 7}, {"eval_episodes": 8}, {"log_interval": 3}])
def test_watching_does_not_change_training(fields: dict[str, int]) -> None:
    assert_same(run(), run(**fields))


def test_seeds_decide() -> None:
    assert_same(run(), run())
    a, b = run().contents, run(seed=1).contents
    assert (a.obs[:4, 0] != b.obs[:4, 0]).all()
    assert (a.action[:4] != b.action[:4]).all()


def test_asynchronous_environments_give_the_same_run() -> None:
    assert_same(run(), run(asynchronous=True))


def test_environments_start_differently() -> None:
    assert len(set(run().contents.obs[:4, 0])) == 4


@pytest.mark.parametrize("learning_starts", [0, 12, 40, 41])
def test_random_phase(learning_starts: int) -> None:
    ran = run(learning_starts=learning_starts, total_timesteps=400)
    random_steps = -(-learning_starts // 4) * 4
    explored = sum(len(action) for action, on in zip(ran.engine.acted, ran.engine.explored, strict=True) if on)
    assert explored == 400 - random_steps
    actions = ran.contents.action[:random_steps, 0]
    acted = np.concatenate([a for a, on in zip(ran.engine.acted, ran.engine.explored, strict=True) if on])
    np.testing.assert_array_equal(ran.contents.action[random_steps:], acted)
    assert not set(actions) & set(acted[:, 0])


def test_random_actions_are_uniform() -> None:
    actions = run(learning_starts=3999, total_timesteps=4000, eval_interval=4000, buffer_size=4000).contents.action
    assert actions.min() < -0.99
    assert actions.max() > 0.99
    assert abs(actions.mean()) < 0.05
    assert abs(actions.std() - 1 / np.sqrt(3)) < 0.02


@pytest.mark.parametrize(
    ("fields", "updates", "fused"),
    [
        ({}, 40, 2),
        ({"updates_per_env_step": 0.2}, 16, 1),
        ({"updates_per_env_step": 0.05}, 4, 1),
        ({"updates_per_env_step": 3.0}, 240, 12),
        ({"updates_per_env_step": 0.7}, 56, 2),
        ({"updates_per_call": 10}, 40, 10),
        ({"updates_per_call": 7}, 35, 7),
        ({"num_envs": 7}, 39, 3),
        ({"num_envs": 7, "learning_starts": 39}, 39, 3),
        ({"learning_starts": 0}, 56, 2),
    ],
)
def test_number_of_updates(fields: dict[str, Any], updates: int, fused: int) -> None:
    """Rate times steps after learning_starts (or after the first whole batch), in whole calls."""
    ran = run(**fields)
    state = ran.result.state
    assert state.updates == ran.result.evaluations[-1].updates == updates
    assert fakes.config(**fields).total_updates == updates
    assert {batch.obs.shape for batch in state.batches} == {(fused, 8, 3)}
    assert ran.writer.column("train/updates")[-1][1] == updates
    assert len(set(state.keys)) == len(state.keys)


def test_updates_keep_pace() -> None:
    """None before learning_starts; then never more than earned, and at most one step of all environments behind."""
    column = dict(run(total_timesteps=200, log_interval=4).writer.column("train/updates"))
    for step, updates in column.items():
        assert updates <= max(0, (step - 40) / 2)
        assert updates >= (step - 40) / 2 - 2


def test_batches_come_from_the_buffer() -> None:
    ran = run()
    stored = {tuple(row) for row in ran.contents.obs}
    for batch in ran.result.state.batches:
        assert {tuple(row) for row in batch.obs.reshape(-1, 3)} <= stored


def test_evaluations_take_place_when_they_should() -> None:
    evaluations = run(total_timesteps=130, eval_interval=30).result.evaluations
    assert [record.env_step for record in evaluations] == [32, 60, 92, 120, 132]
    assert all(record.returns.shape == record.lengths.shape == (3,) for record in evaluations)
    assert [record.env_step for record in run().result.evaluations] == [60, 120]


def test_seed_decides_the_evaluations_environments() -> None:
    lengths = [run(seed=seed, eval_episodes=10).result.evaluations[0].lengths.tolist() for seed in (0, 0, 1)]
    assert lengths[0] == lengths[1] != lengths[2]


def test_every_evaluation_is_announced_at_once() -> None:
    seen: list[int] = []

    class Count(Callback):
        def on_evaluation(self, training: Training) -> None:
            seen.append(len(training.evaluations))

    train(fakes.FakeEngine(), fakes.FakeState(), fakes.config(), callback=Count())
    assert seen == [1, 2]


def test_logged_names_and_steps() -> None:
    writer = run().writer
    assert [step for step, _ in writer.column("time/fps")] == list(range(20, 121, 20))
    assert [step for step, _ in writer.column("train/weight")] == [60, 80, 100, 120]
    assert writer.column("train/actor_loss") == []  # NaN throughout: it did not run
    last = dict(writer.lines[-2][1])
    assert last["time/total_timesteps"] == 120
    assert 0 < last["time/update_fraction"] < 1
    assert 0 < last["time/env_fraction"] < 1
    assert last["time/act_fraction"] + last["time/env_fraction"] + last["time/update_fraction"] < 1
    assert {"time/updates_per_second", "time/time_elapsed", "train/critic_loss"} <= last.keys()


def test_metrics_are_means_of_the_interval_without_nan() -> None:
    losses = {2: {"weight": 1.0, "actor_loss": 4.0}, 4: {"weight": 3.0}}
    writer = run(losses, total_timesteps=60, log_interval=12, learning_starts=36).writer
    assert dict(writer.column("train/weight"))[48] == 2.0
    assert dict(writer.column("train/actor_loss"))[48] == 4.0


@pytest.mark.parametrize("losses", [{"critic_loss": np.nan}, {"critic_loss": np.inf}, {"actor_loss": -np.inf}])
def test_divergence_stops_the_run(losses: dict[str, float]) -> None:
    part = next(iter(losses)).removesuffix("_loss")
    expected = rf"training diverged: the {part}'s loss or gradient was NaN or infinite in one of the updates 9 to 10 "
    with pytest.raises(
        DivergenceError, match=expected + r"\(environment step 60\); all 3 arrays .* lower the learning"
    ):
        run({10: losses})


@pytest.mark.parametrize("thing", ["obs", "reward"])
def test_broken_environment_stops_the_run(thing: str) -> None:
    with pytest.raises(RunError, match=r"environment 0 returned a non-finite \w+ at its step 3"):
        run(env_id=f"fakes:Broken{thing}-v0")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_envs": 0}, "num_envs must be at least 1, got 0"),
        ({"total_timesteps": 0}, "total_timesteps must be at least 1, got 0"),
        ({"eval_interval": 0}, "eval_interval must be at least 1, got 0"),
        ({"log_interval": -1}, "log_interval must be at least 1, got -1"),
        ({"eval_episodes": 0}, "eval_episodes must be at least 1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"learning_starts": -1}, "learning_starts must be at least 0"),
        ({"updates_per_env_step": 0.0}, "updates_per_env_step must be greater than 0 and finite, got 0.0"),
        ({"updates_per_env_step": float("nan")}, "updates_per_env_step must be"),
        ({"updates_per_call": 0}, "updates_per_call must be at least 1, or None, got 0"),
        ({"batch_size": 501}, r"batch_size must be at most buffer_size \(500\), got 501"),
        ({"learning_starts": 120}, r"learning_starts must be less than total_timesteps \(120\).*, got 120"),
        ({"batch_size": 200}, r"batch_size must be less than total_timesteps"),
        ({"num_envs": 501}, r"num_envs must be at most buffer_size \(500\)"),
    ],
)
def test_impossible_configurations_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fakes.config(**fields)


def test_default_configuration() -> None:
    """The protocol of the SDAC paper: 1M steps, 5 environments, 30k random steps, 0.2 updates a step."""
    config = TrainConfig()
    assert (config.first_update, config.fused_updates, config.total_updates) == (30_000, 1, 194_000)


class Wild(fakes.FakeEngine):
    """Actions far beyond the box."""

    def act(self, state: Any, obs: np.ndarray, noise: Any, **_: Any) -> np.ndarray:
        return 3 * super().act(state, obs, noise)


@pytest.mark.parametrize("clip_action", [True, False])
def test_clip_action_reaches_the_environment(clip_action: bool) -> None:
    """The environment of the test shows the action that it got, in its own range of [-1, 3]."""
    result = train(Wild(), fakes.FakeState(), fakes.config(clip_action=clip_action))
    batches = result.state.batches
    stored = np.concatenate([batch.action.reshape(-1, 1) for batch in batches])
    got = np.concatenate([batch.next_obs.reshape(-1, batch.next_obs.shape[-1])[:, 2:3] for batch in batches])
    assert np.abs(stored).max() > 1.5
    np.testing.assert_allclose(got, 1 + 2 * (stored.clip(-1, 1) if clip_action else stored), rtol=1e-5)
