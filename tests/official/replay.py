"""A recording through a faithful preset: same parameters, batches and draws in, the worst differences out."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from diffac.backend import get_backend
from diffac.noise import Noise, NoiseSpec, Zeros
from diffac.protocols import Batch, Policy
from diffac.runs.recipes import load_recipe, preset_values
from diffac.testing.reference import GaussianCritic
from official.recording import CRITICS, TOLERANCE, Array, Recording, difference, learner_arrays

PRESETS = {
    "sdac": ("sdac", "camera_ready"),
    "dpmd": ("dpmd", "camera_ready"),
    "idem": ("idem", "official"),
    "dacer": ("dacer", "paper"),
    "sac_dacer": ("sac", "dacer_repository"),
    "sb3_sac": ("sac", "stable_baselines3"),
    "sb3_td3": ("td3", "stable_baselines3"),
}
"""Algorithm of a recording -> recipe and preset that promise to be it."""

SIZES = {
    "T": "num_diffusion_steps",
    "num_particles_N": "num_candidates",
    "num_reverse_samples_K": "num_particles",
    "hidden": "hidden_sizes",
    "temperature_interval": "temperature_interval",
    "actor_delay": "actor_delay",
    "policy_delay": "actor_delay",
}
"""Constant of a recording -> field of the configuration. Everything else must be right in the preset."""

FLOAT32 = 1e-6
"""`Learner.act` returns float32."""


def configuration(algorithm: str, noise_scale: float | None = None) -> tuple[Any, Any]:
    """The recipe of an algorithm, and its preset's configuration.

    Args:
        algorithm: of a recording.
        noise_scale: of a recording: the one number that depends on the environment.
    """
    recipe, preset = PRESETS[algorithm]
    module = load_recipe(recipe)
    fitting = (env for env, own in module.ENV_CONSTANTS.items() if own["noise_scale"] == noise_scale)
    return module, module.Config(**preset_values(module, recipe, preset, next(fitting, "Hopper")))


def build(backend: str, recording: Recording) -> tuple[Any, Any]:
    """The engine of the preset in the recording's sizes, and its state with the recorded parameters."""
    constants = recording.constants
    module, config = configuration(constants["algorithm"], constants.get("noise_scale"))
    sizes = {field: constants[name] for name, field in SIZES.items() if name in constants}
    sizes["hidden_sizes"] = tuple(sizes["hidden_sizes"])
    config = dataclasses.replace(config, backend=backend, **sizes)
    learner, *networks = module.build(config, recording.obs_dim, recording.action_shape[1])
    B: Any = get_backend(backend)
    engine = B.Engine(learner)
    state = engine.init(*networks)
    own = {n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in B.to_arrays(state).items()}
    return engine, B.from_arrays(state, own | named_like(own, learner_arrays(recording, "init")))


def named_like(own: Mapping[str, Array], recorded: Mapping[str, Array]) -> dict[str, Array]:
    """The recorded arrays, with the names that terms of a sum have ("actor_objective.term0.q_mean_ema")."""
    ends = {name.rpartition(".")[2]: name for name in own if name.startswith("actor_objective.")}

    def ours(name: str) -> str:
        return ends[name.rpartition(".")[2]] if name.startswith("actor_objective.") else name

    return {ours(name): array for name, array in recorded.items()}


ROLES = {"next_action": "next_policy", "rollout": "policy", "samples": "entropy"}
"""Our name of some noise -> role of the recorded draws below it; else it has the same name, or the role around it."""


def filled(spec: NoiseSpec, draws: Mapping[str, Mapping[str, Array]], role: str = "") -> dict[str, Any]:
    """Recorded draws in the structure of a noise specification; a policy's entropy may not have been sampled."""
    noise: dict[str, Any] = {}
    for name, law in spec.items():
        if isinstance(law, Mapping):
            noise[name] = filled(law, draws, ROLES.get(name, name if name in draws else role))
        elif isinstance(law, Zeros) or (role == "entropy" and role not in draws):
            noise[name] = np.zeros(law.shape)
        else:
            noise[name] = arranged(name, draws[role]).reshape(law.shape).copy()
    return noise


