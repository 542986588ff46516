"""The maze with two routes: its numbers by hand, that the routes are equal, and what closing one does."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from diffac.data.env_states import restore_env, save_env
from diffac.data.environments import make_envs
from diffac.envs.two_routes import TwoRoutes
from diffac.errors import UsageError

ID = "diffac/TwoRoutes-v0"


def around(sign: float, **arguments: Any) -> tuple[list[np.ndarray], list[float], int]:
    """Positions, rewards and final mode of a policy that goes around the block as fast as it can."""
    env = TwoRoutes(start_std=0.0, **arguments)
    obs, _ = env.reset(seed=0)
    places, rewards, mode = [obs], [], -1
    for _ in range(100):
        x, y = places[-1]
        tangent = sign * np.array([y, -x]) if sign > 0 else np.array([-y, x])
        obs, reward, terminated, _, info = env.step(tangent / np.abs(tangent).max())
        places.append(obs)
        rewards.append(reward)
        if terminated:
            mode = info["mode"]
            break
    return places, rewards, mode


@pytest.mark.filterwarnings("error")
def test_gymnasium_finds_nothing_to_complain_about() -> None:
    check_env(gym.make(ID).unwrapped, skip_render_check=True)


@pytest.mark.parametrize(
    ("start", "action", "position", "reward", "terminated"),
    [
        ((-2.5, 0), (0, 0), (-2.5, 0), -math.pi, False),
        ((-2.5, 0), (0, 1), (-2.5, 0.5), math.atan2(0.5, 2.5) - math.pi, False),
        ((-2.5, 0), (-1, 0), (-3, 0), -math.pi, False),
        ((-2.5, 0), (-4, 0), (-3, 0), -math.pi, False),  # clipped
        ((-2.25, 0), (1, 0), (-2, 0), -math.pi, False),  # the block is in the way
        ((0, 2), (0, -1), (0, 2), -math.pi / 2, False),
        ((2.5, 0.75), (0, -0.5), (2.5, 0.5), 10 - math.atan2(0.5, 2.5), True),
    ],
)
def test_a_step_by_hand(start: Any, action: Any, position: Any, reward: float, terminated: bool) -> None:
    env = TwoRoutes(start_std=0.0)
    env.reset(seed=0)
    env.position[:] = start
    obs, got, ended, truncated, _ = env.step(np.array(action, np.float32))
    np.testing.assert_allclose(obs, position, atol=1e-6)
    assert got == pytest.approx(reward)
    assert (ended, truncated) == (terminated, False)


def test_the_routes_are_each_others_mirror_image() -> None:
    above, below = around(1.0), around(-1.0)
    np.testing.assert_array_equal(np.array(above[0]) * [1, -1], below[0])
    assert above[1] == below[1]
    assert (above[2], below[2]) == (0, 1)
    assert len(above[1]) < 30


@pytest.mark.parametrize(("sign", "route"), [(1.0, 0), (-1.0, 1)])
def test_a_closed_route_leads_nowhere(sign: float, route: int) -> None:
    places, rewards, mode = around(sign, blocked=[route])
    assert mode == -1
    assert len(rewards) == 100
    assert max(x for x, _ in places) < 0
    assert around(-sign, blocked=[route])[1:] == around(-sign)[1:]
    assert around(sign, blocked=[1 - route])[1:] == around(sign)[1:]


def test_who_turns_back_takes_the_other_route() -> None:
    """Up to the middle of one route and over it, back again, and then by the other one."""
    env = TwoRoutes(start_std=0.0)
    env.reset(seed=0)
    env.position[:] = (-0.1, 2.5)
    env.step(np.array([1.0, 0.0]))
    assert env.route == 0
    env.step(np.array([-1.0, 0.0]))
    assert env.route == -1
    env.position[:] = (-0.1, -2.5)
    env.step(np.array([1.0, 0.0]))
    assert env.route == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start_std": -0.1}, "start_std must be a finite number, at least 0"),
        ({"blocked": [2]}, "blocked must hold numbers from 0 to 1, got 2"),
        ({"blocked": [0, 1]}, "blocked must leave a route"),
        ({"starts": [[0, 0]]}, "takes no 'starts'"),
    ],
)
def test_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_envs(ID, 1, env_kwargs=arguments)


def test_nothing_of_its_state_is_lost() -> None:
    env, again = gym.make(ID), gym.make(ID)
    env.reset(seed=1)
    again.reset(seed=2)
    rng = np.random.default_rng(0)
    for action in rng.uniform(-1, 1, (90, 2)):
        env.step(action)
    restore_env(again, save_env(env))
    for action in rng.uniform(-1, 1, (10, 2)):
        for mine, theirs in zip(env.step(action), again.step(action), strict=True):
            np.testing.assert_equal(mine, theirs)
    assert (again.reset()[0] == env.reset()[0]).all()
