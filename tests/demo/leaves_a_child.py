"""A process that starts another, tells its pid, and ends without it when its input ends."""

import json
import subprocess
import sys

if __name__ == "__main__":
    child = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(json.dumps({"pid": child.pid}), flush=True)
    sys.stdin.read()
