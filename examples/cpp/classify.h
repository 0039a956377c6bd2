// From a JPEG to the name of its class, for any runtime: model.json says how the image is prepared.
//
// The pixels are exactly those of timm's transform: libjpeg decodes as Pillow does, and `resize` computes in the same
// integers as Pillow.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdio>  // before jpeglib.h, which uses FILE
#include <cstring>
#include <exception>
#include <fstream>
#include <functional>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include <jpeglib.h>
#include <nlohmann/json.hpp>

// A network: takes (1, 3, size, size) floats, returns the logits.
using Network = std::function<std::vector<float>(std::vector<float>& pixels, int size)>;

struct Image {
    int width, height;
    std::vector<unsigned char> rgb;  // (height, width, 3)
};

inline Image read_jpeg(const std::string& path) {
    FILE* file = std::fopen(path.c_str(), "rb");
    if (!file) throw std::runtime_error(path + " cannot be read.");
    jpeg_decompress_struct info;
    jpeg_error_mgr errors;
    info.err = jpeg_std_error(&errors);
    errors.error_exit = [](j_common_ptr info) {  // by itself libjpeg ends the program
        char message[JMSG_LENGTH_MAX];
        info->err->format_message(info, message);
        jpeg_destroy(info);
        throw std::runtime_error(message);
    };
    jpeg_create_decompress(&info);
    jpeg_stdio_src(&info, file);
    jpeg_read_header(&info, TRUE);
    info.out_color_space = JCS_RGB;
    jpeg_start_decompress(&info);
    Image image{int(info.output_width), int(info.output_height), {}};
    image.rgb.resize(size_t(3) * image.width * image.height);
    while (info.output_scanline < info.output_height) {
        JSAMPROW row = &image.rgb[size_t(3) * image.width * info.output_scanline];
        jpeg_read_scanlines(&info, &row, 1);
    }
    jpeg_finish_decompress(&info);
    jpeg_destroy_decompress(&info);
    std::fclose(file);
    return image;
}

inline double bicubic(double x) {
    x = std::abs(x);
    return x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

// Resize one dimension of an array (outer, from, inner) as Pillow does, with antialiasing.
inline std::vector<unsigned char> resize(const std::vector<unsigned char>& in, int outer, int from, int to, int inner) {
    if (from == to) return in;
    const int bits = 22;  // of the fraction in Pillow's fixed-point weights
    const double scale = double(from) / to, wider = std::max(scale, 1.), support = 2 * wider;
    std::vector<unsigned char> out(size_t(outer) * to * inner);
    for (int i = 0; i < to; i++) {
        const double center = (i + 0.5) * scale;
        const int first = std::max(int(center - support + 0.5), 0);
        const int count = std::min(int(center + support + 0.5), from) - first;
        std::vector<double> weights(count);
        double sum = 0;
        for (int k = 0; k < count; k++) sum += weights[k] = bicubic((first + k - center + 0.5) / wider);
        std::vector<int> fixed(count);
        for (int k = 0; k < count; k++) fixed[k] = int(std::round(weights[k] / sum * (1 << bits)));
        for (int o = 0; o < outer; o++) {
            for (int j = 0; j < inner; j++) {
                int value = 1 << (bits - 1);
                for (int k = 0; k < count; k++) value += fixed[k] * in[(size_t(o) * from + first + k) * inner + j];
                out[(size_t(o) * to + i) * inner + j] = std::clamp(value >> bits, 0, 255);
            }
        }
    }
    return out;
}

// Resize the shorter side, cut out the middle, subtract the mean, divide by the standard deviation: (3, size, size).
inline std::vector<float> prepare(const Image& image, const nlohmann::json& about) {
    if (about["interpolation"] != "bicubic" || about["crop_mode"] != "center" || about["input"] != "RGB" ||
        about["input_size"][1] != about["input_size"][2])
        throw std::runtime_error("This example prepares images by bicubic, center and RGB, to squares.");
    const int size = about["input_size"][1], shorter = std::min(image.width, image.height);
    const int scaled = std::floor(size / about["crop_pct"].get<double>());
    const int width = int64_t(scaled) * image.width / shorter, height = int64_t(scaled) * image.height / shorter;
    auto resized = image.rgb;
    // Pillow 13 starts with the rows if an image loses many more rows than columns; Pillow 12 did not.
    const bool rows_first = image.height > height && image.height - height > 2 * (image.width - width);
    if (rows_first) resized = resize(resized, 1, image.height, height, 3 * image.width);
    resized = resize(resized, rows_first ? height : image.height, image.width, width, 3);
    if (!rows_first) resized = resize(resized, 1, image.height, height, 3 * width);
    const int left = std::nearbyint((width - size) / 2.), top = std::nearbyint((height - size) / 2.);
    std::vector<float> pixels;
    for (int c = 0; c < 3; c++) {
        const float mean = about["mean"][c], std = about["std"][c];
        for (int y = 0; y < size; y++)
            for (int x = 0; x < size; x++)
                pixels.push_back((resized[((top + y) * width + left + x) * 3 + c] / 255.f - mean) / std);
    }
    return pixels;
}

// The program: classify MODEL model.json IMAGE... prints the class of each image and its share; after --logits, all
// logits.
inline int classify(int argc, char** argv, const std::function<Network(const std::string&)>& load) try {
    std::vector<std::string> arguments(argv + 1, argv + argc);
    const bool logits_only = !arguments.empty() && arguments[0] == "--logits";
    if (logits_only) arguments.erase(arguments.begin());
    if (arguments.size() < 3)
        throw std::runtime_error("Usage: " + std::string(argv[0]) + " [--logits] MODEL model.json IMAGE...");
    std::ifstream file(arguments[1]);
    const auto about = nlohmann::json::parse(file);
    const Network network = load(arguments[0]);
    std::cout.precision(9);
    for (size_t i = 2; i < arguments.size(); i++) {
        auto pixels = prepare(read_jpeg(arguments[i]), about);
        const auto logits = network(pixels, about["input_size"][1]);
        std::cout << arguments[i];
        if (logits_only) {
            for (float logit : logits) std::cout << '\t' << logit;
        } else {
            const size_t best = std::max_element(logits.begin(), logits.end()) - logits.begin();
            double sum = 0;
            for (float logit : logits) sum += std::exp(logit - logits[best]);
            std::cout << ": " << about["label_names"][best].get<std::string>() << ' ' << std::lround(100 / sum) << " %";
        }
        std::cout << std::endl;
    }
    return 0;
} catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << std::endl;
    return 1;
}
