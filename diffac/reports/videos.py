"""Videos of a policy: whole episodes, drawn off screen and written as mp4."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from diffac.data.environments import make_envs
from diffac.data.stepper import Episode, VectorStepper
from diffac.data.vectors import close
from diffac.errors import RunError, UsageError
from diffac.files.paths import absolute
from diffac.system.signals import children_undisturbed
from diffac.training.evaluation import Bounded, Evaluation

LIBRARIES = "libegl1 libegl-mesa0 libgl1-mesa-dri"
"""Debian and Ubuntu packages with which MuJoCo draws without a display (and without a GPU)."""
DEFAULT_FPS = 30
"""Frames per second where an environment does not say how fast it runs."""

NO_PICTURES = "environment {!r} cannot be recorded: it has no render mode 'rgb_array'"


def choose_renderer() -> None:
    """Makes MuJoCo draw by EGL where there is no display and `MUJOCO_GL` is unset (Linux).

    `mujoco.Renderer` reads the variable when mujoco is imported, the environments of gymnasium when they draw first.
    """
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("MUJOCO_GL", "egl")


def record_video(
    act: Callable[[np.ndarray], np.ndarray],
    env_id: str,
    path: Path | str,
    *,
    episodes: int = 1,
    seed: int = 0,
    env_kwargs: Mapping[str, Any] | None = None,
    wrappers: Sequence[str] = (),
    max_steps: int | None = None,
) -> Evaluation:
    """Plays episodes in an environment made for it and writes them, one after the other, into one mp4 file.

    Nobody sees half a file: it is written beside its place and renamed. A run calls this after its training, never
    within, and may catch the `RunError`.

    Args:
        act: the policy, from observations [1 obs_dim] to actions [1 action_dim] in [-1, 1].
        env_id: as in `make_envs`.
        path: the file; its suffix is .mp4, and its folder is made where it is missing.
        episodes: how many, at least 1.
        seed: of the environment.
        env_kwargs: as in `make_envs`.
        wrappers: as in `make_envs`.
        max_steps: steps after which an episode is cut; None: as `Bounded`.

    Returns:
        What was seen: returns and lengths of the episodes.

    Raises:
        UsageError: impossible arguments, a package that is missing, or an environment that cannot be drawn at all.
        RunError: this machine cannot draw or encode; says what to install.
    """
    path = absolute(path)
    if episodes < 1:
        raise UsageError(f"episodes must be at least 1, got {episodes}")
    if path.suffix != ".mp4":
        raise UsageError(f"a video's name ends in .mp4, got {path.name!r}")
    choose_renderer()
    envs = _make_drawable(env_id, env_kwargs, wrappers, max_steps)
    try:
        frames = _Frames(act, env_id, VectorStepper(envs), episodes, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        # in a folder of its own: the encoder would follow a link that has the name of its file
        with tempfile.TemporaryDirectory(prefix="new-", dir=path.parent) as beside:
            written = Path(beside) / path.name
            _write(written, iter(frames), float(envs.metadata.get("render_fps") or DEFAULT_FPS))
            written.replace(path)
    finally:
        close(envs)
    return Evaluation(
        np.array([episode.ret for episode in frames.played]),
        np.array([episode.length for episode in frames.played]),
        frames.cut,
    )


def _make_drawable(
    env_id: str, env_kwargs: Mapping[str, Any] | None, wrappers: Sequence[str], max_steps: int | None
) -> VectorEnv:
    """One environment that draws itself. MuJoCo may fail as early as in its import, with errors of any class."""
    options: Any = {"env_kwargs": env_kwargs, "wrappers": wrappers, "wrap": partial(Bounded, max_steps)}
    try:
        return make_envs(env_id, 1, render_mode="rgb_array", **options)
    except (UsageError, RunError):
        raise
    except Exception as error:
        if isinstance(error, TypeError) and "render_mode" in str(error):
            raise UsageError(NO_PICTURES.format(env_id)) from error
        raise _cannot_draw(env_id, error) from error


class _Frames:
    """The pictures of the episodes, one before each step."""

    def __init__(
        self, act: Callable[[np.ndarray], np.ndarray], env_id: str, stepper: VectorStepper, episodes: int, seed: int
    ) -> None:
        self.act, self.env_id, self.stepper, self.episodes, self.seed = act, env_id, stepper, episodes, seed
        self.played: list[Episode] = []
        self.cut = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        obs = self.stepper.reset([self.seed % 2**31])  # some simulators take no more
        while len(self.played) < self.episodes:
            yield self._draw()
            result = self.stepper.step(self.act(obs))
            self.played += result.episodes
            self.cut += bool(result.episodes) and self.stepper.attribute("cut")[0]
            obs = result.obs

    def _draw(self) -> np.ndarray:
        """One picture [height width 3] of bytes, with an even height and width, as the encoder wants them.

        Drivers fail in many ways, and libraries report them with errors of any class.
        """
        try:
            drawn: Any = self.stepper.envs.render()
        except Exception as error:
            raise _cannot_draw(self.env_id, error) from error
        frame = drawn[0] if drawn else None
        if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.shape[2] != 3:
            raise UsageError(NO_PICTURES.format(self.env_id))
        height, width = (size - size % 2 for size in frame.shape[:2])
        return np.ascontiguousarray(frame[:height, :width], np.uint8)


def _cannot_draw(env_id: str, error: Exception) -> RunError:
    """The sentence that tells what to install."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    if "pip install" in said:  # gymnasium names the missing Python package
        return RunError(f"{env_id} cannot be drawn: {said}")
    chosen = os.environ.get("MUJOCO_GL")
    return RunError(
        f"{env_id} cannot be drawn on this machine ({said}; MUJOCO_GL is {chosen or 'unset'}); on Debian and Ubuntu "
        f"run: apt-get install {LIBRARIES}, and without a display set MUJOCO_GL=egl"
    )


def _write(path: Path, frames: Iterator[np.ndarray], fps: float) -> None:
    """Encodes pictures of one size as H.264 in mp4.

    Raises:
        UsageError: imageio or its ffmpeg is not installed.
        RunError: ffmpeg fails.
    """
    for package in ("imageio", "imageio_ffmpeg"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"a video needs the package {package!r}; run: python -m pip install 'diffac[video]'")
    import imageio.v2 as imageio

    options: dict[str, Any] = {"format": "FFMPEG", "mode": "I", "fps": fps, "codec": "libx264"}
    options["macro_block_size"] = 2  # the default of 16 would stretch the picture
    file: Any = imageio.get_writer(str(path), **options)
    with file:
        for frame in frames:
            try:
                with children_undisturbed():  # the first frame starts ffmpeg
                    file.append_data(frame)
            except OSError as error:
                raise RunError(f"{path} cannot be written: {error}") from error
