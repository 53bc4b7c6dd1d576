"""Runs every benchmark of this folder, each in a separate process: `make bench`.

python -m tests.benchmarks [NAME…]
"""

import subprocess
import sys
from pathlib import Path

HELPERS = {"__init__", "__main__", "bare", "common", "guideline", "tessera"}


def main(names: list[str]) -> None:
    found = sorted(file.stem for file in Path(__file__).parent.glob("*.py"))
    for name in names or [name for name in found if name not in HELPERS]:
        print(f"\n## {name.replace('_', ' ')}\n", flush=True)
        subprocess.run([sys.executable, "-m", f"tests.benchmarks.{name}"], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
