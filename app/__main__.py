import signal
import sys

from app.cli import cli

# Process 1 of a container ignores a signal that it does not handle.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
cli()
