"""A field is added to items by one line in the table and one in each schema.

The migration and the API document are generated; import, export and statements follow.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kit import Server
from tests.repository_copies import BIN, copy_repository, last_revision, make, run_app, run_suite

pytestmark = [pytest.mark.verify, pytest.mark.timeout(900)]

TABLES, SCHEMAS = "features/items/tables.py", "features/items/schemas.py"
DEFINITIONS = "migrations/items/definitions.sql"  # written by `migration`
COLOUR = "Annotated[DatabaseText, Field(max_length=50)]"
EDITS = {
    "Item": (TABLES, "description: str | None = None", "colour: str | None = None"),
    "ItemCreate": (
        SCHEMAS,
        "description: Description | None = None",
        f"colour: {COLOUR} | None = None",
    ),
    "ItemUpdate": (
        SCHEMAS,
        "description: Description | MISSING | None = MISSING",
        f"colour: {COLOUR} | MISSING | None = MISSING",
    ),
    "ItemPublic": (SCHEMAS, "description: str | None", "colour: str | None"),
}
"""By class: the file, the line before the new one, and the new one."""


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colour")
    copy_repository(folder, ".mypy_cache")
    return folder


@contextmanager
def edited(code: Path, *classes: str) -> Iterator[None]:
    """Adds the line to these classes until the block ends."""
    texts = {file: (code / file).read_text() for file in (TABLES, SCHEMAS)}
    changed = dict(texts)
    for file, line, added in (EDITS[name] for name in classes):
        assert changed[file].count(f"    {line}\n") == 1, line
        changed[file] = changed[file].replace(f"    {line}\n", f"    {line}\n    {added}\n")
    for file, text in changed.items():
        (code / file).write_text(text)
    try:
        yield
    finally:
        for file, text in texts.items():
            (code / file).write_text(text)


def hashes(code: Path) -> dict[str, str]:
    """Returns the hash of each file of the copy, without caches."""
    names = {path: str(path.relative_to(code)) for path in code.rglob("*") if path.is_file()}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path, name in names.items()
        if "__pycache__" not in name and not name.startswith(".")
    }


@pytest.mark.parametrize("forgotten", EDITS)
def test_a_class_that_was_forgotten_fails_a_test(
    code: Path, server: Server, forgotten: str
) -> None:
    suite = (str(BIN / "python"), "-m", "pytest", "-q", "-n0", "--feature=items")
    with edited(code, *(EDITS.keys() - {forgotten})):
        done = run_suite(
            code, *suite, "features/items/tests/test_fields.py", database=server.admin_url
        )
    assert done.returncode != 0
    assert "colour" in done.stdout + done.stderr


def test_four_edits_in_two_files_add_a_field(code: Path, server: Server) -> None:
    before = hashes(code)
    with edited(code, *EDITS):
        revised = run_app(code, "migration", "items", "add colour", database=server.admin_url)
        assert revised.returncode == 0, revised.stderr
        documented = run_app(code, "keep-openapi")
        assert documented.returncode == 0, documented.stderr
        number = last_revision(code, "items").removeprefix("items_")
        revision = f"migrations/items/{number}_add_colour.py"
        changed = {name for name, hash_ in hashes(code).items() if before.get(name) != hash_}
        documents = {name for name in changed if name.endswith("/tests/openapi.json")}
        assert changed - documents == {TABLES, SCHEMAS, revision, DEFINITIONS}
        make(code, "test", "feature=items", "args=-n0", database=server.admin_url)
        make(code, "check", database=server.admin_url)
        assert set(documented.stdout.split()) == documents
