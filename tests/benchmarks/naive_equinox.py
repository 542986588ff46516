"""The diffusion recipes in JAX the way public codes are written: the yardstick, never used for training.

As `naive_torch`, with what is usual in JAX: one compiled program for each update, chains as a scan, candidates by vmap.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffac_equinox as ours
from diffac.protocols import Array, Batch, Rollout
from diffac_equinox.engine.random import draw, key_data, stream
from diffac_equinox.parts.diffusion import add_noise, posterior_mean, remove_noise
from diffac_equinox.parts.diffusion import score as score_of
from diffac_equinox.parts.objectives import _truncated_normal

Layers = list[tuple[Array, Array]]


def mlp(layers: Layers, x: Array) -> Array:
    """[*batch in] -> [*batch out], with Mish between the layers."""
    for weight, bias in layers[:-1]:
        x = jax.nn.mish(x @ weight.T + bias)
    weight, bias = layers[-1]
    return x @ weight.T + bias


def denoise(actor: Mapping[str, Layers], obs: Array, noisy: Array, t: Array) -> Array:
    """Predicted noise [batch act]; t [batch] or a scalar."""
    features = mlp(actor["time_layers"], ours.time_embedding(t).astype(noisy.dtype))
    features = jnp.broadcast_to(features, (len(obs), features.shape[-1]))
    return mlp(actor["layers"], jnp.concatenate([obs, noisy, features], axis=-1))


def value(critics: list[Layers], obs: Array, action: Array) -> Array:
    """The smaller of the two values (of the means), [batch]."""
    pair = jnp.concatenate([obs, action], axis=-1)
    return jnp.minimum(*(mlp(critic, pair)[:, 0] for critic in critics))


def gaussian(critic: Layers, pair: Array) -> tuple[Array, Array]:
    """Mean and standard deviation, each [batch]."""
    output = mlp(critic, pair)
    return output[:, 0], jax.nn.softplus(output[:, 1])


def next_action(batch: Batch) -> Array:
    """The policy's at the next observations."""
    assert batch.next_rollout is not None
    return batch.next_rollout.action


