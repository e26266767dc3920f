"""Models of the Hugging Face Hub: read at one commit, written in one commit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download, snapshot_download

from tests import build
from tests.conftest import Run
from tests.stores.hub_server import READER, Hub, Repository

PRUNE = ("-a", "0.5", "-d", "0", "-m", "fc")
CARD = (
    b"---\nlicense: apache-2.0\npipeline_tag: image-classification\ntags:\n- vision\n---\n# Net\n"
)


def folder(path: Path, *, shards: int = 1, card: bytes = CARD) -> dict[str, bytes]:
    """A model's folder, as files by their names; with `shards`, fc.weight is in the first one."""
    content = build.tensors()
    if shards == 1:
        path.mkdir()
        build.safetensors(path / "model.safetensors", content)
        (path / "config.json").write_text('{"hidden": 6}')
    else:
        build.write_folder(path, build.split(content, build.shard_names(shards)))
    (path / "README.md").write_bytes(card)
    return read(path)


def read(path: Path) -> dict[str, bytes]:
    """All files below `path`."""
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file()
    }


# --- reading ---------------------------------------------------------------------------------


def test_a_model_is_pruned_as_its_folder_is(run: Run, hub: Hub, tmp_path: Path) -> None:
    """Out of the Hub come the bytes that come out of the same folder here."""
    hub.add("org/net", folder(tmp_path / "net"))
    run("random-structured", tmp_path / "net", *PRUNE, "-o", tmp_path / "here")

    done = run("random-structured", "hf://org/net", *PRUNE, "-o", tmp_path / "there")

    assert done.code == 0, done.err
    here, there = read(tmp_path / "here"), read(tmp_path / "there")
    assert here.keys() == there.keys()
    assert here["model.safetensors"] == there["model.safetensors"]


