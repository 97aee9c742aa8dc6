"""Settings shared by all tests."""

from __future__ import annotations

import os

# Set before torch or NumPy load: tests run side by side, one thread each.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("MPLBACKEND", "agg")
