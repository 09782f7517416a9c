"""Keeps what was computed from a store in the store's folder, if that is writable."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Callable
from typing import Any

from din_jax.data.store import Store


def cached(store: Store, folder: str, key: list[Any], compute: Callable[[], bytes]) -> bytes:
    """What `compute` returned for this store and key, from STORE/`folder` if it is there.

    A file with a wrong checksum is damaged, and overwritten.

    Args:
      store: the store, whose fingerprint belongs to the key.
      folder: a folder of the store that holds nothing else.
      key: JSON values, on which the result depends beside the store.
      compute: computes the content of the file.
    """
    name = json.dumps([key[0], store.fingerprint, *key[1:]])
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    path = store.path / folder / digest
    with contextlib.suppress(OSError):
        saved = path.read_bytes()
        if len(saved) > 4 and saved[:4] == zlib.crc32(saved[4:]).to_bytes(4):
            return saved[4:]
    content = compute()
    partial = path.with_name(f".{digest}.partial-{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        partial.write_bytes(zlib.crc32(content).to_bytes(4) + content)
        partial.replace(path)
    with contextlib.suppress(OSError):
        partial.unlink(missing_ok=True)
    return content
