"""Background work on Celery, with `APP_TASK_QUEUE=celery`: `celery -A app.celery.worker worker`.

Any number of workers may run, each with as many processes as `--concurrency` says. With
`APP_METRICS_PORT` the first process of a worker serves the metrics of all its processes.
"""

import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack
from tempfile import TemporaryDirectory

from anyio.from_thread import BlockingPortal, start_blocking_portal
from celery.signals import (
    setup_logging,
    worker_init,
    worker_process_init,
    worker_process_shutdown,
)
from fastapi import FastAPI
from opentelemetry.context import Context
from opentelemetry.propagate import extract
from opentelemetry.trace import SpanKind

from shared.settings import Settings, load_settings

metrics_port = load_settings(Settings).metrics_port
if metrics_port:
    # prometheus-client decides once whether to count in files, when the first counter is declared:
    # so set the folder before the imports below, which declare counters.
    counted = TemporaryDirectory(prefix="tessera-metrics-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = counted.name

from app.celery.app import celery, send_message  # noqa: E402
from app.command_errors import exit_on_user_error  # noqa: E402
from app.main import create_app  # noqa: E402
from app.ops.logging import configure_logging  # noqa: E402
from app.ops.metrics_endpoint import serve_metrics  # noqa: E402
from app.task_runner import report_failure, run_batch, tracer  # noqa: E402
from shared.tasks import Task  # noqa: E402


class WorkerProcess:
    """The application of one worker process, on an event loop in a separate thread."""

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


def run_by_name(name: str, trace: Mapping[str, str]) -> None:
    """Processes one batch of the named task, and sends a message for the next batch.

    Does nothing for a task that this version does not know. `trace` is the trace context of the
    sender, which this batch continues.
    """
    for task in process.app.state.tasks:
        if task.name == name and _run_batch(task, extract(trace)):
            send_message(task)


def _run_batch(task: Task, context: Context) -> int:
    try:
        with tracer.start_as_current_span(
            f"receive {task.name}", context=context, kind=SpanKind.CONSUMER
        ):
            return process.portal.call(run_batch, process.app, task)
    except Exception as error:
        report_failure(task, error)
        return 0


def show_metrics(**_: object) -> None:
    """Serves the metrics from the first process; those of the pool start later."""
    if metrics_port:
        with exit_on_user_error():
            serve_metrics(metrics_port)


def set_up_logging(**_: object) -> None:
    """Configures logging. Celery does not configure it if its signal has a receiver."""
    configure_logging(load_settings(Settings))
    for per_message in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(per_message).setLevel(logging.WARNING)


process = WorkerProcess()
celery.task(run_by_name, name="drain")
setup_logging.connect(set_up_logging)
worker_init.connect(show_metrics)
worker_process_init.connect(process.start, weak=False)
worker_process_shutdown.connect(process.stop, weak=False)
