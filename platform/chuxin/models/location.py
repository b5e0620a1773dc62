"""Where a model stands: a local directory, a URI (copied here once a process), a hub name, or inside this package."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HFValidationError

from chuxin.errors import InputError
from chuxin.files import filesystem

# What no loader here reads; the list FlagEmbedding 1.4.2 skips, plus the exports of other runtimes.
IGNORED = ["flax_model.msgpack", "rust_model.ot", "tf_model.h5", "*.onnx", "onnx/*", "openvino/*", "imgs/*"]


PACKAGE = "package:"
"""Prefix of what ships with this package: "package:sample/models/llm" is that folder below chuxin/, on any node."""


def packaged(path: str) -> str:
    """Returns the local path of a "package:…" reference; any other path as it is."""
    if not path.startswith(PACKAGE):
        return path
    return os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), path.removeprefix(PACKAGE))


_REMEDY = "Give a directory, or a hub name like BAAI/bge-m3 with the network up and HF_HUB_OFFLINE unset"
# HF's and the network's errors derive from these.
_UNREACHED = (OSError, ValueError, HFValidationError)


def local_directory(path: str) -> str:
    """Returns a local directory with the model's files.

    Raises:
        InputError: There is no such directory, and it cannot be had as a URI or from the hub.
    """
    path = packaged(path)
    if os.path.isdir(path):
        return path
    if "://" in path:
        return _download(path)
    _require_name(path)
    try:
        return snapshot_download(path, ignore_patterns=IGNORED)
    except _UNREACHED as error:
        problem = f"there is no such model directory, and the hub does not give it ({type(error).__name__})"
        raise InputError(path, problem, _REMEDY) from error


def read_file(path: str, name: str) -> bytes:
    """Returns one file of a model; nothing else is fetched.

    Args:
        path: As for `local_directory`.
        name: The file's, below the model's directory.

    Raises:
        InputError: There is no such model, or it has no such file.
    """
    path = packaged(path)
    try:
        if os.path.isdir(path):
            return Path(path, name).read_bytes()
        if "://" in path:
            fs, remote = filesystem(path)
            return bytes(fs.cat_file(f"{remote.rstrip('/')}/{name}"))
        _require_name(path)
        return Path(hf_hub_download(path, name)).read_bytes()
    except _UNREACHED as error:
        raise InputError(path, f"its {name} cannot be had ({type(error).__name__})", _REMEDY) from error


def _require_name(path: str) -> None:
    """Refuses what is no directory and cannot be a hub's name either."""
    if path.count("/") != 1 or path.startswith(("/", ".", "~")) or path.endswith("/"):
        raise InputError(path, "there is no such model directory", _REMEDY)


@contextlib.contextmanager
def written_directory(path: str) -> Iterator[str]:
    """Gives a local directory to write into; for a URI its content is uploaded on a clean exit."""
    if "://" not in path:
        os.makedirs(path, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="chuxin-model-") as local:
        yield local
        fs, remote = filesystem(path)
        fs.put(local + "/", remote.rstrip("/") + "/", recursive=True)


@functools.lru_cache(maxsize=8)
def _download(uri: str) -> str:
    # Committed artifacts never change, so one copy a process is enough.
    fs, remote = filesystem(uri)
    if not fs.isdir(remote):
        raise InputError(uri, "there is no such model directory", "Give the URI of a committed model")
    local = tempfile.mkdtemp(prefix="chuxin-model-")
    atexit.register(shutil.rmtree, local, ignore_errors=True)
    fs.get(remote.rstrip("/") + "/", local + "/", recursive=True)
    return local
