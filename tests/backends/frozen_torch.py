"""Networks of a user with everything that is not trained, in torch."""

import torch
from torch import nn


class Features(nn.Module):
    """Observations in another order, scaled, and through a layer that is not trained."""

    def __init__(self, obs_dim: int, width: int) -> None:
        super().__init__()
        self.register_buffer("order", torch.arange(obs_dim).flip(0))
        self.register_buffer("scale", torch.linspace(0.5, 2, obs_dim))
        self.register_buffer("ones", torch.ones(obs_dim), persistent=False)
        self.embed = nn.Linear(obs_dim, width).requires_grad_(False)
        self.offset = nn.Parameter(torch.full((obs_dim,), -0.25), requires_grad=False)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        x = obs[..., self.order] * (self.scale * self.ones) + self.offset
        return torch.relu(self.embed(x))


class Actor(nn.Module):
    def __init__(self, obs_dim: int, action_dim: int, width: int = 8) -> None:
        super().__init__()
        self.features = Features(obs_dim, width)
        self.dropout = nn.Dropout(0.5)
        self.last = nn.Linear(width, action_dim)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.last(self.dropout(self.features(obs))))


class Critic(nn.Module):
    def __init__(self, obs_dim: int, action_dim: int, width: int = 8) -> None:
        super().__init__()
        self.features = Features(obs_dim, width)
        self.dropout = nn.Dropout(0.5)
        self.hidden = nn.Linear(width + action_dim, width)
        self.last = nn.Linear(width, 2)

    def forward(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.features(obs).expand(*action.shape[:-1], -1), action], -1)
        return self.last(torch.relu(self.hidden(self.dropout(x)))).movedim(-1, 0)
