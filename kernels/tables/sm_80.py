"""Launch options for NVIDIA Ampere (A100) and later ones before Hopper: mma.sync, cp.async, 163 KB of shared memory.

No entry has been measured yet: all are chosen by what fits, without spills.
"""

TABLE = {
    "log_sum_exp": {
        "half": {
            64: {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3},
            128: {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 128, "num_warps": 8, "num_stages": 2},
            4096: {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3},
        },
        "float": {
            4096: {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 8, "num_stages": 2},
        },
    },
    "log_sum_exp_memory": {
        "float": {
            4096: {"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2},
        },
    },
    "gradient": {
        "half": {
            64: {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64, "BLOCK_V": 64, "num_warps": 8, "num_stages": 2},
            128: {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 128, "BLOCK_V": 128, "num_warps": 8, "num_stages": 2},
            4096: {"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 64, "BLOCK_V": 256, "num_warps": 8, "num_stages": 2},
        },
    },
    "gradient_memory": {
        "float": {
            4096: {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32, "BLOCK_V": 64, "num_warps": 8, "num_stages": 2},
        },
    },
    "one_tile": {
        "float": {
            32: {"BLOCK": 32, "BLOCK_K": 32, "STAGES": 2, "num_warps": 4},
            64: {"BLOCK": 64, "BLOCK_K": 16, "STAGES": 2, "num_warps": 8},
        },
    },
    "cross_entropy_swept": {
        "half": {
            1048576: {"BLOCK": 2048, "STAGES": 4, "num_warps": 16},
        },
    },
}
