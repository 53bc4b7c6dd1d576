"""Messages by Celery and Redis, with `APP_TASK_QUEUE=celery`: one says which task to look at.

What is to be done stands in PostgreSQL. The API's processes, and `python -m app worker`, send a
message when a NOTIFY says so and every so often anyway: a Redis that loses every one delays work,
and loses none.

A message is one batch, and whoever has done something sends the next. Each task has a queue of
its own name, and workers take from them in turn: so mail waits for no backlog of another kind.
"""

import asyncio

import structlog
from celery import Celery
from fastapi import FastAPI
from kombu.entity import Queue
from kombu.exceptions import OperationalError
from opentelemetry.propagate import inject
from opentelemetry.trace import SpanKind
from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.main import background_tasks
from shared.features import find_features
from shared.settings import Settings, load_settings
from shared.tasks import Task
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
