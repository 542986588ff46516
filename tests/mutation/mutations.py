"""The mistakes that the test suite must notice, each a replacement of one line in a backend or a declaration."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Edit(NamedTuple):
    """A replacement in one file."""

    file: str
    """In the backend's package; or, with "diffac/" before it, in `diffac`, which declares for all backends."""
    old: str
    """Must occur exactly once in the file; may contain neighbouring lines for that."""
    new: str

    def find(self, backend: str, diffac: Path, backends: Path) -> Path:
        """The file, given the folder of `diffac` and the one that holds the backends."""
        of_diffac = self.file.removeprefix("diffac/")
        return backends / f"diffac_{backend}" / self.file if of_diffac == self.file else diffac / of_diffac


class Mutation(NamedTuple):
    """One mistake, in one backend or the same in several."""

    name: str
    rows: str
    """pytest expression for the rows of `diffac.testing.parts` that should notice it first."""
    edits: dict[str, Edit]
    """Backend -> replacement."""


def torch(name: str, rows: str, file: str, old: str, new: str) -> Mutation:
    """A mistake in the torch backend, whose tests need no compilation."""
    return Mutation(name, rows, {"torch": Edit(file, old, new)})


def both(name: str, rows: str, file: str, torch: tuple[str, str], equinox: tuple[str, str]) -> Mutation:
    """The same mistake in both backends, which go on to agree with each other."""
    return Mutation(name, rows, {"torch": Edit(file, *torch), "equinox": Edit(file, *equinox)})


def declared(name: str, rows: str, file: str, old: str, new: str) -> Mutation:
    """A mistake in a declaration, which both backends make."""
    edit = Edit(f"diffac/{file}", old, new)
    return Mutation(name, rows, {"torch": edit, "equinox": edit})


