"""Whatever lies in place of a file, reading and writing end with a sentence, soon, and touch nothing outside."""

from __future__ import annotations

import io
import json
import os
import stat
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save as save_safetensors

from diffac.errors import DamagedError, RunError, UsageError
from diffac.files import checks, untrusted

SECONDS = 20
"""Within which each refusal comes: some of the files would otherwise take hours, or never end."""


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < SECONDS


def refused(read: Callable[[Path], Any], path: Path) -> str:
    """The sentence with which a file is refused."""
    with pytest.raises(DamagedError) as raised:
        read(path)
    message = str(raised.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_damaged_is_both_errors() -> None:
    """A caller from Python catches it as `RunError`, as documented; the command line's exit code is 2."""
    assert issubclass(DamagedError, RunError)
    assert issubclass(DamagedError, UsageError)


READERS: list[Callable[[Path], Any]] = [
    untrusted.read_bytes, untrusted.read_json, untrusted.read_yaml, untrusted.read_npz, untrusted.read_safetensors
]  # fmt: skip


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_link(path: Path) -> None:
    target = path.with_name("target")
    target.write_text("{}")
    path.symlink_to(target)


def make_dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nothing"))


def make_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("only root makes devices")


def make_hollow(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"{}" * 1000)
        file.truncate(10**13)


@pytest.mark.parametrize("make", [make_fifo, make_link, make_dangling, make_device, make_hollow, Path.mkdir, None])
@pytest.mark.parametrize("read", READERS)
def test_only_files_are_read(read: Callable[[Path], Any], make: Callable[[Path], None] | None, tmp_path: Path) -> None:
    if make is not None:
        make(tmp_path / "file")
    refused(read, tmp_path / "file")


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "../x", "/etc/passwd", "a\\b", "C:x", "nul\0"])
def test_names_lead_nowhere_else(name: str, tmp_path: Path) -> None:
    with pytest.raises(DamagedError):
        untrusted.inside(tmp_path, name)
    with pytest.raises(DamagedError):
        untrusted.inside(tmp_path, "fine", name)


def test_links_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/best").symlink_to(tmp_path / "there")
    with pytest.raises(DamagedError, match=r"run/best is a symbolic link"):
        untrusted.inside(tmp_path / "run", "best", "step")
    (tmp_path / "mine").symlink_to(tmp_path / "run")  # what a caller says himself may be one
    assert untrusted.inside(tmp_path / "mine", "checkpoints") == tmp_path / "mine/checkpoints"


