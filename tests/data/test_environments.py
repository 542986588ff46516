"""Environments: no step crosses a reset, actions arrive rescaled, and what diffac cannot use is refused in words."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import fakes
import gymnasium as gym
import numpy as np
import pytest

from diffac.data.environments import make_envs
from diffac.data.stepper import VectorStepper
from diffac.data.vectors import close, dims
from diffac.errors import RunError, UsageError

BOTH = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


def roll(env_id: str, steps: int, num_envs: int = 2, asynchronous: bool = False) -> tuple[list, np.ndarray]:
    """Results of constant actions, and the observations after reset."""
    envs = make_envs(env_id, num_envs, asynchronous=asynchronous)
    try:
        stepper = VectorStepper(envs)
        first = stepper.reset(range(num_envs)).copy()
        return [stepper.step(np.full((num_envs, 1), 0.5, np.float32)) for _ in range(steps)], first
    finally:
        close(envs)


@BOTH
def test_no_transition_crosses_a_reset(asynchronous: bool) -> None:
    results, obs = roll("fakes:Random-v0", 60, 3, asynchronous)
    ends = 0
    for result in results:
        transition = result.transition
        np.testing.assert_array_equal(transition.obs, obs)
        # entry 0 marks the episode, entry 1 counts its steps: a transition stays in its episode and goes one step on
        np.testing.assert_array_equal(transition.next_obs[:, 0], transition.obs[:, 0])
        np.testing.assert_array_equal(transition.next_obs[:, 1], transition.obs[:, 1] + 1)
        np.testing.assert_array_equal(transition.reward, 10 * transition.next_obs[:, 1])
        over = transition.terminated | result.truncated
        np.testing.assert_array_equal(result.obs[~over], transition.next_obs[~over])
        assert (result.obs[over, 1] == 0).all()
        assert (result.obs[over, 0] != transition.next_obs[over, 0]).all()
        ends += int(over.sum())
        obs = result.obs.copy()
    assert ends > 20


@BOTH
def test_termination_and_truncation_are_told_apart(asynchronous: bool) -> None:
    terminated = roll("fakes:Terminates-v0", 5, asynchronous=asynchronous)[0]
    truncated = roll("fakes:Truncates-v0", 7, asynchronous=asynchronous)[0]
    assert [bool(r.transition.terminated.all()) for r in terminated] == [False] * 4 + [True]
    assert not any(r.truncated.any() for r in terminated)
    assert not any(r.transition.terminated.any() for r in truncated)
    assert [bool(r.truncated.all()) for r in truncated] == [False] * 6 + [True]
    assert roll("fakes:Both-v0", 3)[0][-1].transition.terminated.all()


@BOTH
def test_episode_statistics(asynchronous: bool) -> None:
    results, _ = roll("fakes:Terminates-v0", 10, asynchronous=asynchronous)
    assert [r.episodes for r in results] == [[], [], [], [], [(0, 150.0, 5), (1, 150.0, 5)]] * 2


def test_actions_are_rescaled_and_dtypes_are_single() -> None:
    envs = make_envs("fakes:Terminates-v0", 3)
    assert dims(envs) == (3, 1)
    stepper = VectorStepper(envs)
    stepper.reset([0, 1, 2])
    result = stepper.step(np.array([[-1.0], [0.0], [1.0]]))
    np.testing.assert_allclose(result.transition.next_obs[:, 2], [-1, 1, 3])
    np.testing.assert_array_equal(result.transition.action[:, 0], [-1, 0, 1])
    assert [a.dtype for a in result.transition[:5]] == [np.float32] * 4 + [bool]
    assert result.obs.dtype == np.float32
    assert result.truncated.dtype == bool


def test_results_are_not_overwritten() -> None:
    """The environment changes one array in place, and the caller reuses the array of its actions."""
    envs = make_envs("fakes:Terminates-v0", 2)
    stepper = VectorStepper(envs)
    stepper.reset([0, 1])
    action = np.zeros((2, 1), np.float32)
    results = []
    for t in range(10):
        action[:] = t / 10
        results.append(stepper.step(action))
    assert [r.transition.next_obs[0, 1] for r in results] == [1, 2, 3, 4, 5] * 2
    np.testing.assert_allclose([r.transition.action[0, 0] for r in results], np.arange(10) / 10, rtol=1e-6)


def test_seeds_decide() -> None:
    envs = make_envs("fakes:Random-v0", 2)
    stepper = VectorStepper(envs)
    first = stepper.reset([3, 4])
    np.testing.assert_array_equal(stepper.reset([3, 4]), first)
    assert (stepper.reset([4, 3]) == first[::-1]).all()
    assert first[0, 0] != first[1, 0]


def test_nested_observations_are_flattened() -> None:
    envs = make_envs("fakes:DictObs-v0", 2)
    assert dims(envs) == (11, 2)
    obs = VectorStepper(envs).reset([0, 1])
    np.testing.assert_allclose(obs, [[0.5] * 6 + [0.25] + [0, 0, 1, 0]] * 2)


@BOTH
def test_asynchronous_environments_step_alike(asynchronous: bool) -> None:
    envs = make_envs("fakes:Random-v0", 2, asynchronous=asynchronous)
    assert isinstance(envs, gym.vector.AsyncVectorEnv) == asynchronous
    close(envs)


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("fakes:Brokenobs-v0", "environment 0 returned a non-finite observation at its step 3"),
        ("fakes:Brokenreward-v0", "environment 0 returned a non-finite reward at its step 3"),
        ("fakes:Brokenreset-v0", "environment 0 returned a non-finite first observation at its step 5"),
    ],
)
def test_broken_environments_are_named(env_id: str, message: str) -> None:
    with pytest.raises(RunError, match=message):
        roll(env_id, 10)


def test_an_action_that_is_not_finite_is_refused() -> None:
    stepper = VectorStepper(make_envs("fakes:Random-v0", 2))
    stepper.reset([0, 1])
    with pytest.raises(RunError, match=r"environment 1 at step 0 .* diverged"):
        stepper.start(np.array([[0.0] * stepper.action_dim, [np.nan] * stepper.action_dim]))


@pytest.mark.parametrize(("clip_action", "got"), [(True, 3.0), (False, 4.0)])
def test_an_action_outside_the_box_is_stored_as_it_is_and_clipped_on_request(clip_action: bool, got: float) -> None:
    stepper = VectorStepper(make_envs("fakes:Random-v0", 2, clip_action=clip_action))
    stepper.reset([0, 1])
    action = np.float32([[1.5], [-0.25]])
    transition = stepper.step(action).transition
    np.testing.assert_array_equal(transition.action, action)
    np.testing.assert_array_equal(transition.next_obs[:, 2], [got, 0.5])  # what the environment got, in its own range


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("CartPole-v1", r"action space Discrete\(2\); diffac needs a Box action space"),
        ("fakes:Matrix-v0", "diffac needs a Box action space with one axis"),
        ("fakes:Whole-v0", "real numbers"),
        ("fakes:Unbounded-v0", "without finite bounds"),
        ("fakes:Sequence-v0", "cannot flatten"),
        ("HalfCheetha-v5", "unknown environment 'HalfCheetha-v5'; did you mean 'HalfCheetah-v5'"),
        ("Pendulum-v9", "did you mean 'Pendulum-v1'"),
        ("no_such_module:A-v0", "cannot be imported.*no_such_module"),
        ("fakes:Missing-v0", re.escape("python -m pip install 'diffac[mujoco]'")),
        ("a b c", "environment 'a b c'"),
    ],
)
@BOTH
def test_unusable_environments_are_refused(env_id: str, message: str, asynchronous: bool) -> None:
    with pytest.raises(UsageError, match=message):
        make_envs(env_id, 2, asynchronous=asynchronous)


def test_no_environments_are_refused() -> None:
    with pytest.raises(UsageError, match="num_envs must be at least 1, got 0"):
        make_envs("fakes:Random-v0", 0)


def test_fakes_are_what_the_tests_assume() -> None:
    """The environment hands out one array, which it changes: a wrapper that kept it would be caught above."""
    env = fakes.Counter()
    assert env.reset()[0] is env.step(np.zeros(1))[0]


def test_a_script_without_a_guard(tmp_path: Path) -> None:
    """Each process would run the script again."""
    script = tmp_path / "script.py"
    script.write_text("import diffac\ndiffac.make_envs('Pendulum-v1', 2, asynchronous=True)\n")
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    sentence = (
        "diffac.errors.UsageError: a process of asynchronous environments ended before its environment was made; each "
        'imports the script that is run, so what the script does must stand under `if __name__ == "__main__":`'
    )
    assert sentence in done.stderr.splitlines()  # Python may add some lines about semaphores
