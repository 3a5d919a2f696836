"""Launch options for NVIDIA Hopper (H100, H200): wgmma, TMA, 227 KB of shared memory for a program.

Entries with times above them have been measured; all others are chosen by what fits, without spills.
"""

TABLE = {
    "log_sum_exp": {
        "half": {
            64: {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3},
            # H100, Triton 3.6, bfloat16, 2026-11-26, µs, an older body, N = 65,536, C = 10: 605 (128 rows: 853).
            128: {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 128, "num_warps": 4, "num_stages": 2},
            256: {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 256, "num_warps": 4, "num_stages": 2},
            # The same, C = 100: 210 (128 × 128, K = 64: 274; 64 × 128, K = 64, 4 warps: 215; 128 × 32, 2 stages: 231).
            512: {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 512, "num_warps": 8, "num_stages": 1},
            4096: {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3},
        },
    },
    "log_sum_exp_memory": {
        "half": {
            4096: {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3},
        },
    },
    "gradient": {
        "half": {
            64: {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "BLOCK_V": 64, "num_warps": 4, "num_stages": 3},
            # H100, Triton 3.6, bfloat16, 2026-11-26, µs, an older body, N = 65,536, C = 10: 875 (128 rows: 1033).
            128: {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 128, "BLOCK_V": 128, "num_warps": 4, "num_stages": 2},
            256: {"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 256, "BLOCK_V": 256, "num_warps": 4, "num_stages": 1},
            # The same, C = 100: 547 (K = 128: 763; 1 stage: 563; 32 columns, 3 stages: 649; 128 × 64, V = 256: 790).
            512: {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 512, "BLOCK_V": 512, "num_warps": 8, "num_stages": 2},
            4096: {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 128, "BLOCK_V": 512, "num_warps": 8, "num_stages": 2},
        },
    },
    "gradient_memory": {
        "half": {
            4096: {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "BLOCK_V": 128, "num_warps": 8, "num_stages": 2},
        },
    },
    "one_tile": {
        "half": {
            32: {"BLOCK": 32, "BLOCK_K": 64, "STAGES": 4, "num_warps": 4, "maxnreg": 128},
            # None of 64 rows: an H100 gave other bits each time, whatever the options tried (Triton 3.6, 2026-11-26).
            # H100, Triton 3.6, bfloat16, 2026-11-26, µs, D = 512, 66 rows a class: 232 (4 stages: 227; float16 spills).
            128: {"BLOCK": 128, "BLOCK_K": 64, "STAGES": 3, "num_warps": 8},
        },
        "float": {
            32: {"BLOCK": 32, "BLOCK_K": 32, "STAGES": 3, "num_warps": 4},
            64: {"BLOCK": 64, "BLOCK_K": 32, "STAGES": 1, "num_warps": 8},
        },
    },
    "cross_entropy_whole": {
        "half": {
            # H100, Triton 3.6, bfloat16, 2026-11-26, µs with gradient: N = 262,144, C = 100: 57.5 (TILE 1024: 129, by 2
            # warps 67.9). N = 65,536, C = 1000: 91.7 by 1 warp and by 2, 112.8 by 4; with label smoothing 110.
            128: {"TILE": 512, "num_warps": 1},
            1024: {"TILE": 1024, "num_warps": 1},
            2048: {"TILE": 2048, "num_warps": 2},
            4096: {"TILE": 4096, "num_warps": 4},
            8192: {"TILE": 8192, "num_warps": 8},
            16384: {"TILE": 16384, "num_warps": 16},
        },
    },
    "cross_entropy_swept": {
        "half": {
            # H100, Triton 3.6, bfloat16, 2026-11-26, µs with gradient, the kernel of 44 instructions a logit: N = 8192,
            # C = 32,768: 471 (1024 by 8 warps: 510, 2048 by 16, 3 stages: 540, 4096 by 8, 3 stages: 514, by 16: 653).
            1048576: {"BLOCK": 2048, "STAGES": 4, "num_warps": 8},
        },
    },
    "kd_kl_whole": {
        "half": {
            # H100, Triton 3.6, bfloat16, 2026-11-26, µs with gradient: N = 262,144, C = 100: 63.1 (TILE 1024: 71).
            # N = 65,536, C = 1000: 132 by 1 warp, by 2 and by 4; standardised 173, 158 and 220.
            128: {"TILE": 512, "num_warps": 1},
            1024: {"TILE": 1024, "num_warps": 2},
            2048: {"TILE": 2048, "num_warps": 4},
            4096: {"TILE": 4096, "num_warps": 8},
            8192: {"TILE": 8192, "num_warps": 16},
        },
        "float": {
            128: {"TILE": 512, "num_warps": 1},
            1024: {"TILE": 1024, "num_warps": 2},
            2048: {"TILE": 2048, "num_warps": 4},
            4096: {"TILE": 4096, "num_warps": 8},
            8192: {"TILE": 8192, "num_warps": 16},
        },
    },
    "kd_kl_swept": {
        "half": {
            # H100, Triton 3.6, bfloat16, 2026-11-26, µs with gradient, the kernel of 89 instructions a class: N = 8192,
            # C = 32,768: 879, the best of six.
            1048576: {"BLOCK": 2048, "STAGES": 4, "num_warps": 8},
        },
    },
}
