"""What an input is that the recipe does not make: its files by name and content, a hub model by its name.

Local files are hashed once and remembered by size and time of change, in WORKSPACE/file-identities.json: a corpus of
a terabyte would otherwise be read again by every job. Leaves out: fingerprints of stages (runner.py).
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence
from typing import NamedTuple

import fsspec
import xxhash
from fsspec.implementations.local import LocalFileSystem

from chuxin.artifacts import open_artifact
from chuxin.errors import InputError
from chuxin.files import filesystem, read_json, write_json
from chuxin.models.location import packaged


class Identity(NamedTuple):
    """What a reference names."""

    name: str
    """The same for the same content, wherever it stands."""
    artifacts: tuple[str, ...]
    """URIs of the committed artifacts that its files stand in."""


class Identities:
    """Identities of a workspace's inputs.

    Args:
        workspace: Directory or URI where hashes are remembered.
    """

    def __init__(self, workspace: str) -> None:
        self._file = f"{workspace.rstrip('/')}/file-identities.json"
        try:
            self._known: dict[str, list] = read_json(self._file) or {}
        except ValueError:  # hashes that can be had again
            self._known = {}
        self._new = False

    def identify(self, ref: str, is_model: bool, where: str, stages: Sequence[str]) -> Identity:
        """Returns the identity of a path, glob, URI or hub model.

        Args:
            ref: The config's value.
            is_model: Whether it may be a hub name.
            where: Names the config's section in errors.
            stages: Earlier stages, named in errors.

        Raises:
            InputError: There is no such file, folder or model, or a file belongs to a stage that is not committed.
        """
        fs, root = filesystem(os.path.expanduser(packaged(ref)))
        if fsspec.core.has_magic(root):
            base = root[: min(root.find(c) for c in "*?[" if c in root)].rpartition("/")[0]
            found = [name for name in fs.glob(root) if fs.isfile(name)]
        elif fs.isdir(root):
            base, found = root, fs.find(root)
        else:
            base, found = root.rpartition("/")[0], [root] if fs.exists(root) else []
        if found:
            files = [(name.removeprefix(base).lstrip("/"), self._of_file(fs, name)) for name in sorted(found)]
            around = () if "::" in ref else _artifacts(fs, found)  # chained: no URI of an artifact
            return Identity(xxhash.xxh3_128_hexdigest(repr(files).encode()), around)
        is_hub_name = is_model and re.fullmatch(r"[\w.-]+/[\w.-]+", ref) and not ref.startswith(".")
        if is_hub_name and not os.path.isdir(ref.partition("/")[0]) and _may_load(ref):
            return Identity(f"hub:{ref}", ())
        kind = "model" if is_model else "file or folder"
        remedy = f"Give a path, or an earlier stage ({', '.join(stages) or 'none yet'})"
        raise InputError(f"{where}: {ref}", f"there is no such {kind}", remedy)

    def remember(self) -> None:
        """Writes new hashes to the workspace."""
        if self._new:
            write_json(self._file, self._known)
            self._new = False

    def _of_file(self, fs: fsspec.AbstractFileSystem, name: str) -> str:
        if not isinstance(fs, LocalFileSystem):
            info = fs.info(name)  # an object store's own checksum: the content is not fetched for it
            return repr(
                (info["size"], info.get("ETag") or info.get("etag") or info.get("md5Hash") or fs.checksum(name))
            )
        stat = os.stat(name)
        state, path = [stat.st_size, stat.st_mtime_ns, stat.st_ino], os.path.abspath(name)
        if self._known.get(path, [None])[:-1] == state:
            return self._known[path][-1]
        digest = xxhash.xxh3_128()
        with open(name, "rb") as handle:
            while chunk := handle.read(1 << 20):
                digest.update(chunk)
        self._known[path] = [*state, digest.hexdigest()]
        self._new = True
        return digest.hexdigest()


def _artifacts(fs: fsspec.AbstractFileSystem, names: Sequence[str]) -> tuple[str, ...]:
    """URIs of the committed artifacts that files stand in, by the names given or behind links."""
    folders = {posixpath.dirname(name) for name in names}
    local = isinstance(fs, LocalFileSystem)
    if local:
        linked = {os.path.dirname(os.path.realpath(name)) for name in names if os.path.islink(name)}
        folders |= {os.path.realpath(folder) for folder in folders} | linked
    above = {folder[: inside.start()] for folder in folders for inside in re.finditer("/parts(?=/|$)", folder)}
    uris = {os.path.realpath(p) if local else fs.unstrip_protocol(p) for p in above if _has_manifest(fs, p)}
    return tuple(sorted(uri for uri in uris if open_artifact(uri) is not None))


def _has_manifest(fs: fsspec.AbstractFileSystem, place: str) -> bool:
    """False also where the file system does not tell; raises InputError for a stage that is not committed."""
    if fs.isfile(f"{place}/manifest.json"):
        return True
    if re.search("-[0-9a-f]{12}$", place) and fs.isdir(f"{place}/drivers"):  # their notes (lease.py)
        raise InputError(place, "this stage is not committed, so its files are not whole", "Run it to its end")
    return False


def _may_load(name: str) -> bool:
    """True if a hub model can be had: it is in the local cache, or the hub may be asked."""
    from huggingface_hub import constants, try_to_load_from_cache

    return not constants.HF_HUB_OFFLINE or isinstance(try_to_load_from_cache(name, "config.json"), str)
