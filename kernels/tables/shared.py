"""Launch options that at least two architectures have in common; for one with other ones they are not read.

No entry has been measured yet: all are chosen by what fits on each of them, without spills.
"""

TABLE = {
    "prepare": {
        "half": {
            4096: {"BLOCK": 8, "BLOCK_K": 512, "num_warps": 4},
        },
        "float": {
            4096: {"BLOCK": 4, "BLOCK_K": 512, "num_warps": 4},
        },
    },
    "memory_norms": {
        "half": {
            4096: {"BLOCK": 8, "BLOCK_K": 512, "num_warps": 4},
        },
        "float": {
            4096: {"BLOCK": 4, "BLOCK_K": 512, "num_warps": 4},
        },
    },
    "log_sum_exp": {
        "float": {
            4096: {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 8, "num_stages": 2},
        },
    },
    "log_sum_exp_memory": {
        "half": {
            4096: {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3},
        },
        "float": {
            4096: {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2},
        },
    },
    "gradient": {
        "float": {
            4096: {"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 32, "BLOCK_V": 64, "num_warps": 8, "num_stages": 2},
        },
    },
    "gradient_memory": {
        "half": {
            4096: {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "BLOCK_V": 64, "num_warps": 8, "num_stages": 2},
        },
        "float": {
            4096: {"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 32, "BLOCK_V": 64, "num_warps": 8, "num_stages": 2},
        },
    },
    "add_splits": {
        "half": {
            4096: {"BLOCK": 16, "BLOCK_K": 64, "num_warps": 4},
        },
        "float": {
            4096: {"BLOCK": 16, "BLOCK_K": 64, "num_warps": 4},
        },
    },
    "one_tile": {
        "half": {
            32: {"BLOCK": 32, "BLOCK_K": 64, "STAGES": 2, "num_warps": 4},
            64: {"BLOCK": 64, "BLOCK_K": 64, "STAGES": 3, "num_warps": 8},
        },
        "float": {
            32: {"BLOCK": 32, "BLOCK_K": 32, "STAGES": 2, "num_warps": 4},
            64: {"BLOCK": 64, "BLOCK_K": 32, "STAGES": 2, "num_warps": 8},
        },
    },
    "layout": {
        "float": {
            1048576: {"BLOCK": 64, "CLASSES": 8, "OTHERS": 256, "PLACED": 128, "num_warps": 2},
        },
    },
    "cross_entropy_whole": {
        "half": {
            128: {"TILE": 512, "num_warps": 1},
            1024: {"TILE": 1024, "num_warps": 1},
            2048: {"TILE": 2048, "num_warps": 2},
            4096: {"TILE": 4096, "num_warps": 4},
            8192: {"TILE": 8192, "num_warps": 8},
            16384: {"TILE": 16384, "num_warps": 16},
        },
        "float": {
            128: {"TILE": 512, "num_warps": 1},
            1024: {"TILE": 1024, "num_warps": 1},
            2048: {"TILE": 2048, "num_warps": 2},
            4096: {"TILE": 4096, "num_warps": 4},
            8192: {"TILE": 8192, "num_warps": 8},
            16384: {"TILE": 16384, "num_warps": 16},
        },
    },
    "cross_entropy_swept": {
        "float": {
            1048576: {"BLOCK": 2048, "STAGES": 3, "num_warps": 16},
        },
    },
    "kd_kl_whole": {
        "half": {
            128: {"TILE": 512, "num_warps": 1},
            1024: {"TILE": 1024, "num_warps": 1},
            2048: {"TILE": 2048, "num_warps": 2},
            4096: {"TILE": 4096, "num_warps": 4},
            8192: {"TILE": 8192, "num_warps": 8},
        },
        "float": {
            128: {"TILE": 512, "num_warps": 1},
            1024: {"TILE": 1024, "num_warps": 1},
            2048: {"TILE": 2048, "num_warps": 2},
            4096: {"TILE": 4096, "num_warps": 4},
            8192: {"TILE": 8192, "num_warps": 16},
        },
    },
    "kd_kl_swept": {
        "half": {
            1048576: {"BLOCK": 1024, "STAGES": 4, "num_warps": 8},
        },
        "float": {
            1048576: {"BLOCK": 2048, "STAGES": 3, "num_warps": 16},
        },
    },
    "squared_distances": {
        "float": {
            512: {"BLOCK": 16, "UNROLL": 4, "num_warps": 2},
            4096: {"BLOCK": 32, "UNROLL": 4, "num_warps": 4},
        },
    },
    "compare_distances": {
        "float": {
            4096: {"BLOCK": 32, "num_warps": 4},
        },
    },
    "compare_angles": {
        "float": {
            512: {"BLOCK": 16, "UNROLL": 2, "num_warps": 4},
            4096: {"BLOCK": 32, "UNROLL": 1, "num_warps": 8},
        },
    },
    "pull": {
        "float": {
            512: {"BLOCK": 16, "BLOCK_K": 16, "UNROLL": 4, "num_warps": 2},
            4096: {"BLOCK": 32, "BLOCK_K": 32, "UNROLL": 4, "num_warps": 4},
        },
    },
}
