"""The recipes in JAX the way public codes are written: the yardstick, never used for training.

As `naive_torch`, with what is usual in JAX: one compiled program for each update, chains as a scan, candidates by vmap.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffac_equinox as ours
from diffac.noise import EXPLORATION
from diffac.protocols import Array, Batch, Rollout
from diffac_equinox.engine.random import draw, key_data, stream
from diffac_equinox.parts.coefficients import value_at
from diffac_equinox.parts.diffusion import add_noise, noise_between, posterior_mean, remove_noise
from diffac_equinox.parts.diffusion import score as score_of
from diffac_equinox.parts.objectives import _truncated_normal

Layers = list[tuple[Array, Array]]
ACTIVATIONS = {"mish": jax.nn.mish, "relu": jax.nn.relu, "gelu": functools.partial(jax.nn.gelu, approximate=False)}


def mlp(layers: Layers, x: Array, activation: str = "mish") -> Array:
    """[*batch in] -> [*batch out], with an activation between the layers."""
    for weight, bias in layers[:-1]:
        x = ACTIVATIONS[activation](x @ weight.T + bias)
    weight, bias = layers[-1]
    return x @ weight.T + bias


def denoise(
    actor: Mapping[str, Any], obs: Array, noisy: Array, t: Array, r: Array | None = None, activation: str = "mish"
) -> Array:
    """What the network predicts [batch act]; t [batch] or a scalar; a mean velocity takes the time r where it ends."""
    times = [t] if r is None else [t, t - r]
    waves = jnp.concatenate([ours.time_embedding(time).astype(noisy.dtype) for time in times], axis=-1)
    features = mlp(actor["time_layers"], waves, activation)
    features = jnp.broadcast_to(features, (len(obs), features.shape[-1]))
    return mlp(actor["layers"], jnp.concatenate([obs, noisy, features], axis=-1), activation)


def next_action(batch: Batch) -> Array:
    """The policy's at the next observations."""
    assert batch.next_rollout is not None
    return batch.next_rollout.action


