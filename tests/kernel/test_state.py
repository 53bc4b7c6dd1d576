"""The resource that a feature's lifespan yields is found by its type while the application runs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import pytest
from fastapi import APIRouter, FastAPI

from app.main import create_app
from shared.feature import Feature, FeatureError
from shared.settings import Settings
from shared.state import resource, resource_of
from tests.kit import connect


class Rates:
    euro = 1.1


@asynccontextmanager
async def hold_rates(_app: FastAPI) -> AsyncIterator[Rates]:
    yield Rates()


router = APIRouter(tags=["rates"])


@router.get("/rates/euro")
async def euro(rates: Annotated[Rates, resource(Rates)]) -> float:
    return rates.euro


async def test_a_route_gets_what_its_feature_holds(settings: Settings) -> None:
    app = create_app(settings, [Feature(name="rates", router=router, lifespan=hold_rates)])
    for _ in range(2):  # an application may be started again
        async with app.router.lifespan_context(app), connect(app) as client:
            assert (await client.get("/rates/euro")).json() == 1.1
            assert isinstance(resource_of(app, Rates), Rates)


async def test_two_features_do_not_hold_the_same_type(settings: Settings) -> None:
    pair = [Feature(name=n, router=APIRouter(), lifespan=hold_rates) for n in ("rates", "prices")]
    app = create_app(settings, pair)
    with pytest.raises(FeatureError, match="two features hold a Rates"):
        async with app.router.lifespan_context(app):
            pass