OBJECTIVES = [
    torch(
        "value: max of the critics",
        "objective-value",
        "parts/objectives.py",
        "_reduced(critic(batch.obs, action), self.ensemble)",
        "critic(batch.obs, action).amax(0)",
    ),
    torch("value: sign", "objective-value", "parts/objectives.py", "Loss(-q / unit, {", "Loss(q / unit, {"),
    torch(
        "value: entries on the boundary not counted as clipped",
        "objective-value",
        "parts/objectives.py",
        "action.detach().abs() >= 1)",
        "action.detach().abs() > 1)",
    ),
    torch(
        "value: a shared rollout ignored",
        "objective-sum",
        "parts/objectives.py",
        "            action = rollout.action\n",
        "            action = rollout.action.detach()\n",
    ),
    torch(
        "q-gradient: states not detached",
        "objective-sum",
        "parts/objectives.py",
        "self.chain_states(rollout).detach()",
        "self.chain_states(rollout)",
    ),
    torch(
        "q-gradient: norm over the batch",
        "objective-time_weighted",
        "parts/objectives.py",
        "vector_norm(gradient, dim=-1,",
        "vector_norm(gradient, dim=-2,",
    ),
    torch(
        "q-gradient: not normalised",
        "objective-time_weighted",
        "parts/objectives.py",
        "weight * (gradient / (norm + 1e-8)",
        "weight * (gradient",
    ),
    torch(
        "q-gradient: mean over action entries",
        "objective-time_weighted",
        "parts/objectives.py",
        "residual.square().sum(-1).mean()",
        "residual.square().mean()",
    ),
    torch(
        "q-gradient: sign in the space of noises",
        "objective-time_weighted_eps",
        "parts/objectives.py",
        "eps + add_noise(self.schedule, torch.zeros_like(target)",
        "eps - add_noise(self.schedule, torch.zeros_like(target)",
    ),
    declared(
        "q-gradient: action of the buffer for the policy's",
        "objective-time_weighted_score_forward",
        "parts/objectives.py",
        "return rollout.action if rollout.noise_free is None else rollout.noise_free",
        "return replay",
    ),
    torch(
        "value: relative to the sum of the values",
        "objective-value_relative",
        "parts/objectives.py",
        "values.detach().abs().mean()",
        "values.detach().abs().sum()",
    ),
    torch(
        "value: a unit with gradient",
        "objective-value_relative",
        "parts/objectives.py",
        "values.detach().abs().mean()",
        "values.abs().mean()",
    ),
    torch(
        "q-gradient: contractive step from the noisy action",
        "objective-time_weighted_contractive",
        "parts/objectives.py",
        "improved = (start + self.contractive_step * target).clamp(-1, 1)",
        "improved = (noisy + self.contractive_step * target).clamp(-1, 1)",
    ),
    torch(
        "q-gradient: contractive step leaves the box",
        "objective-time_weighted_contractive",
        "parts/objectives.py",
        "improved = (start + self.contractive_step * target).clamp(-1, 1)",
        "improved = start + self.contractive_step * target",
    ),
    both(
        "q-gradient: contractive target with gradient",
        "objective-time_weighted_contractive",
        "parts/objectives.py",
        ("output.detach(), noisy, t).clamp", "output, noisy, t).clamp"),
        ("jax.lax.stop_gradient(output), noisy, t)", "output, noisy, t)"),
    ),
    declared(
        "q-gradient: exploration noise in the action that is noised",
        "objective-time_weighted_forward_noisy",
        "parts/objectives.py",
        "return rollout.action if rollout.noise_free is None else rollout.noise_free",
        "return rollout.action",
    ),
    torch(
        "q-gradient: max of the critics",
        "objective-time_weighted",
        "parts/objectives.py",
        "_reduced(critic(obs, position), ensemble)",
        "critic(obs, position).amax(0)",
    ),
    both(
        "reverse: noise alone in place of noised replay actions",
        "objective-reverse_replay",
        "parts/objectives.py",
        ('t, action = noise["t"], batch.action', 't, action = noise["t"], 0 * batch.action'),
        ('t, action = noise["t"], batch.action', 't, action = noise["t"], 0 * batch.action'),
    ),
    both(
        "mean squared: entropy with the sign of a log-probability",
        "critic_objective-mean_squared_soft",
        "parts/critics.py",
        ('entropy["entropy"] = -log_prob', 'entropy["entropy"] = log_prob'),
        ('entropy["entropy"] = -log_prob', 'entropy["entropy"] = log_prob'),
    ),
    both(
        "q-gradient: always normalised",
        "objective-time_weighted_plain",
        "parts/objectives.py",
        ("(gradient / (norm + 1e-8) if self.normalised else gradient)", "gradient / (norm + 1e-8)"),
        ("(g / (norm + 1e-8) if self.normalised else g)", "g / (norm + 1e-8)"),
    ),
    both(
        "q-gradient: noise aimed at with the sign of a score",
        "objective-time_weighted_plain",
        "parts/objectives.py",
        ("target = score(self.schedule, -target, t)", "target = score(self.schedule, target, t)"),
        ("target = score(self.schedule, -target, t)", "target = score(self.schedule, target, t)"),
    ),
    both(
        "q-gradient: noise aimed at taken for a score",
        "objective-time_weighted_plain",
        "parts/objectives.py",
        ('if self.target == "eps":', 'if self.target == "none":'),
        ('if self.target == "eps":', 'if self.target == "none":'),
    ),
    torch(
        "score matching: spread dropped",
        "objective-reverse",
        "parts/objectives.py",
        "(data.weight * error + data.spread).mean()",
        "(data.weight * error).mean()",
    ),
    torch(
        "score matching: mean of the weights",
        "objective-policy",
        "parts/objectives.py",
        "(data.weight * error + data.spread)",
        "(data.weight.mean() * error + data.spread)",
    ),
    torch(
        "score matching: mean over action entries",
        "objective-reverse",
        "parts/objectives.py",
        "data.target).square().sum(-1)",
        "data.target).square().mean(-1)",
    ),
    torch(
        "reverse: softmax over the batch",
        "objective-reverse",
        "parts/objectives.py",
        "torch.softmax(logits, dim=0)",
        "torch.softmax(logits, dim=1)",
    ),
    torch(
        "reverse: multiplied by the temperature",
        "objective-reverse",
        "parts/objectives.py",
        "scale = self.value_scale / temperature if",
        "scale = self.value_scale * temperature if",
    ),
    torch(
        "reverse: mean of the critics",
        "objective-reverse",
        "parts/objectives.py",
        "_reduced(critic(batch.obs, actions), self.ensemble)",
        "critic(batch.obs, actions).mean(0)",
    ),
    torch(
        "reverse: noise shared between particles",
        "objective-reverse",
        "parts/objectives.py",
        'guesses(schedule, noisy, t, noise["particles"])',
        'guesses(schedule, noisy, t, noise["particles"][:1].expand_as(noise["particles"]))',
    ),
    torch(
        "reverse: guesses not clipped",
        "objective-reverse",
        "parts/objectives.py",
        "actions = free.clamp(-1, 1)",
        "actions = free",
    ),
    torch(
        "reverse: mirrored guesses not mirrored back",
        "objective-reverse_truncated",
        "parts/objectives.py",
        "torch.where(mirrored, -action, action).clamp",
        "action.clamp",
    ),
    torch(
        "reverse: uniform numbers not mirrored",
        "objective-reverse_truncated",
        "parts/objectives.py",
        "torch.where(mirrored, 1 - u, u).clamp",
        "u.clamp",
    ),
    torch(
        "reverse: noise of the guesses with the wrong sign",
        "objective-reverse_truncated",
        "parts/objectives.py",
        "(centre - action) / scale",
        "(action - centre) / scale",
    ),
    torch(
        "reverse: one time for the whole batch",
        "objective-reverse",
        "parts/objectives.py",
        't, action = noise["t"], batch',
        't, action = noise["t"][:1].expand_as(noise["t"]), batch',
    ),
    both(
        "reverse: gradients of clipped guesses counted",
        "objective-reverse_gradient",
        "parts/objectives.py",
        ("scale * gradient * (actions.abs() < 1)", "scale * gradient"),
        ("scale * gradient * (jnp.abs(a0) < 1)", "scale * gradient"),
    ),
    both(
        "reverse: nothing said against guesses outside",
        "objective-reverse_outside",
        "parts/objectives.py",
        ("logits = logits - 0.5", "logits = logits - 0.0"),
        ("logits -= 0.5", "logits -= 0.0"),
    ),
    both(
        "reverse: wall outside without slope",
        "objective-reverse_least_variance",
        "parts/objectives.py",
        ("slope = slope - (free", "slope = slope - 0 * (free"),
        ("slope -= (free", "slope -= 0 * (free"),
    ),
    both(
        "reverse: gradients with the wrong sign",
        "objective-reverse_gradient",
        "parts/objectives.py",
        ("torch.zeros_like(noisy), slope, t)", "torch.zeros_like(noisy), -slope, t)"),
        ("jnp.zeros_like(noisy), slope, t)", "jnp.zeros_like(noisy), -slope, t)"),
    ),
    both(
        "reverse: gradients not divided by lambda",
        "objective-reverse_gradient or objective-reverse_least_variance",
        "parts/objectives.py",
        ("slope = scale * gradient", "slope = gradient"),
        ("slope = scale * gradient", "slope = gradient"),
    ),
    torch(
        "reverse: always tempered",
        "objective-reverse_gradient",
        "parts/objectives.py",
        "scale = self.value_scale / temperature if self.tempered else self.value_scale",
        "scale = self.value_scale / temperature",
    ),
    torch(
        "reverse: weight of the gradients reversed in time",
        "objective-reverse_gradient_by_time",
        "parts/objectives.py",
        "_table(self.gradient_weight, dtype, t.device)[t]",
        "_table(self.gradient_weight[::-1], dtype, t.device)[t]",
    ),
    torch(
        "reverse: gradients in place of noises, whatever their weight",
        "objective-reverse_gradient_by_time",
        "parts/objectives.py",
        "target + h * (",
        "target + 1.0 * (",
    ),
    both(
        "reverse: weight of least variance with the wrong sign",
        "objective-reverse_least_variance or learner-rfm",
        "parts/objectives.py",
        ('-state["gradient_covariance"] /', 'state["gradient_covariance"] /'),
        ('-state["gradient_covariance"] /', 'state["gradient_covariance"] /'),
    ),
    torch(
        "reverse: weight of least variance from the same guesses",
        "objective-reverse_least_variance or learner-rfm",
        "parts/objectives.py",
        """                metrics["gradient_weight"] = h.mean()
                state = self._moved(state, t, weight, eps, difference)
""",
        """                metrics["gradient_weight"] = h.mean()
                state = self._moved(state, t, weight, eps, difference)
                h = self._gradient_weight(state, t, target.dtype)
""",
    ),
    both(
        "reverse: moments weighted once",
        "objective-reverse_least_variance",
        "parts/objectives.py",
        ("(share.square() * difference * other)", "(share * difference * other)"),
        ('"kb,kba,kba->b", w**2, eps, d)', '"kb,kba,kba->b", w, eps, d)'),
    ),
    torch(
        "reverse: moments not centred",
        "objective-reverse_least_variance",
        "parts/objectives.py",
        "eps, difference = _centred(eps, share), _centred(difference, share)",
        "eps, difference = _centred(eps, share), difference",
    ),
    torch(
        "reverse: moments of times without states forgotten",
        "objective-reverse_least_variance",
        "parts/objectives.py",
        "rate = self.rate * (count > 0)",
        "rate = self.rate",
    ),
    torch(
        "reverse: moments summed over the states at a time",
        "objective-reverse_least_variance",
        "parts/objectives.py",
        "@ at_time / count.clamp(min=1)",
        "@ at_time",
    ),
    both(
        "score matching: velocity towards the action in place of the noise",
        "objective-policy_output_flow",
        "parts/diffusion.py",
        ('"velocity": eps - action}', '"velocity": action - eps}'),
        ('"velocity": eps - action}', '"velocity": action - eps}'),
    ),
    both(
        "score matching: errors of the noise where those of the output are wanted",
        "objective-policy_output_flow or objective-reverse_output",
        "parts/objectives.py",
        ('if self.space == "output":\n            error', 'if self.space == "none":\n            error'),
        ('if self.space == "output":\n            error', 'if self.space == "none":\n            error'),
    ),
    torch(
        "score matching: output without weights",
        "objective-policy_output_flow",
        "parts/objectives.py",
        "(data.weight * error).mean()",
        "error.mean()",
    ),
    torch(
        "policy: clipped without a centre",
        "objective-policy_output_flow",
        "parts/objectives.py",
        "        if self.centred:\n            advantage = advantage.clamp(-3, 3)",
        "        advantage = advantage.clamp(-3, 3)",
    ),
    both(
        "policy: always centred",
        "objective-policy_output_flow",
        "parts/objectives.py",
        ("if self.centred else q.max()", "if True else q.max()"),
        ("if self.centred else q.max()", "if True else q.max()"),
    ),
    torch(
        "policy: always tempered",
        "objective-policy_output_flow",
        "parts/objectives.py",
        "advantage * (self.value_scale / temperature if self.tempered else self.value_scale)",
        "advantage * (self.value_scale / temperature)",
    ),
    torch(
        "policy: values of the present observations",
        "objective-policy",
        "parts/objectives.py",
        "q = _reduced(critic(batch.next_obs, next_action)",
        "q = _reduced(critic(batch.obs, next_action)",
    ),
    torch(
        "policy: moments rest where the actor does",
        "learner-dpmd",
        "learner.py",
        "new = track(state.critic, batch, state.actor_objective)",
        "new = state.actor_objective",
    ),
    declared(
        "policy: moments rest where the actor does, in both",
        "learner-dpmd",
        "parts/objectives.py",
        "return state if track is None else track(critic, batch, state)",
        "return state",
    ),
    torch(
        "policy: advantage not clipped",
        "objective-policy",
        "parts/objectives.py",
        "advantage.clamp(-3, 3)",
        "advantage",
    ),
    torch(
        "policy: rate of the averages swapped",
        "objective-policy",
        "parts/objectives.py",
        '(1 - self.rate) * state["q_mean_ema"] + self.rate * q.mean()',
        'self.rate * state["q_mean_ema"] + (1 - self.rate) * q.mean()',
    ),
    torch(
        "policy: averages that already contain the batch in the faithful variant",
        "objective-policy",
        "parts/objectives.py",
        'q - state["q_mean_ema"]',
        'q - new_state["q_mean_ema"]',
    ),
    torch(
        "entropy value: log-probability detached",
        "objective-entropy",
        "parts/objectives.py",
        "temperature * log_prob - q",
        "temperature * log_prob.detach() - q",
    ),
    declared(
        "sum: weights dropped",
        "objective-sum",
        "parts/objectives.py",
        "sum(weight * loss.value for",
        "sum(loss.value for",
    ),
    declared(
        "sum: states of the terms never renewed",
        "objective-sum",
        "parts/objectives.py",
        "array for name, array in loss.state.items()",
        'state[f"term{i}.{name}"] for name in loss.state',
    ),
]

