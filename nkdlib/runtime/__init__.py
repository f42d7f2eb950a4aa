"""What every experiment stands on: profiles, the artefact cache, executors, progress and provenance."""

from nkdlib.runtime.cache import Artefact, ArtefactDamaged, Cache, Task
from nkdlib.runtime.executors import make_executor
from nkdlib.runtime.measure import Stopwatch, peak_memory_mb
from nkdlib.runtime.profiles import PROFILES, Profile
from nkdlib.runtime.progress import progress
from nkdlib.runtime.provenance import provenance

__all__ = [
    "PROFILES",
    "Artefact",
    "ArtefactDamaged",
    "Cache",
    "Profile",
    "Stopwatch",
    "Task",
    "make_executor",
    "peak_memory_mb",
    "progress",
    "provenance",
]
