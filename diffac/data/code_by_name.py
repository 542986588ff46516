"""Code that a text names: the module of an environment `module:id`, and a wrapper `module:function`.

What somebody types may lie in the current folder. What comes out of a file, which may be a stranger's, is looked for
where Python looks, and named before it is imported.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from diffac.errors import RunError, UsageError, said
from diffac.messages import note, quoted

NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
"""Of a wrapper."""
_origins: dict[str, str] = {}
"""Texts that came out of a file, and the file."""
_told: set[str] = set()
"""Wrappers that were named already."""
_folders: set[str] = set()
"""Entries of `sys.path` that are there for what was typed."""


def came_from(file: str, texts: Iterable[str]) -> None:
    """Remembers that a file holds these names."""
    _origins.update(dict.fromkeys(texts, file))


def origins(texts: Iterable[str]) -> dict[str, str]:
    """Those of the names that a file holds, and the file."""
    return {text: _origins[text] for text in texts if text in _origins}


def typed(texts: Iterable[str]) -> None:
    """Forgets it: somebody has typed them."""
    for text in texts:
        _origins.pop(text, None)


def import_of(text: str) -> Any:
    """The module that "module:rest" names; None for a text without a module.

    Raises:
        UsageError: importing it raises an error.
        ImportError: it cannot be found, or misses another one.
    """
    name, colon, _ = text.partition(":")
    if not colon:
        return None
    if name in sys.modules:
        return sys.modules[name]
    here = os.getcwd()
    top = Path(here, name.partition(".")[0])
    lies_here = top.with_suffix(".py").is_file() or (top / "__init__.py").is_file()
    file = _origins.get(text)
    path = sys.path.copy()
    if file is None:
        if lies_here and here not in sys.path:
            sys.path.append(here)  # at the end, and to stay: the module may import more later, as may its processes
            _folders.add(here)
    else:
        note(f"importing the module {quoted(name)}, which {file} names")
        sys.path[:] = [entry for entry in sys.path if entry and entry not in _folders]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if file is not None and lies_here:
            raise ImportError(
                f"{error}; it lies in the current folder, where nothing is looked for that a file names: if you trust "
                f"it, set PYTHONPATH to that folder"
            ) from error
        raise
    except (UsageError, RunError):
        raise
    except Exception as error:
        raise UsageError(f"importing the module {name!r} raised {type(error).__name__}: {said(error)}") from error
    finally:
        if file is not None:
            sys.path[:] = path


def check_name(text: str) -> None:
    """Refuses what is no "module:function"."""
    if not isinstance(text, str) or not NAME.fullmatch(text):
        raise UsageError(f"a wrapper is named module:function, got {text!r}")


def function_of(text: str) -> Callable[..., Any]:
    """The function (or class) that "module:function" names.

    Raises:
        UsageError: it names none, or none can be imported.
    """
    check_name(text)
    if text in _origins and text not in _told:
        _told.add(text)
        note(f"the environment is wrapped by {quoted(text)}, which {_origins[text]} names")
    try:
        found = getattr(import_of(text), text.partition(":")[2], None)
    except ImportError as error:
        raise UsageError(f"wrapper {text!r} cannot be imported: {error}") from error
    if not callable(found):
        raise UsageError(
            f"wrapper {text!r} is no function: its module has {quoted(found) if found else 'no such name'}"
        )
    return found
