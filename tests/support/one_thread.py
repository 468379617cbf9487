"""Give each framework one thread, here and in the processes that tests start: tests run side by side.

To be imported before NumPy, which reads the environment once, when it is imported.
"""

from __future__ import annotations

import os
import sys

assert "numpy" not in sys.modules, "NumPy was imported before, with as many threads as there are cores"

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
# Most of JAX's time in tests is compiling, and each size of an image is compiled anew.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
