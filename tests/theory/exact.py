"""Exact mathematics in NumPy, for comparison: quadrature on the action box, Gaussian mixtures, chains, distances.

Nothing here knows a backend. The forward kernel is `noisy = alpha a + sigma eps`; the exact denoiser is E[eps | noisy],
which is -sigma times the score of the noised density.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import qmc, truncnorm

LogDensity = Callable[[np.ndarray], np.ndarray]
"""From actions [n act] to the logarithm [n] of an unnormalised density."""


class Moments(NamedTuple):
    """What the self-normalised estimate of E[eps | noisy] with K guesses tends to; one row for each noisy action."""

    noise: np.ndarray
    """E[eps | noisy], [batch act]: the limit of the estimate."""
    normaliser: np.ndarray
    """E[w], [batch 1], w = exp(log density), under the reverse kernel restricted to the box."""
    bias: np.ndarray
    """-E[w^2 (eps - noise)] / E[w]^2, [batch act]: K times the bias of the estimate, up to O(1/K) (delta method)."""


@dataclasses.dataclass(frozen=True, eq=False)
class BoxDensity:
    """The density proportional to exp(log_density) on the box [-1, 1]^act, by Gauss-Legendre quadrature.

    Args:
        log_density: of actions [n act], bounded by 50 in size.
        action_dim: 1 or 2.
        num_nodes: for each dimension; 60 are exact to 1e-9 as long as sigma / alpha > 0.1.
    """

    log_density: LogDensity
    action_dim: int
    num_nodes: int = 60

    def _nodes(self) -> tuple[np.ndarray, np.ndarray]:
        """Nodes [n act] and the integration weight [n] of each."""
        node, weight = np.polynomial.legendre.leggauss(self.num_nodes)
        nodes = np.stack(np.meshgrid(*[node] * self.action_dim, indexing="ij"), -1).reshape(-1, self.action_dim)
        weights = np.stack(np.meshgrid(*[weight] * self.action_dim, indexing="ij"), -1).reshape(-1, self.action_dim)
        return nodes, weights.prod(-1)

    def moments(self, noisy: np.ndarray, alpha: float, sigma: float) -> Moments:
        """Integrals over the clean action behind `noisy` [batch act]."""
        nodes, weights = self._nodes()
        eps = (noisy[:, None] - alpha * nodes) / sigma  # [batch n act]
        log_kernel = -0.5 * (eps**2).sum(-1)
        kernel = weights * np.exp(log_kernel - log_kernel.max(1, keepdims=True))
        kernel /= kernel.sum(1, keepdims=True)  # the reverse kernel, restricted to the box
        w = np.exp(self.log_density(nodes))
        normaliser = (kernel @ w)[:, None]
        noise = np.einsum("bn,bna->ba", kernel * w, eps) / normaliser
        bias = -np.einsum("bn,bna->ba", kernel * w**2, eps - noise[:, None]) / normaliser**2
        return Moments(noise, normaliser, bias)

    def noise(self, noisy: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        """The exact denoiser E[eps | noisy], [batch act]."""
        return self.moments(noisy, alpha, sigma).noise

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Exact samples [count act], by rejection from the uniform density."""
        nodes, _ = self._nodes()
        highest = self.log_density(nodes).max() + 0.1  # nodes may miss the peak by a little
        accepted = np.empty((0, self.action_dim))
        while len(accepted) < count:
            proposed = rng.uniform(-1, 1, (4 * count, self.action_dim))
            kept = np.log(rng.random(len(proposed))) < self.log_density(proposed) - highest
            accepted = np.concatenate([accepted, proposed[kept]])
        return accepted[:count]


def reverse_noises(noisy: np.ndarray, alpha: float, sigma: float, uniform: np.ndarray) -> np.ndarray:
    """Noises (noisy - alpha a) / sigma of clean actions a from the reverse kernel restricted to the box.

    Args:
        noisy: [act]
        alpha: signal kept.
        sigma: noise present.
        uniform: [*k act]; each a increases with it, by the inverse distribution function.

    Returns:
        [*k act]
    """
    mean, std = noisy / alpha, sigma / alpha
    return -truncnorm.ppf(uniform, (-1 - mean) / std, (1 - mean) / std)


