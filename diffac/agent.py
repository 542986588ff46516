"""`Agent`: a recipe's policy that can be trained, asked for actions, saved and loaded, in a line each."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from numbers import Integral
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np

from diffac.backend import codec_of
from diffac.data.code_by_name import came_from, origins, typed
from diffac.data.environments import of_statistics, own_spaces
from diffac.data.replay import NumberedReplay
from diffac.data.spaces import action_scaler, flat_observations
from diffac.errors import DamagedError, RunError, UsageError
from diffac.files.paths import absolute
from diffac.logging import Writer
from diffac.messages import quoted
from diffac.noise import draw
from diffac.runs.checkpoints import Checkpoint
from diffac.runs.configs import RECIPE, make_config
from diffac.runs.engine import chosen, configure_for, own_callbacks, start_engine
from diffac.runs.find import find_checkpoint, refuse_run, trained_by, warn
from diffac.runs.manifest import manifest
from diffac.runs.recipes import load_recipe, module_of, name_of, preset_values, recipe_modules
from diffac.runs.store import Store
from diffac.system.compiling import compiling
from diffac.system.signals import StopRequest
from diffac.training.callbacks import Callback, Callbacks, check_callback
from diffac.training.config import TrainConfig
from diffac.training.evaluation import EvaluationRecord, records
from diffac.training.in_memory import Kept, keep, keep_counters
from diffac.training.loop import Loop
from diffac.training.nonfinite import DivergenceError, nonfinite_arrays
from diffac.training.snapshot import check_host
from diffac.training.streams import Streams
from diffac.values import plain, vars_of


class Agent:
    """A recipe on an environment: `from_recipe` or `load` makes one.

    Args:
        module: the recipe, with `Config` and `build`.
        recipe: what it is called.
        config: its configuration.
        checkpoint: what the agent goes on from; None: it begins.
        configure: sets this process up to compute fast, and with `config.matmul_precision`
            (`diffac.system.configure`); False: all settings of the process stay as they are.

    Raises:
        UsageError: an environment or backend that is missing, or a checkpoint that does not fit them.
    """

    def __init__(
        self,
        module: ModuleType,
        recipe: str,
        config: TrainConfig,
        checkpoint: Checkpoint | None = None,
        *,
        configure: bool = True,
    ) -> None:
        self.recipe = recipe
        self.config = config
        """All arguments, as the recipe's `Config`."""
        self.observation_space, self.action_space, found = own_spaces(config.env_id, **config.env_arguments)
        """Those of the environment itself."""
        if checkpoint is not None and found:
            warn(of_statistics(config.env_id, found))
        self.checkpoint = checkpoint
        """What the agent was loaded from."""
        self._module, self._configure = module, configure
        if configure:
            configure_for(config)
        elif config.matmul_precision != "float32":
            warn(f"matmul_precision {config.matmul_precision!r} has no effect with configure=False")
        self._action_dim = self.action_space.shape[0]
        self._scale = action_scaler(self.action_space)
        obs_dim = gym.spaces.flatdim(self.observation_space)
        self.engine, self._state = start_engine(module, config, obs_dim, self._action_dim)
        self._codec = codec_of(self.engine, config.backend)
        if checkpoint is not None:
            try:
                self._state = checkpoint.learner_state(self._codec, self._state)
            except DamagedError:
                raise
            except UsageError as error:
                trained_on = checkpoint.config[1].get("env_id")
                raise UsageError(
                    f"{checkpoint.folder} was trained on {trained_on} and does not fit {config.env_id}: "
                    f"{str(error).partition(';')[0]}"
                ) from error
        self._run_id = uuid.uuid4().hex if checkpoint is None else checkpoint.entry("run_id")
        self._training: Loop | None = None
        self._own_callbacks: list[Callback] = []
        self._kept: Kept | None = None
        """Where the training of a copy goes on, until it does."""
        self._closed = False
        self._updating = threading.RLock()
        self._turn, self._doing = threading.Lock(), ""
        # a stream beside those of training
        self._rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(len(Streams._fields),)))

    @classmethod
    def from_recipe(
        cls,
        recipe: str | ModuleType,
        env_id: str | None = None,
        *,
        preset: str = "default",
        configure: bool = True,
        **overrides: Any,
    ) -> Agent:
        """A new agent.

        Args:
            recipe: a name, as `diffac recipes` lists them, or a module of your own with the same contents.
            env_id: gymnasium id, or "module:id"; None: that of the preset, or else of the recipe.
            preset: one of the recipe's, as on the command line.
            configure: whether to set this process up to compute fast, as for `Agent`.
            **overrides: fields of the recipe's `Config`: `backend="torch"`, `seed=3`, `total_timesteps=200_000`...

        Raises:
            UsageError: a name that does not exist (says the nearest), a value of another type, values that do not go
                together, or an environment or backend that is missing.
        """
        module, name = _module(recipe)
        values = preset_values(module, name, preset, env_id) | overrides
        config = make_config(module.Config, values, f"recipe {name}")
        typed(config.names)
        return cls(module, name, config, configure=configure)

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        backend: str | None = None,
        device: str = "auto",
        env_id: str | None = None,
        recipe: ModuleType | None = None,
        configure: bool = True,
    ) -> Agent:
        """An agent from a folder of `save`, of a run, or of a checkpoint.

        Args:
            folder: of a run: its best policy, or the last checkpoint where none was evaluated yet. `RUN/checkpoints`:
                the last one.
            backend: another backend than it was trained with; its arrays fit every one. None: the same.
            device: where it acts and learns from now on, wherever it was trained: "auto", "cpu", "cuda", "cuda:1"...
            env_id: another environment with the same sizes, in which `learn` begins anew; None: the same.
            recipe: the module of a recipe that has no registered name; None: the registered one.
            configure: whether to set this process up to compute fast, as for `Agent`.

        Raises:
            UsageError: there is nothing to load, or it does not fit the environment.
            RunError: what there is is damaged, or was trained by a script, whose module must then be given.
        """
        return cls.from_checkpoint(
            find_checkpoint(folder),
            backend=backend, device=device, env_id=env_id, recipe=recipe, configure=configure,
        )  # fmt: skip

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        *,
        backend: str | None = None,
        device: str = "auto",
        env_id: str | None = None,
        recipe: ModuleType | None = None,
        configure: bool = True,
    ) -> Agent:
        """`load` for a checkpoint that is open already."""
        name, values = checkpoint.config
        if recipe is None and (script := trained_by(checkpoint)):
            raise RunError(
                f"{checkpoint.folder} was trained with {quoted(script)}, which has no registered name; give the module "
                "of that recipe to Agent.load, or run that script yourself, if you trust it, with: evaluate"
            )
        module = load_recipe(name) if recipe is None else recipe
        config = make_config(module.Config, values, str(checkpoint.folder))
        came_from(str(checkpoint.folder), config.names)
        changes = {"backend": backend, "device": device, "env_id": env_id}
        config = dataclasses.replace(config, **{key: value for key, value in changes.items() if value is not None})
        if env_id is not None:
            typed([env_id])
        return cls(module, name, config, checkpoint, configure=configure)

    @property
    def state(self) -> Any:
        """The learner's; must not be used any more when training goes on."""
        return self._state if self._training is None else self._training.state

    @property
    def num_timesteps(self) -> int:
        """Environment steps of the training so far, all environments together."""
        if self._training is not None:
            return self._training.env_step
        if self._kept is not None:
            return self._kept.host["env_step"]
        return self.checkpoint.env_step if self.checkpoint and self._goes_on else 0

    @property
    def evaluations(self) -> list[EvaluationRecord]:
        """Evaluations of the training so far."""
        if self._training is not None:
            return self._training.evaluations
        return records(self._host()) if self._goes_on else []

    def learn(
        self, total_timesteps: int | None = None, callback: Callback | None = None, *, writer: Writer | None = None
    ) -> Agent:
        """Trains; called again, it goes on where it stopped: replay memory, environments and random numbers stay.

        Pieces that add up to `config.total_timesteps` give the agent that one call gives, to the last bit. The recipe's
        schedules (a learning rate that falls, say) run over `config.total_timesteps`, whatever the pieces; beyond it
        they keep their last values.

        Ctrl-C ends it after the step under way, and the agent remains whole.

        Args:
            total_timesteps: environment steps of this call, all environments together, on top of those before; rounded
                up to a multiple of `config.num_envs`. None: what is left of `config.total_timesteps`.
            callback: looks on and can stop this call.
            writer: receives metrics; None: nobody does.

        Returns:
            The agent itself.

        Raises:
            UsageError: nothing is left to do, or the callback is none.
            CallbackError: the callback raised an error.
            DivergenceError: a loss is not finite; the agent can then act, but not learn.
            RunError: an environment broke its contract, or the agent is in use (`save`, say, in another thread).
        """
        with self._alone("learn"):
            return self._learn(total_timesteps, callback, writer)

    def _learn(self, total_timesteps: int | None, callback: Callback | None, writer: Writer | None) -> Agent:
        if callback is not None:
            check_callback(callback)
        if total_timesteps is not None and total_timesteps < 1:
            raise UsageError(f"total_timesteps must be at least 1, got {total_timesteps}")
        end = self.config.total_timesteps if total_timesteps is None else self.num_timesteps + total_timesteps
        if self.num_timesteps >= end and not self._evaluation_is_due:
            raise UsageError(
                f"all {self.config.total_timesteps:,} steps of the configuration are done; say how many more, as in "
                f"learn(10_000)"
            )
        training = self._begin()
        looking_on = [*([] if callback is None else [callback]), *self._own_callbacks]
        with StopRequest() as stop:
            try:
                training.advance(end, writer=writer, callback=Callbacks(*looking_on), stop=stop)
            except BaseException as error:
                if isinstance(error, DivergenceError) or not self._is_readable():
                    self._end()
                raise
        stop.raise_if_requested()
        return self

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[np.ndarray, None]:
        """Actions for one observation or several, called as in Stable-Baselines3.

        A diffusion policy draws its actions, so the same observation can get another one next time, also with
        `deterministic`: that turns off the noise which is only there to explore. Random numbers come from a stream of
        the agent that starts anew with every `from_recipe` and `load`.

        May be called in any thread at any time: while `learn` runs, it acts by the policy between two updates.

        Args:
            observation: of the environment's own observation space; or several, with a leading axis n (where the space
                is a dictionary or tuple, in each of its entries).
            state: not used, as the policy has no memory.
            episode_start: not used.
            deterministic: without exploration noise, and by the learner's sampler of evaluations if it has one.

        Returns:
            Actions [action_dim] or [n action_dim] in the environment's own range and dtype, and None.

        Raises:
            UsageError: the observation does not fit the environment.
            RunError: an update that broke off has consumed the policy.
        """
        rows, single = flat_observations(self.observation_space, observation)
        spec = self.engine.act_noise_spec((len(rows), self._action_dim), deterministic=deterministic)
        with self._updating:
            noise = draw(self._rng, spec)
            try:
                action = self._scale(self.engine.act(self.state, rows, noise, deterministic=deterministic))
            except Exception:
                self._arrays()  # says it better where nothing is left to act by
                raise
        return (action[0] if single else action), None

    def compile(self, num_observations: int | Iterable[int] = 1) -> None:
        """Makes `predict` one call of a compiled program that never waits for a compiler: for control in real time.

        With JAX the policy always is such a program, one for each number of observations; this compiles those, in place
        of the first `predict` with each. With torch, whose policy otherwise computes step by step, it makes one program
        for any number, in 15 to 60 seconds; actions then differ by rounding. An agent that goes on learning acts by it
        too.

        Args:
            num_observations: how many `predict` will get at once, or several such numbers: `range(1, 17)`.

        Raises:
            UsageError: a number is not a whole one from 1 on, or torch cannot compile the policy.
            RunError: `learn` is running and this is none of its callbacks.
        """
        sizes = tuple(num_observations) if isinstance(num_observations, Iterable) else (num_observations,)
        for size in sizes:
            if not isinstance(size, Integral) or size < 1:
                raise UsageError(f"num_observations must be whole numbers from 1 on, got {size!r}")
        obs_dim = gym.spaces.flatdim(self.observation_space)
        with self._alone("compile", in_callback=True), self._updating, compiling("the policy"):
            self.engine.compile_act(self.state, obs_dim, self._action_dim, sizes)

    def save(self, folder: Path | str, *, replay: bool = True) -> None:
        """Writes the agent, in place of one that the folder holds; there is no moment at which it holds none.

        Args:
            folder: need not exist. Holds one checkpoint (docs/use/runs.md), without a pickle.
            replay: with all that training needs to go on: replay memory, environments, random numbers. False: the
                learner alone, which acts, and from whose weights `learn` begins anew.

        Raises:
            UsageError: the folder belongs to a run.
            RunError: it cannot be written, training has broken off and cannot be saved with its replay memory, or
                `learn` is running and this is none of its callbacks.
        """
        with self._alone("save", in_callback=True):
            self._save(folder, replay)

    def _save(self, folder: Path | str, replay: bool) -> None:
        folder = absolute(folder)
        refuse_run(folder)
        training = self._training
        if replay and self._goes_on:
            training = self._begin()
        info = {
            "run_id": self._run_id,
            "config": plain({RECIPE: self.recipe, **vars_of(self.config)}),
            "recipe_file": _file(self._module, self.recipe),
            "versions": manifest()["versions"],
            "env_step": 0,
            "updates": 0,
        }
        if training is not None:
            info |= {"env_step": training.env_step, "updates": training.updates}
        elif self._kept is not None:
            info |= {name: self._kept.host[name] for name in ("env_step", "updates")}
        elif self.checkpoint is not None:
            info |= {name: self.checkpoint.entry(name) for name in ("env_step", "updates")}
        snapshot = training.snapshot() if replay and training is not None else None
        Store(folder, keep=1).write(info, self._arrays(), snapshot)

    def __deepcopy__(self, memo: dict[int, Any]) -> Agent:
        """An agent that acts and learns on like this one, and shares nothing with it.

        Raises:
            RunError: as for `save`.
        """
        with self._alone("copy", in_callback=True):
            state = self._copied()
        agent = memo[id(self)] = type(self).__new__(type(self))
        agent._become(self._module, state)
        return agent

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle holds: plain data, arrays and the name of the recipe's module."""
        with self._alone("pickle", in_callback=True):
            return {"module": name_of(self._module), **self._copied()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._become(module_of(state["module"]), state)

    def _copied(self) -> dict[str, Any]:
        """Copies of all that makes this agent."""
        if self._training is not None and self._closed:
            kept = keep_counters(self._training)
        elif self._kept is not None or not self._goes_on:
            kept = self._kept
        else:
            kept = keep(self._begin())
        return {
            "recipe": self.recipe,
            "config": vars_of(self.config),
            "origins": origins(self.config.names),
            "checkpoint": self.checkpoint,
            "run_id": self._run_id,
            "arrays": dict(self._arrays()),
            "kept": kept,
            "closed": self._closed,
            "configure": self._configure,
            "rng": self._rng.bit_generator.state,
        }

    def _become(self, module: ModuleType, state: dict[str, Any]) -> None:
        """Makes this the agent of `_copied`."""
        for text, file in state["origins"].items():
            came_from(file, [text])
        self.__init__(module, state["recipe"], module.Config(**state["config"]), configure=state["configure"])
        self._state = self._codec.from_arrays(self._state, state["arrays"])
        self.checkpoint, self._run_id = state["checkpoint"], state["run_id"]
        self._kept, self._closed = state["kept"], state["closed"]
        self._rng.bit_generator.state = state["rng"]

    def close(self) -> None:
        """Ends the training, where there is one, and closes its environments; the agent can still act.

        Raises:
            RunError: `learn` is running.
        """
        with self._alone("close"):
            self._end()

    def _end(self) -> None:
        if self._training is not None:
            self._closed = True
            self._training.close()

    @contextlib.contextmanager
    def _alone(self, what: str, *, in_callback: bool = False) -> Iterator[None]:
        """Within, no other thread uses more of the agent than its policy.

        Args:
            what: is done there: a method.
            in_callback: whether a callback or writer of `learn` may do it too.

        Raises:
            RunError: something else is being done, in another thread or around this call.
        """
        training = self._training
        if in_callback and training is not None and training.asking_thread == threading.get_ident():
            training.asking_thread, me = None, training.asking_thread  # not once more within
            try:
                yield
            finally:
                training.asking_thread = me
            return
        if not self._turn.acquire(blocking=False):
            doing = self._doing
            where = " or in a callback" if doing == "learn" and in_callback else ""
            raise RunError(
                f"{what} was called while {doing} of the same agent is running; call it when that has returned{where} "
                "(predict may be called at any time)"
            )
        try:
            self._doing = what
            yield
        finally:
            self._turn.release()

    @property
    def _goes_on(self) -> bool:
        """Whether there is a training to go on with."""
        if self._training is not None or self._kept is not None:
            return True
        if self.checkpoint is None:
            return False
        return "replay" in self.checkpoint.manifest and self.checkpoint.config[1].get("env_id") == self.config.env_id

    @property
    def _evaluation_is_due(self) -> bool:
        """Whether a stop has cut the last evaluation short."""
        if self._training is not None:
            return self._training.evaluation_due
        return self._goes_on and self._host()["evaluation_due"]

    def _begin(self) -> Loop:
        """The training, which starts here, or goes on from the checkpoint."""
        if self._closed:
            raise RunError(
                "the training of this agent has been closed or broken off; load a saved agent, or save this one with "
                "replay=False and load that"
            )
        if self._training is None:
            restore = self._restore if self._goes_on else None
            self._training = Loop(
                self.engine, self._state, self.config,
                restore=restore, say=warn, updating=self._updating, **chosen(self._module, self.config),
            )  # fmt: skip
            self._own_callbacks = own_callbacks(self._module, self.config)
            self._kept = None
        return self._training

    def _arrays(self) -> Mapping[str, np.ndarray]:
        """All arrays of the learner's state.

        Raises:
            RunError: an update that broke off has consumed it.
        """
        try:
            return self._codec.to_arrays(self.state)
        except Exception as error:
            raise RunError(
                "an update that broke off has left nothing to act by or to save; load an agent that was saved before"
            ) from error

    def _is_readable(self) -> bool:
        """Whether the learner's state is still there and finite."""
        try:
            return not nonfinite_arrays(self._arrays())
        except RunError:
            return False

    def _restore(self, state: Any, buffer: NumberedReplay) -> tuple[Any, dict[str, Any]]:
        if self._kept is not None:
            return state, self._kept.restore(buffer)
        assert self.checkpoint is not None
        try:
            self.checkpoint.restore_replay(buffer)
            return state, self._host()
        except OSError as error:
            raise RunError(f"{self.checkpoint.folder} cannot be read any more: {error.strerror or error}") from error

    def _host(self) -> dict[str, Any]:
        """`Snapshot.host` of what the agent goes on from."""
        if self._kept is not None:
            return self._kept.host
        assert self.checkpoint is not None
        host = self.checkpoint.host()
        check_host(
            host,
            f"{self.checkpoint.folder}, run.json",
            num_envs=self.config.num_envs,
            normalise_obs=self.config.normalise_obs,
        )
        return host

    def __repr__(self) -> str:
        config = self.config
        return f"Agent({self.recipe} on {config.env_id}, backend {config.backend}, {self.num_timesteps:,} steps)"


def _module(recipe: str | ModuleType) -> tuple[ModuleType, str]:
    """A recipe's module and name."""
    if isinstance(recipe, str):
        return load_recipe(recipe), recipe
    name = recipe.__name__.rpartition(".")[2]
    return recipe, Path(str(recipe.__file__)).stem if name == "__main__" else name


def _file(module: ModuleType, name: str) -> str | None:
    """Where a recipe is that cannot be found by its name."""
    if recipe_modules().get(name) == module.__name__:
        return None
    return str(getattr(module, "__file__", module.__name__))
