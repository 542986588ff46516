"""Sessions: `nox -l` lists them, `nox` runs all but the slow ones, `nox -s tests` is the usual one.

They run on the Python that nox runs on, but `newest`.
"""

import os
import sys
import tempfile
from pathlib import Path

import nox

nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True
nox.options.sessions = ["lint", "types", "tests", "slow", "agreement", "core", "torch", "equinox", "docs", "build"]

if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit(f"diffac is tested with Python 3.11 to 3.13, and nox runs on {sys.version.split()[0]}; start it with one")

RUNTIME = "mujoco,plot,video,export,test"


def install(session: nox.Session, extras: str) -> None:
    """Installs diffac in editable form with the pinned versions."""
    session.install("-c", "constraints.txt", "-e", f".[{extras}]")


def pytest(session: nox.Session, *arguments: str, optimised: bool = False) -> None:
    """Runs pytest on two worker processes, with one thread of numerical work in each.

    Most of the time goes into compiling programs for tiny arrays: without XLA's optimisations that takes half as long.
    """
    flags = "--xla_cpu_multi_thread_eigen=false"
    if not optimised:
        flags += " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    session.run("pytest", "-n", "2", *arguments, *session.posargs, env={"OMP_NUM_THREADS": "1", "XLA_FLAGS": flags})


@nox.session
def tests(session: nox.Session) -> None:
    """Everything fast, with both backends: minutes."""
    install(session, f"torch,equinox,{RUNTIME},test-sb3,slurm,sweep")
    pytest(session, "-m", "not slow and not learning and not soak and not theory and not official and not sweeps")


@nox.session
def slow(session: nox.Session) -> None:
    """What `tests` leaves out (tests/slow.txt): whole learners in Equinox, compiled ones, programs; half an hour."""
    install(session, f"torch,equinox,{RUNTIME},test-sb3,sweep")
    pytest(session, "-m", "slow")


AGREEMENT = [
    "tests/backends/test_agreement.py",
    "tests/matrix",
    *(f"tests/testing/test_{name}.py" for name in ("conformance", "reference", "reference_gradients")),
]


@nox.session
def agreement(session: nox.Session) -> None:
    """Only the comparison of the backends and the NumPy reference: more examples, more sizes, optimised programs."""
    install(session, f"torch,equinox,{RUNTIME}")
    session.env["HYPOTHESIS_PROFILE"] = "agreement"
    pytest(session, *AGREEMENT, optimised=True)


@nox.session
def core(session: nox.Session) -> None:
    """Neither torch nor jax installed."""
    install(session, RUNTIME)
    pytest(session, "-m", "not sweeps and not soak")  # those have sessions of their own


@nox.session
def torch(session: nox.Session) -> None:
    """Only the torch backend installed."""
    install(session, f"torch,{RUNTIME},test-sb3")
    pytest(session)


@nox.session
def equinox(session: nox.Session) -> None:
    """Only the Equinox backend installed."""
    install(session, f"equinox,{RUNTIME}")
    pytest(session)


@nox.session(python="3.13")
def newest(session: nox.Session) -> None:
    """Slow: the Equinox backend on Python 3.13 with the newest releases that the bounds allow, nothing pinned.

    Without torch, whose build for Linux in the registry needs gigabytes of CUDA libraries.
    """
    session.install("--upgrade", "--upgrade-strategy", "eager", "-e", f".[equinox,{RUNTIME}]")
    pytest(session)


@nox.session
def lowest(session: nox.Session) -> None:
    """Slow: the Equinox backend with the lower bounds in pyproject.toml as versions; torch's bound is not checked."""
    project = nox.project.load_toml("pyproject.toml")["project"]
    ranges = list(project["dependencies"])
    for extra in ("equinox", "mujoco", "plot", "video"):
        ranges += project["optional-dependencies"][extra]
    versions = [bounds.split(",")[0].replace(">=", "==") for bounds in ranges]
    session.install("-e", f".[equinox,{RUNTIME}]", *versions)
    pytest(session)


@nox.session
def learning(session: nox.Session) -> None:
    """Slow: trains on a bandit and on InvertedPendulum with both backends."""
    install(session, f"torch,equinox,{RUNTIME}")
    session.run("pytest", "-m", "learning", *session.posargs)


@nox.session
def learns(session: nox.Session) -> None:
    """Hours: the `quick` presets on unseen seeds, written to docs/data; each recipe must solve 9 in 10.

    `nox -s learns -- dpmd --seeds 40 41 --backends torch` is shorter; `-- --help` says more. Goes on where it stopped.
    """
    install(session, f"torch,equinox,{RUNTIME}")
    session.run("python", "-m", "tests.learning.learns", *session.posargs)


