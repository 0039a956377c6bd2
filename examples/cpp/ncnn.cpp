// ncnn: model.ncnn.param, with model.ncnn.bin beside it.
#include <net.h>

#include "classify.h"

int main(int argc, char** argv) {
    return classify(argc, argv, [](const std::string& path) -> Network {
        auto net = std::make_shared<ncnn::Net>();
        net->opt.use_fp16_packed = net->opt.use_fp16_storage = net->opt.use_fp16_arithmetic = false;
        const std::string weights = path.substr(0, path.rfind(".param")) + ".bin";
        if (net->load_param(path.c_str()) || net->load_model(weights.c_str()))
            throw std::runtime_error("ncnn does not load " + path);
        return [net](std::vector<float>& pixels, int size) {
            auto extractor = net->create_extractor();
            extractor.input("in0", ncnn::Mat(size, size, 3, pixels.data()).clone());  // its channels are aligned
            ncnn::Mat logits;
            extractor.extract("out0", logits);
            return std::vector<float>((float*)logits, (float*)logits + logits.w);
        };
    });
}
