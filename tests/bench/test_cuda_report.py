"""The report on the CUDA kernels' machine code: what it reads, and what it finds wrong."""

import subprocess

import pytest

from bench import cuda_report
from bench.cuda_report import Kernel, faults, parse_opcodes, parse_usage, short_name

USAGE = """
Fatbin elf code:
================
arch = sm_80
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function _Z3oneif:
  REG:26 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:380 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _Z3twov:
  REG:255 STACK:16 SHARED:48 LOCAL:0 CONSTANT[0]:380 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin elf code:
================
arch = sm_90a

Resource usage:
 Function _Z3oneif:
  REG:70 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:556 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin ptx code:
================
arch = sm_100
"""

SASS = """
arch = sm_80

	code for sm_80
		Function : _Z3oneif
	.headerflags	@"EF_CUDA_SM80"
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;     /* 0x00000a00ff017624 */
                                                                               /* 0x000fe400078e00ff */
        /*0010*/              @!P1 LDG.E.64 R4, [R16.64] ;                     /* 0x0000000610049981 */
        /*0020*/              @UP0 UBLKCP.S.G [UR4], [UR6], UR8 ;              /* 0x0000000610049981 */
		Function : _Z3twov
        /*0000*/                   STL [R1], R10 ;                             /* 0x0000000a01007387 */
        /*1f340*/                  LDL.LU R7, [R1] ;                           /* 0x0000000001077983 */

arch = sm_90a

		Function : _Z3oneif
        /*0000*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24 ; /* 0x00e00000041879f0 */
"""


def kernel(name="good<float>", arch="sm_80", stack=0, opcodes=("HMMA.16816.F32", "LDGSTS.E.BYPASS.128")):
    return Kernel(name, arch, 32, stack, 0, list(opcodes))


def test_usage():
    assert list(parse_usage(USAGE)) == [
        ("_Z3oneif", "sm_80", 26, 0, 0),
        ("_Z3twov", "sm_80", 255, 16, 48),
        ("_Z3oneif", "sm_90a", 70, 0, 1024),
    ]


def test_opcodes():
    assert parse_opcodes(SASS) == {
        ("_Z3oneif", "sm_80"): ["IMAD.MOV.U32", "LDG.E.64", "UBLKCP.S.G"],
        ("_Z3twov", "sm_80"): ["STL", "LDL.LU"],
        ("_Z3oneif", "sm_90a"): ["HGMMA.64x64x16.F32.BF16"],
    }


@pytest.mark.parametrize(
    ("demangled", "name"),
    [
        (
            "void icckd::cuda::(anonymous namespace)::push_kernel<icckd::float16, float, true>(icckd::cuda::Params)",
            "push_kernel<float16, float, true>",
        ),
        ("icckd::cuda::(anonymous namespace)::place_rows_kernel(icckd::cuda::Params)", "place_rows_kernel"),
        ("plain", "plain"),
    ],
)
def test_names(demangled, name):
    assert short_name(demangled) == name


@pytest.mark.parametrize(
    ("kernels", "expectations", "found"),
    [
        ([kernel()], {"good<*>": {"sm_80": ["HMMA", r"LDGSTS.*\.128"]}}, []),
        ([kernel()], {"good<*>": {"sm_90a": ["HGMMA"]}}, []),
        ([kernel()], {"good<*>": {"sm_80": ["HGMMA"]}}, ["good<float> on sm_80 has no HGMMA"]),
        ([kernel()], {"*": {"sm_80": ["MMA"]}}, ["good<float> on sm_80 has no MMA"]),
        ([kernel()], {"gone<*>": {}}, ["there is no kernel gone<*>, which instructions.yaml names"]),
        (
            [kernel(stack=8, opcodes=["STL", "LDL.LU", "HMMA"])],
            {},
            ["good<float> on sm_80 keeps 8 bytes on the stack, with 2 instructions"],
        ),
    ],
)
def test_faults(kernels, expectations, found):
    assert list(faults(kernels, expectations)) == found


def test_report(monkeypatch, capsys, tmp_path):
    """The whole of it, on object files that a stand-in for cuobjdump describes."""

    def run(*command):
        if command[0] == "c++filt":
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return SASS if "-sass" in command else USAGE

    monkeypatch.setattr(cuda_report, "_run", run)
    monkeypatch.setattr(cuda_report, "_cuobjdump", lambda: "cuobjdump")
    wanted = tmp_path / "wanted.yaml"
    wanted.write_text("one: {sm_80: [UBLKCP], sm_90a: [HGMMA]}\n")
    status = cuda_report.main(["kernels.o", "--expectations", str(wanted), "--json", str(tmp_path / "rows.json")])
    output = capsys.readouterr()
    assert status == 1
    assert output.err == "cuda_report: two on sm_80 keeps 16 bytes on the stack, with 2 instructions\n"
    lines = [line.split() for line in output.out.splitlines()]
    assert lines[1:] == [
        ["one", "sm_80", "26", "0", "0", "0", "UBLKCP"],
        ["one", "sm_90a", "70", "0", "0", "1024", "HGMMA"],
        ["two", "sm_80", "255", "16", "2", "48"],
    ]
    assert '"spills": 2' in (tmp_path / "rows.json").read_text()
