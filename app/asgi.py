"""The application for an ASGI server, `fastapi dev` or a debugger: `uvicorn app.asgi:app`."""

from app.main import create_app

app = create_app()
