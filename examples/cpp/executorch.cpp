// ExecuTorch: model.pte and model.int8.pte.
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include "classify.h"

using executorch::extension::from_blob;
using executorch::extension::Module;

int main(int argc, char** argv) {
    return classify(argc, argv, [](const std::string& path) -> Network {
        return [module = std::make_shared<Module>(path)](std::vector<float>& pixels, int size) {
            const auto answer = module->forward(from_blob(pixels.data(), {1, 3, size, size}));
            if (!answer.ok()) throw std::runtime_error(executorch::runtime::to_string(answer.error()));
            const auto logits = answer->at(0).toTensor();
            return std::vector<float>(logits.const_data_ptr<float>(), logits.const_data_ptr<float>() + logits.numel());
        };
    });
}
