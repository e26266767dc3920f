"""A stand-in for the Hugging Face Hub, after its documented endpoints, for the real huggingface_hub.

Models, revisions, trees in pages, files by ranges (large ones through a redirect to another host's
path, as a CDN has it), who may see what, uploads by Git LFS in one part or several, and commits as
NDJSON. What it was asked is in `HubServer.requests`; what is to go wrong is in `HubServer.faults`.

See also: http_server.py, a server of plain files that breaks HTTP itself.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml

PAGE = 3
"""Entries of a tree in one answer; the Hub's are 1,000."""

PART = 1 << 16
"""Bytes of one part of an upload; larger files come in several."""

LARGE = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
"""What Git LFS has, by the .gitattributes of a new repository."""

MEMBER = "hf_member"
"""A token that may see what is private, has been let in where it is gated, and may write."""

READER = "hf_reader"
"""A token that may see what everybody sees, and write nothing."""

Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Commit:
    """A state of a repository: its files, by their paths."""

    oid: str
    files: Files
    message: str = ""


@dataclass
class Repository:
    """A model: its commits, its branches, and the large files that were uploaded to it."""

    name: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    """What its .gitignore names."""

    def commit(self, files: Files, branch: str = "main", message: str = "") -> str:
        """Put a commit of exactly `files` on top of `branch`, and return its id."""
        parent = self.branches.get(branch, "")
        facts = repr((self.name, parent, sorted(files.items()), message))
        oid = hashlib.sha1(facts.encode()).hexdigest()
        self.commits[oid] = Commit(oid, dict(files), message)
        self.branches[branch] = oid
        return oid

    def find(self, revision: str) -> Commit | None:
        """Return the commit that a branch, or an id, stands for."""
        return self.commits.get(self.branches.get(revision, revision))

    @property
    def head(self) -> Commit:
        """The last commit of main."""
        return self.commits[self.branches["main"]]


@dataclass(frozen=True)
class Asked:
    """One request, and what was answered."""

    method: str
    path: str
    status: int
    sent: int


