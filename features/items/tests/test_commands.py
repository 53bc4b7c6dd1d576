"""`python -m app import` and `export`, run as a user would."""

import csv
import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kit import Command, SignUp

ROOT = Path(__file__).parents[3]
ROWS = [
    {"id": "A", "title": "Mug", "price": 19.99, "description": None},
    {"id": "B", "title": "Plate", "price": 5.0, "description": 'Blue, "deep"'},
]


@pytest.fixture
async def email(sign_up: SignUp) -> str:
    """Creates an account, and returns its email."""
    await sign_up("ada@example.com")
    return "ada@example.com"


def write_file(file: Path) -> Path:
    """Writes the rows in the format that the file's suffix names."""
    if ".csv" in file.name:
        with file.open("w", newline="") as text:
            writer = csv.DictWriter(text, ROWS[0])
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        file.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    if file.suffix == ".gz":
        file.write_bytes(gzip.compress(file.read_bytes()))
    return file


def read_file(file: Path) -> list[dict[str, Any]]:
    """Reads an exported file into rows like the imported ones: `external_id` is `id` again."""
    data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    text = data.decode()
    if ".csv" in file.name:
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    else:
        rows = [json.loads(line) for line in text.splitlines()]
    names = ("external_id", "title", "price", "description")
    values = ([row[name] for name in names] for row in rows)
    return [
        {"id": key, "title": title, "price": float(price), "description": description or None}
        for key, title, price, description in values
    ]


@pytest.mark.parametrize("name", ["jsonl", "ndjson", "csv", "jsonl.gz", "ndjson.gz", "csv.gz"])
async def test_what_is_imported_can_be_exported(
    command: Command, email: str, tmp_path: Path, name: str
) -> None:
    imported = await command(
        "import", write_file(tmp_path / f"in.{name}"), "--owner", email.upper()
    )
    assert imported.stdout == "2 created, 0 updated, 0 unchanged, 0 rejected\n", imported.stderr
    exported = await command("export", tmp_path / f"out.{name}", "--owner", email)
    assert exported.stdout == "2 exported\n", exported.stderr
    assert read_file(tmp_path / f"out.{name}") == ROWS
    again = await command("import", tmp_path / f"out.{name}", "--owner", email)
    assert again.stdout == "0 created, 0 updated, 2 unchanged, 0 rejected\n", again.stderr


async def test_a_dry_run_prints_bad_rows_and_changes_nothing(
    command: Command, email: str, tmp_path: Path
) -> None:
    file = write_file(tmp_path / "a.jsonl")
    file.write_text('{"title": "", "price": 1}\n' + file.read_text())
    done = await command("import", file, "--owner", email, "--dry-run")
    assert done.stdout == "2 created, 0 updated, 0 unchanged, 1 rejected\n"
    assert f"{file}:1: title: String should have at least 1 character" in done.stderr
    exported = await command("export", tmp_path / "b.jsonl", "--owner", email)
    assert exported.stdout == "0 exported\n"


async def test_every_bad_row_is_printed(command: Command, email: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("{}\n" * 1_500)
    done = await command("import", file, "--owner", email)
    assert done.stdout == "0 created, 0 updated, 0 unchanged, 1500 rejected\n"
    printed = [line for line in done.stderr.splitlines() if line.startswith(f"{file}:")]
    reason = "title: Field required; price: Field required"
    assert printed == [f"{file}:{line}: {reason}" for line in range(1, 1_501)]


@pytest.mark.parametrize(
    ("action", "name", "owner", "message"),
    [
        ("import", "a.jsonl", "nobody@example.com", "There is no account nobody@example.com"),
        ("export", "b.jsonl", "nobody@example.com", "There is no account nobody@example.com"),
        ("import", "a.txt", "ada@example.com", "the name must end in .jsonl, .ndjson, .csv"),
        ("export", "b.txt", "ada@example.com", "the name must end in .jsonl, .ndjson, .csv"),
        ("import", "cut.jsonl.gz", "ada@example.com", "The gzip data ends too early"),
        ("import", "missing.jsonl", "ada@example.com", "missing.jsonl"),
        ("export", "missing/b.jsonl", "ada@example.com", "missing/b.jsonl"),
    ],
)
async def test_an_error_is_printed_in_one_line(
    command: Command,
    email: str,
    tmp_path: Path,
    action: str,
    name: str,
    owner: str,
    message: str,
) -> None:
    (tmp_path / "a.txt").touch()
    cut = write_file(tmp_path / "cut.jsonl.gz")
    cut.write_bytes(cut.read_bytes()[:-9])
    write_file(tmp_path / "a.jsonl")
    done = await command(action, tmp_path / name, "--owner", owner)
    assert done.exit_code == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert message in line
    assert "database" not in line
    assert "Traceback" not in done.stderr


@pytest.mark.verify
def test_the_command_runs_as_a_process(database_url: str, email: str, tmp_path: Path) -> None:
    file = write_file(tmp_path / "a.csv.gz")
    done = subprocess.run(
        [sys.executable, "-m", "app", "import", file, "--owner", email],
        cwd=ROOT,
        env={**os.environ, "APP_DATABASE_URL": database_url, "APP_ENV": "test"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "2 created, 0 updated, 0 unchanged, 0 rejected\n", done.stderr
    assert done.returncode == 0
