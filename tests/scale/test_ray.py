"""Sweeps on a Ray cluster: its machines may see the folder of the sweep or not, and may be lost."""

from __future__ import annotations

import io
import sys
import tarfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from alike import assert_same_runs, folders
from program import CODE, Program

from diffac.commands.main import main
from diffac.errors import UsageError
from diffac.runs.folder import read_manifest
from diffac.scale.executors.ray import RayCluster, packed, unpack
from diffac.scale.plan import read_plan
from diffac.scale.progress import Lines
from diffac.scale.sweep import Summary, run_sweep
from diffac.scale.work import Job

pytestmark = pytest.mark.usefixtures("third_party")


def write(steps: int = 400, seeds: int = 3) -> Path:
    settings = {"recipe": "fake", "total_timesteps": steps, "checkpoint_interval": 100, "log_interval": 100}
    path = Path("mine.yaml")
    path.write_text(yaml.safe_dump({"settings": settings, "grid": {"seed": list(range(seeds))}}))
    return path


def test_a_packed_folder_replaces_what_is_there(tmp_path: Path) -> None:
    here = tmp_path / "here"
    one, other = here / "one", here / "other"
    for folder, text in ((one, "new"), (other, "old")):
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / text).write_text(text)
    unpack(packed(one), other)
    assert [path.name for path in sorted(other.rglob("*"))] == ["deep", "new"]
    assert sorted(path.name for path in here.iterdir()) == ["one", "other"]
    unpack(packed(one), here / "third")
    assert (here / "third" / "deep" / "new").read_text() == "new"


def test_an_archive_cannot_write_elsewhere(tmp_path: Path) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../outside"))
    with pytest.raises(tarfile.TarError):
        unpack(content.getvalue(), tmp_path / "inside")
    assert not (tmp_path / "outside").exists()


def test_without_ray(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["sweep", str(write()), "--executor", "ray"]) == 2
    assert "--executor ray needs Ray; run: python -m pip install 'diffac[ray]'" in capfd.readouterr().err
    assert main(["sweep", "mine.yaml", "--address", "auto"]) == 2
    assert "--address needs --executor ray" in capfd.readouterr().err


@pytest.fixture
def cluster() -> Any:
    """Three nodes of one processor each, the first of which is the driver's."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    made.last = made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made
    import ray

    ray.shutdown()
    made.shutdown()


def sweep(jobs: list[Job], address: str) -> Summary:
    return run_sweep(jobs, lambda: RayCluster(address), retries=2, display=partial(Lines, jobs))


def undisturbed(path: Path) -> dict[int, Path]:
    assert main(["sweep", str(path), "--root", "alone"]) == 0
    return folders("alone")


@pytest.mark.sweeps
@pytest.mark.parametrize("shared", [True, False], ids=["shared storage", "storage of their own"])
def test_runs_are_the_same_wherever_they_are_trained(
    cluster: Any, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write()
    if not shared:  # no machine sees the sign
        monkeypatch.setattr(RayCluster, "sign", lambda self, job: None)
    jobs = read_plan(path)
    summary = sweep(jobs, cluster.address)
    assert len(summary.complete) == 3, summary.failed
    for seed, folder in undisturbed(path).items():
        assert_same_runs(folder, folders("sweeps/mine")[seed])
    assert not list(Path("sweeps/mine").glob(".seen-*"))


@pytest.mark.sweeps
@pytest.mark.parametrize("shared", [True, False], ids=["shared storage", "storage of their own"])
def test_a_machine_is_lost(cluster: Any, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its run goes on elsewhere, from its last checkpoint where that is seen; the others do not notice."""
    path = write(steps=20_000)
    if not shared:
        monkeypatch.setattr(RayCluster, "sign", lambda self, job: None)
    jobs = read_plan(path)
    killed: list[float] = []

    class Killing(Lines):
        """Kills a node when all three runs are under way for a while."""

        def refresh(self) -> None:
            if not self.started and len(self.under_way) == 3:
                self.started = time.monotonic()
            if self.started and not killed and time.monotonic() > self.started + 4:
                killed.append(time.monotonic())
                cluster.remove_node(cluster.last, allow_graceful=False)

        started = 0.0

    summary = run_sweep(jobs, lambda: RayCluster(cluster.address), retries=2, display=partial(Killing, jobs))
    assert killed
    assert len(summary.complete) == 3, summary.failed
    for seed, folder in undisturbed(path).items():
        assert_same_runs(folder, folders("sweeps/mine")[seed])


@pytest.mark.sweeps
def test_the_driver_is_killed(cluster: Any) -> None:
    """Ray ends its runs; the same command goes on with them."""
    path = write(steps=20_000)
    program = Program(
        CODE + "sys.exit(c.main())", Path.cwd(), "sweep", str(path), "--executor", "ray", "--address", cluster.address
    )
    end = time.monotonic() + 120
    while len(list(Path("sweeps/mine").rglob("run.json"))) < 2:
        assert program.process.poll() is None, program.text
        assert time.monotonic() < end, program.text
        time.sleep(0.05)
    program.process.kill()
    program.process.wait()
    summary = sweep(read_plan(path), cluster.address)
    assert len(summary.complete) == 3, summary.failed
    for seed, folder in undisturbed(path).items():
        assert_same_runs(folder, folders("sweeps/mine")[seed])
    assert any(read_manifest(folder)["resumed"] for folder in folders("sweeps/mine").values())


@pytest.mark.sweeps
def test_what_the_cluster_cannot_place(cluster: Any) -> None:
    with pytest.raises(UsageError, match="no machine of the Ray cluster has 5 processors and 0 GPUs"):
        RayCluster(cluster.address, cpus_per_run=5)
