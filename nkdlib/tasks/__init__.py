"""Tasks: the artefact cache, executors, progress and measurements."""

from nkdlib.tasks.cache import Artefact, ArtefactDamaged, Cache, Task
from nkdlib.tasks.executors import make_executor
from nkdlib.tasks.keys import fingerprint
from nkdlib.tasks.measure import Stopwatch
from nkdlib.tasks.progress import progress

__all__ = [
    "Artefact",
    "ArtefactDamaged",
    "Cache",
    "Stopwatch",
    "Task",
    "fingerprint",
    "make_executor",
    "progress",
]
