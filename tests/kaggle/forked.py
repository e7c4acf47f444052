"""Run code in processes forked from this one, which has imported what takes long: for speed alone.

`project.py` starts it. Each line of its input is a job, each line of its output the exit status.
"""

import json
import os
import sys
import traceback

import kagglesdk.competitions.services.competition_api_service  # noqa: F401
import rich.progress  # noqa: F401

import pipeline.kaggle.submit
import pipeline.mnist
import pipeline.params  # noqa: F401


def run(code):
    """The exit status, as the interpreter itself would have it."""
    try:
        exec(code, {"__name__": "__main__"})
        return 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1


for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(job["folder"])
        os.environ.clear()
        os.environ.update(job["environment"])
        for number, path in enumerate((os.devnull, job["out"], job["err"])):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        status = run(job["code"])
        sys.stdout.flush()
        os._exit(status)  # a proper end takes 0.3 s
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
