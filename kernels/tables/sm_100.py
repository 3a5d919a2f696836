"""Launch options for NVIDIA Blackwell (B200): tcgen05, tensor memory, TMA, 227 KB of shared memory for a program.

No entry has been measured yet: all are chosen by what fits, without spills.
"""

TABLE = {
    "log_sum_exp": {
        "half": {
            64: {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3},
            128: {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 128, "num_warps": 8, "num_stages": 2},
            256: {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 256, "num_warps": 8, "num_stages": 2},
            4096: {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3},
        },
    },
    "log_sum_exp_memory": {
        "float": {
            4096: {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 8, "num_stages": 2},
        },
    },
    "gradient": {
        "half": {
            64: {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64, "BLOCK_V": 64, "num_warps": 8, "num_stages": 3},
            128: {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 128, "BLOCK_V": 128, "num_warps": 8, "num_stages": 2},
            256: {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 256, "BLOCK_V": 256, "num_warps": 8, "num_stages": 2},
            4096: {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 128, "BLOCK_V": 512, "num_warps": 8, "num_stages": 2},
        },
        "float": {
            4096: {"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 32, "BLOCK_V": 128, "num_warps": 8, "num_stages": 2},
        },
    },
    "cross_entropy_swept": {
        "half": {
            1048576: {"BLOCK": 4096, "STAGES": 4, "num_warps": 16},
        },
    },
}
