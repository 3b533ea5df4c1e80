// Shared by the bindings of all operators: the type of their arrays, and their error messages.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "simd/instruction_set.h"

namespace bcnet_fast {

namespace py = pybind11;
using py::arg;
using py::kw_only;

// A NumPy array of T; with the default flags, C-contiguous. pybind11's own type first makes an empty array for each
// argument, then has NumPy convert what the caller passed, which costs 0.1 us; this one accepts a matching array or
// nothing.
template <typename T, int flags = py::array::c_style>
class Array : public py::array_t<T, flags> {
 public:
  using py::array_t<T, flags>::array_t;
  Array() : py::array_t<T, flags>(py::handle(), typename Array::borrowed_t{}) {}
};

// The argument `threads` of a binding, clamped. Scratch memory is allocated for each thread, so there must be one. The
// OpenMP runtime ends the process when the system refuses a thread, so there must not be too many.
struct Threads {
  static constexpr int kMost = 1024;
  int count = 1;
  operator int() const { return count; }
};

// Throws "op: argument is actual, expected required".
[[noreturn]] inline void refuse(const char* op, const char* argument, const std::string& actual,
                                const std::string& required) {
  throw std::invalid_argument(std::string(op) + ": " + argument + " is " + actual + ", expected " + required);
}

template <typename Sizes>
std::string list_of(const Sizes& sizes) {
  std::ostringstream text;
  for (const auto size : sizes) text << (text.tellp() ? ", " : "") << size;
  return "[" + text.str() + "]";
}

// Throws "op: argument has shape [...], expected required".
[[noreturn]] inline void refuse_shape(const char* op, const char* argument, const py::array& array,
                                      const std::string& required) {
  const std::vector<py::ssize_t> shape(array.shape(), array.shape() + array.ndim());
  throw std::invalid_argument(std::string(op) + ": " + argument + " has shape " + list_of(shape) + ", expected " +
                              required);
}

// Throws "op: argument has strides [...] in bytes, expected required".
[[noreturn]] inline void refuse_strides(const char* op, const char* argument, const py::array& array,
                                        const std::string& required) {
  const std::vector<py::ssize_t> strides(array.strides(), array.strides() + array.ndim());
  throw std::invalid_argument(std::string(op) + ": " + argument + " has strides " + list_of(strides) +
                              " in bytes, expected " + required);
}

// `reason` says what the shape has to fit.
inline void require_shape(const char* op, const char* argument, const py::array& array,
                          std::initializer_list<std::int64_t> shape, const std::string& reason = "") {
  if (std::equal(shape.begin(), shape.end(), array.shape(), array.shape() + array.ndim())) return;
  refuse_shape(op, argument, array, list_of(shape) + reason);
}

inline InstructionSet instruction_set_named(const char* op, const std::string& name) {
  static const std::vector<InstructionSet> usable = instruction_sets();
  std::string names;
  for (const InstructionSet set : usable) {
    if (name == name_of(set)) return set;
    names += names.empty() ? "" : " or ";
    names += name_of(set);
  }
  refuse(op, "instruction_set", name, names);
}

// The argument `instruction_set` of a binding: set by tests, by default the best one.
inline py::arg_v instruction_set_argument() { return arg("instruction_set") = name_of(instruction_sets()[0]); }

}  // namespace bcnet_fast

namespace pybind11::detail {

template <typename T, int flags>
struct pyobject_caster<bcnet_fast::Array<T, flags>> {
  using Array = bcnet_fast::Array<T, flags>;
  PYBIND11_TYPE_CASTER(Array, const_name("numpy.typing.NDArray[") + npy_format_descriptor<T>::name + const_name("]"));

  bool load(handle source, bool /*convert*/) {
    if (!Array::check_(source)) return false;
    value = reinterpret_borrow<Array>(source);
    return true;
  }
  static handle cast(const handle& array, return_value_policy, handle) { return array.inc_ref(); }
};

// Accepts every integer, and clamps it to 1 to Threads::kMost.
template <>
struct type_caster<bcnet_fast::Threads> {
  PYBIND11_TYPE_CASTER(bcnet_fast::Threads, const_name("int"));

  bool load(handle source, bool convert) {
    make_caster<long long> number;
    if (!number.load(source, convert)) return false;
    const long long most = bcnet_fast::Threads::kMost;
    value.count = static_cast<int>(std::clamp(static_cast<long long>(number), 1LL, most));
    return true;
  }
  static handle cast(bcnet_fast::Threads threads, return_value_policy, handle) {
    return PyLong_FromLong(threads.count);
  }
};

}  // namespace pybind11::detail
