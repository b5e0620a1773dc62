"""Files at a path or a URI, local or on an object store: opened, written whole or not at all, fetched once a machine.

Leaves out: rows of the sources' files (streams.py, records.py) and models (models/location.py).
"""

from __future__ import annotations

import json
import os
import posixpath
import shutil
import tempfile
import uuid
from typing import TYPE_CHECKING, Any

import fsspec
import xxhash
from fsspec.implementations.local import LocalFileSystem

from chuxin.errors import InputError

if TYPE_CHECKING:
    import pyarrow.parquet as pq


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Returns the file system of a path or URI and the path on it."""
    try:
        fs, path = fsspec.core.url_to_fs(uri)
    except ImportError as error:
        raise InputError(uri, str(error).splitlines()[0].rstrip("."), "Install that package in .venv") from error
    except ValueError as error:
        problem = str(error).lower().rstrip(".")
        raise InputError(uri, problem, "Give a path, or a URI such as s3://BUCKET/FOLDER") from error
    root = "/" if isinstance(fs, LocalFileSystem) else ""
    return fs, path.rstrip("/") or root


def is_local(uri: str) -> bool:
    """True for paths and file:// URIs."""
    return isinstance(filesystem(uri)[0], LocalFileSystem)


def write_json(uri: str, value: Any) -> None:
    """Writes a JSON file as `write_bytes` does."""
    write_bytes(uri, json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True).encode())


def write_bytes(uri: str, data: bytes) -> None:
    """Writes a file so that it is either whole or as it was, whatever is killed or loses its power.

    One that stands keeps its mode, and a link still leads to the same file.
    """
    fs, path = filesystem(uri)
    if not is_local(uri):
        fs.pipe_file(path, data)  # object stores put atomically
        return
    path = os.path.realpath(path)
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if os.path.exists(path):
        shutil.copymode(path, temporary)
    os.replace(temporary, path)
    held = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(held)  # the file's name too
    finally:
        os.close(held)


def read_json(uri: str) -> Any | None:
    """Returns a JSON file's value, or None where there is no such file."""
    fs, path = filesystem(uri)
    try:
        return json.loads(fs.cat_file(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def open_parquet(uri: str) -> pq.ParquetFile:
    """Opens a part; row groups can then be read one by one."""
    import pyarrow.parquet as pq  # configs import this module, and are to be light

    fs, path = filesystem(uri)
    return pq.ParquetFile(path if is_local(uri) else fs.open(path, "rb"))


def fetched(uri: str) -> str:
    """Returns the local path of a committed file or directory; from an object store it is copied once a machine.

    What is committed never changes and its attempt's name is its own, so the copy is good for every later process; it
    appears whole or not at all, however many processes ask for it at once.
    """
    fs, path = filesystem(uri)
    if is_local(uri):
        return path
    target = os.path.join(tempfile.gettempdir(), f"chuxin-{xxhash.xxh3_64_hexdigest(uri.encode())}")
    name = posixpath.basename(path)
    if not os.path.isdir(target):
        making = tempfile.mkdtemp(prefix="chuxin-fetching-")
        try:
            if fs.isdir(path):
                fs.get(f"{path}/", f"{making}/{name}/", recursive=True)
            else:
                fs.get_file(path, f"{making}/{name}")
            os.rename(making, target)
        except OSError:
            if not os.path.isdir(target):  # else another process was first
                raise
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return os.path.join(target, name)
