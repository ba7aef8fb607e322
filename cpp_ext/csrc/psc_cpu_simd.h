// The CPU kernel's inner loops for every instruction set, and which one this CPU takes.
//
// psc_cpu_lanes.h holds the loops; here is what differs: how bytes become floats, and half floats.
#ifndef GEOMAG_EDGE_PSC_CPU_SIMD_H
#define GEOMAG_EDGE_PSC_CPU_SIMD_H

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "psc_core.h"

namespace {

using psc::half_bits;
using psc::i64;
using psc::u16;
using psc::u8;

const int BLOCK_ROWS = 16;          // input rows summed per pass: as many streams as a CPU tracks

// Weights that lie on a line over a block's rows: row r weighs start + (r + 1) * step.
struct Line {
  float start, step;
};

// Up to BLOCK_ROWS input rows and their weights in the current output row and the next.
struct Block {
  const u8* rows[BLOCK_ROWS];
  float now[BLOCK_ROWS];
  float later[BLOCK_ROWS];
  Line now_line, later_line;
  int n_rows;
  i64 ahead;  // distance to the row that the next block has in the same place, for prefetching
  bool fresh_current;
  bool fresh_next;
};

typedef float Four __attribute__((vector_size(16)));
typedef int FourInts __attribute__((vector_size(16)));

// (sum / 255 - mean) / std as one multiply-add, in the lanes of a summed pixel.
struct Normal {
  Four scale, shift;
};

#if defined(__clang__)
#define PSC_MIX(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define PSC_MIX(a, b, i, j, k, l) __builtin_shuffle(a, b, (FourInts){i, j, k, l})
#endif

// The inner loops of one instruction set.
struct Loops {
  int lanes;
  void (*accumulate_pair)(const Block&, i64 chunks, float* current, float* next);
  void (*accumulate_one)(const Block&, i64 chunks, float* current, float* next);
  void (*accumulate_lines)(const Block&, i64 chunks, float* current, float* next);
  void (*reduce_pitch_3)(const float* row, const int* starts, const float* weights, i64 outputs,
                         i64 taps, const Normal& normal, float* r, float* g, float* b);
  void (*reduce_pitch_4)(const float* row, const int* starts, const float* weights, i64 outputs,
                         i64 taps, const Normal& normal, float* r, float* g, float* b);
  void (*to_half)(const float* values, i64 count, u16* out);
};

#if defined(__clang__)
#define PSC_TARGET_BEGIN(clang_form, gcc_form) _Pragma(clang_form)
#define PSC_TARGET_END _Pragma("clang attribute pop")
#else
#define PSC_TARGET_BEGIN(clang_form, gcc_form) _Pragma("GCC push_options") _Pragma(gcc_form)
#define PSC_TARGET_END _Pragma("GCC pop_options")
#endif

#if defined(__x86_64__)
PSC_TARGET_BEGIN(
    "clang attribute push(__attribute__((target(\"avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c\"))), apply_to = function)",
    "GCC target(\"avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512\")")
namespace avx512 {
const int LANES = 16;
typedef float Lanes __attribute__((vector_size(64)));
static inline Lanes load_bytes(const u8* at) {
  // The masked forms are the same instructions; gcc's plain ones warn inside its own header.
  const __mmask16 all = 0xffff;
  const __m128i bytes = _mm_loadu_si128((const __m128i*)at);
  return (Lanes)_mm512_maskz_cvtepi32_ps(all, _mm512_maskz_cvtepu8_epi32(all, bytes));
}
typedef u16 Words __attribute__((vector_size(64)));
static inline Words load_words(const u8* at) {
  return (Words)_mm512_maskz_cvtepu8_epi16(0xffffffff, _mm256_loadu_si256((const __m256i*)at));
}
static inline Lanes word_floats(__m256i words) {
  return (Lanes)_mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, words));
}
static inline Lanes low_floats(Words w) {
  return word_floats(_mm512_maskz_extracti64x4_epi64(0xf, (__m512i)w, 0));
}
static inline Lanes high_floats(Words w) {
  return word_floats(_mm512_maskz_extracti64x4_epi64(0xf, (__m512i)w, 1));
}
static inline void store_half(u16* at, Lanes v) {
  _mm256_storeu_si256((__m256i*)at, _mm512_maskz_cvtps_ph(0xffff, (__m512)v, 0));
}
#include "psc_cpu_lanes.h"
}  // namespace avx512
PSC_TARGET_END

PSC_TARGET_BEGIN(
    "clang attribute push(__attribute__((target(\"avx2,fma,f16c\"))), apply_to = function)",
    "GCC target(\"avx2,fma,f16c\")")
