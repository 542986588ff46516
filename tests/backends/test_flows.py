"""Flows: each objective and sampler with `flow_schedule` and velocities, and what is undefined there is refused.

Agreement, gradients and the general properties of the rows are tested elsewhere; here is what runs and what does not.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from diffac.errors import UsageError
from diffac.parts.schedules import TabularSchedule, flow_schedule, vp_schedule
from diffac.protocols import Policy
from diffac.testing.conformance import unchecked_shapes
from diffac.testing.parts import ACTORS, CRITICS, DIMS, make_batch, make_noise, randomise

FLOW, WITH_SIGNAL = flow_schedule(4), flow_schedule(4, last=0.9)
BACKWARDS = {"ddpm": "DDPMSampler", "euler": "DDIMSampler", "heun": "HeunSampler"}


def sampler(B: ModuleType, name: str, schedule: Any = FLOW) -> Any:
    return getattr(B, BACKWARDS[name])(schedule)


def sampled(B: ModuleType, part: Any, actor: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    network = randomise(B, ACTORS[actor](B, DIMS, 0), rng, 0.5)
    obs, noise = B.testing.to_backend((make_batch(rng).obs, make_noise(rng, part)))
    with unchecked_shapes():
        return B.testing.to_numpy(part(Policy(network), obs, noise))


def slopes(B: ModuleType, objective: Any, actor: str) -> dict[str, np.ndarray]:
    """The gradient of a batch; refuses one that is not finite."""
    rng = np.random.default_rng(0)
    network, critic = (randomise(B, make(B, DIMS, 0), rng, 0.5) for make in (ACTORS[actor], CRITICS["twin"]))
    batch, noise = make_batch(rng), make_noise(rng, objective)
    with unchecked_shapes():
        loss, gradient = B.testing.value_and_grad(
            objective, network, critic, batch, noise, np.array(0.5), objective.init_state()
        )
    assert np.isfinite(loss.value)
    assert all(np.isfinite(slope).all() for slope in gradient.values())
    return gradient


def matching(proposal: Callable[[ModuleType], Any], schedule: Any, space: str = "output") -> Callable[..., Any]:
    return lambda B: B.ReweightedScoreMatching(schedule, proposal(B), space)


def pull(source: str, space: str = "score", step: float | None = None) -> Callable[..., Any]:
    return lambda B: B.TimeWeightedQGradient(
        sampler(B, "ddpm"), FLOW, source=source, space=space, contractive_step=step
    )


OBJECTIVES: dict[str, Callable[[ModuleType], Any]] = {
    **{f"value through {name}": lambda B, name=name: B.ValueThroughSampler(sampler(B, name)) for name in BACKWARDS},
    "policy": matching(lambda B: B.PolicyProposal(), FLOW),
    "policy, noises": matching(lambda B: B.PolicyProposal(), FLOW, "eps"),
    "reverse": matching(lambda B: B.ReverseProposal(sampler(B, "euler", WITH_SIGNAL), 3), WITH_SIGNAL),
    "reverse, noises": matching(lambda B: B.ReverseProposal(sampler(B, "heun", WITH_SIGNAL), 3), WITH_SIGNAL, "eps"),
    "reverse, gradients": matching(
        lambda B: B.ReverseProposal(
            sampler(B, "ddpm", WITH_SIGNAL), 3, truncated=False, gradient_weight="minimum_variance"
        ),
        WITH_SIGNAL,
    ),
    "reverse, a chain on the whole flow": matching(lambda B: B.ReverseProposal(sampler(B, "euler"), 3), WITH_SIGNAL),
    "pull on the chain": pull("chain"),
    "pull in noises": pull("forward", "eps"),
    "pull at replayed actions": pull("replay"),
    "pull that contracts": pull("chain", "eps", 0.2),
}
"""All of which look at a denoiser of one time."""


@pytest.mark.parametrize("actor", ["velocity", "clean"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_run_on_a_flow(backend: ModuleType, name: str, actor: str) -> None:
    """With velocities and with clean actions; and the loss reaches the network."""
    gradient = slopes(backend, OBJECTIVES[name](backend), actor)
    assert max(np.abs(slope).max() for slope in gradient.values()) > 1e-6


@pytest.mark.parametrize("actor", ["velocity", "clean"])
@pytest.mark.parametrize("name", BACKWARDS)
def test_samplers_run_on_a_flow(backend: ModuleType, name: str, actor: str) -> None:
    action = sampled(backend, sampler(backend, name), actor)
    assert action.shape == DIMS.shape
    assert np.abs(action).max() <= 1
    assert np.ptp(action) > 0.01


@pytest.mark.parametrize("name", BACKWARDS)
def test_noises_need_signal(backend: ModuleType, name: str) -> None:
    """A predicted noise stands for no action where alpha is 0; with some signal left it does."""
    with pytest.raises(UsageError, match=r'alpha\(3\) of the schedule is 0.*prediction="velocity" or "action"'):
        sampled(backend, sampler(backend, name), "denoiser")
    assert np.abs(sampled(backend, sampler(backend, name, WITH_SIGNAL), "denoiser")).max() <= 1


def test_a_step_from_predicted_actions_needs_signal(backend: ModuleType) -> None:
    objective = backend.TimeWeightedQGradient(
        sampler(backend, "ddpm"), FLOW, source="replay", space="eps", contractive_step=0.2
    )
    with pytest.raises(UsageError, match=r'alpha\(3\) of the schedule is 0.*prediction="velocity" or "action"'):
        slopes(backend, objective, "denoiser")


@pytest.mark.parametrize("truncated", [True, False])
def test_guesses_need_signal(backend: ModuleType, truncated: bool) -> None:
    """Whatever the network predicts: without signal every action is as likely to lie behind the noise."""
    proposal = backend.ReverseProposal(sampler(backend, "euler"), 3, truncated=truncated)
    for actor in ("denoiser", "velocity"):
        with pytest.raises(UsageError, match=r"alpha\(3\) of the schedule is 0.*no reverse kernel.*last=0\.98"):
            slopes(backend, backend.ReweightedScoreMatching(FLOW, proposal, "output"), actor)


def test_noises_are_learnt_on_a_whole_flow(backend: ModuleType) -> None:
    """Regression of noises needs no signal: nothing is divided by alpha."""
    for space in ("eps", "output"):
        gradient = slopes(backend, backend.ReweightedScoreMatching(FLOW, backend.PolicyProposal(), space), "denoiser")
        assert max(np.abs(slope).max() for slope in gradient.values()) > 1e-6


def test_networks_of_one_and_of_two_times_are_told_apart(backend: ModuleType) -> None:
    """Where one is given in place of the other, a sentence says so when a learner is put together."""
    critic, pairs = CRITICS["twin"](backend, DIMS, 1), backend.MeanFlowMatching(backend.PolicyProposal())
    euler, matched = sampler(backend, "euler"), OBJECTIVES["policy"](backend)

    def started(sampler: Any, objective: Any, actor: str) -> Any:
        learner = backend.Learner(
            sampler=sampler,
            actor_objective=objective,
            critic_objective=backend.MeanSquaredTD(),
            temperature=backend.FixedTemperature(),
            actor_optimiser=backend.Adam(),
            critic_optimiser=backend.Adam(),
        )
        return learner.init(ACTORS[actor](backend, DIMS, 0), critic)

    started(backend.MeanFlowSampler(), pairs, "mean_velocity")
    started(euler, matched, "velocity")
    one = r"as actor\(obs, noisy, t, r\), and MLPDenoiser takes \(obs, noisy, t\); use an actor such as MeanFlowActor"
    two = r"as actor\(obs, noisy, t\), and MeanFlowActor takes \(obs, noisy, t, r\); use an actor such as MLPDenoiser"
    drift = backend.LangevinSampler(2)
    value = backend.EntropyRegularisedValue(drift)
    started(drift, value, "langevin")
    with pytest.raises(UsageError, match=r"LangevinSampler needs .* predicts 'drift', and MLPDenoiser predicts 'eps'"):
        started(drift, value, "denoiser")
    with pytest.raises(UsageError, match=r"'eps' or 'velocity' or 'action', and LangevinActor predicts 'drift'; use"):
        started(euler, value, "langevin")
    with pytest.raises(UsageError, match=r"Matching needs an actor that predicts 'eps'.* such as MLPDenoiser"):
        started(drift, matched, "langevin")
    for part, objective in ((backend.MeanFlowSampler(), matched), (euler, pairs)):
        with pytest.raises(UsageError, match=one):
            started(part, objective, "velocity")
        with pytest.raises(UsageError, match=two):
            started(part, objective, "mean_velocity")


@pytest.mark.parametrize(
    "schedule", [vp_schedule(4), TabularSchedule([1, 1], [0.5, 1]), TabularSchedule([0.5, 0.0], [0.5, 0.9])], ids=str
)
def test_heun_off_the_flow(backend: ModuleType, schedule: TabularSchedule) -> None:
    with pytest.raises(UsageError, match=r"HeunSampler needs a flow.*for any other schedule use DDIMSampler"):
        backend.HeunSampler(schedule)


def test_one_step_of_heun_is_one_of_euler(backend: ModuleType) -> None:
    for actor in ("velocity", "clean"):
        steps = [getattr(backend, name)(FLOW, num_steps=1) for name in ("DDIMSampler", "HeunSampler")]
        np.testing.assert_allclose(*(sampled(backend, step, actor) for step in steps), rtol=1e-12)


def test_a_step_of_heun_averages_two_velocities(backend: ModuleType) -> None:
    """Where the denoiser is asked, and what comes of it: at s = 1, at Euler's guess for 1/2, at Heun's state there."""
    asked: list[tuple[int, np.ndarray]] = []

    class Linear:
        prediction = "velocity"

        def __call__(self, obs: Any, noisy: Any, t: Any) -> Any:
            asked.append((int(t), backend.testing.to_numpy(noisy)))
            return 0.9 * noisy

    start = np.array([[0.2, -0.4]])
    noise, obs = backend.testing.to_backend(({"start": start}, np.zeros((1, 1))))
    action = backend.testing.to_numpy(backend.HeunSampler(flow_schedule(2))(Policy(Linear()), obs, noise))
    euler = start - 0.5 * 0.9 * start
    middle = start - 0.25 * (0.9 * start + 0.9 * euler)
    assert [t for t, _ in asked] == [1, 0, 0]
    for (_, noisy), expected in zip(asked, (start, euler, middle), strict=True):
        np.testing.assert_allclose(noisy, expected, rtol=1e-12)
    np.testing.assert_allclose(action, middle - 0.5 * 0.9 * middle, rtol=1e-12)


def test_a_mean_flow_in_two_halves(backend: ModuleType) -> None:
    """A step carries its length: two half steps differ from one as the field says, and one that is exact does not."""

    def sampled_by(field: Callable[..., Any], steps: int) -> np.ndarray:
        noise, obs = backend.testing.to_backend(({"start": np.array([[0.4, -0.8]])}, np.zeros((1, 1))))
        return backend.testing.to_numpy(backend.MeanFlowSampler(steps)(Policy(field), obs, noise))

    start = np.array([[0.4, -0.8]])
    bent, straight = (lambda obs, x, t, r: 0.6 * x * (t + r)), (lambda obs, x, t, r: 0.5 + 0 * x)
    np.testing.assert_allclose(sampled_by(bent, 1), start - 0.6 * start, rtol=1e-12)
    middle = start - 0.5 * 0.6 * 1.5 * start
    np.testing.assert_allclose(sampled_by(bent, 2), middle - 0.5 * 0.6 * 0.5 * middle, rtol=1e-12)
    for steps in (1, 2, 5):
        np.testing.assert_allclose(sampled_by(straight, steps), np.maximum(start - 0.5, -1), rtol=1e-12)
