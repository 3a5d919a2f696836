"""Launch options for AMD CDNA 3 (MI300): MFMA, wavefronts of 64, 64 KB of shared memory for a program.

No entry has been measured yet: all are chosen by what fits, without spills.
"""

TABLE = {
    "log_sum_exp": {
        "half": {
            64: {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 8, "num_stages": 2},
            128: {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 128, "num_warps": 8, "num_stages": 2},
            4096: {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 8, "num_stages": 2},
        },
    },
    "log_sum_exp_memory": {
        "half": {
            4096: {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 2},
        },
    },
    "gradient": {
        "half": {
            128: {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "BLOCK_V": 128, "num_warps": 8, "num_stages": 2},
            4096: {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "BLOCK_V": 256, "num_warps": 8, "num_stages": 2},
        },
        "float": {
            64: {"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 32, "BLOCK_V": 64, "num_warps": 8, "num_stages": 1},
            4096: {"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 32, "BLOCK_V": 128, "num_warps": 8, "num_stages": 2},
        },
    },
    "gradient_memory": {
        "half": {
            4096: {"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 32, "BLOCK_V": 64, "num_warps": 8, "num_stages": 2},
        },
        "float": {
            4096: {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32, "BLOCK_V": 64, "num_warps": 4, "num_stages": 2},
        },
    },
    "one_tile": {
        "half": {
            32: {"BLOCK": 32, "BLOCK_K": 64, "STAGES": 3, "num_warps": 4},
            64: {"BLOCK": 64, "BLOCK_K": 64, "STAGES": 3, "num_warps": 8},
            128: {"BLOCK": 128, "BLOCK_K": 64, "STAGES": 2, "num_warps": 8},
        },
    },
    "cross_entropy_whole": {
        "half": {
            128: {"TILE": 1024, "num_warps": 1},
            2048: {"TILE": 2048, "num_warps": 1},
            4096: {"TILE": 4096, "num_warps": 2},
            8192: {"TILE": 8192, "num_warps": 4},
            16384: {"TILE": 16384, "num_warps": 8},
        },
        "float": {
            128: {"TILE": 1024, "num_warps": 1},
            2048: {"TILE": 2048, "num_warps": 1},
            4096: {"TILE": 4096, "num_warps": 2},
            8192: {"TILE": 8192, "num_warps": 4},
            16384: {"TILE": 16384, "num_warps": 8},
        },
    },
    "cross_entropy_swept": {
        "half": {
            1048576: {"BLOCK": 4096, "STAGES": 3, "num_warps": 16},
        },
    },
    "kd_kl_whole": {
        "half": {
            128: {"TILE": 1024, "num_warps": 1},
            2048: {"TILE": 2048, "num_warps": 1},
            4096: {"TILE": 4096, "num_warps": 2},
            8192: {"TILE": 8192, "num_warps": 4},
        },
        "float": {
            128: {"TILE": 1024, "num_warps": 1},
            2048: {"TILE": 2048, "num_warps": 1},
            4096: {"TILE": 4096, "num_warps": 2},
            8192: {"TILE": 8192, "num_warps": 8},
        },
    },
    "kd_kl_swept": {
        "half": {
            1048576: {"BLOCK": 2048, "STAGES": 3, "num_warps": 16},
        },
    },
}
