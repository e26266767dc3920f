"""No name that a file holds is imported or called: an audit hook and sys.modules watch."""

import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests import build
from tests.checkpoint.test_distributed import CUTS, STATE, save_cut

_WATCHED = """
import json, pathlib, sys
import prune_cli.checkpoint.torch_file, prune_cli.checkpoint.distributed
from prune_cli.checkpoint import Loading, open_checkpoint
from prune_cli.errors import InputError
events = []
def note(event, arguments):
    if event == "open":
        events.append([event, str(arguments[0])])
    elif event.startswith(("import", "os.", "subprocess", "socket", "ctypes", "pickle", "exec", "compile", "shutil")):
        events.append([event, repr(arguments)[:100]])
outcomes = {}
before = set(sys.modules)
sys.addaudithook(note)
for name in sys.argv[1:]:
    try:
        found = open_checkpoint(name, Loading(drop_unwritable=True))
        for info in found.tensors.values():
            found.shards[info.shard].mapped[:1]
        outcomes[name] = sorted(found.tensors)
    except InputError as error:
        outcomes[name] = str(error)
watched = list(events)
print(json.dumps([outcomes, watched, sorted(set(sys.modules) - before)]))
"""


class Evil:
    """Is, once unpickled, what `call` returns."""

    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self.call, self.arguments


def hostile() -> dict[str, bytes]:
    """Pickles that would do something if they were run."""
    import os
    import shutil

    evil = {
        "system": Evil(os.system, "touch mark"),
        "exec": Evil(exec, "open('mark', 'w')"),
        "remove": Evil(shutil.rmtree, "."),
        "import": Evil(__import__, "antigravity"),
        "nested": Evil(getattr, Evil(__import__, "os"), "system"),
        "load": Evil(torch.load, "mark"),
        "hub": Evil(torch.hub.load, "someone/else", "model"),
    }
    made = {name: pickle.dumps({"w": 1, "evil": value}) for name, value in evil.items()}
    made["inst"] = b"(S'touch mark'\nios\nsystem\n."
    made["obj"] = b"(cos\nsystem\nS'touch mark'\no."
    made["stack-global"] = b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0atouch mark\x85R."
    made["newobj-ex"] = b"\x80\x04\x8c\x02os\x8c\x06system\x93)}\x92."
    made["build"] = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x04\0\0\0makecos\nsystem\nsb."
    made["extension"] = b"\x80\x02\x82\x01)R."
    made["setstate"] = b"\x80\x02ccollections\nOrderedDict\n)R}X\x06\0\0\0updatecos\nsystem\nsb."
    return made


def zipped(pickled: bytes) -> bytes:
    """A file of torch.save with that pickle."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", b"3")
    return content.getvalue()


class Odd(torch.Tensor):
    """A subclass that the file names."""


def real(folder: Path) -> list[Path]:
    """Files as people have them, of every format."""
    net = build.Net()
    save_cut(folder / "dcp", STATE, CUTS)
    torch.save(net, folder / "module")
    torch.save(net, folder / "old-module", _use_new_zipfile_serialization=False)
    torch.save({"model": net.state_dict(), "path": folder, "odd": Odd()}, folder / "nested")
    torch.save({**build.tensors(), "sparse": torch.eye(3).to_sparse()}, folder / "sparse")
    (folder / "arrays").write_bytes(pickle.dumps({"w": torch.ones(2, 2).numpy()}, 2))
    torch.jit.save(torch.jit.script(nn.Linear(3, 2)), folder / "script")
    return list(folder.iterdir())


@pytest.mark.filterwarnings("ignore")  # torch.jit, and modules in the legacy format
def test_no_name_of_a_file_is_imported_or_called(tmp_path: Path) -> None:
    """While hostile and real files are read, no module is loaded, and no file but they is opened."""
    folder = tmp_path / "real"
    folder.mkdir()
    paths = real(folder)
    for name, pickled in hostile().items():
        for kind, content in (("plain", pickled), ("zip", zipped(pickled))):
            paths.append(tmp_path / f"{name}-{kind}")
            paths[-1].write_bytes(content)

    ran = subprocess.run(
        [sys.executable, "-c", _WATCHED, *map(str, paths)],
        capture_output=True,
        check=True,
        cwd=tmp_path,
    )

    outcomes, events, modules = json.loads(ran.stdout)
    assert not (tmp_path / "mark").exists()
    assert modules == []
    opened = {path for event, path in events if event == "open"}
    inside = {path for path in opened if str(tmp_path) in path}
    assert inside >= {str(path) for path in paths if path.is_file()}
    assert all(path.startswith("/tmp") or path.isdecimal() for path in opened - inside)
    allowed = {"open", "os.listdir", "os.scandir", "os.remove", "os.unlink"}
    assert {event for event, _ in events} <= allowed
    for path in paths:
        is_read = isinstance(outcomes[str(path)], list)
        assert is_read == (path.parent == folder), outcomes[str(path)]
