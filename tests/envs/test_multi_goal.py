"""The multi-goal environment: its numbers by hand, its symmetry, its arguments, and that it is found everywhere."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from diffac.data.env_states import restore_env, save_env
from diffac.data.environments import make_envs
from diffac.data.stepper import VectorStepper
from diffac.data.vectors import close
from diffac.envs.multi_goal import GOALS, MultiGoal
from diffac.errors import UsageError

ID = "diffac/MultiGoal-v0"


def at(x: float, y: float, **arguments: Any) -> MultiGoal:
    """An environment whose point is exactly there."""
    env = MultiGoal(starts=[[x, y]], start_std=0.0, **arguments)
    env.reset(seed=0)
    return env


@pytest.mark.filterwarnings("error")
def test_gymnasium_finds_nothing_to_complain_about() -> None:
    check_env(gym.make(ID).unwrapped, skip_render_check=True)


@pytest.mark.parametrize(
    ("start", "action", "position", "reward", "mode"),
    [
        ((0, 0), (0, 0), (0, 0), -25.0, -1),
        ((0, 0), (1, 0), (1, 0), -30.0 - 16.0, -1),
        ((0, 0), (0.5, 0.5), (0.5, 0.5), -15.0 - 4.5**2 - 0.25, -1),
        ((4, 0), (0.5, 0), (4.5, 0), -7.5 - 0.25 + 10, 0),
        ((0, 5.5), (0, 0), (0, 5.5), -0.25 + 10, 1),
        ((-4, 0), (0, 0), (-4, 0), -1.0, -1),  # exactly at the radius is not below it
        ((-4, 0), (-0.125, 0), (-4.125, 0), -30 / 64 - 0.875**2 + 10, 2),
        ((0, -6.5), (0, -1), (0, -7), -30.0 - 4.0, -1),  # the wall stops the point, but not what the action costs
        ((0, 0), (3, 0), (1, 0), -30.0 - 16.0, -1),  # clipped first
    ],
)
def test_a_step_by_hand(start: Any, action: Any, position: Any, reward: float, mode: int) -> None:
    obs, got, terminated, truncated, info = at(*start).step(np.array(action, np.float32))
    np.testing.assert_array_equal(obs, np.array(position, np.float32))
    assert got == pytest.approx(reward, abs=1e-12)
    assert info == {"mode": mode}
    assert terminated == (mode >= 0)
    assert not truncated


def test_a_quarter_turn_changes_nothing_but_the_goal() -> None:
    """The centre has four equal modes: positions, rewards and ends turn with the start and the actions."""
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    rng = np.random.default_rng(0)
    for _ in range(20):
        start, actions = rng.uniform(-7, 7, 2), rng.uniform(-1, 1, (30, 2))
        one, other = at(*start), at(*(turn @ start))
        for action in actions:
            _, reward, terminated, _, info = one.step(action)
            _, reward_turned, terminated_turned, _, info_turned = other.step(turn @ action)
            np.testing.assert_allclose(turn @ one.position, other.position, atol=1e-12)
            assert reward_turned == pytest.approx(reward, abs=1e-9)
            assert terminated_turned == terminated
            assert info_turned["mode"] == ((info["mode"] + 1) % 4 if terminated else -1)


def test_an_episode_has_a_hundred_steps() -> None:
    env = gym.make(ID)
    env.reset(seed=0)
    ends = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(100)]
    assert ends == [(False, False)] * 99 + [(False, True)]


def test_starts() -> None:
    places = [[3.0, 0.0], [0.0, -2.0], [-7.0, 7.0]]
    env = MultiGoal(starts=places, start_std=0.05)
    found = np.array([env.reset(seed=7 if i == 0 else None)[0] for i in range(600)])
    nearest = np.linalg.norm(found[:, None] - places, axis=-1).argmin(1)
    assert (np.bincount(nearest) > 150).all()
    assert np.abs(found).max() == 7.0
    spread = (found - np.array(places)[nearest])[nearest < 2].std(0)
    np.testing.assert_allclose(spread, 0.05, rtol=0.15)
    default = np.array([MultiGoal().reset(seed=i)[0] for i in range(400)])
    np.testing.assert_allclose(default.std(0), 0.1, rtol=0.1)


def test_a_blocked_goal_is_none() -> None:
    env = at(4.5, 0.0, blocked=[0])
    _, reward, terminated, _, info = env.step(np.zeros(2))
    assert (reward, terminated, info["mode"]) == (-(4.5**2) - 25.0, False, -1)
    env = at(4.5, 0.0, blocked=(0, 1))
    assert env.step(np.zeros(2))[1] == pytest.approx(-(4.5**2) - 25.0)  # the goal below is as near as the one above
    for goal in range(1, 4):
        env = at(*(0.9 * GOALS[goal]), blocked=[0])
        assert env.step(np.zeros(2))[4] == {"mode": goal}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"starts": [0, 0]}, r"starts must be a list of points such as \[\[0, 0\], \[1, 2\]\], got \[0, 0\]"),
        ({"starts": "ring"}, "starts must be a list of points"),
        ({"starts": []}, "starts must be a list of points"),
        ({"starts": [[0, 0], [1]]}, "starts must be a list of points"),
        ({"starts": [[0, 8]]}, r"starts must lie in \[-7, 7\]\^2, got \[\[0, 8\]\]"),
        ({"starts": [[0, float("nan")]]}, "starts must lie in"),
        ({"start_std": -1}, "start_std must be a finite number, at least 0, got -1"),
        ({"start_std": "wide"}, "start_std must be a finite number"),
        ({"blocked": 0}, r"blocked must be a list of numbers of goals such as \[0\], got 0"),
        ({"blocked": [4]}, "blocked must hold numbers from 0 to 3, got 4"),
        ({"blocked": [-1]}, "blocked, the number of a goal must be a whole number, at least 0, got -1"),
        ({"blocked": [0, 1, 2, 3]}, "blocked must leave a goal, got all 4"),
        ({"blocket": [1]}, "takes no 'blocket'"),
    ],
)
def test_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_envs(ID, 1, env_kwargs=arguments)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_goes_on_from_a_saved_state_in_every_bit(asynchronous: bool) -> None:
    """Also in processes of their own, which know the environment; and through the end of an episode."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (260, 2, 2)).astype(np.float32)
    arguments = {"starts": [[0, 0], [2, -1]], "blocked": [1]}
    steppers = [VectorStepper(make_envs(ID, 2, env_kwargs=arguments, asynchronous=asynchronous)) for _ in range(2)]
    try:
        one, other = steppers
        one.reset([1, 2])
        for action in actions[:50]:
            one.step(action)
        saved = one.save()
        other.reset([8, 9])
        assert other.restore(saved, [8, 9]) is None
        for action in actions[50:]:
            a, b = one.step(action), other.step(action)
            for x, y in zip(a.transition, b.transition, strict=True):
                np.testing.assert_array_equal(x, y)
            np.testing.assert_array_equal(a.obs, b.obs)
            assert a.episodes == b.episodes
    finally:
        for stepper in steppers:
            stepper.close()


def test_nothing_of_its_state_is_lost() -> None:
    env, again = gym.make(ID), gym.make(ID)
    env.reset(seed=1)
    again.reset(seed=2)
    env.step(np.full(2, 0.3, np.float32))
    restore_env(again, save_env(env))
    assert (again.unwrapped.position == env.unwrapped.position).all()  # type: ignore[attr-defined]
    assert (again.reset()[0] == env.reset()[0]).all()


def test_known_to_whoever_makes_environments() -> None:
    """To diffac without further ado; to gymnasium with the module in front; and a name that is near is named."""
    code = "import gymnasium; assert gymnasium.make('diffac.envs:diffac/MultiGoal-v0')"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    envs = make_envs(ID, 1)
    assert envs.single_observation_space.shape == (2,)
    close(envs)
    with pytest.raises(UsageError, match=r"did you mean 'diffac/MultiGoal-v0'\?"):
        make_envs("diffac/MultiGaol-v0", 1)
