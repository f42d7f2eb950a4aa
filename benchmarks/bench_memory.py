"""The cost of getting memory from the system and giving it back: MobileNetV2 on 64 images of 224 pixels.

Processes started as the runner starts them, with `computing`, and plain ones take turns at its forward pass on one
thread; compared are CPU seconds an image and the highest memory of the process.
"""

import json
import os
import statistics
import subprocess
import sys

from nkdlib.tasks.executors import computing

REPEATS = 5
PASS = """
import resource, time, torch
from torchvision.models import mobilenet_v2
network = mobilenet_v2(weights=None).eval().to(memory_format=torch.channels_last)
images = torch.zeros(64, 3, 224, 224).contiguous(memory_format=torch.channels_last)
with torch.no_grad():
    network(images)
    started = time.process_time()
    for _ in range(2):
        network(images)
print((time.process_time() - started) / 128, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def main() -> None:
    """Measure both and print one line of JSON."""
    plain = {**os.environ, **{name: value for name, value in computing(1).items() if not name.startswith("MALLOC")}}
    kept, found = {**os.environ, **computing(1)}, {"plain": [], "kept": []}
    for _ in range(REPEATS):
        for name, environment in (("plain", plain), ("kept", kept)):
            command = [sys.executable, "-c", PASS]
            said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
            found[name].append([float(number) for number in said.split()])
    row = {}
    for name, runs in found.items():
        seconds, memory = zip(*runs, strict=True)
        row[f"{name}_ms_an_image"] = round(1e3 * statistics.median(seconds), 2)
        row[f"{name}_mb"] = round(max(memory) / 1024)
    ratios = [a / b for (a, _), (b, _) in zip(found["plain"], found["kept"], strict=True)]
    row["times_as_fast"] = round(statistics.median(ratios), 2)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
