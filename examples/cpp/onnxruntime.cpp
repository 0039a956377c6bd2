// ONNX Runtime: model.onnx, model.int8.onnx and the files with small weights.
#include <onnxruntime_cxx_api.h>

#include "classify.h"

int main(int argc, char** argv) {
    Ort::Env environment(ORT_LOGGING_LEVEL_ERROR);
    return classify(argc, argv, [&](const std::string& path) -> Network {
        auto session = std::make_shared<Ort::Session>(environment, path.c_str(), Ort::SessionOptions{});
        return [session](std::vector<float>& pixels, int size) {
            const int64_t shape[] = {1, 3, size, size};
            auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
            auto image = Ort::Value::CreateTensor<float>(memory, pixels.data(), pixels.size(), shape, 4);
            const char *input = "input", *output = "output";
            auto answer = session->Run({}, &input, &image, 1, &output, 1);
            const float* logits = answer[0].GetTensorData<float>();
            return std::vector<float>(logits, logits + answer[0].GetTensorTypeAndShapeInfo().GetElementCount());
        };
    });
}
