"""Networks: activations against the frameworks' own, shares of the first layer, broadcasting, initial parameters."""

from __future__ import annotations

import warnings
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import load_backend

from diffac.errors import UsageError
from diffac.testing.conformance import unchecked_shapes
from diffac.testing.parts import ACTIVATIONS, ACTORS, ATOMS, CRITICS, DIMS, NUM_ATOMS, randomise

OBS, ACT, B, T = DIMS.obs, DIMS.action, DIMS.batch, DIMS.steps


def derivatives(backend: ModuleType, function: Any, x: np.ndarray) -> list[np.ndarray]:
    """Value, first and second derivative of an elementwise function."""
    if backend.name == "torch":
        import torch

        given = torch.tensor(x, requires_grad=True)
        value = function(given)
        (first,) = torch.autograd.grad(value.sum(), given, create_graph=True)
        second = torch.zeros_like(given)
        if first.requires_grad:
            (second,) = torch.autograd.grad(first.sum(), given)
        return [entry.detach().numpy() for entry in (value, first, second)]
    import jax

    return [np.asarray(jax.vmap(f)(x)) for f in (function, jax.grad(function), jax.grad(jax.grad(function)))]


def framework_activation(backend: ModuleType, name: str) -> Any:
    """The framework's own activation of that name."""
    if backend.name == "torch":
        import torch

        return {**{n: getattr(torch.nn.functional, n) for n in ACTIVATIONS}, "tanh": torch.tanh}[name]
    import jax

    if name == "gelu":
        return lambda x: jax.nn.gelu(x, approximate=False)
    return getattr(jax.nn, name)


def of_two_networks(b: Any) -> list[np.ndarray]:
    """Values, gradients and a second derivative of a denoiser and a critic in float32, with broadcast batch axes."""
    import torch

    rng = np.random.default_rng(0)
    obs, noisy = (torch.tensor(rng.standard_normal(s), dtype=torch.float32) for s in [(32, OBS), (3, 32, ACT)])
    denoiser = b.MLPDenoiser(OBS, ACT, key=0, hidden_sizes=(24, 16)).float()
    critic = b.GaussianCritic(OBS, ACT, key=1, hidden_sizes=(24, 16)).float()
    results: list[Any] = []
    for network, arguments in ((denoiser, (torch.arange(3)[:, None],)), (critic, ())):
        for parameter in network.parameters():  # biases begin at zero
            parameter.data += torch.tensor(rng.uniform(-0.1, 0.1, parameter.shape), dtype=torch.float32)
        action = noisy.clone().requires_grad_()
        given = (obs, action) if network is critic else (network.condition(obs, 3), action)
        value = network(*given, *arguments)
        loss = value.square().sum()
        (slope,) = torch.autograd.grad(loss, action, create_graph=True)
        twice = torch.autograd.grad(slope.square().sum(), action, retain_graph=True)
        gradients = torch.autograd.grad(loss, [*network.parameters()], materialize_grads=True)
        results += [value, slope, *twice, *gradients]
    return [result.detach().numpy() for result in results]


def test_products_of_onednn_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """They replace torch's own for float32 on processors with AVX-512, where the product is large enough."""
    b: Any = load_backend("torch")
    from diffac_torch.kernels import products

    monkeypatch.setattr(products, "_HAS_ONEDNN", False)
    expected = of_two_networks(b)
    calls, onednn = [], products._onednn
    monkeypatch.setattr(products, "_onednn", lambda *arguments: calls.append(0) or onednn(*arguments))
    monkeypatch.setattr(products, "_MIN_WORK", 1)
    assert all(map(np.array_equal, of_two_networks(b), expected))
    assert not calls
    monkeypatch.setattr(products, "_HAS_ONEDNN", True)
    for one, other in zip(of_two_networks(b), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(other).max())
    assert len(calls) > 30


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_the_frameworks(backend: ModuleType, name: str) -> None:
    x = np.concatenate([np.linspace(-30, 30, 601), [-50.0, -5.5, 1e-9, 45.0]])
    x = x[x != 0] if name == "relu" else x
    ours = derivatives(backend, backend.activation(name), x)
    theirs = derivatives(backend, framework_activation(backend, name), x)
    for order, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12, err_msg=f"derivative {order}")