class Mixture(NamedTuple):
    """A mixture of k isotropic Gaussians; the arrays may be a backend's."""

    weight: Any
    """[k], of sum 1."""
    centre: Any
    """[k act]"""
    std: Any
    """[k]"""

    def noise(self, noisy: Any, alpha: Any, sigma: Any, exp: Callable[[Any], Any] = np.exp) -> Any:
        """The exact denoiser E[eps | noisy], [*batch act]: the mean of the components' under their posterior.

        In float64 no weight vanishes as long as some component is within 35 of its standard deviations.
        """
        variance = alpha**2 * self.std**2 + sigma**2
        distance = noisy[..., None, :] - alpha * self.centre
        power = -0.5 * (distance**2).sum(-1) / variance
        density = self.weight * exp(power) / variance ** (0.5 * self.centre.shape[-1])
        share = density / density.sum(-1)[..., None]
        return sigma * ((share / variance)[..., None] * distance).sum(-2)

    def mean(self) -> np.ndarray:
        """[act]"""
        return self.weight @ self.centre

    def covariance(self) -> np.ndarray:
        """[act act]"""
        centred = self.centre - self.mean()
        within = (self.weight @ self.std**2) * np.eye(centred.shape[1])
        return np.einsum("k,ka,kb->ab", self.weight, centred, centred) + within

    def distribution_function(self, x: np.ndarray) -> np.ndarray:
        """P(a <= x), [*x], of a one-dimensional mixture."""
        return ndtr((x[..., None] - self.centre[:, 0]) / self.std) @ self.weight

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """[count act]"""
        k = rng.choice(len(self.weight), count, p=self.weight)
        return self.centre[k] + self.std[k][:, None] * rng.standard_normal((count, self.centre.shape[1]))


def gaussian_chain(mean: float, std: float, alpha: np.ndarray, sigma: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of what the DDPM chain with the exact denoiser makes of N(0, 1), for N(mean, std^2).

    Were each a_0 drawn anew from its posterior, given a_t, in place of its mean, the chain would reproduce the noised
    Gaussian at every t. So at each t the variance that is missing is what was missing before, through the regression of
    a_{t-1} on a_t, plus Var(a_0 | a_t) times the squared weight of a_0 (law of total variance).

    Args:
        mean: of the Gaussian.
        std: of the Gaussian.
        alpha: signal kept, [T].
        sigma: noise present, [T].
    """
    variance = alpha**2 * std**2 + sigma**2
    missing_mean, missing = alpha[-1] * mean, variance[-1] - 1
    for t in reversed(range(len(alpha))):
        signal = alpha[t - 1] if t else 1.0  # kept at the time before
        before = variance[t - 1] if t else std**2
        ratio = alpha[t] / signal
        weight = signal * (1 - ratio**2) / sigma[t] ** 2
        regression = ratio * before / variance[t]
        missing = regression**2 * missing + weight**2 * (std * sigma[t]) ** 2 / variance[t]
        missing_mean *= regression
    return mean - missing_mean, float(np.sqrt(std**2 - missing))


def even_normals(log2_count: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Standard normal points [2^log2_count *shape] that fill space evenly: scrambled Sobol, by inversion.

    Means over them converge nearly as 1/count, those over random points as 1/sqrt(count).
    """
    uniform = qmc.Sobol(int(np.prod(shape)), rng=seed).random_base2(log2_count)
    return ndtri(uniform.clip(1e-12, 1 - 1e-12)).reshape(-1, *shape)


def energy_distance_to(mixture: Mixture, samples: np.ndarray) -> float:
    """2 * integral of (F_samples - F)^2: the energy distance of samples [n 1] to a one-dimensional mixture."""
    x = np.linspace(-2, 2, 8001)
    empirical = np.searchsorted(np.sort(samples[:, 0]), x, side="right") / len(samples)
    return float(2 * ((empirical - mixture.distribution_function(x)) ** 2).sum() * (x[1] - x[0]))


def orders(errors: np.ndarray) -> np.ndarray:
    """Order of convergence between neighbours of errors measured at steps that halve each time: log2 of the ratio."""
    return -np.diff(np.log2(errors))
