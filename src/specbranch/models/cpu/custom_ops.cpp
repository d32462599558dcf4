// Operators that compiled forwards call without Python between them: products with packed weights, and
// attention.

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "attention.h"
#include "blocks.h"

namespace {

struct Model {
  std::vector<c10::IValue> halves;    // packed weights, in the layers' order
  std::vector<c10::IValue> integers;  // packed weights, scales and zero points of each layer
  std::vector<at::Tensor> blocks;     // matrices in blocks
  std::vector<int64_t> kinds;         // of their blocks
};

std::mutex guard;
std::unordered_map<int64_t, std::shared_ptr<const Model>> models;
int64_t last = 0;
thread_local std::shared_ptr<const Model> running;

// add_model(packed weights of halves, of integers, of blocks, kinds of blocks) -> int
void add_model(const c10::OperatorHandle&, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const c10::IValue kinds = torch::jit::pop(*stack);
  const c10::IValue blocks = torch::jit::pop(*stack);
  const c10::IValue integers = torch::jit::pop(*stack);
  const c10::IValue halves = torch::jit::pop(*stack);
  const at::ArrayRef<c10::IValue> held = halves.toListRef();
  Model model{held.vec(), {}, blocks.toTensorVector(), kinds.toIntVector()};
  for (const at::Tensor& tensor : integers.toTensorVector()) model.integers.emplace_back(tensor);
  std::lock_guard<std::mutex> lock(guard);
  models[++last] = std::make_shared<const Model>(std::move(model));
  torch::jit::push(*stack, last);
}

void remove_model(int64_t model) {
  std::lock_guard<std::mutex> lock(guard);
  models.erase(model);
}

// What this thread runs from now on.
void run_model(int64_t model) {
  std::lock_guard<std::mutex> lock(guard);
  running = models.at(model);
}

at::Tensor half_linear(const at::Tensor& x, int64_t layer, int64_t out_features) {
  static const auto product =
      c10::Dispatcher::singleton().findSchemaOrThrow("quantized::linear_dynamic_fp16", "");
  TORCH_CHECK(running, "no model is run");
  torch::jit::Stack stack{x, running->halves.at(layer)};
  product.callBoxed(stack);
  return torch::jit::pop(stack).toTensor();
}

// x: uint8 around 128. Gives float32, for rows of scale 1.
at::Tensor int8_linear(const at::Tensor& x, int64_t layer, int64_t out_features) {
  static const auto product =
      c10::Dispatcher::singleton().findSchemaOrThrow("onednn::qlinear_pointwise", "");
  static const c10::IValue dtype(static_cast<int64_t>(at::kFloat));
  static const c10::IValue no_arguments(c10::List<std::optional<at::Scalar>>{});
  TORCH_CHECK(running, "no model is run");
  const c10::IValue* packed = &running->integers.at(3 * layer);
  torch::jit::Stack stack{x,   1.0,     int64_t{128}, packed[0], packed[1], packed[2],
                          {},  1.0,     int64_t{0},   dtype,     "none",    no_arguments,
                          ""};
  product.callBoxed(stack);
  return torch::jit::pop(stack).toTensor();
}

// x: float32 [..., inputs]. Gives float32 [..., out_features].
at::Tensor multiply_blocks(
    const at::Tensor& x, const at::Tensor& matrix, int64_t kind, int64_t out_features) {
  const at::Tensor rows = x.contiguous();
  const int64_t inputs = rows.size(-1), count = rows.numel() / inputs;
  std::vector<int64_t> shape = rows.sizes().vec();
  shape.back() = out_features;
  at::Tensor y = at::empty(shape, rows.options());
  specbranch::with_format(kind, [&](auto format) {
    specbranch::multiply<decltype(format)>(
        matrix.const_data_ptr<uint8_t>(), rows.const_data_ptr<float>(), count, inputs,
        out_features, y.mutable_data_ptr<float>());
  });
  return y;
}

// ids: int64 [...]. Gives float32 [..., width]: rows of a matrix that has as many as `rows`.
at::Tensor read_blocks(
    const at::Tensor& ids, const at::Tensor& matrix, int64_t kind, int64_t rows, int64_t width) {
  const at::Tensor asked = ids.contiguous();
  const int64_t* rows_asked = asked.const_data_ptr<int64_t>();
  std::vector<int64_t> shape = asked.sizes().vec();
  shape.push_back(width);
  at::Tensor found = at::empty(shape, asked.options().dtype(at::kFloat));
  float* weights = found.mutable_data_ptr<float>();
  for (int64_t at = 0; at < asked.numel(); ++at)
    TORCH_CHECK_INDEX(rows_asked[at] >= 0 && rows_asked[at] < rows, "no row ", rows_asked[at]);
  specbranch::with_format(kind, [&](auto format) {
    at::parallel_for(0, asked.numel(), 64, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; ++at)
        specbranch::read_row<decltype(format)>(
            matrix.const_data_ptr<uint8_t>(), rows_asked[at], width, weights + at * width);
    });
  });
  return found;
}

