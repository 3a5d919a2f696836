#include "cpu/dispatch.h"

#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <string>

namespace icckd {
namespace {

constexpr const char* names[] = {"baseline", "avx2", "avx512", "avx512_bf16"};

Capability best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return __builtin_cpu_supports("avx512bf16") ? Capability::avx512_bf16 : Capability::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Capability::avx2;
#endif
  return Capability::baseline;
}

Capability chosen() {
  const char* wanted = std::getenv("ICCKD_CPU_CAPABILITY");
  if (wanted == nullptr || *wanted == '\0') return best();
  for (int level = 0; level <= static_cast<int>(best()); ++level)
    if (std::string(wanted) == names[level]) return static_cast<Capability>(level);
  STD_TORCH_CHECK(
      false, "ICCKD_CPU_CAPABILITY is '", wanted, "'; it should be baseline, avx2, avx512 or avx512_bf16, and here at most ",
      names[static_cast<int>(best())]);
}

std::string capability_name() {
  return names[static_cast<int>(cpu_capability())];
}

}  // namespace

Capability cpu_capability() {
  static const Capability capability = chosen();
  return capability;
}

}  // namespace icckd

STABLE_TORCH_LIBRARY_IMPL(icckd_native, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&icckd::capability_name));
}
