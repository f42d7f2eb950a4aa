"""What every experiment stands on: profiles, the artefact cache, executors, progress and provenance."""

from nkdlib.runtime.cache import Artefact, ArtefactDamaged, Cache, Task
from nkdlib.runtime.executors import make_executor
from nkdlib.runtime.progress import progress

__all__ = ["Artefact", "ArtefactDamaged", "Cache", "Task", "make_executor", "progress"]
