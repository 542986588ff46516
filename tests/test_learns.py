"""What is said about unseen seeds is what the data says, and a broken session loses nothing. Nothing here trains."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from learning import learns
from learning.learned import Row, add, read
from learning.learned_page import page
from learning.learns import DATA, PAGE, Wanted, is_done, row_of, session, settings

from diffac_recipes import RECIPES

RUN = Wanted("dpmd", "torch", 40, "code", "settings")
ROW = Row("dpmd", "torch", 40, 1000.0, 12_000, 998.5, 28_000, 27_000, "settings", "code", "abc1234", "torch 2.13.0")


def runs(*seeds: int) -> list[Wanted]:
    return [RUN._replace(seed=seed) for seed in seeds]


def test_published_page_is_made_of_the_published_data() -> None:
    """Nobody edits it by hand."""
    assert page(read(DATA)) == PAGE.read_text()


def test_published_data_is_of_the_presets_as_they_are() -> None:
    """Whoever changes a preset runs `nox -s learns -- RECIPE`, or takes its rows out."""
    rows = read(DATA)
    assert {row.recipe: row.settings for row in rows} == {r: settings(r) for r in {row.recipe for row in rows}}
    assert all(row.seed >= 40 for row in rows)


def test_rows_survive_a_file(tmp_path: Path) -> None:
    """One a run, in a fixed order, whichever ended first."""
    file = tmp_path / "learns.csv"
    assert read(file) == []
    lost = ROW._replace(seed=39, best=None, step_of_950=None, last=None, env_steps=0, updates=0)
    add(file, ROW._replace(best=3.0))
    add(file, ROW)
    assert add(file, lost) == read(file) == [lost, ROW]
    assert not list(tmp_path.glob("*.new"))


@pytest.mark.parametrize(
    ("change", "solved"),
    [({}, True), ({"best": 950.0}, True), ({"best": 949.9}, False), ({"best": None}, False), ({"last": None}, False)],
)
def test_solved(change: dict[str, float | None], solved: bool) -> None:
    """The best counts, also where the policy is lost again, but not in a run that broke off."""
    assert ROW._replace(**change).solved is solved
    assert ROW._replace(last=3.0).solved


def test_a_row_says_what_the_evaluations_say(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("mujoco")
    results = np.array([[10.0, 20.0], [950.0, 950.0], [1000.0, 998.0], [400.0, 500.0]])
    np.savez(
        tmp_path / "evaluations.npz",
        timesteps=np.arange(1, 5) * 4_000, updates=np.arange(1, 5) * 4_000 - 1_000, results=results,
    )  # fmt: skip
    row = row_of(RUN, tmp_path, completed=True, commit="abc")
    assert row[:8] == ("dpmd", "torch", 40, 999.0, 8_000, 450.0, 16_000, 15_000)
    assert row.versions.startswith("torch ")
    assert row_of(RUN, tmp_path, completed=False, commit="abc").last is None
    assert row_of(RUN, tmp_path / "empty", completed=False, commit="abc")[3:8] == (None, None, None, 0, 0)


def test_nothing_is_lost_and_nothing_done_twice(tmp_path: Path) -> None:
    """A session that dies in its third run has two in the data, and the next one does the rest."""
    files = {"data": tmp_path / "learns.csv", "page_file": tmp_path / "learns.md"}
    begun: list[int] = []

    def train(run: Wanted) -> Row:
        begun.append(run.seed)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return ROW._replace(seed=run.seed)

    with pytest.raises(KeyboardInterrupt):
        session(runs(40, 41, 42, 43), jobs=1, train=train, say=lambda _: None, **files)
    assert [row.seed for row in read(files["data"])][:2] == [40, 41]
    assert session(runs(40, 41, 42, 43), jobs=1, train=train, say=lambda _: None, **files)
    assert begun[:2] == [40, 41]
    assert not {40, 41} & set(begun[2:])
    assert len(read(files["data"])) == 4
    assert files["page_file"].read_text() == page(read(files["data"]))


@pytest.mark.parametrize(
    ("change", "repeat"),
    [({}, ["all"]), ({"code": "x"}, ["all", "code"]), ({"settings": "x"}, ["all", "code", "settings"])],
)
def test_what_is_repeated(change: dict[str, str], repeat: list[str]) -> None:
    now = RUN._replace(**change)
    assert [how for how in sorted(learns.REPEAT) if not is_done(now, [ROW], how)] == repeat
    assert not is_done(RUN._replace(backend="equinox"), [ROW], "settings")


def test_nine_of_ten(tmp_path: Path) -> None:
    """Each recipe for itself; one that another recipe makes up for has failed all the same."""

    def judged(unsolved: int) -> tuple[bool, list[str]]:
        said: list[str] = []
        wanted = [*runs(*range(40, 50)), *(RUN._replace(recipe="sac", seed=seed) for seed in range(40, 50))]
        files = {"data": tmp_path / f"{unsolved}.csv", "page_file": tmp_path / "learns.md"}

        def train(run: Wanted) -> Row:
            lost = run.recipe == "dpmd" and run.seed < 40 + unsolved
            return ROW._replace(recipe=run.recipe, seed=run.seed, best=949.0 if lost else 1000.0)

        return session(wanted, train=train, say=said.append, **files), said

    good, said = judged(1)
    assert good
    assert said[-2:] == ["dpmd: solved 9 of 10", "sac: solved 10 of 10"]
    good, said = judged(2)
    assert not good
    assert said[-2:] == ["dpmd: solved 8 of 10, wanted 90%", "sac: solved 10 of 10"]


def test_a_run_that_fails_is_not_solved(tmp_path: Path) -> None:
    """Whatever the data of an earlier run says; and its last words are printed."""
    files = {"data": tmp_path / "learns.csv", "page_file": tmp_path / "learns.md"}
    add(files["data"], ROW)
    said: list[str] = []

    def train(run: Wanted) -> Row:
        raise RuntimeError("no disk")

    assert not session(runs(40), repeat="all", train=train, say=said.append, **files)
    assert said[1:] == ["dpmd, torch, seed 40 failed: no disk", "dpmd: solved 0 of 1, wanted 90%"]
    assert read(files["data"]) == [ROW]


@pytest.mark.parametrize(
    ("returncode", "began", "result"), [(0, True, True), (1, True, True), (1, False, False), (143, True, False)]
)
def test_only_a_run_of_its_own_end_is_a_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, returncode: int, began: bool, result: bool
) -> None:
    """A divergence is one; a crash before the start, or a signal, says nothing about the preset."""
    pytest.importorskip("torch")
    pytest.importorskip("mujoco")
    monkeypatch.setattr(learns, "ROOT", tmp_path)

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        if "--run-root" in command:
            folder = Path(command[command.index("--run-root") + 1]) / "run"
            folder.mkdir()
            if began:
                (folder / "config.yaml").write_text("")
        return subprocess.CompletedProcess(command, returncode, "", "last words")

    monkeypatch.setattr(learns.subprocess, "run", run)
    if result:
        assert learns.train(RUN).last is None
    else:
        with pytest.raises(RuntimeError, match=f"exit code {returncode}: last words"):
            learns.train(RUN)


def test_options() -> None:
    assert learns.parser().parse_args([]).recipes == []
    assert learns.parser().parse_args([*RECIPES, "--seeds", "40"]).recipes == list(RECIPES)
    assert "--repeat" in learns.parser().format_help()


def test_ctrl_c_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def session(*arguments: object, **options: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(learns, "session", session)
    monkeypatch.setattr(learns.importlib, "import_module", lambda name: None)
    monkeypatch.setattr(learns, "wanted", lambda *run: RUN)
    monkeypatch.setattr(learns.sys, "argv", ["learns", "dpmd"])
    assert learns.main() == 130
    assert capsys.readouterr().out.startswith("stopped; ")


def test_digests_notice_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {(recipe, backend): learns.code(recipe, backend) for recipe in RECIPES for backend in learns.BACKENDS}
    assert len(set(before.values())) == len(before)
    preset = learns.load_recipe("dpmd").PRESETS["quick"]
    old = settings("dpmd")
    monkeypatch.setitem(preset, "tau", 0.3)
    assert settings("dpmd") != old
