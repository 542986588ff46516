"""Losses and their gradients."""

from typing import Any

import torch
from torch import Tensor, nn

from diffac.errors import UsageError
from diffac.noise import Noise
from diffac.parts.outputs import checked_loss
from diffac.protocols import Batch, CriticObjective, Loss, Policy, Rollout, Sampler, State
from diffac_torch.kernels.programs import program
from diffac_torch.parameters import parameters


@program
def loss_and_gradient(objective: Any, module: Any, *args: Any) -> tuple[Loss, tuple[Tensor, ...]]:
    """objective(module, *args), all of it without gradient, and its gradient in the order of `parameters(module)`.

    Nobody's `.grad` is touched.

    Args:
        objective: of the actor or the critic, of any origin.
        module: what is differentiated.
        *args: the objective's further arguments; the last one is its state.

    Raises:
        UsageError: the objective returned what it must not (`diffac.parts.outputs`), or nothing to differentiate.
    """
    loss = checked_loss(objective, objective(module, *args), args[-1], without_gradient)
    if not isinstance(loss.value, Tensor) or not loss.value.requires_grad:
        raise UsageError(
            f"the loss of {type(objective).__name__} does not depend on the network that it trains: it must be a "
            "tensor computed from the first argument, not detached"
        )
    gradient = torch.autograd.grad(loss.value, parameters(module), materialize_grads=True)
    return loss._replace(value=loss.value.detach()), gradient


@program
def critic_loss_and_gradient(
    sampler: Sampler,
    objective: CriticObjective,
    policy: Policy,
    critic: nn.Module,
    target_critic: nn.Module,
    batch: Batch,
    next_action_noise: Noise,
    noise: Noise,
    state: State,
) -> tuple[tuple[Loss, Rollout], tuple[Tensor, ...]]:
    """What a policy does at next_obs, and the critic's loss and gradient on a batch that knows it."""
    with torch.no_grad():
        rollout = sampler.rollout(policy, batch.next_obs, next_action_noise)
    next_rollout = Rollout(rollout.action, log_prob=rollout.log_prob)
    batch = batch._replace(next_rollout=next_rollout)
    loss, gradient = loss_and_gradient(objective, critic, target_critic, batch, noise, policy.temperature, state)
    return (loss, next_rollout), gradient


def without_gradient(value: Any, like: Any) -> Tensor:
    """A number or array as a tensor without gradient, of the type and on the device of the tensor `like`."""
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).detach()