@nox.session
def results(session: nox.Session) -> None:
    """Days: every run of the results page; goes on where it was. `-- halfcheetah` is one of its sweeps."""
    install(session, f"torch,equinox,{RUNTIME},test-sb3")
    session.run("python", "-m", "tests.evidence", *session.posargs)


@nox.session
def theory(session: nox.Session) -> None:
    """Minutes: trained parts against exact mathematics (quadrature, orders of convergence) with both backends."""
    install(session, f"torch,equinox,{RUNTIME}")
    pytest(session, "-m", "theory", optimised=True)


@nox.session
def official(session: nox.Session) -> None:
    """Minutes: recordings of the authors' code (`-- --data FOLDER`, default ../shared/official) through our presets."""
    install(session, f"torch,equinox,{RUNTIME}")
    pytest(session, "-m", "official", "tests/official")


@nox.session
def mutation(session: nox.Session) -> None:
    """Minutes: makes known mistakes in copies of the backends, one at a time; the tests must notice each."""
    install(session, f"torch,equinox,{RUNTIME}")
    session.run("python", "tests/mutation/run.py", "--jobs", "2", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Slow: kills runs at random moments and resumes them; long runs stopped and resumed, compared bit for bit."""
    install(session, f"torch,equinox,{RUNTIME}")
    session.run("pytest", "-m", "soak", *session.posargs)


@nox.session
def sweeps(session: nox.Session) -> None:
    """Minutes: sweeps whose processes and machines are killed: here, on a Ray cluster of three, on a fake Slurm."""
    install(session, f"ray,slurm,sweep,{RUNTIME}")
    session.run("pytest", "-m", "sweeps or not sweeps", "tests/scale", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Slow: updates, latency, memory and whole runs against naive code, Stable-Baselines3, SBX and the machine's peak.

    `nox -s bench -- --quick` takes minutes; `-- --check` fails where a ratio has fallen; `-- --help` says more.
    """
    install(session, "torch,equinox,mujoco,plot,export")
    peers = Path(session.create_tmp()).parent / "peers"
    python = peers / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        session.run("python", "-m", "venv", str(peers))
    wanted = ("stable-baselines3==2.9.2", "torch==2.13.0", "sbx-rl==0.28.0", "jax==0.10.2")
    session.run(str(python), "-m", "pip", "install", "-q", "-c", "constraints.txt", *wanted, external=True)
    session.run("python", "-m", "tests.benchmarks", "--peers", str(python), *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and formatting."""
    session.install("-c", "constraints.txt", "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Static types."""
    install(session, f"torch,equinox,{RUNTIME}")
    session.install("-c", "constraints.txt", "pyright")
    session.run("pyright")


@nox.session
def docs(session: nox.Session) -> None:
    """Builds the documentation; a warning is an error."""
    install(session, "torch,equinox,docs")
    session.run("zensical", "build", "--clean", "--strict", "-f", "mkdocs.yml")


@nox.session
def build(session: nox.Session) -> None:
    """Builds the wheel, installs it, and uses it from an empty directory."""
    session.install("-c", "constraints.txt", "hatchling")
    with tempfile.TemporaryDirectory() as folder:
        session.run("hatchling", "build", "-t", "wheel", "-d", folder)
        (wheel,) = Path(folder).glob("*.whl")
        session.install("-c", "constraints.txt", f"diffac[torch,equinox,mujoco] @ {wheel.as_uri()}")
        session.install("--force-reinstall", "--no-deps", str(wheel))
        top = session.run("python", "-c", TOP_LEVEL, silent=True)
        names = set((top or "").split())
        if names != {"diffac", "diffac_torch", "diffac_equinox", "diffac_recipes"}:
            session.error(f"the wheel puts these names on a user's machine: {sorted(names)}")
        os.chdir(folder)
        session.run("diffac", "recipes")
        for backend in ("torch", "equinox"):
            session.run(
                *("diffac", "train", "sac", "--preset", "quick", "--env-id", "Pendulum-v1", "--backend", backend),
                *("--total-timesteps", "400", "--learning-starts", "200", "--eval-interval", "400"),
                *("--eval-episodes", "1", "--hidden-sizes", "16", "16"),
            )


TOP_LEVEL = """
from importlib.metadata import files
print(*{f.parts[0] for f in files("diffac") if not f.parts[0].endswith(".dist-info") and f.parts[0] != ".."})
"""
