"""`make feature` writes a feature that passes all checks and is built like the existing ones."""

import ast
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from app.scaffold.formatting import format_code
from app.scaffold.generating import plan_feature, render
from app.scaffold.naming import MAX_LENGTH, NameRefused, Names, names_of
from tests.kit import Server
from tests.repository_copies import BIN, ROOT, copy_repository, make, run, run_app

pytestmark = pytest.mark.timeout(900)

FILTERS_OF_ITEMS = {"min_price", "max_price", "q"}
BULK = {"items_import", "items_export", "items_usage"}


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with a new feature `orders`."""
    folder = tmp_path_factory.mktemp("orders")
    copy_repository(folder, ".mypy_cache")
    done = run_app(folder, "new-feature", "orders")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.verify
def test_a_new_feature_is_green_untouched(orders: Path, server: Server) -> None:
    make(orders, "check", database=server.admin_url)
    make(orders, "test", "feature=orders", "args=-n0", database=server.admin_url)
    revised = run_app(orders, "migration", "orders", "nothing", database=server.admin_url)
    assert revised.stderr == "error: the tables of 'orders' are as its migrations make them\n"
    listed = run_app(orders, "keep-definitions", database=server.admin_url)
    assert (listed.stdout, listed.returncode) == ("", 0), listed.stderr


@pytest.mark.verify
def test_its_api_has_the_shape_of_that_of_items(orders: Path) -> None:
    document = json.loads(run_app(orders, "openapi").stdout)
    items = operations(document, "items")
    generated = json.dumps(operations(document, "orders"))
    for written, meant in (("orders", "items"), ("order_id", "item_id"), ("Order", "Item")):
        generated = generated.replace(written, meant)
    renamed = json.loads(generated)
    assert renamed.keys() == items.keys() - BULK
    for name, operation in renamed.items():
        expected = shape(items[name])
        if name == "items_update":
            del expected["responses"]["409"]  # of external_id
        assert shape(operation) == expected, name


def test_its_code_is_that_of_items() -> None:
    """Except what only items have: an import, an export, filters, a price, published changes."""
    templates = dict(render(Names("items", "item", "items")))
    router = functions(templates[Path("features/items/router.py")])
    handlers = functions(templates[Path("features/items/handlers.py")])
    del handlers["list_items"]  # differs: items have filters
    assert {"list_", "create", "get", "update", "delete"} <= router.keys()
    assert {"create_item", "get_item", "update_item", "delete_item"} <= handlers.keys()
    for files, generated in (("router.py", router), ("handlers/*.py", handlers)):
        paths = sorted((ROOT / "features/items").glob(files))
        written = functions("\n".join(path.read_text() for path in paths))
        for name, code in generated.items():
            known = written[name].replace(", responses=responses(Conflict)", "")  # of external_id
            known = known.replace(" quota: QuotaDep,", "")
            known = re.sub(r"\n *await (item_changes|quota)\..*", "", known)
            assert code == known, f"{name} of items and of the template differ"


def functions(code: str) -> dict[str, str]:
    """Returns the source of each function of a module, by name, without docstrings."""
    found = {}
    for node in ast.parse(code).body:
        if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef):
            if ast.get_docstring(node):
                del node.body[0]
            found[node.name] = ast.unparse(node)
    return found


def operations(document: dict[str, Any], tag: str) -> dict[str, Any]:
    """Returns the operations of a feature, by operation id."""
    return {
        operation["operationId"]: operation
        for path in document["paths"].values()
        for operation in path.values()
        if operation["tags"] == [tag]
    }


def shape(operation: dict[str, Any]) -> dict[str, Any]:
    """Returns what clients rely on for any resource: parameters, media types, headers, security."""
    return {
        "parameters": {
            (parameter["in"], parameter["name"]): parameter
            for parameter in operation.get("parameters", [])
            if parameter["name"] not in FILTERS_OF_ITEMS
        },
        "responses": {
            status: (sorted(response.get("content", {})), response.get("headers"))
            for status, response in operation["responses"].items()
        },
        "body": sorted(operation.get("requestBody", {}).get("content", {})),
        "security": operation.get("security"),
    }


@pytest.mark.parametrize(
    ("name", "forms"),
    [
        ("orders", ("orders", "order", "Order", "/orders", "an order")),
        ("OrderItems", ("order_items", "order_item", "OrderItem", "/order-items", "an order item")),
        ("gift-cards", ("gift_cards", "gift_card", "GiftCard", "/gift-cards", "a gift card")),
        ("audit", ("audit", "audit", "Audit", "/audits", "an audit")),
        (
            "stock-entry",
            ("stock_entry", "stock_entry", "StockEntry", "/stock-entries", "a stock entry"),
        ),
        (" Categories", ("categories", "category", "Category", "/categories", "a category")),
    ],
)
def test_a_name_is_converted_to_each_form(name: str, forms: tuple[str, ...]) -> None:
    names = names_of(name)
    assert (names.feature, names.singular, names.cls, names.path, names.a_word) == forms


@pytest.mark.parametrize(
    ("name", "singular", "why"),
    [
        ("or;ders", None, "'or;ders' is not a name"),
        ("1orders", None, "'1orders' is not a name"),
        ("", None, "'' is not a name"),
        ("../orders", None, "is not a name"),
        ("classes", None, "'class' is a word of Python's own"),
        ("lists", None, "'list' is a word of Python's own"),
        ("references", None, "'references' is a reserved word of SQL"),
        ("outstanding_customer_bills", None, "longer than 25 characters"),
        ("heads", None, "'heads' means something else to Alembic"),
        ("items", None, "there is features/items already"),
        ("idempotency_keys", None, "there is a table 'idempotency_keys' already"),
        ("docs", None, "the path /docs is served already"),
        ("responses", None, "'Response' means something else"),
        ("sessions2", "session", "'session' means something else"),
        ("item", None, "there is a table 'items' already"),
        ("head", None, "'head' means something else to Alembic"),
        ("reference", None, "'references' is a reserved word of SQL"),
        ("series", None, "say what one of the 'series' is called with --singular"),
    ],
)
def test_a_name_that_cannot_be_had_is_refused(
    app: FastAPI, name: str, singular: str | None, why: str
) -> None:
    with pytest.raises(NameRefused) as refused:
        plan_feature(app, name, singular)
    assert why in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.verify
def test_the_longest_name_is_as_green_as_any(app: FastAPI, tmp_path: Path) -> None:
    copy_repository(tmp_path)
    files = plan_feature(app, "x" * (MAX_LENGTH - 1) + "s")
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    format_code([tmp_path / path for path in files])
    done = run(tmp_path, str(BIN / "ruff"), "check", ".")
    assert done.returncode == 0, done.stdout


@pytest.mark.verify
def test_a_first_migration_that_failed_is_the_first_again(orders: Path, server: Server) -> None:
    shutil.move(orders / "migrations/orders", orders / "kept")
    broken = "postgresql://postgres@127.0.0.1:1/nothing"
    assert run_app(orders, "migration", "orders", "begin", database=broken).returncode == 1
    done = run_app(orders, "migration", "orders", "begin", database=server.admin_url)
    assert "Traceback" not in done.stderr, done.stderr
    assert [path.name for path in (orders / "migrations/orders").glob("*.py")] == ["0001_begin.py"]
    shutil.rmtree(orders / "migrations/orders")
    shutil.move(orders / "kept", orders / "migrations/orders")


def test_a_plural_that_looks_like_none_needs_its_singular(app: FastAPI) -> None:
    files = plan_feature(app, "media", "medium")
    assert Path("features/media/router.py") in files
    assert "class Medium(" in files[Path("features/media/tables.py")]


@pytest.mark.verify
def test_a_feature_named_in_the_singular_is_green_untouched(tmp_path: Path, server: Server) -> None:
    copy_repository(tmp_path, ".mypy_cache")
    done = run_app(tmp_path, "new-feature", "stock-entry")
    assert done.returncode == 0, done.stderr
    make(tmp_path, "check", database=server.admin_url)
    make(tmp_path, "test", "feature=stock_entry", "args=-n0", database=server.admin_url)
    document = json.loads(run_app(tmp_path, "openapi").stdout)
    assert "/stock-entries/{stock_entry_id}" in document["paths"]
    assert {"stock_entry_list", "stock_entry_create"} <= operations(document, "stock_entry").keys()
