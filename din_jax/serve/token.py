"""The token that requests need."""

from __future__ import annotations

import os
from pathlib import Path

from din_jax.errors import DinError

TOKEN_VARIABLE = "DIN_JAX_TOKEN"


def read_token(file: str = "") -> str | None:
    """The token of a file, or of the environment; None if there is neither.

    Raises:
      DinError: the file can't be read, or the token is empty.
    """
    where, token = f"${TOKEN_VARIABLE}", os.environ.get(TOKEN_VARIABLE)
    if file:
        where = f"--token_file {file}"
        try:
            token = Path(file).read_text()
        except (OSError, ValueError) as error:
            raise DinError(f"{where} can't be read: {error}") from error
    if token is not None and not token.strip():
        raise DinError(f"{where}: the token is empty")
    return None if token is None else token.strip()
