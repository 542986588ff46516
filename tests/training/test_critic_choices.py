"""Every recipe with every critic and every body of its networks: one mechanism, in the arguments that all share."""

from __future__ import annotations

import itertools
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import load_backend

from diffac.errors import UsageError
from diffac.noise import draw
from diffac.protocols import Batch
from diffac.runs.recipes import load_recipe
from diffac_recipes import RECIPES, sac

CRITICS = ("recipe", "twin", "ensemble", "gaussian", "categorical")
OBS, ACT, BATCH = 3, 2, 4
SMALL = {
    "num_diffusion_steps": 2,
    "num_candidates": 2,
    "num_particles": 2,
    "num_noises": 2,
    "training_candidates": 3,
    "hidden_sizes": (4, 4),
    "learning_starts": 10,
    "total_timesteps": 1000,
}


def start(backend: ModuleType, recipe: str, **fields: Any) -> tuple[Any, Any]:
    """(learner, its first state) of a recipe with small networks."""
    module = load_recipe(recipe)
    own = {name: value for name, value in SMALL.items() if name in module.Config.__dataclass_fields__}
    config = module.Config(**{**own, **fields, "backend": backend.name})
    learner, actor, critic = module.build(config, OBS, ACT)
    return learner, learner.init(actor, critic)


def two_updates(backend: ModuleType, recipe: str, **fields: Any) -> dict[str, np.ndarray]:
    """Parameters and states after two updates that are not compiled, with noise that is the same in every backend."""
    (learner, state), rng = start(backend, recipe, **fields), np.random.default_rng(0)
    to_backend = backend.testing.to_backend
    for _ in range(2):
        arrays = [rng.standard_normal((BATCH, OBS)), rng.uniform(-1, 1, (BATCH, ACT)), rng.standard_normal(BATCH)]
        batch = Batch(*arrays, rng.standard_normal((BATCH, OBS)), np.full(BATCH, 0.9), number=np.arange(BATCH))
        noise = draw(rng, learner.noise_spec((BATCH, ACT)), np.float64)
        state, metrics = learner.step(state, to_backend(batch), to_backend(noise))
        assert np.isfinite(float(backend.testing.to_numpy(metrics["critic_loss"])))
    return {name: np.array(array) for name, array in backend.to_arrays(state).items()}


@pytest.mark.parametrize(("recipe", "critic"), list(itertools.product(RECIPES, CRITICS)))
def test_every_recipe_with_every_critic(recipe: str, critic: str) -> None:
    """Also as a SimBa. Networks and objective change together; both networks learn, and the actor sees all critics."""
    torch = load_backend("torch")
    network = "simba" if critic in ("recipe", "categorical") else "mlp"
    learner, state = start(torch, recipe, critic=critic, network=network)
    before = {name: np.array(array) for name, array in torch.to_arrays(state).items()}
    after = two_updates(torch, recipe, critic=critic, network=network)
    assert after.keys() == before.keys()
    for part in ("actor.", "critic."):
        assert any((after[name] != before[name]).any() for name in after if name.startswith(part))
    kinds = {"twin": "MeanSquaredTD", "ensemble": "MeanSquaredTD", "gaussian": "GaussianTD"}
    if critic != "recipe":
        assert type(learner.critic_objective).__name__ == kinds.get(critic, "CategoricalTD")
    assert learner.critic_objective.soft == (recipe in ("sac", "dsact", "maxentdp", "dime"))
    assert ("critic.layers.1.up.weight" in after) == (network == "simba") == ("actor.layers.1.up.weight" in after)
    if critic == "ensemble":
        assert after["critic.layers.0.weight"].shape[0] == 10


@pytest.mark.parametrize(
    ("recipe", "critic", "network"),
    [
        ("sac", "categorical", "simba"),
        ("td3", "ensemble", "mlp"),
        ("dsact", "recipe", "simba"),
        ("dime", "recipe", "mlp"),
    ],
)
def test_both_backends_take_the_same_updates(both: SimpleNamespace, recipe: str, critic: str, network: str) -> None:
    import jax

    one = two_updates(both.torch, recipe, critic=critic, network=network)
    with jax.disable_jit():
        other = two_updates(both.equinox, recipe, critic=critic, network=network)
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_allclose(array, other[name], rtol=1e-9, atol=1e-11, err_msg=name)


def test_range_of_a_categorical_critic_is_in_units_of_the_reward(backend: ModuleType) -> None:
    """2000 times the reward's scale: +-400 at 0.2."""
    _, state = start(backend, "dacer", critic="categorical")
    assert (state.critic.v_min, state.critic.v_max) == (-400.0, 400.0)
    _, state = start(backend, "sac", critic="categorical", value_range=50.0, projection="c51")
    assert (state.critic.v_min, state.critic.v_max) == (-50.0, 50.0)


@pytest.mark.parametrize("critic", ["recipe", "categorical", "twin"])
def test_dime_takes_the_mean_of_its_critics(backend: ModuleType, critic: str) -> None:
    """In targets and in the actor's loss; others take the smaller one."""
    learner, state = start(backend, "dime", critic=critic, critic_hidden_sizes=(12,))
    assert learner.critic_objective.ensemble == learner.actor_objective.ensemble == "mean"
    assert state.critic.hidden_sizes == (12,) != state.actor.hidden_sizes
    learner, _ = start(backend, "sac", critic=critic)
    assert learner.critic_objective.ensemble == learner.actor_objective.ensemble == "min"


def test_choices_without_sense_are_refused(backend: ModuleType) -> None:
    with pytest.raises(UsageError, match=r"a gaussian critic has no mean squared error for the factor 0\.5"):
        start(backend, "sac", critic="gaussian", critic_loss_factor=0.5)
    with pytest.raises(UsageError, match=r"a categorical critic has no use for huber_delta=50\.0"):
        start(backend, "dsact", critic="categorical", huber_delta=50.0)
    with pytest.raises(UsageError, match="hidden_sizes of a SimBa must be the same width"):
        start(backend, "td3", network="simba", hidden_sizes=(400, 300))
    with pytest.raises(UsageError, match="value_range must be greater than 0 and finite, got -1"):
        sac.Config(value_range=-1.0)
    for field in ({"critic": "distributional"}, {"network": "resnet"}, {"projection": "c52"}):
        with pytest.raises(UsageError, match=next(iter(field.values()))):
            sac.Config(**field)  # pyright: ignore[reportArgumentType]
