// The CPU kernel's inner loops, written once and included once per instruction set.
//
// The includer opens a namespace, sets the compiler's target, and gives LANES,
// `Lanes load_bytes(const u8*)` (LANES bytes widened to floats), `Words load_words(const u8*)`
// (2 * LANES bytes widened to 16 bits), `low_floats` and `high_floats` (a half of those as floats),
// and `store_half(u16*, Lanes)`.
// No include guard: on purpose.

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
      __builtin_prefetch(at + block.ahead);
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

// The same for blocks of several rows, in exact integers. Between two output rows' centres both
// weights are straight lines over the input rows, so two sums a byte are enough: of the values, and
// of the values times the row's number in the block. Row numbers take no multiplication: from the
// last row to the first, the sum of the running sums counts row r exactly r + 1 times. 16 bits
// hold both sums (255 * 16 * 17 / 2 < 65536), so a register takes twice as many bytes.
static void accumulate_lines(const Block& block, i64 chunks, float* current, float* next) {
  const Line now = block.now_line, later = block.later_line;
  for (i64 x = 0; x < chunks * 4 * LANES; x += 4 * LANES) {
    Words sum0 = {}, sum1 = {}, ramp0 = {}, ramp1 = {};
    for (int r = block.n_rows - 1; r >= 0; --r) {
      const u8* at = block.rows[r] + x;
      __builtin_prefetch(at + block.ahead);
      sum0 += load_words(at);
      sum1 += load_words(at + 2 * LANES);
      ramp0 += sum0;
      ramp1 += sum1;
    }
    const Lanes sums[4] = {low_floats(sum0), high_floats(sum0), low_floats(sum1), high_floats(sum1)};
    const Lanes ramps[4] = {low_floats(ramp0), high_floats(ramp0), low_floats(ramp1),
                            high_floats(ramp1)};
    for (int q = 0; q < 4; ++q) {
      const Lanes a = sums[q] * now.start + ramps[q] * now.step;
      const Lanes b = sums[q] * later.start + ramps[q] * later.step;
      float* to = current + x + q * LANES;
      store_floats(to, block.fresh_current ? a : load_floats(to) + a);
      to = next + x + q * LANES;
      store_floats(to, block.fresh_next ? b : load_floats(to) + b);
    }
  }
}

// What turns four summed pixels (one a vector: its three channels and one idle lane) into four
// values of each of three planes.
static inline void store_planes(Four a, Four b, Four c, Four d, const Normal& normal, float* r,
                                float* g, float* blue) {
  const Four scale = normal.scale, shift = normal.shift;
  a = a * scale + shift; b = b * scale + shift; c = c * scale + shift; d = d * scale + shift;
  const Four ab_low = PSC_MIX(a, b, 0, 4, 1, 5), ab_high = PSC_MIX(a, b, 2, 6, 3, 7);
  const Four cd_low = PSC_MIX(c, d, 0, 4, 1, 5), cd_high = PSC_MIX(c, d, 2, 6, 3, 7);
  *(FourAnywhere*)r = PSC_MIX(ab_low, cd_low, 0, 1, 4, 5);
  *(FourAnywhere*)g = PSC_MIX(ab_low, cd_low, 2, 3, 6, 7);
  *(FourAnywhere*)blue = PSC_MIX(ab_high, cd_high, 0, 1, 4, 5);
}

// Four output pixels at a time: their taps' weighted sums over one accumulated row, normalised.
// `starts` are float offsets into the row; `outputs` is a multiple of four.
template <int PITCH>
static void reduce(const float* row, const int* starts, const float* weights, i64 outputs,
                   i64 taps, const Normal& normal, float* r, float* g, float* b) {
  const i64 block = 128;  // as above: short partial sums keep their bits
  for (i64 j = 0; j < outputs; j += 4) {
    const float* at0 = row + starts[j];
    const float* at1 = row + starts[j + 1];
    const float* at2 = row + starts[j + 2];
    const float* at3 = row + starts[j + 3];
    Four sum0 = {}, sum1 = {}, sum2 = {}, sum3 = {};
    if (taps == 2) {  // enlarging: no loop to set up
      sum0 = *(const FourAnywhere*)at0 * weights[0] + *(const FourAnywhere*)(at0 + PITCH) * weights[4];
      sum1 = *(const FourAnywhere*)at1 * weights[1] + *(const FourAnywhere*)(at1 + PITCH) * weights[5];
      sum2 = *(const FourAnywhere*)at2 * weights[2] + *(const FourAnywhere*)(at2 + PITCH) * weights[6];
      sum3 = *(const FourAnywhere*)at3 * weights[3] + *(const FourAnywhere*)(at3 + PITCH) * weights[7];
      weights += 8;
    } else {
      for (i64 from = 0; from < taps; from += block) {
        const i64 to = from + block < taps ? from + block : taps;
        Four s0 = {}, s1 = {}, s2 = {}, s3 = {};
        for (i64 k = from; k < to; ++k) {
          const i64 x = k * PITCH;
          s0 += *(const FourAnywhere*)(at0 + x) * weights[0];
          s1 += *(const FourAnywhere*)(at1 + x) * weights[1];
          s2 += *(const FourAnywhere*)(at2 + x) * weights[2];
          s3 += *(const FourAnywhere*)(at3 + x) * weights[3];
          weights += 4;
        }
        sum0 += s0; sum1 += s1; sum2 += s2; sum3 += s3;
      }
    }
    store_planes(sum0, sum1, sum2, sum3, normal, r + j, g + j, b + j);
  }
}

static void to_half(const float* values, i64 count, u16* out) {
  i64 j = 0;
  for (; j + LANES <= count; j += LANES) store_half(out + j, load_floats(values + j));
  for (; j < count; ++j) out[j] = half_bits(values[j]);
}

static const Loops loops = {LANES,     accumulate<true>, accumulate<false>, accumulate_lines,
                            reduce<3>, reduce<4>,        to_half};
