"""The exact scan of the images that hold candidates, part by part: the driver's side of it."""

from deconvoy.store import RunStore
from workers.candidates import Judgement, candidate_images, decided, judge
from workers.job import Job
from workers.leases import ScanLease, ScanResult
from workers.parts import spans
from workers.stages import Work
from workers.topk import Fold, Partial


class Rescan:
    """The exact scan of the images that hold candidates, part by part."""

    def __init__(self, job: Job, run: RunStore, candidates: Fold) -> None:
        self._job, self._run = job, run
        self._candidates = candidates
        self._images = candidate_images(candidates)
        self._parts = spans([len(self._images)], job.spec.compute.shard_size)
        self.fold = decided(candidates, (), job.k)

    def work(self) -> Work:
        """What is left of it; parts that are committed are folded now."""
        names = {f"rescan/part-{part:06d}": part for part in range(len(self._parts))}
        left = [name for name in names if not self._run.exists(_path(name))]
        for name in names:
            if name not in left:
                self._fold(name)

        def lease_of(name: str) -> ScanLease:
            begin, end = self._parts[names[name]]
            refs = [self._job.ref(image) for image in self._images[begin:end].tolist()]
            return ScanLease(name, refs, self.fold.floor)

        def commit(name: str, result: ScanResult) -> int:
            self._run.write(_path(name), result.partial.to_bytes())
            self._fold(name)
            return size(name)

        def size(name: str) -> int:
            begin, end = self._parts[names[name]]
            return end - begin

        done = len(self._images) - sum(map(size, left))
        return Work("rescan", left, lease_of, commit, done, len(self._images))

    def _fold(self, name: str) -> None:
        self.fold.add_hits(Partial.from_bytes(self._run.read(_path(name)), name).hits)

    def judgement(self) -> Judgement:
        return judge(self._candidates, self.fold, self._job.index)


def _path(name: str) -> str:
    return f"ledger/{name}.npz"
