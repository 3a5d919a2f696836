"""Launch options for NVIDIA Ampere and Ada (A100 and its family): 164 KB of shared memory per multiprocessor, mma.sync, cp.async."""

TABLE = {}
