"""Files that may come from a stranger: what diffac reads from, and writes into, folders that it did not make itself.

Whatever a file holds, reading it executes nothing, follows no link, waits for nothing (a pipe, a device), and takes
memory in proportion to the file's size on the disk. What is wrong becomes a `DamagedError` of one sentence. What was
read has the form of its format and nothing more; `diffac.files.checks` tells whether the values are what they must be.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import shutil
import stat
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import yaml
import yaml.composer
import yaml.constructor
from safetensors.numpy import load as load_safetensors

from diffac.errors import DamagedError
from diffac.files.checks import shown

JSON_LIMIT = 2**25
"""Bytes that a JSON file may have."""
YAML_LIMIT = 2**18
"""Bytes that a YAML file may have, whose parser takes seconds for a MiB."""
DEPTH = 100
"""Levels to which values in JSON and YAML may be nested."""
DIGITS = 40
"""Digits that a whole number may have: 128 bits are 39."""
MOST_UNPACKED = 100
"""Times that an archive may grow when it is unpacked, ..."""
ALWAYS_UNPACKED = 2**24
"""... unless it has no more bytes than this then."""
HOLLOW = 10
"""Times that a file may be longer than its data, where it has holes that take no place on the disk."""
NUMERIC = "biuf"
"""Kinds of NumPy's dtypes that are read: bool, whole and real numbers."""
_FLAGS = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))


def inside(folder: Path | str, *names: str) -> Path:
    """The path of a file or folder, which need not exist, below a folder.

    Args:
        folder: where the caller trusts to be, by his own words.
        names: of the folders on the way and of the file.

    Raises:
        DamagedError: a name leads elsewhere, or there is a symbolic link of this name.
    """
    path = Path(folder)
    for name in names:
        if name in ("", ".", "..") or any(mark in name for mark in "/\\:\0"):
            raise DamagedError(f"{shown(name)} is no name of a file in {path}")
        path = path / name
        if os.path.islink(path) or getattr(os.path, "isjunction", lambda _: False)(path):
            raise DamagedError(
                f"{path} is a symbolic link, which diffac does not follow; put what it points to in its place"
            )
    return path


def open_regular(path: Path | str) -> BinaryIO:
    """Opens a file for reading, if it is one: no link, no pipe, no device, no file of holes.

    Raises:
        OSError: there is none, or it may not be read.
        DamagedError: it is something else.
    """
    _require_regular(path, os.lstat(path).st_mode)
    file = os.fdopen(os.open(path, os.O_RDONLY | _FLAGS), "rb")
    try:
        found = os.fstat(file.fileno())
        _require_regular(path, found.st_mode)
        if _is_hollow(file.fileno(), found.st_size):
            raise DamagedError(f"{path} says that it has {found.st_size:,} bytes, but nearly all of them are a hole")
    except BaseException:
        file.close()
        raise
    return file


def read_bytes(path: Path | str, limit: int | None = None) -> bytes:
    """The content of a file.

    Args:
        path: of a regular file.
        limit: bytes that it may have; None: any number.

    Raises:
        DamagedError: there is none, it is something else, or it is too long.
    """
    try:
        with open_regular(path) as file:
            data = file.read(-1 if limit is None else limit + 1)
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error.strerror or error}") from error
    if limit is not None and len(data) > limit:
        raise DamagedError(f"{path} is too long: a file of its kind has at most {limit:,} bytes")
    return data


def read_json(path: Path | str) -> Any:
    """What a JSON file holds: `parse_json`.

    Raises:
        DamagedError: it cannot be read, or is no JSON of reasonable size.
    """
    return parse_json(read_bytes(path, JSON_LIMIT), str(path))


def parse_json(data: bytes | str, where: str) -> Any:
    """A nest of dictionaries, lists, texts, finite numbers, bools and None.

    Args:
        data: UTF-8.
        where: it comes from, for messages.

    Raises:
        DamagedError: it is no JSON, nested deeper than `DEPTH`, or holds numbers of more than `DIGITS` digits, NaN or
            infinity, or texts that are no Unicode.
    """
    try:
        text = data if isinstance(data, str) else data.decode()
        value = json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=_finite)
        check_nest(value)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DamagedError(f"{where} is not the JSON it should be: {reason}") from error
    return value


