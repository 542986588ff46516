"""Properties that every row of the tables has in every backend, beyond agreement (DESIGN 4)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import load_backend

from diffac.noise import Integers, draw
from diffac.parts.critics import next_rollout
from diffac.parts.schedules import tabulated
from diffac.protocols import Batch, Loss, Policy
from diffac.testing.parts import (
    ACTORS,
    CRITIC_OBJECTIVES,
    CRITICS,
    DIMS,
    NOISE_SCHEDULES,
    OBJECTIVES,
    SAMPLERS,
    Part,
    chain,
    changed,
    make_actor,
    make_batch,
    make_critic,
    make_engine,
    make_noise,
    randomise,
    schedule,
)

TEMPERATURE = np.float64(0.3)
BATCH_AXIS_SIZE = DIMS.batch
assert BATCH_AXIS_SIZE not in (DIMS.obs, DIMS.action, DIMS.steps, 1, 3, 6), "the batch axis is found by its size"


def tree_map(function: Callable[[Any], Any], tree: Any) -> Any:
    """Over nested mappings and tuples of arrays; None stays."""
    if isinstance(tree, Mapping):
        return {name: tree_map(function, value) for name, value in tree.items()}
    if isinstance(tree, tuple):
        return type(tree)(*[tree_map(function, value) for value in tree])
    return None if tree is None else function(tree)


def permute(tree: Any, order: np.ndarray) -> Any:
    """Every array of the tree with its batch axis (the one of that size) permuted."""

    def one(array: np.ndarray) -> np.ndarray:
        axes = [axis for axis, size in enumerate(array.shape) if size == BATCH_AXIS_SIZE]
        assert len(axes) == 1, array.shape
        return np.take(array, order, axes[0])

    return tree_map(one, tree)


def same(one: Any, other: Any, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    """Equality of nested mappings, tuples and arrays up to rounding."""
    if isinstance(one, Mapping):
        assert set(one) == set(other)
        for name in one:
            same(one[name], other[name], rtol, atol)
    elif isinstance(one, tuple):
        for left, right in zip(one, other, strict=True):
            same(left, right, rtol, atol)
    elif one is None:
        assert other is None
    else:
        scale = np.abs(one).max(initial=0.0)
        np.testing.assert_allclose(other, one, rtol=rtol, atol=atol + rtol * scale)


def all_finite(tree: Any) -> bool:
    """No NaN and no infinity in any array of the tree."""
    if isinstance(tree, Mapping):
        return all(all_finite(value) for value in tree.values())
    if isinstance(tree, tuple):
        return all(all_finite(value) for value in tree)
    return tree is None or bool(np.isfinite(np.asarray(tree)).all())


@dataclasses.dataclass
class Case:
    """A row with one instance of its part, so that nothing is compiled twice for the same shapes."""

    backend: ModuleType
    part: Part
    it: Any
    """The sampler or objective."""

    def actor(self, seed: int = 1, magnitude: float = 1.0, dtype: Any = np.float64) -> Any:
        return randomise(
            self.backend, make_actor(self.backend, self.part), np.random.default_rng(seed), magnitude, dtype
        )

    def critic(
        self, seed: int = 2, *, scale: float = 1.0, shift: float = 0.0, dtype: Any = np.float64, magnitude: float = 1.0
    ) -> Any:
        """The critic whose values (the means of a distributional one) are scale * Q + shift."""
        critic = make_critic(self.backend, self.part)
        critic = randomise(self.backend, critic, np.random.default_rng(seed), magnitude, dtype)
        arrays = {name: np.array(value) for name, value in self.backend.to_arrays(critic).items()}
        last = max(int(name.split(".")[1]) for name in arrays)
        weight, bias = arrays[f"layers.{last}.weight"], arrays[f"layers.{last}.bias"]
        weight[:, 0] *= scale
        bias[:, 0] = scale * bias[:, 0] + shift
        return self.backend.from_arrays(critic, arrays)

    def evaluate(
        self, actor: Any, critic: Any, batch: Batch, noise: Any, temperature: Any = TEMPERATURE, state: Any = None
    ) -> tuple[Loss, Mapping[str, np.ndarray]]:
        """Loss and gradient of an actor objective."""
        state = self.it.init_state() if state is None else state
        return self.backend.testing.value_and_grad(self.it, actor, critic, batch, noise, temperature, state)


@functools.cache
def case_of(backend_name: str, table: str, name: str) -> Case:
    backend = load_backend(backend_name)
    part = {"objective": OBJECTIVES, "critic": CRITIC_OBJECTIVES, "sampler": SAMPLERS}[table][name]
    return Case(backend, part, part.make(backend, DIMS))


def inputs(case: Case, seed: int = 0, dtype: Any = np.float64, **options: Any) -> tuple[Batch, dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return make_batch(rng, dtype=dtype, **options), make_noise(rng, case.it, dtype=dtype)


def informative(case: Case) -> tuple[Any, Any, Batch, Any, Any]:
    """Actor, critic, batch, noise and result with a gradient: a random short chain is often clipped in every entry."""
    critic = case.critic()
    for seed in range(30):
        actor = case.actor(seed, magnitude=0.7)
        batch, noise = inputs(case, seed)
        result = case.evaluate(actor, critic, batch, noise)
        if max(np.abs(value).max() for value in result[1].values()) > 1e-3:
            return actor, critic, batch, noise, result
    raise AssertionError("no gradient at all")


# actor objectives


@pytest.mark.parametrize("name", OBJECTIVES)
def test_permuting_the_batch_keeps_the_loss(backend: ModuleType, name: str) -> None:
    case = case_of(backend.name, "objective", name)
    actor, critic, batch, noise, plain = informative(case)
    order = np.array([3, 0, 4, 1, 2])
    permuted = case.evaluate(actor, critic, permute(batch, order), permute(noise, order))
    same(tuple(plain[0])[:3], tuple(permuted[0])[:3])
    if plain[0].log_prob is not None:
        same(plain[0].log_prob[order], permuted[0].log_prob)
    same(plain[1], permuted[1])


def test_policy_weights_do_not_depend_on_the_scale_of_q(backend: ModuleType) -> None:
    """The advantage is normalised, so the temperature means the same for every reward scale."""
    case = case_of(backend.name, "objective", "policy")
    batch, noise = inputs(case)
    actor = case.actor()
    same(
        case.evaluate(actor, case.critic(scale=3.0), batch, noise)[1],
        case.evaluate(actor, case.critic(scale=30.0), batch, noise)[1],
        rtol=1e-6,
    )


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_extreme_inputs_give_finite_results_in_float32(backend: ModuleType, name: str, scale: float) -> None:
    """Observations of 1e3, Q of 1e4, actions on the boundary, every t; and nothing is promoted to float64."""
    case = case_of(backend.name, "objective", name)
    rng = np.random.default_rng(0)
    dtype = np.float32
    actor, critic = case.actor(dtype=dtype), case.critic(scale=scale, dtype=dtype)
    batch = make_batch(rng, magnitude=1e3, dtype=dtype)
    edge = np.where(rng.random(batch.action.shape) < 0.5, -1, 1).astype(dtype)
    batch = batch._replace(action=edge, next_rollout=next_rollout(case.it, batch)._replace(action=edge[::-1].copy()))
    noise = make_noise(rng, case.it, dtype=dtype)
    state = case.it.init_state()
    state = {name: np.asarray(value, dtype if value.dtype.kind == "f" else None) for name, value in state.items()}
    for start in range(0, DIMS.steps, 2):
        noise = at_times(noise, case.it.noise_spec(DIMS.shape), np.arange(DIMS.batch) + start)
        loss, gradient = case.evaluate(actor, critic, batch, noise, np.float32(0.1), state)
        assert all_finite(tuple(loss)), loss
        assert all_finite(gradient)
        assert np.asarray(loss.value).dtype == dtype
        assert all(np.asarray(value).dtype == dtype for value in loss.metrics.values())
        assert all(value.dtype == dtype for value in gradient.values())
        if not any(np.asarray(x).dtype.kind == "i" for x in leaves(noise)):
            break


def at_times(noise: Any, spec: Any, times: np.ndarray) -> Any:
    """The noise with these times, from 0 on again after the last one, in place of those drawn."""
    if isinstance(spec, Mapping):
        return {name: at_times(noise[name], law, times) for name, law in spec.items()}
    return (times % spec.high).astype(noise.dtype) if isinstance(spec, Integers) else noise


def leaves(tree: Any) -> list[Any]:
    if isinstance(tree, Mapping):
        return [leaf for value in tree.values() for leaf in leaves(value)]
    return [tree]


@pytest.mark.parametrize("table", [name for name in NOISE_SCHEDULES if name != "flow"])
@pytest.mark.parametrize("truncated", [True, False])
@pytest.mark.parametrize("edge", [0.0, 1.0])
def test_reverse_samples_are_finite_and_inside_for_every_t(
    backend: ModuleType, table: str, truncated: bool, edge: float
) -> None:
    """T = 20, float32, noised actions far outside and uniform noise at its ends."""
    dims = DIMS._replace(steps=20, batch=20)
    dtype = np.float32
    part = Part(
        lambda B, d: B.ReverseProposal(chain(B, d, table), num_particles=7, value_scale=5.0, truncated=truncated)
    )
    proposal, steps = part.make(backend, dims), schedule(dims, table)
    objective = backend.ReweightedScoreMatching(steps, proposal)
    case = Case(backend, part, proposal)
    rng = np.random.default_rng(0)
    noise = make_noise(rng, objective, dims, dtype)
    noise["t"] = np.arange(20, dtype=np.int32)
    noise["eps"] = (6 * np.sign(noise["eps"]) * (edge or np.abs(noise["eps"]))).astype(dtype)
    if truncated:
        assert noise["particles"].min() >= 0
        assert noise["particles"].max() < 1
        noise["particles"][0], noise["particles"][1] = 0, np.nextafter(dtype(1), dtype(0))
    to_backend, to_numpy = backend.testing.to_backend, backend.testing.to_numpy
    batch = make_batch(rng, dims, dtype=dtype)
    regression = proposal(
        case.actor(magnitude=5, dtype=dtype),
        case.critic(scale=1e4, dtype=dtype),
        to_backend(batch),
        to_backend(noise),
        to_backend(np.float32(0.1)),
        {},
        steps,
    )
    numbers = {
        name: to_numpy(getattr(regression, name)) for name in ("obs", "noisy", "t", "target", "weight", "spread")
    }
    assert all_finite(numbers)
    assert all_finite(to_numpy(dict(regression.metrics)))
    assert numbers["target"].shape == dims.shape
    assert numbers["target"].dtype == dtype
    # a weighted mean of eps_k whose a0_k lie in the box, so it maps to a point of the box
    values = tabulated(NOISE_SCHEDULES[table](20))
    alpha, sigma = values.alphas[:, None], values.sigmas[:, None]
    mean_action = (numbers["noisy"].astype(np.float64) - sigma * numbers["target"]) / alpha
    slack = 1e-4 + 1e-5 * np.abs(numbers["noisy"]).max() / alpha  # rounding of noisy / alpha in float32
    if truncated:
        assert (np.abs(mean_action) <= 1 + slack).all()


# Sum


def test_sum_with_a_shared_rollout_is_its_terms(backend: ModuleType) -> None:
    rng = np.random.default_rng(0)
    sampler = backend.AdditiveNoise(chain(backend))
    value = backend.ValueThroughSampler(sampler)
    pull = backend.TimeWeightedQGradient(sampler, schedule(), source="forward")
    other = backend.ReweightedScoreMatching(schedule(), backend.PolicyProposal(rate=0.1))
    total = backend.Sum((1.0, value), (0.5, pull), (2.0, other), rollout_of=sampler)
    batch, noise = make_batch(rng), make_noise(rng, total)
    assert set(noise) == {"rollout", "term0", "term1", "term2"}
    assert set(noise["term0"]) == set()
    assert set(noise["term1"]) == {"eps"}
    part = Part(lambda B, d: None)
    actor, critic = Case(backend, part, None).actor(), Case(backend, part, None).critic()
    loss, gradient = Case(backend, part, total).evaluate(actor, critic, batch, noise)
    expected_value, expected_gradient = 0.0, dict.fromkeys(gradient, 0.0)
    states = {}
    for i, (weight, term) in enumerate(((1.0, value), (0.5, pull), (2.0, other))):
        own = {**noise[f"term{i}"], **({"rollout": noise["rollout"]} if i < 2 else {})}
        one, slope = Case(backend, part, term).evaluate(actor, critic, batch, own)
        expected_value += weight * float(one.value)
        expected_gradient = {name: expected_gradient[name] + weight * slope[name] for name in gradient}
        states |= {f"term{i}.{name}": entry for name, entry in one.state.items()}
    assert float(loss.value) == pytest.approx(expected_value, rel=1e-9)
    same(expected_gradient, gradient)
    same(states, dict(loss.state))
    assert set(total.init_state()) == set(states)
    assert set(states) == {"term2.q_mean_ema", "term2.q_std_ema", "term2.count"}


def test_sum_runs_the_shared_chain_once(backend: ModuleType) -> None:
    """Counts the calls of the denoiser: T for one chain and one batched pass, against 2 T + 1 for the terms apart."""
    calls = []
    sampler = chain(backend)
    terms = [backend.ValueThroughSampler(sampler), backend.TimeWeightedQGradient(sampler, schedule())]
    total = backend.Sum((1.0, terms[0]), (0.5, terms[1]), rollout_of=sampler)
    rng = np.random.default_rng(0)
    inner = make_actor(backend, Part(lambda B, d: None))

    def counting(obs: Any, noisy: Any, t: Any) -> Any:
        calls.append(1)
        return inner(obs, noisy, t)

    to_backend = backend.testing.to_backend
    critic = CRITICS["twin"](backend, DIMS, 2)
    batch, temperature = to_backend(make_batch(rng)), to_backend(TEMPERATURE)
    total(counting, critic, batch, to_backend(make_noise(rng, total)), temperature, {})
    together = len(calls)
    for term in terms:
        term(counting, critic, batch, to_backend(make_noise(rng, term)), temperature, {})
    assert together == DIMS.steps + 1
    assert len(calls) - together == 2 * DIMS.steps + 1


def test_reverse_proposal_evaluates_the_denoiser_once(backend: ModuleType) -> None:
    """DESIGN 5.2: the K particles share one evaluation at the noised action."""
    calls = []
    objective = OBJECTIVES["reverse_truncated"].make(backend, DIMS)
    inner = make_actor(backend, OBJECTIVES["reverse_truncated"])

    def counting(obs: Any, noisy: Any, t: Any) -> Any:
        calls.append(tuple(noisy.shape))
        return inner(obs, noisy, t)

    rng = np.random.default_rng(0)
    to_backend = backend.testing.to_backend
    noise = to_backend(make_noise(rng, objective))
    critic = CRITICS["twin"](backend, DIMS, 2)
    objective(counting, critic, to_backend(make_batch(rng)), noise, to_backend(TEMPERATURE), {})
    assert calls.count(DIMS.shape) == 1
    assert len(calls) == DIMS.steps + 1  # the chain of the proposal (best of 2) and the regression


# critic objectives


@pytest.mark.parametrize("name", CRITIC_OBJECTIVES)
def test_permuting_the_batch_keeps_the_critic_loss(backend: ModuleType, name: str) -> None:
    case = case_of(backend.name, "critic", name)
    batch, noise = inputs(case)
    critic, target = case.critic(2), case.critic(3)
    order = np.array([3, 0, 4, 1, 2])
    state = case.it.init_state(critic)
    arguments = (target, batch, noise, TEMPERATURE, state)
    # a random pair is one for the whole batch
    moved = {name: value if name == "pair" else permute(value, order) for name, value in noise.items()}
    permuted = (target, permute(batch, order), moved, TEMPERATURE, state)
    one, other = (backend.testing.value_and_grad(case.it, critic, *a) for a in (arguments, permuted))
    same(tuple(one[0]), tuple(other[0]))
    same(one[1], other[1])
    assert max(np.abs(value).max() for value in one[1].values()) > 0


@pytest.mark.parametrize("name", CRITIC_OBJECTIVES)
def test_targets_are_detached(backend: ModuleType, name: str) -> None:
    """A critic that is its own target gets the gradient that it would get from a copy of itself as target."""
    case = case_of(backend.name, "critic", name)
    batch, noise = inputs(case)
    critic, copy = case.critic(2), case.critic(2)
    assert critic is not copy
    gradients = [
        backend.testing.value_and_grad(case.it, critic, target, batch, noise, TEMPERATURE, case.it.init_state(critic))[
            1
        ]
        for target in (critic, copy)
    ]
    same(gradients[0], gradients[1])


@pytest.mark.parametrize("name", CRITIC_OBJECTIVES)
def test_extreme_inputs_give_finite_critic_losses_in_float32(backend: ModuleType, name: str) -> None:
    case = case_of(backend.name, "critic", name)
    dtype = np.float32
    rng = np.random.default_rng(0)
    batch = make_batch(rng, magnitude=1e3, dtype=dtype)
    edge = np.where(rng.random(batch.action.shape) < 0.5, -1, 1).astype(dtype)
    batch = batch._replace(action=edge, next_rollout=next_rollout(case.it, batch)._replace(action=edge[::-1].copy()))
    noise = tree_map(lambda x: (10 * x).astype(dtype), make_noise(rng, case.it, dtype=dtype))
    for scale, magnitude in ((1.0, 1.0), (1e4, 1.0), (1e4, 1e-3)):  # the last one: standard deviations near log 2
        critic, target = (case.critic(k, scale=scale, dtype=dtype, magnitude=magnitude) for k in (2, 3))
        state = {entry: np.asarray(value, dtype) for entry, value in case.it.init_state(critic).items()}
        loss, gradient = backend.testing.value_and_grad(case.it, critic, target, batch, noise, np.float32(0.1), state)
        assert all_finite(tuple(loss))
        assert all_finite(gradient)
        assert np.asarray(loss.value).dtype == dtype
        assert all(value.dtype == dtype for value in gradient.values())


# samplers


def sample(case: Case, actor: Any, critic: Any, obs: Any, noise: Any, temperature: Any = TEMPERATURE) -> Any:
    """The rollout, as NumPy."""
    to_backend = case.backend.testing.to_backend
    rollout = case.it.rollout(Policy(actor, critic, to_backend(temperature)), to_backend(obs), to_backend(noise))
    return case.backend.testing.to_numpy(rollout)


@pytest.mark.parametrize("name", SAMPLERS)
def test_permuting_the_batch_permutes_the_actions(backend: ModuleType, name: str) -> None:
    case = case_of(backend.name, "sampler", name)
    batch, noise = inputs(case)
    order = np.array([3, 0, 4, 1, 2])
    actor, critic = case.actor(), case.critic()
    plain = sample(case, actor, critic, batch.obs, noise)
    permuted = sample(case, actor, critic, batch.obs[order], permute(noise, order))
    same(permute(tuple.__new__(type(plain), plain), order), permuted)
    assert plain.action.shape == DIMS.shape
    assert np.abs(plain.action[0] - plain.action[1]).max() > 1e-6, "the action does not depend on the state"


@pytest.mark.parametrize("name", SAMPLERS)
def test_actions_lie_in_the_box(backend: ModuleType, name: str) -> None:
    case = case_of(backend.name, "sampler", name)
    batch, noise = inputs(case, magnitude=30.0)
    rollout = sample(case, case.actor(magnitude=10), case.critic(), batch.obs, tree_map(lambda x: 4 * x, noise))
    assert all_finite(tuple(rollout))
    assert (np.abs(rollout.action).max() <= 1) == (name != "additive_unclipped")


def test_rollout_states_are_those_of_the_denoiser(backend: ModuleType) -> None:
    """Entry t of `noisy` is what the denoiser saw at time t; noise grows with t."""
    for sampler in (chain(backend), backend.DDIMSampler(schedule())):
        seen = {}

        def denoiser(obs: Any, noisy: Any, t: Any, seen: dict[int, Any] = seen) -> Any:
            seen[int(t)] = noisy
            return 0.1 * noisy

        rng = np.random.default_rng(0)
        to_backend, to_numpy = backend.testing.to_backend, backend.testing.to_numpy
        noise = make_noise(rng, sampler)
        rollout = to_numpy(
            sampler.rollout(Policy(denoiser), to_backend(rng.standard_normal((5, 3))), to_backend(noise))
        )
        assert sorted(seen) == list(range(DIMS.steps))
        for t in range(DIMS.steps):
            same(rollout.noisy[t], to_numpy(seen[t]))
        same(rollout.noisy[-1], sampler.first_scale * noise["start"])


INNER = {
    "ddpm": Part(chain),
    "tanh_gaussian": SAMPLERS["tanh_gaussian"],
}


@pytest.mark.parametrize("name", INNER)
def test_best_of_picks_the_argmax(backend: ModuleType, name: str) -> None:
    inner = INNER[name].make(backend, DIMS)
    best = backend.BestOf(inner, num_candidates=6)
    case, plain = Case(backend, INNER[name], best), Case(backend, INNER[name], inner)
    batch, noise = inputs(case)
    actor, critic = case.actor(), case.critic()
    chosen = sample(case, actor, critic, batch.obs, noise)
    every = sample(plain, actor, critic, batch.obs, noise["candidates"])
    to_backend = backend.testing.to_backend
    scores = backend.testing.to_numpy(critic(to_backend(batch.obs), to_backend(every.action))).min(0)
    winner = scores.argmax(0)
    assert len(set(winner)) > 1, "an uninformative draw"
    rows = np.arange(DIMS.batch)
    same(every.action[winner, rows], chosen.action)
    if every.noisy is not None:
        same(every.noisy[:, winner, rows], chosen.noisy)
    if every.log_prob is not None:
        same(every.log_prob[winner, rows], chosen.log_prob)


def test_best_of_takes_the_first_of_equals(backend: ModuleType) -> None:
    """Clipped candidates are often the same action, after different states."""
    inner = chain(backend)
    best = Case(backend, INNER["ddpm"], backend.BestOf(inner, num_candidates=6))
    batch, noise = inputs(best)
    actor = best.actor()
    chosen = sample(best, actor, lambda obs, action: 0 * action.sum(-1)[None], batch.obs, noise)
    every = sample(Case(backend, INNER["ddpm"], inner), actor, None, batch.obs, noise["candidates"])
    same(every.action[0], chosen.action)
    same(every.noisy[:, 0], chosen.noisy)


@pytest.mark.parametrize("name", INNER)
def test_best_of_one_is_the_plain_sampler(backend: ModuleType, name: str) -> None:
    inner = INNER[name].make(backend, DIMS)
    plain, case = Case(backend, INNER[name], inner), Case(backend, INNER[name], backend.BestOf(inner, num_candidates=1))
    batch, noise = inputs(plain)
    actor, critic = case.actor(), case.critic()
    one = sample(plain, actor, critic, batch.obs, noise)
    other = sample(case, actor, critic, batch.obs, {"candidates": tree_map(lambda x: with_candidate(x), noise)})
    assert type(one) is type(other)
    for left, right in zip(one, other, strict=True):
        assert type(left) is type(right)
        if left is not None:
            assert (left.shape, left.dtype) == (right.shape, right.dtype)
    same(tuple(one), tuple(other))


def with_candidate(array: np.ndarray) -> np.ndarray:
    """The noise of a plain sampler as that of one candidate: the candidate axis stands before the batch axis."""
    return array.reshape(*array.shape[:-2], 1, *array.shape[-2:])


def test_additive_noise_formula(backend: ModuleType) -> None:
    rng = np.random.default_rng(0)
    inner = chain(backend)
    noise = draw(rng, backend.AdditiveNoise(inner, noise_scale=0.4).noise_spec(DIMS.shape), np.float64)
    case = Case(backend, SAMPLERS["ddpm"], inner)
    actor, obs = case.actor(), make_batch(rng).obs
    base = sample(case, actor, None, obs, noise["inner"])
    for clip in (True, False):
        noisy = Case(backend, case.part, backend.AdditiveNoise(inner, noise_scale=0.4, clip=clip))
        expected = base.action + 0.4 * 2.0 * noise["exploration"]
        given = sample(noisy, actor, None, obs, noise, np.float64(2.0))
        same(np.clip(expected, -1, 1) if clip else expected, given.action)
        same(base.noisy, given.noisy)
        assert given.log_prob is None
    assert np.abs(expected).max() > 1


def test_tanh_gaussian_log_probability_integrates_to_one(backend: ModuleType) -> None:
    """With the log-det correction (which the official SDAC repository's SAC lacks) E[1 / p(a)] is the box's volume."""
    sampler = backend.TanhGaussianSampler()
    rng = np.random.default_rng(0)
    noise = {"exploration": rng.standard_normal((200_000, 1))}

    def actor(obs: Any) -> Any:
        return obs * 0 + 0.3, obs * 0 - 0.2

    to_backend, to_numpy = backend.testing.to_backend, backend.testing.to_numpy
    rollout = to_numpy(sampler.rollout(Policy(actor), to_backend(np.zeros((200_000, 1))), to_backend(noise)))
    inside = np.abs(rollout.action[:, 0]) < 0.9
    assert (np.exp(-rollout.log_prob) * inside).mean() == pytest.approx(1.8, rel=0.02)


def test_tanh_gaussian_log_probability_is_finite_far_out(backend: ModuleType) -> None:
    sampler = backend.TanhGaussianSampler()

    def actor(obs: Any) -> Any:
        return 1000 * obs, obs * 0 + 2

    to_backend, to_numpy = backend.testing.to_backend, backend.testing.to_numpy
    obs = np.array([[1.0], [-1.0], [0.0]], np.float32)
    noise = {"exploration": np.array([[5.0], [-5.0], [0.0]], np.float32)}
    rollout = to_numpy(sampler.rollout(Policy(actor), to_backend(obs), to_backend(noise)))
    assert all_finite(tuple(rollout))
    assert np.abs(rollout.action).max() == 1


def test_tanh_gaussian_log_probability_is_exact_where_tanh_saturates(backend: ModuleType) -> None:
    """log N(u; u, 1) - log(1 - tanh(u)^2) to rounding, though 1 - tanh(u)^2 has few digits left, or none."""
    u = np.linspace(-30, 30, 121)[:, None]

    def actor(obs: Any) -> Any:
        return obs, 0 * obs

    to_backend, to_numpy = backend.testing.to_backend, backend.testing.to_numpy
    noise = {"exploration": to_backend(np.zeros_like(u))}
    log_prob = to_numpy(backend.TanhGaussianSampler().rollout(Policy(actor), to_backend(u), noise).log_prob)
    log_slope = np.log(4) - 2 * np.logaddexp(u, -u)[:, 0]  # 1 - tanh(u)^2 = 4 / (exp(u) + exp(-u))^2
    np.testing.assert_allclose(log_prob, -0.5 * np.log(2 * np.pi) - log_slope, rtol=0, atol=1e-13)


# who learns from whom, in a whole step


@pytest.mark.parametrize("name", ["dacer2", "sdac"])
def test_critic_does_not_learn_from_the_actor_loss_nor_the_actor_from_the_target(
    backend: ModuleType, name: str
) -> None:
    """Due or not, the actor's loss leaves the critic's step alone; another discount leaves the actor's step alone."""
    rng = np.random.default_rng(0)
    batch = make_batch(rng, filled=False)
    results = []
    for change in ("none", "no actor step", "other target"):
        engine, state = make_engine(backend, name)
        noise = make_noise(np.random.default_rng(1), engine)
        if change == "other target":
            batch = batch._replace(discount=0.5 * batch.discount)
        if change == "no actor step":
            engine = changed(backend, engine, actor_delay=1000)
            engine, state = skip_first(backend, engine, state)
        state, _ = engine.step(state, batch, noise)
        arrays = backend.to_arrays(state)
        results.append(
            {part: {n: a for n, a in arrays.items() if n.startswith(f"{part}.")} for part in ("actor", "critic")}
        )
    plain, idle, other = results
    same(plain["critic"], idle["critic"])
    same(plain["actor"], other["actor"])
    assert any(np.abs(plain["actor"][n] - idle["actor"][n]).max() > 0 for n in plain["actor"])
    assert any(np.abs(plain["critic"][n] - other["critic"][n]).max() > 1e-9 for n in plain["critic"])


def skip_first(backend: ModuleType, engine: Any, state: Any) -> tuple[Any, Any]:
    """The same state one update later, so that with a long delay the actor is not due."""
    arrays = dict(backend.to_arrays(state))
    arrays["updates"] = np.asarray(1, arrays["updates"].dtype)
    return engine, backend.from_arrays(state, arrays)


def test_actors_table_is_used() -> None:
    """Those with the body of a SimBa also in the rows of networks, which compute all actors."""
    used = {part.actor for part in (*OBJECTIVES.values(), *SAMPLERS.values())}
    assert used <= set(ACTORS)
    assert set(ACTORS) - used <= {name for name in ACTORS if name.startswith("simba_")}
