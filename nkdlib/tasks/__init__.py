"""Tasks: the artefact cache, executors, progress and measurements."""

from nkdlib.tasks.cache import Cache, Task
from nkdlib.tasks.executors import make_executor
from nkdlib.tasks.keys import fingerprint
from nkdlib.tasks.measure import Stopwatch

__all__ = [
    "Cache",
    "Stopwatch",
    "Task",
    "fingerprint",
    "make_executor",
]
