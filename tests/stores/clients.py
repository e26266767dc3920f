"""What a store holds, told by boto3, which knows nothing of ours; and runs of ours in processes."""

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from tests.stores.servers import BUCKET, KEY, SECRET, Server

_MODULES = ("prune_cli.cli.main", "prune_cli.cli.pipeline", "prune_cli.api", "fsspec", "s3fs")
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([*_MODULES, __name__])

State = dict[str, bytes]
"""Objects by their names in a folder, or files."""


def client(server: Server) -> Any:
    """Return boto3's client of a server."""
    return boto3.client(
        "s3",
        endpoint_url=server.url,
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
        config=Config(response_checksum_validation="when_required"),
    )


def state_of(server: Server, folder: str) -> State:
    """Return every object in a folder of the bucket."""
    s3 = client(server)
    found = s3.list_objects_v2(Bucket=BUCKET, Prefix=f"{folder}/").get("Contents", ())
    keys = [one["Key"] for one in found]
    return {
        key.removeprefix(f"{folder}/"): s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        for key in keys
    }


def files_in(folder: Path) -> State:
    """Return every file in a folder of this machine."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def put(server: Server, folder: str, content: State) -> None:
    """Make a folder of the bucket hold exactly that."""
    s3 = client(server)
    for name in state_of(server, folder).keys() - content.keys():
        s3.delete_object(Bucket=BUCKET, Key=f"{folder}/{name}")
    for name, some in content.items():
        s3.put_object(Bucket=BUCKET, Key=f"{folder}/{name}", Body=some)


def uploads(server: Server) -> list[str]:
    """Return the keys that uploads are under way to."""
    return [one["Key"] for one in _list_uploads(server)]


def abort_uploads(server: Server) -> None:
    """Abort all of them."""
    s3 = client(server)
    for one in _list_uploads(server):
        s3.abort_multipart_upload(Bucket=BUCKET, Key=one["Key"], UploadId=one["UploadId"])


def _list_uploads(server: Server) -> list[dict[str, Any]]:
    s3 = client(server)
    with contextlib.suppress(s3.exceptions.NoSuchUpload):  # so rclone says that there are none
        return list(s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads", ()))
    return []


def start(arguments: Sequence[object], environment: Mapping[str, str], said: Path) -> BaseProcess:
    """Start the command line in a process of its own; what it says goes to a file."""
    process = _context.Process(target=_run, args=([*map(str, arguments)], dict(environment), said))
    process.start()
    return process


def run(arguments: Sequence[object], environment: Mapping[str, str], said: Path) -> int:
    """Run the command line to its end, and return its exit code."""
    process = start(arguments, environment, said)
    process.join()
    return process.exitcode if process.exitcode is not None else -1


def _run(arguments: Sequence[str], environment: Mapping[str, str], said: Path) -> None:
    from prune_cli.cli import signals
    from prune_cli.cli.main import main

    signals.listen()
    os.environ.update(environment)
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    code = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
