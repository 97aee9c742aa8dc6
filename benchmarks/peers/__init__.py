"""One file per way to simulate; each function takes a workload and returns the call to time."""