BAD_JSON = {
    "no JSON": b"{",
    "no UTF-8": b'"\xff"',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "deep lists": b"[" * 100_000,
    "rather deep": b"[" * 150 + b"]" * 150,
    "deep tables": b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    "many digits": b"1" * 5_000,
    "fewer digits": b"1" * 41,
    "NaN": b"NaN",
    "infinity": b"[-Infinity]",
    "beyond floats": b"1e999",
    "half a character": b'{"a": ["\\ud800"]}',
    "half a character as a key": b'{"\\ud800": 1}',
    "too long": b" " * (untrusted.JSON_LIMIT + 1),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_bad_json(case: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(BAD_JSON[case])
    refused(untrusted.read_json, tmp_path / "file")


def test_good_json(tmp_path: Path) -> None:
    value = {"a": [1, -2.5, None, True, "\u00e9\U0001f600"], "b": {"c": 2**128}, "d": []}
    (tmp_path / "file").write_text(json.dumps(value))
    assert untrusted.read_json(tmp_path / "file") == value


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
BAD_YAML = {
    "no YAML": b"a: [",
    "no UTF-8": b"a: \xff",
    "a control character": b"a: \x00",
    "a bomb": BOMB.encode(),
    "one alias": b"a: &x 1\nb: *x\n",
    "merged": b"a: &x {c: 1}\nb:\n  <<: *x\n",
    "itself": b"&x [*x]",
    "deep lists": b"[" * 100_000,
    "deep lines": b"- " * 50_000,
    "deep tables": b"{a: " * 30_000,
    "many digits": b"a: " + b"1" * 5_000,
    "many hexadecimal digits": b"a: 0x" + b"f" * 200_000,
    "many sixties": b"a: 1" + b":59" * 60_000,
    "an object": b"a: !!python/object/apply:os.system [true]",
    "a module": b"a: !!python/module:this",
    "a day that is none": b"a: 2001-99-99",
    "lists as keys": b"? [a]\n: 1\n",
    "half a character": b'a: "\\uD800"',
    "too long": b"#" * (untrusted.YAML_LIMIT + 1),
}


@pytest.mark.parametrize("case", BAD_YAML)
def test_bad_yaml(case: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(BAD_YAML[case])
    refused(untrusted.read_yaml, tmp_path / "file")


def test_good_yaml(tmp_path: Path) -> None:
    value = {"a": [1, -2.5, None, True, "x"], "b": {"c": "text"}}
    (tmp_path / "file").write_text(yaml.safe_dump(value))
    assert untrusted.read_yaml(tmp_path / "file") == value


def npy(header: dict[str, Any], data: bytes = b"") -> bytes:
    """A file in NumPy's format whose header may lie."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"fortran_order": False, "descr": "<f8"} | header)
    return file.getvalue() + data


def npz(*members: tuple[str, bytes], compressed: bool = False) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def saved(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


BAD_NPZ = {
    "no archive": b"PK\x03\x04",
    "empty": b"",
    "a bomb": npz(("a.npy", npy({"shape": (2**22,)}, bytes(2**25))), compressed=True),
    "1e12 rows": npz(("a.npy", npy({"shape": (10**12,)}))),
    "1e12 rows, compressed": npz(("a.npy", npy({"shape": (10**12,)}, bytes(2**20))), compressed=True),
    "rows of nothing": npz(("a.npy", npy({"shape": (10**15,), "descr": "|S0"}))),
    "rows of no columns": npz(("a.npy", npy({"shape": (10**15, 0), "descr": "|V0"}))),
    "negative rows": npz(("a.npy", npy({"shape": (-1,)}))),
    "fewer rows than data": npz(("a.npy", npy({"shape": (1,)}, bytes(800)))),
    "objects": saved(a=np.array([print], object)),
    "texts": saved(a=np.array(["x"])),
    "dates": saved(a=np.array(["2020-01-01"], "M8[D]")),
    "records": saved(a=np.zeros(2, [("x", "f4")])),
    "complex numbers": saved(a=np.zeros(2, complex)),
    "strange bools": npz(("a.npy", npy({"shape": (2,), "descr": "|b1"}, b"\x01\x02"))),
    "a deep header": npz(("a.npy", b"\x93NUMPY\x01\x00" + (9000).to_bytes(2, "little") + b"(" * 9000)),
    "no array": npz(("a.npy", b"hello")),
    "version 3": npz(("a.npy", b"\x93NUMPY\x03\x00" + npy({"shape": (0,)})[8:])),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_bad_archives(case: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(BAD_NPZ[case])
    refused(untrusted.read_npz, tmp_path / "file")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_good_archives(save: Any, tmp_path: Path) -> None:
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.zeros((0, 4), np.int32), "c": np.array([True, False])}
    arrays |= {"d": np.full(10**6, 7.0), "e": np.float64(3)}
    save(tmp_path / "file.npz", **arrays, words=np.array(["x"]))
    found = untrusted.read_npz(tmp_path / "file.npz", arrays)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == np.asarray(array).dtype


def tensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


BAD_SAFETENSORS = {
    "empty": b"",
    "no header": b"1234567",
    "a header beyond the file": tensors({}, length=2**40),
    "the longest header": tensors({}, length=2**64 - 1),
    "no JSON": tensors(b"{"),
    "deep JSON": tensors(b"[" * 100_000),
    "a list": tensors([]),
    "1e12 rows": tensors(tensor([10**12], [0, 4]), bytes(4)),
    "more rows than numbers have": tensors(tensor([2**62, 2**62], [0, 4]), bytes(4)),
    "negative rows": tensors(tensor([-1], [0, 4]), bytes(4)),
    "offsets beyond the file": tensors(tensor([1], [0, 2**40]), bytes(4)),
    "offsets backwards": tensors(tensor([1], [4, 0]), bytes(4)),
    "a hole before the data": tensors(tensor([1], [4, 8]), bytes(8)),
    "more data": tensors(tensor([1], [0, 4]), bytes(8)),
    "an unknown dtype": tensors(tensor([1], [0, 4], "X32"), bytes(4)),
    "a dtype that NumPy lacks": tensors(tensor([2], [0, 4], "BF16"), bytes(4)),
    "strange bools": tensors(tensor([4], [0, 4], "BOOL"), b"\x00\x01\x02\xff"),
    "a number for a shape": tensors({"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}, bytes(4)),
    "no tensor": tensors({"a": 1}),
}


@pytest.mark.parametrize("case", BAD_SAFETENSORS)
def test_bad_safetensors(case: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(BAD_SAFETENSORS[case])
    refused(untrusted.read_safetensors, tmp_path / "file")


def test_good_safetensors(tmp_path: Path) -> None:
    arrays = {"a": np.arange(3.0), "b": np.array(5, np.int32), "c": np.array([True]), "d": np.zeros((0, 2), np.uint64)}
    (tmp_path / "file").write_bytes(save_safetensors(arrays))
    found = untrusted.read_safetensors(tmp_path / "file")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("what", ["link", "dangling", "file", "folder", "pipe"])
def test_new_files_are_new(what: str, tmp_path: Path) -> None:
    """Whatever has the name of the temporary file."""
    victim, beside = tmp_path / "victim", tmp_path / "new-file"
    victim.write_text("precious")
    match what:
        case "link":
            beside.symlink_to(victim)
        case "dangling":
            beside.symlink_to(tmp_path / "made")
        case "file":
            os.link(victim, beside)
        case "folder":
            beside.mkdir()
            (beside / "link").symlink_to(victim)
        case "pipe":
            os.mkfifo(beside)
    untrusted.write_atomically(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"
    assert victim.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "victim"]


def test_a_link_is_replaced_by_the_file(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "file").symlink_to("victim")
    untrusted.write_atomically(tmp_path / "file", b"content")
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "file").is_symlink()


def test_only_files_are_appended_to(tmp_path: Path) -> None:
    with untrusted.append(tmp_path / "file") as file:
        file.write("a")
    with untrusted.append(tmp_path / "file") as file:
        file.write("b")
    assert (tmp_path / "file").read_text() == "ab"
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("made")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "dangling", "pipe"):
        with pytest.raises((OSError, DamagedError)):
            untrusted.append(tmp_path / name)
    assert (tmp_path / "file").read_text() == "ab"
    assert not (tmp_path / "made").exists()


def test_values_for_messages() -> None:
    assert len(checks.shown("x" * 10**6)) < 100
    assert len(checks.shown([[1] * 10**6] * 100)) < 500


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (checks.whole, [0, 2**53], [-1, 2**53 + 1, 1.0, True, None, "1", [1]]),
        (checks.number, [0, -1.5, 10**39], [np.nan, np.inf, True, None, "1", [1.0]]),
        (checks.text, ["", "x \u00e9"], [1, None, ["x"], b"x"]),
        (checks.mapping, [{}, {"a": 1}], [{1: 2}, [], None, "a"]),
        (checks.items, [[], [1]], [{}, (), None, "a"]),
    ],
)
def test_checks(check: Callable[[Any, str], Any], good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert check(value, "it") == value
    for value in bad:
        with pytest.raises(DamagedError, match=r"^it must be "):
            check(value, "it")


def test_checks_of_arrays() -> None:
    array = np.ones((2, 3))
    assert checks.array(array, "it", (2, None)) is array
    assert checks.array(np.array([np.nan, 1]), "it", (2,), finite=False)[1] == 1
    bad = [None, [1.0], array[0], np.ones((2, 4)), np.ones((2, 3), int), np.full((2, 3), np.nan)]
    bad += [np.full((2, 3), np.inf), -array, np.full((2, 3), "x"), np.full((2, 3), None)]
    for value in bad:
        with pytest.raises(DamagedError, match=r"^it must be an array of "):
            checks.array(value, "it", (2, 3), least=0)


KINDS = [np.random.MT19937, np.random.PCG64, np.random.PCG64DXSM, np.random.Philox, np.random.SFC64]


@pytest.mark.parametrize("kind", KINDS)
def test_generators_of_numpy(kind: Any) -> None:
    rng = np.random.Generator(kind(5))
    rng.integers(10, dtype=np.int32)
    again = np.random.Generator(checks.bit_generator(rng.bit_generator.state, "it"))
    assert type(again.bit_generator) is kind
    assert again.integers(2**62, size=1000).tolist() == rng.integers(2**62, size=1000).tolist()


def bad_states() -> Iterator[Any]:
    yield from (None, [], "PCG64", {})
    for kind in KINDS:
        state: dict[str, Any] = dict(kind(0).state)
        for name in (*state, "bit_generator"):
            yield {key: value for key, value in state.items() if key != name}
            for value in (-1, 2**200, None, "x", [1], {}, np.zeros(3, np.uint64)):
                yield state | {name: value}
        inner: dict[str, Any] = dict(state["state"])
        for name in inner:
            for value in (-1, 2**200, None, "x", np.zeros(3, np.uint64), np.full(np.shape(inner[name]), "x")):
                yield state | {"state": inner | {name: value}}
    state = dict(np.random.MT19937(0).state)
    yield state | {"state": state["state"] | {"pos": 625}}
    yield dict(np.random.Philox(0).state) | {"buffer_pos": 5}
    yield dict(np.random.PCG64(0).state) | {"has_uint32": 2}
    for name in ("Generator", "RandomState", "seed", "test", "__loader__", "mtrand"):
        yield dict(np.random.PCG64(0).state) | {"bit_generator": name}


def test_generators_of_strangers() -> None:
    """No name is looked up, and no state lets one read outside its memory (a position of -1 does in NumPy)."""
    count = 0
    for state in bad_states():
        with pytest.raises(DamagedError):
            checks.bit_generator(state, "it")
        count += 1
    assert count > 150
