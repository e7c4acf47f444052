"""The pictures are the same wherever they are drawn."""

import numpy as np
import pytest
from helpers import run_python

from pipeline.report.plots import draw_confusion

DRAW = """
import sys
import numpy as np
from pipeline.report.plots import draw_confusion
draw_confusion(sys.argv[1], np.arange(20) % 10, np.arange(20) % 9)
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["TkAgg", "module://no_such_module", "no such backend"])
def test_an_inherited_backend_changes_no_byte(tmp_path, backend):
    draw_confusion(tmp_path / "ours", np.arange(20) % 10, np.arange(20) % 9)
    done = run_python("-c", DRAW, tmp_path / "inherited", MPLBACKEND=backend)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "inherited").read_bytes() == (tmp_path / "ours").read_bytes()
