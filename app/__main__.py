import signal
import sys

from app.commands import cli

# Process 1 of a container ignores a signal for which it has no handler.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
cli()