def test_a_bare_name_is_a_model_unless_there_is_such_a_path(
    run: Run, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """org/net is looked for here first."""
    files = folder(tmp_path / "model")
    hub.add("org/net", files)
    monkeypatch.chdir(tmp_path)

    there = run("inspect", "org/net", "--json")
    asked = len(hub.requests)
    (tmp_path / "model").rename(tmp_path / "net")
    (tmp_path / "org").mkdir()
    (tmp_path / "net").rename(tmp_path / "org" / "net")
    here = run("inspect", "org/net", "--json")

    assert (there.code, here.code) == (0, 0), there.err
    assert json.loads(there.out)["parameters"] == json.loads(here.out)["parameters"]
    assert len(hub.requests) == asked


def test_the_commit_is_looked_up_once_and_reported(run: Run, hub: Hub, tmp_path: Path) -> None:
    """A branch that moves during the run changes nothing."""
    files = folder(tmp_path / "net")
    model = hub.add("org/net", files)
    first = model.branches["main"]

    def move(_method: str, path: str) -> None:
        if "/resolve/" in path and model.branches["main"] == first:
            model.commit({**files, "model.safetensors": b"\0" * 1000})

    hub.faults.append(move)
    done = run("random-structured", "org/net", *PRUNE, "-o", tmp_path / "out")

    assert done.code == 0, done.err
    report = json.loads((tmp_path / "out" / "prune-report.json").read_text())
    assert report["input"]["path"] == "org/net"
    assert report["input"]["revision"] == first
    assert len(hub.asked("GET /api/models/org/net$")) == 1
    assert all(f"/{first}/" in asked.path for asked in hub.asked("/(resolve|cdn)/"))


@pytest.mark.parametrize("revision", ["v1", "refs/pr/1", "feature%2Fone"])
def test_a_revision_is_named_after_the_model(
    run: Run, hub: Hub, tmp_path: Path, revision: str
) -> None:
    """A branch, a pull request, or a name with a slash."""
    files = folder(tmp_path / "net")
    model = hub.add("org/net", {"README.md": b"empty"})
    commit = model.commit(files, revision.replace("%2F", "/"))

    done = run("random-structured", f"hf://org/net@{revision}", *PRUNE, "-n", "-r", tmp_path / "r")

    assert done.code == 0, done.err
    assert json.loads((tmp_path / "r").read_text())["input"]["revision"] == commit


@pytest.mark.parametrize(
    "command",
    [("inspect",), ("random-structured", "-a", "0.5", "-d", "0", "-n")],
    ids=["inspect", "dry run"],
)
def test_a_look_costs_the_headers(
    run: Run, hub: Hub, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """Of 16 MB of weights less than a tenth is fetched."""
    content = {f"{n}.weight": build.random_bits("F32", 1000, 1000, seed=n) for n in range(4)}
    build.safetensors(tmp_path / "model.safetensors", content)
    hub.add("org/net", {"model.safetensors": (tmp_path / "model.safetensors").read_bytes()})

    done = run(*command, "org/net")

    assert done.code == 0, done.err
    assert hub.sent < 1_600_000


def test_a_file_of_a_model_is_a_checkpoint(run: Run, hub: Hub, tmp_path: Path) -> None:
    """The output is here, and called like the file."""
    hub.add("org/net", folder(tmp_path / "net"))

    done = run(
        "random-structured",
        "hf://org/net/model.safetensors",
        *PRUNE,
        "-o",
        tmp_path / "o.safetensors",
    )

    assert done.code == 0, done.err
    report = json.loads((tmp_path / "o.report.json").read_text())
    assert report["input"]["path"] == "org/net/model.safetensors"


def test_the_default_output_is_here(
    run: Run, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not beside the model, which is somebody else's."""
    hub.add("org/net", folder(tmp_path / "model"))
    monkeypatch.chdir(tmp_path)

    done = run("random-structured", "hf://org/net", *PRUNE)

    assert done.code == 0, done.err
    assert (tmp_path / "net.pruned" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("org/none", "hf://org/none (there is no such path here) cannot be read: the Hub has no"),
        ("org/private", "the Hub has no such model, or it is private"),
        ("org/gated", "the model is gated: ask for access on its page"),
        ("hf://org/net@v9", "the model has no revision 'v9'"),
        ("hf://org/net/none.safetensors", "there is no such"),
        ("hf://datasets/org/net", "names no model"),
        ("hf://net", "names no model"),
    ],
)
def test_what_cannot_be_had_is_one_clear_line(
    run: Run, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    """A model that is not there, not for everybody, or not at that revision."""
    monkeypatch.setenv("HF_TOKEN", READER)
    files = folder(tmp_path / "net")
    hub.add("org/net", files)
    hub.add("org/private", files, private=True)
    hub.add("org/gated", files, gated=True)

    done = run("inspect", name)

    assert done.code == 3
    assert reason in done.text
    assert len(done.err.strip().splitlines()) <= 2  # one line, broken by a narrow terminal


@pytest.mark.parametrize("status", [500, 429])
def test_a_hub_that_is_busy_for_a_while_is_asked_again(
    run: Run, hub: Hub, tmp_path: Path, status: int
) -> None:
    """Each address fails once."""
    hub.add("org/net", folder(tmp_path / "net"))
    seen: set[str] = set()

    def once(_method: str, path: str) -> int | None:
        is_new = path not in seen and "/cdn/" in path
        seen.add(path)
        return status if is_new else None

    hub.faults.append(once)

    done = run("inspect", "org/net")

    assert done.code == 0, done.err
    assert any(asked.status == status for asked in hub.requests)


# --- the local cache -------------------------------------------------------------------------


def test_files_in_the_local_cache_are_not_fetched(run: Run, hub: Hub, tmp_path: Path) -> None:
    """What was downloaded of that commit, all or a part of it, is read from there."""
    hub.add("org/net", folder(tmp_path / "net"))
    hf_hub_download("org/net", "model.safetensors")
    asked = len(hub.requests)

    done = run("random-structured", "org/net", *PRUNE, "-o", tmp_path / "out")

    assert done.code == 0, done.err
    fetched = [request.path for request in hub.requests[asked:] if "/resolve/" in request.path]
    assert fetched
    assert not any("model.safetensors" in path for path in fetched)


def test_offline_the_local_cache_is_the_hub(
    run: Run, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With HF_HUB_OFFLINE, without a request, and with the same report."""
    hub.add("org/net", folder(tmp_path / "net"))
    run("random-structured", "org/net", *PRUNE, "-o", tmp_path / "online")
    snapshot_download("org/net")
    asked = len(hub.requests)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    done = run("random-structured", "org/net", *PRUNE, "-o", tmp_path / "offline")
    other = run("inspect", "org/other")

    assert done.code == 0, done.err
    online, offline = read(tmp_path / "online"), read(tmp_path / "offline")
    assert online.pop("prune-report.json").replace(b"online", b"offline") == offline.pop(
        "prune-report.json"
    )
    assert online["model.safetensors"] == offline["model.safetensors"]
    assert len(hub.requests) == asked
    assert other.code == 3
    assert "is not in the local cache, and HF_HUB_OFFLINE is set" in other.text


def test_a_folder_of_the_cache_is_known_by_its_name(run: Run, hub: Hub, tmp_path: Path) -> None:
    """The report says which model it is, and at which commit."""
    model = hub.add("org/net", folder(tmp_path / "net"))
    place = snapshot_download("org/net")

    done = run("random-structured", place, *PRUNE, "-n", "-r", tmp_path / "report")

    assert done.code == 0, done.err
    told = json.loads((tmp_path / "report").read_text())["input"]
    assert (told["path"], told["revision"]) == ("org/net", model.branches["main"])


# --- writing ---------------------------------------------------------------------------------


def test_the_output_is_one_commit(run: Run, hub: Hub, tmp_path: Path) -> None:
    """It has the files of a local run; the model is made, and its weights went by Git LFS."""
    folder(tmp_path / "net", shards=2)
    run("random-structured", tmp_path / "net", *PRUNE, "-o", tmp_path / "here" / "net-pruned")

    done = run("random-structured", tmp_path / "net", *PRUNE, "-o", "hf://me/net-pruned")

    assert done.code == 0, done.err
    model = hub.repositories["me/net-pruned"]
    here = read(tmp_path / "here" / "net-pruned")
    assert {**model.head.files, ".gitattributes": b""} == {**here, ".gitattributes": b""}
    assert len(hub.asked("POST /api/models/me/net-pruned/commit/main")) == 1
    assert len(model.commits) == 2
    assert len(hub.asked("PUT /upload/")) >= 2
    assert "channels in 1 tensor set to zero, drawn at random" in model.head.message


def test_what_was_written_can_be_verified_there(run: Run, hub: Hub, tmp_path: Path) -> None:
    """Both the output and its source are on the Hub."""
    hub.add("org/net", folder(tmp_path / "net", shards=2))
    run("random-structured", "org/net", *PRUNE, "-o", "hf://me/net-pruned")

    done = run("verify", "hf://me/net-pruned", "org/net")

    assert done.code == 0, done.err


def test_a_file_goes_into_a_model_with_its_report_and_card(
    run: Run, hub: Hub, tmp_path: Path
) -> None:
    """In one commit; what else is there stays."""
    source = build.safetensors(tmp_path / "net.safetensors", build.tensors())
    model = hub.add("me/nets", {"notes.txt": b"mine", "README.md": b"# My nets\n"})

    done = run("random-structured", source, *PRUNE, "-o", "hf://me/nets/half/net.safetensors")

    assert done.code == 0, done.err
    assert model.head.files.keys() == {
        "notes.txt",
        "README.md",
        "half/README.md",
        "half/net.safetensors",
        "half/net.report.json",
    }
    assert len(hub.asked("POST .*/commit/")) == 1


def test_a_run_that_was_done_is_resumed_in_no_time(run: Run, hub: Hub, tmp_path: Path) -> None:
    """Nothing is uploaded; the output of other options is not taken for it."""
    folder(tmp_path / "net")
    command = ("random-structured", tmp_path / "net", *PRUNE, "-o", "hf://me/net", "--resume")
    first = run(*command)
    asked = len(hub.asked("preupload"))

    again = run(*command)
    other = run(*command, "--seed", "3")

    assert (first.code, again.code, other.code) == (0, 0, 6), first.err + again.err
    assert len(hub.asked("preupload")) == asked
    assert "hf://me/net holds the output of another run" in other.text


def test_a_model_of_somebody_else_is_not_resumed(run: Run, hub: Hub, tmp_path: Path) -> None:
    """It has no report, so it is no output of this run."""
    files = folder(tmp_path / "net")
    model = hub.add("me/net", files)

    done = run("random-structured", tmp_path / "net", *PRUNE, "-o", "hf://me/net", "--resume")

    assert done.code == 6
    assert "holds the output of another run" in done.text
    assert model.head.files == files


def test_a_report_alone_is_a_commit_of_its_own(run: Run, hub: Hub, tmp_path: Path) -> None:
    """Of a dry run, or of an output that goes elsewhere."""
    folder(tmp_path / "net")
    command = ("random-structured", tmp_path / "net", *PRUNE)

    dry = run(*command, "-n", "-r", "hf://me/reports/dry.json")
    again = run(*command, "-n", "-r", "hf://me/reports/dry.json")
    whole = run(*command, "-o", tmp_path / "out", "-r", "hf://me/reports/half/run.json")
    shown = run("report", "hf://me/reports/half/run.json")

    assert (dry.code, again.code, whole.code, shown.code) == (0, 6, 0, 0), dry.err + whole.err
    assert "hf://me/reports/dry.json exists; --force replaces it" in again.text
    assert {"dry.json", "half/run.json"} < hub.repositories["me/reports"].head.files.keys()


def test_weights_that_are_there_are_replaced_by_force_only(
    run: Run, hub: Hub, tmp_path: Path
) -> None:
    """Then the old shards and their index go in the same commit, and the user's card stays."""
    folder(tmp_path / "net")
    old = folder(tmp_path / "old", shards=2, card=b"---\nlicense: mit\n---\n# Mine\n")
    model = hub.add("me/net", {**old, "notes.txt": b"mine"})
    command = ("random-structured", tmp_path / "net", *PRUNE, "-o", "hf://me/net")

    refused = run(*command)
    forced = run(*command, "--force")

    assert refused.code == 6
    assert "hf://me/net holds model" in refused.text
    assert "--force replaces the checkpoint in it" in refused.text
    assert forced.code == 0, forced.err
    gone = {name for name in old if "model" in name}
    made = {"model.safetensors", "prune-report.json", "notes.txt"}
    assert model.head.files.keys() == old.keys() - gone | made
    card = model.head.files["README.md"].decode()
    assert "license: mit" in card
    assert "# Mine" in card
    assert "pipeline_tag: image-classification" in card
    assert len(model.commits) == 2


def test_a_commit_that_lost_a_race_is_an_error(run: Run, hub: Hub, tmp_path: Path) -> None:
    """Somebody else's commit, made while ours was prepared, stays as it is."""
    folder(tmp_path / "net")
    model = hub.add("me/net", {"notes.txt": b"before"})

    def race(found: Repository) -> None:
        if len(found.commits) == 1:
            found.commit({"notes.txt": b"theirs"})

    hub.before_commit = race

    done = run("random-structured", tmp_path / "net", *PRUNE, "-o", "hf://me/net")

    assert done.code == 6
    assert "was changed by somebody else while this ran, so that nothing was written" in done.text
    assert model.head.files == {"notes.txt": b"theirs"}


@pytest.mark.parametrize("fault", ["lost", "refused"])
def test_a_commit_without_an_answer_is_made_once(
    run: Run, hub: Hub, tmp_path: Path, fault: str
) -> None:
    """Whether the Hub had made it or not when the connection broke."""
    folder(tmp_path / "net")
    model = hub.add("me/net", {})
    refusals = iter([503])
    if fault == "lost":
        hub.lost_answers = 1
    else:
        hub.faults.append(lambda _, path: next(refusals, None) if "/commit/" in path else None)

    done = run("random-structured", tmp_path / "net", *PRUNE, "-o", "hf://me/net")

    assert done.code == 0, done.err
    assert len(model.commits) == 2
    assert "model.safetensors" in model.head.files


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ("hf_expired", "the Hub refuses it (401)"),
        (READER, "the Hub refuses it (403)"),
        ("", "the Hub"),
    ],
    ids=["no login", "no right", "not logged in"],
)
def test_who_may_not_write_is_told_so_before_weights_flow(
    run: Run, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str, reason: str
) -> None:
    """The first thing that is sent is small."""
    monkeypatch.setenv("HF_TOKEN", token)
    folder(tmp_path / "net")
    model = hub.add("me/net", {"notes.txt": b"mine"})

    done = run("random-structured", tmp_path / "net", *PRUNE, "-o", "hf://me/net")

    assert done.code == 6
    assert "hf://me/net cannot be written" in done.text
    assert reason in done.text
    assert "HF_TOKEN" in done.text
    assert not hub.asked("PUT /upload/")
    assert len(model.commits) == 1


def test_untouched_shards_are_copied_by_the_hub(run: Run, hub: Hub, tmp_path: Path) -> None:
    """From another model, and from the model itself; their bytes flow nowhere."""
    files = folder(tmp_path / "net", shards=2)
    model = hub.add("org/net", files)
    model.commit({"README.md": b""}, "half")

    other = run("random-structured", "org/net", *PRUNE, "-o", "hf://me/net")
    same = run("random-structured", "org/net", *PRUNE, "-o", "hf://org/net@half")

    assert (other.code, same.code) == (0, 0), other.err + same.err
    untouched = "model-00002-of-00002.safetensors"
    for written in (hub.repositories["me/net"].head, model.find("half")):
        assert written is not None
        assert written.files[untouched] == files[untouched]
    assert len(hub.asked("PUT /upload/")) == 2  # the shard with fc, once for each model
    assert len(hub.asked("POST .*/commit/")) == 2


def test_what_the_hub_cannot_copy_is_uploaded(run: Run, hub: Hub, tmp_path: Path) -> None:
    """Two storage regions, or an older Hub."""
    files = folder(tmp_path / "net", shards=2)
    hub.add("org/net", files)
    hub.has_copies = False

    done = run("random-structured", "org/net", *PRUNE, "-o", "hf://me/net")

    assert done.code == 0, done.err
    untouched = "model-00002-of-00002.safetensors"
    written = hub.repositories["me/net"]
    assert written.head.files[untouched] == files[untouched]
    assert len(written.commits) == 2


def test_a_run_that_fails_leaves_nothing_to_be_seen(run: Run, hub: Hub, tmp_path: Path) -> None:
    """And the next one uploads again only what is not there."""
    folder(tmp_path / "net", shards=2)
    model = hub.add("me/net", {"notes.txt": b"mine"})
    hub.faults.append(lambda _method, path: 400 if "/commit/" in path else None)
    command = ("random-structured", tmp_path / "net", *PRUNE, "-o", "hf://me/net")

    failed = run(*command)
    uploads = len(hub.asked("PUT /upload/"))
    hub.faults.clear()
    again = run(*command)

    assert failed.code == 6
    assert len(failed.text) < 300
    assert again.code == 0, again.err
    assert len(hub.asked("PUT /upload/")) == uploads
    assert "model.safetensors.index.json" in model.head.files


@pytest.mark.parametrize(
    ("output", "code", "reason"),
    [
        ("hf://org/net", 6, "is in the input; choose another model, or a branch"),
        ("hf://org/net@none", 6, "has no revision 'none'"),
        ("hf://me/new@draft", 6, "no such model"),
        ("hf://me/ignoring", 6, "the model's .gitignore names it"),
        ("hf://only", 3, "names no model"),
    ],
)
def test_outputs_that_cannot_be(
    run: Run, hub: Hub, tmp_path: Path, output: str, code: int, reason: str
) -> None:
    """Each is refused in one line, and nothing is written."""
    hub.add("org/net", folder(tmp_path / "net"))
    hub.add("me/ignoring", {}, ignored=("model.safetensors",))

    done = run("random-structured", "org/net", *PRUNE, "-o", output)

    assert done.code == code
    assert reason in done.text
    assert not hub.asked("POST .*/commit/")


def test_a_process_finds_the_hub_by_its_variables(hub: Hub, tmp_path: Path) -> None:
    """HF_ENDPOINT and HF_TOKEN are all it needs; stderr has no progress of the client."""
    hub.add("org/net", folder(tmp_path / "net"), private=True)
    command = [sys.executable, "-m", "prune_cli", "random-structured", "org/net", *PRUNE]

    done = subprocess.run(
        [*command, "-o", "hf://me/net", "-q"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "model.safetensors" in hub.repositories["me/net"].head.files
