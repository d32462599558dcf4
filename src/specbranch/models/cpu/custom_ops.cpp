// Products with packed weights, called by compiled forwards without Python between them.

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

namespace {

struct Model {
  std::vector<c10::IValue> halves;    // packed weights, in the layers' order
  std::vector<c10::IValue> integers;  // packed weights, scales and zero points of each layer
};

std::mutex guard;
std::unordered_map<int64_t, std::shared_ptr<const Model>> models;
int64_t last = 0;
thread_local std::shared_ptr<const Model> running;

// add_model(packed weights of halves, of integers) -> int
void add_model(const c10::OperatorHandle&, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const c10::IValue integers = torch::jit::pop(*stack);
  const c10::IValue halves = torch::jit::pop(*stack);
  const at::ArrayRef<c10::IValue> held = halves.toListRef();
  Model model{held.vec(), {}};
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

TORCH_LIBRARY(specbranch, library) {
  library.def(
      "add_model(__torch__.torch.classes.quantized.LinearPackedParamsBase[] halves, "
      "Tensor[] integers) -> int",
      torch::CppFunction::makeFromBoxedFunction<&add_model>());
  library.def("remove_model(int model) -> ()", &remove_model);
  library.def("run_model(int model) -> ()", &run_model);
  library.def("half_linear(Tensor x, int layer, int out_features) -> Tensor");
  library.def("int8_linear(Tensor x, int layer, int out_features) -> Tensor");
}

TORCH_LIBRARY_IMPL(specbranch, CPU, library) {
  library.impl("half_linear", &half_linear);
  library.impl("int8_linear", &int8_linear);
}

}  // namespace
