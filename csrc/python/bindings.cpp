// The Python module of the C++ operators, on NumPy arrays. Each file beside this one checks the arguments of an
// operator, releases the GIL, and calls C++. The checks keep memory safe; the public Python functions check more, with
// better messages.
#include <pybind11/pybind11.h>

#include "runtime/parallel.h"
#include "simd/instruction_set.h"

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace py = pybind11;

// setup.py defines BCNET_SOURCES: the digest of the sources of this build (csrc/digest.py).
#define BCNET_TEXT_OF(name) #name
#define BCNET_TEXT(name) BCNET_TEXT_OF(name)

namespace bcnet_fast {
void define_anchor_sampling(py::module_& module);
void define_add_layer_norm(py::module_& module);
void define_difference_attention(py::module_& module);
void define_layers(py::module_& module);
void define_match_proposals(py::module_& module);
void define_nms_1d(py::module_& module);
void define_second_stage(py::module_& module);
void define_soft_nms(py::module_& module);
}  // namespace bcnet_fast

PYBIND11_MODULE(_C, module) {
  module.doc() = "The native operators of bcnet_fast; use bcnet_fast.ops.";
  module.attr("SOURCES") = BCNET_TEXT(BCNET_SOURCES);
#if defined(__clang__)
  module.attr("COMPILER") = __VERSION__;  // begins with the name
#elif defined(__GNUC__)
  module.attr("COMPILER") = "GCC " __VERSION__;
#else
  module.attr("COMPILER") = "neither GCC nor Clang: code without vector instructions";
#endif
  py::list sets;
  for (const bcnet_fast::InstructionSet set : bcnet_fast::instruction_sets()) sets.append(bcnet_fast::name_of(set));
  module.attr("INSTRUCTION_SETS") = py::tuple(sets);  // usable on this machine, best first
  module.def(
      "return_freed_memory",
      [] {
#if defined(__GLIBC__)
        malloc_trim(0);
#endif
      },
      "Return memory that the C library keeps for later to the system.");
  bcnet_fast::define_difference_attention(module);
  bcnet_fast::define_layers(module);
  bcnet_fast::define_anchor_sampling(module);
  bcnet_fast::define_add_layer_norm(module);
  bcnet_fast::define_match_proposals(module);
  bcnet_fast::define_nms_1d(module);
  bcnet_fast::define_second_stage(module);
  bcnet_fast::define_soft_nms(module);
}
