"""sentryward in a process of its own: the memory that it may use is counted for the whole process."""

import json
import subprocess
import sys

PROGRAM = "import json, sys, sentryward; json.dump(sentryward.verify(**json.load(sys.stdin)), sys.stdout)"


def prove(path, timeout_seconds, **files):
    """The checker's answer for a PTX file; `files` are its other inputs."""
    question = {"timeout_seconds": timeout_seconds, "memory_limit_mib": 4096, **files}
    program = PROGRAM.replace("verify(**", f"verify({str(path)!r}, **")
    done = subprocess.run([sys.executable, "-c", program], input=json.dumps(question), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
