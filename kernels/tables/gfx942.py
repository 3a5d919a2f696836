"""Launch options for AMD CDNA 3 (MI300): wavefronts of 64, 64 KB of shared memory, MFMA."""

TABLE = {}
