"""Vector environments as diffac wants them: flat observations, actions in [-1, 1], no step across a reset."""

from __future__ import annotations

import contextlib
import difflib
import multiprocessing
import operator
import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.async_vector_env import AsyncState, _async_worker

from diffac.data.code_by_name import check_name, function_of, import_of
from diffac.data.spaces import check_spaces
from diffac.data.wrapper import Adapter, adapt
from diffac.errors import RunError, UsageError, said
from diffac.files.paths import OwnFolder
from diffac.protocols import Transition
from diffac.system.orphans import end_with_parent
from diffac.system.signals import SIGNALS, children_undisturbed
from diffac.system.terminal import make_tolerant
from diffac.values import natural


class Episode(NamedTuple):
    """An episode that has ended."""

    env: int
    """Index of its environment."""
    ret: float
    """Its return: the undiscounted sum of the rewards as the environment gave them."""
    length: int
    """Its number of steps."""


class StepResult(NamedTuple):
    """One step of all environments."""

    transition: Transition
    """Leading axis num_envs. Where an episode ended, `next_obs` is its last observation, not the next one's first."""
    truncated: np.ndarray
    """[num_envs] of bool: the episode was cut off, by a time limit say. Its last state still has a future."""
    obs: np.ndarray
    """[num_envs obs_dim], what to act on next: where an episode ended, the first observation of the next one."""
    episodes: list[Episode]
    """The episodes that ended in this step."""


class Stepper:
    """Steps vector environments and keeps what belongs to the running episodes.

    A step has two halves, `start` and `finish`; asynchronous environments work between them.

    Args:
        envs: as `make_envs` returns them.
        timeout: seconds that asynchronous environments may take for a step or reset; None: any time. Nothing can stop
            a synchronous one that hangs.
    """

    def __init__(self, envs: VectorEnv, *, timeout: float | None = None) -> None:
        self.envs = envs
        self.timeout = timeout
        self.num_envs = envs.num_envs
        self.action_dim = dims(envs)[1]
        self.obs = np.zeros(0, np.float32)
        self._action = np.zeros(0, np.float32)
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, np.int64)
        self._steps = 0
        self.whole = True
        """Whether the environments are between two steps; False: a step or reset broke off."""

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Starts new episodes with these seeds, one for each environment; the observations [num_envs obs_dim].

        Environments in which something broke off are made anew before.

        Raises:
            RunError: an environment raised an error, did not answer in time or has died.
            UsageError: it cannot be made anew.
        """
        numbers: Any = [int(seed) for seed in seeds]
        if not self.whole:
            close(self.envs)
            own: Any = self.envs
            self.envs = _together(own.env_fns, isinstance(own, AsyncVectorEnv))
        self.whole = False
        with self._answers():
            if isinstance(self.envs, AsyncVectorEnv):
                self.envs.reset_async(seed=numbers)
                obs, _ = self.envs.reset_wait(self.timeout)
            else:
                obs, _ = self.envs.reset(seed=numbers)
        self.obs = np.array(obs, np.float32)
        self._check_finite("observation", self.obs)
        self._returns[:] = 0
        self._lengths[:] = 0
        self._steps = 0
        self.whole = True
        return self.obs

    def start(self, action: np.ndarray) -> None:
        """Begins a step with actions [num_envs action_dim].

        The transition holds them as they are given, whether the environments clip them or not (`make_envs`): a policy
        that does not clip (`AdditiveNoise(clip=False)`, as in the official SDAC code) learns from what it did.

        Raises:
            RunError: an action is not finite.
            UsageError: the array has another shape.
        """
        self._action = np.array(action, np.float32)
        if self._action.shape != (self.num_envs, self.action_dim):
            raise UsageError(
                f"actions must have shape (num_envs, action_dim) = ({self.num_envs}, {self.action_dim}), "
                f"got {self._action.shape}"
            )
        self._check_finite_action()
        self.whole = False
        if isinstance(self.envs, AsyncVectorEnv):
            with self._answers():
                self.envs.step_async(self._action)

    def finish(self) -> StepResult:
        """Ends the step that `start` began.

        Raises:
            RunError: an observation or reward is not finite (says which environment and step), or an environment raised
                an error, did not answer in time or has died.
        """
        with self._answers():
            if isinstance(self.envs, AsyncVectorEnv):
                obs, reward, terminated, truncated, info = self.envs.step_wait(self.timeout)
            else:
                obs, reward, terminated, truncated, info = self.envs.step(self._action)
        before, self.obs = self.obs, np.array(obs, np.float32)
        self._steps += 1
        self._returns += reward
        self._lengths += 1
        first = self._lengths == 1

        next_obs, episodes = self.obs, []
        ended = np.flatnonzero(terminated | truncated)
        if len(ended):
            next_obs = self.obs.copy()
            for i in map(int, ended):
                next_obs[i] = info["final_obs"][i]
                episodes.append(Episode(i, float(self._returns[i]), int(self._lengths[i])))
            self._check_finite("first observation", self.obs)
            self._returns[ended] = 0
            self._lengths[ended] = 0
        transition = Transition(
            obs=before,
            action=self._action,
            reward=np.array(reward, np.float32),
            next_obs=next_obs,
            terminated=np.array(terminated, bool),
            first=first,
        )
        self._check_finite("observation", next_obs)
        self._check_finite("reward", transition.reward)
        self.whole = True
        return StepResult(transition, np.array(truncated, bool), self.obs, episodes)

    def step(self, action: np.ndarray) -> StepResult:
        """`start` and `finish` in one."""
        self.start(action)
        return self.finish()

    def save(self) -> dict[str, Any]:
        """The state between two steps as plain data; entry "restart" says why, where the environments' is not part."""
        envs = [{"problem": "one of them had failed"}]
        if self.whole:
            with self._answers():
                envs = list(self.attribute("checkpoint_state"))
        problem = next((env["problem"] for env in envs if "problem" in env), None)
        return {
            "restart": problem,
            "envs": envs if problem is None else [],
            "obs": self.obs.copy(),
            "returns": self._returns.copy(),
            "lengths": self._lengths.copy(),
            "steps": self._steps,
        }

    def restore(self, saved: Mapping[str, Any], seeds: Sequence[int]) -> str | None:
        """Goes on where `save` was called, or starts new episodes with these seeds where it cannot.

        Returns:
            Why it could not; None: it could.
        """
        self.reset(seeds)  # environments make some of their parts in their first reset
        problem = saved["restart"]
        if problem is None:
            with self._answers():
                self.envs.set_attr("checkpoint_state", list(saved["envs"]))  # pyright: ignore[reportAttributeAccessIssue]
                problem = next(filter(None, self.attribute("restore_problem")), None)
            if problem is not None:
                self.reset(seeds)
        self._steps = saved["steps"]
        if problem is None:
            self.obs = np.array(saved["obs"], np.float32)
            self._returns[:] = saved["returns"]
            self._lengths[:] = saved["lengths"]
        return problem

    @property
    def statistics(self) -> list[str]:
        """Where wrappers of the environments keep running statistics: "NormalizeObservation.obs_rms"..."""
        with self._answers():
            return self.attribute("statistics")[0]

    def attribute(self, name: str) -> tuple[Any, ...]:
        """An attribute of each environment."""
        return self.envs.get_attr(name)  # pyright: ignore[reportAttributeAccessIssue]

    @contextlib.contextmanager
    def _answers(self) -> Iterator[None]:
        """Turns whatever goes wrong in an environment into a RunError of one sentence."""
        when = f"at its step {self._steps + 1} (counted over all episodes)"
        try:
            yield
        except UsageError:
            raise
        except RunError as error:
            raise RunError(f"{error}, {when}") from error.__cause__
        except multiprocessing.TimeoutError as error:
            raise RunError(
                f"an environment did not answer within {self.timeout:g} s {when}; it hangs, or "
                f"step_timeout is too short"
            ) from error
        except (EOFError, ConnectionError) as error:
            raise RunError(f"{self._dead_process()} {when}; was it killed, for want of memory say?") from error
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise RunError(f"an environment raised {type(error).__name__} {when}: {said(error)}") from error

    def close(self) -> None:
        """Closes the environments; may be called twice."""
        close(self.envs)

    def _dead_process(self) -> str:
        processes = self.envs.processes if isinstance(self.envs, AsyncVectorEnv) else []
        for i, process in enumerate(processes):
            process.join(1)
            if process.exitcode is not None:
                return f"the process of environment {i} has died (exit code {process.exitcode})"
        return "the process of an environment has died"

    def _check_finite(self, what: str, values: np.ndarray) -> None:
        if np.isfinite(values).all():
            return
        bad = ~np.isfinite(values).reshape(self.num_envs, -1).all(axis=1)
        env = int(np.flatnonzero(bad)[0])
        raise RunError(
            f"environment {env} returned a non-finite {what} at its step {self._steps} (counted over all episodes): "
            f"{values[env]}; the environment is broken, or the actions drove its simulation out of range"
        )

    def _check_finite_action(self) -> None:
        finite = np.isfinite(self._action).all(axis=1)
        if not finite.all():
            env = int(np.flatnonzero(~finite)[0])
            raise RunError(
                f"the action for environment {env} at step {self._steps} is {self._action[env]}: the policy has "
                f"diverged; lower the learning rate or the reward scale"
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
        env = _make_env(self.env_id, self.env_kwargs)
        try:
            for name in self.wrappers:
                env = _wrap(env, name)
            check_spaces(self.env_id, env.observation_space, env.action_space)
        except UsageError:
            _close(env)
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


def _make_env(env_id: str, env_kwargs: Mapping[str, Any]) -> gym.Env:
    """One environment as it is."""
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


class _InTurn(SyncVectorEnv):
    """Synchronous environments. A folder that they change to is the current one while they work, and no longer."""

    def __init__(self, makers: Sequence[Callable[[], gym.Env]], **options: Any) -> None:
        self._own_folder = OwnFolder()
        with self._own_folder.entered():
            super().__init__(makers, **options)

    def reset(self, **options: Any) -> Any:
        with self._own_folder.entered():
            return super().reset(**options)

    def step(self, actions: Any) -> Any:
        with self._own_folder.entered():
            return super().step(actions)

    def render(self) -> Any:
        with self._own_folder.entered():
            return super().render()

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        with self._own_folder.entered():
            return super().call(name, *args, **kwargs)

    def set_attr(self, name: str, values: Any) -> None:
        with self._own_folder.entered():
            super().set_attr(name, values)

    def close_all(self) -> None:
        """Closes each, whatever another one raises."""
        with self._own_folder.entered():
            for env in self.envs:
                _close(env)


class _Processes(AsyncVectorEnv):
    """Asynchronous environments. The error of one arrives as it was raised, and is not printed with its traceback."""

    def __init__(self, makers: Sequence[Callable[[], gym.Env]], **options: Any) -> None:
        self.processes, self.parent_pipes = [], []
        try:
            super().__init__(makers, worker=_work, **options)
        except BaseException as error:
            if self.processes:
                close(self)
            bootstrapping = isinstance(error, RuntimeError) and "bootstrapping" in str(error)
            if not (bootstrapping or isinstance(error, EOFError | ConnectionError)):
                raise
            raise UsageError(
                "a process of asynchronous environments ended before its environment was made; each imports the "
                'script that is run, so what the script does must stand under `if __name__ == "__main__":`'
            ) from error

    def _raise_if_errors(self, successes: Iterable[bool]) -> None:
        failed = [self.error_queue.get() for good in successes if not good]
        if failed:
            self._state = AsyncState.DEFAULT
            _, kind, error, _ = min(failed, key=operator.itemgetter(0))
            error = error if isinstance(error, BaseException) else kind(error)
            if isinstance(error, Exception):
                raise error
            raise RunError(f"an environment raised {type(error).__name__}: {said(error)}")  # Ctrl-C does not reach it


def _work(index: int, make: Callable[[], gym.Env], pipe: Any, *rest: Any) -> None:
    """The program of an environment's process. That an environment cannot be made is told like its other errors."""
    end_with_parent()
    try:
        env = make()
    except Exception as error:
        text = str(error) if isinstance(error, UsageError | RunError) else f"{type(error).__name__}: {said(error)}"
        if isinstance(error.__cause__, gym.error.UnregisteredEnv):
            text = (
                f"{text}; it is known to the program, but not to the processes of asynchronous environments: register "
                f"it in a module and name it 'module:id', or at least outside of `if __name__ == \"__main__\":`"
            )
        _, _, errors, *_ = rest
        errors.put((index, UsageError, UsageError(text), ""))
        pipe.send((None, False))
    else:
        _async_worker(index, lambda: env, pipe, *rest)


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
    `Stepper` keeps the two observations apart.

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
        return _together([lambda: wrap(make())] * int(num_envs), asynchronous)
    except RunError:
        raise
    except RuntimeError as error:
        if "space" not in str(error):
            raise
        raise UsageError(
            f"environments made as {env_id!r} differ in the size of their observations or actions; they are stepped "
            f"together, so each must be made alike"
        ) from error


def _together(makers: Sequence[Callable[[], gym.Env]], asynchronous: bool) -> VectorEnv:
    """The environments that makers make, as one."""
    if not asynchronous:
        return _InTurn(makers, autoreset_mode=AutoresetMode.SAME_STEP)
    context = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    with children_undisturbed():
        return _Processes(makers, autoreset_mode=AutoresetMode.SAME_STEP, context=context)


def own_spaces(
    env_id: str, *, env_kwargs: Mapping[str, Any] | None = None, wrappers: Sequence[str] = ()
) -> tuple[gym.Space, gym.spaces.Box, list[str]]:
    """Observation and action space of an environment under its wrappers, before `make_envs` flattens and rescales.

    Also where the wrappers keep running statistics, as `Stepper.statistics`.

    Raises:
        UsageError: as `make_envs`.
    """
    with OwnFolder().entered():
        env = _Maker(env_id, env_kwargs, wrappers)()
        try:
            own: Any = env.env
            return own.observation_space, own.action_space, env.statistics
        finally:
            _close(env)


def of_statistics(env_id: str, found: Sequence[str]) -> str:
    """The warning where wrappers of an environment keep running statistics."""
    return (
        f"environment {env_id!r} keeps running statistics ({', '.join(found)}): each its own, so evaluations, videos "
        f"and loaded policies begin with other statistics than those of training"
    )


def dims(envs: VectorEnv) -> tuple[int, int]:
    """(obs_dim, action_dim) of environments made by `make_envs`."""
    obs, action = envs.single_observation_space, envs.single_action_space
    assert obs.shape is not None
    assert action.shape is not None
    return obs.shape[0], action.shape[0]


def close(envs: VectorEnv) -> None:
    """Closes environments, also when a step is under way, hangs, or a process has died; may be called twice.

    What an environment raises there comes as a warning: its work is done.
    """
    if envs.closed:
        return
    envs.closed = True  # gymnasium's own close waits for the step under way
    if isinstance(envs, AsyncVectorEnv):
        started = [process for process in envs.processes if process.pid is not None]
        for process in started:
            process.kill()
        for process in started:
            process.join()
        for pipe in envs.parent_pipes:
            if pipe is not None:
                pipe.close()
        envs.error_queue.close()
    elif isinstance(envs, _InTurn):
        envs.close_all()


def _close(env: gym.Env) -> None:
    """Closes one environment."""
    try:
        env.close()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        name = repr(env.spec.id) if env.spec is not None else type(env.unwrapped).__name__
        text = f"{type(error).__name__}: {said(error)}"
        warnings.warn(f"environment {name} raised an error in close(): {text}", stacklevel=2)
