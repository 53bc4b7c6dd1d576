"""Messages over Celery and Redis, with `APP_TASK_QUEUE=celery`. A message names a task to run.

The work itself is in PostgreSQL. The API's processes, and `python -m app worker`, send a message
on each NOTIFY, and at a regular interval as well: a Redis that loses every message delays work, but
loses none.

A message stands for one batch; a worker that has processed rows sends the next one. Each task has a
queue with its name, and workers take from the queues in turn, so mail does not wait for the backlog
of another task.
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

from app.discovery import find_features
from app.task_runner import tasks_of, tracer
from shared.settings import Settings, load_settings
from shared.tasks import Task

PAUSE_SECONDS = 0.2  # between two messages of a process for one task, at least
REDIS_TIMEOUT_SECONDS = 1.0
START_SECONDS = 60.0  # for a process to start; Celery's default of 4 suits far less code

log = structlog.get_logger(__name__)
url = load_settings(Settings).redis_url
redis = Redis.from_url(
    url or "redis://127.0.0.1:6379/0",
    retry=Retry(NoBackoff(), 0),
    socket_timeout=REDIS_TIMEOUT_SECONDS,
    socket_connect_timeout=REDIS_TIMEOUT_SECONDS,
)
names = [task.name for task in tasks_of(find_features())]
celery = Celery(
    "tessera",
    broker=url,
    broker_connection_retry_on_startup=True,
    broker_transport_options={
        # A message is only a hint, so it needs no acknowledgement. With acknowledgements, a worker
        # that holds messages when Redis goes away would die while returning them (kombu 5.7).
        "ack_emulation": False,
        "socket_timeout": REDIS_TIMEOUT_SECONDS,
        "socket_connect_timeout": REDIS_TIMEOUT_SECONDS,
    },
    accept_content=["json"],  # a pickle runs code when it is read
    task_serializer="json",
    result_accept_content=["json"],
    task_ignore_result=True,
    task_queues=[Queue(name) for name in names],  # type: ignore[no-untyped-call]
    worker_disable_prefetch=True,
    worker_proc_alive_timeout=START_SECONDS,
)


async def send(_app: FastAPI, task: Task) -> None:
    """Sends a message for a task, then pauses, so that a process does not send too many."""
    await asyncio.to_thread(send_message, task)
    await asyncio.sleep(PAUSE_SECONDS)


def send_message(task: Task) -> None:
    """Sends a message that names a task, unless one is already waiting in the queue.

    A lost message loses no work: another one follows within the task's interval.
    """
    try:
        if redis.llen(task.name):
            return
        with tracer.start_as_current_span(f"send {task.name}", kind=SpanKind.PRODUCER):
            trace: dict[str, str] = {}
            inject(trace)
            celery.send_task("drain", (task.name, trace), queue=task.name, retry=False)
    except (OperationalError, RedisError) as error:
        log.warning("message_not_sent", task=task.name, error=str(error))
