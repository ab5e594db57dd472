"""Property-based tests repeat exactly and have no deadline: no test here times anything.

One thread a process: tensors this small lose more to a second one than they gain.
"""

import torch
from hypothesis import settings

torch.set_num_threads(1)
torch.compiler.set_stance("force_eager")  # bitsandbytes compiles anew for every shape

settings.register_profile("course", deadline=None, derandomize=True)
settings.load_profile("course")
