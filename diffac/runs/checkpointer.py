"""Keeps a run on disk while it is trained."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffac.backend import Codec
from diffac.data.replay import NumberedReplay
from diffac.errors import DamagedError, RunError
from diffac.files import untrusted
from diffac.files.paths import Place, absolute
from diffac.messages import note
from diffac.runs.checkpoints import Checkpoint
from diffac.runs.store import Store
from diffac.system.signals import Stop, undisturbed
from diffac.training.nonfinite import diverged, nonfinite_arrays
from diffac.training.snapshot import Snapshot

METRICS = ("metrics.csv", "metrics.jsonl")
"""What was logged, which a checkpoint vouches for."""


class Checkpointer:
    """Keeps a run on disk: `checkpoints/` to go on from, `best/` with the policy of the best evaluation.

    Args:
        folder: of the run.
        codec: of the learner's state.
        interval: environment steps between two checkpoints; there is one at the end too.
        info: entries of every manifest, "run_id" among them.
        checkpoint: what the run goes on from; None: it begins.
        stop: whether somebody wants the run to end; looked at after every save.
        say: told what a person should know.
    """

    def __init__(
        self,
        folder: Path | str,
        codec: Codec,
        *,
        interval: int,
        info: Mapping[str, Any],
        checkpoint: Checkpoint | None = None,
        stop: Stop | None = None,
        say: Callable[[str], None] = note,
    ) -> None:
        self.folder, self.codec, self.interval = absolute(folder), codec, interval
        self.info, self.checkpoint, self.stop, self.say = dict(info), checkpoint, stop, say
        self.store = Store(untrusted.inside(self.folder, "checkpoints"))
        self.best_store = Store(untrusted.inside(self.folder, "best"), keep=1)
        best = self.best_store.best()
        self._best = -math.inf if best is None else best.manifest["mean_reward"]
        self.env_step = 0 if checkpoint is None else checkpoint.env_step
        """Environment steps done when it was last asked whether a checkpoint is due."""
        self._place = Place(self.folder) if self.folder.is_dir() else None
        self._looked = -math.inf

    def find_folder(self) -> Path | None:
        """Where the folder of the run lies now, also if somebody has renamed it; None where that is not known."""
        return self.folder if self._place is None else self._place.find()

    def check_folder(self) -> None:
        """Refuses to write to a folder that is not the one the run began in; makes it where the run has none yet.

        Raises:
            RunError: it was renamed, replaced or deleted.
        """
        if self._place is None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._place = Place(self.folder)
            except OSError as error:
                raise RunError(f"the run cannot write to {self.folder}: {error.strerror or error}") from error
        if not self._place.is_there:
            now = self._place.find()
            what = "deleted or replaced" if now is None else f"renamed to {now}"
            raise RunError(f"the folder of the run, {self.folder}, was {what} meanwhile; nothing more is written")

    def restore(self, state: Any, buffer: NumberedReplay) -> tuple[Any, dict[str, Any] | None]:
        """The learner's state and `Snapshot.host` to go on from, and fills the buffer; (state, None) at the beginning.

        Raises:
            UsageError: the arrays do not fit the learner.
        """
        if self.checkpoint is None:
            return state, None
        self.checkpoint.restore_replay(buffer)
        return self.checkpoint.learner_state(self.codec, state), self.checkpoint.host()

    def due(self, before: int, env_step: int, last: bool) -> bool:
        """Whether the run is to be saved now.

        Args:
            before: environment steps before the last step.
            env_step: environment steps after it.
            last: whether the run ends here.

        Raises:
            RunError: the folder is gone, which is looked at once a second.
        """
        self.env_step = env_step
        if (now := time.monotonic()) > self._looked + 1:
            self._looked = now
            self.check_folder()
        return last or env_step // self.interval > before // self.interval

    def is_at(self, env_step: int) -> bool:
        """Whether the last checkpoint is of that step."""
        return self.checkpoint is not None and self.checkpoint.env_step == env_step

    def save(self, snapshot: Snapshot) -> None:
        """Writes a checkpoint.

        Raises:
            DivergenceError: a number of the learner is NaN or infinite; nothing is written.
            RunError: it could not be written.
            KeyboardInterrupt: it was, and somebody wants the run to stop.
        """
        self.check_folder()
        env_step = snapshot.host["env_step"]
        for name in METRICS:  # a checkpoint vouches for the lines up to its step
            with contextlib.suppress(OSError, DamagedError), untrusted.open_regular(self.folder / name) as file:
                os.fsync(file.fileno())
        restart = snapshot.host["environments"]["restart"]
        info = self.info | {
            "env_step": env_step,
            "updates": snapshot.host["updates"],
            "environments": "saved" if restart is None else f"restart: {restart}",
        }
        arrays = self._arrays(snapshot.state, env_step)
        try:
            with undisturbed():
                self.checkpoint = self.store.write(info, arrays, snapshot, self.checkpoint)
        except RunError as error:
            before = self.checkpoint
            rest = "there is none before it" if before is None else f"that of step {before.env_step:,} is whole"
            raise RunError(f"{error}; {rest}") from error
        if self.stop is not None:
            self.stop.raise_if_requested()

    def after_evaluation(self, env_step: int, updates: int, mean_reward: float, state: Any) -> None:
        """Keeps the policy where it is the best so far.

        Raises:
            RunError: it could not be written.
        """
        self.check_folder()
        if self._best < mean_reward < math.inf:
            info = self.info | {"env_step": env_step, "updates": updates, "mean_reward": mean_reward}
            arrays = self._arrays(state, env_step)
            with undisturbed():
                self.best_store.write(info, arrays)
            self._best = mean_reward

    def _arrays(self, state: Any, env_step: int) -> Mapping[str, np.ndarray]:
        """The arrays of a learner's state, if it is worth keeping."""
        arrays = self.codec.to_arrays(state)
        if nonfinite_arrays(arrays):
            raise diverged(f"found when a checkpoint was due at environment step {env_step:,}", arrays)
        return arrays