at::Tensor block_linear(const at::Tensor& x, int64_t layer, int64_t out_features) {
  TORCH_CHECK(running, "no model is run");
  return multiply_blocks(x, running->blocks.at(layer), running->kinds.at(layer), out_features);
}

at::Tensor block_embedding(const at::Tensor& ids, int64_t layer, int64_t rows, int64_t width) {
  TORCH_CHECK(running, "no model is run");
  return read_blocks(ids, running->blocks.at(layer), running->kinds.at(layer), rows, width);
}

// query: [1, heads, n, size]; key, value: [1, cached heads, extent, size]; mask: bool
// [1, 1, n, extent]. Gives [1, n, heads, size].
at::Tensor attend(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& mask, double scale) {
  const auto last = [](const at::Tensor& x) { return x.stride(3) == 1 ? x : x.contiguous(); };
  const auto rows = [](const at::Tensor& x) {
    return specbranch::Rows{x.const_data_ptr<float>(), x.stride(1), x.stride(2)};
  };
  const at::Tensor q = last(query), k = last(key), v = last(value), seen = mask.contiguous();
  const int64_t heads = q.size(1), count = q.size(2), size = q.size(3), extent = k.size(2);
  TORCH_CHECK(
      q.size(0) == 1 && mask.size(1) == 1 && mask.size(2) == count && mask.size(3) == extent &&
          v.size(3) == size && size % specbranch::HEAD_STEP == 0 && heads % k.size(1) == 0,
      "attention of other shapes");
  at::Tensor out = at::empty({1, count, heads, size}, q.options());
  specbranch::attend(
      rows(q), rows(k), rows(v), seen.const_data_ptr<bool>(), heads, k.size(1), count, extent, size,
      static_cast<float>(scale), out.mutable_data_ptr<float>());
  return out;
}

TORCH_LIBRARY(specbranch, library) {
  library.def(
      "add_model(__torch__.torch.classes.quantized.LinearPackedParamsBase[] halves, "
      "Tensor[] integers, Tensor[] blocks, int[] kinds) -> int",
      torch::CppFunction::makeFromBoxedFunction<&add_model>());
  library.def("remove_model(int model) -> ()", &remove_model);
  library.def("run_model(int model) -> ()", &run_model);
  library.def("half_linear(Tensor x, int layer, int out_features) -> Tensor");
  library.def("int8_linear(Tensor x, int layer, int out_features) -> Tensor");
  library.def("block_linear(Tensor x, int layer, int out_features) -> Tensor");
  library.def("block_embedding(Tensor ids, int layer, int rows, int width) -> Tensor");
  library.def("attend(Tensor query, Tensor key, Tensor value, Tensor mask, float scale) -> Tensor");
  library.def("multiply_blocks(Tensor x, Tensor matrix, int kind, int out_features) -> Tensor");
  library.def("read_blocks(Tensor ids, Tensor matrix, int kind, int rows, int width) -> Tensor");
}

TORCH_LIBRARY_IMPL(specbranch, CPU, library) {
  library.impl("half_linear", &half_linear);
  library.impl("int8_linear", &int8_linear);
  library.impl("block_linear", &block_linear);
  library.impl("block_embedding", &block_embedding);
  library.impl("attend", &attend);
  library.impl("multiply_blocks", &multiply_blocks);
  library.impl("read_blocks", &read_blocks);
}

}  // namespace
