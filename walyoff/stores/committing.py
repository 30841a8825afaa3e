"""Group commit: everything that waits shares one transaction and one fsync.

A job that fails is undone by its savepoint, alone. When the transaction as a whole fails
(disk full, an I/O error), each job is tried in a transaction of its own, so that a large
write that does not fit does not take small ones with it.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from walyoff.stores.threads import Job, as_store_error

#: The write-ahead log is copied back after about this many bytes. More makes fewer, longer
#: pauses of the writer and a longer start after a crash.
_CHECKPOINT_BYTES = 16 * 2**20
#: What a commit costs in the log beside its payload: some pages of each index.
_COMMIT_OVERHEAD = 48 * 1024


class Committer:
    """Runs groups of jobs on the writer's connection. Lives in the writer's thread."""

    def __init__(self) -> None:
        self._written = 0

    def run(self, connection: sqlite3.Connection, group: list[Job[Any]]) -> None:
        """Do the jobs in their order, and leave a value or an error in each."""
        inside = [job for job in group if not job.outside]
        if inside and not self._commit(connection, inside):
            for job in inside:
                self._commit(connection, [job])
        for job in group:
            if job.outside:
                self._do(connection, job)
        for job in group:
            self._written += job.size
            if job.settle is not None:
                job.settle(job.error is None)
        self._written += _COMMIT_OVERHEAD

    def _commit(self, connection: sqlite3.Connection, group: list[Job[Any]]) -> bool:
        """Try one transaction; False if it failed as a whole and could be tried singly."""
        alone = len(group) == 1
        try:
            connection.execute("BEGIN IMMEDIATE")
            for job in group:
                job.error = None
                if alone:
                    job.value = job.work(connection)
                else:
                    self._isolated(connection, job)
            connection.execute("COMMIT")
        except Exception as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if alone:
                group[0].error = as_store_error(error)
            return alone
        return True

    @staticmethod
    def _do(connection: sqlite3.Connection, job: Job[Any]) -> None:
        try:
            job.value = job.work(connection)
        except Exception as error:
            job.error = as_store_error(error)

    @staticmethod
    def _isolated(connection: sqlite3.Connection, job: Job[Any]) -> None:
        connection.execute("SAVEPOINT job")
        try:
            job.value = job.work(connection)
        except Exception as error:
            # SQLite ends the whole transaction by itself on some errors.
            if not connection.in_transaction:
                raise
            connection.execute("ROLLBACK TO job")
            job.error = as_store_error(error)
        connection.execute("RELEASE job")

    def idle(self, connection: sqlite3.Connection) -> None:
        """Copy the log back when it has grown. Called when the callers have their answers."""
        if self._written >= _CHECKPOINT_BYTES:
            self._written = 0
            try:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            except sqlite3.Error:
                # The log stays, which is correct, only longer; a write reports the cause.
                return


def read_group(connection: sqlite3.Connection, group: list[Job[Any]]) -> None:
    """Do reading jobs, each in a snapshot of its own."""
    for job in group:
        try:
            connection.execute("BEGIN")
            job.value = job.work(connection)
        except Exception as error:
            job.error = as_store_error(error)
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
