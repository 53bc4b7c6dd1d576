"""Background work on Celery, with `APP_TASK_QUEUE=celery`: `celery -A app.worker worker`.

What is to be done stands in PostgreSQL; a message only says which task to look at. The API's
processes, and `python -m app worker`, send one when a NOTIFY says so and every so often anyway:
a Redis that loses every message delays work, and loses none. Any number of workers may run.

A message is one batch, and whoever has done something sends the next. Each task has a queue of
its own name, and workers take from them in turn: so mail waits for no backlog of another kind.
"""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import ExitStack

import structlog
from anyio.from_thread import BlockingPortal, start_blocking_portal
from celery import Celery
from celery.signals import setup_logging, worker_process_init, worker_process_shutdown
from fastapi import FastAPI
from kombu.entity import Queue
from kombu.exceptions import OperationalError
from opentelemetry.context import Context
from opentelemetry.propagate import extract, inject
from opentelemetry.trace import SpanKind
from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.main import background_tasks, create_app
from shared.features import find_features
from shared.logging import configure_logging
from shared.settings import Settings, load_settings
from shared.tasks import Task, drain_batch, report_failure
from shared.telemetry import tracer

PAUSE_SECONDS = 0.2  # between two messages of a process for one task, however much is written
REDIS_TIMEOUT_SECONDS = 1.0
START_SECONDS = 60.0  # for a process to start; 4 would be Celery's own choice, for far less

log = structlog.get_logger(__name__)
url = load_settings(Settings).redis_url
redis = Redis.from_url(
    url or "redis://127.0.0.1:6379/0",
    retry=Retry(NoBackoff(), 0),
    socket_timeout=REDIS_TIMEOUT_SECONDS,
    socket_connect_timeout=REDIS_TIMEOUT_SECONDS,
)
names = [task.name for task in background_tasks(find_features())]
celery = Celery(
    "tessera",
    broker=url,
    broker_connection_retry_on_startup=True,
    broker_transport_options={
        # A message is a hint, so none is acknowledged; and a worker that holds some when Redis
        # goes away would die on putting them back (kombu 5.7).
        "ack_emulation": False,
        "socket_timeout": REDIS_TIMEOUT_SECONDS,
        "socket_connect_timeout": REDIS_TIMEOUT_SECONDS,
    },
    task_ignore_result=True,
    task_queues=[Queue(name) for name in names],  # type: ignore[no-untyped-call]
    worker_disable_prefetch=True,
    worker_proc_alive_timeout=START_SECONDS,
)


async def send(_app: FastAPI, task: Task) -> None:
    """Has some worker look at a task."""
    await asyncio.to_thread(send_message, task)
    await asyncio.sleep(PAUSE_SECONDS)


def send_message(task: Task) -> None:
    """Leaves a message that says which task to look at, unless one waits to be read already.
    One that is lost is no loss: within the task's period there will be another."""
    try:
        if redis.llen(task.name):
            return
        with tracer.start_as_current_span(f"send {task.name}", kind=SpanKind.PRODUCER):
            trace: dict[str, str] = {}
            inject(trace)
            celery.send_task("drain", (task.name, trace), queue=task.name, retry=False)
    except (OperationalError, RedisError) as error:
        log.warning("message_not_sent", task=task.name, error=str(error))


class WorkerProcess:
    """The application of one worker process, on an event loop in a thread of its own."""

    app: FastAPI
    portal: BlockingPortal

    def __init__(self) -> None:
        self._opened = ExitStack()

    def start(self, **_: object) -> None:
        self.app = create_app(run_tasks=False)
        self.portal = self._opened.enter_context(start_blocking_portal("asyncio"))
        lifespan = self.app.router.lifespan_context(self.app)
        self._opened.enter_context(self.portal.wrap_async_context_manager(lifespan))

    def stop(self, **_: object) -> None:
        self._opened.close()


def drain_by_name(name: str, trace: Mapping[str, str]) -> None:
    """Does a batch of what waits for one task; nothing, if this version does not know it.
    `trace` joins it to the trace of who has sent the message."""
    for task in process.app.state.tasks:
        if task.name == name and _drain_batch(task, extract(trace)):
            send_message(task)


def _drain_batch(task: Task, context: Context) -> int:
    try:
        with tracer.start_as_current_span(
            f"receive {task.name}", context=context, kind=SpanKind.CONSUMER
        ):
            return process.portal.call(drain_batch, process.app, task)
    except Exception as error:
        report_failure(task, error)
        return 0


def set_up_logging(**_: object) -> None:
    """Celery leaves logging alone where somebody listens to its signal."""
    configure_logging(load_settings(Settings))
    for per_message in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(per_message).setLevel(logging.WARNING)


process = WorkerProcess()
celery.task(drain_by_name, name="drain")
setup_logging.connect(set_up_logging)
worker_process_init.connect(process.start, weak=False)
worker_process_shutdown.connect(process.stop, weak=False)