SAMPLERS = [
    declared(
        "log-probability: the whole log-SNR in place of half",
        "sampler-log_probability",
        "parts/samplers.py",
        "/ (2 * signal * (1 - signal))",
        "/ (signal * (1 - signal))",
    ),
    declared(
        "log-probability: alpha squared taken for the share of the signal",
        "sampler-log_probability_velocity",
        "parts/samplers.py",
        "signal = table.alphas**2 / (table.alphas**2 + table.sigmas**2)",
        "signal = table.alphas**2 / (1.0 + 0 * table.sigmas**2)",
    ),
    declared(
        "log-probability: the interval before the first time left out",
        "sampler-log_probability",
        "parts/samplers.py",
        "np.append(1.0, signal[:-1]) - signal",
        "np.append(signal[0], signal[:-1]) - signal",
    ),
    both(
        "log-probability: predicted action not clipped",
        "sampler-log_probability",
        "parts/samplers.py",
        (".clamp(-1, 1)\n            error", "\n            error"),
        ("predicted = _clip(predicted_action(", "predicted = (predicted_action("),
    ),
    both(
        "log-probability: errors of all noises added up",
        "sampler-log_probability",
        "parts/samplers.py",
        ("error.square().sum(-1).mean(0)", "error.square().sum(-1).sum(0)"),
        ("(error**2).sum(-1).mean(0)", "(error**2).sum(-1).sum(0)"),
    ),
    both(
        "log-probability: that of a Gaussian's mode in place of its mean",
        "sampler-log_probability",
        "parts/samplers.py",
        ("math.log(2 * math.pi * math.e))\n        for t", "math.log(2 * math.pi))\n        for t"),
        ("math.log(2 * math.pi * math.e))\n        tables", "math.log(2 * math.pi))\n        tables"),
    ),
    both(
        "log-probability: differentiated",
        "objective-entropy_value_log_probability",
        "parts/samplers.py",
        ("    @torch.no_grad()\n    def _log_prob", "    def _log_prob"),
        ("_detached((policy.actor, inner.action))", "(policy.actor, inner.action)"),
    ),
    torch(
        "log-probability: the same noises at all times",
        "sampler-log_probability",
        "parts/samplers.py",
        "error = noises[t] - noise_between",
        "error = noises[0] - noise_between",
    ),
    declared(
        "cosine: from time 0 whatever the start",
        "schedule-cosine",
        "parts/schedules.py",
        "time = start + (end - start) * (",
        "time = end * (",
    ),
    both(
        "ddpm: states not clipped",
        "sampler-ddpm_state",
        "parts/samplers.py",
        ('if self.clip == "state":', 'if self.clip == "none":'),
        ('_clip(state) if self.clip == "state" else state', "state"),
    ),
    both(
        "ddpm: actions clipped where states are",
        "sampler-ddpm_state",
        "parts/samplers.py",
        ('if self.clip == "action":', "if self.clip:"),
        ('_clip(action) if self.clip == "action" else action', "_clip(action)"),
    ),
    declared(
        "ddpm: variance of the forward step without its ratio",
        "sampler-ddpm_state",
        "parts/samplers.py",
        "table.posterior_std[1:] * sigmas[1:] / sigmas[:-1]",
        "table.posterior_std[1:]",
    ),
    torch(
        "ddpm: one step too few",
        "sampler-ddpm",
        "parts/samplers.py",
        "range(schedule.num_steps - 1, 0, -1)",
        "range(schedule.num_steps - 1, 1, -1)",
    ),
    torch(
        "ddpm: start not scaled",
        "sampler-ddpm",
        "parts/samplers.py",
        'self.first_scale * noise["start"], self',
        'noise["start"], self',
    ),
    torch(
        "ddpm: predicted action not clipped on the way",
        "sampler-ddpm",
        "parts/samplers.py",
        'if self.clip == "action":\n                action = action',
        'if self.clip == "none":\n                action = action',
    ),
    torch(
        "ddpm: last prediction not clipped",
        "sampler-ddpm",
        "parts/samplers.py",
        "actor(cond, noisy, 0), noisy, 0).clamp(-1, 1)",
        "actor(cond, noisy, 0), noisy, 0)",
    ),
    torch(
        "ddpm: denoiser asked for the time before",
        "sampler-ddpm",
        "parts/samplers.py",
        "actor(cond, noisy, t), noisy, t)\n            if",
        "actor(cond, noisy, t - 1), noisy, t)\n            if",
    ),
    torch(
        "ddpm: noise in the last step",
        "sampler-ddpm",
        "parts/samplers.py",
        "return predicted_action(schedule, actor, actor(cond, noisy, 0), noisy, 0)",
        'return predicted_action(schedule, actor, actor(cond, noisy, 0), noisy + 0.1 * noise["start"], 0)',
    ),
    torch(
        "ddpm: states in the order of the chain",
        "sampler-ddpm",
        "parts/samplers.py",
        """all T states of the chain; obs may have fewer batch axes than the noise.\"""
        states: list[Tensor] = []
        action = self._chain(policy.actor, obs, noise, states)
        return Rollout(action, noisy=torch.stack(states[::-1]))""",
        """all T states of the chain; obs may have fewer batch axes than the noise.\"""
        states: list[Tensor] = []
        action = self._chain(policy.actor, obs, noise, states)
        return Rollout(action, noisy=torch.stack(states))""",
    ),
    torch(
        "ddim: last step at time 1",
        "sampler-ddim",
        "parts/samplers.py",
        "np.linspace(0, last,",
        "np.linspace(1, last,",
    ),
    torch("ddim: one step at time 0", "sampler-ddim_one", "parts/samplers.py", "return [last]", "return [0]"),
    torch("ddim: times in the wrong order", "sampler-ddim", "parts/samplers.py", "earlier.pop()", "earlier.pop(0)"),
    torch(
        "ddim: noise not recomputed from the clipped action",
        "sampler-ddim",
        "parts/samplers.py",
        "eps = noise_between(schedule, action, noisy, t)",
        "eps = actor(cond, noisy, t)",
    ),
    torch(
        "tanh: mean in place of the sample",
        "sampler-tanh",
        "parts/samplers.py",
        "u = mean + log_std.exp() * eps",
        "u = mean + log_std * eps",
    ),
    torch(
        "tanh: normalisation of the density dropped",
        "sampler-tanh",
        "parts/samplers.py",
        "- log_std - 0.5 * math.log(2 * math.pi)",
        "- log_std",
    ),
    torch(
        "tanh: mean over action entries",
        "sampler-tanh",
        "parts/samplers.py",
        "(log_normal - log_slope).sum(-1)",
        "(log_normal - log_slope).mean(-1)",
    ),
    torch(
        "tanh: softplus cut off early",
        "sampler-tanh",
        "parts/samplers.py",
        "F.softplus(-2 * u, threshold=40)",
        "F.softplus(-2 * u)",
    ),
    torch("best of: worst", "sampler-best_of", "parts/samplers.py", "argmax(0, keepdim", "argmin(0, keepdim"),
    torch(
        "best of: one candidate for the whole batch",
        "sampler-best_of",
        "parts/samplers.py",
        "_reduced(critic(obs, actions), self.ensemble).argmax(0, keepdim=True)",
        "critic(obs, actions).amin(0).mean(-1, keepdim=True).expand(actions.shape[:-1]).argmax(0, keepdim=True)",
    ),
    torch(
        "best of: last of equals",
        "sampler-best_of",
        "parts/samplers.py",
        "return _reduced(critic(obs, actions), self.ensemble).argmax(0, keepdim=True)",
        "return len(actions) - 1 - critic(obs, actions).amin(0).flip(0).argmax(0, keepdim=True)",
    ),
    torch(
        "best of: states of the first candidate",
        "sampler-best_of",
        "parts/samplers.py",
        "torch.take_along_dim(noisy, best[None, ..., None], 1).squeeze(1)",
        "noisy[:, 0]",
    ),
    torch(
        "best of: log-probability of the first candidate",
        "sampler-best_of",
        "parts/samplers.py",
        "torch.take_along_dim(log_prob, best, 0).squeeze(0)",
        "log_prob[0]",
    ),
    torch(
        "additive: temperature dropped",
        "sampler-additive",
        "parts/samplers.py",
        "scale * noise[EXPLORATION]",
        "self.noise_scale * noise[EXPLORATION]",
    ),
    torch(
        "additive: never clipped",
        "sampler-additive",
        "parts/samplers.py",
        "action.clamp(-1, 1) if self.clip else action",
        "action",
    ),
    torch(
        "additive: entropy of the variance for that of the deviation",
        "temperature-noise_entropy",
        "parts/samplers.py",
        "(self.noise_scale * temperature) ** 2",
        "self.noise_scale * temperature",
    ),
]

