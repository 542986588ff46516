"""Makes environments as diffac wants them: flat observations, actions in [-1, 1]."""

from __future__ import annotations

import difflib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.vector import VectorEnv

import diffac.envs  # noqa: F401 (registers them, in each process that makes environments)
from diffac.data.code_by_name import check_name, function_of, import_of
from diffac.data.own_folder import OwnFolder
from diffac.data.spaces import check_spaces
from diffac.data.vectors import close_one, together
from diffac.data.wrapper import Adapter, adapt
from diffac.errors import RunError, UsageError, said
from diffac.system.signals import SIGNALS
from diffac.system.terminal import make_tolerant
from diffac.values import natural


def make_envs(
    env_id: str,
    num_envs: int,
    *,
    env_kwargs: Mapping[str, Any] | None = None,
    wrappers: Sequence[str] = (),
    asynchronous: bool = False,
    render_mode: str | None = None,
    wrap: Callable[[gym.Env], gym.Env] = lambda env: env,
    clip_action: bool = True,
) -> VectorEnv:
    """Vector environments for continuous control.

    Actions [num_envs action_dim] in [-1, 1] are mapped linearly to the bounds of the environment. Observations are
    flattened to float32 vectors [num_envs obs_dim]. An environment whose episode ends is reset within the same step;
    `VectorStepper` keeps the two observations apart.

    Args:
        env_id: a gymnasium id, or "module:id" to import the module that registers it first; it may lie in the current
            folder.
        num_envs: how many, at least 1.
        env_kwargs: arguments of the environment and of `gymnasium.make`.
        wrappers: "module:function" of what each environment is wrapped in, the innermost first; takes and returns one.
        asynchronous: a process for each environment. Pays off where a step costs more than about 0.1 ms. The
            processes are started afresh (a fork would break JAX and torch), so a script needs
            `if __name__ == "__main__":`.
        render_mode: of gymnasium; None: nothing is drawn.
        wrap: what each environment is wrapped in, last of all.
        clip_action: whether actions beyond [-1, 1] are clipped; False: they go as far beyond the environment's bounds.

    Raises:
        UsageError: unknown id, missing package, or spaces that diffac cannot use.
    """
    if num_envs < 1:
        raise UsageError(f"num_envs must be at least 1, got {num_envs}")
    make = _Maker(env_id, env_kwargs, wrappers, render_mode, clip_action)
    try:
        return together([lambda: wrap(make())] * int(num_envs), asynchronous)
    except RunError:
        raise
    except RuntimeError as error:
        if "space" not in str(error):
            raise
        raise UsageError(
            f"environments made as {env_id!r} differ in the size of their observations or actions; they are stepped "
            f"together, so each must be made alike"
        ) from error


def own_spaces(
    env_id: str, *, env_kwargs: Mapping[str, Any] | None = None, wrappers: Sequence[str] = ()
) -> tuple[gym.Space, gym.spaces.Box, list[str]]:
    """Observation and action space of an environment under its wrappers, before `make_envs` flattens and rescales.

    Also where the wrappers keep running statistics, as `VectorStepper.statistics`.

    Raises:
        UsageError: as `make_envs`.
    """
    with OwnFolder().entered():
        env = _Maker(env_id, env_kwargs, wrappers)()
        try:
            own: Any = env.env
            return own.observation_space, own.action_space, env.statistics
        finally:
            close_one(env)


def of_statistics(env_id: str, found: Sequence[str]) -> str:
    """The warning where wrappers of an environment keep running statistics."""
    instead = (
        "; normalise_obs (--normalise-obs) instead keeps one for all" if "NormalizeObservation" in str(found) else ""
    )
    return (
        f"environment {env_id!r} keeps running statistics ({', '.join(found)}): each its own, so evaluations, videos "
        f"and loaded policies begin with other statistics than those of training{instead}"
    )


