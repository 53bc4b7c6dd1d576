"""Runs every benchmark of this folder and of `features/*/tests/benchmarks`, each in a separate
process: `make bench`.

python -m tests.benchmarks [NAME…]
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HELPERS = {"__init__", "__main__", "bare", "common", "guideline", "tessera"}


def main(names: list[str]) -> None:
    files = [*ROOT.glob("tests/benchmarks/*.py"), *ROOT.glob("features/*/tests/benchmarks/*.py")]
    modules = {file.stem: ".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files}
    for name in names or sorted(modules.keys() - HELPERS):
        print(f"\n## {name.replace('_', ' ')}\n", flush=True)
        subprocess.run([sys.executable, "-m", modules[name]], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
