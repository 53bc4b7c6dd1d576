"""Renders the templates of a new feature, and rejects a name that would clash."""

import ast
from collections.abc import Iterator
from pathlib import Path

from fastapi import FastAPI
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlmodel import SQLModel
from starlette.routing import Match

from app.migrations import head_of, load_revisions
from app.scaffold.formatting import format_code
from app.scaffold.naming import FORBIDDEN, NameRefused, Names, names_of

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = Path(__file__).parent / "templates"
PLACEHOLDER = Names("placeholders", "placeholder", "placeholders")


def write_feature(app: FastAPI, name: str, singular: str | None = None) -> list[Path]:
    """Writes `features/<name>` and `migrations/<name>`, and returns the files.

    The name must not clash with a table or a path of `app`.

    Raises:
        NameRefused: the name is malformed or taken. No file has been written.
    """
    files = plan_feature(app, name, singular)
    for path, text in files.items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(text)
    format_code([ROOT / path for path in files])
    return list(files)


def plan_feature(app: FastAPI, name: str, singular: str | None = None) -> dict[Path, str]:
    """Returns the text of each file that `write_feature` writes.

    Raises:
        NameRefused: the name is malformed or taken.
    """
    names = names_of(name, singular)
    _refuse_taken(names, app)
    _refuse_ambiguous(names)
    return dict(render(names))


def render(names: Names) -> Iterator[tuple[Path, str]]:
    """Yields the files of a feature with these names, and their unformatted text."""
    templates = Environment(  # noqa: S701  # it renders Python, which needs no HTML escaping
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True
    )
    forms = ("feature", "singular", "plural", "cls", "words", "word", "a_word", "path")
    values = {form: getattr(names, form) for form in forms}
    values |= {"users_head": head_of(load_revisions(), "users")}
    for name in templates.list_templates(extensions=["jinja"]):
        path = Path(name.replace("__feature__", names.feature).removesuffix(".jinja"))
        text = templates.get_template(name)
        yield path, text.render(**values)


def _refuse_taken(names: Names, app: FastAPI) -> None:
    for folder in (f"features/{names.feature}", f"migrations/{names.feature}"):
        if (ROOT / folder).exists():
            raise NameRefused(f"there is {folder} already")
    if names.plural in SQLModel.metadata.tables:
        raise NameRefused(f"there is a table {names.plural!r} already")
    for path in (names.path, f"{names.path}/id"):
        scope = {"type": "http", "method": "GET", "path": path, "root_path": "", "headers": []}
        if any(route.matches(scope)[0] is not Match.NONE for route in app.routes):
            raise NameRefused(f"the path {path} is served already")


def _refuse_ambiguous(names: Names) -> None:
    """Rejects a name that the generated code uses for something else, such as `responses`."""
    in_use: set[str] = set()
    wanted: set[str] = set()
    for path, text in render(PLACEHOLDER):
        if path.suffix != ".py":
            continue
        for identifier in _identifiers(ast.parse(text)):
            own = identifier.replace(PLACEHOLDER.plural, names.plural)
            own = own.replace(PLACEHOLDER.singular, names.singular)
            own = own.replace(PLACEHOLDER.cls, names.cls)
            (in_use if own == identifier else wanted).add(own)
    if clash := sorted(wanted & (in_use | FORBIDDEN)):
        raise NameRefused(
            f"{clash[0]!r} means something else in the code of a feature; choose another"
        )


def _identifiers(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.alias(asname=None, name=name):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.ClassDef(name=name):
                yield name
