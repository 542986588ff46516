"""The file of a sweep: which runs it asks for, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from diffac.errors import UsageError
from diffac.scale.plan import read_plan
from diffac.scale.work import Job

pytestmark = pytest.mark.usefixtures("third_party")


def plan(content: Any, name: str = "mine.yaml") -> list[Job]:
    Path(name).write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return read_plan(name)


def test_every_combination_of_the_grid(third_party: Path) -> None:
    """The first axis changes slowest; settings hold for all; what differs makes the label."""
    jobs = plan({"settings": {"recipe": "fake", "gain": 2.0}, "grid": {"batch_size": [4, 8], "seed": [1, 0]}})
    assert [job.label for job in jobs] == [f"batch_size={size} seed={seed}" for size in (4, 8) for seed in (1, 0)]
    configs = [job.load()[1] for job in jobs]
    assert [(c.batch_size, c.seed, c.gain) for c in configs] == [(4, 1, 2.0), (4, 0, 2.0), (8, 1, 2.0), (8, 0, 2.0)]
    assert {job.folder.parent for job in jobs} == {third_party / "sweeps/mine/fakes-Random-v0/fake/none"}
    assert [job.folder.name.partition("__")[0] for job in jobs] == ["seed1", "seed0", "seed1", "seed0"]
    assert {job.steps for job in jobs} == {80}


def test_a_run_says_more_than_the_grid_and_that_more_than_settings() -> None:
    jobs = plan({
        "settings": {"recipe": "fake", "gain": 1.5, "batch_size": 4},
        "grid": {"batch_size": [5, 6], "seed": [0, 1]},
        "runs": [{"batch_size": 7}, {"gain": 9.0}],
    })  # fmt: skip
    found = [(c.batch_size, c.seed, c.gain) for c in (job.load()[1] for job in jobs)]
    assert found == [(7, 0, 1.5), (7, 1, 1.5), (5, 0, 9.0), (5, 1, 9.0), (6, 0, 9.0), (6, 1, 9.0)]
    assert [jobs[n].label for n in (0, 2)] == ["gain=1.5 batch_size=7 seed=0", "gain=9.0 batch_size=5 seed=0"]


def test_presets_and_constants_of_environments_as_the_command_has_them() -> None:
    jobs = plan({"settings": {"recipe": "fake"}, "grid": {"preset": ["default", "loud", "elsewhere"]}})
    configs = [job.load()[1] for job in jobs]
    assert [(c.gain, c.env_id, c.hidden_sizes) for c in configs] == [
        (1.0, "fakes:Random-v0", (8, 8)),
        (3.0, "fakes:Random-v0", (8, 8)),
        (2.0, "fakes:Terminates-v0", (5,)),
    ]
    (job,) = plan({"runs": [{"recipe": "fake", "hidden_sizes": [3, 2]}]})
    assert job.load()[1].hidden_sizes == (3, 2)
    assert job.label == "fake"


def one(**values: Any) -> str:
    (job,) = plan({"runs": [{"recipe": "fake", **values}]})
    return job.name


def test_a_run_is_known_again_by_what_it_is() -> None:
    """However it is written, and whatever machine it runs on; another value is another run."""
    name = one(gain=2, batch_size=4)
    assert one(batch_size=4, gain=2.0) == name
    assert one(gain=2, batch_size=4, checkpoint_interval=7, device="cpu", asynchronous=True) == name
    others = [one(gain=2, batch_size=5), one(gain=2), one(gain=2, batch_size=4, seed=1), one(preset="loud", gain=2)]
    assert len({name, *others}) == 5
    (job,) = plan({"settings": {"recipe": "fake", "gain": 2}, "grid": {"batch_size": [4]}})
    assert job.name == name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must hold sections"),
        ("[1]", "must hold sections (settings, grid, runs, search), got list"),
        ({"grids": {"seed": [0]}}, "unknown section in .*: 'grids'; did you mean 'grid'"),
        ({"recipe": "fake"}, "a setting of all runs belongs below `settings`"),
        ({"settings": ["fake"]}, "settings must hold lines like `name: value`"),
        ({"settings": {"recipe": "fake"}, "grid": {"seed": 3}}, "seed in grid must be a list of values, got 3"),
        ({"settings": {"recipe": "fake"}, "grid": {"seed": []}}, "seed in grid must be a list of values"),
        ({"settings": {"recipe": "fake"}, "runs": {"seed": 0}}, "runs must hold a list of runs"),
        ({"settings": {"recipe": "fake"}, "runs": [3]}, "every entry of runs must hold lines like"),
        ({"grid": {"seed": [0]}}, "every run must name its recipe"),
        ({"settings": {"recipe": 3}}, "every run must name its recipe"),
        ({"settings": {"algo": "sac", "recipe": "fake"}}, "unknown setting 'algo'; did you mean 'recipe'"),
        ({"settings": {"recipe": "fke"}}, "unknown recipe 'fke'; did you mean 'fake'"),
        ({"settings": {"recipe": "fake", "preset": "lound"}}, "unknown preset of fake 'lound'; did you mean 'loud'"),
        ({"settings": {"recipe": "fake", "preset": ["loud"]}}, r"preset must be a text, got \['loud'\]"),
        ({"settings": {"recipe": "fake", "env_id": ["a"]}}, "env_id must be the name of an environment"),
        ({"settings": {"recipe": "fake", 3: 4}}, "unknown key in .* 3"),
        ({"settings": {"recipe": "fake", "lr": 1}}, r"unknown key in .*mine.yaml, fake"),
        ({"settings": {"recipe": "fake"}, "grid": {"gain": [1.0, "x"]}}, "gain=x: gain must be a number, got 'x'"),
        ({"settings": {"recipe": "fake"}, "grid": {"batch_size": [4, 0]}}, "batch_size=0: batch_size must be at least"),
        ({"settings": {"recipe": "fake", "run_root": "x"}}, "run_root cannot be set, all runs lie in"),
        ({"settings": {"recipe": "fake", "progress": True}}, "progress cannot be set"),
        ({"settings": {"recipe": "fake"}, "grid": {"seed": [0, 1, 0]}}, "asks twice for the run seed=0"),
        ({"settings": {"recipe": "fake"}, "grid": {"gain": [1, 1.0]}}, "asks twice for the run"),
        ({"settings": {"recipe": "fake"}, "grid": {"seed": list(range(400)), "batch_size": list(range(1, 400))}},
         "more than 100,000 runs"),
        ("a: &x [*x]", "is no YAML"),
        ("a: [", "is no YAML"),
    ],
)  # fmt: skip
def test_bad_files(content: Any, message: str) -> None:
    with pytest.raises(
        UsageError, match=message.replace("(settings, grid, runs, search)", r"\(settings, grid, runs, search\)")
    ):
        plan(content)


def test_a_file_that_is_missing() -> None:
    with pytest.raises(UsageError, match=r"absent\.yaml cannot be read: No such file"):
        read_plan("absent.yaml")