@dataclass
class Hub:
    """All that the server knows."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[Asked] = field(default_factory=list)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    faults: list[Callable[[str, str], int | None]] = field(default_factory=list)
    before_commit: Callable[[Repository], None] | None = None
    lost_answers: int = 0
    """To so many commits the answer is lost, though they are made."""
    has_copies: bool = True
    """Whether it can copy large files from another repository."""

    def add(self, name: str, files: Files, **facts: Any) -> Repository:
        """Make a repository with one commit."""
        made = self.repositories[name] = Repository(name, **facts)
        made.commit(files)
        return made

    def asked(self, pattern: str) -> list[Asked]:
        """Return the requests whose method and path match `pattern`."""
        return [
            asked for asked in self.requests if re.search(pattern, f"{asked.method} {asked.path}")
        ]

    @property
    def sent(self) -> int:
        """The bytes of all answers."""
        return sum(asked.sent for asked in self.requests)


class HubError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str = "", message: str = "", **facts: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code
        self.facts = {"error": message, **facts}


def is_large(path: str) -> bool:
    """Whether Git LFS has a file."""
    return path.endswith(LARGE)


@lru_cache(1000)
def sha256(content: bytes) -> str:
    """What Git LFS calls a file; found once, for every range of it is asked for by it."""
    return hashlib.sha256(content).hexdigest()


def blob_id(content: bytes) -> str:
    """What git calls a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def handle_any(self) -> None:
        """Answer one request."""
        url = urlsplit(self.path)
        path, query = url.path, {key: value[0] for key, value in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            for fault in self.hub.faults:
                status = fault(self.command, path)
                if status:
                    raise HubError(status)
            for method, pattern, answer in _ROUTES:
                found = re.fullmatch(pattern, path)
                if found and method == self.command:
                    answer(self, *map(unquote, found.groups(default="")), query=query, body=body)
                    return
            raise HubError(404)
        except HubError as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": str(error)}
            self.answer(json.dumps(error.facts).encode(), status=error.status, headers=headers)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815 - http.server's names

    def answer(
        self, content: bytes, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send an answer, and note it."""
        sent = 0 if self.command == "HEAD" else len(content)
        self.hub.requests.append(Asked(self.command, self.path, status, sent))
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if sent:
            self.wfile.write(content)

    def answer_json(self, facts: object, headers: Mapping[str, str] | None = None) -> None:
        """Send JSON."""
        named = {"Content-Type": "application/json", **(headers or {})}
        self.answer(json.dumps(facts).encode(), headers=named)

    @property
    def root(self) -> str:
        """Where the server is."""
        return f"http://{self.headers['Host']}"

    @property
    def token(self) -> str:
        """The token of the request."""
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    # --- who may what ------------------------------------------------------------------------

    def repository(self, name: str) -> Repository:
        """Return a repository that the caller may know of; to others it is as if it were not."""
        if self.token not in ("", MEMBER, READER):
            raise HubError(401, "", "Invalid credentials in Authorization header")
        found = self.hub.repositories.get(name)
        if found is None or (found.private and self.token != MEMBER):
            if not self.token:
                raise HubError(401, "RepoNotFound", "Invalid username or password.")
            raise HubError(404, "RepoNotFound", "Repository not found")
        return found

    def readable(self, name: str) -> Repository:
        """Return a repository whose files the caller may read."""
        found = self.repository(name)
        if found.gated and self.token != MEMBER:
            status = 403 if self.token else 401
            raise HubError(status, "GatedRepo", f"Access to model {name} is restricted.")
        return found

    def writable(self, name: str) -> Repository:
        """Return a repository that the caller may write to."""
        found = self.repository(name)
        if self.token != MEMBER:
            raise HubError(403 if self.token else 401, "", "You don't have the rights to write.")
        return found

    def at(self, found: Repository, revision: str) -> Commit:
        """Return the commit of a revision."""
        commit = found.find(revision)
        if commit is None:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # --- reading -----------------------------------------------------------------------------

    def model(self, name: str, revision: str = "main", **_: object) -> None:
        """GET /api/models/NAME[/revision/REVISION]."""
        found = self.repository(name)
        commit = self.at(found, revision)
        self.answer_json(
            {
                "_id": "1",
                "id": name,
                "modelId": name,
                "sha": commit.oid,
                "private": found.private,
                "gated": "manual" if found.gated else False,
                "tags": [],
                "siblings": [{"rfilename": path} for path in sorted(commit.files)],
            }
        )

    def tree(
        self, name: str, revision: str, folder: str = "", *, query: Mapping[str, str], **_: object
    ) -> None:
        """GET /api/models/NAME/tree/REVISION[/FOLDER], in pages."""
        commit = self.at(self.repository(name), revision)
        recursive = query.get("recursive", "").lower() == "true"
        entries = list(_entries(commit, folder, recursive=recursive))
        if not entries and folder:
            raise HubError(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        start = int(query.get("cursor", "0"))
        more = start + PAGE < len(entries)
        after = f"{self.root}{urlsplit(self.path).path}?recursive={recursive}&cursor={start + PAGE}"
        self.answer_json(
            entries[start : start + PAGE], {"Link": f'<{after}>; rel="next"'} if more else {}
        )

    def paths_info(self, name: str, revision: str, *, body: bytes, **_: object) -> None:
        """POST /api/models/NAME/paths-info/REVISION."""
        commit = self.at(self.repository(name), revision)
        wanted = parse_qs(body.decode())["paths"]
        self.answer_json(
            [entry for entry in _entries(commit, "", recursive=True) if entry["path"] in wanted]
        )

    def resolve(self, name: str, revision: str, path: str, **_: object) -> None:
        """GET or HEAD /NAME/resolve/REVISION/PATH: a file, or where it is."""
        commit = self.at(self.readable(name), revision)
        content = commit.files.get(path)
        if content is None:
            raise HubError(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if not is_large(path):
            self._ranged(content, {**headers, "ETag": f'"{blob_id(content)}"'})
            return
        oid = sha256(content)
        headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{oid}"'}
        cdn = self.root.replace("127.0.0.1", "localhost")
        where = f"{cdn}/cdn/{quote(name, safe='')}/{commit.oid}/{quote(path)}"
        self.answer(b"", 302, {**headers, "Location": where})

    def cdn(self, name: str, oid: str, path: str, **_: object) -> None:
        """GET a large file from where it is."""
        content = self.hub.repositories[name].commits[oid].files[path]
        self._ranged(content, {"ETag": f'"{sha256(content)}"'})

    def _ranged(self, content: bytes, headers: Mapping[str, str]) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            self.answer(content, headers=headers)
            return
        start, stop = int(wanted[1]), min(int(wanted[2] or len(content)) + 1, len(content))
        if start >= len(content):
            self.answer(b"", 416, {"Content-Range": f"bytes */{len(content)}"})
            return
        told = f"bytes {start}-{stop - 1}/{len(content)}"
        self.answer(content[start:stop], 206, {**headers, "Content-Range": told})

    # --- writing -----------------------------------------------------------------------------

    def create(self, *, body: bytes, **_: object) -> None:
        """POST /api/repos/create."""
        facts = json.loads(body)
        name = "/".join(filter(None, (facts.get("organization"), facts["name"])))
        if self.token != MEMBER:
            raise HubError(
                403 if self.token else 401, "", "You don't have the rights to create it."
            )
        if name in self.hub.repositories:
            raise HubError(409, "", "You already created this", url=f"{self.root}/{name}")
        self.hub.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.answer_json({"url": f"{self.root}/{name}", "name": name, "id": "1"})

    def validate(self, *, body: bytes, **_: object) -> None:
        """POST /api/validate-yaml: whether a card's front matter is YAML that the Hub takes."""
        errors = list(_card_errors(json.loads(body)["content"]))
        facts = {"errors": [{"message": error} for error in errors], "warnings": []}
        content = json.dumps(facts).encode()
        self.answer(content, 400 if errors else 200, {"Content-Type": "application/json"})

    def preupload(self, name: str, revision: str, *, body: bytes, **_: object) -> None:
        """POST /api/models/NAME/preupload/REVISION: which files go to Git LFS."""
        found = self.writable(name)
        files = self.at(found, revision).files
        self.answer_json(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if is_large(file["path"]) else "regular",
                        "shouldIgnore": file["path"] in found.ignored,
                        "oid": _stored_id(files, file["path"]),
                    }
                    for file in json.loads(body)["files"]
                ]
            }
        )

    def batch(self, name: str, *, body: bytes, **_: object) -> None:
        """POST /NAME.git/info/lfs/objects/batch: where each large file is to be put."""
        found = self.writable(name)
        objects = [
            self._upload(found, entry["oid"], entry["size"])
            for entry in json.loads(body)["objects"]
        ]
        self.answer_json({"transfer": "basic", "objects": objects})

    def _upload(self, found: Repository, oid: str, size: int) -> dict[str, Any]:
        facts: dict[str, Any] = {"oid": oid, "size": size}
        if oid in found.large:
            return facts
        place = f"{self.root}/upload/{quote(found.name, safe='')}/{oid}"
        upload: dict[str, Any] = {"href": f"{place}/1"}
        if size > PART:
            count = -(-size // PART)
            numbered = {str(number): f"{place}/{number}" for number in range(1, count + 1)}
            upload = {"href": f"{place}/complete", "header": {"chunk_size": str(PART), **numbered}}
        verify = {"href": f"{self.root}/verify/{quote(found.name, safe='')}"}
        return {**facts, "actions": {"upload": upload, "verify": verify}}

    def put(self, name: str, oid: str, part: str, *, body: bytes, **_: object) -> None:
        """PUT one part of a large file."""
        self.hub.parts.setdefault(f"{name}:{oid}", {})[int(part)] = body
        self.answer(b"", headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'})

    def complete(self, name: str, oid: str, *, body: bytes, **_: object) -> None:
        """POST which parts a large file has."""
        told = [part["partNumber"] for part in json.loads(body)["parts"]]
        if told != sorted(self.hub.parts[f"{name}:{oid}"]):
            raise HubError(400, "", "parts are missing")
        self.answer_json({})

    def verify(self, name: str, *, body: bytes, **_: object) -> None:
        """POST that a large file is there; its bytes are checked."""
        facts = json.loads(body)
        parts = self.hub.parts.pop(f"{name}:{facts['oid']}", {})
        content = b"".join(parts[number] for number in sorted(parts))
        if sha256(content) != facts["oid"] or len(content) != facts["size"]:
            raise HubError(400, "", "the file is not what it should be")
        self.hub.repositories[name].large[facts["oid"]] = content
        self.answer_json({})

    def duplicate(self, name: str, *, body: bytes, **_: object) -> None:
        """POST /api/models/NAME/lfs-files/duplicate: large files for another repository."""
        facts = json.loads(body)
        if not self.hub.has_copies:
            raise HubError(400, "", "the repositories are in different storage regions")
        source, target = self.readable(name), self.writable(facts["target"]["name"])
        wanted = {file["sha256"] for file in facts["files"]}
        target.large |= {oid: blob for oid, blob in _large(source).items() if oid in wanted}
        self.answer_json({"failed": []})

    def commit(self, name: str, revision: str, *, body: bytes, **_: object) -> None:
        """POST /api/models/NAME/commit/REVISION: NDJSON, all of it or nothing."""
        found = self.writable(name)
        if self.hub.before_commit:
            self.hub.before_commit(found)
        self.at(found, revision)
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        parent = header.get("parentCommit")
        if parent and parent != found.branches[revision]:
            raise HubError(412, "", "A commit has happened since. Please refresh and try again.")
        files = dict(self.at(found, revision).files)
        for line in lines[1:]:
            _apply(found, files, line["key"], line["value"])
        oid = found.commit(files, revision, header["summary"])
        if self.hub.lost_answers:
            self.hub.lost_answers -= 1
            raise HubError(504, "", "Gateway Time-out")
        self.answer_json(
            {"success": True, "commitOid": oid, "commitUrl": f"{self.root}/{name}/commit/{oid}"}
        )


def _entries(commit: Commit, folder: str, *, recursive: bool) -> Iterator[dict[str, Any]]:
    below = f"{folder}/" if folder else ""
    folders = set()
    for path, content in sorted(commit.files.items()):
        if not path.startswith(below):
            continue
        parts = path[len(below) :].split("/")
        for depth in range(1, len(parts)):
            above = below + "/".join(parts[:depth])
            if above not in folders and (recursive or depth == 1):
                folders.add(above)
                yield {
                    "type": "directory",
                    "path": above,
                    "size": 0,
                    "oid": blob_id(above.encode()),
                }
        if recursive or len(parts) == 1:
            yield _file_entry(path, content)


def _file_entry(path: str, content: bytes) -> dict[str, Any]:
    facts = {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
    if not is_large(path):
        return facts
    oid = sha256(content)
    lfs = {"oid": oid, "size": len(content), "pointerSize": 134}
    return {**facts, "oid": blob_id(oid.encode()), "lfs": lfs, "xetHash": oid}


def _stored_id(files: Files, path: str) -> str | None:
    if path not in files:
        return None
    content = files[path]
    return sha256(content) if is_large(path) else blob_id(content)


def _large(found: Repository) -> dict[str, bytes]:
    committed = (
        content
        for commit in found.commits.values()
        for path, content in commit.files.items()
        if is_large(path)
    )
    return found.large | {sha256(content): content for content in committed}


def _apply(found: Repository, files: dict[str, bytes], key: str, value: Mapping[str, Any]) -> None:
    path = value["path"]
    if key == "file":
        files[path] = base64.b64decode(value["content"])
    elif key == "lfsFile":
        if value["oid"] not in _large(found):
            raise HubError(400, "", f"{path} was not uploaded")
        files[path] = _large(found)[value["oid"]]
    elif key == "deletedFile":
        if path not in files:
            raise HubError(404, "EntryNotFound", "A file with this name doesn't exist")
        del files[path]
    else:
        raise HubError(400, "", f"no operation is called {key}")


def _card_errors(card: str) -> Iterator[str]:
    found = re.match(r"---\r?\n(.*?)\r?\n---", card, re.DOTALL)
    try:
        facts = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError as error:
        yield f"not YAML: {error}"
        return
    base = (facts or {}).get("base_model")
    for name in [base] if isinstance(base, str) else base or []:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            yield f'"base_model" with value "{name}" is not valid: use a model id'
    if not isinstance((facts or {}).get("tags", []), list):
        yield '"tags" must be an array'


_NAME = "([^/]+/[^/]+?)"
_ROUTES: list[tuple[str, str, Any]] = [
    ("GET", f"/api/models/{_NAME}", _Handler.model),
    ("GET", f"/api/models/{_NAME}/revision/([^/]+)", _Handler.model),
    ("GET", f"/api/models/{_NAME}/tree/([^/]+)(?:/(.+))?", _Handler.tree),
    ("POST", f"/api/models/{_NAME}/paths-info/([^/]+)", _Handler.paths_info),
    ("POST", f"/api/models/{_NAME}/preupload/([^/]+)", _Handler.preupload),
    ("POST", f"/api/models/{_NAME}/commit/([^/]+)", _Handler.commit),
    ("POST", f"/api/models/{_NAME}/lfs-files/duplicate", _Handler.duplicate),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    ("GET", f"/{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
    ("HEAD", f"/{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
    ("GET", "/cdn/([^/]+)/([^/]+)/(.+)", _Handler.cdn),
    ("HEAD", "/cdn/([^/]+)/([^/]+)/(.+)", _Handler.cdn),
    ("PUT", r"/upload/([^/]+)/([^/]+)/(\d+)", _Handler.put),
    ("POST", "/upload/([^/]+)/([^/]+)/complete", _Handler.complete),
    ("POST", "/verify/([^/]+)", _Handler.verify),
]


class _Server(ThreadingHTTPServer):
    """One that says nothing when a client goes away."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class HubServer:
    """A server that runs, and what it knows."""

    url: str
    hub: Hub


@contextmanager
def serve_hub() -> Iterator[HubServer]:
    """Run a Hub without repositories on a free port."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield HubServer(f"http://127.0.0.1:{server.server_address[1]}", hub)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
