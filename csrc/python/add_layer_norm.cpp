#include "include/add_layer_norm.h"

#include <cstdint>

#include "python/common.h"

namespace bcnet_fast {
namespace {

// Raises unless `array` has the shape [..., D] of `like`, D >= 1.
void check_rows(const char* op, const char* argument, const py::array& array, const py::array& like) {
  bool same = array.ndim() == like.ndim() && like.ndim() >= 1 && like.shape(like.ndim() - 1) >= 1;
  for (py::ssize_t i = 0; same && i < like.ndim(); ++i) same = array.shape(i) == like.shape(i);
  if (!same) refuse_shape(op, argument, array, "[..., D], D >= 1, the shape of the first argument");
}

std::int64_t check_rstd(const char* op, const py::array& rstd, std::int64_t elements, std::int64_t columns) {
  const std::int64_t rows = elements / columns;
  if (rstd.size() != rows) refuse_shape(op, "rstd", rstd, std::to_string(rows) + " elements, one per row");
  return rows;
}

template <typename T>
void forward(const Array<T>& x, const Array<T>& residual, double eps, Array<T>& out, Array<T>& rstd, Threads threads,
             const std::string& instruction_set) {
  constexpr const char* op = "add_layer_norm";
  check_rows(op, "x", x, x);
  check_rows(op, "residual", residual, x);
  check_rows(op, "out", out, x);
  const std::int64_t columns = x.shape(x.ndim() - 1);
  const std::int64_t rows = check_rstd(op, rstd, x.size(), columns);
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  T* const out_to = out.mutable_data();
  T* const rstd_to = rstd.mutable_data();
  const py::gil_scoped_release release;
  add_layer_norm(x.data(), residual.data(), rows, columns, eps, chosen, threads, out_to, rstd_to);
}

template <typename T>
void backward(const Array<T>& grad, const Array<T>& out, const Array<T>& rstd, Array<T>& grad_input, Threads threads,
              const std::string& instruction_set) {
  constexpr const char* op = "add_layer_norm_backward";
  check_rows(op, "grad", grad, grad);
  check_rows(op, "out", out, grad);
  check_rows(op, "grad_input", grad_input, grad);
  const std::int64_t columns = grad.shape(grad.ndim() - 1);
  const std::int64_t rows = check_rstd(op, rstd, grad.size(), columns);
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  T* const to = grad_input.mutable_data();
  const py::gil_scoped_release release;
  add_layer_norm_backward(grad.data(), out.data(), rstd.data(), rows, columns, chosen, threads, to);
}

template <typename T>
void define(py::module_& module) {
  module.def("add_layer_norm", &forward<T>, arg("x"), arg("residual"), arg("eps"), arg("out"), arg("rstd"),
             arg("threads"), instruction_set_argument(), "Write out [..., D] and rstd [...].");
  module.def("add_layer_norm_backward", &backward<T>, arg("grad"), arg("out"), arg("rstd"), arg("grad_input"),
             arg("threads"), instruction_set_argument(), "Write grad_input [..., D], the gradient of both inputs.");
}

}  // namespace

void define_add_layer_norm(py::module_& module) {
  define<float>(module);
  define<double>(module);
}

}  // namespace bcnet_fast
