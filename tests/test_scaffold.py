"""`make feature`: what it writes is green at once, and of the shape of the features there are."""

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from shared.scaffold.generating import plan_feature
from shared.scaffold.naming import NameRefused, names_of
from shared.testing import Server
from tests.copying import copy_repository, make, run_app

FILTERS_OF_ITEMS = {"min_price", "max_price", "q"}
BULK = {"items_import", "items_export"}


@pytest.fixture
def orders(tmp_path: Path) -> Path:
    """A copy of the repository with a new feature."""
    copy_repository(tmp_path, ".mypy_cache")
    done = run_app(tmp_path, "new-feature", "orders")
    assert done.returncode == 0, done.stderr
    return tmp_path


@pytest.mark.timeout(300)
def test_a_new_feature_is_green_untouched(orders: Path, server: Server) -> None:
    make(orders, "check", database=server.admin_url)
    make(orders, "test", "feature=orders", "args=-n0", database=server.admin_url)
    revised = run_app(orders, "migration", "orders", "nothing", database=server.admin_url)
    assert revised.stderr == "error: the tables of 'orders' are as its migrations make them\n"


def test_its_api_has_the_shape_of_that_of_items(orders: Path) -> None:
    document = json.loads(run_app(orders, "openapi").stdout)
    items = operations(document, "items")
    generated = json.dumps(operations(document, "orders"))
    for written, meant in (("orders", "items"), ("order_id", "item_id"), ("Order", "Item")):
        generated = generated.replace(written, meant)
    renamed = json.loads(generated)
    assert renamed.keys() == items.keys() - BULK
    for name, operation in renamed.items():
        assert shape(operation) == shape(items[name]), name


def operations(document: dict[str, Any], tag: str) -> dict[str, Any]:
    """The operations of a feature, by operation id."""
    return {
        operation["operationId"]: operation
        for path in document["paths"].values()
        for operation in path.values()
        if operation["tags"] == [tag]
    }


def shape(operation: dict[str, Any]) -> dict[str, Any]:
    """What a client relies on, whatever the resource is."""
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
        (" Categories", ("categories", "category", "Category", "/categories", "a category")),
    ],
)
def test_a_name_has_all_its_forms(name: str, forms: tuple[str, ...]) -> None:
    names = names_of(name)
    assert (names.feature, names.singular, names.cls, names.path, names.a_word) == forms


@pytest.mark.parametrize(
    ("name", "singular", "why"),
    [
        ("order", None, "'orders', not 'order'"),
        ("or;ders", None, "'or;ders' is not a name"),
        ("1orders", None, "'1orders' is not a name"),
        ("", None, "'' is not a name"),
        ("../orders", None, "is not a name"),
        ("classes", None, "'class' is a word of Python's own"),
        ("lists", None, "'list' is a word of Python's own"),
        ("references", None, "'references' is a reserved word of SQL"),
        ("outstanding_customer_invoices", None, "longer than 27 characters"),
        ("items", None, "there is features/items already"),
        ("idempotency_keys", None, "there is a table 'idempotency_keys' already"),
        ("docs", None, "the path /docs is served already"),
        ("responses", None, "'Response' means something else"),
        ("sessions2", "session", "'session' means something else"),
        ("media", None, "say what one is called with --singular"),
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


def test_a_plural_that_looks_like_none_needs_its_singular(app: FastAPI) -> None:
    files = plan_feature(app, "media", "medium")
    assert Path("features/media/router.py") in files
    assert "class Medium(" in files[Path("features/media/tables.py")]