namespace avx2 {
const int LANES = 8;
typedef float Lanes __attribute__((vector_size(32)));
static inline Lanes load_bytes(const u8* at) {
  return (Lanes)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)at)));
}
typedef u16 Words __attribute__((vector_size(32)));
static inline Words load_words(const u8* at) {
  return (Words)_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)at));
}
static inline Lanes low_floats(Words w) {
  return (Lanes)_mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(_mm256_castsi256_si128((__m256i)w)));
}
static inline Lanes high_floats(Words w) {
  return (Lanes)_mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(_mm256_extracti128_si256((__m256i)w, 1)));
}
static inline void store_half(u16* at, Lanes v) {
  _mm_storeu_si128((__m128i*)at, _mm256_cvtps_ph((__m256)v, 0));
}
#include "psc_cpu_lanes.h"
}  // namespace avx2
PSC_TARGET_END
#endif

namespace baseline {
const int LANES = 4;
typedef float Lanes __attribute__((vector_size(16)));
typedef u16 Words __attribute__((vector_size(16)));
#if defined(__x86_64__)
static inline Lanes load_bytes(const u8* at) {
  int four;
  memcpy(&four, at, 4);
  const __m128i zero = _mm_setzero_si128();
  const __m128i words = _mm_unpacklo_epi8(_mm_cvtsi32_si128(four), zero);
  return (Lanes)_mm_cvtepi32_ps(_mm_unpacklo_epi16(words, zero));
}
static inline Words load_words(const u8* at) {
  return (Words)_mm_unpacklo_epi8(_mm_loadl_epi64((const __m128i*)at), _mm_setzero_si128());
}
static inline Lanes low_floats(Words w) {
  return (Lanes)_mm_cvtepi32_ps(_mm_unpacklo_epi16((__m128i)w, _mm_setzero_si128()));
}
static inline Lanes high_floats(Words w) {
  return (Lanes)_mm_cvtepi32_ps(_mm_unpackhi_epi16((__m128i)w, _mm_setzero_si128()));
}
#elif defined(__aarch64__)
static inline Lanes load_bytes(const u8* at) {
  uint32_t four;
  memcpy(&four, at, 4);
  const uint16x8_t words = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)));
  return (Lanes)vcvtq_f32_u32(vmovl_u16(vget_low_u16(words)));
}
static inline Words load_words(const u8* at) { return (Words)vmovl_u8(vld1_u8(at)); }
static inline Lanes low_floats(Words w) {
  return (Lanes)vcvtq_f32_u32(vmovl_u16(vget_low_u16((uint16x8_t)w)));
}
static inline Lanes high_floats(Words w) {
  return (Lanes)vcvtq_f32_u32(vmovl_u16(vget_high_u16((uint16x8_t)w)));
}
static inline void store_half(u16* at, Lanes v) {
  vst1_u16(at, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v)));
}
#else
static inline Lanes load_bytes(const u8* at) {
  return Lanes{(float)at[0], (float)at[1], (float)at[2], (float)at[3]};
}
static inline Words load_words(const u8* at) {
  return Words{at[0], at[1], at[2], at[3], at[4], at[5], at[6], at[7]};
}
static inline Lanes low_floats(Words w) {
  return Lanes{(float)w[0], (float)w[1], (float)w[2], (float)w[3]};
}
static inline Lanes high_floats(Words w) {
  return Lanes{(float)w[4], (float)w[5], (float)w[6], (float)w[7]};
}
#endif
#if !defined(__aarch64__)
static inline void store_half(u16* at, Lanes v) {
  for (int i = 0; i < LANES; ++i) at[i] = half_bits(v[i]);
}
#endif
#include "psc_cpu_lanes.h"
}  // namespace baseline

const Loops& loops_of_this_cpu() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return avx512::loops;
  }
  // Every CPU with these two has F16C, which older compilers cannot ask for by name.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::loops;
#endif
  return baseline::loops;
}

const Loops* loops_named(const char* name) {
  if (name == nullptr || name[0] == '\0') return &loops_of_this_cpu();
#if defined(__x86_64__)
  if (strcmp(name, "avx512") == 0 && loops_of_this_cpu().lanes == 16) return &avx512::loops;
  if (strcmp(name, "avx2") == 0 && loops_of_this_cpu().lanes >= 8) return &avx2::loops;
#endif
  return strcmp(name, "baseline") == 0 ? &baseline::loops : nullptr;
}

}  // namespace

#endif  // GEOMAG_EDGE_PSC_CPU_SIMD_H
