"""LangevinSampler where every law is normal: what its log-ratio is, and by how much it exceeds the log-probability.

With a linear drift all states of a path are linear in its noise, so that the mean of the log-ratio, the law of the last
state and the reverse kernels are known exactly. The tanh adds the same to the log-ratio and to the log-probability.
"""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from diffac.noise import without_exploration
from diffac.parts.samplers import LangevinSampler
from diffac.protocols import Policy
from diffac_recipes import dime
from theory.exact import orders

pytestmark = pytest.mark.theory


@dataclasses.dataclass(frozen=True, eq=False)
class Path:
    """A chain with the drift matrix[t] x + offset, and its states as linear functions of its noise.

    Noise stands in one vector: that of the start first, then that of the steps in the order in which they are taken.
    """

    num_steps: int
    prior_std: float
    matrix: np.ndarray
    """[N d d]"""
    offset: np.ndarray
    """[d]"""
    step: np.ndarray
    """[d]"""

    @property
    def dim(self) -> int:
        return len(self.offset)

    def eta(self, k: int) -> np.ndarray:
        """Of the k-th step taken, [d]."""
        left = (self.num_steps - k) / self.num_steps
        return self.step * (0.999 * np.cos(np.pi / 2 * (1.008 - left) / 1.008) ** 2 + 0.001)

    def states(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Means [d] and factors [d, d (N+1)] of x_0, ..., x_N: each is mean + factor noise."""
        unit = np.eye(self.dim * (self.num_steps + 1)).reshape(self.num_steps + 1, self.dim, -1)
        means, factors = [np.zeros(self.dim)], [self.prior_std * unit[0]]
        for k in range(self.num_steps):
            eta, drift = self.eta(k), self.matrix[self.num_steps - 1 - k] - np.eye(self.dim) / self.prior_std**2
            propagate = np.eye(self.dim) + eta[:, None] * drift
            means.append(propagate @ means[-1] + eta * self.offset)
            factors.append(propagate @ factors[-1] + np.sqrt(2 * eta)[:, None] * unit[k + 1])
        return means, factors

    def mean_log_prob(self) -> float:
        """E log p(x_N), p the law of x_N: minus its entropy."""
        factor = self.states()[1][-1]
        return -multivariate_normal(np.zeros(self.dim), factor @ factor.T).entropy()

    def divergence(self) -> float:
        """Sum of the Kullback-Leibler divergences of the true reverse kernels from N((1 - eta / s^2) x', 2 eta).

        The kernel of x given x' is normal with mean m + gain (x' - m') and covariance C - gain C_x'x.
        """
        means, factors = self.states()
        total = 0.0
        for k in range(self.num_steps):
            eta = self.eta(k)
            back = np.diag(1 - eta / self.prior_std**2)
            before, after = factors[k], factors[k + 1]
            gain = before @ after.T @ np.linalg.inv(after @ after.T)
            covariance = before @ before.T - gain @ after @ before.T
            centre = means[k] - back @ means[k + 1]  # of the difference of the two means, as x' varies
            spread = (gain - back) @ after @ after.T @ (gain - back).T
            square = np.diag(covariance) + centre**2 + np.diag(spread)
            determinant = np.log(2 * eta).sum() - np.linalg.slogdet(covariance)[1]
            total += 0.5 * ((square / (2 * eta)).sum() - self.dim + determinant)
        return total

    def mean_slope(self) -> float:
        """E sum -log(1 - tanh(x_N)^2), by quadrature."""
        means, factors = self.states()
        node, weight = np.polynomial.hermite_e.hermegauss(120)
        x = means[-1] + np.sqrt((factors[-1] ** 2).sum(1)) * node[:, None]
        return float(weight / weight.sum() @ (2 * np.logaddexp(x, -x) - 2 * np.log(2)).sum(1))

    def run(self, backend: ModuleType, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Last states [n d], and log-ratios [n] of a backend without what the tanh adds; noise [n, d (N+1)]."""
        action, log_ratio = self.rollout(backend, noise)
        means, factors = self.states()
        u = means[-1] + noise @ factors[-1].T
        np.testing.assert_allclose(action, np.tanh(u), atol=1e-12)
        return u, log_ratio - (2 * np.logaddexp(u, -u) - 2 * np.log(2)).sum(-1)

    def rollout(self, backend: ModuleType, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Actions [n d] and log-ratios [n] of a backend."""
        tools = backend.testing
        start, *steps = np.split(noise, self.num_steps + 1, axis=1)
        matrix, offset, step = tools.to_backend((self.matrix, self.offset, self.step))

        class Linear:
            prediction = "drift"

            def __call__(self, obs: Any, noisy: Any, t: Any) -> Any:
                return noisy @ matrix[t].T + offset

            def step_size(self) -> Any:
                return step

        sampler = backend.LangevinSampler(self.num_steps, self.prior_std)
        arrays = {"start": start, "steps": np.stack(steps[::-1])}
        rollout = tools.compiled(sampler.rollout)(
            Policy(Linear()), *tools.to_backend((np.zeros((len(noise), 1)), arrays))
        )
        return tools.to_numpy(rollout.action), tools.to_numpy(rollout.log_prob)


def random_path(seed: int, num_steps: int = 6, dim: int = 2) -> Path:
    """With a drift that mixes entries and changes from step to step."""
    rng = np.random.default_rng(seed)
    matrix = 0.6 * rng.standard_normal((num_steps, dim, dim)) - 0.5 * np.eye(dim)
    return Path(num_steps, 1.5, matrix, 0.5 * rng.standard_normal(dim), rng.uniform(0.1, 0.5, dim))


def cubature(size: int) -> np.ndarray:
    """Points [2 size, size] over which quadratic functions have the mean that they have over a normal law."""
    return np.sqrt(size) * np.concatenate([np.eye(size), -np.eye(size)])


@pytest.mark.parametrize("seed", range(4))
def test_the_mean_is_the_log_probability_and_the_divergence(backend: ModuleType, seed: int) -> None:
    """Exactly: the log-ratio is quadratic in the noise. So it is a bound from above, of -entropy."""
    path = random_path(seed)
    _, log_ratios = path.run(backend, cubature(path.dim * (path.num_steps + 1)))
    gap = path.divergence()
    print(f"{backend.name}, {seed}: E log p {path.mean_log_prob():.4f}, E L {log_ratios.mean():.4f}, gap {gap:.4f}")
    np.testing.assert_allclose(log_ratios.mean(), path.mean_log_prob() + gap, rtol=1e-10)
    assert gap > 0.05


def reversal(num_steps: int, std: float, time: float) -> Path:
    """The drift that leads from N(0, 1) to N(0, std^2), the reversal of the prior's diffusion over that time.

    After a time tau of that diffusion, dx = -x dtau + sqrt(2) dW, the variance is v = 1 + (std^2 - 1) exp(-2 tau), and
    the way back has the drift x - 2 x / v, which is -x + f.
    """
    plain = Path(num_steps, 1.0, np.zeros((num_steps, 1, 1)), np.zeros(1), np.ones(1))
    etas = np.array([plain.eta(k)[0] for k in range(num_steps)])
    scale = time / etas.sum()
    left = scale * etas[::-1].cumsum()  # before the step with index t
    variance = 1 + (std**2 - 1) * np.exp(-2 * left)
    matrix = (2 - 2 / variance)[:, None, None]
    return dataclasses.replace(plain, matrix=matrix, step=np.array([scale]))


def test_the_bound_is_tight_where_the_way_back_is_the_true_one() -> None:
    """The divergence falls to nothing, and the policy's law becomes the intended one, both with the length of a step.

    The prior is not quite where the diffusion arrives: exp(-2 time) is left, 1e-6 in the divergence.
    """
    paths = [reversal(n, 0.4, 3.5) for n in (32, 64, 128, 256, 512)]
    gaps = np.array([path.divergence() for path in paths])
    stds = np.array([np.sqrt((path.states()[1][-1] ** 2).sum()) for path in paths])
    print(f"divergences {gaps}, orders {orders(gaps)}; standard deviations {stds}")
    assert (gaps > 0).all()
    assert (np.abs(orders(gaps) - 1) < 0.15).all()
    assert gaps[-1] < 0.02
    assert (np.abs(orders(np.abs(stds - 0.4)) - 1) < 0.15).all()


def test_a_way_back_that_is_not_the_true_one_costs_its_divergence() -> None:
    """With finer steps, too: a drift that leads to another law than the one that the prior's diffusion forgets."""
    strayed = [
        dataclasses.replace(path, offset=np.ones(1)).divergence()
        for path in (reversal(n, 0.4, 3.5) for n in (64, 128, 256))
    ]
    print(f"divergences {strayed}")
    assert min(strayed) > 0.3


def test_means_of_samples(backend: ModuleType) -> None:
    """With the tanh, 16 steps and the standard errors of 40,000 paths."""
    path, rng = random_path(7, num_steps=16), np.random.default_rng(0)
    action, log_ratio = path.rollout(backend, rng.standard_normal((40_000, path.dim * 17)))
    expected = path.mean_log_prob() + path.divergence() + path.mean_slope()
    error = log_ratio.std() / np.sqrt(len(log_ratio))
    print(f"{backend.name}: {log_ratio.mean():.4f} +- {error:.4f}, exactly {expected:.4f}")
    assert np.abs(log_ratio.mean() - expected) < 4 * error
    assert error < 0.03
    means, factors = path.states()
    u = np.arctanh(action)
    np.testing.assert_allclose(u.mean(0), means[-1], atol=4 * u.std(0).max() / 200)
    np.testing.assert_allclose(np.cov(u.T), factors[-1] @ factors[-1].T, atol=0.05 * u.var(0).max())


def without_drift(num_steps: int, time: float, prior_std: float = 2.5) -> Path:
    """The prior's own diffusion, over that time."""
    plain = Path(num_steps, prior_std, np.zeros((num_steps, 1, 1)), np.zeros(1), np.ones(1))
    return dataclasses.replace(plain, step=np.array([time / sum(plain.eta(k)[0] for k in range(num_steps))]))


def test_without_drift_a_path_is_worth_its_end(backend: ModuleType) -> None:
    """The prior's diffusion is reversible, so L is log N(x_N; 0, s^2) for every path, up to the length of the steps.

    What is missed is sum eta (x'^2 - x^2) / (4 s^4), exactly.
    """
    missed = []
    for num_steps in (16, 32, 64, 128, 256):
        path, rng = without_drift(num_steps, 6.0), np.random.default_rng(0)
        noise = rng.standard_normal((4_000, num_steps + 1))
        u, log_ratio = path.run(backend, noise)
        missed.append(log_ratio - norm(scale=path.prior_std).logpdf(u[:, 0]))
        means, factors = path.states()
        squares = [(mean + noise @ factor.T)[:, 0] ** 2 for mean, factor in zip(means, factors, strict=True)]
        expected = sum(path.eta(k)[0] * (squares[k + 1] - squares[k]) for k in range(num_steps))
        np.testing.assert_allclose(missed[-1], expected / (4 * path.prior_std**4), atol=1e-10)
    errors = np.array([np.sqrt((error**2).mean()) for error in missed])
    print(f"{backend.name}: errors {errors.round(5)}, orders {orders(errors).round(2)}")
    assert (np.abs(orders(errors) - 1) < 0.15).all()


def test_steps_shrink_as_in_the_paper() -> None:
    """From the whole step to nearly a thousandth of it, by the cosine."""
    factors = LangevinSampler(16).step_factors
    path = without_drift(16, 1.0)
    np.testing.assert_allclose(factors[::-1] * path.step, [path.eta(k)[0] for k in range(16)], rtol=1e-12)
    assert (np.diff(factors) > 0).all()
    assert factors[-1] == pytest.approx(1, abs=2e-4)
    assert LangevinSampler(1000).step_factors[0] == pytest.approx(0.001, abs=5e-6)


def test_the_target_entropy_is_the_papers(backend: ModuleType) -> None:
    """The paper steers the mean of R = L - log N(x_0) to 4 for each entry; with the prior's entropy it is that of L."""
    d, config = 3, dime.Config()
    prior = norm(scale=config.prior_std)
    assert config.target_entropy_per_dim == pytest.approx(prior.entropy() - 4, abs=1e-4)
    rule = backend.TargetEntropyTemperature(d, target_entropy_per_dim=config.target_entropy_per_dim)
    starts = prior.ppf((np.arange(100_000) + 0.5) / 100_000)
    for mean, sign in ((4.01, 1), (3.99, -1)):
        log_ratio = d * (prior.logpdf(starts) + mean)
        state = backend.testing.to_backend({name: np.asarray(value) for name, value in rule.init_state().items()})
        obs, log_ratio = backend.testing.to_backend((np.zeros((1, 1)), log_ratio))
        after, _ = rule.update(state, Policy(None, None, rule.value(state)), obs, {}, log_ratio)
        assert np.sign(float(backend.testing.to_numpy(rule.value(after))) - 1) == sign


def test_all_noise_is_the_policys() -> None:
    """Evaluations draw as acting does: none of it only explores."""
    spec = LangevinSampler(4).noise_spec((5, 2))
    assert without_exploration(spec) == spec
