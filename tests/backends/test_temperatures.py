"""Temperatures: mixture entropy against scikit-learn, directions of the updates, the schedule of the noise entropy."""

from __future__ import annotations

import warnings
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from diffac.errors import UsageError
from diffac.noise import draw
from diffac.protocols import Policy
from diffac.testing import reference
from diffac.testing.parts import (
    ACTORS,
    CRITICS,
    DIMS,
    LEARNERS,
    TEMPERATURES,
    chain,
    make_actor,
    make_batch,
    make_critic,
    make_noise,
)

CLOUD = (200, 16)
"""Samples and states of the comparison with scikit-learn."""


def modes(rng: np.random.Generator, d: int, shape: tuple[int, ...] = CLOUD) -> np.ndarray:
    """Three well-separated Gaussian modes with unequal weights and full covariances, different ones in every state."""
    samples, *states = shape
    mean = rng.uniform(-0.15, 0.15, (3, *states, d))
    mean[0, ..., 0] -= 0.7
    mean[2, ..., 0] += 0.7
    root = rng.normal(0, 0.04, (3, *states, d, d)) + 0.06 * np.eye(d)
    which = rng.choice(3, shape, p=[0.5, 0.3, 0.2])
    noise = rng.standard_normal((samples, *states, d))
    index = np.arange(states[0])
    mean, root = mean[which, index], root[which, index]
    return mean + np.einsum("...ij,...j->...i", root, noise)


def single_mode(rng: np.random.Generator, d: int, shape: tuple[int, ...] = CLOUD) -> np.ndarray:
    """One Gaussian per state, which a mixture of three can only overfit."""
    samples, *states = shape
    root = rng.normal(0, 0.1, (*states, d, d)) + 0.2 * np.eye(d)
    return np.einsum("...ij,s...j->s...i", root, rng.standard_normal((samples, *states, d)))


def scikit_entropy(samples: np.ndarray, seed: int = 0, fits: int = 3) -> np.ndarray:
    """ALGORITHMS 1's H for each state, from scikit-learn's fit (the best of three: a single one may miss a mode)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    d = samples.shape[-1]
    entropies = []
    for state in range(samples.shape[1]):
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore", ConvergenceWarning)
            fit = GaussianMixture(3, covariance_type="full", random_state=seed, n_init=fits).fit(samples[:, state])
        _, log_det = np.linalg.slogdet(fit.covariances_)
        w = fit.weights_
        entropies.append(-(w * np.log(w)).sum() + (w * 0.5 * (d * np.log(2 * np.pi * np.e) + log_det)).sum())
    return np.array(entropies)


def entropy(backend: ModuleType, samples: np.ndarray, **options: Any) -> np.ndarray:
    """Compiled in Equinox: eager loops are traced again in every call."""
    fit = backend.testing.compiled(backend.mixture_entropy)
    return backend.testing.to_numpy(fit(backend.testing.to_backend(samples), **options))


@pytest.mark.parametrize("d", [1, 2, 6])
@pytest.mark.parametrize("data", [modes, single_mode])
def test_mixture_entropy_is_scikit_learns(backend: ModuleType, data: Any, d: int) -> None:
    """Averages over states within 2 %, of |H| or of one nat per action dimension where H is near zero."""
    samples = data(np.random.default_rng(d), d)
    ours, theirs = entropy(backend, samples), scikit_entropy(samples)
    assert ours.shape == (CLOUD[1],)
    assert abs(ours.mean() - theirs.mean()) < 0.02 * max(abs(theirs.mean()), d), (ours.mean(), theirs.mean())


@pytest.mark.parametrize("d", [3, 6])
def test_mixture_entropy_of_clipped_samples_is_as_certain_as_scikit_learns(d: int) -> None:
    """DACER's noise at temperature 3, clipped: on average fits differ by less than scikit-learn's own seeds do.

    By the reference, which the backends agree with to 1e-9. On unclipped samples both are a fraction of that.
    """
    rng = np.random.default_rng(d)
    noisy = rng.uniform(-0.9, 0.9, (CLOUD[1], d)) + 0.3 * rng.standard_normal((*CLOUD, d))
    differences, ranges = [], []
    for samples in (noisy, np.clip(noisy, -1, 1)):
        ours = reference.mixture_entropy(samples)
        theirs = np.stack([scikit_entropy(samples, seed, fits=1) for seed in range(5)])
        differences.append(np.abs(ours - theirs.mean(0)))
        ranges.append(np.ptp(theirs, axis=0))
    free, clipped = (one.mean() for one in differences)
    assert clipped < min(0.35, ranges[1].mean()), (clipped, ranges[1].mean())
    assert free < ranges[0].mean(), (free, ranges[0].mean())
    assert free < 0.1
    assert clipped > 2 * free, "the docs say that clipped samples are the harder ones"


def test_mixture_entropy_of_known_laws(backend: ModuleType) -> None:
    """Three far Gaussians of equal weight: log 3 + the Gaussian's own entropy."""
    rng = np.random.default_rng(0)
    samples = 0.05 * rng.standard_normal((3, 2000, 2, 2))
    samples += np.array([[-0.8, 0.0], [0.0, 0.8], [0.8, -0.5]])[:, None, None]
    known = np.log(3) + np.log(2 * np.pi * np.e * 0.05**2)
    np.testing.assert_allclose(entropy(backend, samples.reshape(6000, 2, 2)), known, atol=0.05)


