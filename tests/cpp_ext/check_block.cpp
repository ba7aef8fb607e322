// The CUDA kernel's body on images that fill their memory to the last byte, as one program: under
// the address sanitizer a byte read before or after an image ends it. Widths, alignments and
// channel orders vary, so that every way of `load16` meets a row's end.
#include <cstdio>
#include <cstring>
#include <vector>

#include "emulate_block.cpp"

int main() {
  const float mean_std[6] = {0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 0.5f};
  const int height = 3, size = 4;
  int read = 0;
  for (int width = 1; width < 23; ++width) {
    for (int pixel : {1, 3, 4}) {
      for (int shift = 0; shift < 4; ++shift) {  // where in a word the image begins
        const size_t used = pixel == 1 ? 3 * height * width : (height * width - 1) * pixel + 3;
        psc::u8* memory = new psc::u8[used + shift];
        memset(memory, 7, used + shift);
        const float boxes[8] = {0.0f, 0.0f, (float)width, (float)height,
                                (float)width - 0.75f, 1.5f, (float)width, (float)height};
        std::vector<float> views(2 * 3 * size * size, 99.0f);
        emulate(memory + shift, height, width, (long long)width * pixel, pixel,
                pixel == 1 ? (long long)height * width : 1, boxes, 2, mean_std, size, size,
                views.data(), 0);
        for (float value : views) {
          if (!(value > (7 / 255.0f - 0.5f) / 0.5f - 1e-4f && value < (7 / 255.0f - 0.5f) / 0.5f + 1e-4f)) {
            printf("width %d, pixel %d, shift %d: %g\n", width, pixel, shift, value);
            return 1;
          }
        }
        delete[] memory;
        ++read;
      }
    }
  }
  printf("%d images\n", read);
  return 0;
}
