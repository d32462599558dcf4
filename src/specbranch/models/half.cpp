// Products with float16 weights, called by compiled forwards without Python between them.

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

namespace {

using Layers = std::vector<c10::IValue>;  // packed weights, in the model's order

std::mutex guard;
std::unordered_map<int64_t, std::shared_ptr<const Layers>> models;
int64_t last = 0;
thread_local std::shared_ptr<const Layers> running;

// add_model(packed weights) -> int
void add_model(const c10::OperatorHandle&, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const c10::IValue packed = torch::jit::pop(*stack);
  std::lock_guard<std::mutex> lock(guard);
  models[++last] = std::make_shared<const Layers>(packed.toListRef().vec());
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
  torch::jit::Stack stack{x, running->at(layer)};
  product.callBoxed(stack);
  return torch::jit::pop(stack).toTensor();
}

TORCH_LIBRARY(specbranch, library) {
  library.def(
      "add_model(__torch__.torch.classes.quantized.LinearPackedParamsBase[] layers) -> int",
      torch::CppFunction::makeFromBoxedFunction<&add_model>());
  library.def("remove_model(int model) -> ()", &remove_model);
  library.def("run_model(int model) -> ()", &run_model);
  library.def("half_linear(Tensor x, int layer, int out_features) -> Tensor");
}

TORCH_LIBRARY_IMPL(specbranch, CPU, library) { library.impl("half_linear", &half_linear); }

}  // namespace
