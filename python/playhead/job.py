"""Jobs: long work with progress, that can be cancelled. They live as long as the process; the work itself is crash-safe."""

from __future__ import annotations

import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from playhead import log
from playhead._native import NativeError
from playhead.errors import PlayheadError, conflict, not_found
from playhead.point import show_time
from playhead.problem import problem_of
from playhead.resources import Job as JobResource

KEPT_FINISHED = 200
MAX_RUNNING = 32

Progress = Callable[[int, int], bool]
"""Called with done and total bytes; false means: stop."""

_log = log.get("job")


@dataclass
class Job:
    """One piece of long work."""

    id: str
    kind: str
    object: str
    started_ns: int
    state: Literal["running", "done", "failed", "cancelled"] = "running"
    done_bytes: int = 0
    total_bytes: int = 0
    finished_ns: int | None = None
    problem: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    def progress(self, done: int, total: int) -> bool:
        self.done_bytes, self.total_bytes = done, total
        return not self.cancelled.is_set()

    def resource(self) -> JobResource:
        return JobResource(
            id=self.id,
            kind=self.kind,
            object=self.object,
            state=self.state,
            done_bytes=self.done_bytes,
            total_bytes=self.total_bytes,
            started=show_time(self.started_ns),
            finished=show_time(self.finished_ns) if self.finished_ns else None,
            problem=self.problem,
            result=self.result,
        )


class Jobs:
    """All jobs of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._numbers = itertools.count(1)
        self._stopping = False

    def start(self, kind: str, target: str, work: Callable[[Progress], dict[str, Any] | None]) -> JobResource:
        """Runs `work` on a thread of its own. One job of a kind per object at a time."""
        with self._lock:
            if self._stopping:
                raise PlayheadError("stopping", "the service is stopping", "start it again first")
            running = [j for j in self._jobs.values() if j.state == "running"]
            for job in running:
                if (job.kind, job.object) == (kind, target):
                    raise conflict(
                        f"{kind} of {target} is already under way as job {job.id}", "wait for it or cancel it"
                    )
            if len(running) >= MAX_RUNNING:
                raise conflict(f"{MAX_RUNNING} jobs are under way", "wait for one to finish")
            job = Job(id=f"job-{next(self._numbers)}", kind=kind, object=target, started_ns=time.time_ns())
            self._jobs[job.id] = job
            finished = [j.id for j in self._jobs.values() if j.state != "running"]
            for old in finished[: max(0, len(finished) - KEPT_FINISHED)]:
                del self._jobs[old]
        threading.Thread(target=self._run, args=(job, work), name=job.id, daemon=True).start()
        return job.resource()

    def _run(self, job: Job, work: Callable[[Progress], dict[str, Any] | None]) -> None:
        _log.info("job started", job=job.id, kind=job.kind, object=job.object)
        try:
            job.result = work(job.progress)
            job.state = "done"
            if job.total_bytes:
                job.done_bytes = job.total_bytes
        except (PlayheadError, NativeError) as error:
            job.problem = problem_of(error)
            job.state = "cancelled" if job.cancelled.is_set() else "failed"
        except Exception as error:  # noqa: BLE001 - a thread's last resort: the job must end, and say how
            _log.exception("defect in a job", job=job.id)
            job.problem = problem_of(error)
            job.state = "failed"
        finally:
            job.finished_ns = time.time_ns()
            job.over.set()
        _log.info("job ended", job=job.id, kind=job.kind, object=job.object, state=job.state)

    def get(self, job_id: str) -> Job:
        with self._lock:
            job = self._jobs.get(job_id)
        if job is None:
            raise not_found(
                f"there is no job {job_id[:80]!r}",
                "jobs are forgotten when the service restarts; see `playhead job list`",
            )
        return job

    def list(self) -> list[JobResource]:
        with self._lock:
            return [job.resource() for job in self._jobs.values()]

    def cancel(self, job_id: str) -> JobResource:
        """Asks a job to stop; it does at its next progress."""
        job = self.get(job_id)
        job.cancelled.set()
        return job.resource()

    def stop(self, patience_s: float) -> None:
        """Cancels all and waits for them."""
        with self._lock:
            self._stopping = True
            running = [job for job in self._jobs.values() if job.state == "running"]
        deadline = time.monotonic() + patience_s
        for job in running:
            job.cancelled.set()
        for job in running:
            job.over.wait(max(0.0, deadline - time.monotonic()))
