// What a bind_*.cpp needs to offer kernels to tests, as a Python module of its own:
//
//   static void scale(Buffer x, int count, Timing timing) {
//     launch({.blocks = 2, .threads = 64, .shared_bytes = 1024}, timing, [=, p = ScaleParams{x.mutable_data<float>(), count}] { scale<float>(p); });
//   }
//   ICCKD_MODULE(m) { m.def("scale", &scale); }
//
// Tests pass contiguous tensors for Buffers, None for absent ones, and "late" or "early" for the Timing. An emulator::Error is a
// RuntimeError in Python.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "emulator.h"

namespace pybind11::detail {

template <>
struct type_caster<icckd::emulator::Buffer> {
  PYBIND11_TYPE_CASTER(icckd::emulator::Buffer, const_name("Tensor"));

  bool load(handle tensor, bool) {
    if (tensor.is_none()) return true;
    if (!hasattr(tensor, "data_ptr")) return false;
    if (!tensor.attr("is_contiguous")().cast<bool>()) throw value_error("a Buffer should be contiguous");
    value = icckd::emulator::Buffer(reinterpret_cast<void*>(tensor.attr("data_ptr")().cast<uintptr_t>()), tensor.attr("nbytes").cast<size_t>());
    return true;
  }
};

template <>
struct type_caster<icckd::emulator::Timing> {
  PYBIND11_TYPE_CASTER(icckd::emulator::Timing, const_name("str"));

  bool load(handle text, bool) {
    if (!isinstance<str>(text)) return false;
    const std::string name = text.cast<std::string>();
    value = name == "late" ? icckd::emulator::Timing::late : icckd::emulator::Timing::early;
    return name == "late" || name == "early";
  }
};

}  // namespace pybind11::detail

namespace icckd::emulator {
namespace py = pybind11;
}

#define ICCKD_MODULE(m) PYBIND11_MODULE(ICCKD_MODULE_NAME, m)
