"""The metrics of the app, by their names; those of the kernel are in shared/metrics.py.

Each name stands once, as dashboards and alerts ask for it. A feature declares its own.
"""

from prometheus_client import Counter, Gauge, Histogram

REQUEST_SECONDS = Histogram(
    "http_request_duration_seconds",
    "Requests by the template of their route, and how long each took",
    ("method", "route", "status"),
)
REQUESTS_EXPIRED = Counter("tessera_requests_expired_total", "Requests given up at their deadline")
WEBSOCKETS = Gauge("tessera_websockets", "Websockets that are open", multiprocess_mode="livesum")
CONNECTIONS = Gauge(
    "tessera_database_connections",
    "Connections to PostgreSQL in use",
    ("pool",),
    multiprocess_mode="liveall",
)
CONNECTIONS_MAX = Gauge(
    "tessera_database_connections_max",
    "Connections that a pool may open",
    ("pool",),
    multiprocess_mode="liveall",
)
TASK_ROWS = Counter("tessera_task_rows_total", "Rows that a background task has done", ("task",))
TASK_SECONDS = Histogram(
    "tessera_task_batch_seconds",
    "How long a batch of a background task took that found something to do",
    ("task",),
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
)
BACKLOG_ROWS = Gauge(
    "tessera_backlog_rows",
    "Rows that wait for a background task",
    ("task", "state"),
    multiprocess_mode="mostrecent",
)
BACKLOG_AGE = Gauge(
    "tessera_backlog_age_seconds",
    "For how long the oldest of them has been due",
    ("task",),
    multiprocess_mode="mostrecent",
)
SHARDS = Gauge(
    "tessera_citus_shards",
    "Shards of each distributed table that a worker of Citus has",
    ("worker",),
    multiprocess_mode="mostrecent",
)
WORKER_REFUSALS = Counter(
    "tessera_citus_refusals_total", "Requests refused as a worker of Citus was away"
)
