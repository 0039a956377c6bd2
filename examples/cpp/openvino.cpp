// OpenVINO: model.xml and model.int8.xml, each with its .bin beside it.
#include <openvino/openvino.hpp>

#include "classify.h"

int main(int argc, char** argv) {
    return classify(argc, argv, [](const std::string& path) -> Network {
        // Without the hint OpenVINO computes in bf16 or fp16 where the processor has it, which is faster and 0.1 off.
        auto model = ov::Core().compile_model(path, "CPU", ov::hint::inference_precision(ov::element::f32));
        return [request = model.create_infer_request()](std::vector<float>& pixels, int size) mutable {
            const ov::Shape shape{1, 3, size_t(size), size_t(size)};
            request.set_input_tensor(ov::Tensor(ov::element::f32, shape, pixels.data()));
            request.infer();
            const auto logits = request.get_output_tensor();
            return std::vector<float>(logits.data<float>(), logits.data<float>() + logits.get_size());
        };
    });
}
