"""Videos: whole episodes in one mp4 file, or one sentence that says what to install."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("imageio_ffmpeg")
import imageio.v2 as imageio

from diffac.errors import RunError, UsageError
from diffac.reports import videos

WHITE_FROM = 4
"""Step from which the painted environment is white."""


class Painted(gym.Env):
    """Six steps; black pictures of an odd size, white from the fifth on."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012 (gymnasium's own name and type)
    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-2, 2, (1,), np.float32)

    def __init__(self, render_mode: str | None = None, broken: str = "") -> None:
        self.render_mode, self.broken = render_mode, broken

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.time = 0
        return np.full(1, self.time, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        return np.full(1, self.time, np.float32), float(action[0]), self.time == 6, False, {}

    def render(self) -> Any:
        if self.broken:
            raise AttributeError(self.broken)
        return np.full((65, 97, 3), 255 if self.time >= WHITE_FROM else 0, np.uint8)


gym.register("Painted-v0", Painted)
gym.register("PaintedBroken-v0", Painted, kwargs={"broken": "no libEGL\nsecond line"})
gym.register("PaintedNoPygame-v0", Painted, kwargs={"broken": "pygame is not installed, run `pip install pygame`"})


def half(obs: np.ndarray) -> np.ndarray:
    """A policy: half the largest action, whatever it sees."""
    assert obs.shape == (1, 1)
    return np.full((1, 1), 0.5, np.float32)


def test_pictures_arrive_in_order(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "policy.mp4"
    seen = videos.record_video(half, "Painted-v0", path, episodes=2)
    np.testing.assert_array_equal(seen.lengths, [6, 6])
    np.testing.assert_allclose(seen.returns, [6.0, 6.0])  # 0.5 is mapped to 1 in [-2, 2]
    with imageio.get_reader(path) as file:
        frames = np.array([*file.iter_data()])
        assert file.get_meta_data()["fps"] == 25
    assert frames.shape == (12, 64, 96, 3)
    white = frames.mean(axis=(1, 2, 3)) > 128
    np.testing.assert_array_equal(white, ([False] * 4 + [True] * 2) * 2)
    assert list(path.parent.iterdir()) == [path], "half a file was left behind"


def test_a_failure_leaves_the_old_video_alone(tmp_path: Path) -> None:
    path = tmp_path / "policy.mp4"
    path.write_bytes(b"old")
    with pytest.raises(RunError, match="apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri") as caught:
        videos.record_video(half, "PaintedBroken-v0", path)
    assert "PaintedBroken-v0 cannot be drawn on this machine (no libEGL; MUJOCO_GL is " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_package_is_not_blamed_on_the_driver(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="pip install pygame") as caught:
        videos.record_video(half, "PaintedNoPygame-v0", tmp_path / "a.mp4")
    assert "libegl1" not in str(caught.value)


@pytest.mark.parametrize(
    ("env_id", "name", "episodes", "message"),
    [
        ("Painted-v0", "a.mp4", 0, "episodes must be at least 1, got 0"),
        ("Painted-v0", "a.gif", 1, r"a video's name ends in \.mp4, got 'a\.gif'"),
        ("Painted-v9", "a.mp4", 1, "unknown environment|cannot be made"),
        ("fakes:Terminates-v0", "a.mp4", 1, "has no render mode 'rgb_array'"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*not in the possible render_modes")
def test_bad_arguments(env_id: str, name: str, episodes: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        videos.record_video(half, env_id, tmp_path / name, episodes=episodes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="EGL is for Linux")
def test_renderer_is_chosen_only_without_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.setenv(name, "")  # so that what is set below is undone
        monkeypatch.delenv(name)
    for before, display, after in [
        (None, None, "egl"),
        ("osmesa", None, "osmesa"),
        (None, "DISPLAY", None),
        (None, "WAYLAND_DISPLAY", None),
    ]:
        with monkeypatch.context() as patch:
            if before:
                patch.setenv("MUJOCO_GL", before)
            if display:
                patch.setenv(display, ":0")
            videos.choose_renderer()
            assert os.environ.get("MUJOCO_GL") == after
        os.environ.pop("MUJOCO_GL", None)


RECORD = """
import sys
import numpy as np
if "early" in sys.argv:
    import mujoco
from diffac.errors import RunError
from diffac.reports.videos import record_video
try:
    print(record_video(lambda obs: np.zeros((1, 1), np.float32), "InvertedPendulum-v5", sys.argv[1]).lengths[0])
except RunError as error:
    print("refused:", error)
"""


def record_pendulum(path: Path, *more: str, **environment: str) -> str:
    """What a fresh interpreter without a display prints."""
    pytest.importorskip("mujoco")
    cleared = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM"):
        cleared.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", RECORD, str(path), *more],
        env={**cleared, **environment}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("early", [(), ("early",)], ids=["mujoco-imported-later", "mujoco-imported-before"])
def test_mujoco_is_drawn_without_a_display(early: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "pendulum.mp4"
    said = record_pendulum(path, *early)
    if said.startswith("refused:"):
        pytest.skip(f"this machine cannot draw: {said}")
    with imageio.get_reader(path) as file:
        frames = np.array([*file.iter_data()])
    assert len(frames) == int(said)
    assert frames.std() > 10, "the pictures are empty"


@pytest.mark.parametrize(
    "environment",
    [{"MUJOCO_GL": "glfw"}, {"MUJOCO_GL": "nonsense"}, {"PYOPENGL_PLATFORM": "glx"}],
    ids=["no display", "unknown renderer", "no EGL"],
)
def test_mujoco_that_cannot_draw_is_refused_in_one_sentence(environment: dict[str, str], tmp_path: Path) -> None:
    said = record_pendulum(tmp_path / "pendulum.mp4", **environment)
    assert said.startswith("refused: InvertedPendulum-v5 cannot be drawn on this machine (")
    assert "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri" in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
