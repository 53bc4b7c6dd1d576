"""Builds the application from the kernel and the features."""

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import chain

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app.discovery import branches_of, find_features, new_database
from app.middleware import (
    AccessLogMiddleware,
    DeadlineMiddleware,
    EventStreamMiddleware,
    LoadSheddingMiddleware,
    ReadYourWritesMiddleware,
    RequestIdMiddleware,
    SecurityHeadersMiddleware,
    ServerErrorMiddleware,
    UntrustedProxyMiddleware,
    WebSocketMiddleware,
)
from app.migrations import load_revisions
from app.openapi import mount_docs, operation_id
from app.ops import health, metrics_endpoint
from app.ops.logging import configure_logging
from app.ops.sentry import configure_sentry
from app.ops.sql import log_statements
from app.ops.tracing import export_traces, tracing
from app.problem_details import install_error_handlers
from app.routing import refuse_unknown_parameters, skip_routers, validate_queries_at_once
from app.task_runner import Dispatcher, run_until_idle, task_runner, tasks_of
from shared.crypto import derive
from shared.feature import Feature, FeatureError
from shared.settings import (
    ConfigurationError,
    Settings,
    load_feature_settings,
    load_settings,
)
from shared.state import AppState, state_of
from shared.web.idempotency import Replay, replay
from shared.web.pagination import Paginator
from shared.web.rate_limits import Limiter

VERSION = "0.1.0"
EXPOSED_HEADERS = (
    "ETag",
    "Idempotency-Replayed",
    "Location",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "WWW-Authenticate",  # says when to sign in again (RFC 9470)
    "X-Request-ID",
)


def create_app(
    settings: Settings | None = None,
    features: Sequence[Feature] | None = None,
    *,
    run_tasks: bool = True,
) -> FastAPI:
    """Creates the application: the kernel and the features, by default all that are on disk.

    With `run_tasks`, its background tasks run in this process.

    Raises:
        ConfigurationError: a setting is missing or wrong.
        FeatureError: a feature cannot be loaded.
    """
    settings = settings or load_settings(Settings)
    features = find_features() if features is None else features
    app = FastAPI(
        title="Tessera",
        version=VERSION,
        description="Users, items and hybrid semantic search on one PostgreSQL.",
        openapi_tags=[{"name": feature.name} for feature in features],
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=operation_id,
        lifespan=_lifespan,
        telemetry=tracing(),
    )
    prepare(app, settings, features, run_tasks=run_tasks)
    install_error_handlers(app)
    app.add_exception_handler(Replay, replay)
    app.add_middleware(EventStreamMiddleware)
    app.add_middleware(
        DeadlineMiddleware,
        seconds=settings.request_timeout,
        stream_seconds=settings.stream_timeout,
    )
    app.add_middleware(LoadSheddingMiddleware, concurrency=settings.max_concurrency)
    app.add_middleware(ServerErrorMiddleware)
    if settings.database_replica_url:
        app.add_middleware(ReadYourWritesMiddleware)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )
    app.add_middleware(AccessLogMiddleware)
    app.add_middleware(RequestIdMiddleware)
    app.add_middleware(
        WebSocketMiddleware,
        seconds=settings.request_timeout,
        concurrency=settings.max_concurrency,
    )
    app.add_middleware(SecurityHeadersMiddleware)
    if settings.trusted_proxies:
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=list(settings.trusted_proxies))
    app.add_middleware(UntrustedProxyMiddleware, trusted_proxies=settings.trusted_proxies)
    for router in (
        *(feature.router for feature in features),
        health.router,
        metrics_endpoint.router,
    ):
        app.include_router(router, max_body_size=settings.max_body_size)
    mount_docs(app)
    skip_routers(app)
    validate_queries_at_once()
    refuse_unknown_parameters()
    return app


def prepare(
    app: FastAPI, settings: Settings, features: Sequence[Feature], *, run_tasks: bool
) -> None:
    """Configures logging and Sentry, and fills `app.state`, before the application starts.

    Raises:
        ConfigurationError: a setting of a feature is missing or wrong.
    """
    loaded = [load_feature_settings(f.settings, settings) for f in features if f.settings]
    configure_logging(settings)
    configure_sentry(settings, VERSION)
    app.state = state = AppState()
    state.settings = settings
    state.features = features
    state.feature_settings = {type(each): each for each in loaded}
    state.authenticator = next((f.authenticator for f in features if f.authenticator), None)
    state.constraints = dict(chain(*(f.constraints.items() for f in features)))
    state.tasks = tasks_of(features)
    state.runs_tasks = run_tasks
    state.limiter = Limiter(settings.redis_url, enabled=settings.limits_rates)
    state.paginator = Paginator(derive(settings.secret(), "cursor"))
    state.resources = {}
    state.is_stopping = False
    state.backlogs_read_at = -math.inf
    state.shards = {}


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Opens the resources of the application in order, and closes them in reverse."""
    state = state_of(app)
    if state.settings.database_url is None:
        raise ConfigurationError(
            "APP_DATABASE_URL is not set; `python -m app serve` can do without"
        )
    state.database = new_database(state.settings, state.features)
    state.revisions = load_revisions(branches_of(state.features))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(state.database.dispose)
        stack.callback(state.resources.clear)
        await stack.enter_async_context(export_traces())
        stack.enter_context(log_statements(state.settings))
        await stack.enter_async_context(metrics_endpoint.pool_sampler(state.database))
        for feature in state.features:
            await open_resource(app, stack, feature)
        if state.runs_tasks:
            await health.warn_of_unknown_migrations(app)
            dispatcher = _dispatcher(state.settings)
            await stack.enter_async_context(task_runner(app, state.tasks, dispatcher))
        yield


async def open_resource(app: FastAPI, stack: AsyncExitStack, feature: Feature) -> None:
    """Opens the resource of a feature, for the life of the process; the stack closes it.

    Raises:
        FeatureError: another feature holds the same type.
    """
    held = await stack.enter_async_context(feature.lifespan(app)) if feature.lifespan else None
    resources = state_of(app).resources
    if type(held) in resources:
        raise FeatureError(
            f"two features hold a {type(held).__name__}: give each a type of its own"
        )
    if held is not None:
        resources[type(held)] = held


def _dispatcher(settings: Settings) -> Dispatcher:
    if settings.task_queue == "inline":
        return run_until_idle
    from app.celery.app import send  # imports Celery, which is optional

    return send
