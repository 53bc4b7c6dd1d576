"""`python -m app doctor` shows the slices, and says what is wrong."""

from shared.testing import Server
from tests.copying import ROOT, run_app


def test_a_sound_installation_is_shown(database_url: str) -> None:
    done = run_app(ROOT, "doctor", database=database_url, COLUMNS="80")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "wrong" not in done.stdout
    for shown in ("items", "users", "/items/{item_id}  GET", "items_0001", "ok    pgvector: "):
        assert shown in done.stdout


def test_a_database_that_is_behind_is_named(server: Server) -> None:
    done = run_app(ROOT, "doctor", database=server.admin_url)
    assert done.returncode == 1
    assert "wrong migrations: pending: " in done.stdout


def test_what_does_not_answer_is_named() -> None:
    done = run_app(
        ROOT,
        "doctor",
        database="postgresql://postgres@127.0.0.1:1/nothing",
        APP_REDIS_URL="redis://127.0.0.1:1",
    )
    assert done.returncode == 1
    assert "wrong database: The database cannot be reached" in done.stdout
    assert "wrong Redis: does not answer" in done.stdout
