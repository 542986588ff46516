"""The arguments of a run that do not depend on the algorithm, and those that all actor-critic recipes share."""

from __future__ import annotations

import dataclasses
import enum
from typing import Annotated, Any, Literal

import numpy as np

from diffac.backend import Backend, check_backend_name
from diffac.data.environments import check_env_arguments
from diffac.errors import UsageError
from diffac.parts.declaration import Ensemble
from diffac.parts.initialisers import Law
from diffac.parts.networks import Body
from diffac.parts.schedules import LinearSchedule
from diffac.protocols import Activation, Critic, CriticObjective
from diffac.values import check_fields


class Heading(enum.Enum):
    """Under what `--help` shows a field, in this order; first come the algorithm's own, which say nothing of it.

    A field says it in its annotation, as in `Annotated[int, Heading.MACHINE]`, or its class for all others, in HEADING.
    """

    NETWORKS = "networks and optimisation"
    TRAINING = "training"
    EVALUATION = "evaluation and logging"
    MACHINE = "machine"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Arguments of a run that do not depend on the algorithm. A *step* is one step of one environment."""

    HEADING = Heading.TRAINING

    env_id: str = "HalfCheetah-v5"
    """Gymnasium id of the environment, or module:id."""
    env_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of the environment and of gymnasium.make: max_episode_steps=200 healthy_reward=0.5."""
    wrappers: tuple[str, ...] = ()
    """What each environment is wrapped in, the innermost first: module:function, which takes and returns one."""
    backend: Annotated[str, Heading.MACHINE] = "equinox"
    """Framework that runs the networks: equinox or torch (or a third party's)."""
    device: Annotated[str, Heading.MACHINE] = "auto"
    """Where the networks live: cpu, cuda, cuda:1...; auto: the first GPU, or else the CPU."""
    matmul_precision: Annotated[Literal["float32", "tensorfloat32", "bfloat16"], Heading.MACHINE] = "float32"
    """Numbers inside matrix products: less exact is faster where the hardware has it, and other numbers come out."""
    seed: int = 0
    """Seed of everything random."""
    clip_action: bool = True
    """Clip actions to [-1, 1] after exploration noise, before they reach environment, replay and targets."""
    total_timesteps: int = 1_000_000
    """Environment steps, all environments together."""
    num_envs: int = 5
    """Environments stepped together."""
    asynchronous: Annotated[bool, Heading.MACHINE] = False
    """A process for each environment; pays off where a step costs more than about 0.1 ms."""
    learning_starts: int = 30_000
    """Environment steps with uniformly random actions before the first update."""
    buffer_size: int = 1_000_000
    """Transitions kept for replay."""
    replay_on_device: Annotated[bool, Heading.MACHINE] = False
    """Keeps them on the device of the networks, so that batches need not travel to a GPU."""
    batch_size: int = 256
    """Samples of an update."""
    gamma: float = 0.99
    """Discount factor."""
    n_step: int = 1
    """Rewards in a row, at most, before a target bootstraps; fewer at the end of an episode."""
    normalise_obs: bool = False
    """Networks see observations with mean 0 and variance 1, by moments of all that the policy has acted on."""
    updates_per_env_step: float = 0.2
    """Updates for each environment step after learning_starts."""
    updates_per_call: Annotated[int | None, Heading.MACHINE] = None
    """Updates fused into one call of the backend; None: what one step of all environments earns, at least 1."""
    eval_interval: Annotated[int, Heading.EVALUATION] = 50_000
    """Environment steps between two evaluations; there is one at the end too."""
    eval_episodes: Annotated[int, Heading.EVALUATION] = 10
    """Episodes of an evaluation."""
    eval_max_steps: Annotated[int | None, Heading.EVALUATION] = None
    """Steps after which an episode of an evaluation is cut; None: the environment's own limit, 10,000 without one."""
    log_interval: Annotated[int, Heading.EVALUATION] = 1_000
    """Environment steps between two lines of metrics."""
    checkpoint_interval: Annotated[int, Heading.MACHINE] = 50_000
    """Environment steps between two checkpoints, from which `diffac resume` goes on; there is one at the end too."""
    step_timeout: Annotated[float, Heading.MACHINE] = 300.0
    """Seconds that asynchronous environments may take for a step or reset before the run stops."""
    run_root: Annotated[str, Heading.MACHINE] = "runs"
    """Folder that holds the runs."""
    progress: Annotated[bool, Heading.EVALUATION] = True
    """Progress bar in the terminal; plain lines otherwise."""
    track: Annotated[Literal["wandb", "trackio"] | None, Heading.EVALUATION] = None
    """Experiment tracker that gets all metrics too; needs the extra of that name."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_backend_name(self.backend)
        check_env_arguments(self.env_kwargs, self.wrappers)
        counts = ("total_timesteps", "num_envs", "buffer_size", "batch_size", "eval_interval", "eval_episodes")
        for name in (*counts, "n_step", "log_interval", "checkpoint_interval"):
            self._require(name, getattr(self, name) >= 1, "must be at least 1")
        self._require("step_timeout", self.step_timeout > 0, "must be greater than 0")
        self._require("gamma", 0 <= self.gamma <= 1, "must be in [0, 1]")
        self._require("seed", self.seed >= 0, "must be at least 0")
        self._require("learning_starts", self.learning_starts >= 0, "must be at least 0")
        rate = self.updates_per_env_step
        self._require("updates_per_env_step", 0 < rate < float("inf"), "must be greater than 0 and finite")
        for name in ("updates_per_call", "eval_max_steps"):
            if getattr(self, name) is not None:
                self._require(name, getattr(self, name) >= 1, "must be at least 1, or None")
        self._require(
            "batch_size", self.batch_size <= self.buffer_size, f"must be at most buffer_size ({self.buffer_size})"
        )
        self._require(
            "num_envs", self.num_envs <= self.buffer_size, f"must be at most buffer_size ({self.buffer_size})"
        )
        self._require(
            "learning_starts",
            self.learning_starts < self.total_timesteps,
            f"must be less than total_timesteps ({self.total_timesteps}), or nothing is ever learned",
        )
        self._require(
            "batch_size",
            self.batch_size < self.total_timesteps,
            f"must be less than total_timesteps ({self.total_timesteps}), or nothing is ever learned",
        )

    def _require(self, name: str, fulfilled: bool, what: str) -> None:
        if not fulfilled:
            raise UsageError(f"{name} {what}, got {getattr(self, name)!r}")

    @property
    def env_arguments(self) -> dict[str, Any]:
        """What `make_envs` takes beside the id."""
        return {"env_kwargs": self.env_kwargs, "wrappers": self.wrappers}

    @property
    def names(self) -> tuple[str, ...]:
        """Texts that name code."""
        return (self.env_id, *self.wrappers)

    @property
    def first_update(self) -> int:
        """Environment steps before updates are earned: learning_starts, or a whole batch where that is more."""
        return max(self.learning_starts, self.batch_size)

    @property
    def fused_updates(self) -> int:
        """K, updates in one call of the backend."""
        return self.updates_per_call or max(1, int(self.num_envs * self.updates_per_env_step + 1e-9))

    @property
    def total_updates(self) -> int:
        """Updates of the whole run, a multiple of `fused_updates`."""
        return self.updates_earned(self.total_timesteps) // self.fused_updates * self.fused_updates

    def updates_earned(self, env_step: int) -> int:
        """Updates that this many environment steps pay for."""
        paid = min(env_step, self.total_timesteps) - self.first_update
        return max(0, int(paid * self.updates_per_env_step + 1e-9))


CriticKind = Literal["twin", "ensemble", "gaussian", "categorical"]
"""A critic network together with its objective."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActorCriticConfig(TrainConfig):
    """Arguments that all actor-critic recipes share; a recipe inherits them and sets its own defaults."""

    HEADING = Heading.NETWORKS

    network: Body = "mlp"
    """Body of actor and critic: perceptrons, or the residual blocks of SimBa, whose widths are equal."""
    critic: Literal["recipe", "twin", "ensemble", "gaussian", "categorical"] = "recipe"
    """What learns values: the recipe's own; a twin; an ensemble of ten, of which a random pair makes each target and
    the mean guides the actor (REDQ); two Gaussians with the loss of DSAC-T; two categorical distributions."""
    projection: Literal["hl_gauss", "c51"] = "hl_gauss"
    """How a target becomes a categorical distribution."""
    value_range: float = 2000.0
    """A categorical critic's values reach from minus to plus this, times reward_scale."""
    hidden_sizes: tuple[int, ...] = (256, 256, 256)
    """Widths of the hidden layers of actor and critic."""
    activation: Activation = "mish"
    """Activation of both networks; a SimBa has ReLU."""
    initialiser: Law = "truncated_normal"
    """Law of their initial parameters: truncated_normal as in DACER and SDAC, uniform as in PyTorch; a SimBa has its
    own."""
    learning_rate: float = 3e-4
    """Adam's learning rate."""
    tau: float = 0.005
    """Rate at which the slowly moving copies (target critics, EMA actor) follow."""
    actor_delay: int = 2
    """Critic updates for each actor update."""
    reward_scale: float = 0.2
    """Factor of the reward in the critic's target; logged returns are unscaled."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("actor_delay", self.actor_delay >= 1, "must be at least 1")
        for name in ("reward_scale", "value_range"):
            self._require(name, 0 < getattr(self, name) < float("inf"), "must be greater than 0 and finite")

    @property
    def network_arguments(self) -> dict[str, Any]:
        """What actor and critic take beside their dimensions and keys."""
        names = ("hidden_sizes", "activation", "initialiser")
        return {**{name: getattr(self, name) for name in names}, "body": self.network}

    @property
    def actor_arguments(self) -> dict[str, Any]:
        """What an actor takes beside its dimensions."""
        return {"key": self.network_keys[0], **self.network_arguments}

    @property
    def ensemble(self) -> Ensemble:
        """How an actor sees the values of the critic as one, where its paper says the smallest."""
        return "mean" if self.critic == "ensemble" else "min"

    def make_critic(
        self, b: Backend, obs_dim: int, action_dim: int, kind: CriticKind, *,
        soft: bool = False, factor: float = 1.0, ensemble: Literal["min", "mean"] = "min",
        huber_delta: float | None = None, **network: Any,
    ) -> tuple[Critic, CriticObjective]:  # fmt: skip
        """The critic and its objective.

        Args:
            b: the backend.
            obs_dim: length of an observation.
            action_dim: length of an action.
            kind: the recipe's own, for `critic="recipe"`.
            soft: whether the target contains the entropy of the policy.
            factor: of a mean squared error, which other objectives do not have.
            ensemble: how the values of two critics become one in the target; GaussianTD has the "min" alone.
            huber_delta: of GaussianTD.
            **network: in place of `network_arguments`.

        Raises:
            UsageError: there is a factor, but no mean squared error, or a huber_delta, but no Gaussian critic.
        """
        kind = kind if self.critic == "recipe" else self.critic
        if factor != 1.0 and kind in ("gaussian", "categorical"):
            raise UsageError(
                f"a {kind} critic has no mean squared error for the factor {factor!r} to scale; choose another critic "
                "or the factor 1.0"
            )
        if huber_delta is not None and kind != "gaussian":
            raise UsageError(f"a {kind} critic has no use for huber_delta={huber_delta!r}; leave it out, or the critic")
        arguments = {"key": self.network_keys[1], **self.network_arguments, **network}
        match kind:
            case "twin":
                return b.TwinCritic(obs_dim, action_dim, **arguments), b.MeanSquaredTD(soft, factor, ensemble)
            case "ensemble":
                critic = b.EnsembleCritic(obs_dim, action_dim, size=10, **arguments)
                return critic, b.MeanSquaredTD(soft, factor, ensemble="random_pair")
            case "gaussian":
                objective = b.GaussianTD(self.tau, soft=soft, huber_delta=huber_delta)
                return b.GaussianCritic(obs_dim, action_dim, **arguments), objective
            case "categorical":
                end = self.reward_scale * self.value_range
                critic = b.CategoricalCritic(obs_dim, action_dim, v_min=-end, v_max=end, **arguments)
                return critic, b.CategoricalTD(self.projection, soft, ensemble)

    def actor_learning_rate(self, final: float) -> LinearSchedule:
        """The schedule of the official SDAC code: learning_rate up to a quarter of the actor's steps, `final` from
        three quarters on, linear between."""
        steps = -(-self.total_updates // self.actor_delay)
        return LinearSchedule(self.learning_rate, final, steps // 4, max(steps // 4 + 1, steps * 3 // 4))

    @property
    def network_keys(self) -> tuple[int, int]:
        """Seeds of the initial actor and critic."""
        actor, critic = np.random.SeedSequence(self.seed).generate_state(2)
        return int(actor), int(critic)
