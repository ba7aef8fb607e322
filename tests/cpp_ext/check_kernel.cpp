// The CPU kernel against plain loops in double, as one program: what a sanitizer, another compiler
// or an emulated processor can run. Prints the instruction set and the largest error; exits with 1
// where they disagree.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "psc_cpu.cpp"

namespace {

const int HEIGHT = 97, WIDTH = 181;
const float MEAN_STD[6] = {0.5f, 0.4f, 0.3f, 0.2f, 0.3f, 0.4f};

// One output value by definition: all pixels, weighed by the two triangles.
double expected(const u8* image, int pixel, int channel, const Axis& x, const Axis& y, i64 i,
                i64 j, int c) {
  const double at_x = psc::centre(x, j), at_y = psc::centre(y, i);
  if (!psc::inside(x, at_x) || !psc::inside(y, at_y)) return 0.0;
  double sum = 0.0, weights = 0.0;
  for (int row = 0; row < HEIGHT; ++row) {
    const double down = 1.0 - std::fabs(row + 0.5 - at_y) / y.radius;
    for (int column = 0; down > 0.0 && column < WIDTH; ++column) {
      const double across = 1.0 - std::fabs(column + 0.5 - at_x) / x.radius;
      if (across <= 0.0) continue;
      weights += down * across;
      sum += down * across * image[(row * WIDTH + column) * pixel + c * channel];
    }
  }
  return (sum / weights / 255.0 - (double)MEAN_STD[c]) / (double)MEAN_STD[3 + c];
}

}  // namespace

int main() {
  std::mt19937 random(3);
  // Exactly as many bytes as the image has: one read beyond them is an error under a sanitizer.
  double worst = 0.0;
  int wrong_halves = 0;
  for (int turn = 0; turn < 40; ++turn) {
    const int pixel = 3 + turn % 2, channel = turn & 2 ? -1 : 1;
    std::vector<u8> bytes((size_t)(HEIGHT * WIDTH * pixel));
    for (u8& byte : bytes) byte = (u8)random();
    const u8* image = bytes.data() + (channel < 0 ? 2 : 0);
    const float x0 = (float)(random() % 400) / 2.0f - 100.0f;
    const float y0 = (float)(random() % 400) / 2.0f - 100.0f;
    const float box[4] = {x0, y0, x0 + 0.25f + (float)(random() % 800) / 2.0f,
                          y0 + 0.25f + (float)(random() % 800) / 2.0f};
    const i64 size = 1 + random() % 70;
    const Axis x = psc::make_axis(box[0], box[2], size, WIDTH);
    const Axis y = psc::make_axis(box[1], box[3], size, HEIGHT);
    std::vector<float> views((size_t)(3 * size * size));
    std::vector<u16> halves(views.size());
    for (const char* name : {(const char*)nullptr, "baseline"}) {
      for (int half = 0; half < 2; ++half) {
        void* out = half ? (void*)halves.data() : (void*)views.data();
        const int status =
            geomag_psc_crop_cpu(image, HEIGHT, WIDTH, (i64)WIDTH * pixel, pixel, channel, box, 1,
                                MEAN_STD, size, out, half, 3, name);
        if (status) return 1;
      }
      for (size_t k = 0; k < views.size(); ++k) wrong_halves += halves[k] != half_bits(views[k]);
      for (int c = 0; c < 3; ++c) {
        for (i64 i = 0; i < size; ++i) {
          for (i64 j = 0; j < size; ++j) {
            const double exact = expected(image, pixel, channel, x, y, i, j, c);
            const double error = std::fabs(views[(size_t)((c * size + i) * size + j)] - exact);
            if (!(error <= worst)) worst = error;
          }
        }
      }
    }
  }
  std::printf("%s %g %d\n", geomag_psc_simd(), worst, wrong_halves);
  return worst <= 1e-5 && wrong_halves == 0 ? 0 : 1;
}
