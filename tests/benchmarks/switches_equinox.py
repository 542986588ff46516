"""Equinox parts without their optimisations, one function for each entry of `switches.SWITCHES`."""

from __future__ import annotations

from typing import Any

from diffac.protocols import Policy


def mish(patch: Any) -> None:
    """The framework's Mish."""
    import jax

    from diffac_equinox.parts import activations

    patch(activations, "_ACTIVATIONS", {**activations._ACTIVATIONS, "mish": jax.nn.mish})


def unrolled(patch: Any) -> None:
    """Every chain is a loop."""
    from diffac_equinox.parts import samplers

    patch(samplers, "_LONGEST_UNROLLED", 0)


def shares(patch: Any) -> None:
    """The denoiser concatenates its inputs for every evaluation."""
    import jax.numpy as jnp

    from diffac_equinox.parts import networks, objectives, samplers

    def call(self: Any, obs: Any, noisy: Any, t: Any) -> Any:
        activate = networks.activation(self.activation)
        embedding = networks.time_embedding(t, self.time_dim).astype(noisy.dtype)
        features = networks._rest(self.time_layers, activate, self.time_layers[0](embedding))
        pieces = (obs, noisy, features)
        batch = jnp.broadcast_shapes(*(x.shape[:-1] for x in pieces))
        joined = jnp.concatenate([jnp.broadcast_to(x, (*batch, x.shape[-1])) for x in pieces], axis=-1)
        return networks._rest(self.layers, activate, self.layers[0](joined))

    patch(networks.MLPDenoiser, "__call__", call)
    for module in (samplers, objectives):
        patch(module, "_condition", lambda actor, obs, num_steps: obs)


def ensemble(patch: Any) -> None:
    """A product for each critic."""
    import jax.numpy as jnp

    from diffac_equinox.parts import networks

    def outputs(layers: Any, function: Any, obs: Any, action: Any) -> Any:
        results = []
        for member in range(len(layers[0].weight)):
            weight = layers[0].weight[member]
            hidden = obs @ weight[:, : obs.shape[-1]].T + action @ weight[:, obs.shape[-1] :].T + layers[0].bias[member]
            for layer in layers[1:]:
                hidden = function(hidden) @ layer.weight[member].T + layer.bias[member]
            results.append(hidden)
        return jnp.stack(results)

    patch(networks, "ensemble_outputs", outputs)


def share(patch: Any) -> None:
    """The first layer of the critics as a product for each of them."""
    import jax.numpy as jnp

    from diffac_equinox.kernels import products

    def product(weight: Any, x: Any, num_axes: int) -> Any:
        rows = jnp.broadcast_to(x.reshape(-1, x.shape[-1]), (len(weight), x.size // x.shape[-1], x.shape[-1]))
        padding = (1,) * (num_axes - (x.ndim - 1))
        return jnp.einsum("eri,eoi->ero", rows, weight).reshape(len(weight), *padding, *x.shape[:-1], weight.shape[1])

    patch(products, "_ensemble_share", product)


def repeated(patch: Any) -> None:
    """The share of the observation is broadcast to the steps of a chain."""
    from diffac_equinox.parts import networks

    patch(networks, "repeated", lambda x, leading: x)


def particles(patch: Any) -> None:
    """The regression of SDAC with a row for each particle."""
    import jax
    import jax.numpy as jnp

    from diffac_equinox.parts import objectives
    from diffac_equinox.parts.diffusion import add_noise, remove_noise

    def proposal(
        self: Any, actor: Any, critic: Any, batch: Any, noise: Any, temperature: Any, state: Any, schedule: Any
    ) -> Any:
        count, t = self.num_particles, noise["t"]
        action = self.sampler(Policy(actor, critic, temperature), batch.obs, noise["rollout"])
        noisy = add_noise(schedule, action, noise["eps"], t)
        mean = remove_noise(schedule, noisy, jnp.zeros_like(noisy), t)
        std = remove_noise(schedule, jnp.zeros_like(noisy), -jnp.ones_like(noisy), t)
        actions = objectives._truncated_normal(mean, std, noise["particles"])
        eps = (mean - actions) / std
        q = critic(batch.obs, actions).min(0)
        weight = jax.nn.softmax(q * self.value_scale / temperature, axis=0)
        metrics = {"effective_particles": (1 / (weight**2).sum(0)).mean(), "q_mean": q.mean()}
        return objectives.Regression(
            jnp.tile(batch.obs, (count, 1)), jnp.tile(noisy, (count, 1)), jnp.tile(t, count),
            eps.reshape(-1, eps.shape[-1]), actions.reshape(-1, eps.shape[-1]), count * weight.ravel(),
            jnp.zeros_like(weight).ravel(), metrics, state,
        )  # fmt: skip

    patch(objectives.ReverseProposal, "__call__", proposal)


def skip(patch: Any) -> None:
    """The gradient of the actor in every update; where it is not due it is thrown away."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    from diffac_equinox import learner

    original = learner.run_if

    def always(due: Any, part: Any, otherwise: Any, state: Any) -> Any:
        if part.__name__ != "update_actor":
            return original(due, part, otherwise, state)
        old, static = eqx.partition(otherwise(state), eqx.is_array)
        new, results = part(state)
        chosen = jax.tree.map(lambda n, o: jnp.where(due, n, o), eqx.filter(new, eqx.is_array), old)
        return eqx.combine(chosen, static), jax.tree.map(lambda x: jnp.where(due, x, jnp.nan), results)

    patch(learner, "run_if", always)


def donation(patch: Any) -> None:
    """The old state stays valid."""
    import functools

    import jax

    from diffac_equinox.engine import engine, programs

    def program(self: Any, structure: Any, others: Any) -> Any:
        @functools.partial(jax.jit, compiler_options=programs._compiler_options())
        def update(arrays: Any, batches: Any, key: Any) -> Any:
            state = programs._put_together(structure, others, arrays)
            state, metrics = engine._fused_updates(self.learner, state, batches, key)
            return programs._take_apart(state)[0], metrics

        return update

    patch(engine.Engine, "_make_update_program", program)


def dispatch(patch: Any) -> None:
    """Programs run in a thread of JAX's own; without effect when JAX has computed before."""
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", True)


def vectors(patch: Any) -> None:
    """Vectors as long as XLA chooses."""
    from diffac_equinox.engine import engine

    patch(engine, "_compiler_options", lambda: None)


def projection(patch: Any) -> None:
    """Every return is compared with every atom."""
    from diffac_equinox.kernels import projection

    patch(projection, "divided", projection._divided_densely)


def metrics(patch: Any) -> None:
    """Every update waits for its numbers."""
    from diffac_equinox import Engine

    original: Any = Engine.update

    def update(self: Any, state: Any, batches: Any, key: int) -> Any:
        state, metrics = original(self, state, batches, key)
        self.fetch([metrics])
        return state, metrics

    patch(Engine, "update", update)


def heap(patch: Any) -> None:
    """Large blocks go back to the system as soon as they are freed."""
    from diffac.system import memory

    patch(memory, "keep_freed_memory", lambda: None)