def test_activations_differ(backend: ModuleType) -> None:
    x = np.linspace(-2, 2, 9)
    values = [derivatives(backend, backend.activation(name), x)[0] for name in ACTIVATIONS]
    for i, one in enumerate(values):
        assert all(np.abs(one - other).max() > 1e-3 for other in values[:i])


def test_mish_far_out(backend: ModuleType) -> None:
    """Far to the left the relative error stays small; far to the right it is the identity; nothing overflows."""
    mish = backend.activation("mish")
    value, first, second = derivatives(backend, mish, np.array([-50.0, -700.0, -1e4, 1e4, 50.0, 400.0, 710.0]))
    assert np.isfinite(np.stack([value, first, second])).all()
    np.testing.assert_allclose(value[0], -50 * np.exp(-50.0), rtol=1e-9)
    np.testing.assert_allclose(first[0], (1 - 50) * np.exp(-50.0), rtol=1e-9)
    np.testing.assert_allclose(second[0], (2 - 50) * np.exp(-50.0), rtol=1e-9)
    np.testing.assert_allclose(value[2], 0, atol=1e-300)
    np.testing.assert_allclose(value[3:], [1e4, 50, 400, 710])
    np.testing.assert_allclose(first[1:], [0, 0, 1, 1, 1, 1], atol=1e-12)
    np.testing.assert_allclose(second[1:], 0, atol=1e-12)


