"""The same attacks when the caller is an ordinary user; here root starts them as `nobody`."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
NOBODY = 65534


def interpreter_for_others() -> str | None:
    """An interpreter of this version that other users may run, None when all are private to root."""
    version = f"python3.{sys.version_info.minor}"
    for candidate in (sys.executable, shutil.which(version, path="/usr/bin:/usr/local/bin")):
        if candidate and run_as_nobody([candidate, "-c", "import pytest, verifier.sandbox.zygote"]).returncode == 0:
            return candidate
    return None


def run_as_nobody(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    packages = f"{ROOT}:{sysconfig.get_path('purelib')}"
    environment = {"PATH": os.defpath, "PYTHONPATH": packages, "PYTHONDONTWRITEBYTECODE": "1", **variables}
    try:
        return subprocess.run(
            command,
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            env=environment,
            cwd="/",
            capture_output=True,
            text=True,
        )
    except PermissionError as error:
        return subprocess.CompletedProcess(command, 126, "", str(error))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_every_attack_fails_for_an_ordinary_user_too() -> None:
    python = interpreter_for_others()
    if python is None:
        pytest.skip("no interpreter of this version is open to other users")
    files = [str(HERE / name) for name in ("test_attacks.py", "test_layers.py")]
    apart = [
        "large",
        "malformed",
        "mix",
        "flood",
        "exceptions",
        "data",
        "succeed",
        "net",
        "seccomp",
        "endless",
        "cpu",
    ]
    options = f"-q -x -p no:cacheprovider --rootdir {ROOT} -c {ROOT}/pyproject.toml".split()
    options += ["-k", f"not ({' or '.join(apart)})"]
    done = run_as_nobody([python, "-m", "pytest", *options, *files])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
