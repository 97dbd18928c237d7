"""Joining a Ray cluster, or starting one on this machine that leaves nothing behind."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from vtok.errors import UsageError, VtokError

LOCAL = "local"
STORE_BYTES = 100 * 2**20
"""Shared memory of a cluster of our own: clips do not go through it, and Ray would take a third."""


def import_ray(address: str | None) -> Any:
    """The library, which looks at its environment once, when it is imported.

    Args:
        address: of the cluster that is to be joined, see `joined_cluster`.

    Raises:
        UsageError: it is not installed.
    """
    if _target(address) == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told of its use
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # and kept in no file
    if "RAY_AUTH_TOKEN" in os.environ or (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # `ray start` goes by that, too
    try:
        import ray
    except ImportError as exc:
        raise UsageError("--engine ray needs Ray: pip install 'vtok[ray]'") from exc
    return ray


@contextmanager
def joined_cluster(ray: Any, address: str | None) -> Iterator[None]:
    """Be connected to a cluster while the block runs; one that is joined already stays so.

    Args:
        ray: the library.
        address: of the cluster; if None, what RAY_ADDRESS says, else one is started on this
            machine, whatever others run there, and ends with the block or this process.

    Raises:
        VtokError: it cannot be joined or started.
    """
    if ray.is_initialized():
        yield
        return
    address = _target(address)
    with ExitStack() as stack:
        try:
            _join(ray, address, stack)
        except Exception as exc:  # of many kinds, also the plain one
            text = " ".join(str(exc).split())[:200]
            raise VtokError(f"--ray-address {address}: no cluster can be joined ({text})") from exc
        yield


def _join(ray: Any, address: str, stack: ExitStack) -> None:
    """Connect; what has to be removed in the end is put on the stack."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == LOCAL:
        # sockets lie in there, whose paths must be short: the usual folder may be too deep
        folder = tempfile.mkdtemp(prefix="vtok-ray-", dir=os.environ.get("RAY_TMPDIR", "/tmp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        options |= {"include_dashboard": False, "object_store_memory": STORE_BYTES,
                    "_temp_dir": folder}  # fmt: skip
    stack.callback(ray.shutdown)
    ray.init(address, **options)


def _target(address: str | None) -> str:
    return address or os.environ.get("RAY_ADDRESS") or LOCAL
