"""PyTorch's part of startup.py: prints as JSON where the time until unet_step_torch.py's first train step went.

Its argument is that of unet_step_torch.py, with "started", `time.time()` when the process was started, and "mode".
"""

import json
import time

from torch_answers import SETTINGS, wait
from unet_step_torch import Steps

if __name__ == "__main__":
    imported = time.time()
    steps = Steps("adm", SETTINGS["mode"], "contiguous")
    built = time.time()
    steps.train()
    wait()
    ended, started = time.time(), SETTINGS["started"]
    parts = {"import": imported - started, "build": built - imported, "first step": ended - built}
    print(json.dumps(parts | {"total": ended - started}))
