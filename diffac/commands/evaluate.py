"""`diffac evaluate`: how good is the policy of a run, or of a saved agent?"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import io
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from diffac.agent import Agent
from diffac.commands.parsing import parse
from diffac.errors import RunError, UsageError
from diffac.files.paths import absolute
from diffac.files.untrusted import inside, write_atomically
from diffac.messages import note, say
from diffac.noise import draw
from diffac.reports.videos import choose_renderer, record_video
from diffac.runs.find import find_checkpoint
from diffac.runs.manifest import manifest
from diffac.training.evaluation import Evaluation, Evaluator

SEED = 1_000_000
"""Not that of the evaluations during training: the best policy was chosen because it did well in those."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Plays whole episodes with the policy of a run, and writes their returns to RUN/evaluations/."""

    run: tyro.conf.Positional[Path]
    """Folder of the run, runs/.../seed0__..., or of a saved agent."""
    episodes: int = 10
    """How many."""
    checkpoint: Literal["best", "last"] | None = None
    """Which policy of a run; None: the best, if there is one."""
    backend: str | None = None
    """Evaluate in this backend; None: that of the training."""
    env_id: str | None = None
    """Evaluate in another environment with the same sizes; None: that of the training."""
    seed: int = SEED
    """Of environments and policy."""
    max_steps: int | None = None
    """Steps after which an episode is cut; None: the run's eval_max_steps."""
    deterministic: bool = True
    """Without exploration noise, or with it."""
    video: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also record an episode, to RUN/videos/."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UsageError(f"--seed must be at least 0, got {self.seed}")
        if self.max_steps is not None and self.max_steps < 1:
            raise UsageError(f"--max-steps must be at least 1, got {self.max_steps}")


def main(argv: Sequence[str], recipe: ModuleType | None = None) -> Evaluation:
    """Evaluates, prints a summary and writes the episodes beside the policy.

    Args:
        argv: arguments of the command.
        recipe: the module of a recipe that is run as a script; None: the registered one.

    Raises:
        UsageError: impossible arguments, or there is nothing to evaluate.
        RunError: the policy is damaged, the environment broke its contract, or the result cannot be written.
        SystemExit: after `--help`.
    """
    chosen = parse(EvaluateArguments, argv, "diffac evaluate")
    if chosen.video:
        choose_renderer()  # before anything imports mujoco
    folder = absolute(chosen.run)
    checkpoint = find_checkpoint(folder, chosen.checkpoint, note)
    agent = Agent.from_checkpoint(checkpoint, backend=chosen.backend, env_id=chosen.env_id, recipe=recipe)
    config = agent.config
    best = "mean_reward" in checkpoint.manifest
    say(
        f"{agent.recipe} on {config.env_id}, backend {config.backend}",
        f"{'best policy' if best else 'policy'} of step {checkpoint.env_step:,}, {checkpoint.folder}",
    )
    max_steps = chosen.max_steps or config.eval_max_steps
    with Evaluator(
        config.env_id,
        num_episodes=chosen.episodes,
        seed=chosen.seed,
        deterministic=chosen.deterministic,
        **config.env_arguments,
        max_steps=max_steps,
    ) as evaluator:
        evaluation = evaluator(agent.engine, agent.state)
        env_seeds, env_of_episode = evaluator.env_seeds, evaluator.env_of_episode
    about = {
        "recipe": agent.recipe,
        "env_id": config.env_id,
        "backend": config.backend,
        "trained_with": checkpoint.manifest["config"]["backend"],
        "run_id": checkpoint.manifest["run_id"],
        "checkpoint": str(checkpoint.folder),
        "env_step": checkpoint.env_step,
        "updates": checkpoint.manifest["updates"],
        "deterministic": chosen.deterministic,
        "seed": chosen.seed,
        "env_seeds": env_seeds,
        "cut": evaluation.cut,
        **_statistics(evaluation),
        "returns": evaluation.returns.tolist(),
        "lengths": evaluation.lengths.tolist(),
        "evaluated": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": manifest()["versions"],
    }
    say(*_summary(evaluation, about))
    if evaluation.cut_note:
        note(f"{evaluation.cut_note} (--max-steps sets how many)")
    rows = [
        (i, env, env_seeds[env], ret, length)
        for i, (env, ret, length) in enumerate(
            zip(env_of_episode.tolist(), evaluation.returns, evaluation.lengths, strict=True)
        )
    ]
    name = f"{'best_' if best else ''}step{checkpoint.env_step}_{config.backend}_seed{chosen.seed}"
    path = _write(folder, name, about, rows)
    say(path)
    if chosen.video:
        path = inside(folder, "videos") / f"{path.stem}.mp4"
        _record(agent, path, chosen.seed, chosen.deterministic, max_steps)
    return evaluation


def _statistics(evaluation: Evaluation) -> dict[str, float]:
    """Of the returns and lengths; standard deviations over the episodes."""
    return {
        f"{word}_{name}": float(getattr(values, word)())
        for name, values in (("return", evaluation.returns), ("length", evaluation.lengths))
        for word in ("mean", "std", "min", "max")
    }


def _summary(evaluation: Evaluation, about: dict[str, Any]) -> list[str]:
    exploration = "off" if about["deterministic"] else "on"
    seeds = ", ".join(map(str, about["env_seeds"]))
    return [
        f"{len(evaluation.returns)} episodes, exploration noise {exploration}, seed {about['seed']} "
        f"(environments: {seeds})",
        "return {mean_return:.1f} +- {std_return:.1f}, min {min_return:.1f}, max {max_return:.1f}".format(**about),
        "length {mean_length:.1f} +- {std_length:.1f}, min {min_length:.0f}, max {max_length:.0f}".format(**about),
    ]


def _write(folder: Path, name: str, about: dict[str, Any], rows: list[tuple[Any, ...]]) -> Path:
    """Writes `evaluations/{name}.json` and `.csv`, with a number where there is one of that name; the former's path."""
    table = io.StringIO(newline="")
    csv.writer(table, lineterminator="\n").writerows(
        [("episode", "environment", "environment_seed", "return", "length"), *rows]
    )
    try:
        folder = inside(folder, "evaluations")
        folder.mkdir(exist_ok=True)
        path, number = folder / f"{name}.json", 1
        while os.path.lexists(path):
            number += 1
            path = folder / f"{name}_{number}.json"
        write_atomically(path.with_suffix(".csv"), table.getvalue().encode())
        write_atomically(path, json.dumps(about, indent=2).encode())
    except OSError as error:
        raise RunError(f"the evaluation cannot be written to {folder}: {error.strerror or error}") from error
    return path


def _record(agent: Agent, path: Path, seed: int, deterministic: bool, max_steps: int | None) -> None:
    """Records an episode; a machine that cannot draw costs a sentence."""
    rng = np.random.default_rng(seed)

    def act(obs: np.ndarray) -> np.ndarray:
        shape = (len(obs), agent.action_space.shape[0])
        noise = draw(rng, agent.engine.act_noise_spec(shape, deterministic=deterministic))
        return agent.engine.act(agent.state, obs, noise, deterministic=deterministic)

    try:
        with warnings.catch_warnings():  # JAX warns of the fork that starts ffmpeg, which is no fork that stays
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            options = {"max_steps": max_steps, **agent.config.env_arguments}
            played = record_video(act, agent.config.env_id, path, seed=seed, **options)
    except (UsageError, RunError, OSError) as error:
        note(f"no video: {error}")
    else:
        say(f"{path}, an episode with return {played.returns[0]:.1f}")
        if played.cut_note:
            note(played.cut_note)
