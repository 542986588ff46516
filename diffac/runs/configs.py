"""Configurations as YAML: what a run writes down, read back and checked before anything is made of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from diffac.errors import UsageError, unknown
from diffac.files.paths import absolute
from diffac.files.untrusted import read_yaml
from diffac.values import converted, hints_of, plain, vars_of

Config = TypeVar("Config")
RECIPE = "recipe"
"""The key that names the recipe; all others are fields of its configuration."""
OTHER_NAMES = {
    "algo": "recipe",
    "algorithm": "recipe",
    "agent": "recipe",
    "lr": "learning_rate",
    "timesteps": "total_timesteps",
    "steps": "total_timesteps",
    "num_steps": "total_timesteps",
    "total_steps": "total_timesteps",
    "max_timesteps": "total_timesteps",
    "env": "env_id",
    "env_name": "env_id",
    "environment": "env_id",
    "task": "env_id",
    "n_envs": "num_envs",
    "envs": "num_envs",
    "vectorized": "asynchronous",
    "net_arch": "hidden_sizes",
    "hidden_dim": "hidden_sizes",
    "hidden_dims": "hidden_sizes",
    "layers": "hidden_sizes",
    "activation_fn": "activation",
    "discount": "gamma",
    "polyak": "tau",
    "policy_delay": "actor_delay",
    "policy_frequency": "actor_delay",
    "reward_scaling": "reward_scale",
    "replay_size": "buffer_size",
    "memory_size": "buffer_size",
    "start_steps": "learning_starts",
    "warmup_steps": "learning_starts",
    "utd": "updates_per_env_step",
    "utd_ratio": "updates_per_env_step",
    "train_freq": "updates_per_env_step",
    "gradient_steps": "updates_per_env_step",
    "eval_freq": "eval_interval",
    "n_eval_episodes": "eval_episodes",
    "n_episodes": "episodes",
    "num_episodes": "episodes",
    "save_freq": "checkpoint_interval",
    "log_dir": "run_root",
    "output_dir": "run_root",
    "save_dir": "run_root",
    "output": "out",
    "seeds": "num_seeds",
    "n_seeds": "num_seeds",
    "framework": "backend",
    "gpu": "device",
    "cuda": "device",
    "wandb": "track",
    "logger": "track",
    "render": "video",
}
"""What fields, and other arguments of commands, are called elsewhere."""


def config_yaml(config: Any, recipe_name: str) -> bytes:
    """The content of `config.yaml`: the recipe and all fields."""
    return yaml.safe_dump(plain({RECIPE: recipe_name, **vars_of(config)}), sort_keys=False).encode()


def read_config(path: Path | str) -> tuple[str, dict[str, Any]]:
    """The recipe that a file names, and its other entries, not yet checked.

    Raises:
        UsageError: the file cannot be read, is no YAML, or names no recipe.
    """
    values = read_yaml(absolute(path))
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise UsageError(f"{path} must hold lines like `seed: 0`, got {type(values).__name__}")
    recipe = values.pop(RECIPE, None)
    if not isinstance(recipe, str):
        raise UsageError(f"{path} must name its recipe, as in `{RECIPE}: sac`")
    return recipe, values


def make_config(config_class: type[Config], values: Mapping[str, Any], where: str) -> Config:
    """A configuration from the entries of a file; fields that are missing keep their defaults.

    Args:
        config_class: a dataclass.
        values: name -> value, as YAML gives them.
        where: the file, for messages.

    Raises:
        UsageError: a name that is no field (says the nearest), a value of another type, or values that do not go
            together.
    """
    hints = hints_of(config_class)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise unknown(f"key in {where}:", name, fields, other_names=OTHER_NAMES)
    checked = {name: converted(value, fields[name], f"{where}: {name}") for name, value in values.items()}
    try:
        return config_class(**checked)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
