#include "include/attention.h"

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "python/common.h"
#include "python/rows.h"

namespace bcnet_fast {
namespace {

// [B, H, rows, columns] with unit column stride.
template <typename T>
HeadRows<const T> heads_of(const char* op, const char* argument, const Rows<T>& array, std::int64_t rows,
                           std::int64_t columns, const Rows<T>& like) {
  const bool fits = array.ndim() == 4 && array.shape(0) == like.shape(0) && array.shape(1) == like.shape(1) &&
                    array.shape(2) == rows && array.shape(3) == columns;
  if (!fits) {
    const std::vector shape{like.shape(0), like.shape(1), py::ssize_t{rows}, py::ssize_t{columns}};
    refuse_shape(op, argument, array, list_of(shape) + " to fit query, key and value_action");
  }
  for (py::ssize_t axis = 0; axis < 4; ++axis) {
    const bool unit = axis < 3 ? array.strides(axis) % kSize<T> == 0 : array.strides(3) == kSize<T> || columns == 1;
    if (!unit) refuse_strides(op, argument, array, "a unit column stride");
  }
  return {array.data(), array.shape(1), array.strides(0) / kSize<T>, array.strides(1) / kSize<T>,
          array.strides(2) / kSize<T>};
}

template <typename T>
HeadRows<T> outputs_of(const char* op, const char* argument, Rows<T>& array, std::int64_t rows, std::int64_t columns,
                       const Rows<T>& like) {
  const HeadRows<const T> heads = heads_of(op, argument, array, rows, columns, like);
  if (!array.writeable()) refuse(op, argument, "read-only", "a writeable array");
  return {array.mutable_data(), heads.heads, heads.batch_stride, heads.head_stride, heads.stride};
}

template <typename T>
AttentionSizes sizes_of(const char* op, const Rows<T>& query, const Rows<T>& key, const Rows<T>& value, double scale) {
  const std::pair<const char*, const Rows<T>*> sequences[]{{"query", &query}, {"key", &key}, {"value_action", &value}};
  for (const auto& [argument, array] : sequences) {
    if (array->ndim() != 4 || array->size() == 0) refuse_shape(op, argument, *array, "[B, H, T, D], not empty");
  }
  if (!std::isfinite(scale)) refuse(op, "scale", std::to_string(scale), "a finite number");
  return {query.shape(0) * query.shape(1), query.shape(2), key.shape(2), query.shape(3), value.shape(3), scale};
}

template <typename T>
void forward(const Rows<T>& query, const Rows<T>& key, const Rows<T>& value_action, const Rows<T>& value_background,
             double scale, Rows<T>& out_action, Rows<T>& out_background, Array<T>& lse, Threads threads,
             const std::string& instruction_set) {
  constexpr const char* op = "difference_attention";
  const AttentionSizes sizes = sizes_of(op, query, key, value_action, scale);
  const HeadRows<const T> queries = heads_of(op, "query", query, sizes.queries, sizes.head_size, query);
  const HeadRows<const T> keys = heads_of(op, "key", key, sizes.keys, sizes.head_size, query);
  const HeadRows<const T> values[]{
      heads_of(op, "value_action", value_action, sizes.keys, sizes.value_size, query),
      heads_of(op, "value_background", value_background, sizes.keys, sizes.value_size, query)};
  const HeadRows<T> outputs[]{outputs_of(op, "out_action", out_action, sizes.queries, sizes.value_size, query),
                              outputs_of(op, "out_background", out_background, sizes.queries, sizes.value_size, query)};
  if (lse.size() != sizes.heads * sizes.queries) refuse_shape(op, "lse", lse, "[B, H, Tq] to fit query");
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  T* const sums = lse.mutable_data();
  const py::gil_scoped_release release;
  attention<T>(queries, keys, values, 2, sizes, chosen, threads, outputs, sums);
}

template <typename T>
void backward(const Rows<T>& grad_action, const Rows<T>& grad_background, const Rows<T>& query, const Rows<T>& key,
              const Rows<T>& value_action, const Rows<T>& value_background, double scale, Rows<T>& of_query,
              Rows<T>& of_key, Rows<T>& of_action, Rows<T>& of_background, Threads threads,
              const std::string& instruction_set) {
  constexpr const char* op = "difference_attention_backward";
  const AttentionSizes sizes = sizes_of(op, query, key, value_action, scale);
  const HeadRows<const T> grads[]{
      heads_of(op, "grad_action", grad_action, sizes.queries, sizes.value_size, query),
      heads_of(op, "grad_background", grad_background, sizes.queries, sizes.value_size, query)};
  const HeadRows<const T> queries = heads_of(op, "query", query, sizes.queries, sizes.head_size, query);
  const HeadRows<const T> keys = heads_of(op, "key", key, sizes.keys, sizes.head_size, query);
  const HeadRows<const T> values[]{
      heads_of(op, "value_action", value_action, sizes.keys, sizes.value_size, query),
      heads_of(op, "value_background", value_background, sizes.keys, sizes.value_size, query)};
  const AttentionGradients<T> gradients{
      outputs_of(op, "of_query", of_query, sizes.queries, sizes.head_size, query),
      outputs_of(op, "of_key", of_key, sizes.keys, sizes.head_size, query),
      {outputs_of(op, "of_action", of_action, sizes.keys, sizes.value_size, query),
       outputs_of(op, "of_background", of_background, sizes.keys, sizes.value_size, query)}};
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  const py::gil_scoped_release release;
  attention_backward<T>(grads, queries, keys, values, 2, sizes, chosen, threads, gradients);
}

template <typename T>
void define(py::module_& module) {
  module.def("difference_attention", &forward<T>, arg("query"), arg("key"), arg("value_action"),
             arg("value_background"), arg("scale"), kw_only(), arg("out_action"), arg("out_background"), arg("lse"),
             arg("threads"), instruction_set_argument(), "Write the outputs [B, H, Tq, Dv] and lse [B, H, Tq].");
  module.def("difference_attention_backward", &backward<T>, arg("grad_action"), arg("grad_background"), arg("query"),
             arg("key"), arg("value_action"), arg("value_background"), arg("scale"), kw_only(), arg("of_query"),
             arg("of_key"), arg("of_action"), arg("of_background"), arg("threads"), instruction_set_argument(),
             "Write the gradients of query, key and values, from those of the outputs.");
}

}  // namespace

void define_difference_attention(py::module_& module) {
  define<float>(module);
  define<double>(module);
}

}  // namespace bcnet_fast
