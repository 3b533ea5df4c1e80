// The Python module of the CUDA operators. They take addresses of device memory and a stream, so that this extension
// needs neither PyTorch nor NumPy. Addresses allow few checks; the public Python functions do the rest.
#include <cuda_runtime.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "include/soft_nms_cuda.h"

namespace py = pybind11;

// setup.py defines BCNET_SOURCES: the digest of the sources of this build (csrc/digest.py).
#define BCNET_TEXT_OF(name) #name
#define BCNET_TEXT(name) BCNET_TEXT_OF(name)

namespace bcnet_fast {
namespace {

template <typename T>
const T* input(std::uintptr_t address) {
  return reinterpret_cast<const T*>(address);
}

template <typename T>
T* output(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

template <typename T>
void start_soft_nms(std::uintptr_t segments, std::uintptr_t scores, std::uintptr_t offsets, std::int64_t candidates,
                    std::int64_t sets, int method, double sigma, double threshold_low, double threshold_high,
                    double min_score, std::int64_t max_proposals, double length_epsilon, const SoftNmsPlan& plan,
                    int device, std::uintptr_t stream, std::uintptr_t workspace, std::uintptr_t indices,
                    std::uintptr_t picked_scores, std::uintptr_t counts) {
  if (method < 0 || method > 2) {
    throw std::invalid_argument("soft_nms: method is " + std::to_string(method) + ", expected 0, 1 or 2");
  }
  const SoftNmsOptions options{
      static_cast<Decay>(method), sigma, threshold_low, threshold_high, min_score, max_proposals, length_epsilon};
  soft_nms_cuda<T>({candidates, sets, input<T>(segments), input<T>(scores), input<std::int64_t>(offsets)}, options,
                   plan, device, output<void>(stream), output<void>(workspace),
                   {output<std::int64_t>(indices), output<T>(picked_scores), output<std::int64_t>(counts)});
}

template <typename T>
void define_soft_nms(py::module_& module, const char* plan_name, const char* name) {
  module.def(plan_name, &plan_soft_nms<T>, py::arg("candidates"), py::arg("sets"), py::arg("largest"),
             py::arg("shared_limit"), "Plan the launch of soft_nms for sets of at most `largest` candidates.");
  module.def(name, &start_soft_nms<T>, py::arg("segments"), py::arg("scores"), py::arg("offsets"), py::kw_only(),
             py::arg("candidates"), py::arg("sets"), py::arg("method"), py::arg("sigma"), py::arg("threshold_low"),
             py::arg("threshold_high"), py::arg("min_score"), py::arg("max_proposals"), py::arg("length_epsilon"),
             py::arg("plan"), py::arg("device"), py::arg("stream"), py::arg("workspace"), py::arg("indices"),
             py::arg("picked_scores"), py::arg("counts"),
             "Start Soft-NMS on a device; see soft_nms_cuda.h. Method 0 is gaussian, 1 linear, 2 hard.");
}

}  // namespace
}  // namespace bcnet_fast

PYBIND11_MODULE(_C_cuda, module) {
  using namespace bcnet_fast;
  module.doc() = "The CUDA operators of bcnet_fast; use bcnet_fast.ops.";
  module.attr("SOURCES") = BCNET_TEXT(BCNET_SOURCES);
  const int major = CUDART_VERSION / 1000, minor = CUDART_VERSION % 1000 / 10;
  module.attr("COMPILER") = "nvcc " + std::to_string(major) + "." + std::to_string(minor);
  // Local, because tests load this extension a second time, compiled for the CPU.
  py::class_<SoftNmsPlan>(module, "SoftNmsPlan", py::module_local())
      .def_readonly("threads", &SoftNmsPlan::threads)
      .def_readonly("shared_candidates", &SoftNmsPlan::shared_candidates)
      .def_readonly("shared_bytes", &SoftNmsPlan::shared_bytes)
      .def_readonly("workspace_bytes", &SoftNmsPlan::workspace_bytes);
  module.def("soft_nms_shared_limit", &soft_nms_shared_limit, py::arg("device"),
             "Bytes of shared memory that a block can have. RuntimeError if the kernels cannot run.");
  define_soft_nms<float>(module, "plan_soft_nms_float32", "soft_nms_float32");
  define_soft_nms<double>(module, "plan_soft_nms_float64", "soft_nms_float64");
}
