"""Runs code in processes forked from this one, which has imported what takes long: for speed alone.

`test_kaggle.py` starts it. Each line of its input is a job, each line of its output the exit status.
"""

import json
import os
import sys

import pipeline.kaggle_api  # noqa: F401  not the client itself: it reads the environment on import
import pipeline.mnist  # noqa: F401
import pipeline.params  # noqa: F401
import rich.progress  # noqa: F401

for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(job["folder"])
        os.environ.clear()
        os.environ.update(job["environment"])
        for number, path in enumerate((os.devnull, job["out"], job["err"])):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        exec(job["code"], {"__name__": "__main__"})
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