NETWORKS = [
    torch(
        "onednn: bias left out",
        "network",
        "kernels/products.py",
        "return _onednn(x, weight, bias)",
        "return _onednn(x, weight)",
    ),
    torch("onednn: no gradient of the bias", "network", "kernels/products.py", "grad.sum(0) if", "grad.sum(0) * 0 if"),
    torch(
        "onednn: gradient not differentiable",
        "network",
        "kernels/products.py",
        "F.linear if torch.is_grad",
        "_onednn if torch.is_grad",
    ),
    torch(
        "critics: all members the first",
        "network",
        "kernels/products.py",
        "(weights[i], biases[i])",
        "(weights[0], biases[0])",
    ),
]

SCHEDULES = [
    torch(
        "schedule: alpha and sigma swapped in the forward kernel",
        "schedule",
        "parts/diffusion.py",
        "_add_scaled(alpha * action, sigma, eps)",
        "_add_scaled(sigma * action, alpha, eps)",
    ),
    torch(
        "schedule: score of the wrong sign",
        "schedule",
        "parts/diffusion.py",
        "return -eps / sigma",
        "return eps / sigma",
    ),
    torch(
        "schedule: posterior mean swapped",
        "sampler-ddpm",
        "parts/diffusion.py",
        '_coefficient(table, "posterior_action", t, action.dtype)\n',
        '_coefficient(table, "posterior_noisy", t, action.dtype)\n',
    ),
    torch(
        "schedule: gathered times off by one",
        "schedule",
        "parts/diffusion.py",
        "tensors[key][t].unsqueeze(-1)",
        "tensors[key][t - 1].unsqueeze(-1)",
    ),
    torch(
        "schedule: noise between two actions divided by alpha",
        "schedule",
        "parts/diffusion.py",
        "_add_scaled(noisy, -alpha, action) / sigma",
        "_add_scaled(noisy, -alpha, action) / alpha",
    ),
    torch(
        "prediction: action of a velocity as of a noise",
        "sampler-ddpm_velocity_flow",
        "parts/diffusion.py",
        "_add_scaled(noisy, -sigma, output) / (alpha + sigma)",
        "_add_scaled(noisy, -sigma, output)",
    ),
    torch(
        "prediction: noise of a velocity of the wrong sign",
        "objective-policy_velocity_flow",
        "parts/diffusion.py",
        "_add_scaled(noisy, alpha, output) / (alpha + sigma)",
        "_add_scaled(noisy, -alpha, output) / (alpha + sigma)",
    ),
    torch(
        "prediction: clean action taken for the noise",
        "objective-policy_clean_ellipse",
        "parts/diffusion.py",
        "return noise_between(schedule, output, noisy, t)",
        "return output",
    ),
    declared(
        "sampler: chain starts at standard deviation 1",
        "sampler-ddpm_ellipse",
        "parts/samplers.py",
        "return float(self.schedule.sigma(self.schedule.num_steps - 1))",
        "return 1.0",
    ),
]

