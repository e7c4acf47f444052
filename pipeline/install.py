"""Install packages into this environment by uv, or by pip where uv fails.

Both get the user's network settings of pip, but none that changes the target folder or versions. `make` runs
this file as a script; `mnist.py` downloads its package with the same settings.
"""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

NETWORK_SETTINGS = re.compile(
    "(extra-)?index-url|find-links|no-index|trusted-host|(client-)?cert|proxy|keyring-provider"
    "|(default-)?timeout|retries|(no-)?cache-dir"
)
UV_NAMES = {
    "PIP_INDEX_URL": "UV_DEFAULT_INDEX",
    "PIP_EXTRA_INDEX_URL": "UV_INDEX",
    "PIP_TRUSTED_HOST": "UV_INSECURE_HOST",
    "PIP_CERT": "SSL_CERT_FILE",
    "PIP_PROXY": "ALL_PROXY",
    "PIP_DEFAULT_TIMEOUT": "UV_HTTP_TIMEOUT",
    "PIP_TIMEOUT": "UV_HTTP_TIMEOUT",
    "PIP_NO_CACHE_DIR": "UV_NO_CACHE",
}


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


def install(arguments: list[str]) -> int:
    """Run `uv pip install`, and `pip install` if that fails; returns the exit status."""
    environment = pip_environment()
    uv = Path(sys.executable).with_name("uv")
    if uv.exists() and not {"PIP_NO_INDEX", "PIP_CLIENT_CERT"} & environment.keys():
        settings = {UV_NAMES[name]: value for name, value in environment.items() if name in UV_NAMES}
        settings["UV_FIND_LINKS"] = ",".join(environment.get("PIP_FIND_LINKS", "").split())
        settings |= {"UV_PYTHON": sys.executable, "UV_COMPILE_BYTECODE": "1", "UV_NO_CONFIG": "1"}
        if "--require-hashes" in arguments:  # else, one index could replace the packages of another
            settings["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # pip's
        command = [uv, "pip", "install", "--quiet", *arguments]
        result = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True)
        if result.returncode == 0:
            return 0
        print(f"uv failed; pip installs, which takes longer: {result.stderr.strip()}", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    return subprocess.call(command, env=environment)


if __name__ == "__main__":
    sys.exit(install(sys.argv[1:]))
