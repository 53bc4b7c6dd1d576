"""Migrates in other processes, without the patches of a test."""

import multiprocessing
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path

from app import migrations


def processes(count: int) -> Executor:
    # not fork: this process has threads
    return ProcessPoolExecutor(count, multiprocessing.get_context("forkserver"))


def upgrade_from(root: Path, url: str) -> None:
    migrations.ROOT = root
    migrations.upgrade(url)