CRITICS = [
    torch(
        "td: mean over the ensemble",
        "critic_objective-mean_squared",
        "parts/critics.py",
        "_weighted(batch, (q - target).square()).mean(-1).sum()",
        "_weighted(batch, (q - target).square()).mean()",
    ),
    torch(
        "td: online critic in the target",
        "critic_objective-mean_squared",
        "parts/critics.py",
        "next_value = _reduced(target_critic(",
        "next_value = _reduced(critic(",
    ),
    torch(
        "td: reward discounted",
        "critic_objective-mean_squared",
        "parts/critics.py",
        "batch.reward + batch.discount * next_value",
        "batch.discount * (batch.reward + next_value)",
    ),
    torch(
        "td: weights left out",
        "critic_objective-mean_squared",
        "parts/critics.py",
        "return errors if batch.weight is None else batch.weight * errors",
        "return errors",
    ),
    torch(
        "td: bootstraps where the episode terminated",
        "critic_objective",
        "parts/critics.py",
        "target = batch.reward + batch.discount * next_mean",
        "target = batch.reward + batch.discount.amax() * next_mean",
    ),
    torch(
        "gaussian td: targets and slopes not detached",
        "critic_objective-gaussian",
        "parts/critics.py",
        "with torch.no_grad():\n            next_means",
        "with torch.enable_grad():\n            next_means",
    ),
    torch(
        "gaussian td: one critic for the whole batch",
        "critic_objective-gaussian",
        "parts/critics.py",
        "next_means.argmin(0, keepdim=True)",
        "next_means.mean(-1, keepdim=True).argmin(0, keepdim=True).expand(1, next_means.shape[-1])",
    ),
    torch(
        "gaussian td: deviation of the first critic",
        "critic_objective-gaussian",
        "parts/critics.py",
        "next_stds.gather(0, smaller).squeeze(0)",
        "next_stds[0]",
    ),
    torch(
        "gaussian td: batch row in place of the critic",
        "critic_objective-gaussian",
        "parts/critics.py",
        "next_means.gather(0, smaller).squeeze(0)",
        "next_means[:, smaller.squeeze(0)].amin(0)",
    ),
    torch(
        "gaussian td: minimum of the samples",
        "critic_objective-gaussian",
        "parts/critics.py",
        'z = next_mean + next_std * noise["target"].clamp(-3, 3)',
        'z = (next_means + next_stds * noise["target"].clamp(-3, 3)).amin(0)',
    ),
    torch(
        "gaussian td: noise not clipped",
        "critic_objective-gaussian",
        "parts/critics.py",
        'noise["target"].clamp(-3, 3)',
        'noise["target"]',
    ),
    torch(
        "gaussian td: tau swapped",
        "critic_objective-gaussian",
        "parts/critics.py",
        "(1 - self.tau) * omega + self.tau * batch_std",
        "self.tau * omega + (1 - self.tau) * batch_std",
    ),
    torch(
        "gaussian td: omega not updated",
        "critic_objective-gaussian",
        "parts/critics.py",
        '{"omega": omega}',
        '{"omega": state["omega"]}',
    ),
    torch(
        "gaussian td: one omega for all critics",
        "critic_objective-gaussian",
        "parts/critics.py",
        "batch_std = std.mean(-1)",
        "batch_std = std.mean().expand(len(std))",
    ),
    torch(
        "gaussian td: sampled target not bounded",
        "critic_objective-gaussian",
        "parts/critics.py",
        "(sampled_target - mean).clamp(-bound, bound)",
        "sampled_target - mean",
    ),
    torch(
        "gaussian td: expected target in the slope of the deviation",
        "critic_objective-gaussian",
        "parts/critics.py",
        "(sampled_target - mean).clamp",
        "(target - mean).clamp",
    ),
    torch(
        "gaussian td: not scaled by omega",
        "critic_objective-gaussian",
        "parts/critics.py",
        "value = -((omega.square() + 0.1) *",
        "value = -(1.0 *",
    ),
]

