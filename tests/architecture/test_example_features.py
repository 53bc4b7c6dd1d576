"""A feature written by hand needs no change outside its two folders, in `features/` and
`migrations/`. A test or check finds and names each of its faults."""

import hashlib
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from textwrap import dedent

import pytest

from tests.architecture.example_features import NOTES, PROBES
from tests.kit import Server
from tests.kit.servers import drop_database, execute
from tests.repository_copies import copy_repository, make, pytest_in, run_app, write_files

pytestmark = [pytest.mark.verify, pytest.mark.timeout(1200)]

TESTS_OF_ALL_FEATURES = (
    "tests/architecture/test_constraints.py",
    "tests/architecture/test_declarations.py",
    "tests/architecture/test_features.py",
    "tests/architecture/test_migrations.py",
    "tests/architecture/test_migration_lint.py",
    "tests/contract/test_openapi.py",
    "tests/contract/test_privacy.py",
)
"""The tests that check every feature."""

FOLDERS = ("features/notes", "features/probes", "migrations/notes")


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with both example features."""
    folder = tmp_path_factory.mktemp("examples")
    copy_repository(folder)
    before = files_elsewhere(folder)
    write_files(folder, NOTES | PROBES)
    done = run_app(folder, "keep-openapi")
    assert done.returncode == 0, done.stderr
    assert files_elsewhere(folder) == before
    return folder


def files_elsewhere(folder: Path) -> dict[str, str]:
    """Returns the files outside the folders of the two features, with a hash of each."""
    names = {path: str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path, name in names.items()
        if "__pycache__" not in name and not name.startswith((".", *FOLDERS))
    }


@pytest.fixture
async def migrated_url(code: Path, server: Server) -> AsyncIterator[str]:
    """The URL of a database that is migrated by the copy."""
    name = f"test_{secrets.token_hex(8)}"
    await execute(server.admin_url, f'CREATE DATABASE "{name}"')
    done = run_app(code, "migrate", database=server.url(name))
    assert done.returncode == 0, done.stderr
    yield server.url(name)
    await drop_database(server.admin_url, name)


def suite_of_notes(folder: Path, server: Server) -> CompletedProcess[str]:
    return pytest_in(folder, server.admin_url, "features/notes", "--feature=notes")


def test_the_tests_of_all_features_pass(code: Path, server: Server) -> None:
    done = pytest_in(code, server.admin_url, *TESTS_OF_ALL_FEATURES)
    assert done.returncode == 0, done.stdout


def test_their_layout_is_that_of_a_feature(code: Path, server: Server) -> None:
    done = pytest_in(code, server.admin_url, "tests/architecture/test_feature_deletion.py")
    assert done.returncode == 0, done.stdout


def test_its_own_suite_passes(code: Path, server: Server) -> None:
    done = suite_of_notes(code, server)
    assert done.returncode == 0, done.stdout


def test_a_route_alone_is_a_feature(code: Path, server: Server) -> None:
    make(code, "test", "feature=probes", "args=-n0", database=server.admin_url)


def test_doctor_finds_nothing_wrong(code: Path, migrated_url: str) -> None:
    done = run_app(code, "doctor", database=migrated_url)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_checks_pass(code: Path, server: Server) -> None:
    make(code, "check", database=server.admin_url)


def test_its_command_runs_and_reads_its_setting(code: Path, migrated_url: str) -> None:
    counted = run_app(code, "count-notes", database=migrated_url)
    assert counted.stdout == "0 notes, kept for 30 days\n", counted.stderr
    given = run_app(code, "count-notes", database=migrated_url, APP_NOTES_KEPT_DAYS="7")
    assert given.stdout == "0 notes, kept for 7 days\n", given.stderr
    refused = run_app(code, "count-notes", database=migrated_url, APP_NOTES_KEPT_DAYS="0")
    assert refused.stderr.startswith("error: APP_NOTES_KEPT_DAYS: ")


@contextmanager
def changed(path: Path, old: str, new: str) -> Iterator[None]:
    """Replaces a text in a file until the block ends."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    try:
        yield
    finally:
        path.write_text(text)