class Naive:
    """One recipe with its networks, optimisers and slow copies; arguments as in `naive_torch.Naive`."""

    def __init__(self, learner: Any, actor: Any, critic: Any) -> None:
        self.learner = learner
        inner = learner.sampler.sampler  # within AdditiveNoise
        self.candidates = inner.num_candidates if isinstance(inner, ours.BestOf) else None
        self.chain: Any = inner.sampler if isinstance(inner, ours.BestOf) else inner
        self.schedule = self.chain.schedule
        names = ours.to_arrays(actor)
        actor = {part: _layers(names, part) for part in ("time_layers", "layers")}
        critics = [_layers(ours.to_arrays(critic), "layers", member) for member in range(2)]
        dtype = critics[0][0][0].dtype
        omega = {"omega": jnp.zeros(2, dtype)} if isinstance(learner.critic_objective, ours.GaussianTD) else {}
        self.temperature = jnp.exp(jnp.asarray(learner.temperature.init_state()["log_temperature"], dtype))
        self.state = {
            "actor": actor,
            "ema_actor": actor if (learner.acting_actor == "ema") else None,
            "critics": critics,
            "target_critics": critics,
            "actor_adam": learner.actor_optimiser.init(actor),
            "critic_adam": learner.critic_optimiser.init(critics),
            "critic_state": omega,
            "actor_state": {k: jnp.asarray(v, dtype) for k, v in learner.actor_objective.init_state().items()},
            "updates": jnp.int32(0),
        }

    def update(self, batch: Batch, key: int) -> Array:
        """One update with noise of its own; the critic's loss, perhaps still being computed."""
        self.state, loss = self._update(self.state, batch, key_data(key))
        return loss

    @functools.partial(jax.jit, static_argnums=0)
    def _update(self, state: Any, batch: Batch, key: Array) -> tuple[Any, Array]:
        noise = draw(stream(key), self.learner.noise_spec(batch.action.shape), self.temperature.dtype)
        return self._after(state, batch, noise)

    def step(self, batch: Batch, noise: Mapping[str, Any]) -> Array:
        """One update with this noise."""
        self.state, loss = self._step(self.state, batch, noise)
        return loss

    @functools.partial(jax.jit, static_argnums=0)
    def _step(self, state: Any, batch: Batch, noise: Mapping[str, Any]) -> tuple[Any, Array]:
        return self._after(state, batch, noise)

    def _after(self, state: Any, batch: Batch, noise: Mapping[str, Any]) -> tuple[Any, Array]:
        """The state after an update, and the critic's loss."""
        learner = self.learner
        batch = batch._replace(
            reward=learner.reward_scale * batch.reward,
            next_rollout=Rollout(self.act(state["actor"], state["critics"], batch.next_obs, noise["next_action"])),
        )
        (loss, critic_state), critic_gradient = jax.value_and_grad(self.critic_loss, has_aux=True)(
            state["critics"], state, batch, noise["critic"]
        )
        critics, critic_adam, _ = learner.critic_optimiser.step(state["critic_adam"], state["critics"], critic_gradient)
        seen = critics if learner.critic_steps_before_actor == 1 else state["critics"]
        (_, actor_state), actor_gradient = jax.value_and_grad(self.actor_loss, has_aux=True)(
            state["actor"], {**state, "critics": seen}, batch, noise["actor"]
        )
        actor, actor_adam, _ = learner.actor_optimiser.step(state["actor_adam"], state["actor"], actor_gradient)

        def towards(slow: Any, fast: Any) -> Any:
            return jax.tree.map(lambda s, f: (1 - learner.tau) * s + learner.tau * f, slow, fast)

        updated = {
            "actor": actor,
            "ema_actor": towards(state["ema_actor"], actor) if (learner.acting_actor == "ema") else None,
            "target_critics": towards(state["target_critics"], critics),
            "actor_adam": actor_adam,
        }
        due = state["updates"] % learner.actor_delay == 0
        kept = {name: state[name] for name in updated}
        state = jax.lax.cond(due, lambda: updated, lambda: kept) | {
            "critics": critics,
            "critic_adam": critic_adam,
            "critic_state": critic_state,
            "actor_state": actor_state,
            "updates": state["updates"] + 1,
        }
        return state, loss

    def run_chain(self, actor: Any, obs: Array, noise: Mapping[str, Array]) -> tuple[Array, Array]:
        """Actions of one chain for each row of obs, and its states [T batch act] from t = 0 on."""
        schedule = self.schedule

        def predict(noisy: Array, t: Array) -> Array:
            return jnp.clip(remove_noise(schedule, noisy, denoise(actor, obs, noisy, t), t), -1, 1)

        def back(noisy: Array, t_and_noise: tuple[Array, Array]) -> tuple[Array, Array]:
            t, eps = t_and_noise
            mean = posterior_mean(schedule, predict(noisy, t), noisy, t)
            return mean + jnp.asarray(schedule.posterior_std, eps.dtype)[t] * eps, noisy

        times = jnp.arange(1, schedule.num_steps)
        noisy, later = jax.lax.scan(
            back, self.chain.start_scale * noise["start"], (times, noise["steps"]), reverse=True
        )
        return predict(noisy, jnp.int32(0)), jnp.concatenate([noisy[None], later])

    def best(self, actor: Any, critics: Any, obs: Array, noise: Mapping[str, Any]) -> Array:
        """The sampled action; of several candidates the one that the critics prefer."""
        if self.candidates is None:
            return self.run_chain(actor, obs, noise)[0]
        many = jax.vmap(lambda one: self.run_chain(actor, obs, one)[0], in_axes=({"start": 0, "steps": 1},))
        actions = many(noise["candidates"])
        q = jax.vmap(lambda one: value(critics, obs, one))(actions)
        return jnp.take_along_axis(actions, q.argmax(0)[None, :, None], 0)[0]

    def act(self, actor: Any, critics: Any, obs: Array, noise: Mapping[str, Any]) -> Array:
        """The action with exploration noise."""
        return self.learner.sampler.explore(self.best(actor, critics, obs, noise["inner"]), noise, self.temperature)

    def critic_loss(self, critics: Any, state: Any, batch: Batch, noise: Any) -> tuple[Array, Any]:
        """Temporal difference of both critics, and the new state of the objective."""
        objective = self.learner.critic_objective
        discount = batch.discount
        pair = jnp.concatenate([batch.obs, batch.action], axis=-1)
        if isinstance(objective, ours.MeanSquaredTD):
            y = batch.reward + discount * value(state["target_critics"], batch.next_obs, next_action(batch))
            return sum(((mlp(critic, pair)[:, 0] - y) ** 2).mean() for critic in critics), {}
        next_pair = jnp.concatenate([batch.next_obs, jnp.asarray(next_action(batch))], axis=-1)
        means, stds = zip(*(gaussian(critic, next_pair) for critic in state["target_critics"]), strict=True)
        mean, std = jnp.minimum(*means), jnp.where(means[0] <= means[1], *stds)
        y = batch.reward + discount * mean
        y_z = batch.reward + discount * (mean + std * jnp.clip(noise["target"], -3, 3))
        losses, omegas = [], []
        for critic, omega in zip(critics, state["critic_state"]["omega"], strict=True):
            q, std = gaussian(critic, pair)
            fixed, fixed_std = jax.lax.stop_gradient((q, std))
            batch_std = fixed_std.mean()
            omega = jnp.where(omega == 0, batch_std, (1 - objective.tau) * omega + objective.tau * batch_std)
            bound = objective.clip * omega
            y_b = fixed + jnp.clip(y_z - fixed, -bound, bound)
            mean_term = q * (y - fixed) / (fixed_std**2 + 0.1)
            std_term = std * ((fixed - y_b) ** 2 - fixed_std**2) / (fixed_std**3 + 0.1)
            losses.append(-(omega**2 + 0.1) * (mean_term + std_term).mean())
            omegas.append(omega)
        return losses[0] + losses[1], {"omega": jnp.stack(omegas)}

    def actor_loss(self, actor: Any, state: Any, batch: Batch, noise: Any) -> tuple[Array, Any]:
        """The loss that the recipe is named after, and the new state of the objective."""
        objective, critics, obs = self.learner.actor_objective, state["critics"], batch.obs
        if isinstance(objective, ours.ValueThroughSampler):
            return -value(critics, obs, self.act(actor, critics, obs, noise["rollout"])).mean(), {}
        if isinstance(objective, ours.Sum):
            (first, _), (second, gradient) = objective.terms
            rollout = noise["rollout"]
            action, states = self.run_chain(actor, obs, rollout["inner"])
            action = self.learner.sampler.explore(action, rollout, self.temperature)
            loss = first * -value(critics, obs, action).mean()
            return loss + second * self.score_loss(gradient, actor, critics, obs, states), {}
        if isinstance(objective.proposal, ours.ReverseProposal):
            if objective.proposal.uses_gradient:
                return self.energy_loss(objective.proposal, actor, state, obs, noise), state["actor_state"]
            return self.reverse_loss(objective.proposal, actor, state, obs, noise), state["actor_state"]
        return self.policy_loss(objective.proposal, actor, state, batch, noise)

    def score_loss(self, gradient: Any, actor: Any, critics: Any, obs: Array, states: Array) -> Array:
        """DACER2's second term, at the states of the chain."""
        rows = jnp.tile(obs, (len(states), 1))
        noisy = jax.lax.stop_gradient(states.reshape(len(rows), -1))
        t = jnp.repeat(jnp.arange(len(states)), len(obs))
        slope = jax.grad(lambda action: value(critics, rows, action).sum())(noisy)
        weight = jnp.exp(gradient.slope * (t + gradient.time_offset) + gradient.intercept).astype(slope.dtype)
        target = weight[:, None] * slope / (jnp.linalg.norm(slope, axis=-1, keepdims=True) + 1e-8)
        score = score_of(self.schedule, denoise(actor, rows, noisy, t), t)
        return ((score - target) ** 2).sum(-1).mean()

    def reverse_loss(self, proposal: Any, actor: Any, state: Any, obs: Array, noise: Any) -> Array:
        """SDAC: the denoiser is evaluated once for each particle."""
        count, t, schedule, critics = proposal.num_particles, noise["t"], self.schedule, state["critics"]
        action = self.act(jax.lax.stop_gradient(actor), critics, obs, noise["rollout"])
        noisy = add_noise(schedule, action, noise["eps"], t)
        mean = remove_noise(schedule, noisy, jnp.zeros_like(noisy), t)
        std = remove_noise(schedule, jnp.zeros_like(noisy), -jnp.ones_like(noisy), t)
        guesses = _truncated_normal(mean, std, noise["particles"])
        eps = (mean - guesses) / std
        rows = jnp.tile(obs, (count, 1))
        q = value(critics, rows, guesses.reshape(len(rows), -1)).reshape(count, -1)
        weight = jax.nn.softmax(q * proposal.value_scale / self.temperature, axis=0)
        weight, eps, noisy = jax.lax.stop_gradient((weight, eps, noisy))
        predicted = denoise(actor, rows, jnp.tile(noisy, (count, 1)), jnp.tile(t, count)).reshape(eps.shape)
        return (weight * ((predicted - eps) ** 2).sum(-1)).sum(0).mean()

    def energy_loss(self, proposal: Any, actor: Any, state: Any, obs: Array, noise: Any) -> Array:
        """iDEM: the gradient of the logarithm of the mean of exp(Q) at the particles, by the noisy action."""
        count, t, schedule, critics = proposal.num_particles, noise["t"], self.schedule, state["critics"]
        action = self.act(jax.lax.stop_gradient(actor), critics, obs, noise["rollout"])
        noisy = add_noise(schedule, action, noise["eps"], t)
        rows = jnp.tile(obs, (count, 1))

        def log_mean(position: Array) -> Array:
            guesses = jnp.clip(remove_noise(schedule, position, noise["particles"], t), -1, 1)
            q = value(critics, rows, guesses.reshape(len(rows), -1)).reshape(count, -1)
            return jax.nn.logsumexp(q * proposal.value_scale, axis=0).sum()

        slope = jax.grad(log_mean)(noisy)
        target = -add_noise(schedule, jnp.zeros_like(slope), slope, t)
        noisy, target = jax.lax.stop_gradient((noisy, target))
        return ((denoise(actor, obs, noisy, t) - target) ** 2).sum(-1).mean()

    def policy_loss(
        self, proposal: Any, actor: Any, state: Any, batch: Batch, noise: Any
    ) -> tuple[Array, dict[str, Array]]:
        """DPMD: the policy's own actions, weighted by their standardised value."""
        old, rate, t = state["actor_state"], proposal.rate, noise["t"]
        q = value(state["critics"], batch.next_obs, next_action(batch))
        new = {
            "q_mean_ema": (1 - rate) * old["q_mean_ema"] + rate * q.mean(),
            "q_std_ema": (1 - rate) * old["q_std_ema"] + rate * q.std(),
            "count": old["count"] + 1,
        }
        correction = -jnp.expm1(new["count"] * np.log1p(-rate))
        advantage = (q - new["q_mean_ema"] / correction) / (new["q_std_ema"] / correction + 1e-8)
        weight = jnp.exp(jnp.clip(advantage, -3, 3) / self.temperature)
        noisy = add_noise(self.schedule, next_action(batch), noise["eps"], t)
        error = ((denoise(actor, batch.next_obs, noisy, t) - noise["eps"]) ** 2).sum(-1)
        return (weight * error).mean(), new

    def arrays(self) -> dict[str, np.ndarray]:
        """All parameters, by the names of `diffac_equinox.to_arrays` of a learner's state."""
        found = {}
        for role in ("actor", "ema_actor"):
            for part, layers in (self.state[role] or {}).items():
                for i, (weight, bias) in enumerate(layers):
                    found |= {f"{role}.{part}.{i}.weight": weight, f"{role}.{part}.{i}.bias": bias}
        for role in ("critic", "target_critic"):
            for i, members in enumerate(zip(*self.state[f"{role}s"], strict=True)):
                for name, arrays in zip(("weight", "bias"), zip(*members, strict=True), strict=True):
                    found[f"{role}.layers.{i}.{name}"] = jnp.stack(arrays)
        return {name: np.asarray(array) for name, array in found.items()}


def _layers(arrays: Mapping[str, np.ndarray], prefix: str, member: int | None = None) -> Layers:
    """Weight and bias of each layer, of one member of an ensemble."""
    pick = slice(None) if member is None else member
    count = sum(name.startswith(f"{prefix}.") for name in arrays) // 2
    return [
        (jnp.asarray(arrays[f"{prefix}.{i}.weight"][pick]), jnp.asarray(arrays[f"{prefix}.{i}.bias"][pick]))
        for i in range(count)
    ]