TEMPERATURES = [
    torch(
        "temperature: bias correction dropped",
        "temperature",
        "parts/temperatures.py",
        "m / (1 - 0.9**count)",
        "m",
    ),
    torch(
        "temperature: second moment of absolute values",
        "temperature",
        "parts/temperatures.py",
        "0.001 * gradient.square()",
        "0.001 * gradient.abs()",
    ),
    torch(
        "temperature: target without dimension",
        "temperature-mixture",
        "parts/temperatures.py",
        "- self.target_entropy_per_dim * action_dim",
        "- self.target_entropy_per_dim",
    ),
    torch(
        "temperature: entropy of the last states",
        "temperature-mixture",
        "parts/temperatures.py",
        """obs[: self.num_states], noise["samples"])
        action_dim""",
        """obs[-self.num_states :], noise["samples"])
        action_dim""",
    ),
    torch(
        "temperature: sign of the policy's entropy",
        "temperature-target",
        "parts/temperatures.py",
        "entropy = -self.check_log_prob(log_prob).mean()",
        "entropy = self.check_log_prob(log_prob).mean()",
    ),
    torch(
        "mixture: fit settled too early",
        "temperature-mixture",
        "parts/temperatures.py",
        "_TOLERANCE = 1e-3",
        "_TOLERANCE = 1e-1",
    ),
    torch(
        "mixture: one iteration of Lloyd's",
        "temperature-mixture",
        "parts/temperatures.py",
        "for _ in range(10):",
        "for _ in range(1):",
    ),
    torch(
        "mixture: last of equally near centres",
        "temperature-mixture",
        "parts/temperatures.py",
        "distance.argmin(-1)",
        "num_components - 1 - distance.flip(-1).argmin(-1)",
    ),
    torch(
        "mixture: seeds near the mean",
        "temperature-mixture",
        "parts/temperatures.py",
        "nearest.argmax(1)",
        "nearest.argmin(1)",
    ),
    torch(
        "mixture: entropy of the weights with the wrong sign",
        "temperature-mixture",
        "parts/temperatures.py",
        "weight * gaussian - torch.xlogy(weight, weight)",
        "weight * gaussian + torch.xlogy(weight, weight)",
    ),
    torch(
        "mixture: half the log-determinant",
        "temperature-mixture",
        "parts/temperatures.py",
        "log_det = 2 * cholesky",
        "log_det = cholesky",
    ),
    torch(
        "mixture: responsibilities normalised over samples",
        "temperature-mixture",
        "parts/temperatures.py",
        "torch.softmax(log_joint, dim=1).mT",
        "torch.softmax(log_joint, dim=2).mT",
    ),
]

OPTIMISERS = [
    torch(
        "adam: gradient always scaled to the largest norm",
        "learner-dacer2",
        "parts/optimisers.py",
        "(self.max_grad_norm / norm).clamp(max=1)",
        "self.max_grad_norm / norm",
    ),
    torch(
        "adam: sum of absolute values for the norm",
        "learner-dacer2",
        "parts/optimisers.py",
        "get_total_norm(grads)",
        "get_total_norm(grads, 1.0)",
    ),
    torch(
        "adam: decays swapped",
        "learner-dacer",
        "parts/optimisers.py",
        '"betas": (self.b1, self.b2)',
        '"betas": (self.b2, self.b1)',
    ),
    torch(
        "adamw: no decay", "learner-td3", "parts/optimisers.py", "weight_decay=self.weight_decay", "weight_decay=0.0"
    ),
    torch("adam: eps ignored", "learner-sdac", "parts/optimisers.py", '"eps": self.eps', '"eps": 1e-8'),
    torch(
        "adam: rate of the schedule's start",
        "learner-sdac",
        "parts/optimisers.py",
        "self._rate(opt_state.count)",
        "self._rate(0)",
    ),
    torch(
        "adam: rate goes on falling after the end",
        "learner-sdac",
        "parts/coefficients.py",
        "min(max((count - number.begin) / (number.end - number.begin), 0.0), 1.0)",
        "max((count - number.begin) / (number.end - number.begin), 0.0)",
    ),
    torch(
        "adam: bias correction starts anew in a loaded state",
        "learner-sdac",
        "parts/optimisers.py",
        'state["step"].fill_(count)',
        'state["step"].fill_(0)',
    ),
]

