"""diffac: diffusion policies for online reinforcement learning, from interchangeable parts.

This package holds the contracts and everything that runs on the host. It imports neither torch nor jax; `get_backend`
loads one when it is asked for. All else is loaded at its first use too, so that a backend does not load what needs
environments, and the program hears Ctrl-C from its first moment on.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from diffac.agent import Agent as Agent
    from diffac.backend import Backend as Backend
    from diffac.backend import backend_names as backend_names
    from diffac.backend import get_backend as get_backend
    from diffac.data.environments import make_envs as make_envs
    from diffac.data.replay import Replay as Replay
    from diffac.data.replay import ReplayBuffer as ReplayBuffer
    from diffac.data.stepper import Episode as Episode
    from diffac.data.stepper import SavableStepper as SavableStepper
    from diffac.data.stepper import Stepper as Stepper
    from diffac.data.stepper import StepResult as StepResult
    from diffac.data.stepper import VectorStepper as VectorStepper
    from diffac.data.vectors import dims as dims
    from diffac.errors import RunError as RunError
    from diffac.errors import UsageError as UsageError
    from diffac.logging import ConsoleWriter as ConsoleWriter
    from diffac.logging import CsvWriter as CsvWriter
    from diffac.logging import JsonlWriter as JsonlWriter
    from diffac.logging import TensorBoardWriter as TensorBoardWriter
    from diffac.logging import TrackerWriter as TrackerWriter
    from diffac.logging import Writer as Writer
    from diffac.logging import Writers as Writers
    from diffac.noise import Integers as Integers
    from diffac.noise import Noise as Noise
    from diffac.noise import NoiseSpec as NoiseSpec
    from diffac.noise import Normal as Normal
    from diffac.noise import Uniform as Uniform
    from diffac.noise import Zeros as Zeros
    from diffac.noise import draw as draw
    from diffac.noise import without_exploration as without_exploration
    from diffac.parts.schedules import LinearSchedule as LinearSchedule
    from diffac.parts.schedules import TabularSchedule as TabularSchedule
    from diffac.parts.schedules import cosine_schedule as cosine_schedule
    from diffac.parts.schedules import flow_schedule as flow_schedule
    from diffac.parts.schedules import linear_beta_schedule as linear_beta_schedule
    from diffac.parts.schedules import schedule_from_betas as schedule_from_betas
    from diffac.parts.schedules import tabulated as tabulated
    from diffac.parts.schedules import vp_schedule as vp_schedule
    from diffac.protocols import Activation as Activation
    from diffac.protocols import ActorObjective as ActorObjective
    from diffac.protocols import Batch as Batch
    from diffac.protocols import ConditionalDenoiser as ConditionalDenoiser
    from diffac.protocols import Critic as Critic
    from diffac.protocols import CriticObjective as CriticObjective
    from diffac.protocols import Denoiser as Denoiser
    from diffac.protocols import DistributionalCritic as DistributionalCritic
    from diffac.protocols import Engine as Engine
    from diffac.protocols import Learner as Learner
    from diffac.protocols import Loss as Loss
    from diffac.protocols import NoiseSchedule as NoiseSchedule
    from diffac.protocols import Policy as Policy
    from diffac.protocols import Prediction as Prediction
    from diffac.protocols import Rollout as Rollout
    from diffac.protocols import RolloutObjective as RolloutObjective
    from diffac.protocols import RowUpdate as RowUpdate
    from diffac.protocols import Sampler as Sampler
    from diffac.protocols import Temperature as Temperature
    from diffac.protocols import Transition as Transition
    from diffac.training.callbacks import Callback as Callback
    from diffac.training.callbacks import Callbacks as Callbacks
    from diffac.training.config import ActorCriticConfig as ActorCriticConfig
    from diffac.training.config import Heading as Heading
    from diffac.training.config import TrainConfig as TrainConfig
    from diffac.training.evaluation import Evaluation as Evaluation
    from diffac.training.evaluation import EvaluationRecord as EvaluationRecord
    from diffac.training.evaluation import Evaluator as Evaluator
    from diffac.training.evaluation import evaluate as evaluate
    from diffac.training.loop import Loop as Loop
    from diffac.training.loop import TrainResult as TrainResult
    from diffac.training.loop import train as train
    from diffac.training.state import Training as Training

_NAMES = {
    "agent": ("Agent",),
    "backend": (
        "Backend",
        "backend_names",
        "get_backend",
    ),
    "data.stepper": (
        "Episode",
        "SavableStepper",
        "StepResult",
        "Stepper",
        "VectorStepper",
    ),
    "data.vectors": ("dims",),
    "data.environments": ("make_envs",),
    "data.replay": (
        "Replay",
        "ReplayBuffer",
    ),
    "errors": (
        "RunError",
        "UsageError",
    ),
    "logging": (
        "ConsoleWriter",
        "CsvWriter",
        "JsonlWriter",
        "TensorBoardWriter",
        "TrackerWriter",
        "Writer",
        "Writers",
    ),
    "noise": (
        "Integers",
        "Noise",
        "NoiseSpec",
        "Normal",
        "Uniform",
        "Zeros",
        "draw",
        "without_exploration",
    ),
    "parts.schedules": (
        "LinearSchedule",
        "TabularSchedule",
        "cosine_schedule",
        "flow_schedule",
        "linear_beta_schedule",
        "schedule_from_betas",
        "tabulated",
        "vp_schedule",
    ),
    "protocols": (
        "Activation",
        "ActorObjective",
        "Batch",
        "ConditionalDenoiser",
        "Critic",
        "CriticObjective",
        "Denoiser",
        "DistributionalCritic",
        "Engine",
        "Learner",
        "Loss",
        "NoiseSchedule",
        "Policy",
        "Prediction",
        "Rollout",
        "RolloutObjective",
        "RowUpdate",
        "Sampler",
        "Temperature",
        "Transition",
    ),
    "training.callbacks": (
        "Callback",
        "Callbacks",
    ),
    "training.config": (
        "ActorCriticConfig",
        "Heading",
        "TrainConfig",
    ),
    "training.evaluation": (
        "Evaluation",
        "EvaluationRecord",
        "Evaluator",
        "evaluate",
    ),
    "training.loop": (
        "Loop",
        "TrainResult",
        "train",
    ),
    "training.state": ("Training",),
}
"""Module -> public names in it."""
_PARTS = {module.partition(".")[0] for module in _NAMES}
"""Modules and folders that hold them."""
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> _Any:
    if name == "__version__":
        value = _import_module(f"{__name__}.system.versions").diffac_version()
    elif name in _MODULE_OF:
        value = getattr(_import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    elif name in _PARTS:
        value = _import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PARTS, *_MODULE_OF, "__version__"})
