"""Launch options for NVIDIA Hopper (H100, H200): 227 KB of shared memory per multiprocessor, wgmma, TMA."""

TABLE = {}
