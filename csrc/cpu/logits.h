#pragma once

#include <cstdint>

#include "cpu/element.h"

namespace icckd {

// Row i, class c: element i · row_stride + c · class_stride.
struct Logits {
  Element element;
  const void* data;
  int64_t row_stride, class_stride;
};

}  // namespace icckd
