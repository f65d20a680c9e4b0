"""The demo that the README begins with."""

import re
import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).resolve().parent.parent / "examples/demo/demo.py"


def test_demo_runs_to_its_end():
    done = subprocess.run([sys.executable, str(DEMO)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"latency, .* qcompile \d+ µs", done.stdout), done.stdout
    assert "0 float instructions" in done.stdout
