import os

import pytest


@pytest.fixture(scope="module", autouse=True)
def no_fsync():
    """Waiting for the disk is most of the time that a small store takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield
