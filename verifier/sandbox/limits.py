"""The caps of one job."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What one job may use. A job that meets a cap is ended or refused; the client never is."""

    wall_seconds: float = 60.0
    """From the moment the child is confined until it has ended."""
    cpu_seconds: int = 60
    """CPU time of all processes of the job."""
    memory_bytes: int = 8 << 30
    """Growth of the address space of each process, and private memory of all its processes together."""
    file_bytes: int = 256 << 20
    """Size of one file in the work folder."""
    folder_bytes: int = 1 << 30
    """All of the work folder, where the kernel gives a private one (see `isolation_gaps`)."""
    processes: int = 64
    """Processes and threads together."""
    result_bytes: int = 256 << 20
    """The answer: JSON and blobs."""
    descriptors: int = 256
    """Open files of each process."""
    map_freely: bool = False
    """No cap on address space: the driver of a GPU reserves more than any machine has. What is touched is capped."""