def test_mixture_entropy_moves_with_scale_and_not_with_shift_or_order(backend: ModuleType) -> None:
    rng = np.random.default_rng(1)
    samples = modes(rng, 2, (200, 3))
    plain = entropy(backend, samples)
    np.testing.assert_allclose(entropy(backend, samples + 3.0), plain, rtol=1e-4)
    np.testing.assert_allclose(entropy(backend, samples[::-1].copy()), plain, rtol=1e-6)
    np.testing.assert_allclose(entropy(backend, samples[:, ::-1].copy()), plain[::-1], rtol=1e-9)
    scaled = entropy(backend, 10 * samples, covariance_floor=1e-4)
    np.testing.assert_allclose(scaled, plain + 2 * np.log(10), rtol=1e-6)


def test_mixture_entropy_batch_axes(backend: ModuleType) -> None:
    samples = modes(np.random.default_rng(2), 2, (50, 6))
    flat = entropy(backend, samples)
    np.testing.assert_allclose(entropy(backend, samples.reshape(50, 2, 3, 2)), flat.reshape(2, 3), rtol=1e-9)
    np.testing.assert_allclose(entropy(backend, samples[:, 0]), flat[0], rtol=1e-9)


def test_mixture_entropy_of_actions_in_the_corners(backend: ModuleType) -> None:
    """Clipped actions are equally near to several centres; the first of them counts, as in the reference."""
    corners = np.array([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
    samples = np.repeat(corners, [7, 2, 4, 3], axis=0)[:, None]
    np.testing.assert_allclose(entropy(backend, samples), reference.mixture_entropy(samples), rtol=1e-9)


DEGENERATE = {
    "identical": lambda rng: np.full((40, 3, 2), 0.3),
    "two points": lambda rng: np.where(rng.random((40, 3, 1)) < 0.5, 0.9, -0.9) * np.ones(2),
    "on a corner": lambda rng: np.ones((40, 3, 2)),
    "one outlier": lambda rng: np.concatenate([np.full((39, 3, 2), 0.3), np.full((1, 3, 2), -1.0)]),
    "flat in one direction": lambda rng: rng.standard_normal((40, 3, 2)) * np.array([1.0, 0.0]),
    "fewer samples than components": lambda rng: rng.standard_normal((2, 3, 2)),
    "one sample": lambda rng: rng.standard_normal((1, 3, 2)),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("case", DEGENERATE)
def test_mixture_entropy_of_degenerate_samples_is_finite(backend: ModuleType, case: str, dtype: Any) -> None:
    samples = DEGENERATE[case](np.random.default_rng(3)).astype(dtype)
    ours = entropy(backend, samples)
    assert ours.dtype == dtype
    assert np.isfinite(ours).all()
    if case in ("identical", "on a corner"):  # only the floor on the covariance is left
        np.testing.assert_allclose(ours, np.log(2 * np.pi * np.e * 1e-6), atol=0.02 if dtype == np.float32 else 1e-5)


def test_mixture_entropy_sees_a_collapsed_policy(backend: ModuleType) -> None:
    rng = np.random.default_rng(4)
    wide, narrow = modes(rng, 2, (100, 3)), 0.01 * rng.standard_normal((100, 3, 2))
    assert (entropy(backend, narrow) < entropy(backend, wide) - 2).all()


# the rules


def run(
    backend: ModuleType, temperature: Any, state: Any, actor: Any, critic: Any, *, steps: int = 1, seed: int = 0
) -> tuple[Any, list[float], list[float]]:
    """Calls update `steps` times; returns the state, the temperatures after each call and the entropies steered."""
    name = "noise_entropy" if isinstance(temperature, backend.NoiseEntropyTemperature) else "policy_entropy"
    rng = np.random.default_rng(seed)
    values, entropies = [], []
    update = temperature.update
    if backend.name == "equinox":
        import equinox as eqx

        update = eqx.filter_jit(update)
    for _ in range(steps):
        obs = backend.testing.to_backend(rng.standard_normal((DIMS.batch, DIMS.obs)))
        noise = backend.testing.to_backend(make_noise(rng, temperature))
        log_prob = backend.testing.to_backend(rng.standard_normal(DIMS.batch))
        policy = Policy(actor, critic, temperature.value(state))
        state, metrics = update(state, policy, obs, noise, log_prob)
        values.append(float(backend.testing.to_numpy(temperature.value(state))))
        entropies += [float(backend.testing.to_numpy(metrics[name]))] if name in metrics else []
    return state, values, entropies


def pair(backend: ModuleType) -> tuple[Any, Any]:
    """Networks for a rule that does not look at them."""
    return ACTORS["denoiser"](backend, DIMS, 1), CRITICS["twin"](backend, DIMS, 2)


def start(backend: ModuleType, temperature: Any) -> Any:
    return backend.testing.to_backend(dict(temperature.init_state()))


def noise_rule(backend: ModuleType, action_dim: int, **kw: Any) -> Any:
    """The rule that steers the entropy of the noise, with a small estimate of the policy's."""
    sampler = backend.AdditiveNoise(chain(backend))
    return backend.NoiseEntropyTemperature(action_dim, sampler, **{"num_states": 1, "num_samples": 4, **kw})


def directed(backend: ModuleType, kind: str, target: float) -> tuple[Any, str]:
    """A temperature with the given target entropy per dimension, and the actor it goes with."""
    d = DIMS.action
    if kind == "noise_entropy":
        return noise_rule(backend, d, initial=1.0, target_entropy_per_dim=target), "denoiser"
    if kind == "mixture":
        sampler = backend.AdditiveNoise(chain(backend))
        return backend.MixtureEntropyTemperature(
            sampler, initial=1.0, target_entropy_per_dim=target, num_samples=20
        ), "denoiser"
    return backend.TargetEntropyTemperature(d, initial=1.0, target_entropy_per_dim=target), "gaussian"


@pytest.mark.parametrize("kind", ["noise_entropy", "mixture", "target_entropy"])
def test_too_much_entropy_lowers_the_temperature(backend: ModuleType, kind: str) -> None:
    for target, sign in ((-30.0, -1), (30.0, 1)):
        temperature, actor = directed(backend, kind, target)
        networks = ACTORS[actor](backend, DIMS, 1), CRITICS["twin"](backend, DIMS, 2)
        _, values, _ = run(backend, temperature, start(backend, temperature), *networks)
        # The first step of Adam has the length of the learning rate, whatever the gradient.
        assert np.log(values[0]) == pytest.approx(sign * temperature.learning_rate, rel=1e-5)


def test_target_is_per_dimension(backend: ModuleType) -> None:
    """At the fixed point of the rule the entropy is target_entropy_per_dim * action_dim, and hardly anything moves."""
    for d in (1, 6):
        fixed = float(np.exp(-0.9 - 0.5 * np.log(2 * np.pi * np.e)) / 0.1)
        temperature = noise_rule(backend, d, initial=fixed)
        _, values, entropies = run(backend, temperature, start(backend, temperature), *pair(backend))
        assert entropies[0] == pytest.approx(-0.9 * d, rel=1e-9)
        np.testing.assert_allclose(values, fixed, rtol=1e-3)


def test_noise_entropy_schedule(backend: ModuleType) -> None:
    """ALGORITHMS 3: from 5 to .984 (noise std .5 to .098), monotone up to Adam's overshoot, whatever the policy."""
    temperature = noise_rule(backend, 6)
    assert temperature.interval == 250
    state = start(backend, temperature)
    assert float(backend.testing.to_numpy(temperature.value(state))) == pytest.approx(5.0)
    _, values, _ = run(backend, temperature, state, *pair(backend), steps=1000)
    assert values[0] == pytest.approx(5.0 * np.exp(-7e-3), rel=1e-6)
    assert (np.diff(values[:200]) < 0).all()
    assert values[-1] == pytest.approx(0.984, abs=0.002)


def test_noise_entropy_schedule_is_the_same_in_both(both: SimpleNamespace) -> None:
    values = []
    for backend in (both.torch, both.equinox):
        temperature = noise_rule(backend, 2)
        values.append(run(backend, temperature, start(backend, temperature), *pair(backend), steps=20)[1])
    np.testing.assert_allclose(values[0], values[1], rtol=1e-9)


def test_fixed_temperature(backend: ModuleType) -> None:
    temperature = backend.FixedTemperature(0.3)
    assert temperature.interval == 0
    assert dict(temperature.noise_spec(DIMS.shape)) == {}
    state, values, entropies = run(backend, temperature, start(backend, temperature), *pair(backend))
    assert values == [pytest.approx(0.3)]
    assert entropies == []
    assert set(state) == {"log_temperature"}


@pytest.mark.parametrize("name", TEMPERATURES)
def test_state_and_value(backend: ModuleType, name: str) -> None:
    part = TEMPERATURES[name]
    temperature = part.make(backend, DIMS)
    before = temperature.init_state()
    assert all(isinstance(value, np.ndarray | np.generic) and np.ndim(value) == 0 for value in before.values())
    networks = make_actor(backend, part), make_critic(backend, part)
    state, values, _ = run(backend, temperature, start(backend, temperature), *networks, steps=2)
    assert set(state) == set(before)
    assert values[-1] > 0
    if temperature.interval:
        assert set(state) == {"log_temperature", "m", "v", "count"}
        assert float(backend.testing.to_numpy(state["count"])) == 2
        assert values[0] != values[1]


def test_mixture_temperature_counts_the_policy_and_its_noise(backend: ModuleType) -> None:
    """ALGORITHMS 1: the entropy is that of noisy actions at the current temperature."""
    rng = np.random.default_rng(0)
    sampler = backend.AdditiveNoise(chain(backend), noise_scale=0.2)
    temperature = backend.MixtureEntropyTemperature(sampler, initial=0.5, num_samples=30)
    actor, critic = ACTORS["denoiser"](backend, DIMS, 1), CRITICS["twin"](backend, DIMS, 2)
    obs = rng.standard_normal((DIMS.batch, DIMS.obs))
    noise = draw(rng, temperature.noise_spec(DIMS.shape), np.float64)
    to_backend, to_numpy = backend.testing.to_backend, backend.testing.to_numpy
    first = start(backend, temperature)
    policy = Policy(actor, critic, temperature.value(first))
    _, metrics = temperature.update(first, policy, to_backend(obs), to_backend(noise))
    samples = sampler(Policy(actor, critic, to_backend(np.float64(0.5))), to_backend(obs), to_backend(noise["samples"]))
    assert tuple(samples.shape) == (30, *DIMS.shape)
    expected = to_numpy(backend.mixture_entropy(samples)).mean()
    assert float(to_numpy(metrics["policy_entropy"])) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["dacer2", "sdac", "sac"])
def test_learner_respects_the_interval(backend: ModuleType, name: str) -> None:
    part = LEARNERS[name]
    engine = backend.Engine(part.make(backend, DIMS))
    interval = engine.learner.temperature.interval
    assert interval in (1, 5)
    state = engine.init(make_actor(backend, part), make_critic(backend, part))
    rng = np.random.default_rng(0)
    changes, last = [], None
    for _ in range(11):
        now = float(backend.to_arrays(state)["temperature.log_temperature"])
        changes.append(last is not None and now != last)
        last = now
        state, _ = engine.step(state, make_batch(rng, filled=False), make_noise(rng, engine))
    # Entry u is the change made by update u - 1, counted from 0: due when u is a multiple of the interval.
    assert changes == [u > 0 and (u - 1) % interval == 0 for u in range(11)]


def test_bad_values(backend: ModuleType) -> None:
    d, sampler = DIMS.action, chain(backend)
    for bad in (0.0, -1.0):
        for make in (
            lambda **kw: noise_rule(backend, d, **kw),
            lambda **kw: backend.MixtureEntropyTemperature(sampler, **kw),
            lambda **kw: backend.TargetEntropyTemperature(d, **kw),
        ):
            with pytest.raises(UsageError, match=str(bad)):
                make(initial=bad)
            with pytest.raises(UsageError, match=str(bad)):
                make(learning_rate=bad)
            with pytest.raises(UsageError, match="-3"):
                make(interval=-3)
        with pytest.raises(UsageError, match=str(bad)):
            backend.FixedTemperature(bad)
    for field in ("num_samples", "num_components"):
        with pytest.raises(UsageError, match=f"{field}.*0"):
            backend.MixtureEntropyTemperature(sampler, **{field: 0})
