// What the bindings of all operators share: the type of their arrays, and how they refuse bad ones.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <sstream>
#include <stdexcept>
#include <string>

#include "simd/simd.h"

namespace bcnet_fast {

namespace py = pybind11;
using py::arg;

// A NumPy array of T; with the default flags, contiguous as C has it. As an argument, pybind11's own type makes an empty array
// before it has NumPy convert what is given, 0.1 us for each argument; this one takes what is given, if it is right, or nothing.
template <typename T, int flags = py::array::c_style>
class Array : public py::array_t<T, flags> {
 public:
  using py::array_t<T, flags>::array_t;
  Array() : py::array_t<T, flags>(py::handle(), typename Array::borrowed_t{}) {}
};

[[noreturn]] inline void refuse(const char* op, const char* argument, const std::string& got, const std::string& wanted) {
  throw std::invalid_argument(std::string(op) + ": " + argument + " is " + got + ", expected " + wanted);
}

inline std::string shape_of(const py::array& array) {
  std::ostringstream text;
  text << "[";
  for (py::ssize_t i = 0; i < array.ndim(); ++i) text << (i ? ", " : "") << array.shape(i);
  text << "]";
  return text.str();
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

// The argument `instruction_set` of a binding, which tests set and everyone else leaves at the best one.
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

}  // namespace pybind11::detail
