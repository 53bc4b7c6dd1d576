"""The application for an ASGI server, `fastapi dev` or a debugger: `uvicorn app.asgi:app`.

Production is `python -m app serve`: other servers do not read requests as app/server/protocol.py
does, nor bound what clients may take.
"""

import structlog

from app.command_errors import exit_on_user_error
from app.development import development_app
from app.main import create_app
from app.server.supervision import exit_with_starter
from shared.settings import Settings, load_settings

exit_with_starter()  # a reloader, or the supervisor of several workers
with exit_on_user_error():
    settings = load_settings(Settings)
    app = development_app(settings) if settings.env == "dev" else create_app(settings)
if settings.env != "dev":
    structlog.get_logger(__name__).warning("served_without_bounds", mend="python -m app serve")
