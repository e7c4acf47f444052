"""The finished run that the tests of the report share."""

import pytest
from finished_run import Finished


@pytest.fixture
def finished(mnist, tmp_path, monkeypatch):
    """A folder in which the stage `report` runs."""
    monkeypatch.chdir(tmp_path)
    return Finished(tmp_path, mnist)
