"""Environments that are stepped together: one after the other in this process, or each in a process of its own."""

from __future__ import annotations

import multiprocessing
import operator
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.async_vector_env import AsyncState, _async_worker

from diffac.data.own_folder import OwnFolder
from diffac.errors import RunError, UsageError, said
from diffac.system.orphans import end_with_parent
from diffac.system.signals import children_undisturbed


def together(makers: Sequence[Callable[[], gym.Env]], asynchronous: bool) -> VectorEnv:
    """The environments that makers make, as one."""
    if not asynchronous:
        return _InTurn(makers, autoreset_mode=AutoresetMode.SAME_STEP)
    context = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    with children_undisturbed():
        return _Processes(makers, autoreset_mode=AutoresetMode.SAME_STEP, context=context)


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
                close_one(env)


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


def close_one(env: gym.Env) -> None:
    """Closes one environment."""
    try:
        env.close()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        name = repr(env.spec.id) if env.spec is not None else type(env.unwrapped).__name__
        text = f"{type(error).__name__}: {said(error)}"
        warnings.warn(f"environment {name} raised an error in close(): {text}", stacklevel=2)
