"""Runs a command and says what it cost: ``python tests/cost.py make lint``.

Seconds on the clock hang on how many cores there are and who else uses them; CPU seconds, summed
over all processes, do so less.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time


def main(command: list[str]) -> int:
    start = time.monotonic()
    status = subprocess.run(command, check=False).returncode
    clock = time.monotonic() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{used.ru_utime + used.ru_stime:.0f} CPU seconds, {clock:.0f} s on the clock: ", end="")
    print(*command, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