def arranged(name: str, draws: Mapping[str, Array]) -> Array:
    """The draw of that name of ours, its axes in our order."""
    match name:
        case "start":
            return draws["chain_start"]
        case "steps":  # recorded in the order of use, the last one unused; ours by time, the first one is that of t=1
            return np.moveaxis(draws["step_noise"], -3, 0)[-2::-1]
        case "exploration":
            return next(draws[name] for name in ("exploration", "z", "noise") if name in draws)
        case "eps":
            return draws["xi"] if "xi" in draws else draws["eps"]
        case "particles":
            return np.moveaxis(draws["eps_k"], 1, 0)
        case _:
            return draws[name]


class Fit:
    """Stands for the mixture fit of DACER, where the official code has scikit-learn's: the recorded entropies.

    It gives them for the recorded actions only, and NaN for any others.
    """

    def __init__(self, recording: Recording) -> None:
        self.recording, self.update = recording, 0
        self.differences: dict[int, float] = {}
        """Update -> how far from the recorded actions those were that came nearest."""

    def __call__(self, samples: Array, *_: Any) -> Array:
        """Entropies [*batch] of samples [S *batch d]."""
        after = self.recording.under(f"u{self.update}")
        wanted = np.swapaxes(after["mid/entropy_actions"], 0, 1)
        samples = np.asarray(samples)
        groups = samples.reshape(len(samples), -1, *wanted.shape[1:])
        differences = [difference(groups[:, i], wanted) for i in range(groups.shape[1])]
        self.differences[self.update] = min(*differences, self.differences.get(self.update, np.inf))
        # The official code forms the gradient in float32.
        target = self.recording.constants["target_entropy"]
        entropy = target + float(np.float32(after["stat/entropy"]) - np.float32(target))
        known = np.array([entropy if d < TOLERANCE else np.nan for d in differences])
        return np.repeat(known, wanted.shape[1]).reshape(samples.shape[1:-1])

    def install(self, B: Any, backend: str, patch: pytest.MonkeyPatch) -> None:
        """Puts it into a backend, whose rule then takes as many samples as recorded."""
        samples = self.recording.arrays["u0/mid/entropy_actions"]
        rule, sizes = B.MixtureEntropyTemperature, {"num_states": samples.shape[0], "num_samples": samples.shape[1]}
        patch.setattr(B, "MixtureEntropyTemperature", lambda *args, **kw: rule(*args, **kw, **sizes))
        package = "diffac.testing.reference" if backend == "numpy" else f"{B.__name__}.parts"
        temperatures = importlib.import_module(f"{package}.temperatures")
        patch.setattr(temperatures, "mixture_entropy", {"torch": self.torch, "equinox": self.jax}.get(backend, self))

    def torch(self, samples: Any, *_: Any) -> Any:
        """For tensors."""
        import torch

        return torch.from_numpy(self(samples.numpy()))

    def jax(self, samples: Any, *_: Any) -> Any:
        """For a compiled program, which asks when it runs."""
        import jax

        return jax.pure_callback(self, jax.ShapeDtypeStruct(samples.shape[1:-1], samples.dtype), samples)