class _Maker:
    """Makes an environment as `Adapter` has it, in this process or in one of its own; arguments as for `make_envs`."""

    def __init__(
        self,
        env_id: str,
        env_kwargs: Mapping[str, Any] | None = None,
        wrappers: Sequence[str] = (),
        render_mode: str | None = None,
        clip_action: bool = True,
    ) -> None:
        self.env_id, self.env_kwargs, self.wrappers = env_id, natural(env_kwargs or {}), tuple(wrappers)
        check_env_arguments(self.env_kwargs, self.wrappers)
        self.process, self.clip_action = os.getpid(), clip_action
        if render_mode is not None:  # not every environment takes the argument
            self.env_kwargs["render_mode"] = render_mode

    def __call__(self) -> Adapter:
        if os.getpid() != self.process:  # Ctrl-C reaches all processes, but it is the run's that saves and stops
            for signum in SIGNALS:
                signal.signal(signum, signal.SIG_IGN)
            make_tolerant()
        env = make_env(self.env_id, self.env_kwargs)
        try:
            for name in self.wrappers:
                env = _wrap(env, name)
            check_spaces(self.env_id, env.observation_space, env.action_space)
        except UsageError:
            close_one(env)
            raise
        return adapt(env, self.env_id, self.clip_action)


def _wrap(env: gym.Env, name: str) -> gym.Env:
    """What the function of this name makes of an environment."""
    wrap = function_of(name)
    try:
        wrapped = wrap(env)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise UsageError(f"wrapper {name!r} raised {type(error).__name__}: {said(error)}") from error
    if not isinstance(wrapped, gym.Env):
        raise UsageError(f"wrapper {name!r} must return an environment of gymnasium, got a {type(wrapped).__name__}")
    return wrapped


def check_env_arguments(env_kwargs: Mapping[str, Any], wrappers: Sequence[str]) -> None:
    """Refuses arguments that cannot be those of an environment.

    Raises:
        UsageError: a name that is no name of an argument or of a wrapper.
    """
    for name in env_kwargs:
        if not str(name).isidentifier() or name == "id":
            raise UsageError(
                f"env_kwargs are arguments of the environment by name, as in healthy_reward=0.5, got {name!r}"
            )
    for name in wrappers:
        check_name(name)


def make_env(env_id: str, env_kwargs: Mapping[str, Any]) -> gym.Env:
    """One environment as it is.

    Raises:
        UsageError: it does not exist, cannot be imported or made, or refuses an argument.
    """
    try:
        import_of(env_id)
        return gym.make(env_id, **{"disable_env_checker": True, **env_kwargs})
    except (UsageError, RunError, KeyboardInterrupt):
        raise
    except gym.error.UnregisteredEnv as error:
        near = difflib.get_close_matches(env_id, list(gym.registry), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(
            f"unknown environment {env_id!r}; {hint}(an environment of another package is named 'module:id', where "
            f"importing the module registers it; gymnasium.pprint_registry() lists what gymnasium knows)"
        ) from error
    except (gym.error.DependencyNotInstalled, ImportError) as error:
        raise UsageError(f"environment {env_id!r} cannot be imported: {error}{_extra(error)}") from error
    except gym.error.Error as error:
        raise UsageError(f"environment {env_id!r} cannot be made: {error}") from error
    except BaseException as error:  # whatever a constructor does, SystemExit too
        name = next((name for name in env_kwargs if f"argument {name!r}" in str(error)), None)
        if isinstance(error, TypeError) and name not in (None, "render_mode"):
            raise UsageError(f"environment {env_id!r} takes no {name!r}, which env_kwargs give it") from error
        if "render_mode" in env_kwargs and isinstance(error, Exception):  # the caller knows what pictures need
            raise
        text = f"{type(error).__name__}: {said(error)}"
        raise UsageError(f"environment {env_id!r} cannot be made: {text}") from error


def _extra(error: Exception) -> str:
    """The command that installs what an environment missed, where diffac knows it."""
    text = str(error).lower()
    if getattr(error, "name", None) == "mujoco" or "mujoco is not installed" in text or "gymnasium[mujoco]" in text:
        return "; run: python -m pip install 'diffac[mujoco]'"
    return ""