def read_yaml(path: Path | str) -> Any:
    """What a YAML file holds, without aliases, which can make a small file explode.

    Raises:
        DamagedError: it cannot be read, or is no YAML of reasonable size and depth.
    """
    data = read_bytes(path, YAML_LIMIT)
    try:
        value = yaml.load(data.decode(), _Loader)
        check_nest(value)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark is not None else ""
        raise DamagedError(f"{path} is no YAML: {getattr(error, 'problem', None) or 'unreadable'}{where}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedError(f"{path} is no YAML: {error}") from error
    return value


def read_npz(path: Path | str, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of numbers in an archive of `numpy.savez` or `savez_compressed`.

    Args:
        path: of the archive.
        names: those that are wanted, where they are there; None: all.

    Raises:
        DamagedError: it is no such archive, an array holds something else than numbers, or it unpacks to more than its
            size on the disk justifies.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            size, unpacked = os.fstat(file.fileno()).st_size, sum(entry.file_size for entry in archive.infolist())
            if unpacked > max(ALWAYS_UNPACKED, MOST_UNPACKED * size):
                raise ValueError(f"its {size:,} bytes would unpack to {unpacked:,}")
            arrays = {}
            for entry in archive.infolist():
                name = entry.filename.removesuffix(".npy")
                if names is None or name in names:
                    with archive.open(entry) as member:
                        arrays[name] = _read_npy(member, entry.file_size)
            return arrays
    except DamagedError:
        raise
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # zipfile, zlib and NumPy refuse in many ways
        raise DamagedError(f"{path} is no archive of arrays: {error}") from error


def npy_header(file: IO[bytes], size: int) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of an array in NumPy's format, whose data, in C order, are the rest of the file.

    Args:
        file: at its beginning; afterwards at the first byte of data.
        size: bytes of the whole file.

    Raises:
        ValueError: there is no such header, the array holds objects, or the data have another size.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of NumPy's format is not read")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, fortran_order, dtype = read(file)
    except Exception as error:  # the header is a Python literal, and its parser refuses in many ways
        raise ValueError(str(error).partition("\n")[0]) from error
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if fortran_order and len(shape) > 1:
        raise ValueError("its order is that of Fortran")
    if any(length < 0 for length in shape) or math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError(f"an array of shape {shape} and dtype {dtype} does not fit in its {size:,} bytes")
    return shape, dtype


def read_safetensors(path: Path | str) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file.

    Raises:
        DamagedError: it cannot be read, is no such file, or holds arrays of something else than numbers.
    """
    data = read_bytes(path)
    try:
        arrays = load_safetensors(data)
        for name, array in arrays.items():
            name.encode()
            _require_numbers(array)
    except Exception as error:  # safetensors and NumPy refuse in many ways
        raise DamagedError(f"{path} is no safetensors file of numbers: {error}") from error
    return arrays


def create(path: Path | str) -> BinaryIO:
    """Opens a new file for writing. Whatever has its name (what a killed process left, a link) is removed before."""
    remove(path)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666), "wb")


def append(path: Path | str) -> IO[str]:
    """Opens a text file to go on writing at its end; makes it where it is missing.

    Raises:
        OSError: it cannot be written, or is a link.
        DamagedError: it is something else than a file.
    """
    return _open_own(path, os.O_WRONLY | os.O_APPEND, "a")


def open_lock(path: Path | str) -> IO[str]:
    """Opens a text file for reading and writing, at its beginning; makes it where it is missing.

    Raises:
        OSError: it cannot be written, or is a link.
        DamagedError: it is something else than a file, or other folders hold the same one.
    """
    file = _open_own(path, os.O_RDWR, "r+")
    if os.fstat(file.fileno()).st_nlink > 1:
        file.close()
        raise DamagedError(f"{path} is also a file of another folder (a hard link); remove it")
    return file


def _open_own(path: Path | str, flags: int, mode: str) -> IO[str]:
    handle = os.open(path, flags | os.O_CREAT | _FLAGS, 0o666)
    try:
        _require_regular(path, os.fstat(handle).st_mode)
    except BaseException:
        os.close(handle)
        raise
    return open(handle, mode, encoding="utf-8", errors="replace", newline="")


def write_atomically(path: Path | str, data: bytes) -> None:
    """Writes a file beside its place, to the disk and not only to the system's memory, and renames it."""
    path = Path(path)
    beside = path.with_name("new-" + path.name)
    with create(beside) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def remove(path: Path | str) -> None:
    """Removes a file, a link (not what it points to) or a folder with everything in it, where there is one."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def check_nest(value: Any) -> None:
    """Refuses what JSON and YAML of files may not hold.

    Raises:
        ValueError: a nest deeper than `DEPTH`, or a text that is no Unicode.
    """
    level = [value]
    for _ in range(DEPTH):
        inner: list[Any] = []
        for node in level:
            if isinstance(node, str):
                node.encode()
            elif isinstance(node, dict):
                inner += node.keys()
                inner += node.values()
            elif isinstance(node, list | tuple | set):
                inner += node
        if not inner:
            return
        level = inner
    raise ValueError(f"it is nested deeper than {DEPTH} levels")


class _Loader(yaml.SafeLoader):
    """Reads YAML without aliases, in reasonable depth, with numbers of reasonable size."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "it holds an alias (*name)", event.start_mark)
        if self.depth >= DEPTH:
            raise yaml.composer.ComposerError(None, None, f"it is nested deeper than {DEPTH}", event.start_mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_yaml_int(self, node: Any) -> int:
        if len(str(node.value)) > DIGITS:
            raise yaml.constructor.ConstructorError(None, None, "a whole number is too long", node.start_mark)
        return super().construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _read_npy(file: IO[bytes], size: int) -> np.ndarray:
    shape, dtype = npy_header(file, size)
    if dtype.kind not in NUMERIC:
        raise ValueError(f"it holds an array of dtype {dtype}, not of numbers")
    array = np.frombuffer(bytearray(file.read(math.prod(shape) * dtype.itemsize)), dtype).reshape(shape)
    _require_numbers(array)
    return array


def _require_numbers(array: np.ndarray) -> None:
    if array.dtype.kind not in NUMERIC:
        raise ValueError(f"it holds an array of dtype {array.dtype}, not of numbers")
    if array.dtype.kind == "b" and (array.view(np.uint8) > 1).any():
        raise ValueError("it holds an array of bools that are neither true nor false")


def _require_regular(path: Path | str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        what = "a symbolic link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "a pipe or device"
        raise DamagedError(f"{path} is {what}, not a file")


def _is_hollow(handle: int, size: int) -> bool:
    """Whether a file has `HOLLOW` times as many bytes as are on the disk, the rest being holes."""
    if not hasattr(os, "SEEK_DATA"):
        return False
    data = end = 0
    try:
        while data * HOLLOW < size:
            try:
                begin = os.lseek(handle, end, os.SEEK_DATA)
            except OSError as error:  # no data after this place; or a file system that does not know
                return error.errno == errno.ENXIO
            end = os.lseek(handle, begin, os.SEEK_HOLE)
            data += end - begin
        return False
    finally:
        os.lseek(handle, 0, io.SEEK_SET)


def _whole(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"it holds a whole number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"it holds the number {text[:DIGITS]}")
    return value
