"""Launch options for NVIDIA Blackwell (B200): 227 KB of shared memory and 256 KB of tensor memory per multiprocessor, tcgen05, TMA."""

TABLE = {}