def test_mish_in_float32(backend: ModuleType) -> None:
    x = np.array([-1e4, -100, -50, -20, -1, 0, 1, 20, 44, 45, 88, 89, 100, 1e4], np.float32)
    ours = derivatives(backend, backend.activation("mish"), x)
    exact = derivatives(backend, backend.activation("mish"), x.astype(np.float64))
    for order, (one, other) in enumerate(zip(ours, exact, strict=True)):
        assert one.dtype == np.float32
        assert np.isfinite(one).all(), order
        np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-6, err_msg=f"derivative {order}")
    np.testing.assert_allclose(ours[0][3], exact[0][3], rtol=1e-5)  # relative accuracy on the left


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mish_of_many_numbers(backend: ModuleType, dtype: type) -> None:
    """Many numbers take another way in torch, through a compiled kernel, alone and with derivatives."""
    mish = backend.activation("mish")
    x = (10 * np.random.default_rng(0).standard_normal(40_000)).astype(dtype)
    values = backend.testing.to_numpy(mish(backend.testing.to_backend(x)))
    many = [values, *derivatives(backend, mish, x)]
    few = [np.concatenate(part) for part in zip(*(derivatives(backend, mish, p) for p in np.split(x, 4)), strict=True)]
    rtol = 1e-12 if dtype is np.float64 else 2e-6
    for one, other in zip(many, [few[0], *few], strict=True):
        assert one.dtype == dtype
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("calls", [0, 1])
def test_mish_without_a_compiler(calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning, and the same numbers; also where it fails later, when torch compiles for another type."""
    torch = load_backend("torch")
    from diffac_torch.kernels import mish as kernel

    def no_compiler(function: Any, **options: Any) -> Any:
        left = [calls]

        def fail(*tensors: Any) -> Any:
            left[0] -= 1
            if left[0] >= 0:
                return function(*tensors)
            raise RuntimeError("no C++ compiler was found\nand more")

        return fail

    mish = torch.activation("mish")
    x = torch.testing.to_backend(np.random.default_rng(0).standard_normal(40_000))
    expected = mish(x)
    monkeypatch.setattr("torch.compile", no_compiler)
    monkeypatch.setattr(kernel, "_compiled_value", kernel._Kernel(kernel.mish_value))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(calls):
            mish(x)
    with pytest.warns(UserWarning, match=r"RuntimeError: no C\+\+ compiler was found\).*TORCH_COMPILE_DISABLE=1"):
        values = mish(x)
    np.testing.assert_allclose(values, expected, rtol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(mish(x), values)


def networks(backend: ModuleType) -> tuple[Any, ...]:
    return (
        backend.MLPDenoiser,
        backend.LangevinActor,
        backend.GaussianActor,
        backend.TwinCritic,
        backend.GaussianCritic,
    )


def test_unknown_activation(backend: ModuleType) -> None:
    with pytest.raises(UsageError, match=r"'mitsch'.*mish.*tanh"):
        backend.activation("mitsch")
    for make in networks(backend):
        with unchecked_shapes(), pytest.raises(UsageError, match="'mitsch'"):
            make(OBS, ACT, key=0, activation="mitsch")


def test_time_embedding(backend: ModuleType) -> None:
    t = np.array([[0, 1, 5], [2, 19, 99]])
    for dim in (2, 8, 16):
        frequency = 10_000.0 ** (-np.arange(dim // 2) / (dim // 2))
        angle = t[..., None] * frequency
        expected = np.concatenate([np.sin(angle), np.cos(angle)], -1) / np.sqrt(dim)
        given = backend.testing.to_numpy(backend.time_embedding(backend.testing.to_backend(t), dim))
        np.testing.assert_allclose(given, expected, rtol=1e-9, atol=1e-12)
    with pytest.raises(UsageError, match="7"):
        backend.time_embedding(backend.testing.to_backend(t), 7)


@pytest.fixture
def denoiser(backend: ModuleType) -> Any:
    return randomise(backend, ACTORS["denoiser"](backend, DIMS, 1), np.random.default_rng(5))


def call(backend: ModuleType, module: Any, *arguments: Any) -> Any:
    """NumPy in, NumPy out."""
    return backend.testing.to_numpy(module(*[backend.testing.to_backend(entry) for entry in arguments]))


def test_denoiser_formula(backend: ModuleType, denoiser: Any) -> None:
    """The textbook network on a concatenated input, written here with NumPy."""
    rng = np.random.default_rng(0)
    obs, noisy = rng.standard_normal((B, OBS)), rng.standard_normal((B, ACT))
    t = rng.integers(0, T, B)
    p = backend.to_arrays(denoiser)

    def mish(x: np.ndarray) -> np.ndarray:
        return x * np.tanh(np.logaddexp(0, x))

    def mlp(prefix: str, x: np.ndarray) -> np.ndarray:
        layers = sum(name.startswith(f"{prefix}.") and name.endswith(".weight") for name in p)
        for i in range(layers):
            x = x @ p[f"{prefix}.{i}.weight"].T + p[f"{prefix}.{i}.bias"]
            x = mish(x) if i < layers - 1 else x
        return x

    angle = t[:, None] * 10_000.0 ** (-np.arange(8) / 8)
    time = mlp("time_layers", np.concatenate([np.sin(angle), np.cos(angle)], -1) / 4)
    expected = mlp("layers", np.concatenate([obs, noisy, time], -1))
    np.testing.assert_allclose(call(backend, denoiser, obs, noisy, t), expected, rtol=1e-9)


@pytest.mark.parametrize("kind", ["int", "array", "column"])
def test_condition_gives_the_same_result(backend: ModuleType, denoiser: Any, kind: str) -> None:
    rng = np.random.default_rng(1)
    obs, noisy = rng.standard_normal((B, OBS)), rng.standard_normal((6, B, ACT))
    t: Any = {"int": 2, "array": rng.integers(0, T, B), "column": rng.integers(0, T, (6, 1))}[kind]
    conditioned = denoiser.condition(backend.testing.to_backend(obs), T)
    given = backend.testing.to_numpy(
        denoiser(conditioned, backend.testing.to_backend(noisy), t if kind == "int" else backend.testing.to_backend(t))
    )
    plain = backend.testing.to_numpy(
        denoiser(
            backend.testing.to_backend(obs),
            backend.testing.to_backend(noisy),
            t if kind == "int" else backend.testing.to_backend(t),
        )
    )
    assert given.shape == (6, B, ACT)
    np.testing.assert_allclose(given, plain, rtol=1e-9, atol=1e-12)


def test_condition_has_the_shapes_of_the_spec(backend: ModuleType, denoiser: Any) -> None:
    for axes in ((), (B,), (2, B)):
        conditioned = denoiser.condition(backend.testing.to_backend(np.ones((*axes, OBS))), T)
        assert tuple(conditioned.obs_share.shape) == (*axes, DIMS.hidden[0])
        assert tuple(conditioned.time_share.shape) == (T, DIMS.hidden[0])


def test_condition_carries_the_gradient(backend: ModuleType, denoiser: Any) -> None:
    """Conditioning must not detach: the gradient through it is the gradient of the plain call."""
    from diffac.protocols import Batch, Loss

    rng = np.random.default_rng(2)
    obs, noisy = rng.standard_normal((B, OBS)), rng.standard_normal((B, ACT))
    gradients = []
    for conditioned in (False, True):

        def objective(
            actor: Any, critic: Any, batch: Any, noise: Any, temperature: Any, state: Any, how: bool = conditioned
        ) -> Loss:
            eps = actor(actor.condition(batch.obs, T) if how else batch.obs, batch.action, 1)
            return Loss((eps**2).sum(), {}, {})

        zeros = np.zeros(B)
        batch = Batch(obs, noisy, zeros, obs, zeros)
        critic = CRITICS["twin"](backend, DIMS, 2)
        _, gradient = backend.testing.value_and_grad(objective, denoiser, critic, batch, {}, np.float64(1.0), {})
        gradients.append(gradient)
    assert set(gradients[0]) == set(backend.to_arrays(denoiser))
    for name in gradients[0]:
        assert np.abs(gradients[0][name]).max() > 0, name
        np.testing.assert_allclose(gradients[1][name], gradients[0][name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_denoiser_broadcasts(backend: ModuleType, denoiser: Any) -> None:
    rng = np.random.default_rng(3)
    obs, noisy = rng.standard_normal((B, OBS)), rng.standard_normal((4, B, ACT))
    t = rng.integers(0, T, (4, 1))
    given = call(backend, denoiser, obs, noisy, t)
    assert given.shape == (4, B, ACT)
    for k in range(4):
        for b in range(B):
            one = call(backend, denoiser, obs[b], noisy[k, b], t[k, 0])
            assert one.shape == (ACT,)
            np.testing.assert_allclose(given[k, b], one, rtol=1e-9, atol=1e-12)
    # the observation may also be the one with more axes
    many = rng.standard_normal((4, B, OBS))
    wide = call(backend, denoiser, many, noisy[0], t)
    np.testing.assert_allclose(wide[2], call(backend, denoiser, many[2], noisy[0], t[2]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", CRITICS)
def test_critic_broadcasts(backend: ModuleType, kind: str) -> None:
    rng = np.random.default_rng(4)
    critic = randomise(backend, CRITICS[kind](backend, DIMS, 1), rng)
    size = critic.size
    assert size == (2 if kind in ("twin", "gaussian") else 3)
    obs, action = rng.standard_normal((B, OBS)), rng.uniform(-1, 1, (4, B, ACT))
    given = call(backend, critic, obs, action)
    assert given.shape == (size, 4, B)
    for k in range(4):
        np.testing.assert_allclose(given[:, k], call(backend, critic, obs, action[k]), rtol=1e-9, atol=1e-12)
    one = call(backend, critic, obs[1], action[2, 1])
    assert one.shape == (size,)
    np.testing.assert_allclose(given[:, 2, 1], one, rtol=1e-9, atol=1e-12)
    more = rng.standard_normal((4, B, OBS))
    np.testing.assert_allclose(
        call(backend, critic, more, action[0])[:, 3], call(backend, critic, more[3], action[0]), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("kind", CRITICS)
def test_ensemble_is_separate_networks(backend: ModuleType, kind: str) -> None:
    """Changing member 1 leaves the others alone, and a member taken out alone gives the same values."""
    rng = np.random.default_rng(6)
    critic = randomise(backend, CRITICS[kind](backend, DIMS, 1), rng)
    arrays = {name: np.array(value) for name, value in backend.to_arrays(critic).items()}
    obs, action = rng.standard_normal((B, OBS)), rng.uniform(-1, 1, (B, ACT))
    values = call(backend, critic, obs, action)
    makers = {"gaussian": backend.GaussianCritic, "categorical": backend.CategoricalCritic}
    options = {"categorical": {"num_atoms": NUM_ATOMS, **ATOMS}, "simba": {"body": "simba"}}.get(kind, {})
    maker = makers.get(kind, backend.EnsembleCritic)
    single = maker(OBS, ACT, key=0, size=1, hidden_sizes=DIMS.hidden, **options)
    for i in range(critic.size):
        alone = backend.from_arrays(single, {name: value[i : i + 1] for name, value in arrays.items()})
        np.testing.assert_allclose(call(backend, alone, obs, action)[0], values[i], rtol=1e-9, atol=1e-12)
    for value in arrays.values():
        value[1] += 1.0
    changed = call(backend, backend.from_arrays(critic, arrays), obs, action)
    np.testing.assert_allclose(np.delete(changed, 1, 0), np.delete(values, 1, 0), rtol=1e-12)
    assert np.abs(changed[1] - values[1]).min() > 1e-3


def test_gaussian_critic_distribution(backend: ModuleType) -> None:
    rng = np.random.default_rng(7)
    critic = randomise(backend, CRITICS["gaussian"](backend, DIMS, 1), rng, magnitude=3)
    obs, action = rng.standard_normal((B, OBS)), rng.uniform(-1, 1, (B, ACT))
    to_backend, to_numpy = backend.testing.to_backend, backend.testing.to_numpy
    mean, std = (to_numpy(x) for x in critic.distribution(to_backend(obs), to_backend(action)))
    np.testing.assert_allclose(mean, call(backend, critic, obs, action))
    assert mean.shape == std.shape == (2, B)
    assert (std > 0).all()


def test_categorical_critic_values_are_means_of_its_atoms(backend: ModuleType) -> None:
    rng = np.random.default_rng(7)
    critic = randomise(backend, CRITICS["categorical"](backend, DIMS, 1), rng, magnitude=3)
    obs, action = rng.standard_normal((B, OBS)), rng.uniform(-1, 1, (B, ACT))
    to_backend, to_numpy = backend.testing.to_backend, backend.testing.to_numpy
    logits = to_numpy(critic.logits(to_backend(obs), to_backend(action)))
    assert logits.shape == (3, B, NUM_ATOMS)
    powers, atoms = np.exp(logits), np.linspace(-1, 1.5, NUM_ATOMS)
    np.testing.assert_allclose(call(backend, critic, obs, action), powers @ atoms / powers.sum(-1))


def test_gaussian_actor(backend: ModuleType) -> None:
    rng = np.random.default_rng(8)
    actor = backend.GaussianActor(OBS, ACT, key=1, hidden_sizes=DIMS.hidden, log_std_min=-0.5, log_std_max=0.25)
    actor = randomise(backend, actor, rng, magnitude=5)
    obs = rng.standard_normal((2, 50, OBS))
    mean, log_std = (backend.testing.to_numpy(x) for x in actor(backend.testing.to_backend(obs)))
    assert mean.shape == log_std.shape == (2, 50, ACT)
    assert log_std.min() == -0.5
    assert log_std.max() == 0.25
    # mean first: the raw outputs are recomputed from the last layer
    p = backend.to_arrays(actor)
    x = obs
    for i in range(len(DIMS.hidden)):
        x = x @ p[f"layers.{i}.weight"].T + p[f"layers.{i}.bias"]
        x = x * np.tanh(np.logaddexp(0, x))
    last = len(DIMS.hidden)
    raw = x @ p[f"layers.{last}.weight"].T + p[f"layers.{last}.bias"]
    np.testing.assert_allclose(mean, raw[..., :ACT], rtol=1e-9)
    np.testing.assert_allclose(log_std, np.clip(raw[..., ACT:], -0.5, 0.25), rtol=1e-9)


NETWORKS = {**ACTORS, **CRITICS}


@pytest.mark.parametrize("kind", NETWORKS)
def test_same_key_same_parameters_in_both_backends(both: SimpleNamespace, kind: str) -> None:
    one = both.torch.to_arrays(NETWORKS[kind](both.torch, DIMS, 3))
    other = both.equinox.to_arrays(NETWORKS[kind](both.equinox, DIMS, 3))
    third = both.torch.to_arrays(NETWORKS[kind](both.torch, DIMS, 4))
    assert list(one) == list(other) or set(one) == set(other)
    for name in one:
        assert one[name].dtype == other[name].dtype == np.float64
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
        if name.endswith("weight") and not (one[name] == 1).all():  # a LayerNorm's are
            assert np.abs(one[name] - third[name]).max() > 0


def without_step_size(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights and biases."""
    return {name: array for name, array in arrays.items() if not name.startswith("raw_")}


@pytest.mark.parametrize("kind", [kind for kind in NETWORKS if "simba" not in kind])
def test_initial_parameters(backend: ModuleType, kind: str) -> None:
    """Truncated normal, cut at 2/sqrt(fan_in), zero bias; ensemble members differ."""
    wide = DIMS._replace(hidden=(128, 128))
    arrays = without_step_size(backend.to_arrays(NETWORKS[kind](backend, wide, 0)))
    assert any(name.endswith("weight") for name in arrays)
    spread = 0.8796256610342398  # of a standard normal cut at two standard deviations
    for name, array in arrays.items():
        if name.endswith("bias"):
            assert not array.any(), name
            continue
        scaled = array * np.sqrt(array.shape[-1])
        assert np.abs(scaled).max() <= 2, name
        if array.size >= 1000:
            assert abs(scaled.std() / spread - 1) < 5 / np.sqrt(2 * array.size), name
            assert abs(scaled.mean()) < 5 / np.sqrt(array.size), name
        if kind in CRITICS:
            assert np.abs(array[0] - array[1]).min() > 0, name


@pytest.mark.parametrize("kind", [kind for kind in NETWORKS if "simba" in kind])
def test_initial_parameters_of_a_simba(backend: ModuleType, kind: str) -> None:
    """First and last layer orthogonal, in blocks normal with variance 2 / fan in, LayerNorms 1, biases 0."""
    arrays = without_step_size(backend.to_arrays(NETWORKS[kind](backend, DIMS._replace(hidden=(64, 64)), 0)))
    if "langevin" in kind:
        arrays["layers.4.weight"] = 1e8 * arrays["layers.4.weight"]
    arrays = {name: np.asarray(array) for name, array in arrays.items() if not name.startswith("time_layers")}
    normal = []
    for name, array in arrays.items():
        if name.endswith("bias"):
            assert not array.any(), name
        elif "norm" in name or name == "layers.3.weight":
            assert (array == 1).all(), name
        elif ".up." in name or ".down." in name:
            normal.append((array * np.sqrt(array.shape[-1] / 2)).ravel())
        else:
            short = array if array.shape[-2] <= array.shape[-1] else array.swapaxes(-1, -2)
            units = np.broadcast_to(np.eye(short.shape[-2]), (*short.shape[:-1], short.shape[-2]))
            np.testing.assert_allclose(short @ short.swapaxes(-1, -2), units, atol=1e-12, err_msg=name)
    values = np.concatenate(normal)
    assert abs(values.std() - 1) < 5 / np.sqrt(2 * values.size)
    assert abs(values.mean()) < 5 / np.sqrt(values.size)
    assert np.abs(values).max() > 3, "a normal law is not cut off"


@pytest.mark.parametrize("sizes", [(8, 4), ()])
def test_blocks_of_a_simba_have_one_width(backend: ModuleType, sizes: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"hidden_sizes of a SimBa must be the same width once for each block"):
        backend.EnsembleCritic(OBS, ACT, key=0, hidden_sizes=sizes, body="simba")


def test_parameter_names(backend: ModuleType) -> None:
    """The names and shapes that checkpoints rely on."""
    h1, h2 = DIMS.hidden
    shapes = {name: value.shape for name, value in backend.to_arrays(ACTORS["denoiser"](backend, DIMS, 0)).items()}
    assert shapes == {
        "time_layers.0.weight": (32, 16),
        "time_layers.0.bias": (32,),
        "time_layers.1.weight": (16, 32),
        "time_layers.1.bias": (16,),
        "layers.0.weight": (h1, OBS + ACT + 16),
        "layers.0.bias": (h1,),
        "layers.1.weight": (h2, h1),
        "layers.1.bias": (h2,),
        "layers.2.weight": (ACT, h2),
        "layers.2.bias": (ACT,),
    }
    for kind, out in (("twin", 1), ("gaussian", 2)):
        shapes = {name: value.shape for name, value in backend.to_arrays(CRITICS[kind](backend, DIMS, 0)).items()}
        assert shapes == {
            "layers.0.weight": (2, h1, OBS + ACT),
            "layers.0.bias": (2, h1),
            "layers.1.weight": (2, h2, h1),
            "layers.1.bias": (2, h2),
            "layers.2.weight": (2, out, h2),
            "layers.2.bias": (2, out),
        }


@pytest.mark.parametrize("law", ["truncated_normal", "uniform"])
@pytest.mark.parametrize("body", ["mlp", "simba"])
def test_a_langevin_actor_starts_without_drift(backend: ModuleType, body: str, law: str) -> None:
    """So that the first policy is that of the prior's diffusion, with steps of 0.1 in every action entry."""
    actor = backend.LangevinActor(OBS, ACT, key=3, hidden_sizes=(8, 8), body=body, initialiser=law)
    rng = np.random.default_rng(0)
    drift = call(
        backend, actor, rng.standard_normal((B, OBS)), 3 * rng.standard_normal((B, ACT)), rng.integers(0, T, B)
    )
    assert 0 < np.abs(drift).max() < 1e-6
    np.testing.assert_allclose(backend.testing.to_numpy(actor.step_size()), np.full(ACT, 0.1), rtol=1e-12)
    with pytest.raises(UsageError, match="time_dim must be even"):
        backend.LangevinActor(OBS, ACT, key=0, time_dim=15)


@pytest.mark.parametrize("bad", [0, -1])
def test_wrong_sizes(backend: ModuleType, bad: int) -> None:
    for make in networks(backend):
        with pytest.raises(UsageError, match=str(bad)):
            make(bad, ACT, key=0)
        with pytest.raises(UsageError, match=str(bad)):
            make(OBS, bad, key=0)
        with pytest.raises(UsageError, match=str(bad)):
            make(OBS, ACT, key=0, hidden_sizes=(8, bad))
    for make in (backend.EnsembleCritic, backend.GaussianCritic):
        with pytest.raises(UsageError, match=str(bad)):
            make(OBS, ACT, key=0, size=bad)
    with pytest.raises(UsageError, match=str(bad)):
        backend.MLPDenoiser(OBS, ACT, key=0, time_dim=bad)


def test_odd_time_dim(backend: ModuleType) -> None:
    with pytest.raises(UsageError, match="15"):
        backend.MLPDenoiser(OBS, ACT, key=0, time_dim=15)


@pytest.mark.parametrize(("obs_dim", "action_dim"), [(OBS + 1, ACT), (OBS, ACT + 1), (OBS + 1, ACT - 1)])
def test_inputs_of_other_sizes(backend: ModuleType, obs_dim: int, action_dim: int) -> None:
    """Also of sizes whose sum is right."""
    obs, action = (backend.testing.to_backend(np.zeros((2, size), np.float32)) for size in (obs_dim, action_dim))
    denoiser, actors = backend.MLPDenoiser(OBS, ACT, key=0), (backend.GaussianActor, backend.DeterministicActor)
    calls = [lambda: denoiser(obs, action, 0)]
    calls += [lambda make=make: make(backend, DIMS, 0)(obs, action) for make in CRITICS.values()]
    if obs_dim != OBS:
        calls += [
            lambda: denoiser.condition(obs, 3),
            *(lambda make=make: make(OBS, ACT, key=0)(obs) for make in actors),
        ]
    wrong = [f"{n} has shape (2, {given}), but the network was made for a last axis of size {size}"
             for n, given, size in (("obs", obs_dim, OBS), ("action", action_dim, ACT)) if given != size]  # fmt: skip
    for call in calls:
        with pytest.raises(UsageError) as error:
            call()
        assert str(error.value).removeprefix("noisy ") in wrong
