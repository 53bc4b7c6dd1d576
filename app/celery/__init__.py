"""The Celery application and its workers, with `APP_TASK_QUEUE=celery`."""
