// The CPU kernel's two inner loops, written once and included once per instruction set.
//
// The includer opens a namespace, sets the compiler's target, and gives LANES and
// `Lanes load_bytes(const u8*)` (LANES bytes widened to floats). No include guard: on purpose.

typedef float Four __attribute__((vector_size(16)));
typedef float FourAnywhere __attribute__((vector_size(16), aligned(4), may_alias));
typedef float LanesAnywhere __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline Lanes load_floats(const float* at) { return *(const LanesAnywhere*)at; }
static inline void store_floats(float* at, Lanes v) { *(LanesAnywhere*)at = v; }

// current += sum of now[r] * rows[r] and next += sum of later[r] * rows[r], over `chunks` pieces of
// 4 * LANES bytes; a fresh row is overwritten instead of added to. When the filter is at least a
// pixel wide every input row feeds exactly two output rows, so one pass over the image serves both
// and each row is read once. A block's own sum starts at zero: adding thousands of rows one by one
// to a large total would lose bits.
template <bool PAIR>
static void accumulate(const Block& block, i64 chunks, float* current, float* next) {
  for (i64 x = 0; x < chunks * 4 * LANES; x += 4 * LANES) {
    Lanes a[4] = {}, b[4] = {};
    for (int r = 0; r < block.n_rows; ++r) {
      const u8* at = block.rows[r] + x;
      const Lanes v0 = load_bytes(at), v1 = load_bytes(at + LANES);
      const Lanes v2 = load_bytes(at + 2 * LANES), v3 = load_bytes(at + 3 * LANES);
      const float w = block.now[r];
      a[0] += v0 * w; a[1] += v1 * w; a[2] += v2 * w; a[3] += v3 * w;
      if (PAIR) {
        const float u = block.later[r];
        b[0] += v0 * u; b[1] += v1 * u; b[2] += v2 * u; b[3] += v3 * u;
      }
    }
    for (int q = 0; q < 4; ++q) {
      float* to = current + x + q * LANES;
      store_floats(to, block.fresh_current ? a[q] : load_floats(to) + a[q]);
      if (PAIR) {
        to = next + x + q * LANES;
        store_floats(to, block.fresh_next ? b[q] : load_floats(to) + b[q]);
      }
    }
  }
}

// pixels[j] = sum over taps of weights * the accumulated row, one output pixel a vector (its three
// channels and one idle lane), four output pixels at a time. `starts` are float offsets.
static void reduce(const float* row, const int* starts, const float* weights, i64 outputs,
                   i64 taps, int pitch, float* pixels) {
  const i64 block = 128;  // as above: short partial sums keep their bits
  for (i64 j = 0; j < outputs; j += 4) {
    const float* at0 = row + starts[j];
    const float* at1 = row + starts[j + 1];
    const float* at2 = row + starts[j + 2];
    const float* at3 = row + starts[j + 3];
    Four sum0 = {}, sum1 = {}, sum2 = {}, sum3 = {};
    for (i64 from = 0; from < taps; from += block) {
      const i64 to = from + block < taps ? from + block : taps;
      Four s0 = {}, s1 = {}, s2 = {}, s3 = {};
      for (i64 k = from; k < to; ++k) {
        s0 += *(const FourAnywhere*)at0 * weights[0];
        s1 += *(const FourAnywhere*)at1 * weights[1];
        s2 += *(const FourAnywhere*)at2 * weights[2];
        s3 += *(const FourAnywhere*)at3 * weights[3];
        at0 += pitch; at1 += pitch; at2 += pitch; at3 += pitch;
        weights += 4;
      }
      sum0 += s0; sum1 += s1; sum2 += s2; sum3 += s3;
    }
    *(FourAnywhere*)(pixels + 4 * j) = sum0;
    *(FourAnywhere*)(pixels + 4 * j + 4) = sum1;
    *(FourAnywhere*)(pixels + 4 * j + 8) = sum2;
    *(FourAnywhere*)(pixels + 4 * j + 12) = sum3;
  }
}

// One channel of finished pixels, normalised, as floats or half floats.
static void finish(const float* pixels, int channel, i64 outputs, float scale, float shift,
                   float* out, u16* out_half) {
  if (out_half) {
    for (i64 j = 0; j < outputs; ++j) {
      out_half[j] = half_bits(pixels[4 * j + channel] * scale + shift);
    }
  } else {
    for (i64 j = 0; j < outputs; ++j) out[j] = pixels[4 * j + channel] * scale + shift;
  }
}

static const Loops loops = {LANES, accumulate<true>, accumulate<false>, reduce, finish};
