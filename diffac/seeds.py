"""Several seeds of one recipe in one process, each of them a run of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from diffac.checkpoints import codec_of
from diffac.errors import RunError, UsageError
from diffac.lanes import Closed, LaneLearner, Lanes, LaneState, OneByOne, group_of, in_lanes
from diffac.logging.seeds import SeedsConsole
from diffac.messages import command, note, say
from diffac.paths import OwnFolder, absolute
from diffac.protocols import Learner
from diffac.running import build, script_of, train_in
from diffac.runs import create_run, lock_run
from diffac.system.signals import Interrupted, StopRequest
from diffac.training import TrainConfig, TrainResult


def run_seeds(module: ModuleType, config: TrainConfig, name: str, num_seeds: int) -> list[TrainResult]:
    """Trains seeds `config.seed`, `config.seed` + 1, ... together: as many runs, each as if it had been started alone.

    A seed whose run breaks off (it diverges, an environment fails, the disk is full) ends alone; the others go on.

    Args:
        module: the recipe.
        config: arguments of the first seed.
        name: the recipe's.
        num_seeds: how many.

    Returns:
        The results, in the order of the seeds.

    Raises:
        UsageError: impossible arguments; nothing was written.
        RunError: at least one seed failed; the others are complete.
        Interrupted: Ctrl-C or SIGTERM, after every seed has written a checkpoint.
    """
    if num_seeds < 1:
        raise UsageError(f"num_seeds must be at least 1, got {num_seeds}")
    if config.track is not None:
        raise UsageError(
            f"--track {config.track} follows one run in a process, not {num_seeds}; leave it out, or start the seeds "
            f"one by one"
        )
    configs = {config.seed + i: dataclasses.replace(config, seed=config.seed + i) for i in range(num_seeds)}
    root = absolute(config.run_root)
    learners, states, _ = zip(*(build(module, own) for own in configs.values()), strict=True)
    group = group_of(learners, states)
    file = script_of(module)
    folders = {seed: create_run(own, name, recipe_file=file, root=root) for seed, own in configs.items()}
    with contextlib.ExitStack() as stack:
        for folder in folders.values():
            stack.enter_context(lock_run(folder))
        say(_title(name, config, num_seeds), *folders.values())
        if isinstance(group, OneByOne):
            note(f"{config.backend} computes one seed after the other, which takes as long as to train them so")
        lanes = Lanes(group, num_seeds)
        begin = time.perf_counter()
        with StopRequest() as request:
            resumes = [command("diffac", "resume", folder) for folder in folders.values()]
            request.last_words = lambda: "\n".join([AT_ONCE, *resumes])
            outcomes = _train_all(lanes, learners, name, configs, folders, _Stop(request))
    failed = {seed: error for seed, error in outcomes.items() if isinstance(error, BaseException)}
    done = {
        seed: result._replace(state=group.state(lane))
        for lane, (seed, result) in enumerate(outcomes.items())
        if isinstance(result, TrainResult)
    }
    for error in failed.values():
        if not isinstance(error, _EXPECTED):
            raise error
    if request.signum is not None and failed:
        raise Interrupted(request.signum, "\n".join(f"seed {seed}: {error}" for seed, error in failed.items()))
    if done:
        say(*_report(done, time.perf_counter() - begin, folders))
    if failed:
        for seed, error in failed.items():
            note(f"seed {seed}: {error}")
        raise RunError(f"{len(failed)} of {num_seeds} seeds failed")
    return list(done.values())


AT_ONCE = "interrupted at once; go on from the last checkpoints with:"
_EXPECTED = (RunError, UsageError, Interrupted, Closed)
"""How the run of one seed may end early; anything else is a mistake in a program and ends all of them."""


class _Stop:
    """Whether all seeds shall save and end: a signal has come, or one of them has met a mistake in a program.

    Args:
        request: for signals.
    """

    def __init__(self, request: StopRequest) -> None:
        self.request = request
        self.broken = False

    @property
    def requested(self) -> bool:
        return self.broken or self.request.requested

    def raise_if_requested(self) -> None:
        self.request.raise_if_requested()
        if self.broken:
            raise Interrupted(signal.SIGTERM)


def _train_all(
    lanes: Lanes,
    learners: Sequence[Learner],
    name: str,
    configs: Mapping[int, TrainConfig],
    folders: Mapping[int, Path],
    stop: _Stop,
) -> dict[int, TrainResult | BaseException]:
    """What becomes of each seed, in their order."""
    first = next(iter(configs.values()))
    console = SeedsConsole(list(configs), first.total_timesteps, bar=first.progress)
    outcomes: dict[int, TrainResult | BaseException] = {}

    def train(lane: int, seed: int) -> None:
        config, folder = configs[seed], folders[seed]
        learner = LaneLearner(lanes, lane, learners[lane], codec_of(learners[lane], config.backend))
        try:
            outcomes[seed] = train_in(
                folder, name, learner, LaneState(), config, None,
                stop=stop, console=console.writer(seed), say=lambda text: note(f"seed {seed}: {text}"),
                evaluated=learner.evaluated,
            )  # fmt: skip
        except BaseException as error:
            outcomes[seed] = error
            stop.broken |= not isinstance(error, _EXPECTED)
            console.drop(seed)
            if not stop.requested:
                note(f"seed {seed} has failed, the others go on: {error}")

    try:
        with OwnFolder().entered():
            in_lanes(lanes, [lambda lane=lane, seed=seed: train(lane, seed) for lane, seed in enumerate(configs)])
    except KeyboardInterrupt as error:
        text = "\n".join([AT_ONCE, *(command("diffac", "resume", folder) for folder in folders.values())])
        raise Interrupted(getattr(error, "signum", signal.SIGINT), text) from None
    finally:
        console.close()
    return {seed: outcomes[seed] for seed in configs}


def _title(name: str, config: TrainConfig, num_seeds: int) -> str:
    last = config.seed + num_seeds - 1
    processes = f", {num_seeds * config.num_envs} processes of environments" if config.asynchronous else ""
    return f"{name} on {config.env_id}, backend {config.backend}, seeds {config.seed} to {last} together{processes}"


def _report(done: Mapping[int, TrainResult], seconds: float, folders: Mapping[int, Path]) -> list[str]:
    """The last evaluations, one line for each seed that is complete, and all of them together."""
    lines, means = [], []
    for seed, result in done.items():
        last = result.evaluations[-1]
        means.append(last.returns.mean())
        lines.append(f"seed {seed}: final return {means[-1]:.1f} +- {last.returns.std():.1f}  {folders[seed]}")
    minutes, rest = divmod(round(seconds), 60)
    last = next(iter(done.values())).evaluations[-1]
    return [
        *lines,
        f"mean over {len(means)} seeds {np.mean(means):.1f} ({min(means):.1f} to {max(means):.1f}), "
        f"{len(last.returns)} episodes each",
        f"{last.env_step:,} environment steps and {last.updates:,} updates each, {minutes} min {rest} s",
        f"compare them: {command('diffac', 'report', next(iter(folders.values())).parent)}",
    ]
