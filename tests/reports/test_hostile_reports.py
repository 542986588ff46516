"""A report is made whatever lies beside a good run; what is bad is listed with a reason, and obeyed by nobody."""

from __future__ import annotations

import csv
import html
import io
import json
import os
import pickle
import re
import signal
import stat
import struct
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

from program import harmless
from test_reports import Page, write_csv, write_run

from diffac.commands.main import main
from diffac.reports import pictures

SECONDS = 120
"""Within which each report is made, on a loaded machine; some of the files would keep it for ever."""
ESCAPES = "\x1b[2J\x1b]0;owned\x07"
BIDI = "\u202egnp.exe"
ROW = {"step": 1, "return": 2.0, "seed": 0}


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    def give_up(*_: Any) -> None:
        pytest.fail(f"not done within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def run_with(name: str, content: bytes | str) -> Callable[[Path], None]:
    """A run of diffac one file of which holds something else."""

    def make(root: Path) -> None:
        path = write_run(root, "bad") / name
        path.unlink(missing_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def run_where(name: str, make_file: Callable[[Path], Any]) -> Callable[[Path], None]:
    """A run of diffac one file of which is made by a function."""

    def make(root: Path) -> None:
        path = write_run(root, "bad") / name
        path.unlink(missing_ok=True)
        make_file(path)

    return make


def config(**changes: Any) -> Callable[[Path], None]:
    """A run of diffac with other entries in its configuration."""

    def make(root: Path) -> None:
        path = write_run(root, "bad") / "config.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))

    return make


def manifest(**changes: Any) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        path = write_run(root, "bad") / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return make


def arrays(**changes: Any) -> Callable[[Path], None]:
    """A run of diffac with other evaluations, or with more arrays."""

    def make(root: Path) -> None:
        path = write_run(root, "bad") / "evaluations.npz"
        with np.load(path) as saved:
            found = dict(saved)
        np.savez(path, **{**found, **changes}, allow_pickle=True)

    return make


def table(*rows: dict[str, Any]) -> Callable[[Path], None]:
    return lambda root: write_csv(root / "bad.csv", [dict(row) for row in rows]) and None


def text_file(name: str, content: str | bytes) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        path = root / "bad" / name
        path.parent.mkdir()
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def place(name: str, make_file: Callable[[Path], Any]) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        path = root / "bad" / name
        path.parent.mkdir()
        make_file(path)

    return make


def device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("only root makes devices")


def holes(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"step,return,seed\n1,2,3\n" * 100)
        file.truncate(10**12)


def npy(header: dict[str, Any], data: bytes = b"") -> bytes:
    text = repr(header).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def archive(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as saved:
        for name, content in members.items():
            saved.writestr(f"{name}.npy", content)
    return file.getvalue()


def bomb(path: Path) -> None:
    """200 MB of zeros in 200 kB."""
    header = npy({"descr": "<f8", "fortran_order": False, "shape": (25_000_000, 1)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as saved:
        for name in ("timesteps", "results"):
            with saved.open(f"{name}.npy", "w") as member:
                member.write(header)
                for _ in range(20):
                    member.write(bytes(10_000_000))


def deep(path: Path) -> None:
    """More folders in one another than Python's stack is deep."""
    for _ in range(1_200):
        path.mkdir()
        path = path / "d"


def socket_file(path: Path) -> None:
    import socket

    here = os.getcwd()
    os.chdir(path.parent)  # such names must be short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def stable_baselines(root: Path, **more: str) -> Path:
    """What `EvalCallback` writes, beside files of others."""
    folder = root / "bad"
    folder.mkdir()
    np.savez(folder / "evaluations.npz", timesteps=[1, 2], results=[[1.0], [2.0]], ep_lengths=[[1], [1]])
    for name, content in more.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


def aliases() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    return "\n".join(lines) + "\nrecipe: x\nenv_id: y\nbackend: z\n"


WANDB = """_wandb:
  desc: null
  value: {python_version: 3.11}
env_id:
  desc: null
  value: Hopper-v5
seed:
  value: 3
"""
NESTED = "[" * 100_000 + "]" * 100_000
DIGITS = "9" * 5_000
MONITOR = '#{"t_start": 0, "env_id": "Hopper-v5"}\nr,l,t\n'
LINK = "a symbolic link, which is not followed"

LEFT_OUT: dict[str, tuple[Callable[[Path], Any], str]] = {
    # other programs' files
    "a configuration of wandb": (
        lambda root: stable_baselines(root, config__yaml=WANDB), "config.yaml is no configuration of diffac"
    ),
    "a configuration that is a list": (run_with("config.yaml", "- a\n- b\n"), "config.yaml must be a table"),
    "an empty configuration": (run_with("config.yaml", ""), "config.yaml must be a table"),
    "a configuration of another program": (
        run_with("config.yaml", "lr: 0.1\n"), "config.yaml is no configuration of diffac"
    ),
    # YAML and JSON
    "an explosion of aliases": (run_with("config.yaml", aliases()), "config.yaml is no YAML: it holds an alias"),
    "an alias of itself": (run_with("config.yaml", "a: &a [*a]\n"), "config.yaml is no YAML: it holds an alias"),
    "deep YAML": (run_with("config.yaml", "a: " + NESTED), "config.yaml is no YAML: it is nested deeper"),
    "a long number in YAML": (run_with("config.yaml", f"seed: {DIGITS}\n"), "config.yaml is no YAML"),
    "objects in YAML": (
        run_with("config.yaml", "a: !!python/object/apply:os.system ['true']\n"), "config.yaml is no YAML"
    ),
    "a date in YAML": (
        run_with("config.yaml", "recipe: a\nenv_id: b\nbackend: c\nx: 2001-01-01\n"), "config.yaml: x is a date"
    ),
    "garbage in place of YAML": (run_with("config.yaml", bytes(range(256)) * 10), "config.yaml is no YAML"),
    "garbage in place of JSON": (run_with("manifest.json", bytes(range(256)) * 10), "manifest.json is not the JSON"),
    "deep JSON": (run_with("manifest.json", NESTED), "manifest.json is not the JSON it should be: it is nested"),
    "a long number in JSON": (run_with("manifest.json", f'{{"cpu_count": {DIGITS}}}'), "a whole number of 5000 digits"),
    "half a character in JSON": (run_with("manifest.json", '{"python": "\\ud800"}'), "manifest.json is not the JSON"),
    "a manifest that is a list": (run_with("manifest.json", "[1]"), "manifest.json must be a table"),
    # values of the wrong kind
    "a seed of text": (config(seed="three"), "config.yaml: seed must be a whole number"),
    "a seed that is a table": (config(seed={"value": 3}), "config.yaml: seed must be a whole number"),
    "a negative seed": (config(seed=-1), "config.yaml: seed must be a whole number"),
    "steps planned in text": (config(total_timesteps="many"), "config.yaml: total_timesteps must be a whole number"),
    "steps planned without end": (config(total_timesteps=float("inf")), "total_timesteps must be a whole number"),
    "an environment that is a number": (config(env_id=5), "config.yaml is no configuration of diffac"),
    "a setting of a megabyte": (config(note="a" * 200_000), "config.yaml: note has 200,000 characters"),
    "a setting of many numbers": (config(sizes=[256] * 5_000), "config.yaml: sizes has .* characters"),
    "a name of a setting of 300 characters": (config(**{"a" * 300: 1}), "a name in config.yaml has 300 characters"),
    "escapes in a setting": (config(note=ESCAPES), "config.yaml: note holds control characters"),
    "escapes in a name of a setting": (config(**{ESCAPES: 1}), "a name in config.yaml holds control characters"),
    "versions that are a list": (manifest(versions=[1, 2]), "manifest.json: versions must be a table"),
    "a version that is a table": (manifest(versions={"numpy": {}}), "manifest.json: versions is no text"),
    "escapes in a version": (manifest(versions={"numpy": ESCAPES}), "manifest.json: versions holds control"),
    "cores in text": (manifest(cpu_count=[1]), "manifest.json: cpu_count must be a whole number"),
    "a date that is a number": (manifest(started=5), "manifest.json: started is no text"),
    "resumed nowhere": (manifest(resumed=[5]), "manifest.json: resumed must be a table"),
    "resumed at a text": (manifest(resumed=[{"env_step": "x", "backend": "y"}]), "manifest.json: env_step must be"),
    "a platform of 10,000 characters": (manifest(platform="a" * 10_000), "manifest.json: platform has 10,000 char"),
    # names
    "a recipe of 300 characters": (config(recipe="a" * 300), "its method has 300 characters"),
    "an environment of 300 characters": (table({**ROW, "env_id": "a" * 300}), "its environment has 300 characters"),
    "a method of 300 characters": (table({**ROW, "recipe": "a" * 300}), "its method has 300 characters"),
    "escapes in an environment": (config(env_id=f"Hop{ESCAPES}per-v5"), "holds control characters"),
    "escapes in a recipe": (table({**ROW, "recipe": ESCAPES}), "its method holds control characters"),
    "letters from right to left": (table({**ROW, "recipe": BIDI}), "its method holds control characters"),
    "two lines in a name": (table({**ROW, "env_id": "a\nnote: run: rm -rf ~"}), "its environment holds control"),
    "a tab in a name": (table({**ROW, "backend": "\tx"}), "its backend holds control characters"),
    "a file name with escapes": (
        lambda root: write_csv(root / f"{ESCAPES}{BIDI}\n.csv", [ROW]), "its method holds control characters"
    ),
    "a file name that is no text": (
        lambda root: write_csv(root / os.fsdecode(b"\xff\xfe.csv"), [ROW]), "its method holds control characters"
    ),
    "a folder with another line in its name": (
        lambda root: write_csv(root / "a\nerror: all is lost" / "x.csv", [{**ROW, "seed": "x"}]), "must be numbers"
    ),
    "HTML in a file name": (
        lambda root: write_csv(root / "<img src=x onerror=alert(1)>.csv", [{**ROW, "seed": "x"}]), "must be numbers"
    ),
    # arrays
    "arrays of text": (arrays(results=np.array([["a", "b"]] * 3)), "evaluations.npz is no archive .* not of numbers"),
    "steps of text": (arrays(timesteps=np.array(["a", "b", "c"])), "evaluations.npz is no archive .* not of numbers"),
    "pickled arrays": (arrays(results=np.array([[{}]] * 3, object)), "evaluations.npz is no archive of arrays"),
    "a pickle": (run_with("evaluations.npz", pickle.dumps({"timesteps": [1]})), "evaluations.npz is no archive"),
    "complex returns": (arrays(results=np.ones((3, 2), complex)), "not of numbers"),
    "dates as steps": (arrays(timesteps=np.array(["2001", "2002", "2003"], "M8[Y]")), "not of numbers"),
    "records": (arrays(results=np.zeros((3, 2), [("a", "f8")])), "not of numbers"),
    "returns of 1e308": (arrays(results=np.full((3, 2), 1e308)), "its return at step 1,000 is 1e[+]308"),
    "returns that overflow when squared": (arrays(results=np.full((3, 2), -1e160)), "its return at step 1,000 is -1e"),
    "NaN": (arrays(results=np.array([[1.0], [np.nan], [1.0]])), "its return at step 2,000 is nan"),
    "infinity": (arrays(results=np.array([[1.0], [1.0], [np.inf]])), "its return at step 3,000 is inf"),
    "infinities that cancel out": (arrays(results=np.array([[np.inf, -np.inf]] * 3)), "its return at step 1,000 is"),
    "returns of more digits than float64": (
        arrays(results=np.full((3, 2), "1e4000", np.longdouble)), "its return at step 1,000 is inf|is no archive"
    ),
    "steps that go back": (arrays(timesteps=np.array([1, 3, 2])), "steps do not increase"),
    "steps that stand": (arrays(timesteps=np.array([1, 1, 2])), "steps do not increase"),
    "negative steps": (arrays(timesteps=np.array([-5, 1, 2])), "must be whole numbers from 0 to .* -5"),
    "steps of 1e300": (arrays(timesteps=np.array([1.0, 2.0, 1e300])), "must be whole numbers from 0 to .* 1e[+]300"),
    "steps above int64": (arrays(timesteps=np.array([1, 2, 2**64 - 1], np.uint64)), "must be whole numbers from 0"),
    "halves of steps": (arrays(timesteps=np.array([1, 1.5, 2])), "must be whole numbers from 0 to .* 1.5"),
    "a step that is NaN": (arrays(timesteps=np.array([1, np.nan, 2])), "must be whole numbers from 0 to .* nan"),
    "a number in place of steps": (arrays(timesteps=np.array(3)), r"has timesteps \(\)"),
    "a table of steps": (arrays(timesteps=np.ones((3, 1), int)), r"has timesteps \(3, 1\)"),
    "no episodes": (arrays(results=np.ones((3, 0))), "results .3, 0."),
    "other numbers of steps and returns": (arrays(results=np.ones((4, 2))), "results .4, 2."),
    "a number in place of updates": (arrays(updates=np.array(5)), r"has updates \(\)"),
    "updates that are NaN": (arrays(updates=np.full(3, np.nan)), "its updates must be whole numbers"),
    "a million evaluations": (
        arrays(timesteps=np.arange(10**6), updates=np.arange(10**6), results=np.ones((10**6, 1))), "has 1,000,000 eval"
    ),
    "an archive without returns": (run_with("evaluations.npz", archive(a=npy({}))), "evaluations.npz lacks results"),
    "an empty file of evaluations": (run_with("evaluations.npz", b""), "evaluations.npz is no archive"),
    "garbage in place of evaluations": (run_with("evaluations.npz", os.urandom(999)), "evaluations.npz is no archive"),
    "a header that is code": (
        run_with("evaluations.npz", archive(timesteps=b"\x93NUMPY\x01\x00\x10\x00__import__('os')", results=b"")),
        "evaluations.npz is no archive",
    ),
    "a header that promises 8 TB": (
        run_with("evaluations.npz", archive(
            timesteps=npy({"descr": "<i8", "fortran_order": False, "shape": (10**12,)}, bytes(80)), results=b""
        )),
        "evaluations.npz is no archive .* does not fit",
    ),
    "an archive that unpacks to 2,000 times its size": (run_where("evaluations.npz", bomb), "would unpack to"),
    # in place of files
    "a lost link": (run_where("evaluations.npz", lambda p: p.symlink_to("nowhere")), LINK),
    "a link to a configuration elsewhere": (run_where("config.yaml", lambda p: p.symlink_to("/etc/hostname")), LINK),
    "a lost table": (place("x.csv", lambda p: p.symlink_to("nowhere")), LINK),
    "a lost link of any name": (place("latest", lambda p: p.symlink_to("nowhere")), LINK),
    "a link to a folder": (place("x", lambda p: p.symlink_to("/etc")), LINK),
    "a link to where it is": (place("x", lambda p: p.symlink_to(".")), LINK),
    "a circle of links": (place("x", lambda p: p.symlink_to("x")), LINK),
    "a pipe as evaluations": (run_where("evaluations.npz", os.mkfifo), "evaluations.npz is a pipe or device"),
    "a pipe as configuration": (run_where("config.yaml", os.mkfifo), "config.yaml is a pipe or device"),
    "a pipe as manifest": (run_where("manifest.json", os.mkfifo), "manifest.json is a pipe or device"),
    "a pipe as metrics": (run_where("metrics.csv", os.mkfifo), "a pipe or device"),
    "a pipe as table": (place("x.csv", os.mkfifo), "a pipe or device"),
    "a pipe as monitor": (place("monitor.csv", os.mkfifo), "a pipe or device"),
    "a device": (place("x.csv", device), "a pipe or device"),
    "a socket": (place("x.csv", socket_file), "a pipe or device"),
    "a folder as evaluations": (run_where("evaluations.npz", Path.mkdir), "evaluations.npz is a folder"),
    "a folder as configuration": (run_where("config.yaml", Path.mkdir), "config.yaml is a folder"),
    "a file of holes": (place("x.csv", holes), "nearly all of them are a hole"),
    "1,200 folders in one another": (place("d", deep), "not searched: more than 32 folders deep"),
    # tables
    "an empty table": (text_file("x.csv", ""), "lacks the column step and return and seed"),
    "garbage in place of a table": (text_file("x.csv", bytes(range(256)) * 100), "lacks the column step"),
    "escapes in the head of a table": (text_file("x.csv", f"{ESCAPES},{BIDI}\n1,2\n"), "lacks the column step"),
    "a table in UTF-16": (text_file("x.csv", "step,return,seed\n1,2,3\n".encode("utf-16")), "lacks the column step"),
    "NUL in a table": (text_file("x.csv", "step,return,seed\n1,2\0,3\n"), "must be numbers|NUL"),
    "a cell of 200,000 characters": (text_file("x.csv", f"step,return,seed\n1,2,{'9' * 200_000}\n"), "field limit"),
    "a head of 200,000 characters": (text_file("x.csv", "a" * 200_000), "field limit"),
    "quotation marks that never end": (text_file("x.csv", 'step,return,seed\n1,2,"3\n' * 2), "must be numbers"),
    "a seed of text in a table": (table({**ROW, "seed": "three"}), "step, return and seed must be numbers"),
    "a seed of 5,000 digits": (table({**ROW, "seed": DIGITS}), "step, return and seed must be numbers"),
    "a seed of 100 digits": (table({**ROW, "seed": "9" * 100}), "its seed must be a whole number"),
    "NaN in a table": (table({**ROW, "return": "nan"}), "its return at step 1 is nan"),
    "infinity in a table": (table({**ROW, "return": "-inf"}), "its return at step 1 is -inf"),
    "1e308 in a table": (table({**ROW, "return": "1e308"}, {**ROW, "return": "1e308"}), "its return at step 1 is 1e"),
    "a step that is infinite": (table({**ROW, "step": "inf"}), "its steps must be whole numbers"),
    "a negative time": (table({**ROW, "seconds": -5}), "its times are not all between"),
    "an endless time": (table({**ROW, "seconds": "inf"}), "its times are not all between"),
    "a time of 1e300": (table({**ROW, "seconds": "1e300"}), "its times are not all between"),
    "2,000 runs in a table": (table(*({**ROW, "seed": seed} for seed in range(2_000))), "more than 1,000 runs"),
    "200 methods in a table": (
        table(*({**ROW, "recipe": "x", "backend": f"b{i}"} for i in range(200))), "x in .* is one of 201 methods"
    ),
    "300 environments in a table": (table(*({**ROW, "env_id": f"E-v{i}"} for i in range(300))), "environment is one"),
    "a table of 70 MB": (text_file("x.csv", "step,return,seed\n" + "1,2,3\n" * 12_000_000), "is too long"),
    # monitors
    "garbage in place of a monitor": (text_file("monitor.csv", bytes(range(256)) * 10), "does not begin with a line"),
    "a monitor that begins with a list": (text_file("monitor.csv", "#[1]\nr,l,t\n1,1,1\n"), "does not begin"),
    "a monitor that begins deep": (text_file("monitor.csv", f"#{NESTED}\nr,l,t\n1,1,1\n"), "it is nested too deeply"),
    "a monitor that begins at NaN": (text_file("monitor.csv", '#{"t_start": NaN}\nr,l,t\n1,1,1\n'), "the number NaN"),
    "escapes in a monitor": (
        text_file("monitor.csv", '#{"t_start": 0, "env_id": "\\u001b[2J"}\nr,l,t\n1,1,1\n'), "holds control characters"
    ),
    "returns of 1e308 in a monitor": (text_file("monitor.csv", MONITOR + "1e308,1,1\n" * 3), "return 1e[+]308"),
    "NaN in a monitor": (text_file("monitor.csv", MONITOR + "nan,1,1\n1,1,1\n"), "line 3: return nan"),
    "episodes of negative length": (text_file("monitor.csv", MONITOR + "1,-1,1\n1,1,1\n"), "line 3: .* length -1"),
    "an episode at infinity": (text_file("monitor.csv", MONITOR + "1,1,inf\n1,1,1\n"), "line 3: .* time inf"),
    "no episodes of a monitor": (text_file("monitor.csv", MONITOR), "no episode has ended"),
    # beside a run that can be used
    "metrics at NaN": (run_with("metrics.csv", "step,time/time_elapsed\nnan,nan\n"), "step nan at nan seconds"),
    "metrics of a long cell": (run_with("metrics.csv", f"step,{'a' * 200_000}\n"), "field limit"),
    "a monitor of garbage beside evaluations": (
        lambda root: stable_baselines(root, monitor__csv="garbage"), "does not begin with a line of"
    ),
}  # fmt: skip

NAMES = [
    # recipe, environment, backend
    ("a$b$\\frac{1", "$x_{$ <script>alert(1)</script>", "\\N{BELL}%(a)s{0.__class__}"),
    ("_hidden", "=1+1", "; @x"),
    ("שלום", "漢字🙂-v0", "'><img src=x onerror=alert(1)>"),
    ("W" * 100, "M" * 100, "m" * 100),
    ("+cmd|' /C calc'!A0", "a/b", "# head `code` [x](javascript:alert(1))"),
    ("@SUM(1)", "A b", "$title ${links}"),
    ("-2+3;=1", "../../a", '" onmouseover="alert(1)'),
]


def names(root: Path) -> None:
    rows = [{**ROW, "recipe": recipe, "env_id": env_id, "backend": backend} for recipe, env_id, backend in NAMES]
    write_csv(root / "odd.csv", rows)


def numbers(root: Path) -> None:
    """Environment, recipe, and (step, return, seconds) of each of two seeds."""
    cases = {
        ("smallest-v0", "x"): [(1, 5e-324, 5e-324), (2, 1e-323, 1e-323)],
        ("largest-v0", "x"): [(1, 1e100, 1), (2**53, -1e100, 1e10)],
        ("equal-v0", "x"): [(0, 1e100, 0), (1, 1e100, 0)],
        ("first-v0", "x"): [(0, 0.0, 0)],
        ("first-v0", "y"): [(0, -0.0, 1e10)],
        ("equal-v0", "y"): [(0, 1.0, 5e-324), (10**6, 1.0 + 2**-52, 1e-300)],
    }
    write_csv(root / "odd.csv", [
        {"env_id": env_id, "recipe": recipe, "seed": seed, "step": step, "return": value, "seconds": seconds}
        for (env_id, recipe), points in cases.items() for seed in (0, 1) for step, value, seconds in points
    ])  # fmt: skip


def many(root: Path) -> None:
    """Seeds and evaluations that would take 100 GB at once, and files that are no runs."""
    rows = [{"step": i, "return": i % 7, "seed": seed, "env_id": "E-v0"} for i in range(5_000) for seed in range(3)]
    write_csv(root / "long.csv", rows)
    write_csv(root / "wide.csv", [{**ROW, "seed": seed, "return": seed, "env_id": "E-v0"} for seed in range(500)])
    (root / "events.out.tfevents.1.x").write_bytes(os.urandom(2_000))
    (root / "notes.txt").write_text(ESCAPES)


def make(root: Path, prepare: Callable[[Path], Any], capsys: pytest.CaptureFixture[str]) -> tuple[Page, str]:
    """The page of a good run and something else beside it, and what was said."""
    write_run(root, seed=0, returns=[1.0, 10.0, 777.0])
    write_run(root, seed=1, returns=[1.0, 10.0, 777.0])
    prepare(root)
    out = root.parent / "out"
    try:
        assert main(["report", str(root), "--out", str(out)]) == 0
    finally:
        if (root / "bad" / "d").exists():
            subprocess.run(["rm", "-rf", str(root / "bad" / "d")], check=True)  # deeper than pytest can remove
    said = capsys.readouterr()
    assert said.out == f"{out / 'report.html'}\n"
    text = (out / "report.html").read_text(encoding="utf-8")
    for shown in (said.err, text):
        assert all(map(harmless, shown.split("\n")))
    page = Page(text)
    assert page.open == []
    assert page.loads == []
    assert len(page.ids) == len(set(page.ids))
    assert "777" in page.text
    assert "sdac · torch" in page.text
    for path in (out / "data").iterdir():
        assert harmless(path.read_text(encoding="utf-8").replace("\n", ""))
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.reader(file):
                assert not [cell for cell in row if re.search(r"(^|;)\s*[=+\-@]", cell) and not is_number(cell)]
    return page, said.err


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_bad_is_left_out(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is drawn here: a picture takes a second, and the good run is always the same."""
    monkeypatch.setattr(pictures, "save", lambda *_: "<svg></svg>")
    prepare, reason = LEFT_OUT[name]
    root = tmp_path / "runs"
    root.mkdir()
    page, said = make(root, prepare, capsys)
    listed = [line for line in said.splitlines() if re.search(reason, line)]
    assert listed, said
    assert listed[0].startswith(f"note: left out: {root}/")
    assert re.search(reason, page.text)
    assert len(listed[0]) < 1_000


@pytest.mark.parametrize("prepare", [names, numbers, many])
def test_what_is_odd_is_shown(
    prepare: Callable[[Path], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    """With all pictures."""
    root = tmp_path / "runs"
    root.mkdir()
    page, said = make(root, prepare, capsys)
    assert said == ""
    assert [str(warning.message) for warning in recwarn] == []
    text = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    for recipe, env_id, backend in NAMES if prepare is names else []:
        assert all(name in page.text for name in (recipe, env_id, backend))
        assert html.escape(backend) in text
        assert not any(name in text for name in ("<script>alert", "<img", 'onmouseover="'))


def test_everything_bad_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in a folder of its own."""
    monkeypatch.setattr(pictures, "save", lambda *_: "<svg></svg>")
    root = tmp_path / "runs"
    made = [
        name for name in LEFT_OUT if not any(word in name for word in ("1,200", "device", "MB", "methods", "environ"))
    ]
    for i, name in enumerate(made):
        (root / str(i)).mkdir(parents=True)
        LEFT_OUT[name][0](root / str(i))
    page, said = make(root, lambda _: None, capsys)
    assert len(made) > 100
    assert said.count("note: left out: ") == 21
    for name in made:
        assert re.search(LEFT_OUT[name][1], page.text), name


def test_a_folder_that_may_not_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read everything, so the system's refusal is played."""
    monkeypatch.setattr(pictures, "save", lambda *_: "<svg></svg>")
    real = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    root = tmp_path / "runs"
    page, said = make(root, lambda root: (root / "secret").mkdir(), capsys)
    assert said == f"note: left out: {root / 'secret'}: the folder cannot be searched: Permission denied\n"
    assert "the folder cannot be searched: Permission denied" in page.text


def test_nothing_but_bad_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_csv(tmp_path / f"{ESCAPES}{BIDI}.csv", [{**ROW, "return": "nan"}])
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert harmless(said.rstrip("\n"))
    assert "its return at step 1 is nan" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("argument", ["a\0b", "x" * 5_000, "loop", "lost"])
def test_arguments_that_are_no_paths(argument: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "lost").symlink_to("nowhere")
    assert main(["report", str(tmp_path / argument), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: there is no file or folder")
    assert said.count("\n") == 1


def test_links_that_are_typed_are_followed(tmp_path: Path) -> None:
    from diffac.reports.reading import read_runs

    write_csv(tmp_path / "real" / "x.csv", [ROW])
    (tmp_path / "folder").symlink_to("real")
    (tmp_path / "file.csv").symlink_to("real/x.csv")
    for argument in ("folder", "file.csv"):
        assert len(read_runs([str(tmp_path / argument)])[0]) == 1


@pytest.mark.parametrize("name", ["a" * 101, ESCAPES, BIDI])
def test_typed_names_are_checked(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_csv(tmp_path / "x.csv", [ROW])
    for arguments in ([f"{name}={path}"], [str(path), "--env-id", name]):
        assert main(["report", *arguments, "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert "must have at most 100 printable characters" in said
        assert harmless(said.rstrip("\n"))


@pytest.mark.parametrize("part", ["report.html", "data/results.csv", "pictures/curves_steps_Hopper-v5.png"])
def test_a_report_overwrites_nothing_through_links(part: str, tmp_path: Path) -> None:
    """The folder to write to may hold what a stranger left there."""
    write_run(tmp_path / "runs")
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "out" / part).parent.mkdir(parents=True)
    for name in (part, str(Path(part).with_name(f"new-{Path(part).name}"))):
        (tmp_path / "out" / name).symlink_to(precious)
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert precious.read_text() == "mine"
    assert not (tmp_path / "out" / part).is_symlink()


@pytest.mark.parametrize("part", ["data", "pictures"])
def test_a_report_is_not_written_elsewhere(part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "runs")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / part).symlink_to(tmp_path / "elsewhere")
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 2
    assert "is a symbolic link" in capsys.readouterr().err
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_page_named_like_a_report_hides_no_runs(tmp_path: Path) -> None:
    from diffac.reports.reading import read_runs

    write_run(tmp_path)
    (tmp_path / "report.html").write_text("")
    assert len(read_runs([str(tmp_path)])[0]) == 1
