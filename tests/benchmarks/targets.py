"""What we want to reach, and whether a run of the benchmark did. Every target compares numbers of one run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .results import Results


class Target(NamedTuple):
    """A bound and what was measured."""

    text: str
    wanted: float
    value: float
    unit: str
    at_least: bool

    @property
    def met(self) -> bool:
        """Whether the bound is kept."""
        return self.value >= self.wanted if self.at_least else self.value <= self.wanted

    @property
    def verdict(self) -> str:
        """Met, or missed by how much of what was wanted."""
        return "met" if self.met else f"missed by {abs(self.value / self.wanted - 1):.0%}"


BACKENDS = ("torch", "equinox")
ENVS = ("HalfCheetah", "Humanoid")
DIFFUSION = {
    "sdac": "SDAC", "sdac_small": "SDAC T=5 N=1", "dacer2": "DACER2", "dacer": "DACER", "dpmd": "DPMD", "idem": "iDEM",
    "rfm": "RFM", "qsm": "QSM", "fpmd": "FPMD", "maxentdp": "MaxEntDP", "dipo": "DIPO", "dime": "DIME",
    "qvpo": "QVPO", "meanflow": "MeanFlow",
}  # fmt: skip
GAINS = {
    ("sdac", "HalfCheetah"): {"equinox": 2.5, "torch": 2.7},
    ("sdac", "Humanoid"): {"equinox": 3.0, "torch": 3.0},
    ("sdac_small", "HalfCheetah"): {"equinox": 5.0, "torch": 5.0},
    ("dacer2", "HalfCheetah"): {"equinox": 2.6, "torch": 2.2},
    ("dacer", "HalfCheetah"): {"equinox": 2.3, "torch": 2.0},
    **{
        (case, "HalfCheetah"): {"equinox": 2.0, "torch": 2.0}
        for case in ("idem", "rfm", "qsm", "fpmd", "maxentdp", "dipo", "dime", "qvpo")
    },
}
"""Naive time over ours."""
FRACTIONS = {"sdac": {"equinox": 0.7, "torch": 0.7}, "dacer2": {"equinox": 0.5, "torch": 0.4}}
LATENCY = {"equinox": 0.25, "torch": 0.6}
"""Milliseconds of DACER2's action for one observation."""


def targets(results: Results) -> list[Target]:
    """All targets whose numbers were measured."""
    return [target for target in _all(results) if target is not None]


def _all(results: Results) -> Iterator[Target | None]:
    get, ratio = results.get, results.ratio

    def target(text: str, wanted: float, value: float | None, unit: str = "x", at_least: bool = True) -> Target | None:
        return None if value is None else Target(text, wanted, value, unit, at_least)

    for (case, env), wanted in GAINS.items():
        for backend, bound in wanted.items():
            place = (case, env, backend)
            gain = ratio((*place, "naive", "update"), (*place, "ours", "update"))
            yield target(f"{DIFFUSION[case]}, {env}, {backend}: naive update over ours", bound, gain)
    for case, wanted in FRACTIONS.items():
        for env in ENVS:
            for backend, bound in wanted.items():
                value = get(case, env, backend, "ours", "fraction")
                yield target(f"{DIFFUSION[case]}, {env}, {backend}: fraction of the products' peak", bound, value, "")
    for case, title in DIFFUSION.items():
        for env in ENVS:
            value = ratio((case, env, "torch", "ours", "update"), (case, env, "equinox", "ours", "update"))
            yield target(f"{title}, {env}: torch's update over Equinox's", 1.2, value, "x", False)
    for backend, peer, title in (("torch", "sb3", "Stable-Baselines3"), ("equinox", "sbx", "SBX")):
        for case, layers in (("sac", 2), ("sac3", 3)):
            for env in ENVS:
                value = ratio((case, env, backend, peer, "update"), (case, env, backend, "ours", "update"))
                yield target(f"SAC 256x{layers}, {env}: {title}'s update over ours ({backend})", 1.0, value)
    for backend in BACKENDS:
        place = ("HalfCheetah", backend)
        value = ratio(("dacer2", *place, "ours", "update"), ("sac3", *place, "ours", "update"))
        yield target(f"DACER2, HalfCheetah, {backend}: update over our SAC's of the same width", 2.0, value, "x", False)
        value = ratio(("dacer2", *place, "ours", "update"), ("sac3", "HalfCheetah", "torch", "sb3", "update"))
        text = f"DACER2, HalfCheetah, {backend}: update over Stable-Baselines3's SAC of the same width"
        yield target(text, 1.0, value, "x", False)
        value = get("dacer2", *place, "ours", "act 1")
        text = f"DACER2, HalfCheetah, {backend}: action for one observation"
        over = ratio(("dacer2", *place, "ours", "act 1"), ("sac", *place, "ours", "act 1"))
        yield target(text + ("" if over is None else f" ({over:.1f}x SAC's)"), LATENCY[backend], value, " ms", False)
        for case in ("dacer2", "sac"):
            value = ratio((case, *place, "ours", "predict"), (case, *place, "ours", "bare"))
            yield target(f"{case}, {backend}: `Agent.predict` over the bare call", 2.0, value, "x", False)
        for case in ("dacer2", "sdac", "sac"):
            for env in ENVS:
                run = (case, env, backend, "synchronous")
                text = f"{case}, {env}, {backend}: whole run, UTD 1"
                yield target(f"{text}, learner's share of the wall time", 0.9, get(*run, "learner"), "")
                yield target(f"{text}, host over learner", 0.05, get(*run, "host"), "", False)
        for env in ENVS:
            value = get("sdac", env, backend, "ours", "memory")
            yield target(f"SDAC, {env}, {backend}: memory beyond the replay buffer", 1.2, value, " GB", False)
        value = get("dacer2", *place, "ours", "adaptation")
        yield target(f"DACER2, {backend}: mixture entropy, share of the updates' time", 0.03, value, "", False)
        value = get("sdac", *place, "ours", "adaptation")
        yield target(f"SDAC, {backend}: entropy estimates, share of the updates' time", 0.03, value, "", False)
    value = get("", "HalfCheetah", "", "ours", "replay over raw")
    yield target("Replay of 1,000,000 HalfCheetah transitions over its raw size", 1.1, value, "x", False)