class Naive:
    """One recipe with its networks, optimisers and slow copies; arguments as in `naive_torch.Naive`."""

    def __init__(self, learner: Any, actor: Any, critic: Any) -> None:
        self.learner = learner
        self.chain: Any = learner.sampler
        while hasattr(self.chain, "sampler"):
            self.chain = self.chain.sampler
        self.schedule = getattr(self.chain, "schedule", None)
        self.velocity = getattr(actor, "prediction", None) == "velocity"
        self.has_ema = "ema" in (learner.acting_actor, learner.target_actor)
        self.activation, self.actor_activation = critic.activation, actor.activation
        self.gaussian = isinstance(self.chain, ours.TanhGaussianSampler)
        self.langevin = isinstance(self.chain, ours.LangevinSampler)
        self.log_std_bounds = getattr(actor, "log_std_min", None), getattr(actor, "log_std_max", None)
        names = ours.to_arrays(actor)
        raw = {name: jnp.asarray(names[name]) for name in names if name.startswith("raw_")}
        actor = {part: _layers(names, part) for part in ("time_layers", "layers") if f"{part}.0.weight" in names} | raw
        critics = [_layers(ours.to_arrays(critic), "layers", member) for member in range(2)]
        dtype = critics[0][0][0].dtype
        self.atoms = None
        if isinstance(learner.critic_objective, ours.CategoricalTD):
            self.atoms = jnp.linspace(critic.v_min, critic.v_max, critic.num_atoms, dtype=dtype)
        omega = {"omega": jnp.zeros(2, dtype)} if isinstance(learner.critic_objective, ours.GaussianTD) else {}
        self.temperature = jnp.exp(jnp.asarray(learner.temperature.init_state()["log_temperature"], dtype))
        self.state = {
            "actor": actor,
            "ema_actor": actor if self.has_ema else None,
            "critics": critics,
            "target_critics": critics,
            "actor_adam": learner.actor_optimiser.init(actor),
            "critic_adam": learner.critic_optimiser.init(critics),
            "critic_state": omega,
            "actor_state": {
                name: jnp.asarray(array, dtype if array.dtype.kind == "f" else array.dtype)
                for name, array in ((k, np.asarray(v)) for k, v in learner.actor_objective.init_state().items())
            },
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
        target = learner.of_target
        slow = state["ema_actor"] if learner.target_actor == "ema" else state["actor"]
        ranking = state["target_critics"] if learner.target_ranking == "target" else state["critics"]
        action = self.act(slow, ranking, batch.next_obs, noise["next_action"], target)
        reward = learner.reward_scale * batch.reward
        if isinstance(target, ours.LogProbability):
            noises = noise["next_action"]["noises"]
            log_prob = self.log_prob(target, state["actor"], batch.next_obs, action, noises)
            reward -= batch.discount * self.temperature * log_prob
        elif self.gaussian or self.langevin:
            _, log_prob = self.drawn(slow, batch.next_obs, noise["next_action"])
            reward -= batch.discount * self.temperature * log_prob
        batch = batch._replace(reward=reward, next_rollout=Rollout(action))
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
            "ema_actor": towards(state["ema_actor"], actor) if self.has_ema else None,
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
        if isinstance(self.chain, ours.MeanFlowSampler):
            return self.run_mean_flow(actor, obs, noise)

        def predict(noisy: Array, t: Array) -> Array:
            output = denoise(actor, obs, noisy, t)
            if self.velocity:  # of a flow
                return noisy - jnp.asarray(schedule.sigmas, noisy.dtype)[t] * output
            return remove_noise(schedule, noisy, output, t)

        def clipped(x: Array, what: str) -> Array:
            return jnp.clip(x, -1, 1) if self.chain.clip == what else x

        def back(noisy: Array, t_and_noise: tuple[Array, Array]) -> tuple[Array, Array]:
            t, eps = t_and_noise
            if isinstance(self.chain, ours.DDIMSampler):
                action = jnp.clip(predict(noisy, t), -1, 1)
                return add_noise(schedule, action, noise_between(schedule, action, noisy, t), t - 1), noisy
            mean = posterior_mean(schedule, clipped(predict(noisy, t), "action"), noisy, t)
            return clipped(mean + jnp.asarray(self.chain.step_std, eps.dtype)[t] * eps, "state"), noisy

        times = jnp.arange(1, schedule.num_steps)
        steps = noise.get("steps", jnp.zeros(len(times)))
        noisy, later = jax.lax.scan(back, self.chain.first_scale * noise["start"], (times, steps), reverse=True)
        return jnp.clip(predict(noisy, jnp.int32(0)), -1, 1), jnp.concatenate([noisy[None], later])

    def run_mean_flow(self, actor: Any, obs: Array, noise: Mapping[str, Array]) -> tuple[Array, Array]:
        """The same of a mean flow."""
        times = jnp.linspace(0, 1, self.chain.num_steps + 1, dtype=noise["start"].dtype)

        def back(noisy: Array, r_and_t: tuple[Array, Array]) -> tuple[Array, Array]:
            r, t = r_and_t
            return noisy - (t - r) * denoise(actor, obs, noisy, t, r), noisy

        pairs = (times[:-1], times[1:])
        action, states = jax.lax.scan(back, self.chain.start_scale * noise["start"], pairs, reverse=True)
        return jnp.clip(action, -1, 1), states

    def act(self, actor: Any, critics: Any, obs: Array, noise: Mapping[str, Any], sampler: Any = None) -> Array:
        """The sampled action, with exploration noise; of several candidates the one that the critics prefer."""
        sampler = sampler or self.learner.sampler
        if isinstance(sampler, ours.AdditiveNoise):
            return sampler.explore(
                self.act(actor, critics, obs, noise["inner"], sampler.sampler), noise, self.temperature
            )
        if isinstance(sampler, ours.LogProbability):
            return self.act(actor, critics, obs, noise["inner"], sampler.sampler)
        if self.gaussian or self.langevin:
            return self.drawn(actor, obs, noise)[0]
        if not isinstance(sampler, ours.BestOf):
            return self.run_chain(actor, obs, noise)[0]
        many = jax.vmap(
            lambda one: self.act(actor, critics, obs, one, sampler.sampler), in_axes=(_axes(noise["candidates"]),)
        )
        actions = many(noise["candidates"])
        q = jax.vmap(lambda one: self.value(critics, obs, one))(actions)
        return jnp.take_along_axis(actions, q.argmax(0)[None, :, None], 0)[0]

    def drawn(self, actor: Any, obs: Array, noise: Mapping[str, Array]) -> tuple[Array, Array]:
        """DSAC-T's action and its log-probability, or DIME's and the log-ratio of its path."""
        if self.langevin:
            return self.path(actor, obs, noise)
        mean, log_std = jnp.split(mlp(actor["layers"], obs, self.actor_activation), 2, axis=-1)
        log_std = jnp.clip(log_std, *self.log_std_bounds)
        u = mean + jnp.exp(log_std) * noise[EXPLORATION]
        log_slope = 2 * (float(np.log(2)) - u - jax.nn.softplus(-2 * u))
        return jnp.tanh(u), (jax.scipy.stats.norm.logpdf(u, mean, jnp.exp(log_std)) - log_slope).sum(-1)

    def path(self, actor: Any, obs: Array, noise: Mapping[str, Array]) -> tuple[Array, Array]:
        """DIME: every step's log-probability forward, and back by the prior's diffusion."""
        density, std, variance = jax.scipy.stats.norm.logpdf, self.chain.prior_std, self.chain.prior_std**2
        step_size = jax.nn.softplus(actor["raw_delta"]) / jax.nn.softplus(actor["raw_precision"])
        factors = jnp.asarray(self.chain.step_factors, step_size.dtype)

        def step(carry: tuple[Array, Array], t_and_noise: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
            (x, log_ratio), (t, xi) = carry, t_and_noise
            eta = factors[t] * step_size
            drift = denoise(actor, obs, x, t, activation=self.actor_activation) - x / variance
            mean, scale = x + eta * drift, jnp.sqrt(2 * eta)
            after = mean + scale * xi
            back = density(x, after - eta * after / variance, scale)
            return (after, log_ratio + density(after, mean, scale) - back), None

        x = std * noise["start"]
        times = jnp.arange(self.chain.num_steps)
        (x, log_ratio), _ = jax.lax.scan(step, (x, density(x, 0.0, std)), (times, noise["steps"]), reverse=True)
        log_slope = 2 * (float(np.log(2)) - x - jax.nn.softplus(-2 * x))
        return jnp.tanh(x), (log_ratio - log_slope).sum(-1)

    def log_prob(self, sampler: Any, actor: Any, obs: Array, action: Array, noises: Array) -> Array:
        """MaxEntDP: at each time the denoiser is evaluated once for each noise, beside a copy of the state."""
        schedule, d = self.schedule, action.shape[-1]

        def term(inputs: tuple[Array, ...]) -> Array:
            t, eps, signal, weight = inputs

            def square(one: Array) -> Array:
                noisy = add_noise(schedule, action, one, t)
                predicted = jnp.clip(remove_noise(schedule, noisy, denoise(actor, obs, noisy, t), t), -1, 1)
                return ((one - noise_between(schedule, predicted, noisy, t)) ** 2).sum(-1)

            return weight * (signal * d - jax.vmap(square)(eps).mean(0))

        tables = (jnp.asarray(table, action.dtype) for table in sampler.signal_and_weight)
        terms = jax.lax.map(term, (jnp.arange(schedule.num_steps), noises, *tables))
        return terms.sum(0) - d / 2 * float(np.log(2 * np.pi * np.e))

    def outputs(self, critic: Layers, pair: Array) -> Array:
        """[batch out]"""
        return mlp(critic, pair, self.activation)

    def gaussians(self, critic: Layers, pair: Array) -> tuple[Array, Array]:
        """Mean and standard deviation, each [batch]."""
        output = self.outputs(critic, pair)
        return output[:, 0], jax.nn.softplus(output[:, 1])

    def value(self, critics: list[Layers], obs: Array, action: Array) -> Array:
        """The smaller of the two values (of the means), [batch]; of two categorical critics their mean (DIME)."""
        pair = jnp.concatenate([obs, action], axis=-1)
        if self.atoms is not None:
            return sum(jax.nn.softmax(self.outputs(critic, pair)) @ self.atoms for critic in critics) / 2
        return jnp.minimum(*(self.outputs(critic, pair)[:, 0] for critic in critics))

    def critic_loss(self, critics: Any, state: Any, batch: Batch, noise: Any) -> tuple[Array, Any]:
        """Temporal difference of both critics, and the new state of the objective."""
        objective = self.learner.critic_objective
        discount = batch.discount
        pair = jnp.concatenate([batch.obs, batch.action], axis=-1)
        if isinstance(objective, ours.MeanSquaredTD):
            y = batch.reward + discount * self.value(state["target_critics"], batch.next_obs, next_action(batch))
            return sum(((self.outputs(critic, pair)[:, 0] - y) ** 2).mean() for critic in critics), {}
        next_pair = jnp.concatenate([batch.next_obs, jnp.asarray(next_action(batch))], axis=-1)
        if self.atoms is not None:
            goal = self.projected(state["target_critics"], next_pair, batch)
            outputs = (jax.nn.log_softmax(self.outputs(critic, pair)) for critic in critics)
            return sum(-(goal * output).sum(-1).mean() for output in outputs), {}
        means, stds = zip(*(self.gaussians(critic, next_pair) for critic in state["target_critics"]), strict=True)
        mean, std = jnp.minimum(*means), jnp.where(means[0] <= means[1], *stds)
        y = batch.reward + discount * mean
        y_z = batch.reward + discount * (mean + std * jnp.clip(noise["target"], -3, 3))
        losses, omegas = [], []
        for critic, omega in zip(critics, state["critic_state"]["omega"], strict=True):
            q, std = self.gaussians(critic, pair)
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

    def projected(self, critics: Any, next_pair: Array, batch: Batch) -> Array:
        """DIME: the average of both slow critics' distributions, moved and projected as in C51."""
        probabilities = sum(jax.nn.softmax(self.outputs(critic, next_pair)) for critic in critics) / 2
        low, high, last = self.atoms[0], self.atoms[-1], len(self.atoms) - 1
        returns = jnp.asarray(batch.reward)[:, None] + jnp.asarray(batch.discount)[:, None] * self.atoms
        place = (jnp.clip(returns, low, high) - low) * last / (high - low)
        below = jnp.minimum(jnp.floor(place), last - 1)
        index, rows = below.astype(int), jnp.arange(len(place))[:, None]
        goal = jnp.zeros_like(probabilities).at[rows, index].add(probabilities * (1 - (place - below)))
        return goal.at[rows, index + 1].add(probabilities * (place - below))

    def actor_loss(self, actor: Any, state: Any, batch: Batch, noise: Any) -> tuple[Array, Any]:
        """The loss that the recipe is named after, and the new state of the objective."""
        objective, critics, obs = self.learner.actor_objective, state["critics"], batch.obs
        if isinstance(objective, ours.EntropyRegularisedValue):
            action, log_prob = self.drawn(actor, obs, noise["rollout"])
            return (self.temperature * log_prob - self.value(critics, obs, action)).mean(), {}
        if isinstance(objective, ours.ValueThroughSampler):
            return -self.value(critics, obs, self.act(actor, critics, obs, noise["rollout"])).mean(), {}
        if isinstance(objective, ours.Sum) and len(objective.terms) == 1:
            ((weight, gradient),) = objective.terms
            if isinstance(gradient, ours.ReweightedScoreMatching) and isinstance(
                gradient.proposal, ours.QWeightedProposal
            ):
                return weight * self.best_loss(gradient.proposal, actor, state, obs, noise["term0"]), {}
            if isinstance(gradient, ours.ReweightedScoreMatching) and isinstance(
                gradient.proposal, ours.ImprovedReplayProposal
            ):
                loss, new = self.improved_loss(gradient.proposal, actor, state, batch, noise["term0"])
                return weight * loss, new
            if isinstance(gradient, ours.ReweightedScoreMatching):
                return weight * self.reverse_loss(gradient.proposal, actor, state, batch, noise["term0"]), {}
            return weight * self.q_loss(gradient, actor, critics, batch, noise["term0"]), {}
        if isinstance(objective, ours.Sum):
            (first, _), (second, gradient) = objective.terms
            rollout = noise["rollout"]
            action, states = self.run_chain(actor, obs, rollout["inner"])
            action = self.learner.sampler.explore(action, rollout, self.temperature)
            loss = first * -self.value(critics, obs, action).mean()
            return loss + second * self.score_loss(gradient, actor, critics, obs, states), {}
        if isinstance(objective, ours.MeanFlowMatching):
            return self.mean_flow_loss(objective, actor, state, batch, noise)
        if isinstance(objective.proposal, ours.PolicyProposal):
            return self.policy_loss(objective.proposal, actor, state, batch, noise)
        if objective.proposal.gradient_weight == "minimum_variance":
            return self.variance_loss(objective.proposal, actor, state, obs, noise)
        if objective.proposal.uses_gradient:
            return self.energy_loss(objective.proposal, actor, state, obs, noise), state["actor_state"]
        return self.reverse_loss(objective.proposal, actor, state, batch, noise), state["actor_state"]

    def score_loss(self, gradient: Any, actor: Any, critics: Any, obs: Array, states: Array) -> Array:
        """DACER2's second term, at the states of the chain."""
        rows = jnp.tile(obs, (len(states), 1))
        noisy = jax.lax.stop_gradient(states.reshape(len(rows), -1))
        t = jnp.repeat(jnp.arange(len(states)), len(obs))
        slope = jax.grad(lambda action: self.value(critics, rows, action).sum())(noisy)
        weight = jnp.exp(gradient.slope * (t + gradient.time_offset) + gradient.intercept).astype(slope.dtype)
        target = weight[:, None] * slope / (jnp.linalg.norm(slope, axis=-1, keepdims=True) + 1e-8)
        score = score_of(self.schedule, denoise(actor, rows, noisy, t), t)
        return ((score - target) ** 2).sum(-1).mean()

    def q_loss(self, objective: Any, actor: Any, critics: Any, batch: Batch, noise: Any) -> Array:
        """QSM: the noise is minus the gradient of the mean of both values, at replayed actions noised to all times."""
        steps = self.schedule.num_steps
        rows, t = jnp.tile(batch.obs, (steps, 1)), jnp.repeat(jnp.arange(steps), len(batch.obs))
        eps = noise["eps"].reshape(len(rows), -1)
        noisy = add_noise(self.schedule, jnp.tile(batch.action, (steps, 1)), eps, t)

        def mean(action: Array) -> Array:
            pair = jnp.concatenate([rows, action], axis=-1)
            first, second = (self.outputs(critic, pair).sum() for critic in critics)
            return (first + second) / 2

        slope = jax.grad(mean)(noisy)
        scale = float(np.exp(objective.intercept))
        return ((denoise(actor, rows, noisy, t) + scale * slope) ** 2).sum(-1).mean()

    def reverse_loss(self, proposal: Any, actor: Any, state: Any, batch: Batch, noise: Any) -> Array:
        """SDAC and MaxEntDP: the denoiser is evaluated once for each particle."""
        count, t, schedule, critics = proposal.num_particles, noise["t"], self.schedule, state["critics"]
        obs, action = batch.obs, batch.action
        if proposal.source == "policy":
            action = self.act(jax.lax.stop_gradient(actor), critics, obs, noise["rollout"])
        noisy = add_noise(schedule, action, noise["eps"], t)
        mean = remove_noise(schedule, noisy, jnp.zeros_like(noisy), t)
        std = remove_noise(schedule, jnp.zeros_like(noisy), -jnp.ones_like(noisy), t)
        guesses = _truncated_normal(mean, std, noise["particles"])
        eps = (mean - guesses) / std
        rows = jnp.tile(obs, (count, 1))
        q = self.value(critics, rows, guesses.reshape(len(rows), -1)).reshape(count, -1)
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
            q = self.value(critics, rows, guesses.reshape(len(rows), -1)).reshape(count, -1)
            return jax.nn.logsumexp(q * proposal.value_scale, axis=0).sum()

        slope = jax.grad(log_mean)(noisy)
        target = -add_noise(schedule, jnp.zeros_like(slope), slope, t)
        noisy, target = jax.lax.stop_gradient((noisy, target))
        return ((denoise(actor, obs, noisy, t) - target) ** 2).sum(-1).mean()

    def variance_loss(
        self, proposal: Any, actor: Any, state: Any, obs: Array, noise: Any
    ) -> tuple[Array, dict[str, Array]]:
        """RFM: noises and gradients mixed by the ratio of two moving averages for each time."""
        old, t, eps, schedule = state["actor_state"], noise["t"], noise["particles"], self.schedule
        action = self.act(jax.lax.stop_gradient(actor), state["critics"], obs, noise["rollout"])
        noisy = add_noise(schedule, action, noise["eps"], t)
        free = remove_noise(schedule, noisy, eps, t)
        guesses = jnp.clip(free, -1, 1)

        def total(actions: Array) -> tuple[Array, Array]:
            q = jax.vmap(lambda one: self.value(state["critics"], obs, one))(actions)
            return q.sum(), q

        slope, q = jax.grad(total, has_aux=True)(guesses)
        scale = proposal.value_scale / self.temperature
        far = (free - guesses) / proposal.outside_std
        weight = jax.nn.softmax(q * scale - (far**2).sum(-1) / 2, axis=0)[..., None]
        slope = scale * slope * (jnp.abs(guesses) < 1) - far / proposal.outside_std
        d = remove_noise(schedule, jnp.zeros_like(noisy), slope, t) - eps
        variance = old["gradient_variance"]
        h = jnp.where(variance > 1e-12, -old["gradient_covariance"] / jnp.maximum(variance, 1e-12), 0)
        target = (weight * (eps + h[t][:, None] * d)).sum(0)
        eps, d = (x - (weight * x).sum(0) for x in (eps, d))
        moments = {
            "gradient_covariance": (weight**2 * eps * d).sum((0, 2)),
            "gradient_variance": (weight**2 * d * d).sum((0, 2)),
        }
        is_at = (t == jnp.arange(schedule.num_steps)[:, None]).astype(d.dtype)
        count = is_at.sum(1)
        new = {
            name: jnp.where(
                count > 0,
                before + proposal.rate * (is_at @ moments[name] / jnp.maximum(count, 1) - before),
                before,
            )
            for name, before in old.items()
        }
        noisy, target = jax.lax.stop_gradient((noisy, target))
        due = state["updates"] % self.learner.actor_delay == 0
        new = jax.tree.map(lambda after, before: jnp.where(due, after, before), new, dict(old))
        return ((denoise(actor, obs, noisy, t) - target) ** 2).sum(-1).mean(), new

    def best_loss(self, proposal: Any, actor: Any, state: Any, obs: Array, noise: Any) -> Array:
        """QVPO: the best of the policy's actions by their advantage, and uniform ones."""
        fixed, critics = jax.lax.stop_gradient(actor), state["critics"]
        candidates = noise["candidates"]
        one = lambda own: self.act(fixed, critics, obs, own, proposal.sampler)  # noqa: E731
        drawn = jax.vmap(one, in_axes=(_axes(candidates),))(candidates)
        q = jax.vmap(lambda actions: self.value(critics, obs, actions))(drawn)
        best = jnp.take_along_axis(drawn, q.argmax(0)[None, :, None], 0)
        advantage = q.max(0) - q.mean(0)
        clean = jnp.concatenate([best, 2 * noise["uniform"] - 1])
        omega = value_at(proposal.uniform_weight, state["updates"], q.dtype)
        share = jnp.where(jnp.arange(len(clean)) == 0, 1, omega).astype(q.dtype)[:, None]
        noisy = add_noise(self.schedule, clean, noise["eps"], noise["t"])
        predicted = jax.vmap(lambda actions, t: denoise(actor, obs, actions, t))(noisy, noise["t"])
        return (share * advantage * ((predicted - noise["eps"]) ** 2).sum(-1)).mean()

    def improved_loss(
        self, proposal: Any, actor: Any, state: Any, batch: Batch, noise: Any
    ) -> tuple[Array, dict[str, Array]]:
        """DIPO: replayed actions after steps of Adam up the values, kept for the next time."""
        actions, numbers = (state["actor_state"][f"term0.{name}"] for name in ("action", "replay_number"))
        number = jnp.asarray(batch.number).astype(numbers.dtype)
        row = number % proposal.capacity
        kept = numbers[row] == number
        position = jnp.where(kept[:, None], actions[row], batch.action)
        adam = optax.adam(proposal.learning_rate, eps=proposal.eps)

        def step(carry: Any, _: None) -> tuple[Any, None]:
            position, moments = carry
            gradient = jax.grad(lambda action: -self.value(state["critics"], batch.obs, action).sum())(position)
            if proposal.max_grad_norm is not None:
                gradient *= jnp.minimum(1, proposal.max_grad_norm / jnp.linalg.norm(gradient))
            change, moments = adam.update(gradient, moments)
            return (jnp.clip(position + change, -1, 1), moments), None

        (improved, _), _ = jax.lax.scan(step, (position, adam.init(position)), length=proposal.num_steps)
        new = {"term0.action": actions.at[row].set(improved), "term0.replay_number": numbers.at[row].set(number)}
        noisy = add_noise(self.schedule, improved, noise["eps"], noise["t"])
        noisy, new = jax.lax.stop_gradient((noisy, new))
        return ((denoise(actor, batch.obs, noisy, noise["t"]) - noise["eps"]) ** 2).sum(-1).mean(), new

    def mean_flow_loss(
        self, objective: Any, actor: Any, state: Any, batch: Batch, noise: Any
    ) -> tuple[Array, dict[str, Array]]:
        """MeanFlow: the mean velocity is the velocity minus the derivative along the path, by forward mode."""
        weight, new = self.weights(objective.proposal, state, batch)
        t, r = noise["times"].max(0), noise["times"].min(0)
        r = jnp.where(noise["equal"] < objective.equal_fraction, t, r)
        velocity = noise["proposal"]["eps"] - next_action(batch)
        noisy = next_action(batch) + t[:, None] * velocity
        u, change = jax.jvp(
            lambda position, time: denoise(actor, batch.next_obs, position, time, r),
            (noisy, t),
            (velocity, jnp.ones_like(t)),
        )
        target = velocity - (t - r)[:, None] * jax.lax.stop_gradient(change)
        return (weight * ((u - target) ** 2).sum(-1)).mean(), new

    def policy_loss(
        self, proposal: Any, actor: Any, state: Any, batch: Batch, noise: Any
    ) -> tuple[Array, dict[str, Array]]:
        """DPMD and FPMD: the policy's own actions, weighted by their value over its running deviation."""
        t = noise["t"]
        weight, new = self.weights(proposal, state, batch)
        noisy = add_noise(self.schedule, next_action(batch), noise["eps"], t)
        target = noise["eps"] - next_action(batch) if self.velocity else noise["eps"]
        error = ((denoise(actor, batch.next_obs, noisy, t) - target) ** 2).sum(-1)
        return (weight * error).mean(), new

    def weights(self, proposal: Any, state: Any, batch: Batch) -> tuple[Array, dict[str, Array]]:
        """Of the policy's own actions, and the new running moments."""
        old, rate = state["actor_state"], proposal.rate
        q = self.value(state["critics"], batch.next_obs, next_action(batch))
        new = {
            "q_mean_ema": (1 - rate) * old["q_mean_ema"] + rate * q.mean(),
            "q_std_ema": (1 - rate) * old["q_std_ema"] + rate * q.std(),
            "count": old["count"] + 1,
        }
        correction = -jnp.expm1(new["count"] * np.log1p(-rate))
        unit = new["q_std_ema"] / correction + 1e-8
        if proposal.centred:
            weight = jnp.exp(jnp.clip((q - new["q_mean_ema"] / correction) / unit, -3, 3) / self.temperature)
        else:
            weight = jnp.exp(proposal.value_scale * (q - q.max()) / unit)
        return weight, new

    def arrays(self) -> dict[str, np.ndarray]:
        """All parameters, by the names of `diffac_equinox.to_arrays` of a learner's state."""
        found = {}
        for role in ("actor", "ema_actor"):
            for part, layers in (self.state[role] or {}).items():
                if part.startswith("raw_"):
                    found[f"{role}.{part}"] = layers
                    continue
                for i, (weight, bias) in enumerate(layers):
                    found |= {f"{role}.{part}.{i}.weight": weight, f"{role}.{part}.{i}.bias": bias}
        for role in ("critic", "target_critic"):
            for i, members in enumerate(zip(*self.state[f"{role}s"], strict=True)):
                for name, arrays in zip(("weight", "bias"), zip(*members, strict=True), strict=True):
                    found[f"{role}.layers.{i}.{name}"] = jnp.stack(arrays)
        return {name: np.asarray(array) for name, array in found.items()}


def _axes(noise: Any, name: str = "") -> Any:
    """The axis of the candidates in each entry."""
    return {k: _axes(v, k) for k, v in noise.items()} if isinstance(noise, Mapping) else int(name == "steps")


def _layers(arrays: Mapping[str, np.ndarray], prefix: str, member: int | None = None) -> Layers:
    """Weight and bias of each layer, of one member of an ensemble."""
    pick = slice(None) if member is None else member
    count = sum(name.startswith(f"{prefix}.") for name in arrays) // 2
    return [
        (jnp.asarray(arrays[f"{prefix}.{i}.weight"][pick]), jnp.asarray(arrays[f"{prefix}.{i}.bias"][pick]))
        for i in range(count)
    ]