LEARNER = [
    torch(
        "learner: temperature steps twice in an interval",
        "learner-dacer2",
        "learner.py",
        "state.updates % self.temperature.interval == 0",
        "state.updates % self.temperature.interval < 2",
    ),
    torch(
        "learner: actor led by the target critic",
        "learner-sdac",
        "learner.py",
        "state.actor,\n                state.critic,\n",
        "state.actor,\n                state.target_critic,\n",
    ),
    torch(
        "learner: target critic follows in every update",
        "learner-sdac",
        "learner.py",
        "        if actor_is_due:\n            towards(state.target_critic",
        "        if True:\n            towards(state.target_critic",
    ),
    torch(
        "learner: actor drawn towards its slow copy",
        "learner-sdac",
        "learner.py",
        "towards(state.ema_actor, state.actor, self.tau)",
        "[o.data.lerp_(e, self.tau) for o, e in zip(state.actor.parameters(), state.ema_actor.parameters())]",
    ),
    torch(
        "learner: next actions of the slow copy",
        "learner-sdac",
        "learner.py",
        "self._copy(self.target_actor, state)",
        "(state.ema_actor or state.actor)",
    ),
    torch(
        "learner: next actions of the online actor",
        "learner-td3",
        "learner.py",
        "self._copy(self.target_actor, state)",
        "state.actor",
    ),
    torch(
        "learner: next actions by the sampler that acts",
        "learner-td3",
        "learner.py",
        "            self.of_target,\n",
        "            self.sampler,\n",
    ),
    torch(
        "learner: actor moves in the first update",
        "learner-td3",
        "learner.py",
        "% self.actor_delay == self.first_actor_update",
        "% self.actor_delay == 0",
    ),
    torch(
        "td3: noise of the target not clipped",
        "sampler-additive_deterministic",
        "parts/samplers.py",
        "added = added.clamp(-self.noise_clip, self.noise_clip)",
        "added = added.clamp(-9, 9)",
    ),
    torch(
        "td3: tanh left out",
        "network",
        "parts/networks.py",
        "activation(self.activation)).tanh()",
        "activation(self.activation))",
    ),
    torch(
        "ensemble: mean taken for the first",
        "objective-value_first",
        "parts/networks.py",
        'return values.mean(0) if ensemble == "mean" else values[0]',
        "return values.mean(0)",
    ),
    torch(
        "ensemble: first taken for the mean",
        "objective-time_weighted_mean",
        "parts/networks.py",
        'return values.mean(0) if ensemble == "mean" else values[0]',
        "return values[0]",
    ),
    torch(
        "learner: next actions at the present observation",
        "learner-sdac",
        "gradients.py",
        "batch.next_obs, next_action_noise)",
        "batch.obs, next_action_noise)",
    ),
    torch(
        "learner: candidates ranked by the target critic",
        "learner-sdac",
        "learner.py",
        "_critic(self.target_ranking, state)",
        "state.target_critic",
    ),
    torch(
        "learner: candidates of evaluations ranked by the online critic",
        "learner-qvpo",
        "learner.py",
        'self.evaluation_ranking if deterministic else "online"',
        '"online"',
    ),
    Mutation(
        "learner: evaluations by the sampler that acts",
        "learner-qvpo",
        {
            "torch": Edit(
                "diffac/parts/learner.py",
                "if deterministic and self.evaluation_sampler is not None else",
                "if False else",
            )
        },
    ),
    torch(
        "learner: candidates ranked by the online critic",
        "learner-qvpo",
        "learner.py",
        "_critic(self.target_ranking, state)",
        "state.critic",
    ),
    torch(
        "learner: one optimiser step only",
        "learner-dpmd",
        "learner.py",
        "step_critic(self.critic_steps - self.critic_steps_before_actor)",
        "step_critic(0)",
    ),
    torch(
        "learner: actor sees the critic after all of its steps",
        "learner-dpmd or learner-sdac",
        "learner.py",
        """step_critic(self.critic_steps_before_actor)
        actor_is_due""",
        """step_critic(self.critic_steps)
        actor_is_due""",
    ),
    both(
        "learner: actor sees the critic from before its steps",
        "learner-dpmd or learner-sac",
        "learner.py",
        ("step_critic(self.critic_steps_before_actor)\n", "step_critic(0)\n"),
        ("seen = critics[self.critic_steps_before_actor]", "seen = critics[0]"),
    ),
    Mutation(
        "learner: temperature adapted to the new actor",
        "learner-dacer2",
        {
            "equinox": Edit(
                "learner.py", "Policy(actor_before, seen, temperature)", "Policy(state.actor, seen, temperature)"
            )
        },
    ),
    torch(
        "learner: temperature adapted at the next states",
        "learner-dacer2",
        "learner.py",
        "Policy(state.actor, state.critic, temperature),\n                batch.obs,",
        "Policy(state.actor, state.critic, temperature),\n                batch.next_obs,",
    ),
    torch(
        "learner: state of the critic's objective forgotten",
        "learner-dacer2",
        "learner.py",
        "state.critic_objective, critic_loss = loss.state, loss.value",
        "critic_loss = loss.value",
    ),
    torch(
        "learner: fast actor acts",
        "learner-sdac",
        "learner.py",
        "self._copy(self.acting_actor, state)",
        "state.actor",
    ),
    torch(
        "learner: the same noise in every update of a call",
        "learner-sac",
        "engine/engine.py",
        "stream(self._device, *self._path, _ENTRIES.index(name))",
        "stream(self._device, self._path[0], 0, _ENTRIES.index(name))",
    ),
    torch(
        "learner: all entries of the noise from one stream",
        "learner-sac",
        "engine/engine.py",
        "stream(self._device, *self._path, _ENTRIES.index(name))",
        "stream(self._device, *self._path, 0)",
    ),
    torch(
        "learner: metrics of the last update for their mean",
        "learner-sac",
        "engine/engine.py",
        "torch.stack(rows).nanmean(0)",
        "rows[-1]",
    ),
]

PARAMETERS = [
    torch(
        "slow copies average what is not trained",
        "learner-td3",
        "parameters.py",
        "        own.copy_(new)\n",
        "        own.copy_(torch.lerp(own.double(), new.double(), tau))\n",
    ),
    torch("modes: as a network comes", "learner-td3", "parameters.py", "return module.eval()", "return module"),
    torch(
        "norm of frozen parameters too",
        "learner-td3",
        "engine/engine.py",
        "get_total_norm(parameters(module))",
        "get_total_norm(list(module.parameters()))",
    ),
]

