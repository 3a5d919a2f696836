// The operators of icckd._C: their schemas, and the Python module whose import registers them.
//
// docs/architecture.md says what each computes. Implementations register themselves: csrc/cpu/*.cpp.

#include <Python.h>
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(icckd_native, m) {
  m.def("cpu_capability() -> str");

  m.def(
      "intra_class_rows(Tensor anchor, Tensor positive, Tensor labels, Tensor weight, Tensor? memory, "
      "Tensor? memory_labels, Tensor temperature, bool normalize, int? num_classes) -> (Tensor rows, Tensor lse)");
  m.def(
      "intra_class_rows_backward(Tensor grad_rows, Tensor lse, Tensor anchor, Tensor positive, Tensor labels, "
      "Tensor weight, Tensor? memory, Tensor? memory_labels, Tensor temperature, bool normalize, int? num_classes, "
      "bool need_anchor, bool need_positive, bool need_temperature) "
      "-> (Tensor d_anchor, Tensor d_positive, Tensor d_temperature)");
  m.def(
      "intra_class_sum(Tensor anchor, Tensor positive, Tensor labels, Tensor weight, Tensor? memory, "
      "Tensor? memory_labels, Tensor temperature, bool normalize, int? num_classes, "
      "bool need_anchor, bool need_positive, bool need_temperature) "
      "-> (Tensor loss, Tensor d_anchor, Tensor d_positive, Tensor d_temperature)");

  m.def(
      "cross_entropy_margin_rows(Tensor logits, Tensor labels, float label_smoothing, str space, int ignore_index) "
      "-> (Tensor rows, Tensor margin, Tensor lse)");
  m.def(
      "cross_entropy_margin_rows_backward(Tensor grad_rows, Tensor lse, Tensor logits, Tensor labels, "
      "float label_smoothing, int ignore_index) -> Tensor d_logits");
  m.def(
      "cross_entropy_margin_sum(Tensor logits, Tensor labels, Tensor weight, float label_smoothing, str space, "
      "int ignore_index) -> (Tensor loss, Tensor margin, Tensor d_logits)");

  m.def("kd_kl_rows(Tensor student, Tensor teacher, float temperature, bool standardize) -> Tensor rows");
  m.def(
      "kd_kl_rows_backward(Tensor grad_rows, Tensor student, Tensor teacher, float temperature, bool standardize) "
      "-> Tensor d_student");
  m.def(
      "kd_kl_sum(Tensor student, Tensor teacher, float temperature, bool standardize, float scale) "
      "-> (Tensor loss, Tensor d_student)");
  m.def("transformed_teacher_rows(Tensor student, Tensor teacher, float gamma, bool weighted) -> Tensor rows");
  m.def(
      "transformed_teacher_rows_backward(Tensor grad_rows, Tensor student, Tensor teacher, float gamma, "
      "bool weighted) -> Tensor d_student");
  m.def(
      "rest_divergence_rows(Tensor student, Tensor teacher, Tensor labels, float temperature, "
      "float odds_temperature) -> (Tensor divergence, Tensor entropy, Tensor odds, Tensor teacher_odds)");
  m.def(
      "rest_divergence_rows_backward(Tensor grad_divergence, Tensor grad_odds, Tensor student, Tensor teacher, "
      "Tensor labels, float temperature, float odds_temperature) -> Tensor d_student");
  m.def("rkd_distance(Tensor student, Tensor teacher, bool need_grad) -> (Tensor loss, Tensor d_student)");
  m.def("rkd_angle(Tensor student, Tensor teacher, bool need_grad) -> (Tensor loss, Tensor d_student)");

  m.def("bank_products(Tensor query, Tensor bank, Tensor index) -> Tensor products");
  m.def("bank_sums(Tensor weight, Tensor bank, Tensor index) -> Tensor sums");

  m.def(
      "hierarchical_sorted_sum(Tensor rows, Tensor classes, Tensor centers, Tensor own, Tensor scale, Tensor anchor, float gamma, "
      "float positive_scale, float negative_scale, bool need_grad) -> (Tensor loss, Tensor least, Tensor d_rows)");
}

static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit__C() {
  return PyModule_Create(&definition);
}
