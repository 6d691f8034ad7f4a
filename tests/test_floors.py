"""The house stands: rooms import only from floors below, and importing one does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from config import ROOT

FLOORS = {
    "config": 1, "corpora": 1,
    "model": 2, "tokenizer": 2, "sources": 2,
    "data": 3, "checkpoint": 3, "training": 3, "inference": 3, "multimodal": 3,
    "server": 4, "generate": 4, "train": 4,
    "serve": 5, "train_cli": 5,
}  # fmt: skip
BESIDE = {  # rooms of one floor that lean on another of it; never in a circle (tested below)
    "training": {"data", "checkpoint", "inference"},
    "checkpoint": set(),
    "data": set(),
    "inference": {"checkpoint"},
    "multimodal": {"data", "checkpoint", "inference", "training"},
    "tokenizer": set(),
    "sources": {"tokenizer"},
    "model": set(),
    "generate": set(),
    "server": {"generate"},
    "train": set(),
}
FRONT_DOORS = {"serve", "train_cli", "generate", "train"}
MUST_NOT_KNOW = {
    "config": set(FLOORS) - {"config"},
    "corpora": {"tokenizer", "model", "torch"},
    "tokenizer": {"model", "corpora", "data", "sources"},
    "model": {"data", "training", "server", "tokenizer", "sources", "checkpoint", "corpora"},
    "sources": {"model", "torch"},
    "checkpoint": {"train", "server", "fastapi", "training"},
    "training": {"fastapi", "server", "serve"},
    "inference": {"fastapi", "server", "training", "train"},
    "train": {"model", "data", "tokenizer", "server", "inference", "fastapi", "corpora", "multimodal"},
    "server": {"torch"},
}


def chapters() -> list[Path]:
    """The files of the house: root modules, and those of its packages."""
    files = [path for path in ROOT.glob("*.py") if path.stem != "test_model" and path.stem != "conftest"]
    for room in FLOORS:
        files += (ROOT / room).rglob("*.py") if room != "data" else []
    return sorted(files)


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The top names that a file imports, wherever in it, but for the block that only runs as a script."""
    tree = ast.parse(path.read_text())
    body = [node for node in tree.body if not (isinstance(node, ast.If) and "__name__" in ast.unparse(node.test))]
    found = set()
    for node in (inner for outer in body for inner in ast.walk(outer)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found.add(node.module.split(".")[0])
    return found


def modules() -> list[str]:
    """Every module by its dotted name."""
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in chapters()]
    return [name for name in names if not name.endswith("__main__")]


@pytest.mark.parametrize("path", chapters(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_from_floors_below(path):
    room = room_of(path)
    assert room in FLOORS, f"{room} has no floor: enter it in DESIGN's table and here"
    for other in (imports(path) & FLOORS.keys()) - {room}:
        below = FLOORS[other] < FLOORS[room]
        assert below or other in BESIDE.get(room, set()), f"{room} imports {other}"


@pytest.mark.parametrize("path", chapters(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_imports_a_front_door(path):
    allowed = {"train_cli": {"train"}, "server": {"generate"}}.get(room_of(path), set())
    assert not (imports(path) & FRONT_DOORS) - allowed - {room_of(path)}


@pytest.mark.parametrize("room", MUST_NOT_KNOW)
def test_a_room_does_not_know_what_it_must_not(room):
    for path in (path for path in chapters() if room_of(path) == room):
        assert not imports(path) & MUST_NOT_KNOW[room], path


def test_the_rooms_of_a_floor_lean_on_each_other_in_no_circle():
    real = {room: set() for room in FLOORS}
    for path in chapters():
        real[room_of(path)] |= imports(path) & FLOORS.keys() - {room_of(path)}
    left = dict(real)
    while free := [room for room, others in left.items() if not others & left.keys()]:
        for room in free:
            del left[room]
    assert not left, f"these import each other: {left}"


def test_every_room_with_code_has_a_docstring():
    for path in chapters():
        tree = ast.parse(path.read_text())
        assert not tree.body or ast.get_docstring(tree), path


def test_the_ground_floor_needs_only_the_standard_library():
    assert imports(ROOT / "config.py") <= set(sys.stdlib_module_names)


def test_the_data_folder_is_no_package():
    assert not (ROOT / "data" / "__init__.py").exists()  # it would hide data.py


def test_a_file_of_a_package_shares_no_name_with_a_chapter():
    """A script that is run from inside a package would import the wrong one."""
    roots = {path.stem for path in ROOT.glob("*.py")}
    for path in chapters():
        if path.parent != ROOT and path.stem != "__init__":
            assert path.stem not in roots, path


def test_nothing_is_called_like_the_standard_library():
    for path in chapters():
        assert path.stem not in sys.stdlib_module_names or path.stem.startswith("__"), path


WATCH = """
import sys, os, importlib
sys.argv = ["x", "--no-such-flag"]
sys.path.insert(0, {root!r})
opened = []
def hook(event, args):
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        opened.append(str(args[0]))
    if event in ("os.mkdir", "subprocess.Popen", "socket.connect"):
        opened.append(event + " " + str(args[0]))
for name in {libraries!r}:
    try: importlib.import_module(name)
    except ImportError: pass
import torch, logging
def probed(*a, **k): raise SystemExit("a device was probed")
torch.cuda.is_available = torch.cuda.device_count = probed
torch.backends.mps.is_available = probed
threads, state, handlers = torch.get_num_threads(), torch.get_rng_state(), list(logging.root.handlers)
sys.addaudithook(hook)
for name in {names!r}:
    importlib.import_module(name)
assert not opened, opened
assert torch.get_num_threads() == threads, "threads changed"
assert torch.equal(state, torch.get_rng_state()), "random numbers were drawn"
assert logging.root.handlers == handlers, "logging was set up"
assert not torch.cuda.is_initialized()
"""


def test_importing_does_nothing(tmp_path):
    """No word is printed, no file made, no argument parsed, no device probed, no thread count or seed changed."""
    outside = set().union(*(imports(path) for path in chapters())) - FLOORS.keys() - {"__future__"}
    code = WATCH.format(root=str(ROOT), libraries=sorted(outside), names=modules())
    done = subprocess.run([sys.executable, "-B", "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