class Replay:
    """A preset on its way through a recording."""

    def __init__(self, backend: str, recording: Recording) -> None:
        self.B: Any = get_backend(backend)
        self.recording = recording
        self.engine, self.state = build(backend, recording)
        self.worst: dict[str, float] = {}
        """Largest difference so far, by what is compared."""

    def compare(self, name: str, ours: Array, recorded: Array) -> None:
        """Keeps the difference if it is the largest one."""
        self.worst[name] = max(self.worst.get(name, 0.0), difference(ours, recorded))

    def rollout(self, actor: Any, obs: Array, noise: Noise) -> Any:
        """Of the learner's policy, in double precision."""
        temperature = self.engine.learner.temperature.value(self.state.temperature)
        sample = self.B.testing.compiled(self.engine.learner.sampler.rollout)
        obs, noise = self.B.testing.to_backend((obs, noise))
        rollout = sample(Policy(actor, self.state.critic, temperature), obs, noise)
        return self.B.testing.to_numpy(rollout)

    def update(self, u: int) -> None:
        """One update, and the comparison of everything recorded of it."""
        entered, draws = self.recording.under(f"u{u}/batch"), self.recording.draws(f"u{u}")
        noise = filled(
            self.engine.learner.noise_spec(self.recording.action_shape), draws | {"critic": self.target_draw(u)}
        )
        mid = self.recording.under(f"u{u}/mid")
        for name, obs in (("next_action", "next_obs"), ("action", "obs")):
            if name in mid:
                spec = self.engine.learner.sampler.noise_spec(self.recording.action_shape)
                role = {"next_action": "next_policy", "action": "policy"}[name]
                found = self.rollout(self.state.actor, entered[obs], filled(spec, draws, role))
                self.compare(f"mid/{name}", found.action, mid[name])
                log_prob = f"{name.removesuffix('action')}log_prob"
                if log_prob in mid:
                    self.compare(f"mid/{log_prob}", found.log_prob, mid[log_prob])

        discount = self.recording.constants["gamma"] * (entered["done"] == 0)
        batch = Batch(*(entered[name] for name in ("obs", "action", "reward", "next_obs")), discount)
        self.state, metrics = self.engine.step(self.state, batch, noise)
        metrics = {name: float(number) for name, number in metrics.items()}
        arrays = self.B.to_arrays(self.state)
        for name, recorded in named_like(arrays, learner_arrays(self.recording, f"u{u}/after")).items():
            self.compare(name, arrays[name], recorded)
        self.compare_metrics(u, metrics)

    def compare_metrics(self, u: int, metrics: Mapping[str, float]) -> None:
        """Losses and statistics; the official codes record an actor's loss also where no step is due."""
        left = self.recording.under(f"u{u}")
        critic_loss = left["loss/critic"] if "loss/critic" in left else sum(left[f"loss/critic{i}"] for i in CRITICS)
        self.compare("loss/critic", metrics["critic_loss"], critic_loss)
        if u % self.engine.learner.actor_delay == self.engine.learner.first_actor_update:
            self.compare("loss/actor", metrics["actor_loss"], left["loss/actor"])
        if "mid/log_prob" in left:  # DACER's entropy is the one that `Fit` gives
            self.compare("stat/entropy", metrics["actor_entropy"], left["stat/entropy"])

    def target_draw(self, u: int) -> dict[str, Array]:
        """The official Gaussian critics have a draw each; ours has one, for the critic whose mean is the target."""
        draws = self.recording.under(f"u{u}/critic")
        if not draws:
            return {}
        entered = self.recording.under(f"u{u}")
        arrays, prefix = self.B.to_arrays(self.state), "target_critic."
        critic = GaussianCritic({n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)})
        means, _ = critic(entered["batch/next_obs"], entered["mid/next_action"])
        return {"target": np.where(means[0] <= means[1], draws["z0"], draws["z1"])}

    def act(self) -> None:
        """Actions of the collector and of the evaluator: in double precision, and as `act` gives them."""
        obs, draws = self.recording.arrays["act/obs"], self.recording.draws("act")
        shape = (len(obs), self.recording.action_shape[1])
        evaluation = draws["evaluation"]  # asked for one observation after the other, which is their first axis
        draws["evaluation"] = {name: np.moveaxis(d, 0, -2) if d.ndim > 2 else d for name, d in evaluation.items()}
        actor = self.state.ema_actor if self.engine.learner.acting_actor == "ema" else self.state.actor
        for role, deterministic in (("stochastic", False), ("evaluation", True)):
            if role not in draws:
                continue
            noise = filled(self.engine.act_noise_spec(shape, deterministic=deterministic), draws, role)
            recorded = draws[role]["action"]
            self.compare(f"act/{role}", self.rollout(actor, obs, noise).action, recorded)
            action = self.engine.act(self.state, obs, noise, deterministic=deterministic)
            if (rounded := difference(action, recorded)) > FLOAT32:
                self.worst[f"act/{role} by act()"] = rounded


def replay(backend: str, recording: Recording) -> dict[str, float]:
    """Sends a recording through the preset.

    Returns:
        The largest difference (see `difference`) of everything that can be compared, by recorded or our name.
    """
    fit = Fit(recording)
    with pytest.MonkeyPatch.context() as patch:
        if "u0/mid/entropy_actions" in recording.arrays:
            fit.install(get_backend(backend), backend, patch)
        run = Replay(backend, recording)
        for fit.update in range(recording.updates):
            run.update(fit.update)
        run.act()
    return run.worst | {"mid/entropy_actions": max(fit.differences.values())} if fit.differences else run.worst


def settle(worst: Mapping[str, float], record_property: Any) -> None:
    """Fails where something differs by more than the tolerance; reports the largest difference in any case."""
    where = max(worst, key=lambda name: worst[name])
    record_property("difference", worst[where])
    record_property("where", where)
    wrong = sorted((-d, name) for name, d in worst.items() if not d < TOLERANCE)
    assert not wrong, "\n".join(f"{-d:8.1e}  {name}" for d, name in wrong)
