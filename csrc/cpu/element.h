// The number formats that kernels read and write; they compute in float.
#pragma once

#include <cstdint>

namespace icckd {

enum class Element { float32, bfloat16, float16 };

struct bfloat16 {
  uint16_t bits;
};

struct float16 {
  uint16_t bits;
};

// Calls run(T{}) with the C++ type of `element`.
template <class Run>
void with_type(Element element, const Run& run) {
  switch (element) {
    case Element::float32: return run(float{});
    case Element::bfloat16: return run(bfloat16{});
    case Element::float16: return run(float16{});
  }
}

}  // namespace icckd
