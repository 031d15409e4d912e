"""The checkpoint file of a run: LangGraph's SQLite saver, called on the event loop's own thread.

Departs from `AsyncSqliteSaver`, which takes some forty hops to a thread of its own per attempt, several times
what the writes cost: a state of ids is a kilobyte, and without waiting for the disk its write takes tens of
microseconds.

The file is a cache for half-finished attempts. It does not wait for the disk, and one that is damaged is put
aside: the attempts are then run again from the journal and the stored completions.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointMetadata, CheckpointTuple
from langgraph.checkpoint.sqlite import SqliteSaver

from verifier.errors import StorageError


class DirectSqliteSaver(SqliteSaver):
    """The coroutines that a graph run awaits, each done by its blocking sibling. For small states on a local
    disk.
    """

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return self.get_tuple(config)

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        return self.put(config, checkpoint, metadata, new_versions)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        self.put_writes(config, writes, task_id, task_path)


@contextmanager
def checkpoints(path: Path) -> Iterator[DirectSqliteSaver]:
    """The saver on `path`, which is made when it is missing. Raises StorageError when it cannot be written."""
    try:
        saver = _open(path)
    except sqlite3.OperationalError as error:
        raise StorageError(
            f"{path} cannot be written: {error}", next_step="free space or fix the permissions, then resume"
        ) from error
    except sqlite3.DatabaseError:
        path.replace(path.with_suffix(".damaged"))
        saver = _open(path)
    with closing(saver.conn):
        yield saver


def _open(path: Path) -> DirectSqliteSaver:
    connection = sqlite3.connect(path)
    try:
        connection.execute("PRAGMA synchronous=OFF")
        saver = DirectSqliteSaver(connection)
        saver.setup()
    except sqlite3.Error:
        connection.close()
        raise
    return saver
