"""Launch options for Triton's interpreter: tiles so small that tests of a few rows meet every branch."""

TABLE = {
    "prepare": {
        "half": {
            1024: {"BLOCK": 32, "BLOCK_K": 32, "num_warps": 1},
        },
        "float": {
            1024: {"BLOCK": 32, "BLOCK_K": 32, "num_warps": 1},
        },
    },
    "memory_norms": {
        "half": {
            1024: {"BLOCK": 32, "BLOCK_K": 32, "num_warps": 1},
        },
        "float": {
            1024: {"BLOCK": 32, "BLOCK_K": 32, "num_warps": 1},
        },
    },
    "log_sum_exp": {
        "half": {
            16: {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "num_warps": 1, "num_stages": 1},
            1024: {"BLOCK_M": 32, "BLOCK_N": 16, "BLOCK_K": 32, "num_warps": 1, "num_stages": 1},
        },
        "float": {
            16: {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "num_warps": 1, "num_stages": 1},
            1024: {"BLOCK_M": 32, "BLOCK_N": 16, "BLOCK_K": 32, "num_warps": 1, "num_stages": 1},
        },
    },
    "log_sum_exp_memory": {
        "half": {
            1024: {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 16, "num_warps": 1, "num_stages": 1},
        },
        "float": {
            1024: {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 16, "num_warps": 1, "num_stages": 1},
        },
    },
    "gradient": {
        "half": {
            16: {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "BLOCK_V": 16, "num_warps": 1, "num_stages": 1},
            1024: {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 16, "BLOCK_V": 32, "num_warps": 1, "num_stages": 1},
        },
        "float": {
            16: {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "BLOCK_V": 16, "num_warps": 1, "num_stages": 1},
            1024: {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 16, "BLOCK_V": 32, "num_warps": 1, "num_stages": 1},
        },
    },
    "gradient_memory": {
        "half": {
            1024: {"BLOCK_M": 32, "BLOCK_N": 16, "BLOCK_K": 16, "BLOCK_V": 32, "num_warps": 1, "num_stages": 1},
        },
        "float": {
            1024: {"BLOCK_M": 32, "BLOCK_N": 16, "BLOCK_K": 16, "BLOCK_V": 32, "num_warps": 1, "num_stages": 1},
        },
    },
    "add_splits": {
        "half": {
            1024: {"BLOCK": 32, "BLOCK_K": 16, "num_warps": 1},
        },
        "float": {
            1024: {"BLOCK": 32, "BLOCK_K": 16, "num_warps": 1},
        },
    },
    "one_tile": {
        "half": {
            16: {"BLOCK": 16, "BLOCK_K": 16, "STAGES": 1, "num_warps": 1},
            32: {"BLOCK": 32, "BLOCK_K": 16, "STAGES": 1, "num_warps": 1},
        },
        "float": {
            16: {"BLOCK": 16, "BLOCK_K": 16, "STAGES": 1, "num_warps": 1},
            32: {"BLOCK": 32, "BLOCK_K": 16, "STAGES": 1, "num_warps": 1},
        },
    },
    "layout": {
        "float": {
            64: {"BLOCK": 16, "CLASSES": 2, "OTHERS": 8, "PLACED": 16, "num_warps": 1},
            1048576: {"BLOCK": 64, "CLASSES": 64, "OTHERS": 1024, "PLACED": 128, "num_warps": 1},
        },
    },
    "cross_entropy_whole": {
        "half": {
            64: {"TILE": 64, "num_warps": 1},
        },
        "float": {
            64: {"TILE": 64, "num_warps": 1},
        },
    },
    "cross_entropy_swept": {
        "half": {
            1024: {"BLOCK": 32, "STAGES": 1, "num_warps": 1},
        },
        "float": {
            1024: {"BLOCK": 32, "STAGES": 1, "num_warps": 1},
        },
    },
    "kd_kl_whole": {
        "half": {
            64: {"TILE": 64, "num_warps": 1},
        },
        "float": {
            64: {"TILE": 64, "num_warps": 1},
        },
    },
    "kd_kl_swept": {
        "half": {
            1024: {"BLOCK": 32, "STAGES": 1, "num_warps": 1},
        },
        "float": {
            1024: {"BLOCK": 32, "STAGES": 1, "num_warps": 1},
        },
    },
    "squared_distances": {
        "float": {
            1024: {"BLOCK": 16, "UNROLL": 1, "num_warps": 1},
        },
    },
    "compare_distances": {
        "float": {
            1024: {"BLOCK": 16, "num_warps": 1},
        },
    },
    "compare_angles": {
        "float": {
            1024: {"BLOCK": 16, "UNROLL": 1, "num_warps": 1},
        },
    },
    "pull": {
        "float": {
            1024: {"BLOCK": 16, "BLOCK_K": 8, "UNROLL": 1, "num_warps": 1},
        },
    },
}
