"""PyTorch parts without their optimisations, one function for each entry of `switches.SWITCHES`."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffac.protocols import Policy


def mish(patch: Any) -> None:
    """The framework's Mish."""
    import torch.nn.functional as F

    from diffac_torch.parts import activations

    patch(activations, "_ACTIVATIONS", {**activations._ACTIVATIONS, "mish": F.mish})


def products(patch: Any) -> None:
    """All matrix products by torch's own choice of library."""
    from diffac_torch.kernels import products

    patch(products, "_HAS_ONEDNN", False)


def shares(patch: Any) -> None:
    """The denoiser concatenates its inputs for every evaluation."""
    import torch

    from diffac_torch.parts import networks, objectives, samplers

    def forward(self: Any, obs: Any, noisy: Any, t: Any) -> Any:
        times = torch.as_tensor(t)
        batch = torch.broadcast_shapes(obs.shape[:-1], noisy.shape[:-1], times.shape)
        features = self._time_features(times)
        pieces = [x.expand(*batch, x.shape[-1]) for x in (obs, noisy, features)]
        first = self.layers[0]
        hidden = torch.nn.functional.linear(torch.cat(pieces, dim=-1), first.weight, first.bias)
        return networks._after_first(self.layers, hidden, networks.activation(self.activation))

    patch(networks.MLPDenoiser, "forward", forward)
    for module in (samplers, objectives):
        patch(module, "_condition", lambda actor, obs, num_steps: obs)


def particles(patch: Any) -> None:
    """The regression of SDAC with a row for each particle."""
    import torch

    from diffac_torch.parts import objectives
    from diffac_torch.parts.diffusion import add_noise

    def proposal(
        self: Any, actor: Any, critic: Any, batch: Any, noise: Any, temperature: Any, state: Any, schedule: Any
    ) -> Any:
        action = self.sampler(Policy(actor, critic, temperature), batch.obs, noise["rollout"])
        count, t = self.num_particles, noise["t"]
        noisy = add_noise(schedule, action, noise["eps"], t)
        actions, eps = objectives._truncated_guesses(schedule, noisy, t, noise["particles"])
        q = critic(batch.obs, actions).amin(0)
        weight = torch.softmax(q * self.value_scale / temperature, dim=0)
        metrics = {"effective_particles": (1 / weight.square().sum(0)).mean(), "q_mean": q.mean()}
        return objectives.Regression(
            obs=batch.obs.repeat(count, 1), noisy=noisy.repeat(count, 1), t=t.repeat(count), target=eps.flatten(0, 1),
            action=actions.flatten(0, 1),
            weight=count * weight.flatten(), spread=torch.zeros(weight.numel()), metrics=metrics, state=state,
        )  # fmt: skip

    patch(objectives.ReverseProposal, "__call__", torch.no_grad()(proposal))


def skip(patch: Any) -> None:
    """The gradient of the actor in every update; where it is not due it is thrown away."""
    from diffac.protocols import Rollout
    from diffac_torch import learner

    original = learner.Learner.step

    def step(self: Any, state: Any, batch: Any, noise: Any) -> Any:
        if state.updates % self.actor_delay:
            temperature = self.temperature.value(state.temperature)
            filled = batch._replace(next_rollout=Rollout(batch.action))  # as many numbers, and no gradient through them
            arguments = (state.critic, filled, noise["actor"], temperature, state.actor_objective)
            learner.loss_and_gradient(self.actor_objective, state.actor, *arguments)
        return original(self, state, batch, noise)

    patch(learner.Learner, "step", step)


def adam(patch: Any) -> None:
    """Adam and the slow copies parameter by parameter."""
    import torch

    from diffac_torch import learner

    original = torch.optim.Adam

    def plain(parameters: Any, **options: Any) -> Any:
        return original(parameters, **{**options, "fused": False, "foreach": False})

    @torch.no_grad()
    def towards(slow: Any, fast: Any, tau: float) -> None:
        for target, source in zip(slow.parameters(), fast.parameters(), strict=True):
            target.lerp_(source, tau)

    patch(torch.optim, "Adam", plain)
    patch(learner, "towards", towards)


def projection(patch: Any) -> None:
    """Every return is compared with every atom."""
    from diffac_torch.kernels import projection

    patch(projection, "divided", projection._divided_densely)


def metrics(patch: Any) -> None:
    """Every update waits for its numbers."""
    from diffac_torch import Engine

    original = Engine.update

    def update(self: Any, state: Any, batches: Any, key: int) -> Any:
        state, metrics = original(self, state, batches, key)
        np.asarray([float(value) for value in metrics.values()])
        return state, metrics

    patch(Engine, "update", update)


def heap(patch: Any) -> None:
    """Large blocks go back to the system as soon as they are freed."""
    from diffac.system import memory

    patch(memory, "keep_freed_memory", lambda: None)
