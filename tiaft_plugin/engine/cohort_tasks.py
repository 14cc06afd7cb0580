"""The tasks of a cohort: slides, then the parts of large ones, and what ends these."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tiaft_plugin.engine.cohort_worker import Plan
from tiaft_plugin.engine.jobs import SlideJob, SlideResult
from tiaft_plugin.engine.parts import Part
from tiaft_plugin.engine.timing import Timing, added


@dataclass
class _Begun:
    """A slide of which others are making parts; `left` of these are not through."""

    job: SlideJob
    result: SlideResult
    left: int
    seconds: float
    failed: str = ""
    timing: Timing | None = None


class CohortTasks:
    """What is given to workers, as arguments of `work_on`; `ended` adds to `given`.

    A slide that is larger than `plan.split` is begun by its first task: that one makes the store,
    and finds stains and precision. Its parts follow, each a task; when all are made, a last task
    looks whether the store is whole (and makes it so), and has sinks written.
    """

    def __init__(self, plan: Plan, groups: Sequence[Sequence[SlideJob]], out: Path):
        self.plan, self.out = plan, out
        self.given: list[tuple[Plan, Sequence[SlideJob], Path]] = []
        self._begun: dict[Path, _Begun] = {}
        for group in groups:
            self._give(group)

    def jobs(self, number: int) -> Sequence[SlideJob]:
        """Return the slides of a task."""
        return self.given[number][1]

    def ended(self, number: int, results: Sequence[SlideResult]) -> list[SlideResult]:
        """Take the results of a task; return those of slides that are through."""
        jobs = {job.slide: job for job in self.jobs(number)}
        return [
            through for result in results if (through := self._take(jobs[result.slide], result))
        ]

    def _take(self, job: SlideJob, result: SlideResult) -> SlideResult | None:
        if result.parts:
            self._begun[job.slide] = _Begun(job, result, len(result.parts), result.seconds)
            assert result.store is not None
            for chunks in result.parts:
                self._give([replace(job, part=Part(result.store, chunks))])
            return None
        begun = self._begun.get(job.slide)
        if begun is None:
            return result
        begun.seconds += result.seconds
        if job.part is not None and job.part.chunks is not None:
            return self._part_ended(begun, result)
        del self._begun[job.slide]
        status = "done" if result.status == "exists" else result.status
        how = f"; {len(begun.result.parts)} parts, their times added up"
        speed = result.speed and result.speed + how
        return replace(result, status=status, seconds=begun.seconds, speed=speed)

    def _part_ended(self, begun: _Begun, result: SlideResult) -> SlideResult | None:
        begun.left -= 1
        begun.timing = added(begun.timing, result.timing)
        begun.failed = begun.failed or result.reason
        if begun.left:
            return None
        if begun.failed:
            del self._begun[result.slide]
            return SlideResult(result.slide, "failed", seconds=begun.seconds, reason=begun.failed)
        assert begun.result.store is not None
        self._give([replace(begun.job, part=Part(begun.result.store, timing=begun.timing))])
        return None

    def _give(self, jobs: Sequence[SlideJob]) -> None:
        self.given.append((self.plan, jobs, self.out))