@pytest.mark.parametrize(
    ("file", "old", "new", "test", "said"),
    [
        pytest.param(
            "features/notes/tests/constraints.py",
            '"ck_notes_title_not_empty": "the schemas refuse such a title"',
            "",
            "tests/architecture/test_constraints.py",
            "what the violation of ck_notes_title_not_empty means to the client",
            id="a constraint without words",
        ),
        pytest.param(
            "features/notes/tests/constraints.py",
            "ck_notes_title_not_empty",
            "ck_notes_title_long",
            "tests/architecture/test_constraints.py",
            "has ck_notes_title_long, which no table has",
            id="a constraint that does not exist",
        ),
        pytest.param(
            "features/notes/tests/constraints.py",
            "{",
            '{"uq_users_email": "a mistake", ',
            "tests/architecture/test_constraints.py",
            "has uq_users_email, which belongs to users",
            id="a constraint of another feature",
        ),
        pytest.param(
            "features/notes/tests/privacy.py",
            "OWNED_PARAMETERS = ",
            "OWND_PARAMETERS = ",
            "tests/contract/test_privacy.py",
            "GET /notes/{note_id} has a parameter {note_id} that this test cannot fill",
            id="a parameter that cannot be filled",
        ),
        pytest.param(
            "features/notes/tests/privacy.py",
            "OWNED_PARAMETERS = ",
            "OWND_PARAMETERS = ",
            "tests/architecture/test_declarations.py",
            "no test reads these of features/notes/tests/privacy.py: {'OWND_PARAMETERS'}",
            id="a constant that no test reads",
        ),
        pytest.param(
            "features/notes/tests/privacy.py",
            "note_id",
            "item_id",
            "tests/architecture/test_declarations.py",
            "has 'item_id', which is not in the feature's",
            id="a parameter of another feature",
        ),
        pytest.param(
            "features/notes/router.py",
            "One note.",
            "A note.",
            "tests/contract/test_openapi.py",
            "the API in features/notes/tests/openapi.json has changed",
            id="an API that has changed",
        ),
    ],
)
def test_a_fault_is_named(
    code: Path, server: Server, file: str, old: str, new: str, test: str, said: str
) -> None:
    with changed(code / file, old, new):
        done = pytest_in(code, server.admin_url, test)
    assert done.returncode == 1
    assert said in done.stdout


def test_a_part_of_the_api_document_that_is_missing_is_named(code: Path, server: Server) -> None:
    part = code / "features/notes/tests/openapi.json"
    text = part.read_text()
    part.unlink()
    done = pytest_in(code, server.admin_url, "tests/contract/test_openapi.py")
    part.write_text(text)
    assert done.returncode == 1
    assert "features/notes/tests/openapi.json is missing: make openapi" in done.stdout


BEYOND_NOTES = {
    "scope": """
        async def test_beyond_notes(client: AsyncClient) -> None:
            key = {"name": "robot", "scopes": ["probes:read"]}
            made = await client.post("/users/me/api-keys", json=key)
            assert made.status_code == 201, made.text
    """,
    "route": """
        async def test_beyond_notes(client: AsyncClient) -> None:
            response = await client.get("/probes")
            assert response.status_code == 200, response.text
    """,
}
"""Tests that need a feature that `notes` does not depend on."""


@pytest.mark.parametrize(
    ("beyond", "said"),
    [("scope", "Should be one of notes:read, notes:write"), ("route", '"instance":"/probes"')],
)
def test_a_test_that_needs_another_feature_is_named(
    code: Path, server: Server, beyond: str, said: str
) -> None:
    file = code / "features/notes/tests/test_notes.py"
    first = "async def test_a_title_is_unique"
    with changed(file, first, f"{dedent(BEYOND_NOTES[beyond]).strip()}\n\n\n{first}"):
        done = suite_of_notes(code, server)
        among_all = pytest_in(code, server.admin_url, str(file), "-k", "beyond")
    assert "FAILED features/notes/tests/test_notes.py::test_beyond_notes" in done.stdout
    assert said in done.stdout
    assert "1 failed" in done.stdout
    assert among_all.returncode == 0, among_all.stdout