IN_BOTH = [
    both(
        "both: normalised by the variance",
        "learner-sac_normalised",
        "parts/normalisers.py",
        ('(moments["var"] + self.eps).sqrt()', '(moments["var"] + self.eps)'),
        ('jnp.sqrt(moments["var"] + self.eps)', '(moments["var"] + self.eps)'),
    ),
    both(
        "both: eps outside of the root",
        "learner-sac_normalised",
        "parts/normalisers.py",
        ('(moments["var"] + self.eps).sqrt()', '(moments["var"].sqrt() + self.eps)'),
        ('jnp.sqrt(moments["var"] + self.eps)', '(jnp.sqrt(moments["var"]) + self.eps)'),
    ),
    both(
        "both: next observations as they are",
        "learner-sac_normalised",
        "learner.py",
        ("            next_obs=self.seen(batch.next_obs, state.obs_moments),\n", ""),
        ("            next_obs=self.seen(batch.next_obs, state.obs_moments),\n", ""),
    ),
    both(
        "both: observations as they are",
        "learner-sac_normalised",
        "learner.py",
        ("            obs=self.seen(batch.obs, state.obs_moments),\n", ""),
        ("            obs=self.seen(batch.obs, state.obs_moments),\n", ""),
    ),
    both(
        "both: max of the critics in the target",
        "critic_objective-mean_squared_three",
        "parts/critics.py",
        (
            "_reduced(target_critic(batch.next_obs, next_action), self.ensemble)",
            "target_critic(batch.next_obs, next_action).amax(0)",
        ),
        (
            "_reduced(target_critic(batch.next_obs, next_rollout(self, batch).action), self.ensemble)",
            "target_critic(batch.next_obs, next_rollout(self, batch).action).max(0)",
        ),
    ),
    both(
        "both: bootstraps through terminations",
        "critic_objective-mean_squared_three",
        "parts/critics.py",
        ("batch.discount * next_value", "0.99 * next_value"),
        ("batch.discount * next_value", "0.99 * next_value"),
    ),
    both(
        "both: sign of the entropy in the soft target",
        "critic_objective-mean_squared_soft",
        "parts/critics.py",
        ("next_value - temperature * log_prob", "next_value + temperature * log_prob"),
        ("next_value - temperature * log_prob", "next_value + temperature * log_prob"),
    ),
    both(
        "both: omega not set by the first batch",
        "critic_objective-gaussian_tight",
        "parts/critics.py",
        ("torch.where(omega == 0,", "torch.where(omega < 0,"),
        ('jnp.where(state["omega"] == 0,', 'jnp.where(state["omega"] < 0,'),
    ),
    both(
        "both: cube of the deviation squared",
        "critic_objective-gaussian_tight",
        "parts/critics.py",
        ("(std**3 + 0.1)", "(std**2 + 0.1)"),
        ("(std_fixed**3 + 0.1)", "(std_fixed**2 + 0.1)"),
    ),
    both(
        "both: larger mean chosen",
        "critic_objective-gaussian_tight",
        "parts/critics.py",
        ("next_means.argmin(0, keepdim=True)", "next_means.argmax(0, keepdim=True)"),
        ("next_mean.argmin(0, keepdims=True)", "next_mean.argmax(0, keepdims=True)"),
    ),
    both(
        "both: value_scale dropped",
        "objective-reverse_truncated_vp",
        "parts/objectives.py",
        ("scale = self.value_scale / temperature if", "scale = 1 / temperature if"),
        ("scale = self.value_scale / temperature if", "scale = 1 / temperature if"),
    ),
    both(
        "both: spread with the wrong sign",
        "objective-reverse_truncated_vp",
        "parts/objectives.py",
        ("- target.square().sum(-1)", "+ target.square().sum(-1)"),
        ("- (target**2).sum(-1)", "+ (target**2).sum(-1)"),
    ),
    both(
        "both: times counted from the wrong end",
        "objective-time_weighted_eps_replay_1",
        "parts/objectives.py",
        ("(t.to(noisy.dtype) + self.time_offset)", "(t.to(noisy.dtype) - self.time_offset)"),
        ("(t + self.time_offset)", "(t - self.time_offset)"),
    ),
    both(
        "both: sample deviation of the values",
        "objective-policy",
        "parts/objectives.py",
        ("q.std(correction=0)", "q.std(correction=1)"),
        ("q.std()", "q.std(ddof=1)"),
    ),
    both(
        "both: average of the values not corrected for its start",
        "objective-policy",
        "parts/objectives.py",
        ('new_state["q_mean_ema"] / correction', 'new_state["q_mean_ema"]'),
        ('new["q_mean_ema"] / correction', 'new["q_mean_ema"]'),
    ),
    both(
        "both: temperature on the value",
        "objective-entropy_value",
        "parts/objectives.py",
        ("temperature * log_prob - q", "log_prob - temperature * q"),
        ("-temperature * entropy - q_mean", "-entropy - temperature * q_mean"),
    ),
    both(
        "both: noise of the steps in reversed order",
        "sampler-ddpm_cosine",
        "parts/samplers.py",
        ('noise["steps"][t - 1]', 'noise["steps"][-t]'),
        ('noise["steps"])', 'noise["steps"][::-1])'),
    ),
    both(
        "both: posterior deviation of the time before",
        "sampler-ddpm_cosine",
        "parts/samplers.py",
        ("float(std[t])", "float(std[t - 1])"),
        ("jnp.asarray(self.step_std, eps.dtype)[t]", "jnp.asarray(self.step_std, eps.dtype)[t - 1]"),
    ),
    both(
        "both: alpha and sigma swapped in DDIM",
        "sampler-ddim_two",
        "parts/diffusion.py",
        ("_add_scaled(noisy, -alpha, action) / sigma", "_add_scaled(noisy, -sigma, action) / alpha"),
        ("(noisy - alpha * action) / sigma", "(noisy - sigma * action) / alpha"),
    ),
    both(
        "both: log-determinant of tanh dropped",
        "sampler-tanh_gaussian",
        "parts/samplers.py",
        ("(log_normal - log_slope)", "log_normal"),
        ("(log_density - log_slope)", "log_density"),
    ),
    both(
        "both: candidates ranked by the larger value",
        "sampler-best_of_gaussian",
        "parts/samplers.py",
        ("_reduced(critic(obs, actions), self.ensemble)", "critic(obs, actions).amax(0)"),
        (
            "_reduced(ranked(obs, jax.lax.stop_gradient(action)), self.ensemble)",
            "ranked(obs, jax.lax.stop_gradient(action)).max(0)",
        ),
    ),
    both(
        "both: entropy of the noise without dimension",
        "temperature-noise_entropy",
        "parts/samplers.py",
        ("0.5 * action_dim * torch.log", "0.5 * torch.log"),
        ("0.5 * action_dim * jnp.log", "0.5 * jnp.log"),
    ),
    both(
        "both: sign of the temperature's step",
        "temperature-target_entropy",
        "parts/temperatures.py",
        ('state["log_temperature"] - step', 'state["log_temperature"] + step'),
        ("- learning_rate * direction", "+ learning_rate * direction"),
    ),
    both(
        "both: no floor of the covariances",
        "temperature-mixture_best_of",
        "parts/temperatures.py",
        (".add_(floor)", ".add_(0 * floor)"),
        ("covariance + floor * identity", "covariance"),
    ),
    both(
        "both: actor due in the wrong updates",
        "learner-dpmd",
        "learner.py",
        (
            "state.updates % self.actor_delay == self.first_actor_update",
            "state.updates // self.actor_delay % self.actor_delay == self.first_actor_update",
        ),
        (
            "is_multiple(update - self.first_actor_update, self.actor_delay)",
            "is_multiple(update // self.actor_delay - self.first_actor_update, self.actor_delay)",
        ),
    ),
    both(
        "both: reward scaled twice",
        "learner-dpmd",
        "learner.py",
        ("reward=self.reward_scale * batch", "reward=self.reward_scale**2 * batch"),
        ("reward=self.reward_scale * batch", "reward=self.reward_scale**2 * batch"),
    ),
    both(
        "both: tau swapped in the slow copies",
        "learner-dpmd",
        "parameters.py",
        ("(trained, of_fast, tau)", "(trained, of_fast, 1 - tau)"),
        ("(1 - tau) * s + tau * f", "tau * s + (1 - tau) * f"),
    ),
    both(
        "both: coefficients of the next update",
        "learner-dacer2",
        "learner.py",
        ("at_update(self, state.updates, ", "at_update(self, state.updates + 1, "),
        ("at_update(self, state.updates, ", "at_update(self, state.updates + 1, "),
    ),
    both(
        "both: weights decay by twice the rate",
        "learner-td3",
        "parts/optimisers.py",
        ("weight_decay=self.weight_decay", "weight_decay=2 * self.weight_decay"),
        ("1 - rate * self.weight_decay", "1 - 2 * rate * self.weight_decay"),
    ),
    both(
        "both: learning rate of the next step",
        "learner-dpmd",
        "parts/coefficients.py",
        ("(count - number.begin)", "(count + 1 - number.begin)"),
        ("(count.astype(dtype) - number.begin)", "(count.astype(dtype) + 1 - number.begin)"),
    ),
]

MUTATIONS = [
    *OBJECTIVES,
    *SAMPLERS,
    *NETWORKS,
    *SCHEDULES,
    *CRITICS,
    *TEMPERATURES,
    *OPTIMISERS,
    *LEARNER,
    *PARAMETERS,
    *IN_BOTH,
]
